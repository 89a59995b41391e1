"""A stored prediction: what it was made of, where it lies, whether it is whole, how it is opened."""

from collections.abc import Sequence
from typing import Any, Literal

from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.targets import AnyTarget
from vcmodels.volumes import (
    Place,
    Volume,
    expand_location,
    group_attributes,
    open_volume,
    place_at,
)

INPUT, OUTPUT = "inference_params.input_path", "inference_params.output_dir"
KEY = "vcmodels"
"""The attribute of a group that holds everything of ours."""


def open_inputs(
    paths: str | Sequence[str] | None,
    *,
    level: int = 0,
    channel_axis: Literal["first", "last"] | None = None,
) -> tuple[Volume, ...]:
    """The arrays that `input_path` names, in its order; only metadata is read.

    Args:
        paths: one location or several, as they stand in the task.
        level: of an OME-Zarr group.
        channel_axis: where the channels are, when the store does not say.

    Raises:
        TaskError: nothing is named, or a name cannot be expanded.
        VolumeError: an array is missing or damaged.
    """
    if not paths:
        raise TaskError(INPUT, "is not set", "name the volume to predict")
    return tuple(
        open_volume(
            _expanded(path, INPUT),
            key=INPUT,
            level=level,
            channels="any",
            channel_axis=channel_axis,
        )
        for path in ([paths] if isinstance(paths, str) else paths)
    )


def result_root(folder: str | None, name: str) -> Place:
    """The group of a result, `<folder>/<name>.zarr`.

    Args:
        folder: the `output_dir` of the task.
        name: its `model_name`.

    Raises:
        TaskError: no folder is named, or it is a URL that cannot be written to.
    """
    if not folder:
        raise TaskError(OUTPUT, "is not set", "name the folder for the result")
    try:
        return place_at(_expanded(folder, OUTPUT)) / f"{name}.zarr"
    except OutputError as error:
        raise TaskError(OUTPUT, f"{error.subject} {error.found}", error.remedy) from error


def our_attributes(group: Place) -> dict[str, Any]:
    """What vcmodels wrote on a group; empty where there is no group or nothing of ours."""
    try:
        found = group_attributes(str(group)).get(KEY)
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def is_complete(group: Place) -> bool:
    """Whether a result, or the prediction of one target, says of itself that all of it is there."""
    return our_attributes(group).get("complete") is True


def open_prediction(root: Place, name: str, target: AnyTarget) -> Volume:
    """The stored prediction of one target, its finest level.

    Args:
        root: the group of the result.
        name: of the target.
        target: whose `decode` is to read the values.

    Raises:
        VolumeError: it is missing, unfinished, or encoded otherwise than the target says.
    """
    group = root / name
    if not group.names():
        raise VolumeError(str(group), "there is no prediction", "run infer.py first")
    noted = our_attributes(group)
    if noted.get("complete") is False:
        raise VolumeError(str(group), "the prediction is not finished", "run infer.py again")
    array = open_volume(str(group), key=OUTPUT, channels="any")
    written, expected = noted.get("encoding"), target.encoding(array.dtype)
    if written != expected:
        found = f"was written with {written}, the task now says {expected}"
        raise VolumeError(str(group), found, "restore the target's keys or predict again")
    return array


def _expanded(path: str, key: str) -> str:
    try:
        return expand_location(path)
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error
