"""ONNX: the graph and its weights in one file, run by onnxruntime here and by many programs elsewhere.

The record is in the model's metadata. A file of concatenated protobuf messages is one message
(protobuf.dev, encoding, "last one wins"), so the sha256 of all that is before it is appended as one more
entry of the metadata: the file stays valid, and a flipped bit does not load.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.errors import CheckpointError, OutputError
from vcmodels.exchange.base import (
    INPUT,
    Errors,
    Exported,
    library,
    read_bytes,
    with_module,
)
from vcmodels.exchange.graph import first_line, quiet, traced
from vcmodels.exchange.record import KEY, REMEDY
from vcmodels.models.base import Logits

OPSET = 20
SHA256 = "vcmodels_sha256"
MOST_BYTES = 2_000_000_000
"""Of one message: protobuf reads no longer ones."""


def write(model: Exported, path: Path) -> Errors:
    """Write the graph, and compare what onnxruntime gives with the network.

    Raises:
        RefusedError: a library is missing.
        OutputError: the network cannot be written so, or the file gives other values.
    """
    data = model_bytes(model, path)
    path.write_bytes(data)
    session = Session(data)
    return model.compare(path, lambda image: session.run(image, model.names))


def model_bytes(model: Exported, path: Path) -> bytes:
    """What a file of a network holds.

    Args:
        model: the network.
        path: for messages.

    Raises:
        RefusedError, OutputError: as for `write`.
    """
    onnx = library("onnx", str(path))
    library("onnxscript", str(path))
    library("onnxruntime", str(path))
    size = sum(
        one.numel() * one.element_size() for one in model.network.module.state_dict().values()
    )
    if size > MOST_BYTES:
        found = f"weights of {size / 1e9:.1f} GB are more than a file of ONNX holds"
        raise OutputError(str(path), found, "export it as safetensors")
    program = traced(model)
    try:
        with quiet():
            found = torch.onnx.export(
                program, (model.image(2),), input_names=[INPUT], output_names=list(model.names),
                dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = f"torch.onnx cannot write {model.network.task.model.name} ({first_line(error)})"
        raise OutputError(str(path), reason, "export it as safetensors") from error
    assert found is not None, "dynamo gives a program"
    proto = found.model_proto
    for node in proto.graph.node:  # where in our code it was: paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    proto.producer_name, proto.doc_string = "vcmodels", ""
    onnx.helper.set_model_props(proto, {KEY: model.text})
    return _sealed(proto.SerializeToString(deterministic=True))


def _sealed(body: bytes) -> bytes:
    return body + _seal(hashlib.sha256(body).hexdigest())


def _seal(digest: str) -> bytes:
    """A `ModelProto` with one entry of metadata: field 14, a message of the texts 1 and 2."""
    entry = _text(1, SHA256) + _text(2, digest)
    return bytes([14 << 3 | 2, len(entry)]) + entry


def _text(field: int, text: str) -> bytes:
    return bytes([field << 3 | 2, len(text)]) + text.encode()


SEAL_LENGTH = len(_seal("0" * 64))


def load(path: Path) -> TrainedNetwork:
    """The network of a file, run by onnxruntime.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by vcmodels.
        RefusedError: onnxruntime is missing.
    """
    return load_bytes(read_bytes(path), path)


def load_bytes(data: bytes, path: Path) -> TrainedNetwork:
    """The network of what is in a file; raises as `load`."""
    library("onnxruntime", str(path))
    body, seal = data[:-SEAL_LENGTH], data[-SEAL_LENGTH:]
    if not seal.startswith(_seal("0" * 64)[:-64]):
        found = "has no checksum of vcmodels: cut, or written by another program"
        raise CheckpointError(str(path), found, REMEDY)
    if _sealed(body) != data:
        raise CheckpointError(str(path), "sha256 differs: the file is damaged", REMEDY)
    session = Session(data)
    record = session.metadata.get(KEY, "")
    return with_module(record, OnnxNetwork(session), path, data)


class Session:
    """A model in onnxruntime, which starts where it is first used, as in another process."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._started: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {"data": self.data, "_started": None}

    @property
    def started(self) -> Any:  # noqa: ANN401 - an `InferenceSession`
        """The session, of as many threads as torch has."""
        if self._started is None:
            runtime = library("onnxruntime", "onnx")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            known = runtime.get_available_providers()
            wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
            providers = [name for name in wanted if name in known]
            self._started = runtime.InferenceSession(self.data, options, providers=providers)
        return self._started

    @property
    def metadata(self) -> dict[str, str]:
        """Of the model."""
        return self.started.get_modelmeta().custom_metadata_map

    def run(self, image: np.ndarray[Any, Any], names: Collection[str]) -> list[Any]:
        """(B, C, Z, Y, X) float32 -> the outputs of these names."""
        return self.started.run(list(names), {INPUT: np.ascontiguousarray(image, np.float32)})


class OnnxNetwork(nn.Module):
    """A model in onnxruntime, called as a network of torch."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, image: Tensor, targets: Collection[str] | None = None) -> Logits:
        """(B, C, Z, Y, X) -> the logits of the targets, of all when None."""
        session = self.session
        names = [one.name for one in session.started.get_outputs()] if targets is None else targets
        found = session.run(image.detach().float().cpu().numpy(), names)
        logits = [torch.from_numpy(one).to(image.device) for one in found]
        return {name: (one,) for name, one in zip(names, logits, strict=True)}
