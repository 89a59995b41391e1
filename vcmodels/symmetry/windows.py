"""Which windows of the training volumes are compared with their mirror images, and where they lie."""

from collections.abc import Iterator, Sequence
from itertools import chain, product, zip_longest

import numpy as np

from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.symmetries import have_equal_spacing
from vcmodels.symmetry.trial import FEWEST

MOST_WINDOWS = 64
"""More would take more seconds."""
ENOUGH_WINDOWS = 32
"""Fewer large ones are given up for more small ones, unless they are of `FEWEST` volumes: then one in
each is worth more than several in some, for its place means something."""
SIDES = (96, 72, 54, 40, 30, 22, 16)
"""Longest sides of a window in voxels, tried in turn."""
MOST_TRIED = 400
"""Patches that are looked at for windows, in a volume."""

WindowPlace = tuple[int, Box]
"""Number of a volume, and a window in it."""


def choose_windows(
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    regions: Sequence[Box | None],
    patch: Shape,
    seed: int,
) -> list[WindowPlace]:
    """Windows inside training patches that share no voxel, of all volumes about alike.

    A window is as long along axes that may be exchanged, so that every lawful turn keeps its shape.

    Args:
        volumes: of the task.
        rows: (n, 4) training patches: volume number, z, y, x.
        regions: per volume, what may be read.
        patch: shape of a patch, (z, y, x).
        seed: of the choice.

    Returns:
        At most `MOST_WINDOWS`, sorted; the fewer, the less voxels there are.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    numbers = rng.permutation(np.unique(rows[:, 0]))[:MOST_WINDOWS]
    origins = {int(n): rng.permutation(rows[rows[:, 0] == n, 1:])[:MOST_TRIED] for n in numbers}
    quota = -(-MOST_WINDOWS // max(len(origins), 1))
    found: list[WindowPlace] = []
    for side in SIDES:
        tried: list[list[WindowPlace]] = []
        for n, patches in origins.items():
            region = regions[n]
            assert region is not None, "a training patch in a volume that does not train"
            window = window_shape(region, patch, volumes[n].spacing, side)
            boxes = _apart(patches, patch, window, region, quota, rng)
            tried.append([(n, box) for box in boxes])
        # In turn, so that what is too many is left out of all volumes alike.
        turns = chain.from_iterable(zip_longest(*tried))
        if len(places := [place for place in turns if place is not None]) > len(found):
            found = places
        if len(found) >= ENOUGH_WINDOWS or len(origins) >= FEWEST:
            break
    return sorted(found[:MOST_WINDOWS])


def window_shape(region: Box, patch: Shape, spacing: Spacing, longest: int) -> Shape:
    """As much as patch and region hold, as long along all axes of one spacing."""
    sides = [min(p, r, longest) for p, r in zip(patch, region.shape, strict=True)]
    return triple(
        min(sides[other] for other in range(3) if have_equal_spacing(spacing, axis, other))
        for axis in range(3)
    )


def _apart(
    origins: np.ndarray,
    patch: Shape,
    window: Shape,
    region: Box,
    most: int,
    rng: np.random.Generator,
) -> list[Box]:
    """Windows in some patches, none of which meets another."""
    taken: list[Box] = []
    for origin in origins:
        inside = Box(triple(int(o) for o in origin), patch).intersect(region)
        for box in _tiles(inside, window, rng):
            if not any(box.intersect(other).voxels for other in taken):
                taken.append(box)
            if len(taken) == most:
                return taken
    return taken


def _tiles(box: Box, window: Shape, rng: np.random.Generator) -> Iterator[Box]:
    """As many windows side by side as a box holds, somewhere in it."""
    counts = [n // w for n, w in zip(box.shape, window, strict=True)]
    slack = [n - c * w for n, c, w in zip(box.shape, counts, window, strict=True)]
    first = [o + int(rng.integers(s + 1)) for o, s in zip(box.origin, slack, strict=True)]
    for index in product(*map(range, counts)):
        yield Box(triple(f + i * w for f, i, w in zip(first, index, window, strict=True)), window)
