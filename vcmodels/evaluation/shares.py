"""What one voxel of each stored pair adds to sums over voxels: measured once, looked up by all blocks."""

from collections.abc import Callable, Sequence

import torch

from vcmodels.metrics.base import Sums

StoredPair = tuple[int, int]
"""The code of a prediction, and the value of its label."""


class PairShares:
    """The shares of all pairs that were met so far.

    Threads may use it together: what one of them finds may be lost to another, and is found again.
    """

    def __init__(self) -> None:
        """With nothing known."""
        self._known: tuple[dict[StoredPair, int], Sums] = {}, {}

    def of(self, pairs: Sequence[StoredPair], share: Callable[[int], Sums]) -> Sums:
        """The shares of n different pairs, one or more: (n, ...) of each sum.

        Args:
            pairs: what is stored.
            share: measures one voxel of the pair of a number; asked about what is not known.
        """
        places, sums = self._known
        missing = [number for number, pair in enumerate(pairs) if pair not in places]
        if missing:
            found = stacked([share(number) for number in missing])
            sums = {key: torch.cat([sums[key], v]) if sums else v for key, v in found.items()}
            added = {pairs[number]: len(places) + at for at, number in enumerate(missing)}
            places = {**places, **added}
            self._known = places, sums  # at once, so that places and sums belong together
        rows = torch.tensor([places[pair] for pair in pairs])
        return {key: values[rows] for key, values in sums.items()}


def stacked(sums: Sequence[Sums]) -> Sums:
    """Several sums of the same names, at least one, along a new first axis."""
    return {key: torch.stack([one[key] for one in sums]) for key in sums[0]}
