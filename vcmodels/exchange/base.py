"""What is exported, and what every form of it has: test tensors, and a check that runs the file."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    build_network,
    load_checkpoint,
    trained_without_weights,
)
from vcmodels.errors import CheckpointError, OutputError
from vcmodels.exchange.record import made_inputs, read_record, record_of, text_of
from vcmodels.extras import load_extra

MOST_ERROR = 1e-4
"""Between the logits of the exported file and those of the network; of those above 1, of their largest."""
INPUT = "image"
Values = dict[str, np.ndarray[Any, Any]]
"""The logits of each target, (B, C, Z, Y, X) float32."""
Errors = dict[str, float]
"""The largest error of each target."""
Run = Callable[[np.ndarray[Any, Any]], Sequence[np.ndarray[Any, Any]]]
"""Runs an exported file: (B, C, Z, Y, X) float32 -> the logits of the targets, in their order."""


class Logits(nn.Module):
    """A network as a function of tensors: the logits of every target, in full resolution, in order."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.network(image, self.names)
        return tuple(found[name][0] for name in self.names)


@dataclass(frozen=True)
class Exported:
    """A checkpoint that is to be written in another form."""

    checkpoint: Checkpoint
    network: TrainedNetwork
    """With the weights that predict: the averaged ones, if the run kept them."""
    record: dict[str, Any]
    licence: str | None = None
    scores: str = ""
    """What is known of its quality, as Markdown."""

    @classmethod
    def of(
        cls, source: Path | Checkpoint, licence: str | None = None, scores: str = ""
    ) -> "Exported":
        """What a checkpoint holds.

        Args:
            source: it, or its file.
            licence: of the weights.
            scores: what is known of its quality, as Markdown.

        Raises:
            CheckpointError: it cannot be used.
            OutputError: it holds what no other form can.
        """
        checkpoint = load_checkpoint(source) if isinstance(source, Path) else source
        network = build_network(checkpoint)
        record = record_of(checkpoint, network, licence)
        return cls(checkpoint, network, record, licence, scores)

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, in the order of the outputs."""
        return tuple(self.network.targets)

    @property
    def text(self) -> str:
        """The record."""
        return text_of(self.record)

    @property
    def module(self) -> Logits:
        """The network as a function of tensors, to be traced."""
        return Logits(self.network.module, self.names).eval()

    def image(self, count: int = 1) -> Tensor:
        """Made-up patches, (count, C, Z, Y, X) float32 as they are after normalisation."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(
            count, self.network.in_channels, *self.network.patch, generator=generator
        )

    def logits(self, image: Tensor) -> Values:
        """What the network itself gives."""
        with torch.inference_mode():
            found = self.module(image)
        return {n: one.float().numpy() for n, one in zip(self.names, found, strict=True)}

    def compare(self, path: Path, run: Run, counts: Sequence[int] = (1, 2)) -> Errors:
        """Run an exported file next to the network, with batches of these sizes.

        Raises:
            OutputError: they differ by more than rounding.
        """
        errors = dict.fromkeys(self.names, 0.0)
        for count in counts:
            image = self.image(count)
            given = dict(zip(self.names, run(image.numpy()), strict=True))
            for name, wanted in self.logits(image).items():
                errors[name] = max(errors[name], _largest_error(wanted, given[name]))
        worst, error = max(errors.items(), key=lambda one: one[1])
        if error > MOST_ERROR:
            found = f"{worst} differs by {error:.2g} from the network, more than {MOST_ERROR:g}"
            raise OutputError(str(path), found, "nothing was written; export in another form")
        return errors

    def require_plain_inputs(self) -> None:
        """Refuse a network whose inputs other programs do not make: they only normalise.

        Raises:
            OutputError: naming the key by which they are made.
        """
        if made := made_inputs(self.network):
            found = f"its inputs are made by dataset_config.{next(iter(made))}, which this form cannot say"
            raise OutputError(str(self.checkpoint.path), found, "export it as onnx")

    def save_test(self, path: Path) -> None:
        """Write test tensors as .npz: `image`, and the logits of each target."""
        image = self.image()
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **{INPUT: image.numpy()}, **self.logits(image))


def _largest_error(wanted: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> float:
    """Infinity where either is not finite, or the shape is another."""
    if wanted.shape != given.shape or not (np.isfinite(wanted).all() and np.isfinite(given).all()):
        return float("inf")
    scale = max(1.0, float(np.abs(wanted).max()))
    return float(np.abs(wanted - given).max()) / scale


def library(name: str, subject: str) -> Any:  # noqa: ANN401 - a module
    """A library of the extra `exchange`, imported when a file needs it.

    Args:
        name: of the module.
        subject: of the message.

    Raises:
        RefusedError: it is not installed.
    """
    return load_extra(name, "exchange", subject)


def read_bytes(path: Path) -> bytes:
    """What is in a file.

    Raises:
        CheckpointError: it is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "no such file", "check the path") from error
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror})") from error


def with_module(record: str | bytes, module: nn.Module, path: Path, data: bytes) -> TrainedNetwork:
    """The network of a file whose weights are in a graph of another program.

    Args:
        record: as text.
        module: which runs the graph.
        path: of the file, and `data`: what is in it.
        data: by which it is told from other files.

    Raises:
        CheckpointError: the record does not hold what a prediction needs.
    """
    state = read_record(record, path)
    checkpoint = Checkpoint(path, hashlib.sha256(data).hexdigest(), state)
    return replace(trained_without_weights(checkpoint), module=module.eval(), is_fixed=True)


def of_weights(
    record: str | bytes, weights: Mapping[str, Tensor], path: Path, data: bytes
) -> TrainedNetwork:
    """The network of a file that holds its weights; args as of `with_module`.

    Raises:
        CheckpointError: the file does not hold what a prediction needs.
    """
    state = {**read_record(record, path), "model": dict(weights)}
    return build_network(Checkpoint(path, hashlib.sha256(data).hexdigest(), state))


def outline_of(record: str | bytes, path: Path) -> dict[str, Tensor]:
    """The weights that a network of a record has, without values; args as of `with_module`.

    Raises:
        CheckpointError: the record does not hold what a prediction needs.
    """
    found = trained_without_weights(Checkpoint(path, "", read_record(record, path)))
    heads = {name: target.channels for name, target in found.targets.items()}
    try:
        outline = found.task.model.outline(found.in_channels, heads, found.patch, found.spacing)
    except ValueError as error:
        raise CheckpointError(str(path), str(error), "use another file") from error
    return outline.state_dict()
