"""Many tables that are made one, a few at a time."""

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import TypeVar

Table = TypeVar("Table", bound=Sized)

FEW = 1 << 20
"""So many rows may always wait."""


def merged_in_turn(
    nothing: Table, several: Iterable[Table], together: Callable[[Sequence[Table]], Table]
) -> Table:
    """Several tables as one; held are the rows of the result so far, and as many more at most.

    Args:
        nothing: a table without rows.
        several: read one by one.
        together: makes one of some; the same however they are grouped.
    """
    held, waiting = nothing, list[Table]()
    for one in several:
        waiting.append(one)
        if sum(map(len, waiting)) > max(len(held), FEW):
            held, waiting = together([held, *waiting]), []
    return together([held, *waiting])
