"""Sets that are joined two at a time."""

import numpy as np


class Union:
    """Sets of numbers 0 .. `count` that are joined two at a time."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count + 1))

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, number: int) -> int:
        """What stands for the set of a number."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def join(self, kept: int, gone: int) -> None:
        """Join two sets, given by what stands for them; the first goes on standing."""
        self._parent[gone] = kept

    def roots(self) -> np.ndarray:
        """(count + 1,) int64: what stands for the set of each number."""
        return np.array([self.find(number) for number in range(len(self._parent))], np.int64)

    def lowest(self) -> np.ndarray:
        """(count + 1,) int64: the lowest number in the set of each."""
        roots = self.roots()
        low = np.full(len(roots), len(roots), np.int64)
        np.minimum.at(low, roots, np.arange(len(roots)))
        return low[roots]
