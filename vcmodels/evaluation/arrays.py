"""Two arrays, or OME-Zarr groups, that are compared without a task file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from vcmodels.config.reading import INPUT, open_array, require_one_order, require_used
from vcmodels.data.first_task import FirstVolume
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.placing import require_one_place
from vcmodels.errors import RefusedError, VolumeError
from vcmodels.evaluation.decoders import PREDICTION, MaskOf
from vcmodels.evaluation.meaning import (
    AS_FOUND,
    LABEL,
    ArrayOptions,
    Meaning,
    meaning_of,
)
from vcmodels.evaluation.pairs import InstancePair, ScoredPair, TargetPair
from vcmodels.evaluation.scoring import ScoredTarget, ScoredVolume, default_metrics
from vcmodels.formats import location_name
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import AnyMetric, Metrics
from vcmodels.metrics.registry import fitting_metrics
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume, expand_location
from vcmodels.volumes.nodes import read_node

MASK = "mask"
SAME_SPACING = 1e-3
"""Relative; between spacings that are written as decimal texts."""


@dataclass(frozen=True)
class ArrayRequest:
    """What is asked for: two arrays, how they are read, and what is measured."""

    prediction: str
    """Path or URL of an array, or of an OME-Zarr group."""
    label: str
    """Of the same voxels."""
    mask: str | None = None
    """Of an array that is 0 where nothing counts."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """How they are read, as in a volume entry of a task: level, axes, channels, index, spacing. The
    prediction is called `prediction` in axes and index, the others `label` and `mask`."""
    options: ArrayOptions = AS_FOUND
    box: Box | None = None
    """What is scored; all when None."""
    metrics: tuple[str, ...] = ()
    """Names; those that are measured by default when empty."""
    tolerances: tuple[float, ...] = ()
    """In the unit of the spacing, for metrics that take such; their own when empty."""
    name: str = "prediction"
    """Of the target in the report."""


def scored_volume(request: ArrayRequest, reporter: Reporter) -> ScoredVolume:
    """What is scored of two arrays; what they are compared as is said in one line.

    Raises:
        RefusedError: they cannot be opened, do not show the same voxels, or may mean several things.
        RunError: a chunk is damaged.
    """
    prediction, label, mask = open_arrays(request, reporter)
    any_place = request.keys.get("spacing") is not None
    require_one_grid(prediction, label, any_place=any_place)
    box = request.box or label.box
    if not label.box.contains(box):
        raise RefusedError("--bbox", f"reaches out of the volume, {label.extent}", "keep inside")
    if mask is not None:
        _require_mask_of(label, prediction, mask, any_place=any_place)
    meaning = meaning_of(prediction, label, request.options, box)
    metrics = chosen_metrics(fitting(meaning), request.metrics, request.tolerances)
    reporter.say(meaning.said)
    known = [one for one in (label, prediction) if one.has_spacing]
    place = known[0] if known else label
    pair = _pair(prediction, label, meaning, request.options.ignored, box, mask, place)
    target = ScoredTarget(request.name, pair, metrics, meaning.class_names, request.label)
    return ScoredVolume(
        location_name(request.prediction),
        request.prediction,
        (target,),
        unit=(place.unit or "") if known else "",
    )


def _pair(
    prediction: Volume,
    label: Volume,
    meaning: Meaning,
    ignored: tuple[int, ...],
    box: Box,
    mask: Volume | None,
    place: Volume,
) -> ScoredPair:
    """The pair of two arrays, with the spacing of `place`."""
    if meaning.target is None:
        return InstancePair(prediction, label, box, place.spacing, ignored, mask)
    read = meaning.label or label
    source = Label(meaning.target, StoredLabel(LABEL, read, read.box), place.spacing)  # pyright: ignore[reportArgumentType]
    return TargetPair(source, prediction, box, decode=meaning.decode, mask=mask)


def open_arrays(request: ArrayRequest, reporter: Reporter) -> tuple[Volume, Volume, Volume | None]:
    """Prediction, label and mask; only metadata is read, but of files that are not imported yet.

    Raises:
        VolumeError: one is missing, damaged or read otherwise than the keys say.
        TaskError: a key has a value that it cannot take, or that fits no array.
    """
    others = {"label": request.label, **({MASK: request.mask} if request.mask else {})}
    keys = {key: _called_input(value) for key, value in request.keys.items()}
    entry = FirstVolume(request.prediction, others, keys).entry
    places = {
        name: expand_location(at) for name, at in {INPUT: request.prediction, **others}.items()
    }
    groups = {name for name, place in places.items() if _is_group(place)}
    if entry.level and not groups:
        raise RefusedError("--level", "no OME-Zarr group is given", "leave it out")
    chosen, opened = entry.index.get("c"), dict[str, Volume]()
    for name, place in places.items():
        is_one = chosen is not None and (isinstance(chosen, int) or name in chosen)
        opened[name] = open_array(
            place,
            entry if name in groups else entry.model_copy(update={"level": 0}),
            name,
            None if is_one and name != INPUT else "any",
            key=_SHOWN[name],
            reporter=reporter,
        )
    require_used(entry, opened, "--set")
    require_one_order(opened)
    return opened[INPUT], opened["label"], opened.get(MASK)


_SHOWN = {INPUT: PREDICTION, "label": LABEL, MASK: "--mask"}


def _is_group(location: str) -> bool:
    node = read_node(location, location)
    return node is not None and node.kind == "group"


def _called_input(value: object) -> object:
    """A value of a key of a volume entry, which calls the prediction its input."""
    if not isinstance(value, Mapping):
        return value
    return {INPUT if k == "prediction" else k: _called_input(v) for k, v in value.items()}


def fitting(meaning: Meaning) -> Metrics:
    """All metrics that can be measured of what two arrays are; of a mask none of probabilities."""
    if meaning.target is None:
        found = dict(fitting_metrics("instances"))
    else:
        found = dict(meaning.target.stored_metrics)
    if isinstance(meaning.decode, MaskOf):
        found = {n: m for n, m in found.items() if not getattr(m, "needs_probabilities", False)}
    return found


def chosen_metrics(
    every: Metrics, names: Sequence[str] = (), tolerances: Sequence[float] = ()
) -> dict[str, AnyMetric]:
    """The metrics of some names, with tolerances where a metric takes such.

    Args:
        every: those that can be measured.
        names: those that are measured by default when empty.
        tolerances: in the unit of the spacing; each metric's own when empty.

    Raises:
        RefusedError: a name is none of the fitting metrics, or none of them takes tolerances.
    """
    for name in names:
        if name not in every:
            found = f'"{name}" cannot be measured of this'
            raise RefusedError("--metrics", found, f"choose from {', '.join(every)}")
    chosen = {n: every[n] for n in names} if names else default_metrics(every)
    if not tolerances:
        return chosen
    taking = [n for n, m in chosen.items() if "tolerances" in {f.name for f in fields(m)}]
    if not taking:
        found = f"none of {', '.join(chosen)} takes a tolerance"
        raise RefusedError("--tolerance", found, "leave it out")
    options = {"tolerances": tuple(tolerances)}
    return chosen | {name: replace(chosen[name], **options) for name in taking}


def require_one_grid(prediction: Volume, label: Volume, *, any_place: bool = False) -> None:
    """Refuse arrays that do not show the same voxels.

    Args:
        prediction: as it is opened.
        label: as it is opened.
        any_place: whether what is said of spacing and offset does not matter.

    Raises:
        VolumeError: they are one array, of other extents, or at other places.
    """
    if prediction.identity == label.identity:
        raise VolumeError(LABEL, f"{label.identity} is the prediction itself", "name its label")
    if prediction.extent != label.extent:
        found = f"has extent {label.extent}, the prediction {prediction.extent}"
        remedy = "give arrays of the same voxels; of OME-Zarr groups another --level"
        raise VolumeError(LABEL, f"{label.shown} {found}", remedy)
    if not any_place:
        _require_one_place(LABEL, label, prediction, "the prediction")


def _require_mask_of(label: Volume, prediction: Volume, mask: Volume, *, any_place: bool) -> None:
    """Refuse a mask that does not show the same voxels.

    Raises:
        VolumeError: it is of another extent, of several channels, or at another place.
    """
    if mask.extent != label.extent or mask.channels != 1:
        found = f"{mask.shown} has extent {mask.extent} and {mask.channels} channels"
        raise VolumeError("--mask", found, f"give one of a channel and extent {label.extent}")
    if not any_place:
        _require_one_place("--mask", mask, label, "the label")
        _require_one_place("--mask", mask, prediction, "the prediction")


def _require_one_place(key: str, volume: Volume, other: Volume, name: str) -> None:
    """Refuse volumes whose metadata say that their voxels are others.

    Raises:
        VolumeError: their affines, units, spacings or offsets differ.
    """
    require_one_place([other, volume])
    if not (volume.has_spacing and other.has_spacing):
        return
    remedy = "give arrays of one grid, or --spacing to compare them voxel by voxel"
    if volume.unit and other.unit and volume.unit != other.unit:
        found = f"its lengths are in {volume.unit}, those of {name} in {other.unit}"
        raise VolumeError(key, f"{volume.shown}: {found}", remedy)
    if not np.allclose(other.spacing, volume.spacing, rtol=SAME_SPACING, atol=0):
        found = f"has spacing {_numbers(volume.spacing)}, {name} {_numbers(other.spacing)}"
        raise VolumeError(key, f"{volume.shown} {found}", remedy)
    away = np.abs(np.subtract(other.offset, volume.offset))
    if (away > np.multiply(volume.spacing, 0.5)).any():
        found = f"begins at {_numbers(volume.offset)}, {name} at {_numbers(other.offset)}"
        raise VolumeError(key, f"{volume.shown} {found}", remedy)


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
