"""Scores of the connected components of masks and classes, as objects.

The components of the predicted and of the labelled region are joined across blocks, so that the
figures are those of the volume as a whole, whatever the blocks.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vcmodels.fields.components import BlockComponents, ComponentJoin, Connectivity
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockMetric, BlockPart, Curve, FigureValues, Pair, Sense
from vcmodels.metrics.instances import OBJECT_SENSES, Overlaps, object_figures, precision_curve

_PREFIX = "component_"


def named(name: str, arrays: Mapping[str, np.ndarray], mark: str = ".") -> BlockPart:
    """Arrays as a part of a `BlockPart`: `<name>.<key>`; those of named parts with another mark."""
    return {f"{name}{mark}{key}": array for key, array in arrays.items()}


def by_name(part: BlockPart, mark: str = ".") -> dict[str, BlockPart]:
    """What `named` put into a part, by name; the rest under ""."""
    found: dict[str, BlockPart] = defaultdict(dict)
    for key, array in part.items():
        name, _, own = key.rpartition(mark)
        found[name][own] = array
    return found


@dataclass(frozen=True)
class Components(BlockMetric):
    """Scores of the components of masks, or of each class but the background."""

    connectivity: Connectivity = 26
    """Which neighbours are one component: by faces (6), edges (18) or corners (26)."""
    ignore_background: bool = True
    """Whether voxels that are labelled background are left out of VOI and Rand."""

    @property
    def better(self) -> Mapping[str, Sense]:
        return {_PREFIX + name: sense for name, sense in OBJECT_SENSES.items()}

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        regions, part = pair.regions(block.with_layer()), BlockPart()
        valid = np.broadcast_to(pair.read(block)[2], (len(regions[0]), *block.shape))
        for k, (predicted, labelled, counts) in enumerate(zip(*regions, valid, strict=True)):
            p, t = (BlockComponents.of(mask, self.connectivity) for mask in (predicted, labelled))
            part |= named(f"predicted{k}", p.pack()) | named(f"labelled{k}", t.pack())
            part |= named(f"overlaps{k}", Overlaps.of(p.own, t.own, counts).to_part())
        return part

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        joins: dict[str, ComponentJoin] = defaultdict(ComponentJoin)
        tables: dict[str, list[Overlaps]] = defaultdict(list)
        for box, part in parts:
            found = by_name(part)
            for name in [name for name in found if name.startswith("overlaps")]:
                k = name.removeprefix("overlaps")
                p, t = (f"{side}{k}" for side in ("predicted", "labelled"))
                offsets = [joins[side].add(box.origin, box.shape, found[side]) for side in (p, t)]
                tables[k].append(_shifted(Overlaps(**found[name]), *offsets))
        joined = BlockPart()
        for k, rows in tables.items():
            p, t = (joins[f"{side}{k}"].numbers() for side in ("predicted", "labelled"))
            numbered = [Overlaps(p[row.predicted], t[row.labelled], row.voxels) for row in rows]
            joined |= named(k, Overlaps.added(numbered).to_part())
        return joined

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        each = [
            object_figures(table, ignore_background=self.ignore_background)
            for table in _tables(joined)
        ]
        return {_PREFIX + name: [of[name] for of in each] for name in OBJECT_SENSES}

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        tables = _tables(joined)
        places = [""] if len(tables) == 1 else [f", {k}" for k in range(1, len(tables) + 1)]
        title = "Average precision of components"
        return {
            title + place: precision_curve(table)
            for place, table in zip(places, tables, strict=True)
        }


def _shifted(table: Overlaps, predicted: int, labelled: int) -> Overlaps:
    """A table whose ids but 0 are those of a `ComponentJoin`."""
    p, t = (ids.astype(np.int64) for ids in (table.predicted, table.labelled))
    return Overlaps(np.where(p, p + predicted, 0), np.where(t, t + labelled, 0), table.voxels)


def _tables(joined: BlockPart) -> list[Overlaps]:
    found = by_name(joined)
    return [Overlaps(**found[k]) for k in sorted(found, key=int)]
