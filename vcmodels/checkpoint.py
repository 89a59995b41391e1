"""One self-contained file for a trained state: weights, task, normalisation, counters.

The file is what `torch.save` writes plus a trailer with the sha256 of everything before it, since
torch itself checks nothing: a flipped bit would load silently. It is read with
`weights_only=True`, so that a foreign file cannot run code.
"""

import hashlib
import io
import math
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcmodels.config import Task, parse_task
from vcmodels.data.intensities import ChannelValues
from vcmodels.data.normalization import Normalization
from vcmodels.errors import CheckpointError
from vcmodels.runs.run import TRAILER, TRAILER_LENGTH
from vcmodels.targets import AnyTarget
from vcmodels.volumes.places import write_atomic

SCHEMA = 1
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, OSError, struct.error,
)  # fmt: skip
"""What torch raises for bytes that are no checkpoint (measured: torch 2.13)."""
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "network.")


@dataclass(frozen=True)
class Checkpoint:
    """A verified file: where it lies, its checksum (hex), and the state in it."""

    path: Path
    sha256: str
    state: dict[str, Any]


def save_checkpoint(path: Path, state: Mapping[str, Any], *, keep_previous: bool = True) -> None:
    """Write `state` (tensors and JSON-able values) atomically; the file that was there stays whole.

    The previous generation is kept next to it as `<stem>.previous.pth`, so that two complete ones
    exist from the second save on, unless `keep_previous` is false.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()
    sealed = body + TRAILER + hashlib.sha256(body).digest()
    write_atomic(path, sealed, keep=previous_generation(path) if keep_previous else None)


def previous_generation(path: Path) -> Path:
    """Where `save_checkpoint` keeps the file that it replaces."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, cut, altered, holds anything but tensors and plain
            values, or was written for another schema. The previous generation is offered if whole.
    """
    body, digest = _verified_body(path)
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            str(path), f"refused: {_reason(error)}", "use a file that vcmodels wrote"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        found = state.get("schema") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(str(path), f"schema {found!r}, expected {SCHEMA}", "train again")
    return Checkpoint(path, digest, state)


def _reason(error: Exception) -> str:
    """In a few words; torch's own explain how to switch the protection off."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"contains {found[1]}, which could run code"
    return "not a file of tensors and plain values"


def _verified_body(path: Path) -> tuple[bytes, str]:
    if path.is_dir():
        raise CheckpointError(str(path), "is a directory", "name a .pth file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "no such file", "check the path") from error
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror})") from error
    body, trailer = data[:-TRAILER_LENGTH], data[-TRAILER_LENGTH:]
    if not trailer.startswith(TRAILER):
        raise CheckpointError(
            str(path), "has no checksum: cut, or not written by vcmodels", _offer(path)
        )
    digest = hashlib.sha256(body)
    if digest.digest() != trailer[len(TRAILER) :]:
        raise CheckpointError(str(path), "sha256 differs: the file is damaged", _offer(path))
    return body, digest.hexdigest()


def _offer(path: Path) -> str:
    previous = previous_generation(path)
    return f"use {previous}" if previous.exists() else "use another checkpoint"


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what DDP and torch.compile put in front of every parameter name."""
    stripped = dict(weights)
    for prefix in WRAPPER_PREFIXES:
        if stripped and all(name.startswith(prefix) for name in stripped):
            stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `network`, all of them or none.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    wanted, given = network.state_dict(), strip_prefixes(weights)
    wrong = [
        name for name in wanted if name not in given or given[name].shape != wanted[name].shape
    ]
    wrong += [name for name in given if name not in wanted]
    if wrong:
        raise CheckpointError(
            source,
            f"{len(wrong)} of {len(wanted)} tensors do not fit the network: {', '.join(wrong[:3])}",
            "use the model_config and targets that it was trained with",
        )
    refuse_not_finite(given, source)
    network.load_state_dict(given)


def refuse_not_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: naming the first tensor that does.
    """
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                source, f"{name} holds NaN or infinity", "use an earlier checkpoint"
            )


@dataclass(frozen=True)
class TrainedNetwork:
    """All that prediction needs, from one checkpoint."""

    module: nn.Module
    """In eval mode, with the averaged (EMA) weights if the run kept them."""
    task: Task
    targets: dict[str, AnyTarget]
    normalization: Normalization
    patch: tuple[int, int, int]
    spacing: tuple[float, float, float]
    in_channels: int
    sha256: str
    path: Path
    intensities: tuple[ChannelValues, ...] = ()
    """What it was trained on, one for each channel; () where that is not known."""
    unit: str | None = None
    """Of the spacing, if that is known; older checkpoints do not say."""

    @property
    def has_spacing(self) -> bool:
        """Whether the voxel size of the training was known."""
        return self.unit is not None or self.spacing != (1.0, 1.0, 1.0)


def build_network(checkpoint: Checkpoint) -> TrainedNetwork:
    """Rebuild the network of a checkpoint and load its weights.

    Raises:
        CheckpointError: the file does not hold what a prediction needs.
    """
    state = checkpoint.state
    try:
        task, _ = parse_task(state["task"], str(checkpoint.path))
        patch, spacing = tuple(state["patch_size"]), tuple(state["spacing"])
        in_channels, weights = state["in_channels"], state["ema"] or state["model"]
        normalization = Normalization.from_dict(state["normalization"])
    except KeyError as error:
        raise CheckpointError(str(checkpoint.path), f"lacks {error}", "train again") from error
    targets = dict(task.dataset_config.targets)
    heads = {name: target.channels for name, target in targets.items()}
    assert math.prod(patch) > 0
    module = task.model.build(in_channels, heads, patch, spacing)
    load_weights(module, weights, str(checkpoint.path))
    return TrainedNetwork(
        module.eval(),
        task,
        targets,
        normalization,
        patch,
        spacing,
        in_channels,
        checkpoint.sha256,
        checkpoint.path,
        tuple(ChannelValues.from_dict(one) for one in state.get("intensities", [])),
        unit if isinstance(unit := state.get("unit"), str) else None,
    )
