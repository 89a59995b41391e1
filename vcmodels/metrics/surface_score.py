"""The score of the competition "Vesuvius Challenge - Surface Detection" (Kaggle, 2025-26), closely.

The score is 0.30 TopoScore + 0.35 surface Dice + 0.35 VOI score, as the README of the host's package
"Topological Metrics for 3D Instance Segmentation of Surfaces" (topometrics) defines it:

- Surface Dice at a tolerance of 2 voxels, by areas of surface elements as `surface-distance` has
  them (`metrics.surface`, elements "surfels"): exact here.
- VOI score: 1 / (1 + 0.3 VOI), VOI in bits, of the 26-connected components of both masks over the
  voxels that are in one of them, where the rest of the other is one more object: exact here.
- TopoScore: the volume is cut into eight octants, as equal as can be. In each, voxels are connected
  by faces. For dimension 0, 1 and 2 the features of the prediction (p), of the label (g) and the
  matched ones (m) are counted and added over the octants: pieces but one (in an octant that has
  some), tunnels, and cavities. F_k is 2m / (p + g), and 0.5 / (p + 0.5) where g is 0. The score is
  the mean of F_0, F_1 and F_2 with weights 0.34, 0.33 and 0.33, over the dimensions that have a
  feature; 1 where none has.

p and g are exact here. The host's m is that of Betti matching (Stucki et al. 2023, arXiv:2211.15272,
as in Betti-Matching-3D), which for masks counts the features that persist together in the union of
both masks; where several could be matched it goes by the order in which the voxels are stored.
Here m does not depend on an order. In dimension 0 and 2 it is the number of independent features of
the union that come from both masks, the least that any order gives: pieces of the union that hold
both, but one; and groups of cavities of both that are joined by shared voxels. In dimension 1 it is
the most that any order can give, the least number of tunnels among prediction, label and union: a
tunnel that both have in different places is taken for matched, if the union has one. So
`surface_topology` is no TopoScore, and may lie above or below it; the other terms are the host's.

An octant is the same whatever the blocks, and so are all figures. Where both masks are empty they
are NaN, as elsewhere (the host says 1).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import nan

import numpy as np

from vcmodels.geometry.boxes import Box, triple
from vcmodels.metrics.base import BlockMetric, BlockPart, FigureValues, Pair, Sense
from vcmodels.metrics.components import Components, by_name, named
from vcmodels.metrics.instances import Overlaps, variation_of_information
from vcmodels.metrics.overlap import ratio
from vcmodels.metrics.surface import SurfaceMetric
from vcmodels.metrics.topology import BlockTopology, TopologyJoin

TOLERANCE = 2.0
"""Of the surface Dice, in voxels."""
WEIGHTS = {"topology": 0.30, "dice": 0.35, "voi": 0.35}
_DIMENSIONS = np.array([0.34, 0.33, 0.33])
_VOI_SLOPE = 0.3
_ROOM = "/"
"""Between what a term of the score keeps, which has names of its own, and whose it is."""


def octants(box: Box) -> list[Box]:
    """The eight parts of a box; the first half of an odd axis is the longer one."""
    middle = [start + (n + 1) // 2 for start, n in zip(box.origin, box.shape, strict=True)]
    halves = (
        ((start, cut), (cut, end))
        for start, cut, end in zip(box.origin, middle, box.end, strict=True)
    )
    return [
        Box.between([a for a, _ in corner], [b for _, b in corner]) for corner in product(*halves)
    ]


def measure_octants(
    scored: Box, block: Box, predicted: np.ndarray, labelled: np.ndarray
) -> Iterator[tuple[int, BlockPart]]:
    """What a block keeps of each octant that it touches, by the number of the octant.

    Args:
        scored: what is cut into octants.
        block: a part of it.
        predicted: (Z + 2, Y + 2, X + 2) bool: a mask in the block and one voxel around it.
        labelled: of the same shape.
    """
    around = block.grow((1, 1, 1))
    for number, octant in enumerate(octants(scored)):
        inside = block.intersect(octant)
        if inside.voxels:
            window = inside.grow((1, 1, 1))
            p, t = (_cropped(mask, around, window, octant) for mask in (predicted, labelled))
            yield number, _measure_octant(inside, octant, p, t)


def _cropped(mask: np.ndarray, around: Box, window: Box, octant: Box) -> np.ndarray:
    """A mask over a window, false out of the octant."""
    cropped = np.zeros(window.shape, bool)
    kept = window.intersect(octant)
    cropped[kept.slices(window)] = mask[kept.slices(around)]
    return cropped


def _measure_octant(
    block: Box, octant: Box, predicted: np.ndarray, labelled: np.ndarray
) -> BlockPart:
    masks = {"predicted": predicted, "labelled": labelled, "union": predicted | labelled}
    found = {name: BlockTopology.of(mask, block, octant, 6) for name, mask in masks.items()}
    part = {key: array for name, one in found.items() for key, array in one.pack(name).items()}
    union, core = found["union"].pieces.own, (slice(1, -1),) * 3
    holes, others = (found[name].holes.own for name in ("predicted", "labelled"))
    shared = Overlaps.of(holes, others, np.ones(block.shape, bool))
    both = (shared.predicted != 0) & (shared.labelled != 0)
    rest = {
        "place": np.array([block.origin, block.shape], np.int64),
        "predicted": np.unique(union[predicted[core]]).astype(np.int64),
        "labelled": np.unique(union[labelled[core]]).astype(np.int64),
        "holes": np.stack([shared.predicted[both], shared.labelled[both]]).astype(np.int64),
    }
    return part | named("shared", rest)


class OctantJoin:
    """Joins the blocks of one octant."""

    def __init__(self) -> None:
        self._topology = {name: TopologyJoin() for name in ("predicted", "labelled", "union")}
        self._held: dict[str, list[np.ndarray]] = defaultdict(list)
        self._holes: list[np.ndarray] = []

    def add(self, part: BlockPart) -> None:
        """Take in a block, from `measure_octants`."""
        found = by_name(part)
        shared = found["shared"]
        origin, shape = shared["place"].tolist()
        box = Box(triple(origin), triple(shape))
        offsets = {name: join.add(box, found, name) for name, join in self._topology.items()}
        for name in ("predicted", "labelled"):
            self._held[name].append(shared[name] + offsets["union"][0])
        columns = [[offsets["predicted"][1]], [offsets["labelled"][1]]]
        self._holes.append(shared["holes"] + np.array(columns))

    def counts(self) -> np.ndarray:
        """(3, 3) int64: for each dimension the matched, the predicted and the labelled features."""
        betti = {name: np.array(join.betti()) for name, join in self._topology.items()}
        features = {name: numbers - [numbers[0] > 0, 0, 0] for name, numbers in betti.items()}
        matched = [self._common_pieces(), min(n[1] for n in betti.values()), self._common_holes()]
        return np.stack([matched, features["predicted"], features["labelled"]], axis=1)

    def _common_pieces(self) -> int:
        """Pieces of the union that hold something of both, but one."""
        numbers = self._topology["union"].pieces.numbers()
        held = (set(numbers[np.concatenate(ids)].tolist()) for ids in self._held.values())
        return max(len(set.intersection(*held)) - 1, 0)

    def _common_holes(self) -> int:
        """Groups of cavities of both masks that overlap; none of a group may lead outside."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        nodes, count = list[np.ndarray](), 1  # The outside is node 0 for both.
        for row, name in zip(
            np.concatenate(self._holes, axis=1), ("predicted", "labelled"), strict=True
        ):
            join = self._topology[name]
            numbers = join.holes.numbers()
            outside = np.isin(numbers[row], join.outside(numbers))
            nodes.append(np.where(outside, 0, numbers[row] + count - 1))
            count += int(numbers.max())
        links = coo_array((np.ones(len(nodes[0]), np.int8), tuple(nodes)), (count, count))
        groups = connected_components(links, directed=False)[1]
        return len(np.unique(groups[nodes[0]])) - bool(np.any(groups[nodes[0]] == groups[0]))


def topology_score(counts: np.ndarray) -> float:
    """The mean of the F of the dimensions that have features.

    Args:
        counts: (3, 3): for each dimension matched, predicted and labelled features.
    """
    active = counts[:, 1:].any(axis=1)
    if not active.any():
        return 1.0
    scores = [ratio(2 * m, p + g) if g else 0.5 / (p + 0.5) for m, p, g in counts[active].tolist()]
    return float(np.average(scores, weights=_DIMENSIONS[active]))


def voi_score(table: Overlaps) -> float:
    """1 / (1 + 0.3 VOI) over the voxels of either mask; NaN where there are none.

    Args:
        table: of the components of the prediction and of the label.
    """
    either = (table.predicted != 0) | (table.labelled != 0)
    kept = Overlaps(*(a[either] for a in (table.predicted, table.labelled, table.voxels)))
    return 1 / (1 + _VOI_SLOPE * sum(variation_of_information(kept)))


@dataclass(frozen=True)
class SurfaceScore(BlockMetric):
    """The score and its three terms, of masks or of each class but the background.

    A voxel that is no cube counts as one whose edges are its longest in the tolerance of two voxels.
    """

    @property
    def better(self) -> Mapping[str, Sense]:
        return dict.fromkeys(
            ["surface_score", *(f"surface_score_{term}" for term in WEIGHTS)], "max"
        )

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        part = {"edge": np.array(max(pair.spacing))}
        for k, masks in enumerate(zip(*pair.regions(block.grow((1, 1, 1))), strict=True)):
            for number, found in measure_octants(pair.box, block, *masks):
                part |= named(f"{k} {number}", found, _ROOM)
        part |= named("components", self._components.measure(pair, block), _ROOM)
        return part | named("surface", self._surface(0.0).measure(pair, block), _ROOM)

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        """All parts as one; three metrics look at them, so that they are held in memory."""
        found = [(box, by_name(part, _ROOM)) for box, part in parts]
        octants: dict[int, dict[int, OctantJoin]] = defaultdict(lambda: defaultdict(OctantJoin))
        for _, rooms in found:
            for room in rooms.keys() - {"", "components", "surface"}:
                k, number = map(int, room.split())
                octants[k][number].add(rooms[room])
        joined = {"edge": found[0][1][""]["edge"]}
        for room, metric in (("components", self._components), ("surface", self._surface(0.0))):
            whole = metric.join((box, rooms[room]) for box, rooms in found)
            joined |= named(room, whole, _ROOM)
        none = np.zeros((3, 3), np.int64)
        masks = len(by_name(by_name(joined, _ROOM)["components"]))
        counts = [sum((one.counts() for one in octants[k].values()), none) for k in range(masks)]
        return joined | {"topology": np.array(counts)}

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        rooms = by_name(joined, _ROOM)
        tables = by_name(rooms["components"])
        surface = self._surface(TOLERANCE * float(joined["edge"])).figures(rooms["surface"])
        terms = {
            "topology": [topology_score(counts) for counts in joined["topology"]],
            "dice": surface["surface_dice"],
            "voi": [voi_score(Overlaps(**tables[k])) for k in sorted(tables, key=int)],
        }
        scores = np.sum(
            [weight * np.array(terms[term]) for term, weight in WEIGHTS.items()], axis=0
        )
        known = np.where(np.isnan(scores), nan, 1.0)
        values = {"surface_score": scores} | {
            f"surface_score_{t}": np.array(v) for t, v in terms.items()
        }
        return {name: (value * known).tolist() for name, value in values.items()}

    @property
    def _components(self) -> Components:
        return Components(compares=self.compares, ignore_background=False)

    def _surface(self, tolerance: float) -> SurfaceMetric:
        return SurfaceMetric(compares=self.compares, tolerances=(tolerance,), elements="surfels")
