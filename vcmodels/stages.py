"""The networks of a cascade that find regions: carried by the checkpoints of the network that needs them.

So one file is all that a prediction needs. What is carried is what a prediction reads of a checkpoint:
no optimiser, and one set of weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    build_network,
    load_checkpoint,
    require_types,
)
from vcmodels.config import Task
from vcmodels.config.regions import network_file
from vcmodels.errors import CheckpointError
from vcmodels.regions.section import RegionSource

STAGES = "stages"
_CARRIED = (
    "schema", "task", "heads", "in_channels", "patch_size", "spacing", "unit", "versions",
    "normalization", "intensities", "calibration", "symmetry", "tuned", STAGES,
)  # fmt: skip


def carried_stages(task: Task) -> dict[str, dict[str, Any]]:
    """What the checkpoints of a task carry of the networks that find its regions, by their sha256.

    Raises:
        CheckpointError: one is gone, damaged, or another than the task says.
    """
    region = task.dataset_config.region
    sources = [one for one in region.sources if one.checkpoint] if region else []
    return {str(one.sha256): _carried(_own_file(one)) for one in sources}


def _carried(checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.state
    found = {key: state[key] for key in _CARRIED if key in state}
    return found | {"model": state.get("ema") or state["model"]}


def _own_file(source: RegionSource) -> Checkpoint:
    """The checkpoint of a source, where the task says that it is."""
    assert source.checkpoint is not None
    checkpoint = load_checkpoint(network_file(source.checkpoint))
    if checkpoint.sha256 != source.sha256:
        found = f"is another checkpoint than the one that found the regions ({source.sha256})"
        raise CheckpointError(str(checkpoint.path), found, "restore that one, or train again")
    return checkpoint


def stage_network(source: RegionSource, carriers: Iterable[Path]) -> TrainedNetwork:
    """The network of a source, from a checkpoint that carries it, or else from its own file.

    Args:
        source: with its sha256.
        carriers: checkpoints that may carry it.

    Raises:
        CheckpointError: it is nowhere, damaged, or another one.
    """
    for path in carriers:
        stages = load_checkpoint(path).state.get(STAGES)
        state = stages.get(source.sha256) if isinstance(stages, Mapping) else None
        if isinstance(state, Mapping):
            require_types(state, path)
            return build_network(Checkpoint(path, str(source.sha256), dict(state)))
    return build_network(_own_file(source))
