"""Where curves and pictures of a run go: `log.jsonl`, TensorBoard, Weights & Biases."""

import importlib
import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vcmodels.config import Task
from vcmodels.config.train_params import WandbConfig
from vcmodels.errors import RefusedError
from vcmodels.runs.run import leaves
from vcmodels.targets import AnyTarget
from vcmodels.training.run_folder import may_change
from vcmodels.volumes.places import read_json, write_atomic, write_json


class CurveWriter(Protocol):
    """One place where curves and pictures are shown, by optimiser step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve."""
        ...

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Add pictures, (H, W, 3) float32 in [0, 1]."""
        ...

    def flush(self) -> None:
        """Bring what was added to where a viewer of the running training sees it."""
        ...

    def close(self, *, is_failed: bool) -> None:
        """Flush and close."""
        ...


@dataclass(frozen=True)
class CurveSink:
    """A writer that is still to be opened."""

    name: str
    open: Callable[[], CurveWriter]
    failures: tuple[type[Exception], ...] = (OSError,)
    """What it raises when it cannot go on."""


class Board:
    """Tells everything to all writers; one that fails is said and left out from then on.

    A full disk raises in the middle of `add_scalar`, and a network goes down; losing a curve is no
    reason to lose the run.
    """

    def __init__(self, sinks: Sequence[CurveSink], say: Callable[[str], None]) -> None:
        self.say = say
        self.writers: dict[CurveSink, CurveWriter] = {}
        for sink in sinks:
            self._try(sink, lambda s=sink: self.writers.update({s: s.open()}))

    def _try(self, sink: CurveSink, write: Callable[[], object]) -> None:
        try:
            write()
        except sink.failures as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{sink.name} is off from here on: {reason}")
            self.writers.pop(sink, None)

    def _each(self, write: Callable[[CurveWriter], object]) -> None:
        for sink, writer in list(self.writers.items()):
            self._try(sink, lambda w=writer: write(w))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        self._each(lambda writer: writer.scalars(finite, step))

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Add pictures, (H, W, 3) float32 in [0, 1]."""
        self._each(lambda writer: writer.pictures(pictures, step))

    def flush(self) -> None:
        """Bring what was added to where a viewer of the running training sees it."""
        self._each(lambda writer: writer.flush())

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(is_failed=error is not None)

    def close(self, *, is_failed: bool = False) -> None:
        """Flush and close; a failed training is shown as one where the place knows of such."""
        self._each(lambda writer: writer.close(is_failed=is_failed))


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


Parameters = Mapping[str, bool | int | float | str]


class EventWriter:
    """TensorBoard events."""

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        document: Mapping[str, Any],
        parameters: Parameters,
        metrics: Sequence[str],
    ) -> None:
        """Begin a file of events.

        Args:
            folder: which may hold those of earlier, killed sessions of the run.
            step: the steps done; what these wrote after it is hidden: a curve never doubles back.
            document: the task as JSON values, shown as text.
            parameters: for the table of runs, under "HParams".
            metrics: the curves whose last values stand next to them.
        """
        self.last = step
        self.events = SummaryWriter(str(folder), purge_step=step + 1)
        # At the step that comes next: a session that starts here again hides these, too.
        text = json.dumps(document, indent=2, ensure_ascii=False)
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


FILE = "wandb.json"
PATIENCE = 30.0
"""Seconds that it may take to reach the service, and to send what is left at the end."""


class _Run(Protocol):
    """What is used of `wandb.Run`."""

    def define_metric(self, name: str, *, step_metric: str) -> object: ...
    def log(self, data: dict[str, Any]) -> None: ...
    def finish(self, *, exit_code: int) -> None: ...


def require_wandb(settings: WandbConfig | None) -> None:
    """Refuse settings for it where the package is not installed.

    Raises:
        RefusedError: it is not.
    """
    if settings is None:
        return
    try:
        importlib.import_module("wandb")
    except ImportError as error:
        found = "the package wandb is not installed"
        raise RefusedError(
            "tr_params.wandb", found, "pip install wandb, or leave it out"
        ) from error


class WandbWriter:
    """Sends through the package's own process, which tries again when the network is down."""

    def __init__(
        self, settings: WandbConfig, folder: Path, name: str, document: Mapping[str, Any]
    ) -> None:
        """Begin or continue the run there that belongs to a run folder.

        Args:
            settings: project and mode.
            folder: of the run.
            name: of the run.
            document: the task as JSON values, kept there as its configuration.
        """
        self.module: Any = importlib.import_module("wandb")
        found = self.module.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=kept_id(folder),
            resume="allow",
            name=name,
            dir=str(folder),
            config=dict(document),
            allow_val_change=True,  # as max_epoch may, when a run is continued
            # Lines and bars are ours: what wraps the streams shows them twice.
            settings=self.module.Settings(
                console="off", init_timeout=PATIENCE, login_timeout=PATIENCE
            ),
        )
        self.run = cast(_Run, found)
        # Our own axis: a resumed run begins before what a killed one sent, where theirs never goes.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        shown = {
            tag: self.module.Image(np.round(255 * picture).astype(np.uint8))
            for tag, picture in pictures.items()
        }
        self.run.log({**shown, "step": step})

    def flush(self) -> None:
        """Nothing: it sends all the time."""

    def close(self, *, is_failed: bool) -> None:
        # Without a network it would wait for ever; `wandb sync` sends what is left.
        ended: Future[None] = Future()

        def finish() -> None:
            try:
                ended.set_result(self.run.finish(exit_code=int(is_failed)))
            except Exception as error:  # noqa: BLE001 -- raised again where it is waited for
                ended.set_exception(error)

        threading.Thread(target=finish, daemon=True).start()
        try:
            ended.result(PATIENCE)
        except TimeoutError as error:
            found = "not everything was sent in time; `wandb sync` sends the rest"
            raise TimeoutError(found) from error


def kept_id(run_dir: Path) -> str:
    """The name by which the service knows the run in a folder; drawn once and kept there.

    Raises:
        OSError: it cannot be kept.
    """
    path = run_dir / FILE
    with suppress(OSError, ValueError, LookupError, TypeError):
        if isinstance(found := read_json(path)["id"], str):
            return found
    drawn = uuid.uuid4().hex[:16]
    write_json(path, {"id": drawn})
    return drawn


_SECTIONS = ("tr_params", "model_config", "dataset_config.targets", "dataset_config.sampling")
"""Of the task: what people vary from run to run, and compare."""


def open_board(task: Task, step: int, say: Callable[[str], None]) -> Board:
    """The board of a run that has done `step` steps."""
    settings, document = task.tr_params, task.to_json()

    events = partial(
        EventWriter,
        task.tensorboard_dir,
        step,
        document=document,
        parameters=hyperparameters(document),
        metrics=main_curves(task.dataset_config.targets),
    )
    sinks = [CurveSink("TensorBoard", events)]
    if settings.wandb is not None:
        name = settings.model_name
        begin = partial(WandbWriter, settings.wandb, task.run_dir, name, document)
        # Of whatever a service and its client raise, nothing is worth a training.
        sinks.append(CurveSink("Weights & Biases", begin, (Exception,)))
    return Board(sinks, say)


def main_metrics(targets: Mapping[str, AnyTarget]) -> dict[str, str]:
    """The metric by which each target is judged first."""
    return {name: target.metric for name, target in targets.items()}


def main_curves(targets: Mapping[str, AnyTarget]) -> list[str]:
    """The curves whose last values stand for a run."""
    return ["val/loss", *(f"val/{metric}_{name}" for name, metric in main_metrics(targets).items())]


def hyperparameters(document: Mapping[str, Any]) -> Parameters:
    """What sets a run apart from others: the keys of a task that change what is learnt."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in leaves(document):
        if value is not None and not may_change(key) and key.startswith(_SECTIONS):
            is_plain = isinstance(value, bool | int | float | str)
            found[key] = value if is_plain else json.dumps(value)
    return found
