"""What one voxel of each stored pair adds to sums over voxels: measured once, looked up by all blocks."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from vcmodels.metrics.base import Sums

StoredPair = tuple[int, int]
"""The code of a prediction, and the value of its label."""


class PairShares:
    """The shares of all pairs that were met so far.

    Threads may use it together: what one of them finds may be lost to another, and is found again.
    """

    def __init__(self) -> None:
        """With nothing known."""
        self._known: tuple[dict[StoredPair, int], Tensor] = {}, torch.zeros(0)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def sums(
        self, pairs: Sequence[StoredPair], counts: Tensor, share: Callable[[int], Sums]
    ) -> Sums:
        """The sums over each of several slices: (slices, ...) of each name.

        Args:
            pairs: n different ones, one or more.
            counts: (slices, n) int64, how many voxels of each slice are such.
            share: the sums over one voxel of the pair of a number; asked about what is not known.
        """
        rows = counts.double() @ self._rows(pairs, share)
        parts = rows.split([prod(shape) for shape in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in named}

    def _rows(self, pairs: Sequence[StoredPair], share: Callable[[int], Sums]) -> Tensor:
        """The shares of n pairs, those of all sums side by side: (n, values) float64."""
        places, rows = self._known
        at = [places.get(pair, -1) for pair in pairs]
        if -1 in at:
            missing = [number for number, place in enumerate(at) if place < 0]
            found = [share(number) for number in missing]
            self._shapes = {name: tuple(value.shape) for name, value in found[0].items()}
            new = torch.stack([torch.cat([v.flatten() for v in one.values()]) for one in found])
            places = places | {pairs[n]: len(places) + i for i, n in enumerate(missing)}
            rows = torch.cat([rows, new]) if len(rows) else new
            self._known = places, rows  # at once, so that they belong together
            at = [places[pair] for pair in pairs]
        return rows[torch.tensor(at)]
