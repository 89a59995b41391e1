"""A mask of the voxels whose value is high enough, or low enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from vcmodels.errors import FaultError, TaskError
from vcmodels.fields.components import BlockComponents, Connectivity
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import MASK, MASK_FORM, PROBABILITIES, VALUES, Form, Role, Step
from vcmodels.postprocess.lengths import require_package
from vcmodels.postprocess.pieces import Decided, EqualMarks, PieceMeasure, Pieces
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.tuning import THRESHOLDS, Tuned, number
from vcmodels.postprocess.voxels import FieldFill, Marks, MaskRule, stored
from vcmodels.section import Section

OTSU_BINS = 256
"""Between the least and the greatest value, as in scikit-image."""


class Hysteresis(Section):
    """Two thresholds: what reaches the low one counts where it is connected to the high one."""

    high: float
    """Regions count that hold a voxel of at least this value; `below`: with a voxel of any value
    less than `low`."""
    low: float
    """A region is what has at least this value; `below`: what is less than `high`."""
    connectivity: Connectivity = 26
    """Which neighbours are connected: by faces (6), also by edges (18), also by corners (26)."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise FaultError(
                f'"low" is {self.low:g} and "high" {self.high:g}', "give a low one below the high"
            )
        return self


class ThresholdStep(Step):
    """Where values reach a threshold: a mask from a probability, a distance or another number."""

    name: Literal["threshold"] = "threshold"
    """A mask of the voxels whose value reaches a threshold."""
    threshold: float | Literal["otsu"] | Tuned | Hysteresis | None = None
    """A voxel belongs to the mask from this value on: a probability, a distance in the unit of the
    spacing, ...; 0.5 for probabilities when left out. `"otsu"` finds the value that parts all voxels
    best into two groups (Otsu 1979). `{"high": 0.8, "low": 0.4}` keeps the regions from the low value
    on in which a voxel has the high one."""
    below: bool = False
    """The mask is where values are less than the threshold, as in a cell within its boundary."""

    roles: ClassVar[Mapping[str, Role]] = {"values": Role(VALUES)}
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"threshold": THRESHOLDS}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return MASK

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return MASK_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse thresholds that the values of the source cannot have."""
        del spacing, unit
        given = self.threshold
        if isinstance(given, Hysteresis):
            require_package("cc3d", self.name)
            check_threshold("threshold.high", given.high, sources["values"])
            check_threshold("threshold.low", given.low, sources["values"])
        elif given != "otsu":
            check_threshold("threshold", given, sources["values"])

    def run(self, site: Site) -> None:
        """In one pass; Otsu takes two more before it, hysteresis one."""
        source, given = site.source("values"), self.threshold
        if isinstance(given, Hysteresis):
            self._grow(site, given)
            return
        value = otsu(site, source) if given == "otsu" else number(given, 0.5)
        site.write("write", _CutFill(source, site.box, MaskRule(value, self.below)))

    def _grow(self, site: Site, given: Hysteresis) -> None:
        source = site.source("values")
        wide, strict = MaskRule(given.low), MaskRule(given.high)
        if self.below:
            wide, strict = MaskRule(given.high, below=True), MaskRule(given.low, below=True)
        division = EqualMarks(Marks(source, site.box, wide), given.connectivity)
        strong = _Strong(Marks(source, site.box, strict))
        measured = site.measure("regions", PieceMeasure(division, site.box, strong))

        def choose() -> BlockPart:
            pieces = Pieces.join(measured, given.connectivity)
            return pieces.tables(pieces.most(pieces.measures["strong"], 0))

        field = Decided.of(division, site.once("chosen", choose), measured)
        site.write("write", FieldFill(field, MASK_FORM))


def check_threshold(key: str, value: float | Tuned | None, source: Source) -> None:
    """Refuse a threshold that no value of a source can have, and none where there is no default.

    Raises:
        TaskError: of `key`.
    """
    assert value != "tuned", "a number stands there by now"
    if source.kind in PROBABILITIES:
        if value is not None and not 0 <= value <= 1:
            raise TaskError(key, f"{value:g} is no probability", "give a number from 0 to 1")
    elif value is None:
        found = f'it is missing, and "{source.name}" has no probabilities ({source.kind})'
        raise TaskError(key, found, "give the value at which the mask begins, in its unit")


@dataclass(frozen=True)
class _CutFill:
    source: Source
    within: Box
    cut: MaskRule

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        return stored(self.cut.of(self.source.read(box, self.within)[0]), MASK_FORM), {}


@dataclass(frozen=True)
class _Strong:
    """Which pieces hold a voxel of the strict mask: (n,) uint8."""

    strict: Marks

    def __call__(self, block: Box, pieces: BlockComponents, _: np.ndarray) -> BlockPart:
        strong = np.zeros(pieces.count + 1, np.uint8)
        strong[pieces.ids[self.strict(block) != 0]] = 1
        return {"strong": strong[1:]}


def otsu(site: Site, source: Source) -> float:
    """The value at which a mask of the upper group begins; finite values count.

    That of `skimage.filters.threshold_otsu` on all values, which is the last one of the lower group.
    Of values that are all the same, none is in the upper group.
    """
    ends = site.measure("range", _Range(source, site.box))
    found = [part["ends"] for _, part in ends.parts() if part["ends"].size]
    if not found:
        return np.inf
    low, high = min(e[0] for e in found), max(e[1] for e in found)
    if low == high:
        return _after(low)
    counted = site.measure("histogram", _Histogram(source, site.box, float(low), float(high)))
    counts = sum((part["counts"] for _, part in counted.parts()), np.zeros(OTSU_BINS, np.int64))
    edges = np.histogram_bin_edges(np.zeros(0, np.float32), OTSU_BINS, (float(low), float(high)))
    from skimage.filters import threshold_otsu  # late: slow to import

    return _after(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))


def _after(value: float) -> float:
    """The next value of float32."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


@dataclass(frozen=True)
class _Range:
    """The least and the greatest finite value of a block: (2,) float32; (0,) of none."""

    source: Source
    within: Box

    def __call__(self, box: Box) -> BlockPart:
        values = _finite(self.source.read(box, self.within))
        ends = [values.min(), values.max()] if values.size else []
        return {"ends": np.array(ends, np.float32)}


@dataclass(frozen=True)
class _Histogram:
    source: Source
    within: Box
    low: float
    high: float

    def __call__(self, box: Box) -> BlockPart:
        values = _finite(self.source.read(box, self.within))
        return {"counts": np.histogram(values, OTSU_BINS, (self.low, self.high))[0]}


def _finite(values: np.ndarray) -> np.ndarray:
    """(n,) float32."""
    values = values.astype(np.float32, copy=False).ravel()
    return values[np.isfinite(values)]
