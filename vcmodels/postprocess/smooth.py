"""Each voxel becomes what most voxels around it are, or the median of their values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, MASK, VALUES, Form, Role, Step
from vcmodels.postprocess.lengths import in_micrometers
from vcmodels.postprocess.radius import RadiusKeys, ball, offsets_of
from vcmodels.postprocess.site import Site, Source, as_stored
from vcmodels.postprocess.voxels import CLASSES, marked, same_form, stored

GATHERED = 1 << 24
"""Values that are looked at together by the vote, at most."""


class SmoothStep(RadiusKeys, Step):
    """Single voxels and rough faces go: a vote of labels, or the median of values."""

    name: Literal["smooth"] = "smooth"
    """What most voxels around are, or the median of their values."""
    by: Literal["majority", "median"] = "majority"
    """`majority`, of masks, classes and ids: what occurs most often, and of what occurs equally
    often the lowest. `median`, of values: the middle one of all."""
    within: Literal["ball", "box"] = "ball"
    """Which voxels have a say: those whose centres are within the radius, or all up to it along each
    axis. Beyond the border of the volume its last voxels count again."""

    roles: ClassVar[Mapping[str, Role]] = {"values": Role(VALUES | {CLASSES, IDS})}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        return kinds["values"]

    def form(self, sources: Mapping[str, Source]) -> Form:
        source = sources["values"]
        if self.by == "majority":
            return same_form(source)
        return Form(source.kind, source.volume.dtype, source.encoding)

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse a vote of values, and a median of labels."""
        self.check_radius(spacing, unit)
        source = sources["values"]
        votes = source.kind in {MASK, CLASSES, IDS}
        if self.by == "majority" and not votes:
            found = f'"{source.name}" has values, which do not vote ({source.kind})'
            raise TaskError("by", found, 'give "median"')
        if self.by == "median" and source.kind in {CLASSES, IDS}:
            found = f'"{source.name}" has no values with a middle ({source.kind})'
            raise TaskError("by", found, 'give "majority"')

    def run(self, site: Site) -> None:
        """In one pass; of values as they are stored, of which the median is that of the values."""
        form = self.form(site.sources)
        source = site.source("values")
        seen = replace(source, decode=as_stored) if self.by == "median" else marked(source)
        fill = _Smoothing(self, form, seen, site.box, in_micrometers(site.spacing, site.unit))
        site.write("write", fill)

    def footprint(self, spacing_um: Spacing) -> np.ndarray:
        """Which voxels have a say, bool, the voxel itself in the middle."""
        radius, spacing = self.scaled(spacing_um)
        near = ball(radius, spacing)
        return near if self.within == "ball" else np.ones_like(near)

    def of(self, values: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """(Z + 2m, Y + 2m, X + 2m) marks or values -> (Z, Y, X)."""
        if self.by == "median":
            return median(values, footprint)
        return majority(values, footprint)


@dataclass(frozen=True)
class _Smoothing:
    step: SmoothStep
    form: Form
    source: Source
    within: Box
    spacing_um: Spacing

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        around = box.grow(self.step.reach(self.spacing_um))
        values = self.source.read(around, self.within, "edge")[0]
        made = self.step.of(values, self.step.footprint(self.spacing_um))
        return stored(made, self.form) if self.step.by == "majority" else made, {}


def median(values: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The median of the values around each voxel; NaN counts as less than every number.

    Args:
        values: (Z + 2m, Y + 2m, X + 2m), numbers.
        footprint: (2m + 1, 2m + 1, 2m + 1) bool, of an odd number of true voxels.

    Returns:
        (Z, Y, X), of the same dtype.
    """
    from scipy.ndimage import median_filter  # late: slow to import

    inner = tuple(slice(n // 2, -(n // 2) or None) for n in footprint.shape)
    if values.dtype.kind != "f":
        return median_filter(values, footprint=footprint)[inner]
    # SciPy knows no float16, and sorts NaN anywhere.
    numbers = np.nan_to_num(values.astype(np.float32), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    found = median_filter(numbers, footprint=footprint)[inner]
    return np.where(found == -np.inf, np.nan, found).astype(values.dtype)


def majority(marks: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """What occurs most often around each voxel; of what occurs equally often the lowest.

    Args:
        marks: (Z + 2m, Y + 2m, X + 2m), integers.
        footprint: (2m + 1, 2m + 1, 2m + 1) bool.

    Returns:
        (Z, Y, X), of the same dtype.
    """
    shape = tuple(n - f + 1 for n, f in zip(marks.shape, footprint.shape, strict=True))
    windows = [
        marks[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        for offset in offsets_of(footprint)
    ]
    # Most voxels have neighbours of one kind only, and keep what they are.
    mixed = np.zeros(shape, bool)
    for window in windows[1:]:
        mixed |= window != windows[0]
    made, where = windows[0].copy(), np.flatnonzero(mixed)
    count = max(GATHERED // len(windows), 1)
    for start in range(0, len(where), count):
        at = np.unravel_index(where[start : start + count], shape)
        made[at] = _most_frequent(np.stack([window[at] for window in windows], axis=1))
    return made


def _most_frequent(marks: np.ndarray) -> np.ndarray:
    """(n, k) -> (n,): of each row what occurs most often, the lowest of several."""
    marks = np.sort(marks, axis=1)
    places = np.arange(marks.shape[1])
    begins = np.ones(marks.shape, bool)
    begins[:, 1:] = marks[:, 1:] != marks[:, :-1]
    # The length of each run so far: its place less that of its beginning.
    lengths = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.take_along_axis(marks, lengths.argmax(axis=1)[:, None], axis=1)[:, 0]
