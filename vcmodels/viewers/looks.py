"""How arrays look in a viewer, by what they hold: both viewers draw from these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vcmodels.geometry.boxes import Shape, triple
from vcmodels.pictures.slices import LABEL_COLOUR, PREDICTION_COLOUR, UNLABELLED_COLOUR, Colour
from vcmodels.targets import (
    AnyTarget,
    DistanceTarget,
    MulticlassTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)
from vcmodels.targets.base import Target
from vcmodels.targets.binary import MaskTarget
from vcmodels.targets.normals import LINEAR_CODES
from vcmodels.volumes import Volume

_UNLABELLED: Colour = triple(UNLABELLED_COLOUR.tolist())


@dataclass(frozen=True)
class Linear:
    """value = stored * scale + offset."""

    scale: float = 1.0
    offset: float = 0.0

    def stored(self, value: float) -> float:
        """What stands for a value."""
        return (value - self.offset) / self.scale


PLAIN = Linear()


@dataclass(frozen=True)
class Image:
    """Grey values, those of one channel at a time."""

    window: tuple[float, float]
    """The stored values that are black and white at first."""


@dataclass(frozen=True)
class Probability:
    """How likely a voxel is foreground: a colour over the image, or a mask above a threshold."""

    code: Linear
    colour: Colour = PREDICTION_COLOUR
    is_logit: bool = False


@dataclass(frozen=True)
class Shares:
    """The probability of each class, a channel each, mixed by their colours."""

    code: Linear
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class Numbers:
    """A number for each voxel, in the colours of a map; around 0 in two colours where it has a sign."""

    code: Linear
    limits: tuple[float, float]
    """The values at the ends of the map at first."""

    @property
    def has_sign(self) -> bool:
        """Whether values lie on both sides of 0."""
        return self.limits[0] < 0 < self.limits[1]


@dataclass(frozen=True)
class Vectors:
    """Directions as colours: the components x, y, z as red, green and blue."""

    code: Linear
    channels: Shape
    """The numbers of the channels that hold z, y and x."""
    is_axial: bool
    """Whether the sign means nothing: a vector and its opposite have one colour."""
    longest: float = 1.0
    """The length that is as bright as can be."""
    zero_codes: tuple[int, ...] = ()
    """What all three components hold where there is no vector."""


@dataclass(frozen=True)
class Ids:
    """Whole numbers, a colour each; 0 is nothing."""

    colours: Mapping[int, Colour] = field(default_factory=dict)
    """Of those that have a colour of their own."""
    other: Colour | None = None
    """Of all others; a colour each when None."""


ArrayLook = Image | Probability | Shares | Numbers | Vectors | Ids


def look_of_prediction(
    target: Target, encoding: Mapping[str, Any], dtype: np.dtype, limits: tuple[float, float]
) -> ArrayLook:
    """How a stored prediction looks.

    Args:
        target: as from `writer_of`.
        encoding: as stored next to it.
        dtype: of the array.
        limits: stored values between which most of it lies; for values that have no range.
    """
    code = _code(encoding)
    if isinstance(target, MulticlassTarget):
        colours = class_colours(target)
        if encoding.get("quantity") == "class":
            return Ids({v: c for v, c in zip(target.values, colours, strict=True) if v})
        return Shares(code, colours)
    if isinstance(target, NormalsTarget | VectorTarget):
        return _vectors(target, code, (0,) if encoding.get("zero_code") == 0 else ())
    if isinstance(target, MaskTarget) and target.channels == 1:
        return Probability(code, is_logit=encoding.get("quantity") == "logit")
    return look_of_values(encoding, dtype, limits)


def look_of_values(
    encoding: Mapping[str, Any], dtype: np.dtype, limits: tuple[float, float]
) -> Numbers:
    """How stored numbers look, over the range of integers, or of what a sample of floats holds."""
    code = _code(encoding)
    if dtype.kind in "ui":
        most = np.iinfo(dtype)
        limits = float(most.min), float(most.max)
    low, high = (code.scale * value + code.offset for value in limits)
    if encoding.get("signed"):
        low, high = -float(encoding["clip"]), float(encoding["clip"])
    return Numbers(code, (low, high))


def look_of_label(target: AnyTarget, array: Volume, limits: tuple[float, float]) -> ArrayLook:
    """How a stored label of a target looks.

    Args:
        target: whose label it is.
        array: the label.
        limits: as for `look_of_prediction`.
    """
    dtype = array.dtype
    if isinstance(target, MulticlassTarget):
        colours = dict(zip(target.values, class_colours(target), strict=True))
        return Ids({v: c for v, c in colours.items() if v} | _ignored(target))
    if isinstance(target, MaskTarget) and dtype.kind in "uib":
        return Ids(_ignored(target), None if target.derive else LABEL_COLOUR)
    if isinstance(target, NormalsTarget | VectorTarget):
        return _label_vectors(target, dtype)
    encoding = getattr(target, "label_encoding", None)
    code = Linear(encoding.scale, encoding.offset) if encoding else PLAIN
    is_bounded = isinstance(target, RegressionTarget) and target.output_range is not None
    if is_bounded or isinstance(target, DistanceTarget):
        return Numbers(code, target.value_range)
    low, high = (code.scale * value + code.offset for value in limits)
    return Numbers(code, (low, high))


def look_of_source(deriving: Sequence[AnyTarget]) -> Ids:
    """How the ids, or the mask, look that targets are derived from."""
    return Ids({value: colour for one in deriving for value, colour in _ignored(one).items()})


def class_colours(target: MulticlassTarget) -> tuple[Colour, ...]:
    """The colours in which all pictures show the classes, in their order; the first is black."""
    each = target.picture(np.eye(target.channels, dtype=np.float32)[:, None])[0]
    return tuple(triple(colour) for colour in each.tolist())


def _ignored(target: Target) -> dict[int, Colour]:
    return dict.fromkeys((value for value in target.ignored if value), _UNLABELLED)


def _code(encoding: Mapping[str, Any]) -> Linear:
    return Linear(float(encoding.get("scale", 1.0)), float(encoding.get("offset", 0.0)))


def _vectors(
    target: NormalsTarget | VectorTarget, code: Linear, zero_codes: tuple[int, ...]
) -> Vectors:
    order = triple(target.vector_order.index(axis) for axis in "zyx")
    if isinstance(target, NormalsTarget):
        return Vectors(code, order, target.glyph == "line", 1.0, zero_codes)
    longest = max(map(abs, target.output_range)) if target.output_range else 1.0
    return Vectors(code, order, False, longest, zero_codes)


def _label_vectors(target: NormalsTarget | VectorTarget, dtype: np.dtype) -> Vectors:
    given = target.label_encoding
    code = (given.scale, given.offset) if given else LINEAR_CODES.get(dtype.name, (1.0, 0.0))
    zero_codes = {*target.ignored} | ({0} if isinstance(target, NormalsTarget) else set())
    if given is not None and given.zero_code is not None:
        zero_codes.add(given.zero_code)
    return _vectors(target, Linear(*code), tuple(sorted(zero_codes)))
