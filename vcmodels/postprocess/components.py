"""Connected components of what lies above a threshold, as ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vcmodels.fields.components import BlockComponents, ComponentJoin, Connectivity
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, PROBABILITIES, Form, Role, Step
from vcmodels.postprocess.numbering import first_voxels, numbered
from vcmodels.postprocess.site import Site, Source, Tables
from vcmodels.postprocess.tuning import THRESHOLDS, Tuned
from vcmodels.section import Fraction


class Components(Step):
    """Each connected region of a mask becomes one object."""

    name: Literal["components"] = "components"
    """Each connected region of a mask becomes one object."""
    threshold: Fraction | Tuned = 0.5
    """A voxel belongs to the mask from this value on."""
    connectivity: Connectivity = 26
    """Which neighbours are connected: by faces (6), also by edges (18), also by corners (26)."""

    roles: ClassVar[Mapping[str, Role]] = {"mask": Role(PROBABILITIES)}
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"threshold": THRESHOLDS}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def run(self, site: Site) -> None:
        assert self.threshold != "tuned", "a number stands there by now"
        regions = Regions(site.source("mask"), site.box, self.threshold, self.connectivity)
        measured = site.measure("label", _Label(regions, site.box.shape))

        def join() -> BlockPart:
            join, firsts = ComponentJoin(), [np.zeros(1, np.int64)]
            offsets: list[int] = []
            for box, part in measured.parts():
                offsets.append(join.add(box.origin, box.shape, part))
                firsts.append(part["firsts"])
            ids = numbered(join.numbers(), np.concatenate(firsts))
            return {"ids": ids, "offsets": np.array(offsets, np.int64)}

        tables = site.once("ids", join)
        rows = {box: at for at, box in enumerate(measured.places)}
        site.write("write", _Relabel(regions, tables, rows))


@dataclass(frozen=True)
class Regions:
    """What is labelled: where values reach a threshold."""

    source: Source
    within: Box
    threshold: float
    connectivity: Connectivity

    def components(self, box: Box) -> BlockComponents:
        """Of a block, and of the layer that follows it; the same whenever it is called."""
        around = Box.between(box.origin, [end + 1 for end in box.end])
        if self.source.is_empty(around):
            return BlockComponents(np.zeros(around.shape, np.int32), 0)
        values = self.source.read(around, self.within, "zero")[0]
        return BlockComponents.of(values >= self.threshold, self.connectivity)


@dataclass(frozen=True)
class _Label:
    regions: Regions
    shape: Shape

    def __call__(self, box: Box) -> BlockPart:
        found = self.regions.components(box)
        firsts = first_voxels(found.own, found.count, box, self.regions.within)
        return {**found.pack(), "firsts": firsts}


@dataclass(frozen=True)
class _Relabel:
    regions: Regions
    tables: Tables
    rows: Mapping[Box, int]

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        found, offset = self.regions.components(box), int(self.tables["offsets"][self.rows[box]])
        ids = np.zeros(found.count + 1, np.uint64)
        ids[1:] = self.tables["ids"][offset + 1 : offset + found.count + 1]
        return ids[found.own], {}
