"""Bundles of MONAI that other programs wrote (docs.monai.io, "MONAI Bundle Specification").

Of the configuration we read what says how a volume becomes the input of the network, which class of
MONAI that is, and what its output means. References (`@name#part`) are followed, and an expression
(`$...`) is taken where it is a constant: all else is code, which runs only when it is trusted.
MONAI sees volumes of NIfTI as (x, y, z): the network does so here, too, patch by patch.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch import Tensor, nn

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.data.rules import Rule
from vcmodels.errors import CheckpointError
from vcmodels.exchange.base import library
from vcmodels.exchange.foreign import (
    OTHER,
    REMEDY,
    Called,
    Description,
    ForeignNetwork,
    Json,
    Output,
    digest_of,
    first_words,
    own_network,
    plain,
    read_part,
    read_weights,
    targets_of,
    unpacked,
)
from vcmodels.exchange.foreign_steps import Steps
from vcmodels.exchange.graph import quiet
from vcmodels.exchange.trust import Trust
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.models.monai import OWN_OPTIONS, NetworkName

SUBJECT = "a bundle of MONAI"
METADATA = "configs/metadata.json"
CONFIGS = tuple(
    f"configs/{stem}.{end}" for stem in ("inference", "evaluate") for end in ("json", "yaml", "yml")
)
WEIGHTS, SCRIPT = "models/model.pt", "models/model.ts"
NETWORKS = ("network_def", "network", "net")
NETS = re.compile(r"(monai\.networks\.nets\.(\w+\.)*)?(\w+)")
MOST_STEPS = 50
"""References that follow each other; more are a circle."""
NOTHING = {
    "EnsureChannelFirst",
    "EnsureType",
    "ToTensor",
    "ToDevice",
    "CastToType",
    "LoadImage",
    "Identity",
}
"""Transforms that leave a volume as it is, for us: it is read and stacked elsewhere."""
AFTER = {
    "Invert",
    "SaveImage",
    "KeepLargestConnectedComponent",
    "FillHoles",
    "RemoveSmallObjects",
    "CopyItems",
    "DeleteItems",
    "MeanEnsemble",
}
"""Transforms after the activation: what they make of the output is left to the tasks of vcmodels."""
HALF_OVERLAP = 0.25  # MONAI's default


def load(path: Path, trust: Trust) -> TrainedNetwork:
    """The network of a bundle, a folder or a .zip.

    Raises:
        CheckpointError: it is damaged, needs code that may not run, or has a transform that has no
            counterpart here.
        RefusedError: MONAI is missing.
    """
    with unpacked(path, METADATA) as folder:
        return Bundle.read(folder, path).network(trust)


@dataclass(frozen=True)
class Config:
    """A configuration whose references are followed, and of which nothing is run."""

    values: Json
    path: Path
    """Of the bundle, for messages."""

    def at(self, place: str) -> Any:  # noqa: ANN401 - JSON is anything
        """What is at `name#part#0`, resolved; None where there is nothing."""
        found: Any = self.values
        for part in re.split("#|::", place):
            if isinstance(found, str):
                found = self.resolved(found)
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                return None
        return self.resolved(found)

    def resolved(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - JSON is anything
        """A value with its references followed; expressions that are constants are those.

        Raises:
            CheckpointError: references go round, or one names nothing.
        """
        if depth > MOST_STEPS:
            raise CheckpointError(str(self.path), "its references go round in a circle", REMEDY)
        if isinstance(value, list):
            return [self.resolved(one, depth + 1) for one in value]
        if isinstance(value, dict):
            return {key: self.resolved(one, depth + 1) for key, one in value.items()}
        if not isinstance(value, str):
            return value
        if value.startswith("@") and re.fullmatch(r"@[\w#:]+", value):
            target: Any = self.values
            for part in re.split("#|::", value[1:]):
                if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                    target = target[int(part)]
                elif isinstance(target, dict) and part in target:
                    target = target[part]
                else:
                    raise CheckpointError(str(self.path), f"{value} names nothing", REMEDY)
            return self.resolved(target, depth + 1)
        if value.startswith("$"):
            return self._constant(value, depth)
        return value

    def _constant(self, value: str, depth: int) -> Any:  # noqa: ANN401 - JSON is anything
        """An expression as a value where it is one, else as it stands."""
        text = re.sub(
            r"@[\w#:]+", lambda one: repr(self.resolved(one[0], depth + 1)), value[1:].strip()
        )
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value


@dataclass(frozen=True)
class Bundle:
    """What a bundle says."""

    folder: Path
    path: Path
    """Of the bundle, for messages."""
    metadata: Json
    config: Config
    text: bytes
    """The configuration as it is stored."""
    config_name: str

    @classmethod
    def read(cls, folder: Path, path: Path) -> "Bundle":
        """Read its two texts.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        name = next((one for one in CONFIGS if (folder / one).is_file()), None)
        if name is None:
            raise CheckpointError(str(path), f"has no {CONFIGS[0]}", REMEDY)
        texts = [read_part(folder, one, path) for one in (METADATA, name)]
        try:
            metadata, config = (
                yaml.safe_load(text) if n.endswith("ml") else json.loads(text)
                for n, text in zip((METADATA, name), texts, strict=True)
            )
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise CheckpointError(str(path), "its configuration is damaged", REMEDY) from error
        if not isinstance(metadata, dict) or not isinstance(config, dict):
            raise CheckpointError(str(path), "its configuration is no mapping", REMEDY)
        return cls(folder, path, metadata, Config(config, path), texts[1], name)

    def refused(self, found: str) -> CheckpointError:
        """The error of what we cannot do."""
        return CheckpointError(str(self.path), found, OTHER)

    # --- what goes in

    @property
    def in_channels(self) -> int:
        """Those of the network.

        Raises:
            CheckpointError: nothing says how many.
        """
        return self._count(self._network_block().get("in_channels"), "inputs")

    @property
    def out_channels(self) -> int:
        """Those that the network gives; errors as of `in_channels`."""
        return self._count(self._network_block().get("out_channels"), "outputs")

    def _count(self, given: object, side: str) -> int:
        if given is None:
            tensors = self.metadata.get("network_data_format", {}).get(side, {})
            first = next(iter(tensors.values()), {}) if isinstance(tensors, dict) else {}
            given = first.get("num_channels") if isinstance(first, dict) else None
        if type(given) is not int or not 1 <= given <= 4096:
            raise self.refused(f"does not say how many channels its {side} have")
        return given

    def transforms(self, *places: str) -> Iterator[tuple[str, Json]]:
        """Names and arguments of the transforms at the first of some places that there is."""
        for place in places:
            found = self.config.at(place)
            if isinstance(found, dict) and "transforms" in found:
                found = found["transforms"]
            if not isinstance(found, list):
                continue
            for one in found:
                target = one.get("_target_") if isinstance(one, dict) else one
                if not isinstance(one, dict) or not isinstance(target, str):
                    raise self.refused(f"has a transform that is code ({str(target)[:60]})")
                if one.get("_disabled_") is not True:
                    yield re.sub(r"([dD]|Dict)$", "", target.split(".")[-1]), one
            return

    def prepared(self) -> tuple[Steps, Json | None]:
        """The normalisation, and what is done to volumes before, as `dataset_config.prepare`.

        Raises:
            CheckpointError: a transform has no exact counterpart.
        """
        steps, prepare = Steps.of(str(self.path), self.in_channels), dict[str, Any]()
        for name, given in self.transforms("preprocessing", "preprocess", "pre_transforms"):
            for key, value in given.items():
                if isinstance(value, str) and value.startswith("$") and name not in NOTHING:
                    raise steps.refused(name, f"with code for {key}")
            if name in NOTHING:
                continue
            if name == "Orientation":
                prepare["orientation"] = {"to": str(given.get("axcodes", "RAS"))}
            elif name == "Spacing":
                sides = given.get("pixdim")
                if not isinstance(sides, list | tuple) or len(sides) != 3:
                    raise steps.refused(name, f"with pixdim {sides}")
                prepare["spacing"] = [float(one) for one in reversed(sides)]
                mode = given.get("mode", "bilinear")
                first = mode[0] if isinstance(mode, list) else mode
                prepare["order"] = {"image": "linear" if first == "bilinear" else "cubic"}
            else:
                steps = _with_transform(steps, name, given)
        return steps, prepare or None

    # --- what comes out

    def targets(self) -> dict[str, Json]:
        """The targets that the network predicts.

        Raises:
            CheckpointError: a transform after it has no counterpart.
        """
        channels, activation = self.out_channels, ""
        places = ("postprocessing", "postprocess", "post_transforms")
        for name, given in self.transforms(*places):
            if name == "Activations":
                activation = next((one for one in ("sigmoid", "softmax") if given.get(one)), "")
                if not activation and given.get("other"):
                    raise self.refused("has the step Activations with other")
            elif name == "AsDiscrete":
                activation = activation or ("softmax" if given.get("argmax") else "sigmoid")
            elif name not in NOTHING | AFTER:
                raise self.refused(f"has the step {name} after its network, which is unknown here")
        if activation == "softmax" and channels < 2:
            raise self.refused("has a softmax of one channel")
        name = {"softmax": "label", "sigmoid": "mask"}.get(activation, "values")
        return targets_of(activation, name, self._channel_names(channels))

    def _channel_names(self, count: int) -> list[str]:
        """What the metadata call the channels of the output."""
        tensors = self.metadata.get("network_data_format", {}).get("outputs", {})
        first = next(iter(tensors.values()), {}) if isinstance(tensors, dict) else {}
        names = first.get("channel_def") if isinstance(first, dict) else None
        said = [str(one) for one in names.values()] if isinstance(names, dict) else []
        return said if len(said) == count else [""] * count

    def window(self) -> tuple[Shape, tuple[float, float, float]]:
        """The patch and its overlap, along (z, y, x).

        Raises:
            CheckpointError: there is no window of a known size.
        """
        inferer = self.config.at("inferer")
        block = inferer if isinstance(inferer, dict) else {}
        size, overlap = block.get("roi_size"), block.get("overlap", HALF_OVERLAP)
        if size is None:
            tensors = self.metadata.get("network_data_format", {}).get("inputs", {})
            first = next(iter(tensors.values()), {}) if isinstance(tensors, dict) else {}
            size = first.get("spatial_shape") if isinstance(first, dict) else None
        given = [size] * 3 if isinstance(size, int) else size
        lengths = list(given) if isinstance(given, list | tuple) else []
        if len(lengths) not in (2, 3) or not all(type(n) is int and n > 0 for n in lengths):
            raise self.refused(f"has no sliding window of a known size (roi_size {size})")
        is_one = not isinstance(overlap, list | tuple)
        shares = [overlap] * len(lengths) if is_one else list(overlap)
        are_shares = all(isinstance(one, int | float) and 0 <= one < 1 for one in shares)
        if len(shares) != len(lengths) or not are_shares:
            raise self.refused(f"has a window with overlap {overlap}")
        thin = 3 - len(lengths)
        patch = triple([*[1] * thin, *reversed(lengths)])
        z, y, x = (float(one) for one in [*[0.0] * thin, *reversed(shares)])
        return patch, (z, y, x)

    def description(self) -> Description:
        """All of it, in our words.

        Raises:
            CheckpointError: something has no counterpart here.
        """
        steps, prepare = self.prepared()
        patch, overlap = self.window()
        spacing = prepare and prepare.get("spacing")
        said = str(self.metadata.get("name") or self.path.stem)
        notes = [f"note: {self.path}: patches are blended by our window, not by MONAI's"]
        left = [
            one
            for one, _ in self.transforms("postprocessing", "postprocess", "post_transforms")
            if one in AFTER - {"SaveImage", "Invert", "CopyItems", "DeleteItems"}
        ]
        notes += [f"note: {self.path}: its {one} is left out; see postprocess" for one in left]
        return Description(
            plain(said),
            self.targets(),
            self.in_channels,
            patch,
            steps.normalization(),
            spacing=_spacing(spacing) if spacing else (1.0, 1.0, 1.0),
            unit="millimeter" if spacing else None,
            overlap=overlap,
            prepare=prepare,
            notes=tuple(notes),
        )

    # --- weights

    def _network_block(self) -> Json:
        """The arguments of the network, of which `_target_` is the class; {} where it is code."""
        for place in NETWORKS:
            found = self.config.at(place)
            if isinstance(found, dict) and "_target_" in found:
                return found
        return {}

    def known_class(self) -> str | None:
        """The class of MONAI that the network is, with arguments that are values; else None."""
        block = self._network_block()
        found = NETS.fullmatch(str(block.get("_target_", "")))
        if found is None or found[3] not in get_args(NetworkName):
            return None
        return None if any(_is_code(value) for value in block.values()) else found[3]

    def network(self, trust: Trust) -> TrainedNetwork:
        """The network.

        Raises:
            CheckpointError: it has no weights that fit, or code that may not run.
        """
        kind = self.known_class()
        if kind is None and not trust.is_given:
            block = self._network_block()
            code = f"its network {block.get('_target_') or 'models/model.ts'}"
            trust.require(self.path, code)
        said = self.description()
        block = self._network_block()
        if kind is not None and (self.folder / WEIGHTS).is_file():
            data = read_part(self.folder, WEIGHTS, self.path)
            weights = read_weights(data, WEIGHTS, self.path)
            options = {k: v for k, v in block.items() if k not in OWN_OPTIONS and k[0] != "_"}
            model, given = own_network(kind, options, weights, "xyz", said.targets)
            digest = digest_of([self.text, data])
            return replace(said, model=model).built(given, self.path, digest)
        return self._of_code(said, trust)

    def _of_code(self, said: Description, trust: Trust) -> TrainedNetwork:
        """The network that code of the bundle makes, which is trusted.

        Raises:
            CheckpointError: it is not, or it fails.
        """
        if (self.folder / WEIGHTS).is_file():
            code, file = f"the network of {self.config_name}", WEIGHTS
        else:
            code, file = f"the TorchScript {SCRIPT}", SCRIPT
        line = trust.require(self.path, code)
        data = read_part(self.folder, file, self.path)
        try:
            module = self._made(file, data)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                str(self.path), f"its network cannot be made ({first_words(error)})", OTHER
            ) from error
        axes = "bcyx" if said.patch[0] == 1 else "bczyx"
        run = Called(Turned(module.eval()))
        found = ForeignNetwork(
            run, axes, (), [Output(tuple(said.targets), axes)], is_portable=False
        )
        said = replace(said, notes=(*said.notes, line))
        return said.network_of(found, self.path, digest_of([self.text, data]))

    def _made(self, file: str, data: bytes) -> nn.Module:
        if file == SCRIPT:
            with quiet():
                return torch.jit.load(self.folder / SCRIPT, map_location="cpu")
        parser = library("monai.bundle", SUBJECT).ConfigParser()
        parser.read_config(str(self.folder / self.config_name))
        parser["bundle_root"] = str(self.folder)
        place = next(one for one in NETWORKS if one in parser)
        module = parser.get_parsed_content(place)
        module.load_state_dict(read_weights(data, WEIGHTS, self.path))
        return module


class Turned(nn.Module):
    """A network that sees the axes of space as (x, y, z), given them as (z, y, x)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) -> its first output."""
        order = (0, 1, *range(image.ndim - 1, 1, -1))
        found = self.network(image.permute(order).contiguous())
        return (found if isinstance(found, Tensor) else found[0]).permute(order)


def _is_code(value: Any) -> bool:  # noqa: ANN401 - JSON is anything
    if isinstance(value, list):
        return any(_is_code(one) for one in value)
    if isinstance(value, Mapping):
        return "_target_" in value or any(_is_code(one) for one in value.values())
    return isinstance(value, str) and value.startswith("$")


def _with_transform(steps: Steps, name: str, given: Json) -> Steps:
    """The steps and one more transform of values.

    Raises:
        CheckpointError: it has no exact counterpart.
    """
    per_channel = given.get("channel_wise") is True
    match name:
        case "ScaleIntensityRange":
            low, high = float(given["a_min"]), float(given["a_max"])
            first, last = given.get("b_min"), given.get("b_max")
            if high <= low or (first is None) != (last is None):
                raise steps.refused(name, f"from {low:g} to {high:g}")
            start, end = 0.0, 1.0
            if first is not None and last is not None:
                start, end = float(first), float(last)
            gain = (end - start) / (high - low)
            found = steps.scaled(name, [gain], [start - low * gain])
            is_cut = given.get("clip") and first is not None
            return found.clipped(name, start, end) if is_cut else found
        case "ScaleIntensity":
            first, last = given.get("minv", 0.0), given.get("maxv", 1.0)
            if first is None and last is None:
                return steps.scaled(name, [1 + float(given.get("factor") or 0)], [0.0])
            if first is None or last is None:
                first, last = 0.0, 1.0
            start, end = float(first), float(last)
            found = steps.measured(name, Rule("range"), per_channel=per_channel)
            return found.scaled(name, [end - start], [start])
        case "ScaleIntensityRangePercentiles" if given.get("relative") is not True:
            ends = (float(given["lower"]), float(given["upper"]))
            start, end = float(given["b_min"]), float(given["b_max"])
            found = steps.measured(name, Rule("range"), per_channel=per_channel, percentiles=ends)
            found = found.scaled(name, [end - start], [start])
            return found.clipped(name, start, end) if given.get("clip") else found
        case "NormalizeIntensity":
            return _normalized(steps, name, given, per_channel=per_channel)
        case "ClipIntensityPercentiles" if given.get("sharpness_factor") is None:
            lower, upper = given.get("lower"), given.get("upper")
            ends = (
                0.0 if lower is None else float(lower),
                100.0 if upper is None else float(upper),
            )
            return steps.cut(name, *ends, per_channel=per_channel)
    raise steps.refused(name)


def _normalized(steps: Steps, name: str, given: Json, *, per_channel: bool) -> Steps:
    """NormalizeIntensity: by given numbers, or by those of the image."""
    means, spreads, is_partial = given.get("subtrahend"), given.get("divisor"), given.get("nonzero")
    if means is None and spreads is None:
        rule = Rule("deviation", "nonzero" if is_partial else "all")
        return steps.measured(name, rule, per_channel=per_channel)
    if means is None or spreads is None or is_partial:
        raise steps.refused(name, "with only a part of its numbers")
    means, spreads = (one if isinstance(one, list) else [one] for one in (means, spreads))
    gains = [1 / float(one) for one in spreads]
    offsets = [-float(m) * g for m, g in zip(means, gains, strict=True)]
    return steps.scaled(name, gains, offsets)


def _spacing(given: Any) -> Spacing:  # noqa: ANN401 - JSON that was checked
    """Three lengths as numbers."""
    z, y, x = (float(one) for one in given)
    return z, y, x
