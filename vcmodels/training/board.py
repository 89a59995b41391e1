"""What a run writes for people: curves and pictures, and `log.jsonl`. None may stop a training."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from vcmodels.volumes.files import write_atomic


class Writer(Protocol):
    """One place where curves and pictures are shown, by optimiser step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve."""
        ...

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Add pictures, (H, W, 3) float32 in [0, 1]."""
        ...

    def flush(self) -> None:
        """Bring what was added to where a viewer beside the run sees it."""
        ...

    def close(self, *, is_failed: bool) -> None:
        """Flush and close."""
        ...


@dataclass(frozen=True)
class Sink:
    """A writer that is still to be opened."""

    name: str
    open: Callable[[], Writer]
    failures: tuple[type[Exception], ...] = (OSError,)
    """What it raises when it cannot go on."""


class Board:
    """Tells everything to all writers; one that fails is said and left out from then on.

    A full disk raises in the middle of `add_scalar`, and a network goes down; losing a curve is no
    reason to lose the run.
    """

    def __init__(self, sinks: Sequence[Sink], say: Callable[[str], None]) -> None:
        self.say = say
        self.writers: dict[Sink, Writer] = {}
        for sink in sinks:
            self._try(sink, lambda s=sink: self.writers.update({s: s.open()}))

    def _try(self, sink: Sink, write: Callable[[], object]) -> None:
        try:
            write()
        except sink.failures as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{sink.name} is off from here on: {reason}")
            self.writers.pop(sink, None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        for sink, writer in list(self.writers.items()):
            self._try(sink, lambda w=writer: w.scalars(finite, step))

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Add pictures, (H, W, 3) float32 in [0, 1]."""
        for sink, writer in list(self.writers.items()):
            self._try(sink, lambda w=writer: w.pictures(pictures, step))

    def flush(self) -> None:
        """Bring what was added to where a viewer beside the run sees it."""
        for sink, writer in list(self.writers.items()):
            self._try(sink, writer.flush)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(is_failed=error is not None)

    def close(self, *, is_failed: bool = False) -> None:
        """Flush and close; a failed training is shown as one where that can be told."""
        for sink, writer in list(self.writers.items()):
            self._try(sink, lambda w=writer: w.close(is_failed=is_failed))


def cut_json_lines(path: Path, step: int) -> None:
    """Drop from a log what a killed run wrote after `step`, which is about to be written again."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        write_atomic(path, "".join(kept).encode())


def _step_of(line: str) -> float:
    """The step of a line; infinite for one that a kill left without its end."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, LookupError):
        return math.inf


def append_json_line(path: Path, values: Mapping[str, object]) -> None:
    """Append one JSON object to a log that other programs may be following."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(values, allow_nan=False) + "\n")
