"""Two arrays as a prediction and its label: what their values mean, without a task file.

What a prediction of ours means stands next to it. Else it follows from the channels, the dtypes and
the values that are stored, all of which are looked at as far as they matter:

- one prediction channel for each class, and a label of one: probabilities of classes;
- a label of fractions, or of at most two values next to a prediction of fractions: numbers, a mask;
- at most two values in both: masks;
- a label of more than `MOST_CLASSES` values next to whole numbers: ids of instances.

Whatever may be read in several ways is refused, and the options that settle it are named.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vcmodels.data.predictions import PredictedLabel, prediction_notes, writer_of
from vcmodels.errors import FaultError, RefusedError, VolumeError
from vcmodels.evaluation.decoders import (
    PREDICTION,
    SOFTMAX,
    ClassOf,
    MaskOf,
    NumbersOf,
    ProbabilityOf,
)
from vcmodels.evaluation.distinct import Distinct, distinct
from vcmodels.evaluation.pairs import Decode
from vcmodels.geometry.boxes import Box
from vcmodels.targets import (
    BinaryTarget,
    MulticlassTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)
from vcmodels.targets.base import Target
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import Volume

LABEL = "LABEL"
MOST_CLASSES = 256
"""More values than these are ids."""
ARRAY_KINDS = ("binary", "multiclass", "instances", "regression", "normals", "vector")
"""What two plain arrays can be compared as."""


@dataclass(frozen=True)
class ArrayOptions:
    """What is said of two arrays besides what they hold."""

    kind: str | None = None
    """One of `ARRAY_KINDS`."""
    classes: tuple[tuple[int, str], ...] = ()
    """Stored value and name of each class, background first; found in the arrays when empty."""
    foreground: str | None = None
    """Which values of the label are foreground."""
    predicted_foreground: str | None = None
    """Which values of the prediction are; it is then a mask."""
    ignored: tuple[int, ...] = ()
    """Values of the label that do not count."""
    is_axial: bool = False
    """Whether normals of opposite sign are the same."""


AS_FOUND = ArrayOptions()


@dataclass(frozen=True)
class Meaning:
    """What two arrays are compared as."""

    said: str
    """In one line, with the option that changes it."""
    target: Target | None = None
    """None for instances."""
    decode: Decode | None = None
    """As for `TargetPair`."""
    label: Volume | None = None
    """As it is read, where that is not as it is stored."""
    class_names: tuple[str, ...] = field(default=())


def meaning_of(prediction: Volume, label: Volume, options: ArrayOptions, box: Box) -> Meaning:
    """What two arrays are compared as.

    Args:
        prediction: of the extent of the label.
        label: its values are looked at where channels and dtypes do not settle it.
        options: what is said besides.
        box: what is scored: values elsewhere do not matter.

    Raises:
        RefusedError: it is not clear, or contradicts what is said; names the options.
        VolumeError: a prediction of ours is not finished, or of a form that is not known.
        RunError: a chunk is damaged.
    """
    notes, of_label = prediction_notes(prediction), prediction_notes(label)
    if notes is not None:
        return _of_ours(prediction, label, options, notes, box)
    if of_label is not None:
        found = f"{label.shown} is a prediction, {prediction.shown} is none"
        raise RefusedError(LABEL, found, "give the prediction first, then its label")
    values = Values(prediction, label, options, box)
    kind = options.kind or _kind_of(values)
    _refuse_idle(options, kind)
    return _MEANINGS[kind](values)


def _of_ours(
    prediction: Volume, label: Volume, options: ArrayOptions, notes: dict[str, object], box: Box
) -> Meaning:
    """By the encoding that stands next to a prediction."""
    if notes.get("complete") is False:
        found = f"{prediction.shown} is not finished"
        raise VolumeError(PREDICTION, found, "run infer again")
    encoding = notes["encoding"]
    assert isinstance(encoding, dict), "as prediction_notes says"
    target = writer_of(encoding, prediction)
    kind = target.kind_name
    if options.kind not in (None, kind):
        found = f"{options.kind}, but the prediction says that it is {kind}"
        raise RefusedError("--kind", found, "leave it out")
    for option, given in (
        ("--classes", options.classes),
        ("--predicted-foreground", options.predicted_foreground),
        ("--axial", options.is_axial),
    ):
        if given:
            raise RefusedError(option, f"the prediction says what it is: {kind}", "leave it out")
    target = _with_label_keys(target, options)
    read = label
    if (of_label := prediction_notes(label)) is not None:
        read = PredictedLabel.of(label, of_label, target, None)
    elif kind == "binary" and options.foreground is None:
        _require_mask(label, options, box)
    said = f"comparing as {kind}, as the prediction says"
    return Meaning(said, target, label=read, class_names=target.class_names)


def _require_mask(label: Volume, options: ArrayOptions, box: Box) -> None:
    """Refuse a label of several values for a mask: one of them may mean that nothing is known.

    Raises:
        RefusedError: it is none.
    """
    found = distinct(label, box, 8, options.ignored)
    if not found.are_mask:
        remedy = (
            'give --foreground "> 0" if all above 0 are, or --ignore for those that do not count'
        )
        raise RefusedError("--foreground", f"is needed: the label holds {found.shown}", remedy)


def _with_label_keys(target: Target, options: ArrayOptions) -> Target:
    """The same with what is said of the label."""
    if options.foreground is not None:
        _rule("--foreground", options.foreground)
    update = {"ignore_label": _ignore(options), "foreground": options.foreground}
    try:
        return type(target).model_validate(target.model_dump(by_alias=True) | update)
    except ValueError as error:  # what is left that can be wrong
        found = f"a label of kind {target.kind_name} is no mask"
        raise RefusedError("--foreground", found, "leave it out") from error


@dataclass(frozen=True)
class Values:
    """Two plain arrays, and which values they hold."""

    prediction: Volume
    label: Volume
    options: ArrayOptions
    box: Box

    def of_label(self, most: int) -> Distinct:
        """The values of the label that count, as for `distinct`."""
        return distinct(self.label, self.box, most, self.options.ignored)

    def of_prediction(self, most: int) -> Distinct:
        """The values of the prediction, as for `distinct`."""
        return distinct(self.prediction, self.box, most)


def _kind_of(values: Values) -> str:
    """The kind that channels, dtypes and values leave.

    Raises:
        RefusedError: they leave several.
    """
    prediction, label, options = values.prediction, values.label, values.options
    if prediction.channels != label.channels:
        if label.channels == 1:
            return "multiclass"
        found = f"the prediction has {prediction.channels} channels, the label {label.channels}"
        raise RefusedError("--kind", found, "choose channels with --set channels=[...]")
    if label.channels == 3:
        raise _several("both have three channels", "normals", "vector", "regression")
    if label.channels > 1:
        raise _several(f"both have {label.channels} channels", "regression")
    if options.foreground or options.predicted_foreground:
        return "binary"
    if options.classes:
        return "multiclass"
    return _kind_of_values(values)


def _kind_of_values(values: Values) -> str:
    """The same of arrays of one channel, of which nothing is said."""
    truth = values.of_label(MOST_CLASSES)
    if truth.has_fractions:
        _refuse_mask_of_fractions(values)
        return "regression"
    if values.prediction.dtype.kind == "f":
        found = values.of_prediction(1)
        if truth.are_mask and (found.has_fractions or found.are_mask):
            return "binary"
        kinds = ("regression", "multiclass", "instances")
        raise _several(f"the label holds {truth.shown}, the prediction {found.shown}", *kinds)
    if truth.are_many and values.prediction.dtype.kind != "b":
        return "instances"
    found = values.of_prediction(2)
    if truth.are_mask and found.are_mask:
        return "binary"
    what = f"the label holds {truth.shown}, the prediction {found.shown}"
    if values.prediction.dtype.kind == "b":
        remedy = 'say which values of the label are foreground, as in --foreground "== 1"'
        raise RefusedError("--foreground", f"is needed: {what}", remedy)
    raise _several(what, *(("binary",) if truth.are_mask else ()), "multiclass", "instances")


def _refuse_mask_of_fractions(values: Values) -> None:
    """Refuse a mask as the prediction of fractions: most likely that is the label.

    Raises:
        RefusedError: it is one.
    """
    if values.prediction.dtype.kind != "f" and (found := values.of_prediction(2)).are_mask:
        what = f"the label holds fractions, the prediction {found.shown}"
        remedy = "give the prediction first, then its label; or --kind regression"
        raise RefusedError("--kind", f"is needed: {what}", remedy)


_MEANT = {
    "binary": "a probability in integer codes against a mask",
    "multiclass": "classes",
    "instances": "ids of instances",
    "regression": "numbers",
    "normals": "unit vectors",
    "vector": "vectors of a length that means something",
}


def _several(found: str, *kinds: str) -> RefusedError:
    """The error about arrays that several kinds fit."""
    meant = ", or ".join(f"--kind {kind} ({_MEANT[kind]})" for kind in kinds)
    remedy = f"give {meant}; name values that do not count with --ignore"
    return RefusedError("--kind", f"is needed: {found}", remedy)


def _refuse_idle(options: ArrayOptions, kind: str) -> None:
    """Refuse what is said and has no effect.

    Raises:
        RefusedError: naming the option.
    """
    for option, given, of in (
        ("--foreground", options.foreground, "binary"),
        ("--predicted-foreground", options.predicted_foreground, "binary"),
        ("--classes", options.classes, "multiclass"),
        ("--axial", options.is_axial, "normals"),
    ):
        if given and kind != of:
            raise RefusedError(option, f"has no effect for kind {kind}", "leave it out")


def _binary(values: Values) -> Meaning:
    options, prediction = values.options, values.prediction
    _require_channels(values, 1, 1)
    target = _with_label_keys(BinaryTarget(), options)
    of_label = f"foreground is {options.foreground or '> 0'} in the label"
    start = f"comparing as binary: {of_label},"
    if options.predicted_foreground:
        rule = _rule("--predicted-foreground", options.predicted_foreground)
        return Meaning(f"{start} {rule} in the prediction", target, MaskOf(rule))
    if prediction.dtype.kind == "f":
        said = f"{start} probability above 0.5 in the prediction (else --predicted-foreground)"
        return Meaning(said, target, ProbabilityOf(prediction.location))
    most = 1 if prediction.dtype.kind == "b" else int(np.iinfo(prediction.dtype).max)
    found = values.of_prediction(2)
    if found.are_mask:
        above = max(found.values, default=0)
        if above in (0, 1, most):
            said = f"{start} > 0 in the prediction (else --predicted-foreground)"
            return Meaning(said, target, MaskOf(ForegroundRule(">", (0.0,))))
    elif prediction.dtype in (np.uint8, np.uint16):
        said = f"{start} codes 0 to {most} are probabilities 0 to 1 (else --predicted-foreground)"
        return Meaning(said, target)
    remedy = 'say with --predicted-foreground, as in "> 0", which values are foreground'
    raise RefusedError(
        "--predicted-foreground", f"is needed: the prediction holds {found.shown}", remedy
    )


def _multiclass(values: Values) -> Meaning:
    options, channels = values.options, values.prediction.channels
    if channels > 1:
        return _class_probabilities(values)
    _require_channels(values, 1, 1)
    classes, how = options.classes, "as --classes says"
    if not classes:
        found = values.of_label(MOST_CLASSES), values.of_prediction(MOST_CLASSES)
        for name, one in zip((LABEL, PREDICTION), found, strict=True):
            if one.are_many or one.has_fractions:
                remedy = "name the classes with --classes, or give another --kind"
                raise RefusedError(name, f"holds {one.shown}", remedy)
        numbers = sorted({0, *(int(v) for one in found for v in one.values)})
        classes = tuple((number, str(number)) for number in numbers)
        how = "the values of both (else --classes)"
    numbers = [number for number, _ in classes]
    if len(numbers) < 2:
        found = f"there is no class but {numbers}"
        raise RefusedError("--classes", found, "check both arrays, or name the classes")
    block = {"channels": len(numbers), "label_values": numbers, "ignore_label": _ignore(options)}
    target = MulticlassTarget.model_validate(block)
    shown = ", ".join(str(n) if str(n) == name else f"{n} {name}" for n, name in classes)
    names = tuple(name for _, name in classes[1:])
    said = f"comparing as multiclass: {shown}, {how}"
    return Meaning(said, target, ClassOf(target, values.prediction.location), class_names=names)


def _class_probabilities(values: Values) -> Meaning:
    options, channels = values.options, values.prediction.channels
    _require_channels(values, channels, 1)
    classes = options.classes or tuple((n, str(n)) for n in range(channels))
    if len(classes) != channels:
        found = f"names {len(classes)} classes, the prediction has {channels} channels"
        raise RefusedError("--classes", found, "name one for each channel, background first")
    block = {
        "channels": channels,
        "label_values": [number for number, _ in classes],
        "output": "probabilities",
        "ignore_label": _ignore(options),
    }
    target = MulticlassTarget.model_validate(block)
    what, decode = _class_channels(values)
    said = f"comparing as multiclass: {channels} channels of {what} (else --kind)"
    names = tuple(name for _, name in classes[1:])
    return Meaning(said, target, decode, class_names=names)


def _class_channels(values: Values) -> tuple[str, Decode | None]:
    """What the channels of a prediction of classes hold, in words; and how they are read.

    Raises:
        RefusedError: whole numbers that are no codes of probabilities.
    """
    dtype = values.prediction.dtype
    if dtype.kind == "f":
        return "probabilities", ProbabilityOf(values.prediction.location, SOFTMAX)
    found = values.of_prediction(2)
    if found.are_mask and max(found.values, default=0) in (0, 1):
        return "masks", MaskOf(ForegroundRule(">", (0.0,)))
    if dtype in (np.uint8, np.uint16):
        return "probabilities", None
    what = f"{dtype} with {found.shown}, which are no codes of probabilities"
    raise RefusedError(PREDICTION, what, "convert it to floats in [0, 1], or to uint8 codes")


def _instances(values: Values) -> Meaning:
    _require_channels(values, 1, 1)
    return Meaning("comparing as instances: each value but 0 is one (else --kind)")


def _regression(values: Values) -> Meaning:
    channels = values.label.channels
    _require_channels(values, channels, channels)
    block = {"channels": channels, "ignore_label": _ignore(values.options)}
    target = RegressionTarget.model_validate(block)
    said = "comparing as regression: numbers as they are stored (else --kind)"
    return Meaning(said, target, NumbersOf(target))


def _normals(values: Values) -> Meaning:
    _require_channels(values, 3, 3)
    orientation = "axial" if values.options.is_axial else "oriented"
    block = {"orientation": orientation, "ignore_label": _ignore(values.options)}
    target = NormalsTarget.model_validate(block)
    for name, one in ((PREDICTION, values.prediction), (LABEL, values.label)):
        try:
            target.encoding(one.dtype)
        except KeyError as error:
            found = f"{one.shown} is of {one.dtype}, which normals have no codes in"
            raise RefusedError(name, found, "convert it to floats") from error
    how = "n and -n are the same" if values.options.is_axial else "with a sign (else --axial)"
    return Meaning(f"comparing as normals, {how}", target)


def _vector(values: Values) -> Meaning:
    _require_channels(values, 3, 3)
    target = VectorTarget.model_validate({"ignore_label": _ignore(values.options)})
    return Meaning("comparing as vector: lengths count (else --kind)", target, NumbersOf(target))


_MEANINGS: dict[str, Callable[[Values], Meaning]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "instances": _instances,
    "regression": _regression,
    "normals": _normals,
    "vector": _vector,
}


def _require_channels(values: Values, predicted: int, labelled: int) -> None:
    """Refuse arrays of other channels.

    Raises:
        VolumeError: naming the array.
    """
    for name, one, wanted in (
        (PREDICTION, values.prediction, predicted),
        (LABEL, values.label, labelled),
    ):
        if one.channels != wanted:
            found = f"{one.shown} has {one.channels} channels, expected {wanted}"
            raise VolumeError(name, found, "choose another --kind, or channels")


def _ignore(options: ArrayOptions) -> list[int] | None:
    return list(options.ignored) or None


def _rule(option: str, text: str) -> ForegroundRule:
    try:
        return ForegroundRule.parse(text)
    except FaultError as error:
        raise RefusedError(option, error.found, error.remedy) from error
