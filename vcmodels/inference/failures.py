"""Places that could not be predicted: left out and named, while all others are."""

from collections.abc import Callable, Iterable
from typing import Any

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box

MOST_RUNNING = 64
"""Failures without a patch in between that worked: then it is not the places that are at fault."""
NAMED = 5


class PlaceError(RunError):
    """One place of the input cannot be predicted; the rest can."""


class Failures:
    """What could not be predicted and why, each reason told once.

    Args:
        say: told each reason when it is first met.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.blocks: set[Box] = set()
        """Of output, that are not written for it."""
        self.reasons: dict[str, RunError] = {}
        self._running = 0

    def add(self, reason: RunError, blocks: Iterable[Box]) -> None:
        """Note that some blocks are left out.

        Raises:
            RunError: nothing seems to work any more.
        """
        self.blocks.update(blocks)
        if str(reason) in self.reasons:
            return
        self.reasons[str(reason)] = reason
        self.say(f"left out: {reason}")
        self._running += 1
        if self._running >= MOST_RUNNING:
            found = f"{self._running} places failed one after the other, the last: {reason}"
            raise RunError("prediction", found, "mend that; the same command continues")

    def worked(self) -> None:
        """Note that a patch was predicted."""
        self._running = 0

    def merge(self, other: "Failures") -> None:
        """Add what another worker met."""
        for reason in other.reasons.values():
            self.add(reason, other.blocks)
        self._running = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind whom it tells."""
        return self.__dict__ | {"say": _say_nothing}

    def error(self, root: object) -> RunError | None:
        """What to raise at the end; None if nothing failed."""
        if not self.reasons:
            return None
        first = min(self.blocks)
        reasons = " | ".join(list(self.reasons)[:NAMED])
        more = f" | and {len(self.reasons) - NAMED} more" if len(self.reasons) > NAMED else ""
        return RunError(
            str(root),
            f"{len(self.blocks)} blocks of output are not written (the first: {first.shape} voxels "
            f"at {first.origin}); {reasons}{more}",
            "the same command tries them again, and nothing else",
        )


def _say_nothing(_line: str) -> None:
    pass
