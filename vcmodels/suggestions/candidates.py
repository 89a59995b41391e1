"""Boxes that could be labelled: stored, of one size, and without a label yet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.targets.stored import ForegroundRule, known
from vcmodels.volumes import Volume

MOST_LOOKS = 50
"""Places that are looked at for each candidate that is wanted, before a volume is given up."""


@dataclass(frozen=True)
class Ground:
    """A volume in which boxes may be suggested."""

    name: str
    inputs: tuple[Volume, ...]
    region: Box
    """Where they may lie."""
    volume: TaskVolume | None = None
    """Its labels; None for a volume that has none."""

    def is_labelled(self, box: Box) -> bool:
        """Whether anything in a box has a label; what is around the region has none.

        The label that `ref_label` names decides, where it is not 0 and not ignored: the same rule by
        which patches are found. Without one, all of a label counts that is stored.
        """
        volume, inside = self.volume, box.intersect(self.region)
        if volume is None or not inside.voxels:
            return False
        if volume.ref is None:
            return any(label.is_stored(inside) for label in volume.own_labels)
        return _says_something(volume.ref, inside, volume.ref_ignored, volume.ref_foreground)


def _says_something(
    label: Volume, box: Box, ignored: Sequence[int], foreground: ForegroundRule | None
) -> bool:
    if not label.is_stored(box):
        return False
    stored = label.read(box)
    says = known(stored, ignored) & (stored != 0)
    return bool((says & foreground.of(stored) if foreground is not None else says).any())


def candidates(
    ground: Ground, size: Shape, most: int, gap: Shape, rng: np.random.Generator
) -> list[Box]:
    """Boxes of one size that are stored, inside the region, and nowhere near a label.

    They lie on a lattice of their size, so that no two overlap; of a larger volume as many are drawn
    as are wanted, each place as likely as any other. Lattices of 10^9 places take no memory.

    Args:
        ground: the volume.
        size: of a box, in voxels; cut where the region is shorter.
        most: how many are wanted.
        gap: voxels around a box that have to be without a label, too.
        rng: draws the places.

    Returns:
        At most `most` boxes, in no order.
    """
    shape = triple(min(n, s) for n, s in zip(ground.region.shape, size, strict=True))
    counts = [n // s for n, s in zip(ground.region.shape, shape, strict=True)]
    spare = [n - c * s for n, c, s in zip(ground.region.shape, counts, shape, strict=True)]
    start = [o + rest // 2 for o, rest in zip(ground.region.origin, spare, strict=True)]
    found: list[Box] = []
    for place in _places(prod(counts), most * MOST_LOOKS, rng):
        at = np.unravel_index(place, counts)
        origin = triple(o + int(n) * s for o, n, s in zip(start, at, shape, strict=True))
        box = Box(origin, shape)
        if ground.inputs[0].is_stored(box) and not ground.is_labelled(box.grow(gap)):
            found.append(box)
            if len(found) == most:
                break
    return found


def _places(count: int, most: int, rng: np.random.Generator) -> Iterator[int]:
    """Numbers below `count` in random order, each once: all, or `most` of very many."""
    if count <= most:
        yield from map(int, rng.permutation(count))
        return
    seen: set[int] = set()
    while len(seen) < most:
        place = int(rng.integers(count))
        if place not in seen:
            seen.add(place)
            yield place
