"""The network as a graph that runs without our code, for batches of any size and patches of one."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.export import Dim, ExportedProgram

from vcmodels.errors import OutputError
from vcmodels.exchange.base import Exported

MOST_BATCH = 1024
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def traced(model: Exported) -> ExportedProgram:
    """The program of a network, traced with two patches, so that their number stays open.

    Raises:
        OutputError: torch cannot trace it.
    """
    batch = Dim("batch", min=1, max=MOST_BATCH)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(
                model.module, (model.image(2),), dynamic_shapes=({0: batch},)
            )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        found = f"torch.export cannot trace {model.network.task.model.name} ({first_line(error)})"
        raise OutputError(str(model.checkpoint.path), found, "export it as safetensors") from error


@contextmanager
def quiet() -> Generator[None]:
    """Without what torch's exporters say of themselves: deprecations, and libraries that are not there."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
