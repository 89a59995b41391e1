"""The steps of post-processing, one after the other, on a result of `infer` or on any array.

What a step writes stands beside the predictions, as an OME-Zarr image of the same group that says what
it was made of. A step whose output is there and was made of the same is passed over; one that was
stopped goes on. Several processes may work on one group, see `vcmodels.blockwise.share`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vcmodels.blockwise import Crew
from vcmodels.config import Task
from vcmodels.data.predictions import writer_of
from vcmodels.errors import OutputError, RefusedError, TaskError
from vcmodels.inference import Request
from vcmodels.postprocess import AnyStep, Form, Source, StoppedError
from vcmodels.postprocess.tuning import candidates, with_values
from vcmodels.results import require_writable
from vcmodels.volumes import (
    LocalPlace,
    Place,
    open_volume,
)
from vcmodels.workflows.ground import Ground, ground_of_result, ground_of_training
from vcmodels.workflows.step_work import FOLDER, StepWork, require_ours


@dataclass(frozen=True)
class PostprocessReport:
    """What was done."""

    root: Place
    made: tuple[str, ...] = ()
    """Outputs that were written now."""
    kept: tuple[str, ...] = ()
    """Outputs that were there already."""
    is_complete: bool = True
    """False after a stop; the same call continues."""


def postprocess(
    ground: Ground,
    steps: Sequence[AnyStep],
    crew: Crew | None = None,
    *,
    scratch: Path | None = None,
    overwrite: bool = False,
) -> PostprocessReport:
    """Do the steps whose outputs are not there yet, in order.

    Args:
        ground: what they work on.
        steps: each may read what those before it write.
        crew: who works; the threads of this process when None.
        scratch: a local folder that all processes see, for what is needed on the way; inside the
            group when None.
        overwrite: delete outputs of these steps that were made of something else.

    Returns:
        What was done; after a stop it is not complete, and the same call continues.

    Raises:
        TaskError: a step cannot work on these arrays; nothing was written.
        OutputError: something else stands at an output, or the group is remote and no `scratch` is
            given.
        RunError: a chunk is damaged, or the disk is full; what was done before stays.
    """
    crew = crew or Crew()
    folder = _scratch_in(ground.root) if scratch is None else _scratch_of(scratch, ground.root)
    require_steps(steps, ground)
    made, kept, sources = list[str](), list[str](), dict(ground.sources)
    for step in steps:
        work = StepWork(step, replace(ground, sources=sources), folder / step.output, crew)
        try:
            (made if work.do(overwrite=overwrite) else kept).append(step.output)
        except StoppedError:
            return PostprocessReport(ground.root, tuple(made), tuple(kept), is_complete=False)
        sources[step.output] = _as_read(step.output, ground, work.form, work.place / "0")
    return PostprocessReport(ground.root, tuple(made), tuple(kept))


def finish_request(request: Request, crew: Crew, *, overwrite: bool = False) -> PostprocessReport:
    """Do the steps of a request on its result, which is complete.

    Args:
        request: what was predicted.
        crew: who works.
        overwrite: delete outputs that were made of something else.

    Raises:
        OutputError: as `postprocess`.
    """
    ground = ground_of_result(request.output)
    return postprocess(ground, request.steps, crew, overwrite=overwrite)


def _scratch_of(folder: Path, root: Place) -> Path:
    """A folder of its own for each group, in one that several may share."""
    return folder / hashlib.sha256(str(root).encode()).hexdigest()[:16]


def _scratch_in(root: Place) -> Path:
    if not isinstance(root, LocalPlace):
        found = f"{root} is in an object store"
        raise OutputError("--scratch", found, "name a local folder for what is needed on the way")
    return root.path / FOLDER


def _checked(number: int, step: AnyStep, ground: Ground, sources: Mapping[str, Source]) -> Form:
    """What a step will write.

    Raises:
        TaskError: it reads what is not there, or cannot work on it.
    """
    key = f"postprocess.{number}"
    for role, name in step.sources.items():
        if name not in sources:
            found = f'there is no "{name}" in {ground.root}'
            raise TaskError(f"{key}.from", found, f"give one of {', '.join(sources)}")
        if sources[name].kind not in step.roles[role].kinds:
            wanted = ", ".join(sorted(step.roles[role].kinds))
            found = f'"{name}" is of kind {sources[name].kind}'
            raise TaskError(f"{key}.from", found, f"{role} takes {wanted}")
    chosen = {role: sources[name] for role, name in step.sources.items()}
    try:
        step.check(chosen, ground.spacing, ground.grid.unit)
    except RefusedError as error:
        raise type(error)(f"{key}.{error.subject}", error.found, error.remedy) from error
    return step.form(chosen)


def require_steps(steps: Sequence[AnyStep], ground: Ground) -> None:
    """See, as far as that can be known before any work, whether the steps can be done.

    Args:
        steps: in order.
        ground: what they work on; of its sources only the metadata counts.

    Raises:
        TaskError: a step cannot work on these arrays.
        OutputError: something that no step has written stands at an output.
    """
    require_writable(ground.root)
    for step in steps:
        require_ours(ground.root / step.output)
    check_steps(steps, ground)


def check_steps(steps: Sequence[AnyStep], ground: Ground) -> None:
    """See whether steps fit what they read; nothing is opened.

    Raises:
        TaskError: naming the key of a step.
    """
    foreseen = ground.sources
    for number, step in enumerate(steps):
        form = _checked(number, step, ground, foreseen)
        foreseen = {**foreseen, step.output: _as_read(step.output, ground, form, None)}


def foresee_steps(task: Task) -> None:
    """See, before a training, whether the steps can work on what it will predict.

    The first training volume stands for what is predicted; of tuned keys the first value is tried.

    Raises:
        TaskError: naming the key of a step.
        VolumeError: the volume cannot be opened.
    """
    if task.postprocess:
        check_steps(
            [with_values(one, next(candidates(one))) for one in task.postprocess],
            ground_of_training(task),
        )


def _as_read(name: str, ground: Ground, form: Form, place: Place | None) -> Source:
    """An output as the steps after it read it; before it is there, its first source stands for it."""
    volume = next(iter(ground.sources.values())).volume
    if place is not None:
        volume = open_volume(str(place), key=str(place), channels="any")
    if not form.encoding or form.is_categorical:
        return Source(name, volume, form.kind, encoding=form.encoding)
    writer = writer_of(form.encoding, volume) if place is not None else None
    return Source(
        name, volume, form.kind, *([writer.decode] if writer else []), encoding=form.encoding
    )
