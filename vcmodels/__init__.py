"""vcmodels: multi-task 3D networks for huge, sparsely labelled Zarr volumes.

What stands in `__all__` is the library, imported when it is first used: docs/python.md.
"""

import importlib
import os
from typing import TYPE_CHECKING

from vcmodels.machine import wait_without_spinning

# Both are read when torch is imported or first used, so they are set before it.
wait_without_spinning(os.environ)
# Tensors from 2 MB on in huge pages, where Linux grants them: torch reads this at its first
# allocation. Faulting in the pages of its activations takes a fifth of a 128^3 forward pass on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vcmodels.errors import (
        CheckpointError,
        OutputError,
        RefusedError,
        RunError,
        TaskError,
        VcmodelsError,
        VolumeError,
    )
    from vcmodels.evaluation import evaluate, score
    from vcmodels.inference import Predictor, load_predictor, predict_volume
    from vcmodels.library import find_patches, load_task, open_volume, train, training_set
    from vcmodels.samples.training_set import sample

_HOMES = {
    "errors": (
        "CheckpointError", "OutputError", "RefusedError", "RunError", "TaskError",
        "VcmodelsError", "VolumeError",
    ),
    "evaluation": ("evaluate", "score"),
    "inference": ("Predictor", "load_predictor", "predict_volume"),
    "library": ("find_patches", "load_task", "open_volume", "train", "training_set"),
    "samples.training_set": ("sample",),
}  # fmt: skip
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointError",
    "OutputError",
    "Predictor",
    "RefusedError",
    "RunError",
    "TaskError",
    "VcmodelsError",
    "VolumeError",
    "evaluate",
    "find_patches",
    "load_predictor",
    "load_task",
    "open_volume",
    "predict_volume",
    "sample",
    "score",
    "train",
    "training_set",
]


def __getattr__(name: str) -> object:
    """Import what is asked for; `import vcmodels` itself takes no time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
