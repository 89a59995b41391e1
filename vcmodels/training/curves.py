"""The curves of a run: `log.jsonl`, and what its boards show next to each other."""

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcmodels.boards import Board, BoardLayout, CurveSink, EventWriter, Parameters, WandbWriter
from vcmodels.config import Task
from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.models import AnyModel
from vcmodels.runs.run import leaves
from vcmodels.targets import AnyTarget
from vcmodels.training.run_folder import may_change
from vcmodels.volumes.places import write_atomic


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


_SECTIONS = ("tr_params", "model_config", "dataset_config.targets", "dataset_config.sampling")
"""Of the task: what people vary from run to run, and compare."""


def open_board(
    task: Task,
    step: int,
    say: Callable[[str], None],
    network: Callable[[], tuple[nn.Module, Tensor]] | None = None,
) -> Board:
    """The board of a run that has done `step` steps.

    Args:
        task: of the run.
        step: done so far.
        say: told about a board that fails.
        network: as for `EventWriter`.
    """
    settings, document = task.tr_params, task.to_json()

    events = partial(
        EventWriter,
        events_folder(task),
        step,
        document=document,
        parameters=hyperparameters(document),
        metrics=main_curves(task.dataset_config.targets),
        layout=layout_of(task.dataset_config.targets),
        network=network,
        say=say,
    )
    sinks = [CurveSink("TensorBoard", events)]
    if settings.wandb is not None:
        name = settings.model_name
        begin = partial(WandbWriter, settings.wandb, task.run_dir, name, document)
        # Of whatever a service and its client raise, nothing is worth a training.
        sinks.append(CurveSink("Weights & Biases", begin, (Exception,)))
    return Board(sinks, say)


def events_folder(task: Task) -> Path:
    """Where the events of a run go: a folder of its name, by which TensorBoard calls it.

    The folder above where an older run has begun there: its curves go on.
    """
    above = task.tensorboard_dir.parent
    is_older = not task.tr_params.tensorboard_log_dir and any(above.glob("events.out.*"))
    return above if is_older else task.tensorboard_dir


def layout_of(targets: Mapping[str, AnyTarget]) -> BoardLayout:
    """The charts of a run, by target: losses of training and validation together, each figure."""
    groups = {
        "all targets": {
            "loss": ["train/loss", "val/loss"],
            "learning rate": ["lr"],
            "gradient norm": ["train/gradient_norm"],
        }
    }
    for name, target in targets.items():
        losses = ["train/loss_", "epoch/train_loss_", "val/loss_"]
        groups[name] = {"loss": [f"{curve}{name}" for curve in losses]}
        groups[name] |= {figure: [f"val/{figure}_{name}"] for figure in target.figures}
    return groups


def traceable(
    network: nn.Module, model: AnyModel, patch: Shape, spacing: Spacing, channels: int
) -> tuple[nn.Module, Tensor]:
    """A copy of a network on the CPU, and the smallest image that it takes of a few fractions.

    Args:
        network: as it is trained; it is not changed.
        model: that it was built by.
        patch: what it was planned for.
        spacing: as there.
        channels: of the image.
    """
    sizes = [triple(max(n // part, 1) for n in patch) for part in (8, 4, 2)]
    for size in sizes:
        try:
            model.check_patch(size, spacing, planned=patch)
        except FaultError:
            continue
        break
    else:
        size = patch
    return deepcopy(network).cpu().eval(), torch.zeros(1, channels, *size)


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
