"""Weights of an encoder from a local file, fitted to the names and channels of a network here.

The first convolution of a file for colour images becomes one for any number of channels: the mean over
its input channels, scaled so that an image with the same values in all channels gives the same features.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vcmodels.errors import RefusedError, TaskError
from vcmodels.extras import load_extra

KEY = "model_config.encoder_weights"
FIRST = "_conv_stem.weight"
_STACKED = re.compile(r"^_blocks\.\d+\.(?=\d+\.)")
"""MONAI counts blocks through, and says their stack before."""
_UNUSED = re.compile(
    r"^(_conv_head|_bn1|_fc|classifier)\b|\.(running_mean|running_var|num_batches_tracked)$"
)
"""Of the classifier that the encoder was, and of its batch norms, which are instance norms here."""
_PREFIXES = ("module.", "model.", "body.", "encoder.")


def encoder_weights(file: str, network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of an encoder, by their names in a network.

    Args:
        file: a state dict of `torch.save`, of which nothing is run, or `.safetensors`.
        network: with the encoder, which may be on the meta device.
        prefix: of the names of the encoder in it.

    Raises:
        TaskError: the file is missing, damaged, or its weights are not those of the encoder.
    """
    given = {_port_name(name): one for name, one in _read(file).items()}
    given = {name: one for name, one in given.items() if not _UNUSED.search(name)}
    state = network.state_dict()
    wanted = {name: one for name, one in state.items() if name.startswith(prefix)}
    names = {_port_name(name.removeprefix(prefix)): name for name in wanted}
    found = dict[str, Tensor]()
    for port, name in names.items():
        if port in given:
            found[name] = _fitted(port, given[port], state[name])
    wrong = [port for port in names if port not in given]
    wrong += [port for port in given if port not in names]
    wrong += [
        port
        for port, name in names.items()
        if name in found and found[name].shape != state[name].shape
    ]
    if wrong:
        what = f"{file}: {len(wrong)} of {len(names)} tensors do not fit the encoder: {', '.join(wrong[:3])}"
        raise TaskError(KEY, what, "give weights of the same EfficientNet and as many dimensions")
    if bad := next((n for n, one in found.items() if not bool(torch.isfinite(one).all())), None):
        raise TaskError(KEY, f"{file}: {bad} holds NaN or infinity", "give another file")
    return found


def _read(file: str) -> Mapping[str, Tensor]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise TaskError(KEY, f"there is no file {file}", "check the path; nothing is downloaded")
    try:
        if path.suffix == ".safetensors":
            return load_extra("safetensors.torch", "exchange", KEY).load(path.read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except RefusedError:
        raise
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        what = f"{file} is damaged, or holds more than tensors"
        raise TaskError(KEY, what, "give a state dict") from error
    is_weights = (
        isinstance(found, Mapping)
        and found
        and all(isinstance(name, str) and isinstance(one, Tensor) for name, one in found.items())
    )
    if not is_weights:
        raise TaskError(KEY, f"{file} holds no tensors by name", "give a state dict")
    return found


def _port_name(name: str) -> str:
    """A name as the first port has it, without what wrappers put before it."""
    while head := next((one for one in _PREFIXES if name.startswith(one)), None):
        name = name.removeprefix(head)
    return _STACKED.sub("_blocks.", name)


def _fitted(name: str, weight: Tensor, like: Tensor) -> Tensor:
    """A weight, of the first convolution for as many channels as the network takes."""
    is_first = name == FIRST and weight.ndim == like.ndim and weight.shape[1] != like.shape[1]
    if not is_first:
        return weight
    mean = weight.float().mean(1, keepdim=True) * (weight.shape[1] / like.shape[1])
    return mean.expand(-1, like.shape[1], *mean.shape[2:]).contiguous()
