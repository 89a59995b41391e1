"""Objects from affinities: fragments by a watershed, then joined by what is between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.blockwise import Measured
from vcmodels.errors import FaultError, TaskError
from vcmodels.fields.agglomeration import FULL, PairSums, join_by_mean, join_by_mutex, join_small
from vcmodels.fields.forest import by_depth, cut
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.metrics.components import named
from vcmodels.postprocess.base import IDS, IDS_FORM, PROBABILITIES, Form, Role, Step
from vcmodels.postprocess.basins import (
    Basins,
    basin_edges,
    find_basins,
    merged_edges,
    require_memory,
)
from vcmodels.postprocess.landscape import Boundaries, OneChannel, Terrain
from vcmodels.postprocess.lengths import (
    least_size,
    refuse_both,
    require_length,
    require_package,
)
from vcmodels.postprocess.links import Foreground, LinkChannels, NearBoundary, moved
from vcmodels.postprocess.numbering import numbered
from vcmodels.postprocess.site import Site, Source, Tables
from vcmodels.postprocess.tuning import THRESHOLDS, Tuned
from vcmodels.postprocess.watershed import (
    DEPTHS,
    Depth,
    ObjectFill,
    PositiveNumber,
    Reach,
    Smoothing,
    VoxelCount,
    steps_of,
)
from vcmodels.section import Fraction

USUAL = 0.7
"""The threshold that is taken when none is given."""
BYTES_PER_FRAGMENT = 4000
"""What joining fragments holds for each: measured, with seven neighbours each."""


class AgglomerateStep(Step):
    """Fragments are joined to objects by the affinities between them.

    Fragments are made of basins as in `watershed`, with the same memory for each basin. Joining them
    is done in one go as well, and takes about 4 KB of memory for each fragment. What the machine
    cannot hold is refused once the number is known.
    """

    name: Literal["agglomerate"] = "agglomerate"
    """Fragments are joined to objects by the affinities between them."""
    by: Literal["mean", "mutex"] = "mean"
    """How: by the largest mean affinity first (`mean`), or by the strongest opinion first, where long
    offsets may forbid (`mutex`)."""
    threshold: Fraction | Tuned | None = None
    """With `mean`: two objects are joined while the mean affinity between them is at least this; 0.7
    when left out. It is worth tuning: on neurons of FlyEM, 0.6 joined nearly everything."""
    bias: Annotated[float, Field(ge=0, le=2)] | Tuned | None = None
    """With `mutex`: two fragments repel each other by this minus their mean affinity over long
    offsets; 1 when left out. The larger, the more objects."""
    near: Annotated[int, Field(ge=1, le=64)] = 4
    """In voxels: affinities over offsets up to this say what is joined, and where fragments end;
    longer ones can only forbid, with `mutex`."""
    depth: Depth | Tuned = 0.02
    """Two parts are one fragment unless the passage between them is so much higher than the middle of
    both; as for `watershed`."""
    reach: Reach = 8.0
    """Of the fragments: distances to the boundary count up to this, in the shortest side of a voxel."""
    smooth: Smoothing = 1
    """Of the fragments: how often the boundary is smoothed before, by (1, 2, 1) / 4 along each axis."""
    background: Fraction | None = None
    """A voxel of which all affinities over near offsets are below this belongs to nothing."""
    min_size: VoxelCount | None = None
    """Smaller objects are joined to the neighbour of the largest mean affinity; in voxels."""
    min_size_um3: PositiveNumber | None = None
    """Smaller objects are joined to the neighbour of the largest mean affinity; in cubic
    micrometers."""

    roles: ClassVar[Mapping[str, Role]] = {
        "affinities": Role(frozenset({"affinities"})),
        "boundary": Role(PROBABILITIES, is_optional=True),
        "mask": Role(PROBABILITIES, is_optional=True),
    }

    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "threshold": THRESHOLDS,
        "bias": tuple(round(0.1 * n, 1) for n in range(1, 20)),
        "depth": DEPTHS,
    }

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        refuse_both("min_size", self.min_size, self.min_size_um3)
        for key, by in (("threshold", "mean"), ("bias", "mutex")):
            if getattr(self, key) is not None and self.by != by:
                raise FaultError(f'{key} is of use with "by": "{by}" only', "leave it out")
        return self

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse affinities without neighbours, or with nothing to forbid by, and sizes in no unit."""
        del spacing
        if self.min_size_um3 is not None:
            require_length("min_size_um3", unit)
        source = sources["affinities"]
        if "offsets" not in source.encoding:
            found = f'"{source.name}" does not say over which offsets its affinities are'
            raise TaskError("from", found, "name affinities that were written by infer")
        links = LinkChannels(source, source.volume.box, self.near)
        if len(links.axes) < 3:
            found = f'"{source.name}" has no affinity to the next voxel along each axis'
            raise TaskError("from", found, "name one with offsets such as [-1, 0, 0]")
        if self.by == "mutex":
            require_package("mwatershed", self.name)
            if not links.far:
                found = f'"mutex" needs offsets beyond {self.near}, and "{source.name}" has none'
                raise TaskError("by", found, 'choose "mean", or a smaller "near"')

    def run(self, site: Site) -> None:
        """In six passes: those of `find_basins`, edges, sums between fragments, the ids."""
        links = LinkChannels(site.source("affinities"), site.box, self.near)
        basins = find_basins(site, self._landscape(site, links))
        edges = basin_edges(site, basins)
        assert self.depth != "tuned", "a number stands there by now"
        depth = steps_of(self.depth)
        least = least_size(self.min_size, self.min_size_um3, site.spacing, site.unit)
        fragments = site.once("fragments", lambda: _fragments(basins.tables, edges, depth))
        require_memory(
            site, "fragments", len(fragments["voxels"]) - 1, BYTES_PER_FRAGMENT,
            'give a larger "depth", a mask, a smaller bbox, or use a machine with more memory',
        )  # fmt: skip
        channels = {"near": links.short, "far": links.far if self.by == "mutex" else ()}
        sums = site.measure("sums", _Sums(basins, fragments, links, channels))

        def solve() -> BlockPart:
            near, far = (
                PairSums.merged(PairSums(**part) for _, part in sums.parts(f"{which}."))
                for which in ("near", "far")
            )
            objects = self._joined(near, far, fragments["voxels"], least)[fragments["fragments"]]
            return {"ids": numbered(objects, basins.tables["firsts"])}

        site.write("write", ObjectFill(basins, site.once("objects", solve)))

    def _joined(self, near: PairSums, far: PairSums, voxels: np.ndarray, least: int) -> np.ndarray:
        """(fragments + 1,) int64: the object of each fragment."""
        count, threshold, bias = len(voxels) - 1, self.threshold, self.bias
        assert threshold != "tuned", "a number stands there by now"
        assert bias != "tuned", "a number stands there by now"
        if self.by == "mean":
            objects = join_by_mean(near, count, USUAL if threshold is None else threshold)
        else:
            objects = join_by_mutex(near, far, count, 1.0 if bias is None else bias)
        return join_small(near, objects, voxels, least)

    def _landscape(self, site: Site, links: LinkChannels) -> Terrain:
        given, mask = site.sources.get("boundary"), site.sources.get("mask")
        values = NearBoundary(links) if given is None else OneChannel(given, site.box)
        reach = self.reach * min(site.spacing)
        height = Boundaries(values, 0.5, self.smooth, reach, site.spacing)
        if self.background is None and mask is None:
            return Terrain(height)
        inside = None if mask is None else OneChannel(mask, site.box)
        return Terrain(height, Foreground(links, self.background, inside))


def _fragments(basins: Tables, edges: Measured, depth: int) -> BlockPart:
    """Which fragment each basin belongs to, and the sizes of fragments."""
    lowest = basins["lowest"]
    forest = merged_edges(edges).forest(len(lowest) - 1)
    fragments = numbered(cut(forest, lowest, by_depth(depth)), basins["firsts"]).astype(np.int64)
    voxels = np.bincount(fragments, basins["voxels"]).astype(np.int64)
    return {"fragments": fragments, "voxels": voxels}


@dataclass(frozen=True)
class _Sums:
    """The affinities between fragments, of neighbours and of voxels far apart."""

    basins: Basins
    tables: Tables
    """`fragments` (basins + 1,) int64."""
    links: LinkChannels
    channels: Mapping[str, Sequence[int]]
    """By the name that sums are recorded under."""

    def __call__(self, box: Box) -> BlockPart:
        around = box.grow(self.links.reach)
        fragments = self.basins.regions(around, self.tables["fragments"])
        whole = self.links.whole_numbers(box, FULL)
        own, found = fragments[box.slices(around)], BlockPart()
        for which, channels in self.channels.items():
            sums = []
            for channel in channels:
                partner = moved(box, self.links.offsets[channel])
                sums.append(
                    PairSums.between(own, fragments[partner.slices(around)], whole[channel])
                )
            found |= named(which, vars(PairSums.merged(sums)))
        return found
