"""Models of other programs in our form: what a description says becomes the record of a checkpoint.

Nothing in a package is run: texts and numbers are read, weights with `weights_only`, graphs by
onnxruntime. What only code can build needs `trust`, which is refused by naming that code.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.checkpoint import (
    SCHEMA,
    Checkpoint,
    TrainedNetwork,
    build_network,
    trained_without_weights,
)
from vcmodels.data.normalization import Normalization
from vcmodels.errors import CheckpointError, RefusedError
from vcmodels.exchange.foreign_steps import Elementwise
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.models.base import Logits
from vcmodels.scratch import scratch_folder
from vcmodels.volumes import ArrayVolume

MOST_UNPACKED = 50
"""Times that an archive of a model may grow: weights hardly do, test images some."""
REMEDY = "use another file"
OTHER = "run it with its own program"
Json = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """What a package says of its model, in our words."""

    name: str
    targets: Mapping[str, Json]
    """As blocks of a task."""
    in_channels: int
    patch: Shape
    normalization: Normalization
    model: Json | None = None
    """The block `model_config`, of a network that we build; None of one that is run as it is."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    unit: str | None = None
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    prepare: Json | None = None
    """What is done to volumes first, as the block `dataset_config.prepare`."""
    notes: tuple[str, ...] = ()

    def state(self) -> Json:
        """As the state of a checkpoint without weights."""
        is_open = any(
            one["kind"] == "regression" and not one.get("output_range")
            for one in self.targets.values()
        )
        way = self.normalization
        task = {
            "tr_params": {
                "model_name": self.name,
                "patch_size": list(self.patch),
                "ckpt_out_base": ".",
            },
            "inference_params": {
                "overlap": list(self.overlap),
                **({"output_type": "np.float32"} if is_open else {}),
            },
            "dataset_config": {
                "normalization": way.config.model_dump(mode="json"),
                "prepare": self.prepare,
                "volume_paths": [
                    {"input": ["input"] * self.in_channels, **dict.fromkeys(self.targets, "label")}
                ],
                "targets": dict(self.targets),
            },
            **({"model_config": self.model} if self.model else {}),
        }
        return {
            "schema": SCHEMA,
            "task": task,
            "heads": {name: one["channels"] for name, one in self.targets.items()},
            "in_channels": self.in_channels,
            "patch_size": list(self.patch),
            "spacing": list(self.spacing),
            "unit": self.unit,
            "normalization": way.to_dict(),
        }

    def network_of(self, module: nn.Module, path: Path, digest: str) -> TrainedNetwork:
        """With a module that is run as it is.

        Args:
            module: called as a network of ours.
            path: of the package.
            digest: sha256 by which it is told from others.

        Raises:
            CheckpointError: the description asks for what is not valid.
        """
        found = trained_without_weights(self._checkpoint(path, digest, {}))
        return replace(found, module=module.eval(), is_fixed=True, notes=self.notes)

    def built(self, weights: Mapping[str, Tensor], path: Path, digest: str) -> TrainedNetwork:
        """With the network of `model` and its weights; args as of `network_of`.

        Raises:
            CheckpointError: the network cannot be built, or the weights are others.
        """
        return replace(
            build_network(self._checkpoint(path, digest, {"model": dict(weights)})),
            notes=self.notes,
        )

    def _checkpoint(self, path: Path, digest: str, more: Json) -> Checkpoint:
        return Checkpoint(path, digest, {**self.state(), **more})


@contextmanager
def unpacked(path: Path, mark: str) -> Generator[Path]:
    """The folder of a package, while the context lasts: itself, or what an archive holds.

    Args:
        path: a folder, or a .zip.
        mark: the file that lies at the top of the package, which may be one folder down.

    Raises:
        CheckpointError: the archive is damaged, or grows too much.
    """
    if path.is_dir():
        yield path
        return
    with scratch_folder() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
                if size > MOST_UNPACKED * path.stat().st_size + (1 << 20):
                    raise CheckpointError(str(path), f"its archive grows to {size} bytes", REMEDY)
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
            raise CheckpointError(str(path), "is a damaged archive", REMEDY) from error
        places = [folder, *(one for one in sorted(folder.iterdir()) if one.is_dir())]
        found = next((one for one in places if (one / mark).is_file()), None)
        if found is None:
            raise CheckpointError(str(path), f"its archive holds no {mark}", REMEDY)
        yield found


def read_part(folder: Path, name: str, path: Path) -> bytes:
    """What is in a file of a package.

    Args:
        folder: of the package.
        name: below it.
        path: of the package, for messages.

    Raises:
        CheckpointError: it is missing, or lies elsewhere.
    """
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise CheckpointError(str(path), f"names {name}, which is not in it", REMEDY)
    try:
        return place.read_bytes()
    except OSError as error:
        raise CheckpointError(str(path), f"has no file {name}", REMEDY) from error


def read_weights(data: bytes, name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, of which nothing is run.

    Args:
        data: the file, as `torch.save` writes it.
        name: of the file, for messages.
        path: of the package.

    Raises:
        CheckpointError: it holds something else, or is damaged.
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        text = "holds more than tensors, and could run code" if _is_unsafe(error) else "is damaged"
        raise CheckpointError(str(path), f"{name} {text}", REMEDY) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    is_weights = isinstance(found, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    )
    if not is_weights or not found:
        raise CheckpointError(str(path), f"{name} is no state dict", REMEDY)
    return dict(found)


def _is_unsafe(error: Exception) -> bool:
    return "GLOBAL" in str(error) or "weights_only" in str(error).split("\n")[0]


def digest_of(parts: Iterable[bytes]) -> str:
    """One sha256 for some files."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()


@dataclass(frozen=True)
class Output:
    """One tensor that a network gives."""

    names: tuple[str, ...]
    """Of the one target that it is, or of those that its channels are."""
    axes: str
    """Of the tensor, of the letters b, c, z, y and x."""
    steps: tuple[Elementwise, ...] = ()
    """What is done to it before the activation of the target."""

    def divided(self, tensor: Tensor) -> dict[str, Tensor]:
        """(B, C, Z, Y, X) -> what of it each target is."""
        if len(self.names) == 1:
            return {self.names[0]: tensor}
        return dict(zip(self.names, tensor.split(1, 1), strict=True))


RunTensor = Callable[[Tensor], Sequence[Tensor]]
"""A network of another program: its input, of its own axes, -> its outputs."""


class ForeignNetwork(nn.Module):
    """A network of another program, called as one of ours: patch by patch, its axes made ours.

    Args:
        run: a module, or what else runs it.
        axes: of its input, of the letters b, c, z, y and x; what is not named has one voxel.
        before: steps that are no lines.
        outputs: what it gives, in its order.
        is_portable: whether another process can load it.
    """

    def __init__(
        self,
        run: RunTensor,
        axes: str,
        before: Sequence[Elementwise],
        outputs: Sequence[Output],
        *,
        is_portable: bool = True,
    ) -> None:
        super().__init__()
        self.run, self.axes, self.before = run, axes, tuple(before)
        self.outputs, self.is_portable = tuple(outputs), is_portable

    def __getstate__(self) -> dict[str, Any]:
        """As it is.

        Raises:
            RefusedError: its code is known to this process only.
        """
        if not self.is_portable:
            found = "runs code of a package, in one process only"
            raise RefusedError("--trust", found, "leave out --devices and --dask")
        return self.__dict__.copy()

    def forward(self, image: Tensor, targets: Collection[str] | None = None) -> Logits:
        """(B, C, Z, Y, X) -> the logits of the targets, of all when None."""
        for step in self.before:
            image = step(image)
        every = [self._outputs(one[None]) for one in image]
        wanted = every[0].keys() if targets is None else targets
        return {name: (torch.cat([one[name] for one in every]),) for name in wanted}

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        given = self.run(to_axes(image, self.axes))
        found = {}
        for output, tensor in zip(self.outputs, given, strict=False):
            logits = from_axes(tensor.to(image.device, torch.float32), output.axes)
            for step in output.steps:
                logits = step(logits)
            found |= output.divided(logits)
        return found


def to_axes(image: Tensor, axes: str) -> Tensor:
    """(B, C, Z, Y, X) -> a tensor of these axes; those that are not named have one voxel."""
    order = ["bczyx".index(axis) for axis in axes]
    rest = [axis for axis in range(5) if axis not in order]
    turned = image.permute(*order, *rest)
    return turned.reshape(turned.shape[: len(axes)]).contiguous()


def from_axes(tensor: Tensor, axes: str) -> Tensor:
    """Undo `to_axes`."""
    full = tensor.reshape(*tensor.shape, *[1] * (5 - len(axes)))
    names = axes + "".join(axis for axis in "bczyx" if axis not in axes)
    return full.permute(*[names.index(axis) for axis in "bczyx"])


class Session:
    """An ONNX model of any names in onnxruntime, as `RunTensor`; it travels as bytes."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401 - `exchange.onnx.Session`
        self.session = session

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Float32 in, and out as it gives it."""
        started = self.session.started
        (name,) = (one.name for one in started.get_inputs())
        values = np.ascontiguousarray(image.detach().float().cpu().numpy())
        return [torch.from_numpy(np.array(one)) for one in started.run(None, {name: values})]


class Called(nn.Module):
    """A module of torch as `RunTensor`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> list[Tensor]:
        """One output, or several."""
        given = self.module(image)
        return [given] if isinstance(given, Tensor) else list(given)


@dataclass(frozen=True)
class Check:
    """Test tensors of a package, and how far they may be off."""

    image: np.ndarray[Any, Any]
    """(C, Z, Y, X), as it is stored."""
    wanted: Mapping[str, np.ndarray[Any, Any]]
    """By target, (C, Z, Y, X)."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Above which an output is 1, of targets whose package gives masks."""
    absolute: float = 1e-3
    relative: float = 1e-3

    def note(self, network: TrainedNetwork) -> str:
        """Predict the test image, and say how far that is from the test outputs.

        Raises:
            CheckpointError: the network fails, or gives something else.
        """
        subject, worst = str(network.path), 0.0
        for name, found in self._predicted(network).items():
            wanted = self.wanted[name]
            if found.shape != wanted.shape:
                shapes = f"{list(found.shape)}, its test output {list(wanted.shape)}"
                raise CheckpointError(subject, f"{name} has shape {shapes}", OTHER)
            if name in self.thresholds:
                unlike = float((wanted.astype(bool) != (found > self.thresholds[name])).mean())
                worst, is_off = max(worst, unlike), unlike > self.absolute
            else:
                error = np.abs(found - wanted)
                is_off = bool((error > self.absolute + self.relative * np.abs(wanted)).any())
                worst = max(worst, float(error.max()))
            if is_off or not np.isfinite(found).all():
                what = f"{name} differs from its own test output by {worst:.2g}"
                raise CheckpointError(subject, what, OTHER)
        return f"{network.path}: gives its own test output, largest error {worst:.1e}"

    def _predicted(self, network: TrainedNetwork) -> dict[str, np.ndarray[Any, Any]]:
        """What the targets mean, of the whole test image as one patch."""
        way, stats = network.normalization, None
        if way.per == "volume":
            volume = ArrayVolume.of(self.image, network.spacing, "test image")
            stats = way.of_volume((volume,), Box((0, 0, 0), volume.extent))
        image = torch.from_numpy(way.apply(self.image, volume_stats=stats)[None])
        try:
            with torch.inference_mode():
                logits = network.module(image, list(self.wanted))
        except Exception as error:
            found = f"fails on its own test image ({first_words(error)})"
            raise CheckpointError(str(network.path), found, OTHER) from error
        return {
            name: network.targets[name].blendable(one[0])[0].numpy() for name, one in logits.items()
        }


def targets_of(activation: str, name: str, channels: Sequence[str]) -> dict[str, Json]:
    """The targets of one output: classes for a softmax, a mask for each channel of a sigmoid, or values.

    Args:
        activation: `softmax`, `sigmoid` or "".
        name: of the output.
        channels: what they are called, "" where they have no name.
    """
    count = len(channels)
    if activation == "softmax":
        return {plain(name): {"kind": "multiclass", "channels": count}}
    if activation == "":
        return {plain(name): {"kind": "regression", "channels": count}}
    mask = {"kind": "binary", "channels": 1, "activation": "sigmoid"}
    if count == 1:
        return {plain(name): mask}
    said = [plain(one) for one in channels]
    is_clear = len(set(said)) == count and "" not in said
    ends = said if is_clear else [str(number) for number in range(count)]
    return {f"{plain(name)}_{end}": mask for end in ends}


def plain(name: str) -> str:
    """A name without what the name of a target or of a model may not have."""
    return re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[:60].strip("_")


def own_network(
    kind: str,
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    axes: str,
    targets: Mapping[str, Json],
) -> tuple[Json, dict[str, Tensor]]:
    """The `model_config` of a class of MONAI, and its weights by the names that they have there.

    What it gives are the logits of its targets: each head passes its own on.

    Args:
        kind: the class.
        options: its arguments, but for those of `OWN_OPTIONS`.
        weights: as it names them.
        axes: in which order it sees the axes of space.
        targets: what its channels are, in their order.
    """
    if kind == "SwinUNETR":  # MONAI asked for it once, and takes it no more
        options = {key: value for key, value in options.items() if key != "img_size"}
    found = {f"body.network.{name}": value for name, value in weights.items()}
    count, first = sum(one["channels"] for one in targets.values()), 0
    for name, one in targets.items():
        rows = torch.eye(count)[first : first + one["channels"]]
        found[f"heads.{name}.weight"] = rows.reshape(*rows.shape, 1, 1, 1)
        found[f"heads.{name}.bias"] = torch.zeros(len(rows))
        first += len(rows)
    model = {
        "name": "monai_network",
        "network": kind,
        "options": dict(options),
        "features": count,
        "axes": axes,
    }
    return model, found


def first_words(error: Exception) -> str:
    """What an error says, in a line of some length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:160]
