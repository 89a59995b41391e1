"""A stored prediction: what it was made of, where it lies, whether it is whole, how it is opened."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vcmodels.config import InferenceParams, Task
from vcmodels.config.reading import (
    expand_together,
    open_array,
    require_one_order,
    require_used,
)
from vcmodels.devices import choose_device
from vcmodels.errors import OutputError, RefusedError, TaskError, VolumeError
from vcmodels.formats import format_of
from vcmodels.reporting import Reporter
from vcmodels.runs.run import is_sealed
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import KEY as KEY
from vcmodels.volumes import (
    LocalPlace,
    MetadataError,
    Place,
    Volume,
    expand_location,
    group_attributes,
    is_array,
    open_volume,
    place_at,
    set_group_attributes,
)
from vcmodels.volumes.places import obstacle

Input = str | Path | Volume
INPUT, OUTPUT = "inference_params.input_path", "inference_params.output_dir"
CHECKPOINT = "inference_params.checkpoint_path"
DEFAULTS = InferenceParams()
METADATA = {".zgroup", ".zattrs", ".zmetadata", "zarr.json"}
"""What a group may have before it has an image."""


def open_inputs(
    inputs: Input | Sequence[Input] | None,
    params: InferenceParams = DEFAULTS,
    reporter: Reporter | None = None,
) -> tuple[Volume, ...]:
    """The arrays that `input_path` names, in its order; only metadata is read.

    Args:
        inputs: one or several, as paths, as URLs or already opened.
        params: how those that are not opened are read; their paths are not.
        reporter: told when a file is imported.

    Raises:
        TaskError: nothing is named, a variable in a path is not set, or a key fits no array.
        VolumeError: an array is missing or damaged.
    """
    if isinstance(inputs, str | Path | Volume):
        inputs = [inputs]
    if not inputs:
        raise TaskError(INPUT, "is not set", "name the volume to predict")
    found = tuple(
        one if isinstance(one, Volume) else _open_input(str(one), params, number, reporter)
        for number, one in enumerate(inputs)
    )
    named = {f"input {number}": one for number, one in enumerate(found)}
    require_one_order(named)
    if not any(isinstance(one, Volume) for one in inputs):
        index = {axis: at for axis, at in params.index.items() if axis != "c"}  # of the mask
        require_used(params.changed(index=index), named, "inference_params")
    return found


def _open_input(
    path: str, params: InferenceParams, number: int, reporter: Reporter | None
) -> Volume:
    location = _expanded(path, INPUT)
    return open_array(location, params, "input", "any", key=INPUT, number=number, reporter=reporter)


def foreseen(task: Task, channels: int) -> Iterator[str]:
    """In words, what of a task's inference is not there yet: training does not need it.

    Args:
        task: the resolved task.
        channels: of the inputs that are trained on.
    """
    params = task.inference_params
    for check in (_input_fault, _checkpoint_fault, _output_fault):
        try:
            check(task, channels)
        except RefusedError as error:
            yield f"note: {error}; infer would be refused"
    if params.device != task.tr_params.device:
        yield from device_note(params.device, "inference_params.device")


def device_note(wanted: str | int, key: str) -> Iterator[str]:
    """In words, that a device is not there: the task may be meant for another machine."""
    try:
        choose_device(wanted, key)
    except RefusedError as error:
        yield f"note: on this machine it would be refused: {error}"


def _input_fault(task: Task, channels: int) -> None:
    params = task.inference_params
    if params.volumes is not None or not params.input_path:
        return
    if params.is_pattern:
        list(expand_together(params.input_paths, {}, "inference_params", "input_path"))
        return
    if needs_import(params):
        return
    inputs = open_inputs(params.input_path, params)
    if len({volume.extent for volume in inputs}) > 1:
        found = f"the arrays have shapes {', '.join(str(volume.extent) for volume in inputs)}"
        raise VolumeError(INPUT, found, "give arrays of one shape")
    if (found := sum(volume.channels for volume in inputs)) != channels:
        raise VolumeError(INPUT, f"{found} channels, {channels} are trained on", "give the same")


def needs_import(params: InferenceParams) -> bool:
    """Whether an input is a file, which is imported to look into it: not before it is predicted."""
    return any(format_of(_expanded(path, INPUT)) for path in params.input_paths)


def _checkpoint_fault(task: Task, _channels: int) -> None:
    named = task.inference_params.checkpoint_path or ()
    for text in [named] if isinstance(named, str) else named:
        path = Path(_expanded(text, CHECKPOINT))
        if not path.is_file():
            raise TaskError(CHECKPOINT, f"{path} is not there", "train it, or correct the path")
        if not is_sealed(path):
            raise TaskError(CHECKPOINT, f"{path} is cut, or no checkpoint", "name another")


def _output_fault(task: Task, _channels: int) -> None:
    if folder := task.inference_params.output_dir:
        name, is_many = task.tr_params.model_name, task.inference_params.is_many
        require_writable((volumes_folder if is_many else result_root)(folder, name))


def require_writable(root: Place) -> None:
    """Refuse a place where no result can be written, as far as that is seen without writing.

    Raises:
        OutputError: saying what is in the way.
    """
    if root.is_obstructed():
        raise OutputError(str(root), "is in the way: a link or a file", "move it away")
    if isinstance(root, LocalPlace) and (found := obstacle(root.path)):
        raise OutputError(OUTPUT, found, "choose a writable folder")


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


def volumes_folder(folder: str | None, model: str) -> Place:
    """Where the results of many volumes lie, `<folder>/<model>`.

    Args:
        folder: the `output_dir` of the task.
        model: its `model_name`.

    Raises:
        TaskError: as from `result_root`.
    """
    if not folder:
        raise TaskError(OUTPUT, "is not set", "name the folder for the results")
    return group_place(folder) / model


def volume_root(folder: Place, volume: str) -> Place:
    """The group of the result of one of many volumes, `<folder>/<volume>.zarr`.

    Args:
        folder: as from `volumes_folder`.
        volume: the name of the volume; `/` in it is written as `%2F`.
    """
    return folder / f"{file_name(volume)}.zarr"


def file_name(volume: str) -> str:
    """The name of a volume as a name of a file: different ones for different names."""
    return volume.replace("%", "%25").replace("/", "%2F")


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
    """What vcmodels wrote on a group; empty where there is no group or nothing of ours.

    Raises:
        OutputError: the metadata of the group is damaged.
    """
    try:
        found = group_attributes(str(group)).get(KEY)
    except FileNotFoundError:
        return {}
    except MetadataError as error:
        raise damaged(group, error.found) from error
    return found if isinstance(found, dict) else {}


VERIFY = "run infer.py with --verify, which makes again what is damaged or missing"
"""The remedy for a result."""


def damaged(root: Place, found: str) -> OutputError:
    """An error about a result; what was found may begin with a path in it, which is shortened."""
    return OutputError(str(root), found.removeprefix(f"{root}/"), VERIFY)


def census(array: Volume) -> dict[str, Any]:
    """How many chunks (or shards) of an array are stored, their bytes, a sha256 of names and sizes.

    From one listing.
    """
    files = array.listing.files.values() if array.listing else ()
    digest = hashlib.sha256("".join(f"{file.name}\0{file.size}\n" for file in files).encode())
    total = sum(file.size for file in files)
    return {"chunks": len(files), "bytes": total, "sha256": digest.hexdigest()}


def require_stored(root: Place, name: str, noted: Mapping[str, Any]) -> Volume:
    """Open an array of a finished result, and see from a listing whether its chunks are there.

    Nothing is decoded.

    Args:
        root: the group of the result.
        name: of the array, such as "sheet/0".
        noted: `our_attributes` of the group.

    Raises:
        OutputError: the array is missing or damaged, a stored file cannot be a whole chunk, or the
            chunks are not those that were stored (they would read as zeros).
    """
    place = root / name
    if not is_array(place):
        raise OutputError(str(place), "is missing", VERIFY)
    try:
        array = open_volume(str(place), key=OUTPUT, channels="any", on_damage=VERIFY)
    except VolumeError as error:
        if error.__cause__ is not None and not isinstance(error, MetadataError):
            raise  # out of reach
        raise damaged(root, error.found) from error
    if found := array.damaged_file():
        raise damaged(root, found)
    before, now = stored_before(noted, name), census(array)
    for key, what in (("chunks", "chunks are stored"), ("bytes", "bytes are stored")):
        if key in before and before[key] != now[key]:
            found = f"is finished, but {now[key]} {what}, which were {before[key]}"
            raise OutputError(str(place), found, VERIFY)
    if before.get("sha256", now["sha256"]) != now["sha256"]:
        raise OutputError(str(place), "is finished, but its chunks have other sizes", VERIFY)
    return array


def stored_before(noted: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `census` of an array when the result was finished; older results have only the number."""
    every = noted.get("stored_chunks")
    found = every.get(name) if isinstance(every, dict) else None
    return found if isinstance(found, dict) else {"chunks": found} if found is not None else {}


def is_complete(attributes: Mapping[str, Any]) -> bool:
    """Whether a result, or the prediction of one target, is whole, by `our_attributes` of its group."""
    return attributes.get("complete") is True


def is_of_step(attributes: Mapping[str, Any]) -> bool:
    """Whether a step of post-processing wrote a group, by `our_attributes` of it."""
    return "step" in attributes


def is_discarded(attributes: Mapping[str, Any]) -> bool:
    """Whether a step's output is about to go, by `our_attributes`: a kill came before its end."""
    return attributes.get("discarded") is True


def discard_output(place: Place) -> None:
    """Delete the output of a step, the metadata last: whenever this is killed, what is left is ours."""
    noted = our_attributes(place)
    if is_of_step(noted):
        set_group_attributes(str(place), {KEY: {**noted, "discarded": True, "complete": False}})
    for name in sorted(place.names() - METADATA):
        (place / name).remove()
    place.remove()


def open_prediction(root: Place, name: str, target: AnyTarget) -> Volume:
    """The stored prediction of one target, its finest level.

    Args:
        root: the group of the result.
        name: of the target.
        target: whose `decode` is to read the values.

    Raises:
        VolumeError: it is missing, unfinished, or encoded otherwise than the target says.
        OutputError: it is damaged.
    """
    group = root / name
    if not group.names():
        raise VolumeError(str(group), "there is no prediction", "run infer.py first")
    noted = our_attributes(group)
    if noted.get("complete") is False:
        raise VolumeError(str(group), "the prediction is not finished", "run infer.py again")
    array = require_stored(root, f"{name}/0", our_attributes(root))
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
