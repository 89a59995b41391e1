"""A stored prediction: what it was made of, where it lies, whether it is whole, how it is opened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import KEY as KEY
from vcmodels.volumes import Place, Volume, expand_location, group_attributes, open_volume, place_at

Input = str | Path | Volume
INPUT, OUTPUT = "inference_params.input_path", "inference_params.output_dir"


def open_inputs(
    inputs: Input | Sequence[Input] | None,
    *,
    level: int = 0,
    channel_axis: Literal["first", "last"] | None = None,
) -> tuple[Volume, ...]:
    """The arrays that `input_path` names, in its order; only metadata is read.

    Args:
        inputs: one or several, as paths, as URLs or already opened.
        level: of an OME-Zarr group.
        channel_axis: where the channels are, when the store does not say.

    Raises:
        TaskError: nothing is named, or a variable in a path is not set.
        VolumeError: an array is missing or damaged.
    """
    if isinstance(inputs, str | Path | Volume):
        inputs = [inputs]
    if not inputs:
        raise TaskError(INPUT, "is not set", "name the volume to predict")
    return tuple(
        one if isinstance(one, Volume) else _open_input(str(one), level, channel_axis)
        for one in inputs
    )


def _open_input(path: str, level: int, channel_axis: Literal["first", "last"] | None) -> Volume:
    location = _expanded(path, INPUT)
    return open_volume(location, key=INPUT, level=level, channels="any", channel_axis=channel_axis)


def result_root(folder: str | None, name: str) -> Place:
    """The group of a result, `<folder>/<name>.zarr`.

    Args:
        folder: the `output_dir` of the task.
        name: its `model_name`.

    Raises:
        TaskError: no folder is named, or as for `group_place`.
    """
    if not folder:
        raise TaskError(OUTPUT, "is not set", "name the folder for the result")
    return group_place(folder) / f"{name}.zarr"


def group_place(location: str) -> Place:
    """A folder or URL that a result is written to.

    Raises:
        TaskError: it is a URL that cannot be written to, or a variable in it is not set.
    """
    try:
        return place_at(_expanded(location, OUTPUT))
    except OutputError as error:
        raise TaskError(OUTPUT, f"{error.subject} {error.found}", error.remedy) from error


def our_attributes(group: Place) -> dict[str, Any]:
    """What vcmodels wrote on a group; empty where there is no group or nothing of ours."""
    try:
        found = group_attributes(str(group)).get(KEY)
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def is_complete(attributes: Mapping[str, Any]) -> bool:
    """Whether a result, or the prediction of one target, is whole, by `our_attributes` of its group."""
    return attributes.get("complete") is True


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
