"""Touching objects, each from one seed or one deep place, by a watershed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.errors import FaultError, TaskError
from vcmodels.fields.forest import by_depth, by_seeds, cut
from vcmodels.fields.watershed import SEED
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, PROBABILITIES, Form, Role, Step
from vcmodels.postprocess.basins import Basins, basin_edges, find_basins, merged_edges
from vcmodels.postprocess.landscape import UNIT, Above, Boundaries, Depths, OneChannel, Terrain
from vcmodels.postprocess.lengths import least_size, refuse_both, require_length
from vcmodels.postprocess.numbering import numbered
from vcmodels.postprocess.site import Site, Source, Tables
from vcmodels.postprocess.sizing import PositiveNumber, VoxelCount
from vcmodels.postprocess.tuning import Tuned

Depth = Annotated[float, Field(gt=0, le=3)]
Reach = Annotated[float, Field(ge=1, le=64)]
Smoothing = Annotated[int, Field(ge=0, le=8)]
DEPTHS = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
"""What is tried for a depth that is "tuned"."""


class WatershedStep(Step):
    """Touching objects are parted where the boundary between them is.

    The boundary is parted into basins, of which noise makes one for each 30 to 100 voxels and a
    smooth boundary few. One process joins them in one go, which cannot be stopped in between: about 1
    GB of memory and a minute for each million. The number is said before, and what the machine cannot
    hold is refused; a larger `smooth` gives fewer basins, and so does a mask.
    """

    name: Literal["watershed"] = "watershed"
    """Touching objects are parted where the boundary between them is."""
    threshold: float | None = None
    """Of the boundary: the inside is below this probability, 0.5 when left out. Of a distance without
    a mask: objects are at this distance and more, 0 when left out, in the unit of the spacing."""
    depth: Depth | Tuned = 0.25
    """Without seeds: two parts are one object unless the passage between them is so much higher than
    the middle of both. The height is the probability of a boundary, from 0 to 1, minus the distance
    to the boundary in shares of `reach`."""
    reach: Reach = 8.0
    """Distances to the boundary count up to this, in the shortest side of a voxel."""
    smooth: Smoothing = 1
    """How often the boundary is smoothed before, by (1, 2, 1) / 4 along each axis."""
    seed_threshold: float | None = None
    """With seeds: a seed is what is connected by faces from this value on; 0.5 when left out."""
    min_size: VoxelCount | None = None
    """Smaller objects are removed; in voxels."""
    min_size_um3: PositiveNumber | None = None
    """Smaller objects are removed; in cubic micrometers."""

    roles: ClassVar[Mapping[str, Role]] = {
        "boundary": Role(PROBABILITIES | {"distance"}),
        "seeds": Role(PROBABILITIES, is_optional=True),
        "mask": Role(PROBABILITIES, is_optional=True),
    }

    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"depth": DEPTHS}

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        refuse_both("min_size", self.min_size, self.min_size_um3)
        if self.seed_threshold is not None and "seeds" not in self.sources:
            found = "seed_threshold is of use with seeds only"
            raise FaultError(found, 'leave it out, or name seeds in "from"')
        return self

    def idle_keys(self) -> Mapping[str, str]:
        """What seeds make of no effect."""
        of_seeds = {"depth": "objects come from seeds"} if "seeds" in self.sources else {}
        return {**super().idle_keys(), **of_seeds}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse a size in micrometers without a unit, and a threshold that cannot have its effect."""
        del spacing
        if self.min_size_um3 is not None:
            require_length("min_size_um3", unit)
        is_distance = sources["boundary"].kind == "distance"
        if not is_distance:
            _require_probability("threshold", self.threshold)
        _require_probability("seed_threshold", self.seed_threshold)
        if self.threshold is not None and is_distance and "mask" in sources:
            raise TaskError("threshold", "the mask says where objects are", "leave it out")

    def run(self, site: Site) -> None:
        """In five passes: those of `find_basins`, the edges between basins, the ids."""
        assert self.depth != "tuned", "a number stands there by now"
        basins, depth = find_basins(site, self._landscape(site)), steps_of(self.depth)
        edges = basin_edges(site, basins)
        least = least_size(self.min_size, self.min_size_um3, site.spacing, site.unit)
        has_seeds = "seeds" in self.sources

        def part() -> BlockPart:
            lowest = basins.tables["lowest"]
            forest = merged_edges(edges).forest(len(lowest) - 1)
            joins = by_seeds if has_seeds else by_depth(depth)
            trees = cut(forest, lowest, joins)
            counts = lowest[trees] == SEED if has_seeds else np.ones(len(trees), bool)
            if not counts[1:].any() and has_seeds:
                site.crew.reporter.say(f"note: {self._without_seeds()}")
            objects = np.where(counts, trees, 0)
            return {"ids": object_ids(objects, basins.tables, least)}

        site.write("write", ObjectFill(basins, site.once("objects", part)))

    def _without_seeds(self) -> str:
        name, least = self.sources["seeds"], self._least_seed
        return f'"{self.output}" is empty: nothing of "{name}" reaches the seed_threshold {least:g}'

    @property
    def _least_seed(self) -> float:
        return 0.5 if self.seed_threshold is None else self.seed_threshold

    def _landscape(self, site: Site) -> Terrain:
        boundary, box = site.source("boundary"), site.box
        reach = self.reach * min(site.spacing)
        mask, seeds = site.sources.get("mask"), site.sources.get("seeds")
        where = None if mask is None else Above(OneChannel(mask, box), 0.5)
        if boundary.kind == "distance":
            sign = inside_sign(boundary)
            distance = OneChannel(boundary, box, sign)
            height = Depths(distance, self.smooth, reach)
            where = where or Above(distance, self.threshold or 0.0)
        else:
            threshold = 0.5 if self.threshold is None else self.threshold
            values = OneChannel(boundary, box)
            height = Boundaries(values, threshold, self.smooth, reach, site.spacing)
        if seeds is None:
            return Terrain(height, where)
        return Terrain(height, where, Above(OneChannel(seeds, box), self._least_seed))


def _require_probability(key: str, value: float | None) -> None:
    """Refuse a threshold of probabilities that all of them reach, or none.

    Raises:
        TaskError: it is not above 0, or above 1.
    """
    if value is not None and not 0 < value <= 1:
        found = f"{value:g} is no probability to part by"
        raise TaskError(key, found, "give a number above 0, at most 1")


def steps_of(depth: float) -> int:
    """A depth in whole steps of height."""
    return max(round(depth * UNIT), 1)


def inside_sign(distance: Source) -> int:
    """-1 for distances that are negative inside of objects."""
    is_outward = distance.encoding.get("signed") and distance.encoding["positive"] == "outside"
    return -1 if is_outward else 1


def object_ids(objects: np.ndarray, tables: Tables, least: int) -> np.ndarray:
    """The id of each basin, by the object that it belongs to.

    Args:
        objects: (basins + 1,) int64; 0 is none.
        tables: of the basins.
        least: objects of fewer voxels get 0.

    Returns:
        (basins + 1,) uint64.
    """
    voxels = np.bincount(objects, tables["voxels"], len(objects))
    return numbered(np.where(voxels[objects] < least, 0, objects), tables["firsts"])


@dataclass(frozen=True)
class ObjectFill:
    """Writes the ids of basins."""

    basins: Basins
    tables: Tables
    """`ids` (basins + 1,) uint64."""

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        return self.basins.regions(box, self.tables["ids"]), {}
