"""What `overlay` draws of a task, of a run, of a result, or of any array."""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from vcmodels.config import Task
from vcmodels.data.predictions import prediction_notes, writer_of
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RefusedError, VolumeError
from vcmodels.formats import location_name
from vcmodels.geometry.boxes import Box
from vcmodels.pictures.layers import (
    IDS,
    DrawnLayer,
    SliceSource,
    Subject,
    ids,
    labelled,
    plain,
    predicted,
)
from vcmodels.reporting import Reporter
from vcmodels.results import open_prediction, result_root
from vcmodels.targets import KINDS, AnyTarget
from vcmodels.targets.base import Target
from vcmodels.viewers.contents import (
    chosen_volume,
    open_any,
    predicted_inputs,
    recorded_box,
    recorded_inputs,
    stored_predictions,
)
from vcmodels.volumes import ChannelAxis, Place, Volume, place_at

PLAIN_KINDS = ("binary", "instances", "regression", "normals", "vector")
"""What an array may be said to be; classes are drawn as instances are, a colour for each number."""


def subject_of_task(
    task: Task, volume: str | None, wanted: Sequence[str], reporter: Reporter
) -> Subject:
    """A labelled volume of a task: its first input, its labels, and what was predicted of it.

    Args:
        task: the task, of a file or of a run.
        volume: the name of the volume; by default the one that was predicted, or the first.
        wanted: names of targets; all when empty.
        reporter: told what is not shown, and why.

    Raises:
        RefusedError: there is no such volume or target, or nothing to draw.
        VolumeError: an array is missing or damaged, or the prediction unfinished.
    """
    inputs = predicted_inputs(task, reporter)
    chosen = chosen_volume(open_volumes(task), volume, inputs)
    targets = task.dataset_config.targets
    mine = {image.identity for image in chosen.inputs}
    is_predicted = bool(inputs) and {one.identity for one in inputs} <= mine
    root = None
    if is_predicted:
        root = result_root(task.inference_params.output_dir, task.tr_params.model_name)
    layers = []
    for name in _named(wanted, list(targets)):
        target = targets[name]
        label = chosen.label(name, target, chosen.region)
        found = _task_prediction(root, name, target)
        if label or found:
            layers.append(DrawnLayer(name, target, found, labelled(label) if label else None))
    box, part = chosen.region, task.inference_params.bbox
    if root is not None and part is not None:
        shown = box.intersect(Box.between([a for a, _ in part], [b for _, b in part]))
        box = shown if shown.voxels else box
    return _subject(layers, box, chosen.inputs[0], chosen.name)


def _task_prediction(root: Place | None, name: str, target: AnyTarget) -> SliceSource | None:
    if root is None or not (root / name).names():
        return None
    return predicted(open_prediction(root, name, target), target)


def subject_of_result(
    location: str,
    image: str | None,
    labels: Mapping[str | None, str],
    wanted: Sequence[str],
    reporter: Reporter,
) -> Subject:
    """A result of `infer` over the input that it was made of.

    Args:
        location: of the group.
        image: shown instead of that input.
        labels: locations by target; None as the name where there is one target.
        wanted: names of targets; all when empty.
        reporter: told what is not shown, and why.

    Raises:
        RefusedError: there is no such target, or nothing to draw.
        VolumeError: an array is missing or damaged, or of another extent.
    """
    root = place_at(location)
    found = {name: array for name, array in stored_predictions(root) if _can_be_drawn(array)}
    names = _named(wanted, list(found))
    places = _by_target(labels, names)
    layers = [
        _own_layer(name, found[name], _truth(places.get(name), found[name], reporter))
        for name in names
    ]
    inputs = [open_any(image, "--image", reporter)] if image else recorded_inputs(root, reporter)
    first = next(iter(found.values()), None)
    if first is None:
        raise RefusedError(str(root), "holds no prediction", "name a result of infer")
    box = recorded_box(root)
    return _subject(layers, box or first.box, inputs[0] if inputs else None, str(root), first)


def subject_of_array(
    location: str,
    image: str | None,
    labels: Mapping[str | None, str],
    kind: str | None,
    foreground: str | None,
    reporter: Reporter,
    channel_axis: ChannelAxis | None = None,
) -> Subject:
    """One array or OME-Zarr group: a prediction of ours, or what it is said to be.

    Args:
        location: of the array.
        image: shown under it.
        labels: one at most.
        kind: one of `PLAIN_KINDS`, for an array that does not say itself.
        foreground: which values of a mask are foreground, as in a task file.
        reporter: told when a file is imported.
        channel_axis: of arrays of 4 axes that do not say it.

    Raises:
        RefusedError: nothing says what the values are, or the kind does not fit.
        VolumeError: an array is missing or damaged, or of another extent.
    """
    array = open_any(location, "PREDICTION", reporter, channel_axis)
    name = location_name(array.shown)
    under = open_any(image, "--image", reporter, channel_axis) if image else None
    truth = _truth(_by_target(labels, [name]).get(name), array, reporter, channel_axis)
    if kind is None and prediction_notes(array) is not None:
        layer = _own_layer(name, array, truth)
    else:
        layer = _plain_layer(name, array, truth, kind, foreground)
    return _subject([layer], array.box, under, location, array)


def _named(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The targets that are named, or all.

    Raises:
        RefusedError: there is no such target.
    """
    for name in wanted:
        if name not in known:
            remedy = f"choose from {', '.join(known)}" if known else "leave it out"
            raise RefusedError("--target", f'there is no target "{name}"', remedy)
    return list(wanted or known)


def _by_target(labels: Mapping[str | None, str], names: Sequence[str]) -> dict[str, str]:
    """Labels by the target that they are of.

    Raises:
        RefusedError: a label is of no target, or it is not said of which.
    """
    found: dict[str, str] = {}
    for name, place in labels.items():
        if name is None and len(names) != 1:
            remedy = f"write NAME=PATH with one of {', '.join(names)}"
            raise RefusedError("--label", f"{place} is of one of {len(names)} targets", remedy)
        target = names[0] if name is None else name
        if target not in names:
            raise RefusedError("--label", f'"{target}" is none of {", ".join(names)}', "correct it")
        found[target] = place
    return found


def _can_be_drawn(array: Volume) -> bool:
    """Whether a stored array is of a target or of objects, and not an uncertainty."""
    notes = prediction_notes(array)
    return notes is None or notes["encoding"].get("kind") in KINDS


def _truth(
    label: str | None,
    array: Volume,
    reporter: Reporter,
    channel_axis: ChannelAxis | None = None,
) -> Volume | None:
    """The label of a prediction, where one is given.

    Raises:
        VolumeError: it is missing or damaged, or of another extent.
    """
    if label is None:
        return None
    stored = open_any(label, "--label", reporter, channel_axis)
    _require_extent(stored, array)
    return stored


def _own_layer(name: str, array: Volume, label: Volume | None) -> DrawnLayer:
    """A prediction of ours by its encoding, or objects, with a plain label of its kind."""
    notes = prediction_notes(array)
    if notes is None:
        return DrawnLayer(name, IDS, ids(array), None if label is None else ids(label))
    target = writer_of(notes["encoding"], array)
    truth = None if label is None else plain(label, target)
    return DrawnLayer(name, target, predicted(array, target), truth)


def _plain_layer(
    name: str, array: Volume, truth: Volume | None, kind: str | None, foreground: str | None
) -> DrawnLayer:
    if kind is None:
        found = f"nothing next to {array.shown} says what its values are"
        raise RefusedError("--kind", found, f"give one of {', '.join(PLAIN_KINDS)}")
    if kind == "instances":
        for one in (array, *((truth,) if truth else ())):
            if one.dtype.kind not in "uib" or one.channels > 1:
                found = f"{one.shown} holds {one.channels} x {one.dtype}, which are no ids"
                raise RefusedError("--kind", found, "give another kind")
        return DrawnLayer(name, IDS, ids(array), ids(truth) if truth else None)
    target = _target(kind, array, foreground)
    over = plain(truth, target) if truth else None
    return DrawnLayer(name, target, plain(array, target, as_prediction=True), over)


def _target(kind: str, array: Volume, foreground: str | None) -> Target:
    """A target of a kind whose label an array can be.

    Raises:
        RefusedError: it cannot.
    """
    keys = {"channels": array.channels, "foreground": foreground}
    try:
        return KINDS[kind].model_validate({k: v for k, v in keys.items() if v is not None})
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        found = f"{array.shown} with {array.channels} channels is no {kind}: {said}"
        raise RefusedError("--kind", found, "give another kind, or correct --foreground") from error


def _require_extent(array: Volume, like: Volume) -> None:
    if array.extent != like.extent:
        found = f"{array.shown} has shape {array.extent}, {like.shown} {like.extent}"
        raise VolumeError(array.key, found, "give arrays of one shape")


def _subject(
    layers: Sequence[DrawnLayer],
    box: Box,
    image: Volume | None,
    name: str,
    like: Volume | None = None,
) -> Subject:
    """What is drawn, on the grid of an array.

    Raises:
        RefusedError: there is no layer.
        VolumeError: the image has another extent.
    """
    if not layers:
        found = "has neither a label nor a prediction to draw"
        raise RefusedError(name, found, "predict it, or name another")
    grid = like or image
    assert grid is not None, "a layer has a grid"
    if image is not None:
        _require_extent(image, grid)
    known = image if image is not None and image.has_spacing else grid
    return Subject(tuple(layers), box, grid.extent, known.spacing, image)
