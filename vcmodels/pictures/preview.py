"""Pictures of what augmentation does: each transform of a task's list, then the whole list."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vcmodels.augment import AnyAugmentation, ImageInterpolation
from vcmodels.config import Task
from vcmodels.config.load import has_own_augment
from vcmodels.data.normalization import fit_normalization
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, Spacing, triple
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import Resolved, resolve
from vcmodels.pictures.slices import (
    FIELD_COLOURS,
    PLANES,
    Look,
    Slice,
    draw_image,
    draw_label,
    look_of,
    physical,
    stretched,
    window_of,
)
from vcmodels.reporting import Reporter, Silent
from vcmodels.samples.dataset import PatchDataset, PatchOrigin, Variation, finish_sample
from vcmodels.samples.order import DrawOrder
from vcmodels.symmetry.follow import findings_of, followed
from vcmodels.targets import AnyTarget
from vcmodels.volumes.places import refuse_in_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CANDIDATES = 12
"""Patches that are read to choose those which show the most."""
ROOM = 0.4
"""Distance to the border of the region, in lengths of the patch, beyond which more is not better."""


@dataclass(frozen=True)
class Patch:
    """One patch as the network gets it."""

    image: np.ndarray
    """(C, Z, Y, X) float32, normalised."""
    labels: Mapping[str, np.ndarray]
    """(L, Z, Y, X) float32 per target."""
    valid: Mapping[str, np.ndarray]
    """(Z, Y, X) bool per target: where any channel counts."""
    place: PatchOrigin
    spacing: Spacing
    """Of the volume."""


class PatchSource:
    """Where patches come from: the volumes, patch list and normalisation of a task.

    The statistics for normalisation are of all the labelled data, not only of the training split.
    """

    def __init__(self, resolved: Resolved, seed: int, reporter: Reporter) -> None:
        task, self.volumes, self.seed = resolved.task, resolved.volumes, seed
        self.targets: Mapping[str, AnyTarget] = task.dataset_config.targets
        self.patch_size = task.tr_params.patch_size
        self.interpolation: ImageInterpolation = task.tr_params.image_interpolation
        self.regions = [volume.region for volume in self.volumes]
        self.rows = load_or_find_patches(task, self.volumes, reporter).rows
        wanted = task.dataset_config.normalization
        self.normalization = fit_normalization(wanted, self.volumes, self.regions)
        if not has_own_augment(task):
            findings = findings_of(resolved, self.rows, self.regions)
            task = followed(task, findings, self.volumes, reporter)
        self.augment: Sequence[AnyAugmentation] = task.augmentations
        """Of a training of the task."""

    def patch(self, row: int, augmentations: Sequence[AnyAugmentation], draw: int = 0) -> Patch:
        """A patch of the list after the transforms of one draw."""
        # Without jitter: the same place with and without a transform.
        variation = Variation(
            self.seed,
            DrawOrder(self.seed, np.ones(1)),
            augmentations=tuple(augmentations),
            interpolation=self.interpolation,
        )
        dataset = PatchDataset(
            self.volumes, self.rows[[row]], self.regions, self.targets, self.patch_size,
            self.normalization, variation,
        )  # fmt: skip
        sample = dataset.read(draw, 0)
        patch = finish_sample(sample, dataset)
        return Patch(
            patch.image.numpy(),
            {name: label.numpy() for name, label in patch.labels.items()},
            {name: valid.any(0).numpy() for name, valid in patch.valid.items()},
            sample.place,
            sample.spacing,
        )

    def telling_rows(self, count: int) -> list[int]:
        """Patches of the list that show much: labels of every target, and room to turn in.

        What a transform reads stays inside the region, so that a patch near its border would move.
        """
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(self.rows))
        room = np.array([self._room(row) for row in rows])
        chosen = rows[np.argsort(-room, kind="stable")][: max(CANDIDATES, count)].tolist()
        chosen.sort(key=lambda row: -self._content(row))
        return chosen[:count]

    def _room(self, row: int) -> float:
        number, *origin = self.rows[row].tolist()
        region, shape = self.regions[number], self.patch_size
        low, high = np.array(region.origin), np.array(region.end)
        box = Box(triple(origin), shape)
        gaps = np.minimum(np.array(box.origin) - low, high - np.array(box.end)) / shape
        return min(float(gaps.min()), ROOM)

    def _content(self, row: int) -> float:
        """How much a patch shows of the target that it shows the least of: 0 to 0.5."""
        patch = self.patch(row, ())
        shown: list[float] = []
        for name, target in self.targets.items():
            share = float((patch.valid[name] & patch.labels[name].any(0)).mean())
            # A mask that is true all over shows as little as one that is empty.
            shown.append(min(share, 1 - share if target.drawn_as == "outlines" else 0.5))
        return min(shown)


CELL = 1.75
"""Inches of the longer side of a panel."""
GAP, PAIR_GAP, LEFT, RIGHT, TOP, BOTTOM = 0.05, 0.22, 0.3, 1.2, 0.92, 0.08
DPI = 110


def write_figure(
    path: Path, title: str, caption: str, patches: Sequence[Patch], targets: Mapping[str, AnyTarget]
) -> None:
    """Draw a patch, the first, next to what transforms make of it.

    Args:
        path: the PNG.
        title: of the figure.
        caption: small, below the title; wrapped to two lines.
        patches: before, then one or more after; of the same place.
        targets: by name; one row each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    spacing = patches[0].spacing
    sheet = _Sheet(patches[0].image.shape[1:], spacing, len(patches), 1 + len(targets))
    FigureCanvasAgg(sheet.figure)
    sheet.head(title, caption)
    window = window_of(patches[0].image[0])  # one for all: a change of contrast shall show
    grey = [stretched(patch.image[0], window) for patch in patches]
    channels = len(patches[0].image)
    sheet.name_row(0, "image" if channels == 1 else f"channel 1 of {channels}")
    for column, plane, axes in sheet.panels(0):
        everywhere = np.ones(grey[column].shape, bool)
        part = _slice(grey[column], grey[column][None], everywhere, plane, spacing)
        draw_image(axes, part.image, part.size)
    for row, (name, target) in enumerate(targets.items(), start=1):
        labels = np.stack([physical(target, patch.labels[name], spacing) for patch in patches])
        valid = np.stack([patch.valid[name] for patch in patches])
        look = look_of(target, labels, valid)
        sheet.name_row(row, name)
        for column, plane, axes in sheet.panels(row):
            part = _slice(grey[column], labels[column], valid[column], plane, spacing)
            draw_label(axes, look, part)
        sheet.legend(row, look)
    sheet.figure.savefig(path, dpi=DPI)


class _Sheet:
    """Where things are on the figure, in inches from its top left corner."""

    def __init__(
        self, shape: Sequence[int], spacing: Sequence[float], patches: int, rows: int
    ) -> None:
        from matplotlib.figure import Figure

        z, y, x = (n * side for n, side in zip(shape, spacing, strict=True))
        scale = CELL / max(x, y, z)
        self.shape, self.patches = shape, patches
        self.width = max(x * scale, 1.2)
        self.heights = {"z": y * scale, "y": z * scale}
        self.row_height = max(*self.heights.values(), 1.0) + GAP
        self.pair = 2 * self.width + GAP + PAIR_GAP
        self.total = (LEFT + patches * self.pair + RIGHT, TOP + rows * self.row_height + BOTTOM)
        self.figure = Figure(figsize=self.total, facecolor="white")

    def _add(self, left: float, top: float, width: float, height: float) -> "Axes":
        across, down = self.total
        place = (left / across, 1 - (top + height) / down, width / across, height / down)
        return self.figure.add_axes(place)

    def panels(self, row: int) -> Iterator[tuple[int, str, "Axes"]]:
        """The panels of a row: which patch, which plane, and where to draw."""
        for column in range(self.patches):
            for number, plane in enumerate(PLANES):
                left = LEFT + column * self.pair + number * (self.width + GAP)
                height = self.heights[plane]
                top = TOP + row * self.row_height + (self.row_height - GAP - height) / 2
                yield column, plane, self._add(left, top, self.width, height)

    def head(self, title: str, caption: str) -> None:
        """Title, caption, and what each column shows."""
        across, down = self.total
        self.figure.text(LEFT / across, 1 - 0.06 / down, title, size=12, weight="bold", va="top")
        letters = int((across - LEFT) / 0.062)
        lines = textwrap.wrap(caption, letters, max_lines=2, placeholder=" …")
        self.figure.text(
            LEFT / across, 1 - 0.29 / down, "\n".join(lines), size=7.5, color="#555555", va="top"
        )
        for column in range(self.patches):
            name = "before" if column == 0 else f"after, draw {column}"
            left = LEFT + column * self.pair
            middle = (left + self.width + GAP / 2) / across
            height = 1 - (TOP - 0.16) / down
            self.figure.text(middle, height, name, size=9, ha="center", va="bottom")
            for number, (plane, (axis, _, _)) in enumerate(PLANES.items()):
                middle = (left + number * (self.width + GAP) + self.width / 2) / across
                text = f"{plane} = {self.shape[axis] // 2}"
                self.figure.text(
                    middle, 1 - (TOP - 0.03) / down, text, size=7, color="#555555", ha="center"
                )

    def name_row(self, row: int, name: str) -> None:
        """Write what a row shows on its left."""
        across, down = self.total
        middle = TOP + (row + 0.5) * self.row_height
        self.figure.text(
            0.15 / across, 1 - middle / down, name, size=9, rotation=90, ha="center", va="center"
        )

    def legend(self, row: int, look: Look) -> None:
        """Say on the right of a row what its colours mean."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        left = LEFT + self.patches * self.pair - PAIR_GAP + 0.1
        top = TOP + row * self.row_height
        if look.style == "scalar":
            bar = self._add(left, top + 0.05, 0.1, self.row_height - 0.3)
            colours = ScalarMappable(Normalize(*look.limits), FIELD_COLOURS)
            self.figure.colorbar(colours, cax=bar).ax.tick_params(labelsize=7)
        across, down = self.total
        lines: list[tuple[str, str | tuple[float, float, float]]] = []
        if look.style == "regions":
            lines = [(f"■ {name}", colour) for name, colour in look.names.items()]
        elif look.style == "arrows":
            lines = [("x", "#d00000"), ("y", "#009000"), ("z", "#0000d0")]
            lines = [(f"■ along {name}", colour) for name, colour in lines]
            if look.target.glyph == "line":
                lines.append(("axes: no sign", "#555555"))
        if look.style != "scalar":
            lines.append(("dark: not counted", "#555555"))
        for number, (text, colour) in enumerate(lines):
            place = 1 - (top + 0.05 + 0.15 * number) / down
            self.figure.text(left / across, place, text, size=7.5, color=colour, va="top")


def _slice(
    grey: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    plane: str,
    spacing: tuple[float, float, float],
) -> Slice:
    """The middle slice of a patch: image (Z, Y, X), label (L, Z, Y, X) and valid (Z, Y, X)."""
    across, down, right = PLANES[plane]
    middle = grey.shape[across] // 2
    return Slice(
        grey.take(middle, across),
        label.take(middle, 1 + across),
        valid.take(middle, across),
        (grey.shape[down] * spacing[down], grey.shape[right] * spacing[right]),
        (down, right),
    )


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
        reporter: where the progress goes.

    Returns:
        The folder and the PNGs in it.

    Raises:
        RefusedError: the volumes do not fit the task.
        OutputError: the folder cannot be made, or lies in a Zarr store.
    """
    reporter = reporter or Silent()
    if output is not None:
        refuse_in_store("--output", output)
    seed = task.tr_params.seed if seed is None else seed
    source = PatchSource(resolve(task, reporter), seed, reporter)
    folder = output or task.run_dir / "preview"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(str(folder), error.strerror or str(error), "give --output") from error
    rows = source.telling_rows(max(samples, 1))
    written: list[Path] = []
    with reporter.bar("preview", len(source.augment) + samples) as advance:
        for number, augmentation in enumerate(source.augment, start=1):
            path = folder / f"{number:02d}_{augmentation.name}.png"
            forced = augmentation.model_copy(update={"p": 1.0})
            _draw(path, augmentation.name, _values(augmentation), source, rows[0], [forced])
            written.append(path)
            advance(1, augmentation.name)
        for number, row in enumerate(rows[:samples], start=1):
            path = folder / f"all_{number}.png"
            listed = ", ".join(f"{a.name} {a.p:g}" for a in source.augment) or "nothing"
            _draw(path, "the whole list", f"p: {listed}", source, row, source.augment)
            written.append(path)
            advance(1, path.name)
    return folder, written


def _draw(
    path: Path,
    title: str,
    values: str,
    source: PatchSource,
    row: int,
    augmentations: Sequence[AnyAugmentation],
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
