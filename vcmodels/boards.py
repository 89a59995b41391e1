"""Where curves and pictures go, of a training or a prediction: TensorBoard, Weights & Biases."""

import importlib
import json
import math
import re
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.config.tracking import WandbConfig
from vcmodels.errors import RefusedError
from vcmodels.volumes.places import read_json, write_json


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
    """Hands everything to all writers; one that fails is reported and left out from then on.

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


Parameters = Mapping[str, bool | int | float | str]
BoardLayout = Mapping[str, Mapping[str, Sequence[str]]]
"""Charts that stand together, by group and title: the curves in each."""


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
        layout: BoardLayout | None = None,
        network: Callable[[], tuple[nn.Module, Tensor]] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Begin a file of events.

        Args:
            folder: which may hold those of earlier, killed sessions of the run.
            step: the steps done; what these wrote after it is hidden: a curve never doubles back.
            document: the task as JSON values, shown as text.
            parameters: for the table of runs, under "HParams".
            metrics: the curves whose last values stand next to them.
            layout: of the page "Custom Scalars".
            network: on the CPU, and an image that it takes; drawn in a run without a step.
            say: told when it cannot be drawn.
        """
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a third of a second
        from torch.utils.tensorboard.summary import hparams

        self.last = step
        self.events = SummaryWriter(str(folder), purge_step=step + 1)
        # At the step that comes next: a session that starts here again hides these, too.
        text = json.dumps(document, indent=2, ensure_ascii=False)
        self.events.add_text("task", f"```json\n{text}\n```", step + 1)
        experiment, start, self.end = hparams(dict(parameters), dict.fromkeys(metrics, 0.0))
        for summary in (experiment, start):
            self._add(summary, step + 1)
        if layout:
            charts = {
                group: {title: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
                        for title, tags in inside.items()}
                for group, inside in layout.items()
            }  # fmt: skip
            self.events.add_custom_scalars(charts)
        if network is not None and not step:
            self._draw_network(network, say)

    def _draw_network(
        self, network: Callable[[], tuple[nn.Module, Tensor]], say: Callable[[str], None]
    ) -> None:
        """Add the graph of a network; one that cannot be traced has none."""
        # Not the trace's own warnings: they are about networks that are to run from it.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module, image = network()
                # Traced here: what is given on is not run again to check the trace.
                traced = torch.jit.trace(Network(module), image, strict=False, check_trace=False)
                self.events.add_graph(traced, image)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 -- no picture is worth a training
                reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
                say(f"TensorBoard gets no graph of the network: {reason}")

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


class Network(nn.Module):
    """A network whose logits are a tuple, as a trace wants them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The finest logits of each head."""
        return tuple(levels[0] for levels in self.network(image).values())


FILE = "wandb.json"
PATIENCE = 30.0
"""Seconds that it may take to reach the service, and to send what is left at the end."""


class _Run(Protocol):
    """What is used of `wandb.Run`."""

    def define_metric(self, name: str, *, step_metric: str) -> object: ...
    def log(self, data: dict[str, Any]) -> None: ...
    def finish(self, *, exit_code: int) -> None: ...


def require_wandb(settings: WandbConfig | None, key: str = "tr_params.wandb") -> None:
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
        raise RefusedError(key, found, "pip install wandb, or leave it out") from error


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
