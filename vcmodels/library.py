"""vcmodels from Python: the functions of `import vcmodels` that take a task, or a path."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcmodels import config, training
from vcmodels.config import Task
from vcmodels.formats.imported import open_located
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.find import PatchList
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Lines, Notes, Reporter, Silent
from vcmodels.runs.run import Run
from vcmodels.samples import training_set as samples
from vcmodels.samples.dataset import PatchDataset
from vcmodels.volumes import Volume, expand_location
from vcmodels.volumes.axes import ChannelAxis, Reading
from vcmodels.workflows.cascade import find_regions
from vcmodels.workflows.whole_volumes import WholeVolumes


def load_task(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Task:
    """A validated task; no volume is opened.

    Args:
        source: a task file, a run folder for the task that it was trained with, or the task itself
            as nested dicts.
        overrides: lines `dotted.key=value`, as after `--set` on the command line.

    Raises:
        TaskError: the file, or a key in it, is not valid; says where and what to do.

    Warns:
        UserWarning: for each key that is read otherwise than it is written.
    """
    if isinstance(source, Mapping):
        task, notes = config.parse_task(dict(source), "task", overrides)
    else:
        loaded = config.load_task(source, overrides)
        task, notes = loaded.task, loaded.notes
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return task


TaskSource = Task | str | Path | Mapping[str, Any]
"""A task, or what `load_task` takes."""


def _loaded(task: TaskSource) -> Task:
    return task if isinstance(task, Task) else load_task(task)


def train(
    task: TaskSource,
    *,
    restart: bool = False,
    accept_changed_data: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train a task, or continue the run that its folder holds; returns when the run ends or stops.

    Ctrl-C saves and stops; the same call continues.

    Args:
        task: from `load_task`, or what that takes.
        restart: move an earlier run aside and begin again.
        accept_changed_data: continue a run on inputs or labels that are other than they were.
        reporter: gets lines and progress; by default lines are printed.

    Returns:
        The run: `best` and `last` are its checkpoints, `log` its curves.

    Raises:
        RefusedError: the task, a volume or the run folder does not allow it; nothing was changed.
        RunError: a failure on the way; the last checkpoint is whole and the same call continues.
    """
    task, reporter = _loaded(task), reporter or Lines()
    find_regions(task, reporter)
    training.train(
        task,
        reporter=reporter,
        restart=restart,
        accept_changed_data=accept_changed_data,
        whole_volumes=WholeVolumes,
    )
    return Run(task.run_dir, task.tr_params.model_name)


def open_volume(
    location: str | Path,
    *,
    level: int = 0,
    channel_axis: ChannelAxis | None = None,
    axes: str | None = None,
    channels: Sequence[int] | None = None,
    index: Mapping[str, int] | None = None,
) -> Volume:
    """A volume to read boxes from; nothing but metadata is read.

    Args:
        location: an array or an OME-Zarr group, v2 or v3, by path or URL; or a file of another
            format, which is imported once.
        level: which level of an OME-Zarr group.
        channel_axis: where the channels are, when the store does not say.
        axes: what the stored axes are, a letter each, such as `tczyx`.
        channels: which are read, in this order; all when None.
        index: what is read of axes other than z, y, x and the channels, such as {"t": 5}.

    Raises:
        VolumeError: it is missing or damaged, or its axes cannot be read.
    """
    place = expand_location(str(location))
    chosen = tuple(channels) if channels is not None else None
    reading = Reading(axes, is_general=False, channels=chosen, index=dict(index or {}))
    return open_located(
        place,
        key=str(location),
        level=level,
        channels="any",
        channel_axis=channel_axis,
        reading=reading,
        reporter=Notes(),
    )


def find_patches(task: TaskSource, reporter: Reporter | None = None) -> PatchList:
    """The patches that a task trains and validates on, from their cache if it is valid.

    Args:
        task: from `load_task`, or what that takes.
        reporter: gets lines and progress.

    Raises:
        RefusedError: a volume does not fit the task, or no patch qualifies.
        ChunkError: a label chunk cannot be read.
    """
    resolved = resolve(_loaded(task), reporter or Silent())
    return load_or_find_patches(resolved.task, resolved.volumes, reporter)


def training_set(task: TaskSource, reporter: Reporter | None = None) -> PatchDataset:
    """The dataset that a new training of a task draws from, augmented as there.

    A `torch.utils.data.DataLoader` takes it as it is.

    Args:
        task: from `load_task`, or what that takes.
        reporter: gets lines and progress.

    Raises:
        RefusedError: a volume does not fit the task, or no patch qualifies.
    """
    return samples.training_set(resolve(_loaded(task), reporter), reporter)
