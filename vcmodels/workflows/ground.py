"""What steps of post-processing work on: the arrays of a result, of a request, or a single one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcmodels.config import InferenceParams, Task
from vcmodels.data.predictions import prediction_notes, writer_of
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import VolumeError
from vcmodels.evaluation.distinct import distinct
from vcmodels.geometry.boxes import Box, Shape, Spacing, level_factors
from vcmodels.inference import Request
from vcmodels.inference.many import named_inputs
from vcmodels.postprocess import Source
from vcmodels.postprocess.base import IDS, PROBABILITIES
from vcmodels.results import (
    VERIFY,
    is_complete,
    our_attributes,
    result_root,
)
from vcmodels.targets import AnyTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.volumes import (
    Grid,
    Place,
    Volume,
    open_volume,
    place_at,
)
from vcmodels.volumes.backend import ZarrFormat

LEAST_BLOCK = 128
"""Smaller chunks are written several at a time: what lies around a block is read with it."""

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


def ground_of_training(task: Task) -> Ground:
    """What a network that is still to be trained will predict; the first volume stands for it.

    Raises:
        VolumeError: the volume cannot be opened.
    """
    volume = open_volumes(task)[0]
    image = volume.inputs[0]
    return Ground(
        place_at(str(task.run_dir)),
        _foreseen(image, task.dataset_config.targets, task.inference_params),
        image.box,
        Grid(volume.spacing, image.offset, volume.unit),
        _capped(image.chunks),
    )


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
