"""Weights as safetensors: numbers by name, mapped without a copy, with the record as metadata.

The format has no checksum, and metadata that are texts only (huggingface.co/docs/safetensors), so the
sha256 of record and numbers is one of them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.errors import CheckpointError
from vcmodels.exchange.base import Errors, Exported, library, of_weights, read_bytes
from vcmodels.exchange.record import KEY, REMEDY

SHA256 = "vcmodels_sha256"


def write(model: Exported, path: Path) -> Errors:
    """Write the weights, and compare what the file gives with the network.

    Raises:
        RefusedError: the library is missing, or the file gives other values.
    """
    torch_form = library("safetensors.torch", str(path))
    found = model.network.module.state_dict()
    weights = {name: one.detach().cpu().contiguous().clone() for name, one in found.items()}
    metadata = {"format": "pt", KEY: model.text, SHA256: _digest(model.text, weights)}
    path.write_bytes(torch_form.save(weights, metadata))
    module = load(path).module
    names = model.names

    def run(image):  # noqa: ANN001, ANN202 - a `Run`
        with torch.inference_mode():
            logits = module(torch.from_numpy(image), names)
        return [logits[name][0].numpy() for name in names]

    return model.compare(path, run)


def load(path: Path) -> TrainedNetwork:
    """The network of a file.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by vcmodels.
        RefusedError: the library is missing.
    """
    safetensors = library("safetensors", str(path))
    torch_form = library("safetensors.torch", str(path))
    data = read_bytes(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = torch_form.load(data)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(str(path), "is no safetensors file, or damaged", REMEDY) from error
    if KEY not in metadata or SHA256 not in metadata:
        raise CheckpointError(str(path), "holds no record of vcmodels", REMEDY)
    if _digest(metadata[KEY], weights) != metadata[SHA256]:
        raise CheckpointError(str(path), "sha256 differs: the file is damaged", REMEDY)
    return of_weights(metadata[KEY], weights, path, data)


def _digest(record: str, weights: Mapping[str, Tensor]) -> str:
    """Of the record, and of names, types, shapes and bytes of the weights."""
    found = hashlib.sha256(record.encode())
    for name, tensor in sorted(weights.items()):
        found.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
