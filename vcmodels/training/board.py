"""What a run writes for people: TensorBoard events and `log.jsonl`. Neither may stop a training."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from vcmodels.volumes.files import write_atomic


class Board:
    """Scalars and pictures by optimiser step; the first failure is said, later ones are dropped.

    A full disk raises in the middle of `add_scalar`; losing a curve is no reason to lose the run.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], None]) -> None:
        self.say = say
        self.writer: SummaryWriter | None = None
        # Steps after `step` of an earlier, killed run are hidden: a curve never doubles back.
        self._try(lambda: self._open(folder, step))

    def _open(self, folder: Path, step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.say(f"TensorBoard is off from here on: {error}")
            self.writer = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; values that are not finite are left out."""
        for tag, value in values.items():
            if self.writer is not None and math.isfinite(value):
                writer = self.writer
                self._try(lambda w=writer, t=tag, v=value: w.add_scalar(t, v, step))

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Add pictures, (H, W, 3) float32 in [0, 1]."""
        for tag, picture in pictures.items():
            if self.writer is not None:
                writer = self.writer
                self._try(
                    lambda w=writer, t=tag, p=picture: w.add_image(t, p, step, dataformats="HWC")
                )

    def flush(self) -> None:
        """Bring what was added to disk, so that a viewer beside the run sees it."""
        if self.writer is not None:
            self._try(self.writer.flush)

    def close(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self._try(self.writer.close)


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
    except ValueError:
        return math.inf


def append_json_line(path: Path, values: Mapping[str, object]) -> None:
    """Append one JSON object to a log that other programs may be following."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(values, allow_nan=False) + "\n")
