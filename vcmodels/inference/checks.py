"""The task, the checkpoint and the input checked against each other, before anything is written."""

from collections.abc import Callable, Iterator
from typing import Any

from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Place, Volume, expand_location, open_volume, place_at

CHUNK = 128
MOST_LENGTH = 10**7
"""Voxels along an axis; more are damaged metadata, and their patches alone would fill the memory."""
_TRAINING_ONLY = {
    "activation", "output", "weight", "loss", "loss_only_on_label", "label_smoothing",
    "dilate_label", "ignore_label", "encoding", "output_range", "label_interpolation", "derive",
    "surface_of", "smoothing_sigma", "width", "between", "max_extent", "keep_cut", "sigma",
    "sigma_units",
}  # fmt: skip
"""Keys of a target that may differ from those it was trained with: they do not change its logits."""


def choose_targets(task: Task, predictor: Predictor) -> dict[str, AnyTarget]:
    """The targets to write, as the task describes them where the checkpoint leaves that open.

    Raises:
        TaskError: a name that the checkpoint does not have, or a target that it learnt differently.
    """
    params = task.inference_params
    known = ", ".join(predictor.targets)
    names = list(predictor.targets) if params.output_targets == "all" else params.output_targets
    chosen: dict[str, AnyTarget] = {}
    for name in names:
        if name not in predictor.targets:
            key = "inference_params.output_targets"
            raise TaskError(key, f'"{name}" is not in the checkpoint', f"choose from {known}")
        trained = predictor.targets[name]
        target = task.dataset_config.targets.get(name, trained)
        _require_same(name, trained, target)
        try:
            target.output_channels(params.dtype)
        except ValueError as error:
            key = "inference_params.output_type"
            raise TaskError(key, f'target "{name}" {error}') from error
        chosen[name] = target
    return chosen


def _require_same(name: str, trained: AnyTarget, target: AnyTarget) -> None:
    for key, before, now in trained_differences(trained, target):
        raise TaskError(
            f"dataset_config.targets.{name}.{key}",
            f"is {now!r}, the checkpoint was trained with {before!r}",
            "restore it, or use another checkpoint",
        )


def trained_differences(trained: AnyTarget, other: AnyTarget) -> Iterator[tuple[str, Any, Any]]:
    """Keys, with both values, by which two targets differ in what their logits mean."""
    before, now = trained.model_dump(), other.model_dump()
    for key in sorted(before.keys() | now.keys()):
        if key not in _TRAINING_ONLY and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def open_inputs(task: Task, predictor: Predictor, say: Callable[[str], None]) -> tuple[Volume, ...]:
    """Open `input_path`; only metadata is read.

    Raises:
        TaskError: no input is named, or the task contradicts the checkpoint.
        VolumeError: an array is missing, or its shape or channels do not fit.
    """
    key = "inference_params.input_path"
    params = task.inference_params
    if not params.input_path:
        raise TaskError(key, "is not set", "name the volume to predict")
    trained = predictor.task.dataset_config.normalization
    if task.dataset_config.normalization != trained:
        raise TaskError(
            "dataset_config.normalization",
            f"is {task.dataset_config.normalization.model_dump()}, "
            f"the checkpoint was trained with {trained.model_dump()}",
            "restore it: another normalisation gives wrong predictions",
        )
    paths = [params.input_path] if isinstance(params.input_path, str) else params.input_path
    inputs = tuple(
        open_volume(
            _expanded(path, key),
            key=key,
            level=params.level,
            channels="any",
            channel_axis=params.channel_axis,
        )
        for path in paths
    )
    if max(inputs[0].extent) > MOST_LENGTH:
        found = f"{inputs[0].location} has shape {inputs[0].extent}"
        raise VolumeError(key, found, f"correct its metadata; at most {MOST_LENGTH} along an axis")
    for volume in inputs[1:]:
        if volume.extent != inputs[0].extent:
            found = f"{volume.location} has shape {volume.extent}, the first {inputs[0].extent}"
            raise VolumeError(key, found, "give arrays of one shape")
    channels = sum(volume.channels for volume in inputs)
    if channels != predictor.in_channels:
        found = f"{channels} channels, the network was trained with {predictor.in_channels}"
        raise VolumeError(key, found, "give the same channels in the same order")
    _compare_spacing(inputs[0], predictor, say)
    return inputs


def _expanded(path: str, key: str) -> str:
    try:
        return expand_location(path)
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error


def _compare_spacing(volume: Volume, predictor: Predictor, say: Callable[[str], None]) -> None:
    ratios = [a / b for a, b in zip(volume.spacing, predictor.spacing, strict=True)]
    if not all(0.8 < ratio < 1.25 for ratio in ratios):
        say(
            f"note: voxels of {volume.location} are {volume.spacing}, "
            f"those of the training were {predictor.spacing}"
        )


def region_of(task: Task, volume: Volume) -> Box:
    """The `bbox`, or the whole volume.

    Raises:
        TaskError: the bbox is not inside the volume.
    """
    bbox = task.inference_params.bbox
    if bbox is None:
        return volume.box
    region = Box.between([start for start, _ in bbox], [end for _, end in bbox])
    if not volume.box.contains(region):
        found = f"{[list(pair) for pair in bbox]} is not inside the volume, shape {volume.extent}"
        raise TaskError("inference_params.bbox", found, "give [[z0, z1], [y0, y1], [x0, x1]]")
    return region


def output_root(task: Task) -> Place:
    """`<output_dir>/<model_name>.zarr`.

    Raises:
        TaskError: no folder is named, or it is a URL that cannot be written to.
    """
    key, folder = "inference_params.output_dir", task.inference_params.output_dir
    if not folder:
        raise TaskError(key, "is not set", "name the folder for the result")
    try:
        return place_at(expand_location(folder)) / f"{task.tr_params.model_name}.zarr"
    except OutputError as error:
        raise TaskError(key, f"{error.subject} {error.found}", error.remedy) from error
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error


def checked_patch(task: Task, predictor: Predictor) -> Shape:
    """The patch of the inference, which the trained network must be able to take.

    Raises:
        TaskError: a length that the network cannot halve as often as it must.
    """
    patch = task.inference_params.patch_size or predictor.patch
    if patch != predictor.patch:
        try:
            predictor.task.model.check_patch(patch, predictor.spacing, planned=predictor.patch)
        except ValueError as error:
            raise TaskError("inference_params.patch_size", str(error)) from error
    return patch


def output_chunks(task: Task, extent: Shape) -> tuple[Shape, Shape | None]:
    """Chunks and shards of the output; chunks are no longer than the volume.

    Raises:
        TaskError: shards that are not made of whole chunks, or that version 2 of Zarr cannot have.
    """
    params, key = task.inference_params, "inference_params.output_shards"
    chunks = params.output_chunks or (CHUNK, CHUNK, CHUNK)
    shards = params.output_shards
    if shards is None:
        z, y, x = (min(c, n) for c, n in zip(chunks, extent, strict=True))
        return (z, y, x), None
    if params.output_zarr_format == 2:
        raise TaskError(key, "needs version 3 of Zarr", 'set "output_zarr_format": 3')
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        found = f"{list(shards)} is not a multiple of the chunks {list(chunks)}"
        raise TaskError(key, found, "give whole numbers of chunks")
    return chunks, shards
