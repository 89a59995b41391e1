"""The block `dataset_config.prepare`: the one grid and the one scale that all volumes are brought to.

What it asks of the training volumes is asked of every input of a prediction, so the block stands in
the checkpoint, with all that was found out filled in: `Prepare.is_settled`.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vcmodels.errors import FaultError
from vcmodels.geometry.affine import opposite_codes
from vcmodels.geometry.boxes import Box, triple
from vcmodels.section import PatchShape, Section

AXIS_PAIRS = ("LR", "PA", "IS")
Codes = Annotated[str, Field(pattern="^[LRPAIS]{3}$")]
Value = Annotated[float, Field(ge=-1e12, le=1e12)]
Side = Annotated[float, Field(gt=0, le=1e12)]
Length = Annotated[float, Field(ge=0, le=1e9)]
Edge = Annotated[int, Field(ge=0, le=2**40)]
Above = Literal["mean"] | Value
"""Voxels above this count; `mean`: above the mean of the volume, which leaves out the air around a
body (Nyul, Udupa and Zhang 2000)."""


def check_codes(codes: str) -> str:
    """Return the letters of three axes, one for each direction of the body.

    Raises:
        FaultError: two name the same direction.
    """
    if any(sum(letter in pair for letter in codes) != 1 for pair in AXIS_PAIRS):
        found = f'"{codes}" does not name left-right, front-back and top-bottom once each'
        raise FaultError(found, 'give a letter of each, as in "RPI"')
    return codes


class Orientation(Section):
    """Which way the axes (x, y, z) run, with the convention named."""

    from_: Annotated[Codes | None, Field(alias="from")] = None
    """Where each axis comes from: the spinal cord toolbox says it so."""
    to: Codes | None = None
    """Where each axis goes to: the codes of nibabel, and of ITK-SNAP."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.from_ is None) == (self.to is None):
            raise FaultError("names no direction, or two", 'give one of "from" and "to"')
        check_codes(self.from_ or self.to or "")
        return self


class Orders(Section):
    """How values between voxels are found, where the grid is another."""

    image: Literal["cubic", "linear", "spline"] = "cubic"
    """Of inputs. `cubic` and `linear` average where voxels get larger; `spline` is the cubic spline
    through all voxels there, too, which goes on past the border with its last value, as in nnU-Net."""
    thick: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """Where one side of a voxel, as it is or else of `spacing`, is more than so many times the
    shortest, values of inputs along that axis are the nearest voxel's; nnU-Net has 3."""
    labels: Literal["nearest", "linear"] = "nearest"
    """Of masks, classes and ids: the `nearest` voxel's, which keeps what is one voxel thin, or the
    value with the largest `linear` share, which has smooth borders. Values and vectors of labels are
    `linear` either way, but for axes."""


class ForegroundBox(Section):
    """`foreground`: the box around all voxels of the first input that are above a value."""

    above: Above | Literal["nonzero"] = "mean"
    """Voxels above this count; `mean` is that of the volume; `nonzero` are those of which a channel is
    not 0, as in nnU-Net."""
    margin: Length = 0
    """What is kept around the box on each side, in the unit of the voxel size."""


class Crop(Section):
    """`crop`: which part of each volume there is; what lies outside is 0 in a result."""

    foreground: ForegroundBox | None = None
    """What the first input shows, found in each volume by itself."""
    box: tuple[tuple[Edge, Edge], tuple[Edge, Edge], tuple[Edge, Edge]] | None = None
    """[[z0, z1], [y0, y1], [x0, x1]] of every volume, in voxels as it is stored."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.foreground is None) == (self.box is None):
            raise FaultError("names no part, or two", "give one of foreground and box")
        if self.box is not None and any(low >= high for low, high in self.box):
            raise FaultError(f"{self.box} is empty along an axis", "give start < end")
        return self

    @property
    def given(self) -> Box | None:
        """`box`."""
        return None if self.box is None else Box.between(*zip(*self.box, strict=True))


class WindowStandard(Section):
    """Values cut at both ends, such as a window of Hounsfield units."""

    method: Literal["window"] = "window"
    """Cut values at `low` and `high`."""
    low: Value
    """Lower values become this one."""
    high: Value
    """Higher values become this one."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise FaultError(f"low {self.low:g} is not below high {self.high:g}", "exchange them")
        return self


class ScaleStandard(Section):
    """Values cut at both ends, less a mean, over a deviation: of nnU-Net's `CTNormalization`."""

    method: Literal["scale"] = "scale"
    """Cut values at `low` and `high`, take `mean` away, divide by `sd`."""
    low: Value
    """Lower values become this one first."""
    high: Value
    """Higher values become this one first."""
    mean: Value = 0.0
    """What becomes 0."""
    sd: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """How far from it 1 is."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise FaultError(f"low {self.low:g} is not below high {self.high:g}", "exchange them")
        return self


class ZScoreStandard(Section):
    """Mean 0 and deviation 1 of the voxels that count, in each volume."""

    method: Literal["zscore"] = "zscore"
    """Mean 0 and deviation 1 of the voxels that count."""
    above: Above | Literal["all"] | None = None
    """Voxels above this count; those that are not 0 when null; every voxel of `crop` with `all`."""
    keep_zero: bool = False
    """Voxels that are 0 stay 0, such as what lies around a brain."""


class NyulStandard(Section):
    """One histogram for all volumes: the same value means the same tissue.

    Percentiles of each volume are brought to those that the training volumes have in the mean, and
    values between them by straight lines (Nyul, Udupa and Zhang 2000, IEEE TMI 19(2)).
    """

    method: Literal["nyul"] = "nyul"
    """Bring percentiles to those of the training volumes."""
    above: Above | None = "mean"
    """Voxels above this count; those that are not 0 when null."""
    landmarks: Annotated[list[Value], Field(min_length=11, max_length=11)] | None = None
    """Where the percentiles 1, 10, 20 ... 90, 99 lie, rising; learnt from the training volumes when
    null, on a scale from 0 to 100."""

    @model_validator(mode="after")
    def _check_rising(self) -> Self:
        marks = self.landmarks or [0.0, 1.0]
        if any(a >= b for a, b in itertools.pairwise(marks)):
            raise FaultError("landmarks do not rise", "leave them out: they are learnt")
        return self


Standard = Annotated[
    WindowStandard | ScaleStandard | ZScoreStandard | NyulStandard, Field(discriminator="method")
]


class Prepare(Section):
    """`prepare`: what is done to every volume before anything else, and undone on results."""

    orientation: Codes | Orientation | None = None
    """Turn volumes so that the axes (x, y, z) run this way. A text such as "RPI" says where they come
    *from*, as the spinal cord toolbox does; {"to": "LAS"} says the same by where they go to, as
    nibabel does. As stored when null."""
    spacing: Literal["median"] | tuple[Side | None, Side | None, Side | None] | None = None
    """Voxel size along (z, y, x) after turning, in the unit of the volumes (mm of NIfTI and DICOM);
    `median` is that of the training volumes. As it is when null, or along an axis that has null."""
    order: Orders = Orders()
    """How values between voxels are found."""
    crop: Crop | None = None
    """Which part of each volume there is; all of it when null."""
    standardize: Standard | Annotated[list[Standard | None], Field(min_length=1)] | None = None
    """How values of inputs become comparable before `normalization`: for all channels, or a list with
    one for each (null leaves a channel as it is)."""
    standardize_first: bool = False
    """Do that before voxels are interpolated, not after, as nnU-Net does."""
    least: PatchShape | None = None
    """A volume that is shorter along (z, y, x) once all is done gets zeros on both sides, as in nnU-Net;
    none when null."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if isinstance(self.orientation, str):
            check_codes(self.orientation)
        if not any((self.orientation, self.spacing, self.crop, self.standardize, self.least)):
            remedy = "give orientation, spacing, crop, standardize or least, or null"
            raise FaultError("asks for nothing", remedy)
        return self

    def idle_keys(self) -> Mapping[str, str]:
        return {} if self.spacing else {"order": "spacing is not given: voxels only move"}

    @property
    def codes(self) -> str | None:
        """Where (x, y, z) point to, in the codes of `geometry.affine.axis_codes`."""
        wanted = self.orientation
        if isinstance(wanted, Orientation) and wanted.to:
            return wanted.to
        comes_from = wanted.from_ if isinstance(wanted, Orientation) else wanted
        return opposite_codes(comes_from) if comes_from else None

    @property
    def sides(self) -> tuple[float | None, float | None, float | None] | None:
        """`spacing`, in numbers."""
        assert self.spacing != "median", "not settled yet"
        return self.spacing and triple(self.spacing)

    def standards(self, channels: int) -> list[Standard | None]:
        """What is done to each of so many channels.

        Raises:
            FaultError: the list is for another number.
        """
        given = self.standardize
        if not isinstance(given, list):
            return [given] * channels
        if len(given) != channels:
            found = f"is a list of {len(given)}, and there are {channels} channels"
            raise FaultError(found, "give one for each, or one for all")
        return list(given)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left that the training volumes must tell."""
        marks = [one for one in _listed(self.standardize) if isinstance(one, NyulStandard)]
        return self.spacing != "median" and all(one.landmarks is not None for one in marks)

    def contradiction(self, settled: "Prepare") -> str | None:
        """The key that says something else here than in a settled block; what is open says nothing."""
        if self.codes != settled.codes:
            return "orientation"
        if self.spacing not in ("median", settled.spacing):
            return "spacing"
        if not _agree(self.standardize, settled.standardize):
            return "standardize"
        same = ("crop", "order", "standardize_first", "least")
        return next((k for k in same if getattr(self, k) != getattr(settled, k)), None)


AS_IT_IS = Prepare.model_construct()
"""Asks for nothing, as no task may: for volumes of which only a region is taken."""


def _listed(given: Standard | list[Standard | None] | None) -> Sequence[Standard | None]:
    return given if isinstance(given, list) else [given]


def _agree(
    given: Standard | list[Standard | None] | None,
    settled: Standard | list[Standard | None] | None,
) -> bool:
    """Whether what is given says nothing else than what was settled, but for landmarks it leaves open."""
    theirs = _listed(settled)
    own = given if isinstance(given, list) else [given] * len(theirs)
    return len(own) == len(theirs) and all(
        mine.changed(landmarks=their.landmarks) == their
        if isinstance(mine, NyulStandard)
        and isinstance(their, NyulStandard)
        and mine.landmarks is None
        else mine == their
        for mine, their in zip(own, theirs, strict=True)
    )
