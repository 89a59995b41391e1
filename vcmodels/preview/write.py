"""All pictures of a preview: every transform of the list alone, then the whole list."""

import json
import re
from pathlib import Path

from vcmodels.augment import AnyAugmentation
from vcmodels.config import Task
from vcmodels.errors import OutputError
from vcmodels.preview.figure import write_figure
from vcmodels.preview.patches import PatchSource
from vcmodels.reporting import Reporter, Silent

DRAWS = 2
"""How often each patch is transformed."""


def write_preview(
    task: Task,
    output: Path | None = None,
    *,
    samples: int = 3,
    seed: int | None = None,
    reporter: Reporter | None = None,
) -> tuple[Path, list[Path]]:
    """Draw patches of a task before and after its augmentation, with the labels of every target.

    One PNG for each transform of the list, forced to happen, and `samples` of the whole list at its
    own probabilities, each of another patch.

    Args:
        task: the resolved task.
        output: folder of the PNGs; `<run folder>/preview` when None. Those of the same name are
            replaced.
        samples: patches that the whole list is shown on.
        seed: of the draws; the task's when None.
        reporter: told the progress.

    Returns:
        The folder and the PNGs in it.

    Raises:
        RefusedError: the volumes do not fit the task.
        OutputError: the folder cannot be made.
    """
    reporter = reporter or Silent()
    source = PatchSource(task, task.tr_params.seed if seed is None else seed, reporter)
    folder = output or task.run_dir / "preview"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(str(folder), error.strerror or str(error), "give --output") from error
    rows = source.telling_rows(max(samples, 1))
    written: list[Path] = []
    with reporter.bar("preview", len(task.augment) + samples) as advance:
        for number, augmentation in enumerate(task.augment, start=1):
            path = folder / f"{number:02d}_{augmentation.name}.png"
            forced = augmentation.model_copy(update={"p": 1.0})
            _draw(path, augmentation.name, _values(augmentation), source, rows[0], [forced])
            written.append(path)
            advance(1, augmentation.name)
        for number, row in enumerate(rows[:samples], start=1):
            path = folder / f"all_{number}.png"
            listed = ", ".join(f"{a.name} {a.p:g}" for a in task.augment) or "nothing"
            _draw(path, "the whole list", f"p: {listed}", source, row, task.augment)
            written.append(path)
            advance(1, path.name)
    return folder, written


def _draw(
    path: Path,
    title: str,
    values: str,
    source: PatchSource,
    row: int,
    augmentations: list[AnyAugmentation],
) -> None:
    patches = [source.patch(row, [])]
    patches += [source.patch(row, augmentations, draw) for draw in range(DRAWS)]
    place = patches[0].place
    where = f"{place.volume}, z y x {' '.join(map(str, place.origin))}"
    write_figure(path, f"{title}   ·   {where}", values, patches, source.targets)


def _values(augmentation: AnyAugmentation) -> str:
    """The block of the task file on one line, and that it was forced."""
    block = augmentation.model_dump(mode="json", exclude={"name", "p"})
    text = re.sub(r'[{}"]', "", json.dumps(block))
    return f"always here, p {augmentation.p:g} in the task; {text}"
