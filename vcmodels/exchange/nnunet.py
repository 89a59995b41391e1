"""Trained folds of nnU-Net v2 as ordinary checkpoints: its network, grid, normalisation and views.

Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; files and names are those of nnunetv2 2.2 to 2.8
(`utilities/plans_handling`, `inference/predict_from_raw_data.py`). What plans and `dataset.json` ask for is
said in keys of a task (`prepare`, `tta`, `window`, `model_config: nnunet`); what cannot be said is refused.
Weights are read with `weights_only`: nothing in a file is run.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcmodels import __version__
from vcmodels.checkpoint import (
    SCHEMA,
    Checkpoint,
    TrainedNetwork,
    build_network,
    refuse_not_finite,
    require_types,
    save_checkpoint,
    strip_prefixes,
)
from vcmodels.errors import CheckpointError
from vcmodels.exchange.base import read_bytes
from vcmodels.exchange.nnunet_folder import DATASET, PLANS, folds_of, home_of
from vcmodels.geometry.boxes import triple

UNIT = "millimeter"
"""Of the voxel size in plans, which has none: that of the medical formats that nnU-Net reads."""
SINGLE = "segmentation"
"""The target of mutually exclusive classes."""
THICK = 3.0
"""`ANISO_THRESHOLD`."""
PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
RESAMPLING = "resample_data_or_seg_to_shape"
TRAINER = "nnUNetTrainer"
REMEDY = "predict with nnU-Net itself"


def load(path: Path) -> TrainedNetwork:
    """The network of a fold, ready to predict.

    Args:
        path: a fold with its checkpoint, or that checkpoint, below a folder with its plans.

    Raises:
        CheckpointError: it is damaged, or asks for what cannot be done here.
    """
    return build_network(read(path))


def convert(path: Path, output: Path) -> None:
    """Write a fold as an ordinary checkpoint; args as of `load`.

    Raises:
        CheckpointError: as `load`, or there are several folds.
    """
    checkpoint = read(path)
    build_network(checkpoint)
    save_checkpoint(output, checkpoint.state)


def read(path: Path) -> Checkpoint:
    """The state of a fold in the form of a checkpoint; args as of `load`.

    Raises:
        CheckpointError: as `load`, or there are several folds.
    """
    folds, home = folds_of(path), home_of(path)
    assert home is not None, "the caller has looked"
    if len(folds) > 1:
        remedy = f"name one, such as {folds[0].parent}"
        raise CheckpointError(str(path), f"holds {len(folds)} folds", remedy)
    data = read_bytes(folds[0])
    stored = _unpickled(data, folds[0])
    plans, dataset = (_json(home / name) for name in (PLANS, DATASET))
    fold = Fold(folds[0], plans, dataset, stored)
    if fold.trainer != TRAINER:
        told = f"{folds[0]}: its trainer {fold.trainer} may do what its plans do not say"
        warnings.warn(f"note: {told}; compare a prediction with nnU-Net's", stacklevel=2)
    state = fold.state()
    require_types(state, folds[0])
    return Checkpoint(folds[0], hashlib.sha256(data).hexdigest(), state)


_ALLOWED = [
    (np._core.multiarray.scalar, name)  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]
_TYPES = [np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "bool"))]
"""What its log of figures is made of; none of it runs anything."""


def _unpickled(data: bytes, path: Path) -> dict[str, Any]:
    """What a checkpoint of nnU-Net holds.

    Raises:
        CheckpointError: it is none, or holds more than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals([*_ALLOWED, *_TYPES]):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"contains {named[1]}, which could run code" if named else "cannot be read"
        remedy = "save network_weights, init_args and trainer_name again, without it"
        raise CheckpointError(str(path), what, remedy) from error
    if not isinstance(found, dict) or not isinstance(found.get("network_weights"), Mapping):
        raise CheckpointError(
            str(path), "holds no network_weights", "give a checkpoint of nnU-Net v2"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), "is no JSON", "restore it") from error
    if not isinstance(found, dict):
        raise CheckpointError(str(path), "is no JSON object", "restore it")
    return found


@dataclass(frozen=True)
class Fold:
    """A checkpoint, the plans that it was trained by and what its data are called."""

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    stored: Mapping[str, Any]
    """What is in the checkpoint."""

    def state(self) -> dict[str, Any]:
        """The state of an ordinary checkpoint.

        Raises:
            CheckpointError: the plans ask for what cannot be done here, or lack something.
        """
        try:
            return self._state()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            found = f"its plans lack or spoil {type(error).__name__}: {error}"
            raise CheckpointError(
                str(self.path), found, "restore plans.json and dataset.json"
            ) from error

    def _state(self) -> dict[str, Any]:
        patch = [int(n) for n in self._spread(self.configuration["patch_size"], 1)]
        wanted, sizes = self.spacing
        targets, heads = self.targets, self.heads
        return {
            "schema": SCHEMA,
            "task": {
                "tr_params": {"model_name": self.model_name, "patch_size": patch},
                "model_config": self.model,
                "dataset_config": {
                    "targets": targets,
                    "volume_paths": [self._trained_on],
                    "prepare": self._prepare(patch, wanted),
                    "normalization": {"scheme": "none"},
                },
                "inference_params": {
                    "overlap": 0.5,
                    "window": "gaussian",
                    **({"tta": {"flips": flips}} if (flips := self.flips) else {}),
                },
            },
            "heads": {name: len(rows) for name, rows in heads.items()},
            "in_channels": len(self.channels),
            "patch_size": patch,
            "spacing": sizes,
            "unit": UNIT,
            "versions": {"vcmodels": __version__},
            "normalization": {
                "scheme": "none", "per": "global", "per_channel": True, "percentiles": [0.5, 99.5],
                "channels": [], "volumes": {}, "choice": None,
            },
            "nnunet": {
                "trainer": self.trainer, "configuration": self.name, "fold": self.path.parent.name,
                "dataset": str(self.plans.get("dataset_name", "")),
                "channels": self.channels, "labels": dict(self.dataset["labels"]),
            },
            "model": self.weights(),
        }  # fmt: skip

    # --- what it is called

    @property
    def trainer(self) -> str:
        """The class that trained it."""
        return str(self.stored.get("trainer_name", TRAINER))

    @property
    def name(self) -> str:
        """Of the configuration."""
        return str(self.stored["init_args"]["configuration"])

    @property
    def model_name(self) -> str:
        """Of results."""
        name = f"{self.plans.get('dataset_name', 'nnunet')}_{self.name}"
        return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64]

    @property
    def _trained_on(self) -> dict[str, str]:
        """The volumes of the training as an entry of a task, which must have one."""
        raw = f"nnUNet_raw/{self.plans.get('dataset_name', 'dataset')}"
        return {"input": f"{raw}/imagesTr", **dict.fromkeys(self.heads, f"{raw}/labelsTr")}

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        """What the plans say of it, with what it inherits.

        Raises:
            CheckpointError: it is the second stage of a cascade, or prepares data in its own way.
        """
        every, name, found = self.plans["configurations"], self.name, dict[str, Any]()
        for _ in every:
            found = {**every[name], **found}
            name = every[name].get("inherits_from")
            if name is None:
                break
        if found.get("previous_stage"):
            self._refuse(f"{self.name} sees the labels of {found['previous_stage']}")
        if found.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            self._refuse(f"{found['preprocessor_name']} prepares its data")
        return found

    def _refuse(self, found: str) -> None:
        raise CheckpointError(str(self.path), f"{found}, which is not known here", REMEDY)

    # --- axes: plans count them after `transpose_forward`, a 2D network lacks the first

    def _spread(self, values: Sequence[Any], first: Any) -> list[Any]:  # noqa: ANN401 - passed on
        """What plans say along their axes, along (z, y, x); `first` where a 2D network has none."""
        whole = [*values] if len(values) == 3 else [first, *values]
        return [whole[axis] for axis in self.backward]

    @cached_property
    def backward(self) -> tuple[int, int, int]:
        """Where each of (z, y, x) is among the axes of the plans."""
        forward = [int(n) for n in self.plans.get("transpose_forward", (0, 1, 2))]
        if sorted(forward) != [0, 1, 2]:
            self._refuse(f"transpose_forward is {forward}")
        return triple(forward.index(axis) for axis in range(3))

    @property
    def is_flat(self) -> bool:
        """Whether the network sees single slices."""
        return len(self.configuration["patch_size"]) == 2

    @property
    def spacing(self) -> tuple[list[float | None], list[float]]:
        """What volumes are resampled to, None along an axis that stays; and the size that is typical."""
        wanted = [float(n) for n in self.configuration["spacing"]]
        usual = self.plans.get("original_median_spacing_after_transp") or [1.0, *wanted]
        return self._spread(wanted, None), self._spread(wanted, float(usual[0]))

    @property
    def flips(self) -> list[str]:
        """The axes along which predictions are mirrored."""
        axes = self.stored.get("inference_allowed_mirroring_axes") or ()
        named = {self.backward.index(int(axis) + self.is_flat) for axis in axes}
        return ["zyx"[axis] for axis in sorted(named)]

    # --- the grid and the values

    def _prepare(self, patch: list[int], spacing: list[float | None]) -> dict[str, Any]:
        """Crop to what is not 0, normalise, resample, fill up to a patch: nnU-Net's order."""
        standards = self._standards()
        return {
            "spacing": spacing,
            "order": self._order(),
            "crop": {"foreground": {"above": "nonzero"}},
            "standardize": standards if any(standards) else None,
            "standardize_first": True,
            "least": patch,
        }

    def _order(self) -> dict[str, Any]:
        """How values between voxels are found."""
        given = self.configuration
        name, keys = given["resampling_fn_data"], given["resampling_fn_data_kwargs"]
        if name != RESAMPLING or keys.get("order") != 3 or keys.get("order_z") != 0:
            self._refuse(f"{name} with {keys} resamples its data")
        if keys.get("force_separate_z"):
            self._refuse("force_separate_z")
        is_free = keys.get("force_separate_z") is None
        return {"image": "spline", **({"thick": THICK} if is_free else {})}

    def _standards(self) -> list[dict[str, Any] | None]:
        """How each channel is normalised."""
        schemes = self.configuration["normalization_schemes"]
        masked = self.configuration["use_mask_for_norm"]
        return [
            self._standard(str(scheme), number, is_masked=bool(mask))
            for number, (scheme, mask) in enumerate(zip(schemes, masked, strict=True))
        ]

    def _standard(self, scheme: str, number: int, *, is_masked: bool) -> dict[str, Any] | None:
        match scheme:
            case "ZScoreNormalization" if is_masked:
                return {"method": "zscore", "keep_zero": True}
            case "ZScoreNormalization":
                return {"method": "zscore", "above": "all"}
            case "CTNormalization":
                key = "foreground_intensity_properties_per_channel"
                every = self.plans.get(key) or self.plans[key.replace("per_channel", "by_modality")]
                values = {name: float(value) for name, value in every[str(number)].items()}
                return {
                    "method": "scale",
                    "low": values["percentile_00_5"],
                    "high": values["percentile_99_5"],
                    "mean": values["mean"],
                    "sd": max(values["std"], 1e-8),
                }
            case "RGBTo01Normalization":
                return {"method": "scale", "low": 0.0, "high": 255.0, "sd": 255.0}
            case "NoNormalization":
                return None
        self._refuse(f"channel {number} has {scheme}")
        raise AssertionError

    # --- what goes in and comes out

    @property
    def channels(self) -> list[str]:
        """What the channels are called, in their order."""
        named = self.dataset.get("channel_names") or self.dataset["modality"]
        return [str(named[key]) for key in sorted(named, key=int)]

    @property
    def _labels(self) -> dict[str, Any]:
        """The labels without `ignore`, which no network predicts."""
        return {name: value for name, value in self.dataset["labels"].items() if name != "ignore"}

    @property
    def has_regions(self) -> bool:
        """Whether labels are masks that may lie in each other, as those of a tumour."""
        return any(isinstance(v, list) and len(v) > 1 for v in self._labels.values())

    @property
    def targets(self) -> dict[str, dict[str, Any]]:
        """Classes that exclude each other are one target, regions are one each."""
        if self.has_regions:
            return {name: {"kind": "binary"} for name in self.heads}
        values = self._values
        plain = {"kind": "multiclass", "channels": len(values), "averages": "logits"}
        return {
            SINGLE: plain if values == [*range(len(values))] else plain | {"label_values": values}
        }

    @property
    def _values(self) -> list[int]:
        each = self._labels.values()
        return sorted({int(v[0] if isinstance(v, list) else v) for v in each})

    @cached_property
    def heads(self) -> dict[str, list[int]]:
        """By target, its channels among those of the network."""
        if not self.has_regions:
            return {SINGLE: [*range(len(self._values))]}
        named = [name for name, value in self._labels.items() if not _is_background(value)]
        safe = [re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_") or "region" for name in named]
        unique = (
            safe if len(set(safe)) == len(safe) else [f"region_{n + 1}" for n in range(len(safe))]
        )
        return {name: [row] for row, name in enumerate(unique)}

    # --- the network

    @cached_property
    def _architecture(self) -> "Architecture":
        given = self.configuration.get("architecture")
        return Architecture.of(given) if given else Architecture.of_old(self.configuration)

    @property
    def model(self) -> dict[str, Any]:
        """The `model_config`.

        Raises:
            CheckpointError: the network has parts that ours has not.
        """
        found = self._architecture
        if fault := found.fault:
            self._refuse(fault)
        return {
            "name": "nnunet",
            "residual": found.is_residual,
            "f_maps": found.features,
            "strides": [self._spread(stride, 1) for stride in found.strides],
            "kernels": [self._spread(kernel, 1) for kernel in found.kernels],
            "blocks_per_level": found.blocks,
            "decoder_blocks": found.decoder_blocks[0],
            "deep_supervision": len(found.features) > 2,
        }

    def weights(self) -> dict[str, Tensor]:
        """The weights by the names of our network, along (z, y, x).

        Raises:
            CheckpointError: a name is none of the network's.
        """
        found: dict[str, Tensor] = {}
        given = strip_prefixes(self.stored["network_weights"])
        refuse_not_finite(given, str(self.path))
        for name, tensor in given.items():
            for ours, value in self._renamed(name, tensor):
                found[ours] = self._turned(value).float().contiguous()
        if not self._architecture.has_bias:
            levels = len(self._architecture.features)
            for level, features in zip(
                range(levels - 1), self._architecture.features[-2::-1], strict=True
            ):
                found[f"decoders.decoder.levels.{level}.up.bias"] = torch.zeros(features)
        return found

    def _renamed(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A weight, by our names; none of what has no effect, or is there a second time."""
        if _SECOND_NAME.search(name) or _LOST_BIAS.search(name):
            return
        if found := re.fullmatch(r"decoder\.seg_layers\.(\d+)\.(weight|bias)", name):
            level = len(self._architecture.features) - 2 - int(found[1])
            if level < max(len(self._architecture.features) - 2, 1):  # the deepest has no loss
                for target, rows in self.heads.items():
                    yield f"heads.{target}.{level}.{found[2]}", tensor[rows]
            return
        for pattern, ours in _NAMES:
            if found := re.fullmatch(pattern, name):
                yield ours(found), tensor
                return
        raise CheckpointError(str(self.path), f"{name} is no weight of its network", REMEDY)

    def _turned(self, tensor: Tensor) -> Tensor:
        """A weight whose axes are those of plans, along (z, y, x)."""
        if tensor.ndim == 4:
            tensor = tensor.unsqueeze(2)
        if tensor.ndim != 5:
            return tensor
        return tensor.permute(0, 1, *(2 + axis for axis in self.backward))


_SECOND_NAME = re.compile(r"all_modules|^decoder\.encoder\.")
"""Modules that a network of nnU-Net holds twice."""
_LOST_BIAS = re.compile(r"\.conv\.bias$")
"""Of a convolution with an instance norm behind it, which takes it away again."""


def _residual(found: re.Match[str]) -> str:
    """A weight of a residual block; a stem is the first part of the first level."""
    level, block, part = (
        found["level"],
        int(found["block"]) + (found["level"] == "0"),
        found["part"],
    )
    if part == "conv1":
        inner = f"first.{found['rest']}"
    elif part == "conv2":
        inner = found["rest"]
    else:
        kind, _, leaf = found["rest"].partition(".")
        inner = f"shortcut.{int(part.split('.')[1]) + (kind == 'norm')}.{leaf}"
    return f"encoder.levels.{level}.{block}.{inner}"


_REST = r"(?P<rest>(?:conv|norm)\.(?:weight|bias))"
_NAMES = [
    (rf"encoder\.stem\.convs\.0\.{_REST}", lambda m: f"encoder.levels.0.0.{m['rest']}"),
    (
        rf"encoder\.stages\.(?P<level>\d+)\.0\.convs\.(?P<block>\d+)\.{_REST}",
        lambda m: f"encoder.levels.{m['level']}.{m['block']}.{m['rest']}",
    ),
    (
        rf"encoder\.stages\.(?P<level>\d+)\.blocks\.(?P<block>\d+)\."
        rf"(?P<part>conv1|conv2|skip\.\d)\.{_REST}",
        _residual,
    ),
    (
        r"decoder\.transpconvs\.(?P<level>\d+)\.(?P<rest>weight|bias)",
        lambda m: f"decoders.decoder.levels.{m['level']}.up.{m['rest']}",
    ),
    (
        rf"decoder\.stages\.(?P<level>\d+)\.convs\.(?P<block>\d+)\.{_REST}",
        lambda m: f"decoders.decoder.levels.{m['level']}.mix.{m['block']}.{m['rest']}",
    ),
]
"""Names of weights there, and what they are here."""


def _is_background(value: object) -> bool:
    return {int(v) for v in (value if isinstance(value, list) else [value])} == {0}  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Architecture:
    """A network as plans describe it, in any of their forms."""

    is_residual: bool
    features: list[int]
    strides: list[list[int]]
    kernels: list[list[int]]
    blocks: list[int]
    decoder_blocks: list[int]
    has_bias: bool
    fault: str = ""
    """What ours has not, in words."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Architecture":
        """Of plans with an `architecture`."""
        keys, kind = given["arch_kwargs"], str(given["network_class_name"]).rpartition(".")[2]
        count, is_residual = int(keys["n_stages"]), kind == RESIDUAL
        blocks = keys.get("n_blocks_per_stage" if is_residual else "n_conv_per_stage")
        return cls(
            is_residual,
            _each(keys["features_per_stage"], count),
            [_each(stride, _dimensions(keys)) for stride in _each_list(keys["strides"], count)],
            [
                _each(kernel, _dimensions(keys))
                for kernel in _each_list(keys["kernel_sizes"], count)
            ],
            _each(blocks, count),
            _each(keys["n_conv_per_stage_decoder"], count - 1),
            bool(keys.get("conv_bias")),
            next(_faults(kind, keys), ""),
        )

    @classmethod
    def of_old(cls, given: Mapping[str, Any]) -> "Architecture":
        """Of plans before nnU-Net 2.4, whose networks have no keys of their own."""
        kernels, kind = given["conv_kernel_sizes"], str(given["UNet_class_name"])
        most, base = int(given["unet_max_num_features"]), int(given["UNet_base_num_features"])
        return cls(
            kind == RESIDUAL,
            [min(base * 2**level, most) for level in range(len(kernels))],
            given["pool_op_kernel_sizes"],
            kernels,
            given["n_conv_per_stage_encoder"],
            given["n_conv_per_stage_decoder"],
            has_bias=True,
            fault=next(_faults(kind, {}), ""),
        )


def _faults(kind: str, keys: Mapping[str, Any]) -> Iterator[str]:
    """What of a network ours has not."""
    if kind not in (PLAIN, RESIDUAL):
        yield f"the network {kind}"
    norm, slope = keys.get("norm_op_kwargs") or {}, (keys.get("nonlin_kwargs") or {})
    for key, wanted in (("norm_op", "InstanceNorm"), ("nonlin", "LeakyReLU"), ("conv_op", "Conv")):
        if key in keys and not str(keys[key]).rpartition(".")[2].startswith(wanted):
            yield f"{key} {keys[key]}"
    if norm.get("eps", 1e-5) != 1e-5 or not norm.get("affine", True):
        yield f"norm_op_kwargs {dict(norm)}"
    if slope.get("negative_slope", 0.01) != 0.01:
        yield f"nonlin_kwargs {dict(slope)}"
    for key in ("nonlin_first", "stem_channels", "bottleneck_channels", "squeeze_excitation"):
        if keys.get(key):
            yield f"{key} {keys[key]}"
    decoder = keys.get("n_conv_per_stage_decoder")
    if isinstance(decoder, list) and len(set(decoder)) > 1:
        yield f"n_conv_per_stage_decoder {decoder}"


def _dimensions(keys: Mapping[str, Any]) -> int:
    return 2 if str(keys.get("conv_op", "")).endswith("2d") else 3


def _each(given: int | Sequence[int], count: int) -> list[int]:
    """One number for each of so many."""
    return [int(given)] * count if isinstance(given, int) else [int(n) for n in given]


def _each_list(given: int | Sequence[Any], count: int) -> list[Any]:
    return [given] * count if isinstance(given, int) else [*given]
