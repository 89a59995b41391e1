"""The steps of post-processing, one after the other, on a result of `infer` or on any array.

What a step writes stands beside the predictions, as an OME-Zarr image of the same group that says what
it was made of. A step whose output is there and was made of the same is passed over; one that was
stopped goes on. Several processes may work on one group, see `vcmodels.blockwise.share`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import vcmodels
from vcmodels.blockwise import Crew, share_blocks
from vcmodels.config import InferenceParams, Task
from vcmodels.data.predictions import prediction_notes, writer_of
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import OutputError, RefusedError, TaskError, VolumeError
from vcmodels.evaluation.distinct import distinct
from vcmodels.geometry.boxes import Box, Shape, Spacing, coarse_extent, divide, level_factors
from vcmodels.inference import Request
from vcmodels.inference.many import named_inputs
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess import AnyStep, Form, Site, Source, StoppedError
from vcmodels.postprocess.base import IDS, PROBABILITIES
from vcmodels.postprocess.tuning import candidates, with_values
from vcmodels.results import (
    KEY,
    VERIFY,
    census,
    is_complete,
    our_attributes,
    require_writable,
    result_root,
)
from vcmodels.targets import AnyTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.volumes import (
    OME,
    Description,
    Grid,
    ListedImage,
    LocalPlace,
    Place,
    Storage,
    Volume,
    WritableArray,
    coarse_grid,
    create_array,
    image_label,
    is_array,
    open_volume,
    place_at,
    write_collection,
    write_multiscale_group,
)
from vcmodels.volumes.backend import ArrayHandle, ZarrFormat
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.multiscale import CoarserLevel, mean_of, most_frequent

METADATA = {".zgroup", ".zattrs", ".zmetadata", "zarr.json"}
"""What a group may have before it has an image."""
FOLDER = ".postprocess"
"""In the group, what is needed until a step is done."""
LEAST_BLOCK = 128
"""Smaller chunks are written several at a time: what lies around a block is read with it."""
AGAIN = "vcmodels postprocess with --overwrite makes it again"
MOST_CHUNK = 128
"""Of what is written, along each axis: chunks of a source may be whole slices."""


@dataclass(frozen=True)
class Ground:
    """What steps work on: arrays of one extent, and the group that gets what they make."""

    root: Place
    sources: Mapping[str, Source]
    box: Box
    """What there is of the volume."""
    grid: Grid
    chunks: Shape
    zarr_format: ZarrFormat = 2
    levels: int | None = None
    """Coarser levels of what is written; until one chunk holds a level when None."""
    least_block: int = LEAST_BLOCK
    """Voxels of a piece of work along each axis, at least."""

    @property
    def extent(self) -> Shape:
        """Of all arrays."""
        return next(iter(self.sources.values())).volume.extent

    @property
    def spacing(self) -> Spacing:
        """Length of a voxel along (z, y, x)."""
        return self.grid.spacing

    @property
    def block(self) -> Shape:
        """Of one piece of work: whole chunks."""
        z, y, x = (-(-self.least_block // n) * n for n in self.chunks)
        return z, y, x

    @property
    def factors(self) -> tuple[Shape, ...]:
        """Voxels of level 0 in one of each level of what is written."""
        return level_factors(self.extent, self.spacing, self.chunks, self.levels)


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


def ground_of_result(root: Place) -> Ground:
    """The predictions of a finished result.

    Args:
        root: the group that `infer` has written.

    Raises:
        VolumeError: it is not finished, or a prediction is damaged.
    """
    noted = our_attributes(root)
    if not is_complete(noted):
        found = "is not finished" if noted else "is no result of infer"
        raise VolumeError(str(root), found, "run infer first")
    manifest = noted.get("manifest", {})
    sources = {name: _prediction(root, name) for name in manifest.get("targets", {})}
    first = next(iter(sources.values())).volume
    bbox = manifest.get("bbox")
    box = Box.between(*zip(*bbox, strict=True)) if bbox else first.box
    return Ground(
        root,
        sources,
        box.intersect(first.box),
        Grid(first.spacing, first.offset, first.unit),
        _capped(first.chunks),
        3 if first.handle.zarr_format == 3 else 2,
        int(manifest.get("pyramid", 0)),
    )


def results_of_task(task: Task) -> Iterator[Ground]:
    """What there is to work on of a task: its result, or those of its many volumes.

    Raises:
        TaskError: the task names no output.
        VolumeError: a result is not there, or not finished.
    """
    if task.inference_params.is_many:
        for one in named_inputs(task):
            yield ground_of_result(one.output)
        return
    folder, model = task.inference_params.output_dir, task.tr_params.model_name
    yield ground_of_result(result_root(folder, model))


def ground_of_request(request: Request) -> Ground:
    """What the predictions of a request will be like, before there are any."""
    volume = request.inputs[0]
    sources = _foreseen(volume, request.targets, request.params)
    grid = Grid(volume.spacing, volume.offset, volume.unit)
    return Ground(request.output, sources, volume.box, grid, _capped(volume.chunks))


def _foreseen(
    volume: Volume, targets: Mapping[str, AnyTarget], params: InferenceParams
) -> dict[str, Source]:
    """Predictions that are not there yet; their input stands for them."""
    written = params.output_targets
    return {
        name: Source(name, volume, target.kind_name, encoding=target.encoding(params.dtype))
        for name, target in targets.items()
        if written == "all" or name in written
    }


def ground_of_array(volume: Volume, name: str, kind: str, root: Place) -> Ground:
    """A single array, whatever made it.

    Args:
        volume: probabilities from 0 to 1, a mask of 0 and 1, values, classes or ids.
        name: by which steps read it.
        kind: what it holds, as of a target, or `instances` for ids.
        root: the group that gets what is made; it need not exist.

    Raises:
        VolumeError: it has more channels than a kind has.
    """
    if volume.channels > 1 and kind in PROBABILITIES | {IDS, "distance"}:
        found = f"{volume.location} has {volume.channels} channels, {kind} has one"
        raise VolumeError("SOURCE", found, "give an array (z, y, x), or another --kind")
    notes = prediction_notes(volume)
    if notes is not None and notes["encoding"].get("kind") == kind:
        source = _read_by_notes(name, volume, notes["encoding"])
    else:
        source = Source(name, volume, kind, Plain(_largest(volume, kind)))
    grid = Grid(volume.spacing, volume.offset, volume.unit)
    return Ground(root, {name: source}, volume.box, grid, _capped(volume.chunks))


def _capped(chunks: Shape) -> Shape:
    z, y, x = (min(n, MOST_CHUNK) for n in chunks)
    return z, y, x


def _largest(volume: Volume, kind: str) -> float | None:
    """What stands for 1 in an array of probabilities; None where values are read as they are.

    Whole numbers are codes of probabilities, from 0 to the largest of their type, unless they are 0
    and one other value only, as of a mask: all of it is looked at then.
    """
    if kind not in PROBABILITIES or volume.dtype.kind == "f":
        return None
    found = distinct(volume, volume.box, 2)
    if found.are_mask:
        return max(found.values, default=1.0) or 1.0
    return float(np.iinfo(volume.dtype).max)


@dataclass(frozen=True)
class Plain:
    """How an array that says nothing of itself is read."""

    largest: float | None
    """What stands for 1, of probabilities in whole numbers."""

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Probabilities and numbers as float32; ids and classes as they are."""
        if self.largest is not None:
            return stored.astype(np.float32) / np.float32(self.largest)
        return stored.astype(np.float32, copy=False) if stored.dtype.kind == "f" else stored


def _prediction(root: Place, name: str) -> Source:
    volume = open_volume(str(root / name / "0"), key=str(root / name), channels="any")
    notes = prediction_notes(volume)
    if notes is None:
        raise VolumeError(str(root / name), "has lost its attributes", VERIFY)
    return _read_by_notes(name, volume, notes["encoding"])


def _read_by_notes(name: str, volume: Volume, encoding: Mapping[str, Any]) -> Source:
    """A prediction of ours, by the encoding that stands next to it."""
    if encoding.get("kind") == "uncertainty":
        return Source(name, volume, "uncertainty", encoding=encoding)
    target = writer_of(encoding, volume)
    if isinstance(target, MulticlassTarget) and target.is_categorical:
        return Source(name, volume, target.kind_name, encoding=encoding)
    return Source(name, volume, target.kind_name, target.decode, encoding)


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


def require_ours(place: Place) -> None:
    """Refuse an output where something stands that no step has written.

    Raises:
        OutputError: naming it.
    """
    if place.names() - METADATA and "step" not in our_attributes(place):
        found = "exists and is no output of post-processing"
        raise OutputError(str(place), found, "give the step another output")


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
    if not task.postprocess:
        return
    volume, params = open_volumes(task)[0], task.inference_params
    image = volume.inputs[0]
    ground = Ground(
        place_at(str(task.run_dir)),
        _foreseen(image, task.dataset_config.targets, params),
        image.box,
        Grid(volume.spacing, image.offset, volume.unit),
        _capped(image.chunks),
    )
    check_steps([with_values(one, next(candidates(one))) for one in task.postprocess], ground)


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


@dataclass(frozen=True)
class StepWork:
    """One step on its way: its output, its passes, its levels, its end."""

    step: AnyStep
    ground: Ground
    folder: Path
    crew: Crew

    @property
    def place(self) -> Place:
        """The group of the output."""
        return self.ground.root / self.step.output

    @property
    def sources(self) -> dict[str, Source]:
        """What is read, by role."""
        return {role: self.ground.sources[name] for role, name in self.step.sources.items()}

    @property
    def form(self) -> Form:
        """What is written."""
        return self.step.form(self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the output, as JSON values."""
        return {
            "step": self.step.model_dump(mode="json", exclude={"tune_for", "tune_by"}),
            "made_of": {
                role: {
                    "name": one.name,
                    "content": one.volume.fingerprint(),
                    "kind": one.kind,
                    "encoding": dict(one.encoding),
                }
                for role, one in self.sources.items()
            },
            "box": [self.ground.box.origin, self.ground.box.end],
            "spacing": self.ground.spacing,
            "unit": self.ground.grid.unit,
            "schema": 1,
        }

    def do(self, *, overwrite: bool) -> bool:
        """Make the output; False if it was there.

        Raises:
            StoppedError: the crew was asked to stop.
            OutputError: it was made of something else, and `overwrite` is not given.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        present = FileLock(self.folder / "present.lock", shared=True)
        try:
            with self._alone():
                if self._begin(overwrite=overwrite, is_sole=present.is_sole()):
                    return False
            self.step.run(self._site(self._open(0)))
            for level in range(1, len(self.ground.factors)):
                self._coarsen(level)
            with self._alone():
                self._describe(is_complete=True)
                list_images(self.ground)
            return True
        finally:
            with self._alone():  # of two that end together one sees that it is the last
                is_last = present.is_sole() and is_complete(our_attributes(self.place))
                present.close()
                if is_last:
                    shutil.rmtree(self.folder, ignore_errors=True)
            if is_last:
                with suppress(OSError):  # another step is at work there
                    self.folder.parent.rmdir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Other processes wait while the context lasts."""
        lock = FileLock(self.folder / "setup.lock", waits=True)
        try:
            yield
        finally:
            lock.close()

    def _begin(self, *, overwrite: bool, is_sole: bool) -> bool:
        """Make the arrays that are not there; True if the output is complete already.

        Raises:
            OutputError: something else stands there, or what was made of something else and may
                not be deleted, or not while another process works on it.
        """
        require_ours(self.place)
        noted, reporter = our_attributes(self.place), self.crew.reporter
        if noted and noted.get("identity_sha256") != _digest(self.identity):
            changed = _changes(noted, self.identity)
            if not overwrite:
                raise OutputError(str(self.place), f"was made of something else: {changed}", AGAIN)
            if not is_sole:
                found, remedy = "another process works on it", "wait for it"
                raise OutputError(str(self.place), found, remedy)
            reporter.say(f"{self.place}: made again: {changed}")
            self.place.remove()
            _clear(self.folder)
            noted = {}
        if is_complete(noted):
            reporter.say(f"{self.place}: already complete")
            return True
        self._describe(is_complete=False)  # before any array: what is ours says so
        for level in range(len(self.ground.factors)):
            if not is_array(self.place / str(level)):
                self._create(level)
        return False

    def _site(self, output: WritableArray) -> Site:
        ground = self.ground
        return Site(
            self.sources,
            ground.box,
            ground.block,
            ground.spacing,
            ground.grid.unit,
            output,
            self.folder,
            self.identity,
            self.crew,
        )

    def _create(self, level: int) -> None:
        ground, form = self.ground, self.form
        lead = () if form.channels is None else (form.channels,)
        extent = coarse_extent(ground.extent, ground.factors[level])
        spacing, offset = coarse_grid(ground.spacing, ground.grid.offset, ground.factors[level])
        create_array(
            str(ground.root),
            f"{self.step.output}/{level}",
            shape=(*lead, *extent),
            chunks=(*lead, *(min(pair) for pair in zip(ground.chunks, extent, strict=True))),
            dtype=form.dtype,
            grid=replace(ground.grid, spacing=spacing, offset=offset),
            storage=Storage(ground.zarr_format),
        )

    def _open(self, level: int) -> WritableArray:
        return WritableArray(
            ArrayHandle(str(self.place / str(level)), self.ground.zarr_format, "r+")
        )

    def _coarsen(self, level: int) -> None:
        """Write one level from the one before: ids, masks and classes by majority, values by mean."""
        factors = self.ground.factors
        fine, coarse = (
            open_volume(str(self.place / str(n)), key="output", channels="any")
            for n in (level - 1, level)
        )
        halve = most_frequent if self.form.is_categorical else mean_of
        below = CoarserLevel(fine, coarse, divide(factors[level], factors[level - 1]), halve)
        work = _Coarser(below, self._open(level))
        name = f"level {level}"
        identity = {**self.identity, "pass": name}
        folder = self.folder / name.replace(" ", "-")
        if share_blocks(work, below.blocks(), folder, identity, self.crew, name) is None:
            raise StoppedError(str(self.place), "stopped", "the same command continues")

    def _describe(self, *, is_complete: bool) -> None:
        """Write what the output is, what it was made of, and whether all of it is there."""
        form, ground = self.form, self.ground
        notes: dict[str, Any] = {
            "target": self.step.output,
            "kind": form.kind,
            **({"encoding": dict(form.encoding)} if form.encoding else {}),
            **self.identity,
            "identity_sha256": _digest(self.identity),
            "versions": _versions(),
            "complete": is_complete,
        }
        factors = ground.factors if is_complete else ground.factors[:1]
        if is_complete:
            notes["stored_chunks"] = {
                str(level): census(self._volume(level)) for level in range(len(factors))
            }
        lead = () if form.channels is None else ("c",)
        shown = image_label({}, ground.zarr_format) if form.kind == IDS else {}
        write_multiscale_group(
            str(self.place),
            replace(ground.grid, axes=(*lead, "z", "y", "x")),
            Description(self.step.output, {KEY: notes}, shown),
            levels={str(level): factor for level, factor in enumerate(factors)},
            zarr_format=ground.zarr_format,
        )

    def _volume(self, level: int) -> Volume:
        return open_volume(str(self.place / str(level)), key="output", channels="any")


@dataclass(frozen=True)
class _Coarser:
    """The work on a block of a coarser level."""

    level: CoarserLevel
    array: WritableArray

    def __call__(self, block: Box) -> BlockPart:
        self.array.write(block, self.level.values(block))
        self.array.sync(block)
        return {}


def list_images(ground: Ground) -> None:
    """Name all images of a group in its collection, so that viewers find them from the top."""
    root = ground.root
    if OME in ground.sources:  # a target has the place of the list
        return
    members = [
        ListedImage(
            name, one.extent, one.channels, one.dtype, replace(ground.grid, axes=("z", "y", "x"))
        )
        for name, one in images_in(root)
    ]
    write_collection(str(root), members, {}, zarr_format=ground.zarr_format)


def images_in(root: Place) -> Iterator[tuple[str, Volume]]:
    """The images of a group that vcmodels wrote, by name, the finest level of each."""
    for name in sorted(root.names() - {FOLDER, OME}):
        place = root / name
        if "0" in place.names() and our_attributes(place):
            yield name, open_volume(str(place / "0"), key=str(place), channels="any")


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _changes(noted: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: keys of the step, or what it was made of."""
    before, step = noted.get("step"), now["step"]
    if not isinstance(before, dict):
        return "its notes are damaged"
    keys = [k for k in {**before, **step} if before.get(k) != step.get(k)]
    changed = [f"{k} was {before.get(k)}, is {step.get(k)}" for k in keys]
    made = noted.get("made_of")
    roles = now["made_of"]
    if isinstance(made, dict):
        changed += [f"{r} has changed" for r in roles if made.get(r) != roles[r]]
    return "; ".join(changed) or "the part of the volume"


def _versions() -> dict[str, str]:
    found = {"vcmodels": vcmodels.__version__, "numpy": np.__version__}
    return found | {name: version(name) for name in ("scipy", "scikit-image")}


def _clear(folder: Path) -> None:
    """Remove what an earlier way of making an output has left, but for the locks that are held."""
    for path in folder.iterdir():
        if path.suffix != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
