"""Weights & Biases: the curves and pictures of a run there, in one run however often it is resumed."""

import importlib
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from vcmodels.config import Task
from vcmodels.errors import RefusedError
from vcmodels.volumes.files import read_json, write_json

FILE = "wandb.json"
PATIENCE = 30.0
"""Seconds that it may take to reach the service, and to send what is left at the end."""


class _Run(Protocol):
    """What is used of `wandb.Run`."""

    def define_metric(self, name: str, *, step_metric: str) -> object: ...
    def log(self, data: dict[str, Any]) -> None: ...
    def finish(self, *, exit_code: int) -> None: ...


def require_wandb(task: Task) -> None:
    """Refuse a task that asks for it where it is not installed.

    Raises:
        RefusedError: it is not.
    """
    if task.tr_params.wandb is None:
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

    def __init__(self, task: Task) -> None:
        """Begin or continue the run there that belongs to this run folder."""
        settings = task.tr_params.wandb
        assert settings is not None
        self.module: Any = importlib.import_module("wandb")
        found = self.module.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=kept_id(task.run_dir),
            resume="allow",
            name=task.tr_params.model_name,
            dir=str(task.run_dir),
            config=task.to_json(),
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
