"""Where the relative paths of a task count from, when it is read again in another folder."""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from vcmodels.config.plain import as_list, as_object
from vcmodels.config.reading import read_task_file
from vcmodels.config.values import VOLUME_KEYS
from vcmodels.errors import TaskError, VolumeError
from vcmodels.runs.records import TASK, is_run, starting_folder
from vcmodels.volumes.location import expand_location, is_remote

LOCATIONS = {
    "tr_params": ("ckpt_out_base", "checkpoint_path", "tensorboard_log_dir"),
    "dataset_config": ("cache_file", "index_dir"),
    "inference_params": ("input_path", "output_dir", "checkpoint_path"),
}
"""Keys that hold paths, besides those of the volumes and `inference_params.skip.mask`."""

Block = MutableMapping[str, Any]


def read_run(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The resolved task of a run, as it is to be read here, and what to note about it.

    Its relative paths count from where its training was started; the run folder is the one that is
    named, also when it was moved or copied.

    Raises:
        TaskError: the folder holds no run, or its task cannot be read.
    """
    if not is_run(folder):
        found = (
            f"is a folder, and no run: {TASK} and what a training writes beside it are not there"
        )
        raise TaskError(str(folder), found, "name a task file or a run folder")
    task, notes = read_task_file(folder / TASK), list[str]()
    origin = starting_folder(folder)
    if origin is not None and not origin.is_dir():
        notes.append(
            f"{origin}, where the run was started, is gone: relative paths count from here"
        )
    elif origin is not None and not origin.samefile(Path.cwd()):
        anchor(task, origin)
    settings = as_object(task.get("tr_params"))
    if settings is not None and not _is_same(settings.get("ckpt_out_base"), folder):
        settings["ckpt_out_base"] = str(Path.cwd() / folder)
    return task, notes


def anchor(task: Block, folder: Path) -> None:
    """Make the relative paths of a resolved task absolute, from `folder`, in place."""
    for block, key in _places(task):
        value = block[key]
        items = as_list(value)
        if items is not None:
            block[key] = [_anchored(item, folder) for item in items]
        else:
            block[key] = _anchored(value, folder)


def _places(task: Block) -> Iterator[tuple[Block, str]]:
    """Every (block, key) of the task that holds one or more locations."""
    sections = {name: as_object(task.get(name)) or {} for name in LOCATIONS}
    skip = as_object(sections["inference_params"].get("skip")) or {}
    named = [(sections[name], key) for name, keys in LOCATIONS.items() for key in keys]
    yield from ((block, key) for block, key in [*named, (skip, "mask")] if key in block)
    for entry in as_list(sections["dataset_config"].get("volume_paths")) or []:
        volume = as_object(entry) or {}
        yield from ((volume, key) for key in volume if key == "input" or key not in VOLUME_KEYS)


def _anchored(value: object, folder: Path) -> object:
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)  # only to look at: variables stay in the task
    if is_remote(expanded) or expanded.startswith("~"):
        return value
    return value if Path(expanded).is_absolute() else f"{folder}/{value}"


def _is_same(base: object, folder: Path) -> bool:
    """Whether a `ckpt_out_base` already means the folder."""
    try:
        return isinstance(base, str) and Path(expand_location(base)).samefile(folder)
    except (OSError, VolumeError):
        return False
