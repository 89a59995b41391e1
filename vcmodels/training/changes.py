"""Which keys of a task may differ when a run is continued, and which do."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import Checkpoint
from vcmodels.config import Task, parse_task
from vcmodels.config.anchoring import anchor
from vcmodels.errors import TaskError
from vcmodels.runs.differences import differing_keys, shown
from vcmodels.runs.records import starting_folder

MAY_CHANGE = (
    "inference_params",
    "overrides",
    "dataset_config.cache_file",
    "dataset_config.use_cache",
    "dataset_config.index_dir",
    *(
        f"tr_params.{key}"
        for key in (
            "max_epoch", "max_minutes", "num_dataloader_workers", "chunk_cache_gb",
            "tensorboard_log_dir", "device", "ckpt_out_base", "keep_checkpoints", "save_every",
            "threads", "compile", "checkpoint_path", "load_weights_only", "memory_gb", "recipe",
            "early_stopping", "wandb",
        )
    ),
)  # fmt: skip
"""Keys that may differ when a run is continued: they do not change what is learnt per step."""


def resolved_task(checkpoint: Checkpoint) -> Task | None:
    """The task of a checkpoint, with the defaults of newer keys; None if it has keys that are gone."""
    try:
        return parse_task(checkpoint.state["task"], "the checkpoint")[0]
    except TaskError:
        return None


def changes_since(
    checkpoint: Checkpoint, task: Task, folder: Path | None = None
) -> list[tuple[str, str, str]]:
    """As `changed_keys`, between the task of a checkpoint and the one that is to continue it."""
    before = resolved_task(checkpoint)
    old = checkpoint.state["task"] if before is None else before.to_json()
    return changed_keys(old, task.to_json(), folder)


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], folder: Path | None = None
) -> list[tuple[str, str, str]]:
    """(dotted key, old value, new value) of everything that differs and may not.

    Args:
        old: the resolved task of a run.
        new: the one that is to continue it.
        folder: of the run. Relative paths in `old` count from where it was started, so that other
            texts in `new` may mean the same places.
    """
    found = differing_keys([old, new])
    origin = starting_folder(folder) if folder is not None else None
    if found and origin is not None:
        absolute = [copy.deepcopy(dict(task)) for task in (old, new)]
        anchor(absolute[0], origin)
        anchor(absolute[1], Path.cwd())
        same = found.keys() - differing_keys(absolute).keys()
        found = {key: values for key, values in found.items() if key not in same}
    return [
        (key, shown(before), shown(after))
        for key, (before, after) in sorted(found.items())
        if not may_change(key)
    ]


def listed_changes(changed: Sequence[tuple[str, str, str]], most: int = 5) -> str:
    """Changed keys with both values, as text for a message."""
    listed = ", ".join(f"{key} was {old}, is {new}" for key, old, new in changed[:most])
    return listed + (f", and {len(changed) - most} more" if len(changed) > most else "")


def may_change(key: str) -> bool:
    """Whether a dotted key, or a section that it is in, is one of `MAY_CHANGE`."""
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
