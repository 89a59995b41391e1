"""Objects whose voxels point to one place.

Each voxel of the mask points to the centre of its object and votes for the voxel there. Centres are
where many votes are close together; a voxel belongs to the centre that it points to. In the manner of
the offsets of spatial embeddings (Neven et al. 2019, CVPR, arXiv:1906.11109).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, PROBABILITIES, Form, Role, Step
from vcmodels.postprocess.lengths import in_micrometers, require_package
from vcmodels.postprocess.numbering import numbered
from vcmodels.postprocess.pieces import Decided, EqualMarks, PieceMeasure, Pieces
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.sizing import SizeKeys, VoxelCount
from vcmodels.postprocess.tuning import THRESHOLDS, Tuned, number
from vcmodels.postprocess.voxels import FieldFill
from vcmodels.section import Fraction
from vcmodels.volumes import Volume


class FollowStep(SizeKeys, Step):
    """Voxels that point to one place become one object."""

    name: Literal["follow"] = "follow"
    """Voxels that point to one place become one object."""
    threshold: Fraction | Tuned | None = None
    """A voxel belongs to the mask from this probability on; 0.5 when left out."""
    reach: Annotated[int, Field(ge=1, le=128)] = 32
    """Voxels that point farther than this along an axis, in voxels, belong to nothing."""
    votes: VoxelCount = 8
    """A voxel is of a centre when at least so many voxels point to it or its 26 neighbours."""

    roles: ClassVar[Mapping[str, Role]] = {
        "flow": Role(frozenset({"vector"})),
        "mask": Role(PROBABILITIES),
    }
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"threshold": THRESHOLDS}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse a missing package, and sizes in no unit."""
        del sources, spacing
        require_package("cc3d", self.name)
        require_package("fastremap", self.name)
        self.check_units(unit)

    def run(self, site: Site) -> None:
        """In five passes: votes, centres, their numbers, objects, and their ids."""
        ways = Ways(
            site.source("flow"), site.source("mask"), site.box, site.spacing,
            number(self.threshold, 0.5), self.reach,
        )  # fmt: skip
        votes, _ = site.keep("votes", np.dtype(np.uint32), _Votes(ways))
        centres = EqualMarks(Crowds(votes, site.box, self.votes), 26)
        found = site.measure("find-centres", PieceMeasure(centres, site.box))

        def number_centres() -> BlockPart:
            pieces = Pieces.join(found, 26)
            return pieces.tables(np.arange(pieces.count + 1, dtype=np.uint64))

        field = Decided.of(centres, site.once("centres", number_centres), found)
        seeds, _ = site.keep("seeds", np.dtype(np.uint64), FieldFill(field, IDS_FORM))
        objects = EqualMarks(Followed(ways, seeds), None)
        measured = site.measure("objects", PieceMeasure(objects, site.box))
        spacing_um = in_micrometers(site.spacing, site.unit)

        def number_objects() -> BlockPart:
            pieces = Pieces.join(measured, None)
            kept = self.kept(pieces.voxels, pieces.firsts, spacing_um)[pieces.objects]
            ids = numbered(np.where(kept, pieces.objects, 0), pieces.measures["firsts"])
            return {"values": ids, "offsets": pieces.offsets}

        field = Decided.of(objects, site.once("ids", number_objects), measured)
        site.write("write", FieldFill(field, IDS_FORM))


@dataclass(frozen=True)
class Ways:
    """Where the voxels of a mask point to."""

    flow: Source
    mask: Source
    within: Box
    spacing: Spacing
    threshold: float
    reach: int

    def ends(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """The voxels of a box, inside of `within`, that point to a voxel of the volume.

        Returns:
            (Z, Y, X) bool, which do; (3, n) int64, the numbers along (z, y, x) of the voxels that
            these point to.
        """
        nowhere = np.zeros(box.shape, bool), np.empty((3, 0), np.int64)
        if self.mask.is_empty(box):
            return nowhere
        points = self.mask.read(box, self.within)[0] >= np.float32(self.threshold)
        if not points.any():
            return nowhere
        way = self.flow.read(box, self.within)
        if self.flow.encoding.get("units", "physical") == "physical":
            way = way / np.array(self.spacing, np.float32).reshape(3, 1, 1, 1)
        way = np.rint(way)
        points &= (np.abs(way) <= self.reach).all(axis=0)  # false for NaN
        at = np.stack(np.nonzero(points)).astype(np.int64)
        ends = way[:, points].astype(np.int64) + at + np.array(box.origin)[:, None]
        low, high = (np.array(c)[:, None] for c in (self.within.origin, self.within.end))
        inside = ((ends >= low) & (ends < high)).all(axis=0)
        points[tuple(at[:, ~inside])] = False
        return points, ends[:, inside]

    def around(self, box: Box) -> Box:
        """A box with all voxels that may point into it, or that it may point to."""
        return box.grow((self.reach,) * 3).intersect(self.within)


@dataclass(frozen=True)
class _Votes:
    """How many voxels point to each."""

    ways: Ways

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        _, ends = self.ways.ends(self.ways.around(box))
        return _counts(ends, box), {}


def _counts(ends: np.ndarray, box: Box) -> np.ndarray:
    """(Z, Y, X) uint32: how often each voxel of a box is named."""
    local = ends - np.array(box.origin)[:, None]
    inside = ((local >= 0) & (local < np.array(box.shape)[:, None])).all(axis=0)
    flat = np.ravel_multi_index(tuple(local[:, inside]), box.shape)
    return np.bincount(flat, minlength=box.voxels).reshape(box.shape).astype(np.uint32)


@dataclass(frozen=True)
class Crowds:
    """Where at least so many voxels point to a voxel or its neighbours, as a `Field`."""

    votes: Volume
    within: Box
    least: int

    def __call__(self, block: Box) -> np.ndarray:
        around = block.with_layer()
        inside = around.intersect(self.within)
        votes = self.votes.read(inside.grow((1, 1, 1)), self.within, "zero")[0]
        for axis in range(3):
            votes = _of_three(votes, axis)
        crowds = np.zeros(around.shape, np.uint8)
        crowds[inside.slices(around)] = votes >= self.least
        return crowds


def _of_three(values: np.ndarray, axis: int) -> np.ndarray:
    """The sums of a voxel and its two neighbours along an axis, which then is 2 shorter."""
    count = values.shape[axis] - 2
    first, middle, last = (values.take(range(by, by + count), axis) for by in range(3))
    return first + middle + last


@dataclass(frozen=True)
class Followed:
    """The centre that each voxel points to, as a `Field`; 0 where there is none."""

    ways: Ways
    seeds: Volume

    def __call__(self, block: Box) -> np.ndarray:
        around = block.with_layer()
        inside = around.intersect(self.ways.within)
        points, ends = self.ways.ends(inside)
        found = np.zeros(around.shape, np.uint64)
        if ends.size:
            reached = self.ways.around(inside)
            seeds = self.seeds.read(reached)[0]
            values = np.zeros(inside.shape, np.uint64)
            values[points] = seeds[tuple(ends - np.array(reached.origin)[:, None])]
            found[inside.slices(around)] = values
        return found
