"""How fast a worker predicts and what it waits for: shown beside the bar, and told for each unit."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Advance, Record

Waiting = Literal["reader", "device", "writer"]
WAITED: tuple[Waiting, ...] = ("reader", "device", "writer")
MOST_SILENT_S = 60.0
"""A unit may take hours: after so long it is told how far it is."""

T = TypeVar("T")


class Meter:
    """Counts what one worker does.

    Args:
        advance: moves the bar.
        tell: given a record when a unit ends, once a minute before that, and at a stop.
        worker: which of several this is; None for the only one.
    """

    def __init__(
        self,
        advance: Advance,
        tell: Callable[[Record], None] = lambda _record: None,
        worker: str | None = None,
    ) -> None:
        self.tell, self.worker = tell, worker
        self._advance = advance
        self._begun = self._told = time.perf_counter()
        self._counted = {"patches": 0.0, "voxels": 0.0, **dict.fromkeys(WAITED, 0.0)}
        self._before = dict(self._counted)

    @property
    def patches(self) -> int:
        """How many were predicted."""
        return int(self._counted["patches"])

    @contextmanager
    def waiting(self, name: Waiting) -> Iterator[None]:
        """Count the time that the context takes as waited for the reader, device or writer."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._counted[name] += time.perf_counter() - begun

    def timed(self, patches: Iterable[T]) -> Iterator[T]:
        """The same, with the time counted that the reader takes for each."""
        iterator = iter(patches)
        while True:
            with self.waiting("reader"):
                try:
                    patch = next(iterator)
                except StopIteration:
                    return
            yield patch

    def predicted(self) -> None:
        """Count a patch."""
        self._counted["patches"] += 1

    def final(self, voxels: int) -> None:
        """Count voxels of the output that no later patch changes."""
        self._counted["voxels"] += voxels

    def advance(self, patches: int, unit: Box) -> None:
        """Move the bar, and tell how far the unit is if nothing was told for long."""
        now = time.perf_counter()
        seconds = max(now - self._begun, 1e-9)
        self._advance(patches, _text({k: v / seconds for k, v in self._counted.items()}))
        if now - self._told > MOST_SILENT_S:
            self.record(unit, is_finished=False)

    def record(self, unit: Box, *, is_finished: bool) -> None:
        """Tell what was done since the last record; docs/inference.md explains the keys."""
        now = time.perf_counter()
        seconds = max(now - self._told, 1e-9)
        counted = {name: value - self._before[name] for name, value in self._counted.items()}
        self._told, self._before = now, dict(self._counted)
        self.tell(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "worker": self.worker,
                "unit": [list(pair) for pair in zip(unit.origin, unit.end, strict=True)],
                "finished": is_finished,
                "patches": int(counted["patches"]),
                "seconds": round(seconds, 6),
                "patches_per_s": round(counted["patches"] / seconds, 3),
                "voxels_per_s": round(counted["voxels"] / seconds),
                **{f"{name}_share": round(counted[name] / seconds, 4) for name in WAITED},
                "memory_bytes": resident_bytes(),
            }
        )


def _text(rates: dict[str, float]) -> str:
    waits = ", ".join(f"{name} {rates[name]:.0%}" for name in WAITED)
    return (
        f"{rates['patches']:.1f} patches/s, {rates['voxels'] / 1e6:.3g} Mvoxels/s, waits: {waits}"
    )


def resident_bytes() -> int:
    """Memory of this process that is in use now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory that this process has had."""
    with suppress(OSError, StopIteration):  # not Linux; there `ru_maxrss` counts the parent's too
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
