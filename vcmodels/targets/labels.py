"""Reading stored labels: which voxels count, and errors that name value and place."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from vcmodels.targets.base import Target


class LabelError(ValueError):
    """A stored value that the kind cannot have.

    Args:
        value: as stored.
        place: its (z, y, x) in the array that was read; the caller adds that array's origin.
        remedy: what the kind expects and what to do.
    """

    def __init__(self, value: float | int, place: tuple[int, int, int], remedy: str) -> None:
        self.value, self.place, self.remedy = value, place, remedy
        super().__init__(f"value {value} at (z, y, x) = {place}; {remedy}")

    def __reduce__(self) -> tuple[type, tuple[float | int, tuple[int, int, int], str]]:
        """Pickle by the three parts: a data worker raises this in its own process."""
        return type(self), (self.value, self.place, self.remedy)


def refuse_first(bad: np.ndarray, stored: np.ndarray, remedy: str) -> NoReturn:
    """Raise LabelError for the first true voxel of `bad` (1, Z, Y, X), in (z, y, x) order."""
    _, z, y, x = (int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
    raise LabelError(stored[0, z, y, x].item(), (z, y, x), remedy)


def countable(stored: np.ndarray, target: Target) -> np.ndarray:
    """Voxels that are `known` and, with `loss_only_on_label`, not zero.

    Args:
        stored: (S, Z, Y, X), the dtype on disk.
        target: its `ignore_label` and `loss_only_on_label` are honoured.

    Returns:
        (1, Z, Y, X) bool.
    """
    valid = known(stored, target.ignored)
    if target.loss_only_on_label:
        valid &= any_channel(stored != 0)
    return valid


def known(stored: np.ndarray, ignored: Sequence[int]) -> np.ndarray:
    """Voxels that are finite and not ignored: (S, Z, Y, X) -> (1, Z, Y, X) bool.

    A voxel of several channels is ignored when all of them hold the ignored value.
    """
    if stored.dtype.kind == "f":
        valid = ~any_channel(~np.isfinite(stored))
    else:
        valid = np.ones((1, *stored.shape[1:]), bool)
    for value in ignored:
        valid &= any_channel(stored != value)
    return valid


def any_channel(mask: np.ndarray) -> np.ndarray:
    """Where any channel is true: (S, Z, Y, X) bool -> (1, Z, Y, X) bool."""
    return mask if len(mask) == 1 else np.logical_or.reduce(mask, axis=0, keepdims=True)
