"""TensorBoard events: curves, pictures, the task as text, and a row in the table of runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

Parameters = Mapping[str, bool | int | float | str]


class EventWriter:
    """TensorBoard events."""

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        task: Mapping[str, Any],
        parameters: Parameters,
        metrics: Sequence[str],
    ) -> None:
        """Begin a file of events.

        Args:
            folder: which may hold those of earlier, killed sessions of the run.
            step: the steps done; what these wrote after it is hidden: a curve never doubles back.
            task: shown as text.
            parameters: for the table of runs, under "HParams".
            metrics: the curves whose last values stand beside them.
        """
        self.last = step
        self.events = SummaryWriter(str(folder), purge_step=step + 1)
        # At the step that comes next: a session that starts here again hides these, too.
        text = json.dumps(task, indent=2, ensure_ascii=False)
        self.events.add_text("task", f"```json\n{text}\n```", step + 1)
        experiment, start, self.end = hparams(dict(parameters), dict.fromkeys(metrics, 0.0))
        for summary in (experiment, start):
            self._add(summary, step + 1)

    def _add(self, summary: object, step: int) -> None:
        assert self.events.file_writer is not None
        self.events.file_writer.add_summary(summary, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.last = step
        for tag, value in values.items():
            self.events.add_scalar(tag, value, step)

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for tag, picture in pictures.items():
            self.events.add_image(tag, picture, step, dataformats="HWC")

    def flush(self) -> None:
        self.events.flush()

    def close(self, *, is_failed: bool) -> None:
        if not is_failed:
            self._add(self.end, self.last + 1)
        self.events.close()
