"""What there is to look at of a task, of a run, of a result, or of any array."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from vcmodels.config import InferenceParams, Task
from vcmodels.data.opening import reader_of
from vcmodels.data.predictions import PredictedLabel, prediction_notes, writer_of
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RefusedError, VcmodelsError, VolumeError
from vcmodels.formats import location_name
from vcmodels.formats.imported import open_located
from vcmodels.geometry.boxes import Box, triple
from vcmodels.patches.cache import UnusableListError, stored_patches
from vcmodels.pictures.slices import Colour, window_of
from vcmodels.reporting import Reporter, list_some
from vcmodels.results import is_discarded, is_of_step, open_inputs, our_attributes, result_root
from vcmodels.runs.run import Run, Splits
from vcmodels.viewers.looks import (
    ArrayLook,
    Ids,
    Image,
    look_of_label,
    look_of_prediction,
    look_of_source,
    look_of_values,
)
from vcmodels.viewers.scene import Boxes, Frame, Layer, Scene, fewer_boxes
from vcmodels.volumes import ChannelAxis, Place, Volume, expand_location, open_volume, place_at
from vcmodels.volumes.levels import StoredLevel, stored_levels
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node

COLOURS: dict[str, Colour] = {
    "train": (0.34, 0.71, 0.91), "validation": (0.90, 0.62, 0.00), "other": (0.80, 0.80, 0.80),
}  # fmt: skip
"""Of what is trained on, of what is validated on, and of patches that are in neither."""
MOST_NAMED = 10
"""Volumes of a message."""
SAMPLE = 96
"""Edge of the cube of voxels from which the first contrast is taken."""
WIDE_IDS = ("uint32", "int32", "uint64", "int64")
"""Types that images hardly have."""
SOURCE, IMAGE = "SOURCE", "--image"


def scene_of_task(task: Task, volume: str | None, reporter: Reporter) -> Scene:
    """A labelled volume of a task: its inputs and labels, what was predicted, and where patches lie.

    Args:
        task: the task, of a file or of a run.
        volume: the name of the volume; by default the one that was predicted, or the first.
        reporter: told what is not shown, and why.

    Raises:
        RefusedError: there is no such volume.
        VolumeError: an array is missing or damaged.
    """
    volumes = open_volumes(task)
    predicted = predicted_inputs(task, reporter)
    chosen = chosen_volume(volumes, volume, predicted)
    if len(volumes) > 1:
        others = [one.name for one in volumes if one is not chosen]
        reporter.say(f"volume {chosen.name}; --volume shows {list_some(others, MOST_NAMED)}")
    frame, layers = Frame.of(chosen.inputs[0]), list[Layer]()
    focus = chosen.region
    layers += _images(chosen.inputs, frame, focus)
    layers += _labels(chosen, task, frame, focus)
    if predicted and {one.identity for one in predicted} <= _identities(chosen):
        root = result_root(task.inference_params.output_dir, task.tr_params.model_name)
        layers += _result_layers(root, frame, focus, reporter)
    boxes = _parts(task, chosen, [one.name for one in volumes], reporter)
    title = f"{task.tr_params.model_name}: {chosen.name}"
    return Scene(title, tuple(layers), tuple(boxes), focus=focus)


def scene_of_result(location: str, images: Sequence[str], reporter: Reporter) -> Scene:
    """A result of `infer`: the input that it was made of, and its predictions.

    Args:
        location: of the group.
        images: show these instead of the input that the result names.
        reporter: told what is not shown, and why.

    Raises:
        VolumeError: an image is missing or damaged.
        RefusedError: the group holds no prediction.
    """
    root = place_at(location)
    inputs = [open_any(image, IMAGE, reporter) for image in images] or recorded_inputs(
        root, reporter
    )
    first = next(stored_predictions(root), None)
    if first is None:
        raise RefusedError(str(root), "holds no prediction yet", "wait until infer has begun")
    shown = inputs or [first[1]]
    frame, focus = Frame.of(shown[0]), recorded_box(root)
    layers = [*_images(inputs, frame, focus), *_result_layers(root, frame, focus, reporter)]
    return Scene(root.name, tuple(layers), focus=focus)


def scene_of_arrays(
    location: str,
    images: Sequence[str],
    labels: Sequence[str],
    reporter: Reporter,
    channel_axis: ChannelAxis | None = None,
) -> Scene:
    """Any array or OME-Zarr group, with others.

    Args:
        location: of an array or a group.
        images: shown under it.
        labels: shown over it, as ids.
        reporter: told how values that say nothing of themselves are shown.
        channel_axis: of arrays of 4 axes that do not say it.

    Raises:
        VolumeError: an array is missing or damaged, or lies on another grid than the first.
    """
    main = open_any(location, SOURCE, reporter, channel_axis)
    under = [open_any(image, IMAGE, reporter, channel_axis) for image in images]
    frame = Frame.of((under or [main])[0])
    layers = [*_images(under, frame, None), _layer(main, frame, reporter)]
    for place in labels:
        array = open_any(place, "--labels", reporter, channel_axis)
        _require_whole_numbers(array)
        layers.append(_placed(location_name(array.shown), stored_levels(array), Ids(), frame))
    return Scene(location_name(main.shown), tuple(_named_once(layers)))


def is_result(location: str) -> bool:
    """Whether a location is a result of `infer`."""
    try:
        return "manifest" in our_attributes(place_at(location))
    except VcmodelsError:  # a server that only reads, or no store: opening it says more
        return False


def chosen_volume(
    volumes: Sequence[TaskVolume], name: str | None, predicted: Sequence[Volume]
) -> TaskVolume:
    if name is None:
        wanted = {one.identity for one in predicted}
        return next((v for v in volumes if wanted and wanted <= _identities(v)), volumes[0])
    for volume in volumes:
        if volume.name == name:
            return volume
    known = list_some((volume.name for volume in volumes), MOST_NAMED)
    raise RefusedError("--volume", f'there is no volume "{name}"', f"choose from {known}")


def _identities(volume: TaskVolume) -> set[str]:
    return {image.identity for image in volume.inputs}


def predicted_inputs(task: Task, reporter: Reporter) -> tuple[Volume, ...]:
    """The inputs of the task's inference, if it has a result; none is opened otherwise."""
    params = task.inference_params
    if not params.input_path or not params.output_dir:
        return ()
    root = result_root(params.output_dir, task.tr_params.model_name)
    if not our_attributes(root):
        return ()
    return _opened_inputs(params, reporter)


def _opened_inputs(params: InferenceParams, reporter: Reporter) -> tuple[Volume, ...]:
    try:
        return open_inputs(params.input_path, params, reporter)
    except VcmodelsError as error:
        reporter.say(f"note: the input of the prediction is not shown: {error}")
        return ()


def _recorded_params(root: Place) -> dict[str, Any]:
    provenance = our_attributes(root).get("provenance")
    task = provenance.get("task") if isinstance(provenance, dict) else None
    found = task.get("inference_params") if isinstance(task, dict) else None
    return found if isinstance(found, dict) else {}


def recorded_inputs(root: Place, reporter: Reporter) -> list[Volume]:
    found = _recorded_params(root)
    if not found:
        return []
    try:
        params = InferenceParams.model_validate_json(json.dumps(found))
    except ValidationError:
        reporter.say("note: the input is not shown: the result has settings of another version")
        return []
    return list(_opened_inputs(params, reporter))


def recorded_box(root: Place) -> Box | None:
    bbox = _recorded_params(root).get("bbox")
    if bbox is None:
        return None
    return Box.between([start for start, _ in bbox], [end for _, end in bbox])


def _images(inputs: Sequence[Volume], frame: Frame, focus: Box | None) -> Iterator[Layer]:
    for number, image in enumerate(inputs):
        name = "image" if len(inputs) == 1 else f"image {number}"
        levels = stored_levels(image)
        yield _placed(name, levels, Image(_limits(levels, focus)), frame)


def _labels(volume: TaskVolume, task: Task, frame: Frame, focus: Box) -> Iterator[Layer]:
    """The stored labels of a volume, and what targets are derived from."""
    targets = task.dataset_config.targets
    for name, array in volume.labels.items():
        stored = array.source if isinstance(array, PredictedLabel) else array
        levels = stored_levels(stored)
        limits = _limits(levels, focus)
        if isinstance(array, PredictedLabel):
            notes = prediction_notes(stored) or {}
            look = look_of_prediction(array.writer, notes["encoding"], stored.dtype, limits)
        elif name in targets:
            look = look_of_label(targets[name], stored, limits)
        elif stored.dtype.kind == "f":
            look = look_of_label(reader_of(name, targets), stored, limits)  # pyright: ignore[reportArgumentType]
        else:
            look = look_of_source([one for one in targets.values() if one.derive == name])
        yield _placed(f"{name} (label)", levels, look, frame)


def _result_layers(
    root: Place, frame: Frame, focus: Box | None, reporter: Reporter
) -> Iterator[Layer]:
    """The predictions of a result, those of a run that goes on too, and the objects made of them."""
    if our_attributes(root).get("complete") is not True:
        reporter.say(f"note: {root} is not finished; what is there is shown")
    for name, array in stored_predictions(root):
        levels = stored_levels(array)
        what = "objects" if prediction_notes(array) is None else "prediction"
        yield _placed(f"{name} ({what})", levels, _look(levels, focus), frame)


def _is_shown(attributes: Mapping[str, Any]) -> bool:
    is_ours = "encoding" in attributes or is_of_step(attributes)
    return is_ours and not is_discarded(attributes)


def stored_predictions(root: Place) -> Iterator[tuple[str, Volume]]:
    """The predictions of a result and what post-processing has made of them, by name."""
    for name in sorted(root.names()):
        place = root / name
        if "0" in place.names() and _is_shown(our_attributes(place)):
            yield name, open_volume(str(place / "0"), key=str(place), channels="any")


def _layer(array: Volume, frame: Frame, reporter: Reporter) -> Layer:
    """An array by what it says of itself, or else by its type."""
    levels = stored_levels(array)
    look = _look(levels, None)
    if isinstance(look, Image) and array.dtype.kind in "ui" and array.dtype.itemsize == 2:
        reporter.say(f"{array.shown} is shown as an image; --labels shows it as ids")
    return _placed(location_name(array.shown), levels, look, frame)


def _look(levels: tuple[StoredLevel, ...], focus: Box | None) -> ArrayLook:
    """How an array looks, by what stands next to it."""
    array, limits = levels[0].volume, _limits(levels, focus)
    notes = prediction_notes(array)
    if notes is not None:
        encoding: Mapping[str, Any] = notes["encoding"]
        if encoding.get("kind") == "uncertainty":
            return look_of_values(encoding, array.dtype, limits)
        return look_of_prediction(writer_of(encoding, array), encoding, array.dtype, limits)
    is_label = _is_image_label(array) or array.dtype.name in WIDE_IDS
    return Ids() if is_label and array.dtype.kind in "uib" else Image(limits)


def _is_image_label(array: Volume) -> bool:
    """Whether the group of an array says that it holds labels (OME-Zarr's `image-label`)."""
    above = parent(array.location)
    node = read_node(above, array.key) if above else None
    attributes = node.attributes if node else {}
    ome = attributes.get("ome")
    return "image-label" in (ome if isinstance(ome, dict) else attributes)


def _placed(name: str, levels: tuple[StoredLevel, ...], look: ArrayLook, frame: Frame) -> Layer:
    """A layer on the common grid: that of the first array, where this one has the same extent.

    An array of another extent lies where it says itself, with voxels of the first if it does not
    say their size.
    """
    array = levels[0].volume
    if array.extent == frame.extent:
        return Layer(name, levels, look, frame)
    own = Frame.of(array)
    if not array.has_spacing:
        own = replace(own, spacing=frame.spacing)
    return Layer(name, levels, look, replace(own, unit=own.unit or frame.unit))


def open_any(
    text: str, key: str, reporter: Reporter, channel_axis: ChannelAxis | None = None
) -> Volume:
    """An array, the finest level of a group, or a file, whose import the reporter is told of."""
    location = expand_location(text)
    return open_located(
        location, key=key, channels="any", channel_axis=channel_axis, reporter=reporter
    )


def _require_whole_numbers(array: Volume) -> None:
    if array.dtype.kind not in "uib" or array.channels > 1:
        found = f"{array.shown} holds {array.channels} x {array.dtype}, which are no ids"
        raise VolumeError("--labels", found, "give an array (z, y, x) of whole numbers")


def _named_once(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers, with a number where two have one name."""
    seen: dict[str, int] = {}
    for layer in layers:
        count = seen[layer.name] = seen.get(layer.name, 0) + 1
        yield layer if count == 1 else replace(layer, name=f"{layer.name} ({count})")


def _limits(levels: Sequence[StoredLevel], focus: Box | None) -> tuple[float, float]:
    """Stored values that lie between black and white: of a cube in the middle of the focus.

    It is read from the coarsest level that is not smaller than the cube, so that it shows much.
    """
    level = next((o for o in reversed(levels) if min(o.volume.extent) >= SAMPLE), levels[0])
    volume = level.volume
    shown = focus or levels[0].volume.box
    centre = [
        round((o + n / 2) / f)
        for o, n, f in zip(shown.origin, shown.shape, level.factor, strict=True)
    ]
    cube = Box(triple(c - SAMPLE // 2 for c in centre), (SAMPLE, SAMPLE, SAMPLE))
    values = volume.read(cube.intersect(volume.box)).astype(np.float32)
    values = values[np.isfinite(values)]
    low, high = window_of(values) if values.size else (0.0, 1.0)
    if low < high:
        return low, high
    if volume.dtype.kind in "ui":
        return 0.0, float(np.iinfo(volume.dtype).max)
    return low, low + 1.0


def _parts(
    task: Task, volume: TaskVolume, names: Sequence[str], reporter: Reporter
) -> Iterator[Boxes]:
    """Where the run trains and validates on a volume, and the patches there."""
    sides = _sides(Run(task.run_dir).splits(), volume.name)
    for side, box in sides.items():
        yield Boxes(f"region: {side}", (box,), COLOURS[side])
    try:
        found = stored_patches(task.cache_file, names)
    except UnusableListError as error:
        reporter.say(f"no patches: {error}")
        return
    patch = found.patch or task.tr_params.given_patch_size
    if patch is None:
        reporter.say("no patches: the list does not say their size")
        return
    for side, boxes in _by_side(found.boxes(volume.name, patch), sides).items():
        shown = fewer_boxes(boxes)
        if len(shown) < len(boxes):
            reporter.say(f"patches: {side}: {len(shown)} of {len(boxes)} are shown, evenly chosen")
        yield Boxes(f"patches: {side}", shown, COLOURS[side], is_visible=False)


def _sides(splits: Splits | None, name: str) -> dict[str, Box]:
    """The part of a volume on each side; none where patches are divided and not volumes."""
    if splits is None or splits.is_random or name not in splits.volumes:
        return {}
    number = splits.volumes.index(name)
    found = {"train": splits.train_regions[number], "validation": splits.val_regions[number]}
    return {side: box for side, box in found.items() if box is not None}


def _by_side(boxes: Sequence[Box], sides: Mapping[str, Box]) -> dict[str, list[Box]]:
    """Patches by the side that holds them; some lie across the guard between the sides."""
    found: dict[str, list[Box]] = {}
    for box in boxes:
        side = next((side for side, part in sides.items() if part.contains(box)), "other")
        found.setdefault(side, []).append(box)
    return found
