"""One self-contained file for a trained state: weights, task, normalisation, counters.

The file is what `torch.save` writes plus a trailer with the sha256 of everything before it, since
torch itself checks nothing: a flipped bit would load silently. It is read with
`weights_only=True`, so that a foreign file cannot run code. Every field is checked for its type
when it is loaded, and weights are compared with the shapes of their network before it takes memory: a
right checksum says that a file is whole, not that it means something.
"""

import hashlib
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from vcmodels.config import Task, parse_task
from vcmodels.config.messages import as_list, as_object
from vcmodels.config.slices import depth_of
from vcmodels.data.intensities import ChannelValues
from vcmodels.data.normalization import Normalization
from vcmodels.errors import CheckpointError, FaultError, TaskError
from vcmodels.geometry.coordinates import COORDINATES
from vcmodels.metrics.calibration import Calibration
from vcmodels.reporting import list_some
from vcmodels.runs.run import PRUNED, TRAILER, TRAILER_LENGTH, shown
from vcmodels.section import Extent, PatchShape
from vcmodels.symmetry.findings import FINDINGS, SymmetryFindings, as_findings
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

    def require(self, *keys: str) -> None:
        """Refuse a state without some of its keys.

        Raises:
            CheckpointError: naming those that are not there.
        """
        if lacking := sorted(set(keys) - self.state.keys()):
            raise CheckpointError(str(self.path), f"lacks {', '.join(lacking)}", "train again")


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
            values, or was written for another schema; or a field has another type than it must
            have. The previous generation is offered if whole.
    """
    body, digest = _verified_body(path)
    _refuse_packed(body, path)
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            str(path), f"refused: {_reason(error)}", "use a file that vcmodels wrote"
        ) from error
    schema = state.get("schema") if isinstance(state, dict) else state
    if type(schema) is not int or schema != SCHEMA:
        found = schema if isinstance(schema, int | str) else type(schema).__name__
        raise CheckpointError(str(path), f"schema {shown(found)}, expected {SCHEMA}", "train again")
    require_types(state, path)
    stands_for = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))
    if stands_for > MOST_SHARED * len(body):  # many names for one storage
        found = f"its {len(body)} bytes stand for tensors of {stands_for}"
        raise CheckpointError(str(path), found, "use a file that vcmodels wrote")
    return Checkpoint(path, digest, state)


MOST_TENSORS = 50_000
MOST_SHARED = 4
"""Times that the bytes of a file may be in its tensors; networks with tied weights have a few twice."""


def _refuse_packed(body: bytes, path: Path) -> None:
    """Refuse what grows when it is read, or takes minutes: torch packs nothing."""
    with suppress(zipfile.BadZipFile, ValueError, NotImplementedError):  # torch says what it is
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
        found = ""
        if sum(sizes) > len(body):
            found = f"its {len(body)} bytes stand for {sum(sizes)}"
        if len(sizes) > MOST_TENSORS:
            found = f"holds {len(sizes)} tensors, more than any network and its optimiser have"
        if found:
            raise CheckpointError(str(path), found, "use a file that vcmodels wrote")


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


WholeNumber = Annotated[int, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]
Found = TypeVar("Found")


@dataclass(frozen=True)
class VolumeRecord:
    """What `data` says of a volume, at least."""

    name: str
    arrays: dict[str, dict[str, Any]]


_FIELDS: dict[str, TypeAdapter[Any]] = {
    "task": TypeAdapter(dict[str, Any]),
    "heads": TypeAdapter(dict[str, Extent]),
    "in_channels": TypeAdapter(Extent),
    "patch_size": TypeAdapter(PatchShape),
    "spacing": TypeAdapter(tuple[Length, Length, Length]),
    "versions": TypeAdapter(dict[str, Any]),
    "normalization": TypeAdapter(dict[str, Any]),
    "intensities": TypeAdapter(list[ChannelValues]),
    "split": TypeAdapter(dict[str, Any]),
    "class_counts": TypeAdapter(dict[str, list[WholeNumber]]),
    "data": TypeAdapter(list[VolumeRecord]),
    "epoch": TypeAdapter(WholeNumber),
    "step": TypeAdapter(WholeNumber),
    "counters": TypeAdapter(dict[str, Any]),
    "scaler": TypeAdapter(dict[str, float]),
    "calibration": TypeAdapter(dict[str, Calibration]),
    "symmetry": FINDINGS,
    "tuned": TypeAdapter(dict[str, Any]),
    "untuned_sha256": TypeAdapter(str),
    PRUNED: TypeAdapter(dict[str, Any]),
}
"""The types of what a state holds, as JSON values; a key that is not there is not looked at."""
_OF_TENSORS = ("model", "ema", "balance", "hard")
_MAY_BE_INFINITE = ("counters",)
_NORMALIZATION = TypeAdapter(Normalization)


def require_types(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a state of which a field has a type or a value that it cannot have.

    Raises:
        CheckpointError: naming the field and what it is.
    """
    for name, kind in _FIELDS.items():
        if name in state:
            typed(kind, state[name], path, name)
    for name in _OF_TENSORS:
        is_left_out = name not in state or (name == "ema" and state[name] is None)
        if not is_left_out and not _are_tensors(state[name]):
            raise _wrong(path, name, state[name], "it should be tensors by name")
    if "optimizer" in state:
        _require_optimizer(state["optimizer"], path)
    for name in (*_OF_TENSORS, "optimizer"):
        for tensor in _tensors(state.get(name)):
            _require_plain(tensor, path, name)
    if "normalization" in state:
        read_normalization(state, path)


def typed(kind: TypeAdapter[Found], value: object, path: Path, name: str) -> Found:
    """A field of a state as what it must be, such as a dataclass.

    Args:
        kind: what it must be, of JSON values.
        value: what it is.
        path: of the checkpoint, for the message.
        name: of the field.

    Raises:
        CheckpointError: it is something else, or not finite.
    """
    try:
        text = json.dumps(value, allow_nan=name in _MAY_BE_INFINITE)
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise _wrong(path, where, first["input"], first["msg"].lower()) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(path, name, value, "no finite JSON values") from error


def read_normalization(state: Mapping[str, Any], path: Path) -> Normalization:
    """The normalisation of a state.

    Raises:
        CheckpointError: it is none, or has no statistics of as many channels as the network.
    """
    name, value = "normalization", state["normalization"]
    try:
        found = Normalization.from_dict(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(path, name, value, "it lacks keys, or has others") from error
    typed(_NORMALIZATION, asdict(found), path, name)
    slices, others = _slices_of(state), COORDINATES * _has_coordinates(state)
    for stats in (found.channels, *found.volumes.values()):
        if any(channel.sd < 0 or channel.clipped_sd < 0 for channel in stats):
            raise _wrong(path, name, value, "a standard deviation is negative")
        channels = len(stats) * slices + others
        if stats and channels != state.get("in_channels", channels):
            raise _wrong(path, name, value, f"it has statistics of {len(stats)} channels")
    if not found.channels and found.per == "global" and found.scheme != "none":
        raise _wrong(path, name, value, "it has no statistics")
    return found


def _slices_of(state: Mapping[str, Any]) -> int:
    """How many slices share the statistics of a channel, by a task that may not be valid."""
    stack = as_object(_data_of(state).get("stack")) or {}
    return len(as_list(stack.get("offsets")) or [0])


def _has_coordinates(state: Mapping[str, Any]) -> bool:
    """Whether there are channels without statistics, by a task that may not be valid."""
    return _data_of(state).get("coordinates") is True


def _data_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `dataset_config` of a task that may not be valid."""
    task = as_object(state.get("task")) or {}
    return as_object(task.get("dataset_config")) or {}


def _are_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _require_optimizer(value: object, path: Path) -> None:
    """Refuse what is not built as the state of an optimiser: slots by number, and groups."""
    if not isinstance(value, Mapping) or not value.keys() >= {"state", "param_groups"}:
        raise _wrong(path, "optimizer", value, "it should have state and param_groups")
    slots, groups = value["state"], value["param_groups"]
    if not isinstance(slots, Mapping) or not all(
        type(number) is int and isinstance(slot, Mapping) for number, slot in slots.items()
    ):
        raise _wrong(path, "optimizer.state", slots, "it should be slots by number")
    numbers = TypeAdapter(list[WholeNumber])
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise _wrong(path, "optimizer.param_groups", groups, "it should be a list of groups")
    for group in groups:
        typed(numbers, group.get("params"), path, "optimizer.param_groups.params")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)


def _require_plain(tensor: Tensor, path: Path, name: str) -> None:
    """Refuse a tensor that is no plain array of numbers, or stands for more than is stored."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_complex() or tensor.is_nested:
        raise CheckpointError(str(path), f"{name} holds a tensor that is no array", _offer(path))
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        found = f"{name} holds a tensor {list(tensor.shape)}, of which only a part is stored"
        raise CheckpointError(str(path), found, _offer(path))


def _wrong(path: Path, name: str, value: object, why: str) -> CheckpointError:
    is_short = isinstance(value, str | int | float | None)
    found = shown(value) if is_short else f"a {type(value).__name__.lower()}"
    return CheckpointError(str(path), f"{name} is {found}: {why}", _offer(path))


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
    given = strip_prefixes(weights)
    require_shapes(network, given, source)
    refuse_not_finite(given, source)
    network.load_state_dict(given)


def require_shapes(network: nn.Module, given: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not those of a network, which may be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    given = strip_prefixes(given)
    wanted = network.state_dict()
    wrong = [n for n in wanted if n not in given or given[n].shape != wanted[n].shape]
    wrong += [name for name in given if name not in wanted]
    if wrong:
        raise CheckpointError(
            source,
            f"{len(wrong)} of {len(wanted)} tensors do not fit the network: {list_some(wrong, 3)}",
            "use the model_config and targets that it was trained with",
        )


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
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """By which the logits of these heads are divided before their activation."""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen for "tuned" keys of post-processing, see `postprocess.tuning.values_for`."""
    symmetry: SymmetryFindings | None = None
    """Of what it was trained on; older checkpoints do not say."""
    is_fixed: bool = False
    """Whether the module is a graph of another program: of this patch size, in float32, not compiled."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Of such a graph that takes other patches: along (z, y, x) the least length, and the step."""
    notes: tuple[str, ...] = ()
    """What whoever uses it is to be told."""

    def check_patch(self, patch: PatchShape) -> None:
        """Refuse a patch size that the network cannot take.

        Raises:
            ValueError: with what was found and what to do.
        """
        if patch == self.patch:
            return
        if self.is_fixed and self.lengths:
            rules = list(zip(patch, self.lengths, strict=True))
            if any(n < least or (n - least) % max(step, 1) for n, (least, step) in rules):
                ways = ", ".join(f"{least} + n * {step}" for least, step in self.lengths)
                found = f"patch_size {list(patch)}: {self.path} takes lengths of {ways}"
                raise FaultError(found, "give such a size, or leave it out")
            return
        if self.is_fixed:
            found = (
                f"patch_size {list(patch)}: {self.path} takes patches of {list(self.patch)} only"
            )
            raise FaultError(found, "leave it out, or use the checkpoint")
        self.task.model.check_patch(patch, self.spacing, planned=self.patch)

    @property
    def stored_channels(self) -> int:
        """Channels of an input, which may each be seen as several slices."""
        config = self.task.dataset_config
        return (self.in_channels - COORDINATES * config.coordinates) // depth_of(config.stack)

    @property
    def has_spacing(self) -> bool:
        """Whether the voxel size of the training was known."""
        return self.unit is not None or self.spacing != (1.0, 1.0, 1.0)


def build_network(checkpoint: Checkpoint) -> TrainedNetwork:
    """Rebuild the network of a checkpoint and load its weights.

    Raises:
        CheckpointError: the file does not hold what a prediction needs.
    """
    checkpoint.require(*_DESCRIBING, "model")
    trained, state, source = (
        trained_without_weights(checkpoint),
        checkpoint.state,
        str(checkpoint.path),
    )
    weights = strip_prefixes(state.get("ema") or state["model"])
    heads = {name: target.channels for name, target in trained.targets.items()}
    if len(heads) > len(weights):  # an outline of so many would take long
        found = f"it has {len(heads)} targets and {len(weights)} tensors"
        raise CheckpointError(source, found, "use another checkpoint")
    model, size = trained.task.model, (trained.in_channels, heads, trained.patch, trained.spacing)
    try:  # the outline takes no memory, the network no more than the weights that fit it
        require_shapes(model.outline(*size), weights, source)
        module = model.build(*size)
    except ValueError as error:
        found = f"patch_size {list(trained.patch)}, spacing {list(trained.spacing)}: {error}"
        raise CheckpointError(source, found, "use another checkpoint") from error
    load_weights(module, weights, source)
    return replace(trained, module=module.eval())


_DESCRIBING = ("task", "patch_size", "spacing", "in_channels", "normalization")


def trained_without_weights(checkpoint: Checkpoint) -> TrainedNetwork:
    """All that a prediction needs of a state, except for the network: one that gives its input.

    Raises:
        CheckpointError: the state does not hold it.
    """
    checkpoint.require(*_DESCRIBING)
    state, source = checkpoint.state, str(checkpoint.path)
    try:
        task, _ = parse_task(state["task"], source, is_record=True)
    except TaskError as error:
        found = f"its task is not valid: {error.subject}: {error.found}"
        raise CheckpointError(source, found, error.remedy) from error
    return TrainedNetwork(
        nn.Identity(),
        task,
        dict(task.dataset_config.targets),
        read_normalization(state, checkpoint.path),
        tuple(state["patch_size"]),
        tuple(state["spacing"]),
        state["in_channels"],
        state.get("untuned_sha256", checkpoint.sha256),  # tuned or not, it predicts the same
        checkpoint.path,
        tuple(ChannelValues.from_dict(one) for one in state.get("intensities", [])),
        unit if isinstance(unit := state.get("unit"), str) else None,
        {name: found.temperature for name, found in calibration_of(checkpoint).items()},
        state.get("tuned", {}),
        as_findings(state.get("symmetry")),
    )


def state_of(network: TrainedNetwork) -> dict[str, Any]:
    """The state from which `build_network` makes a network again, without counters of a training."""
    return {
        "schema": SCHEMA,
        "task": network.task.to_json(),
        "model": network.module.state_dict(),
        "heads": {name: target.channels for name, target in network.targets.items()},
        "in_channels": network.in_channels,
        "patch_size": list(network.patch),
        "spacing": list(network.spacing),
        "unit": network.unit,
        "normalization": network.normalization.to_dict(),
    }


def calibration_of(checkpoint: Checkpoint) -> dict[str, Calibration]:
    """The temperatures of a checkpoint, by target; none of a run without `calibrate`."""
    return {
        name: Calibration(**one) for name, one in checkpoint.state.get("calibration", {}).items()
    }
