"""Packages of the BioImage Model Zoo that other programs wrote (specification 0.4 and 0.5).

The description is read by `bioimageio.spec`, without a download. ONNX weights run in onnxruntime; a
state dict whose class is one of `models.monai.NetworkName` is built here; other classes, and
TorchScript, are code of the package. What a package predicts of its own test tensors is compared with
its test outputs before anything else is predicted (bioimage.io, "Model Description Specification").
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.data.rules import Rule
from vcmodels.errors import CheckpointError
from vcmodels.exchange import onnx
from vcmodels.exchange.base import library
from vcmodels.exchange.foreign import (
    OTHER,
    REMEDY,
    Called,
    Check,
    Description,
    ForeignNetwork,
    Json,
    Output,
    Session,
    digest_of,
    first_words,
    from_axes,
    own_network,
    plain,
    read_part,
    read_weights,
    targets_of,
    unpacked,
)
from vcmodels.exchange.foreign_steps import Elementwise, Steps
from vcmodels.exchange.graph import quiet
from vcmodels.exchange.trust import Trust
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.models.monai import OWN_OPTIONS, NetworkName

SUBJECT = "a package of the BioImage Model Zoo"
LETTERS = {"batch": "b", "channel": "c"}
LEAST_LENGTH = 64
"""Of a patch along an axis that may be any, where there is no test tensor."""


def load(path: Path, mark: str, trust: Trust) -> TrainedNetwork:
    """The network of a package.

    Args:
        path: a folder, or a .zip.
        mark: the name of its description.
        trust: whether its code may run.

    Raises:
        CheckpointError: it is damaged, needs code that may not run, has a step that has no counterpart
            here, or does not give its own test outputs.
        RefusedError: a library is missing.
    """
    with unpacked(path, mark) as folder:
        package = Package.read(folder, mark, path)
        network = package.network(trust)
        check = package.check()
        if check is None:
            note = f"note: {path} has no test tensors to compare with"
        else:
            note = check.note(network)
    return replace(network, notes=(*network.notes, note))


@dataclass(frozen=True)
class Package:
    """A description, and where its files are."""

    folder: Path
    mark: str
    path: Path
    """Of the package, for messages."""
    said: Any
    """A `ModelDescr` of specification 0.5."""

    @classmethod
    def read(cls, folder: Path, mark: str, path: Path) -> "Package":
        """Read a description; one of an older specification becomes one of 0.5.

        Raises:
            CheckpointError: it is not as the specification says, or has files elsewhere.
            RefusedError: the library is missing.
        """
        spec = library("bioimageio.spec", SUBJECT)
        library("loguru", SUBJECT).logger.disable("bioimageio")
        _refuse_remote(read_part(folder, mark, path), path)
        try:
            with quiet():
                said = spec.load_description(
                    folder / mark, format_version="latest", perform_io_checks=False
                )
        except Exception as error:
            found = f"its {mark} cannot be read ({first_words(error)})"
            raise CheckpointError(str(path), found, REMEDY) from error
        if getattr(said, "type", "") != "model" or said.validation_summary.status == "failed":
            errors = said.validation_summary.errors
            why = f" ({errors[0].loc}: {errors[0].msg.splitlines()[0][:160]})" if errors else ""
            raise CheckpointError(str(path), f"its {mark} describes no valid model{why}", REMEDY)
        return cls(folder, mark, path, said)

    def refused(self, found: str) -> CheckpointError:
        """The error of what we cannot do."""
        return CheckpointError(str(self.path), found, OTHER)

    # --- what goes in

    @property
    def input(self) -> Any:  # noqa: ANN401 - an `InputTensorDescr`
        """The one input.

        Raises:
            CheckpointError: there are several.
        """
        needed = [one for one in self.said.inputs if not one.optional]
        if len(self.said.inputs) != 1:
            raise self.refused(f"takes {len(self.said.inputs)} inputs")
        return needed[0] if needed else self.said.inputs[0]

    def axes(self, tensor: Any) -> str:  # noqa: ANN401 - a tensor's description
        """Its axes by letters.

        Raises:
            CheckpointError: one is neither batch, channel nor space.
        """
        found = "".join(
            str(one.id) if one.type == "space" else LETTERS.get(one.type, "?")
            for one in tensor.axes
        )
        if not re.fullmatch("[bczyx]+", found) or not {"y", "x"} <= set(found):
            names = ", ".join(str(one.id) for one in tensor.axes)
            raise self.refused(f"{tensor.id} has axes {names}, not those of an image or a volume")
        return found

    def channels(self, tensor: Any) -> int:  # noqa: ANN401 - a tensor's description
        """How many it has."""
        found = [one for one in tensor.axes if one.type == "channel"]
        return int(found[0].size) if found else 1

    def space(self) -> dict[str, Any]:
        """The axes of space of the input, by letter."""
        return {str(one.id): one for one in self.input.axes if one.type == "space"}

    def lengths(self) -> tuple[tuple[int, int], ...]:
        """Least length and step along (z, y, x); step 0 of a length that is fixed.

        Raises:
            CheckpointError: a length follows that of another axis.
        """
        space = self.space()
        return tuple(self._length(space[axis]) if axis in space else (1, 0) for axis in "zyx")

    def _length(self, axis: Any) -> tuple[int, int]:  # noqa: ANN401 - its description
        if isinstance(axis.size, int):
            return axis.size, 0
        if hasattr(axis.size, "min"):
            return int(axis.size.min), int(axis.size.step)
        other = next((o for o in self.space().values() if o.id == axis.size.axis_id), None)
        if other is None or other is axis or axis.size.offset or axis.scale != other.scale:
            raise self.refused(f"the length of its axis {axis.id} follows another tensor")
        return self._length(other)

    def patch(self) -> Shape:
        """That of the test input, which it must be able to take; without one a usual length."""
        lengths = self.lengths()
        test = self.input.test_tensor
        if test is not None:
            return triple(self.tensor(self.input).shape[1:])
        return triple(
            least + -(-max(LEAST_LENGTH - least, 0) // step) * step if step else least
            for least, step in lengths
        )

    def steps(self) -> Steps:
        """The preprocessing.

        Raises:
            CheckpointError: a step has no exact counterpart.
        """
        steps = Steps.of(str(self.path), self.channels(self.input))
        for step in self.input.preprocessing:
            steps = self._with_step(steps, str(step.id), getattr(step, "kwargs", None))
        return steps

    def _with_step(self, steps: Steps, name: str, kwargs: Any) -> Steps:  # noqa: ANN401
        if hasattr(kwargs, "axis") and name != "softmax" and str(kwargs.axis) != "channel":
            raise steps.refused(name, f"along {kwargs.axis}")
        match name:
            case "ensure_dtype":
                if kwargs.dtype not in ("float32", "float64"):
                    raise steps.refused(name, f"to {kwargs.dtype}")
                return steps
            case "scale_linear":
                return steps.scaled(name, _list(kwargs.gain), _list(kwargs.offset))
            case "fixed_zero_mean_unit_variance":
                spreads, means = _list(kwargs.std), _list(kwargs.mean)
                offsets = [-m / s for m, s in zip(means, spreads, strict=True)]
                return steps.scaled(name, [1 / s for s in spreads], offsets)
            case "clip" if kwargs.min_percentile is None and kwargs.max_percentile is None:
                return steps.clipped(name, kwargs.min, kwargs.max)
            case "clip":
                if kwargs.min is not None or kwargs.max is not None:
                    raise steps.refused(name, "with values and percentiles")
                ends = (kwargs.min_percentile or 0.0, kwargs.max_percentile or 100.0)
                per_channel = self._is_per_channel(steps, name, kwargs.axes)
                return steps.cut(name, *ends, per_channel=per_channel)
            case "zero_mean_unit_variance":
                rule = Rule("deviation", epsilon=kwargs.eps)
            case "scale_range":
                if kwargs.reference_tensor not in (None, self.input.id):
                    raise steps.refused(name, f"by {kwargs.reference_tensor}")
                rule = Rule("range", epsilon=kwargs.eps)
            case _:
                return steps.elementwise(self._elementwise(name, kwargs, self.input))
        ends = (getattr(kwargs, "min_percentile", 0.0), getattr(kwargs, "max_percentile", 100.0))
        per_channel = self._is_per_channel(steps, name, kwargs.axes)
        return steps.measured(name, rule, per_channel=per_channel, percentiles=ends)

    def _is_per_channel(self, steps: Steps, name: str, axes: Sequence[Any] | None) -> bool:
        """Whether channels are measured one by one; along the axes of space an image must be whole."""
        measured = {str(one) for one in axes} if axes is not None else None
        if measured is not None and not self.space().keys() <= measured:
            raise steps.refused(name, f"along {', '.join(sorted(measured))} only")
        return measured is not None and "channel" not in measured

    def _elementwise(self, name: str, kwargs: Any, tensor: Any) -> Elementwise:  # noqa: ANN401
        """A step that is no line, as a function of tensors.

        Raises:
            CheckpointError: there is none.
        """
        match name:
            case "sigmoid":
                return torch.sigmoid
            case "softmax" if str(kwargs.axis) == "channel":
                return Softmax()
            case "binarize":
                return Above(tuple(_list(kwargs.threshold)))
            case "scale_linear":
                return Scaled(tuple(_list(kwargs.gain)), tuple(_list(kwargs.offset)))
            case "clip" if kwargs.min_percentile is None and kwargs.max_percentile is None:
                return Clipped(kwargs.min, kwargs.max)
        raise Steps.of(str(self.path), 1).refused(f"{name} of {tensor.id}")

    # --- what comes out

    def outputs(self) -> Iterator[tuple[Output, dict[str, Json], float | None]]:
        """Each output with its targets, and the threshold that makes it a mask.

        Raises:
            CheckpointError: it is of another size than the input, or has a step without counterpart.
        """
        for tensor in self.said.outputs:
            self._require_size(tensor)
            steps = [(str(one.id), getattr(one, "kwargs", None)) for one in tensor.postprocessing]
            while steps and steps[-1][0] == "ensure_dtype":
                steps.pop()
            threshold = None
            if steps and steps[-1][0] == "binarize":
                threshold = _list(getattr(steps.pop()[1], "threshold", None))[0]
            ends_as = steps.pop()[0] if steps and steps[-1][0] in ("sigmoid", "softmax") else ""
            if ends_as == "softmax" and self.channels(tensor) < 2:
                raise self.refused(f"{tensor.id} is a softmax of one channel")
            kept = tuple(
                self._elementwise(one, kwargs, tensor)
                for one, kwargs in steps
                if one != "ensure_dtype"
            )
            targets = targets_of(ends_as, str(tensor.id), self._channel_names(tensor))
            if not ends_as and not isinstance(tensor.data, list | tuple):
                low, high = getattr(tensor.data, "range", (None, None))
                if low is not None and high is not None and low < high:
                    (block,) = targets.values()
                    block["output_range"] = [float(low), float(high)]
            yield Output(tuple(targets), self.axes(tensor), kept), targets, threshold

    def _channel_names(self, tensor: Any) -> list[str]:  # noqa: ANN401 - its description
        axis = next((one for one in tensor.axes if one.type == "channel"), None)
        return [str(one) for one in axis.channel_names] if axis else [""]

    def _require_size(self, tensor: Any) -> None:  # noqa: ANN401 - its description
        space = self.space()
        for axis in tensor.axes:
            if axis.type != "space":
                continue
            mine, size = space.get(str(axis.id)), axis.size
            is_same = mine is not None and (
                size == mine.size
                if isinstance(size, int)
                else size.tensor_id == self.input.id
                and size.axis_id == mine.id
                and not size.offset
                and axis.scale == mine.scale
            )
            if not is_same:
                raise self.refused(f"{tensor.id} has another size along {axis.id} than its input")

    def halo(self) -> Shape:
        """Voxels at the border of a patch that are not to be used, along (z, y, x)."""
        halos = [
            {str(axis.id): int(getattr(axis, "halo", 0)) for axis in tensor.axes}
            for tensor in self.said.outputs
        ]
        return triple(max(one.get(axis, 0) for one in halos) for axis in "zyx")

    def description(self) -> Description:
        """All of it, in our words.

        Raises:
            CheckpointError: something has no counterpart here.
        """
        patch, space = self.patch(), self.space()
        found = {k: block for _, targets, _ in self.outputs() for k, block in targets.items()}
        overlap = [
            0.0 if n == 1 else max(0.25, 2 * halo / n)
            for n, halo in zip(patch, self.halo(), strict=True)
        ]
        if any(share >= 1 for share in overlap):
            raise self.refused(f"its halo {list(self.halo())} leaves nothing of {list(patch)}")
        steps = self.steps()
        scales = triple(float(space[axis].scale) if axis in space else 1.0 for axis in "zyx")
        units = {space[axis].unit for axis in "yx"}
        unit = str(units.pop()) if len(units) == 1 and None not in units else None
        notes = ()
        if steps.rule is not None and "z" not in space:
            notes = (f"note: {self.path}: values are measured in the whole volume, not in a slice",)
        return Description(
            plain(str(self.said.name)),
            found,
            self.channels(self.input),
            patch,
            steps.normalization(),
            spacing=scales if unit else (1.0, 1.0, 1.0),
            unit=unit,
            overlap=(overlap[0], overlap[1], overlap[2]),
            notes=notes,
        )

    # --- weights

    def network(self, trust: Trust) -> TrainedNetwork:
        """The network, with the weights that need the least trust.

        Raises:
            CheckpointError: it has none that can be used, or their code may not run.
        """
        weights, said = self.said.weights, self.description()
        if weights.onnx is not None:
            if weights.onnx.external_data is not None:
                raise self.refused("keeps the weights of its ONNX graph in another file")
            data = self.file(weights.onnx)
            session = onnx.Session(data)
            try:
                session.started.get_inputs()
            except Exception as error:
                found = f"its ONNX cannot be read ({first_words(error)})"
                raise CheckpointError(str(self.path), found, REMEDY) from error
            return self._run_as_it_is(said, Session(session), data)
        if weights.pytorch_state_dict is not None:
            return self._of_state_dict(weights.pytorch_state_dict, said, trust)
        if weights.torchscript is not None:
            data = self.file(weights.torchscript)
            line = trust.require(self.path, f"the TorchScript {weights.torchscript.source}")
            with quiet():
                module = torch.jit.load(io.BytesIO(data), map_location="cpu")
            said = replace(said, notes=(*said.notes, line))
            return self._run_as_it_is(said, Called(module), data, is_portable=False)
        forms = ", ".join(k for k, v in weights if v is not None)
        raise self.refused(f"has weights as {forms} only, not as onnx or of torch")

    def _of_state_dict(self, entry: Any, said: Description, trust: Trust) -> TrainedNetwork:  # noqa: ANN401
        """The network of a state dict, whose class may be known here.

        Raises:
            CheckpointError: it is not, and its code may not run; or the weights do not fit.
        """
        data, architecture = self.file(entry), entry.architecture
        weights = read_weights(data, str(entry.source), self.path)
        module_name = str(getattr(architecture, "import_from", ""))
        is_known = module_name.startswith("monai.networks.nets") and str(
            architecture.callable
        ) in get_args(NetworkName)
        if is_known and (found := self._as_ours(architecture, weights, said, data)) is not None:
            return found
        source = getattr(architecture, "source", None)
        if source is None:
            code = f"{architecture.callable} of {module_name}"
        else:
            code = f"{architecture.callable} in {source}"
        line = trust.require(self.path, code)
        module = self._build(architecture, source, module_name)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            found = f"its weights do not fit its network ({first_words(error)})"
            raise CheckpointError(str(self.path), found, REMEDY) from error
        said = replace(said, notes=(*said.notes, line))
        return self._run_as_it_is(said, Called(module.eval()), data, is_portable=False)

    def _as_ours(
        self,
        architecture: Any,  # noqa: ANN401 - its description
        weights: Mapping[str, Tensor],
        said: Description,
        data: bytes,
    ) -> TrainedNetwork | None:
        """A class of MONAI as a network that can be trained on; None where we cannot say it."""
        outputs = list(self.outputs())
        axes = self.axes(self.input).removeprefix("b").removeprefix("c")
        orders = {"zyx": "zyx", "yx": "zyx", "xyz": "xyz", "xy": "xyz"}
        is_plain = not self.steps().last and len(outputs) == 1 and not outputs[0][0].steps
        if not is_plain or axes not in orders or outputs[0][0].axes != self.axes(self.input):
            return None
        options = {k: v for k, v in architecture.kwargs.items() if k not in OWN_OPTIONS}
        model, given = own_network(
            str(architecture.callable), options, weights, orders[axes], outputs[0][1]
        )
        digest = digest_of([read_part(self.folder, self.mark, self.path), data])
        return replace(said, model=model).built(given, self.path, digest)

    def _build(self, architecture: Any, source: Any, module_name: str) -> nn.Module:  # noqa: ANN401
        """Run the code of an architecture, which is trusted.

        Raises:
            CheckpointError: it fails, or is another file than the description says.
        """
        try:
            if source is not None:
                code = self.file(architecture)
                module = ModuleType("vcmodels_trusted")
                exec(compile(code, str(source), "exec"), module.__dict__)
            else:
                module = library(module_name, str(self.path))
            return getattr(module, str(architecture.callable))(**architecture.kwargs)
        except CheckpointError:
            raise
        except Exception as error:
            found = f"{architecture.callable} cannot be built ({first_words(error)})"
            raise CheckpointError(str(self.path), found, OTHER) from error

    def _run_as_it_is(
        self,
        said: Description,
        run: Session | Called,
        data: bytes,
        *,
        is_portable: bool = True,
    ) -> TrainedNetwork:
        outputs = [output for output, _, _ in self.outputs()]
        module = ForeignNetwork(
            run, self.axes(self.input), self.steps().last, outputs, is_portable=is_portable
        )
        digest = digest_of([read_part(self.folder, self.mark, self.path), data])
        network = said.network_of(module, self.path, digest)
        is_open = any(step for _, step in self.lengths())
        return replace(network, lengths=self.lengths() if is_open else ())

    # --- files

    def file(self, entry: Any) -> bytes:  # noqa: ANN401 - a description with `source` and `sha256`
        """What is in a file that the description names.

        Raises:
            CheckpointError: it is missing, or another than was described.
        """
        name = str(entry.source)
        data = read_part(self.folder, name, self.path)
        if entry.sha256 and hashlib.sha256(data).hexdigest() != str(entry.sha256):
            raise CheckpointError(str(self.path), f"sha256 of {name} differs: damaged", REMEDY)
        return data

    def tensor(self, described: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - a tensor's description
        """The first test image of a tensor, (C, Z, Y, X).

        Raises:
            CheckpointError: it is none, or has other axes.
        """
        entry, axes = described.test_tensor, self.axes(described)
        try:
            found = np.load(io.BytesIO(self.file(entry)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CheckpointError(str(self.path), f"{entry.source} is no .npy", REMEDY) from error
        if found.ndim != len(axes) or found.dtype.kind not in "fiub":
            what = f"{entry.source} has shape {list(found.shape)}, its axes are {axes}"
            raise CheckpointError(str(self.path), what, REMEDY)
        values = found.astype(np.float32) if found.dtype.kind in "fb" else found.astype(np.int64)
        return from_axes(torch.from_numpy(values), axes)[0].numpy()

    def check(self) -> Check | None:
        """The test tensors; None where they are not there.

        Raises:
            CheckpointError: one is damaged.
        """
        every = [self.input, *self.said.outputs]
        if any(one.test_tensor is None for one in every):
            return None
        wanted, thresholds = {}, {}
        for described, (output, _, threshold) in zip(
            self.said.outputs, self.outputs(), strict=True
        ):
            tensor = torch.from_numpy(self.tensor(described))[None]
            wanted |= {name: one[0].numpy() for name, one in output.divided(tensor).items()}
            if threshold is not None:
                thresholds |= dict.fromkeys(output.names, threshold)
        return Check(self.tensor(self.input), wanted, thresholds)


def _list(value: Any) -> list[float]:  # noqa: ANN401 - one number or several
    return [float(one) for one in value] if isinstance(value, list | tuple) else [float(value)]


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)


class Softmax:
    """Over the channels."""

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return image.softmax(1)


@dataclass(frozen=True)
class Above:
    """1 above a threshold, one for all channels or one each, 0 elsewhere."""

    thresholds: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return (image > _column(self.thresholds, image)).float()


@dataclass(frozen=True)
class Scaled:
    """`* gain + offset`, one for all channels or one each."""

    gains: tuple[float, ...]
    offsets: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return image * _column(self.gains, image) + _column(self.offsets, image)


@dataclass(frozen=True)
class Clipped:
    """Values cut at ends."""

    low: float | None
    high: float | None

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return image.clamp(self.low, self.high)


def _refuse_remote(text: bytes, path: Path) -> None:
    """Refuse a description whose weights or test tensors lie elsewhere: nothing is downloaded.

    Raises:
        CheckpointError: naming one.
    """
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(str(path), "its description is no YAML", REMEDY) from error
    if not isinstance(raw, dict):
        raise CheckpointError(str(path), "its description is no YAML mapping", REMEDY)
    keys = ("weights", "test_inputs", "test_outputs", "inputs", "outputs")
    for source in _texts([raw.get(key) for key in keys]):
        if re.match(r"https?://\S+$", source):
            remedy = "download the whole package first, as a .zip"
            raise CheckpointError(str(path), f"its files lie elsewhere ({source[:80]})", remedy)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - YAML is anything
    """All sources in YAML values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        keys = [
            k for k in value if k not in ("documentation", "authors", "citation", "cite", "comment")
        ]
        for key in keys:
            yield from _texts(value[key])
