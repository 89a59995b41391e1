"""The folder of one run: who holds it, what it was started with, where its files lie."""

import copy
import glob
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import Checkpoint, load_checkpoint, previous_generation
from vcmodels.config import Task, parse_task
from vcmodels.config.load import (
    anchor,
    fill_augment,
    fill_normalization,
    fill_prepare,
    fill_sizes,
)
from vcmodels.config.messages import as_object
from vcmodels.config.task import OF_VOLUMES
from vcmodels.config.values import VOLUME_KEYS
from vcmodels.errors import CheckpointError, OutputError, RefusedError, TaskError, VcmodelsError
from vcmodels.reporting import list_some
from vcmodels.runs.run import (
    CHECKPOINTS,
    LOCK,
    Run,
    add_start,
    differing_keys,
    end_start,
    note_start,
    read_log,
    read_starts,
    shown,
    starting_folder,
)
from vcmodels.volumes.locks import FileLock, holder
from vcmodels.volumes.places import sweep_temporaries, write_atomic, write_json

MAY_CHANGE = (
    "inference_params",
    "evaluation",
    "overrides",
    "dataset_config.cache_file",
    "dataset_config.use_cache",
    "dataset_config.on_missing",
    "dataset_config.index_dir",
    *(
        f"tr_params.{key}"
        for key in (
            "max_epoch", "max_minutes", "num_dataloader_workers", "chunk_cache_gb",
            "tensorboard_log_dir", "device", "ckpt_out_base", "keep_checkpoints", "save_every",
            "threads", "compile", "checkpoint_path", "load_weights_only", "memory_gb", "recipe",
            "early_stopping", "wandb", "calibrate", "validation", "keep_unscored",
        )
    ),
)  # fmt: skip
"""Keys that may differ when a run is continued: they do not change what is learnt per step."""


def resolved_task(checkpoint: Checkpoint) -> Task | None:
    """The task of a checkpoint, with the defaults of newer keys.

    None where there is none, or where it has keys that are gone.
    """
    try:
        return parse_task(checkpoint.state.get("task"), "the checkpoint", is_record=True)[0]
    except TaskError:
        return None


def changes_since(
    checkpoint: Checkpoint, new: Mapping[str, Any], folder: Path | None = None
) -> list[tuple[str, str, str]]:
    """As `changed_keys`, between the task of a checkpoint and the one that is to continue it."""
    before = resolved_task(checkpoint)
    old = checkpoint.state["task"] if before is None else before.to_json()
    return changed_keys(old, new, folder)


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
    old, new = _without_tests(old), _without_tests(new)
    found = differing_keys([old, new])
    origin = starting_folder(folder) if folder is not None else None
    if found and origin is not None:
        absolute = [copy.deepcopy(dict(task)) for task in (old, new)]
        anchor(absolute[0], origin)
        anchor(absolute[1], Path.cwd())
        same = found.keys() - differing_keys(absolute).keys()
        found = {key: values for key, values in found.items() if key not in same}
    free = _EXCHANGED if _take_alike(old, new) else ()
    return [
        (key, shown(before), shown(after))
        for key, (before, after) in sorted(found.items())
        if (not may_change(key) and key not in free) or _chooses_best(key, new)
    ]


def _chooses_best(key: str, new: Mapping[str, Any]) -> bool:
    """Whether a key says how the curve of the best checkpoint is measured: two ways do not compare."""
    settings = as_object(new.get("tr_params")) or {}
    is_of_volumes = str(settings.get("best_metric")).startswith(OF_VOLUMES)
    return is_of_volumes and key.startswith("tr_params.validation.metrics")


def _without_tests(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task with None for the volumes of the split `test`, which no training sees."""
    config = as_object(task.get("dataset_config")) or {}
    volumes = config.get("volume_paths")
    if not isinstance(volumes, list):  # of a damaged checkpoint: whoever compares it names it
        return dict(task)
    paths = [None if (as_object(v) or {}).get("split") == "test" else v for v in volumes]
    return {**task, "dataset_config": {**config, "volume_paths": paths}}


_EXCHANGED = ("tr_params.batch_size", "tr_params.gradient_accumulation")


def _take_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the steps of two resolved tasks take the same patches, in batches of any size.

    What is learnt then differs by rounding only, unless mixup pairs the patches of a batch.
    """
    both = [as_object(task.get("tr_params")) or {} for task in (old, new)]
    if any(settings.get("mixup") for settings in both):
        return False
    before, now = map(_patches_of_step, both)
    return before is not None and before == now


def _patches_of_step(settings: Mapping[str, Any]) -> int | None:
    """How many patches a step takes; None where the settings do not say."""
    batch, batches = settings.get("batch_size"), settings.get("gradient_accumulation", 1)
    return batch * batches if isinstance(batch, int) and isinstance(batches, int) else None


def listed_changes(changed: Sequence[tuple[str, str, str]], most: int = 5) -> str:
    """Changed keys with both values, as text for a message."""
    texts = (f"{key} was {old}, is {new}" for key, old, new in changed)
    return list_some(texts, most, between="; ")


def may_change(key: str) -> bool:
    """Whether a dotted key, or a section that it is in, is one of `MAY_CHANGE`."""
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def is_place(key: str) -> bool:
    """Whether a dotted key says where an input or a label of a volume is."""
    found = re.match(r"dataset_config\.volume_paths\.\d+\.([^.]+)", key)
    return found is not None and (found[1] == "input" or found[1] not in VOLUME_KEYS)


MOST_TRIES = 10
"""To make a folder that others may remove; some file systems, as /proc, never take one."""
LOCK_SECONDS = 0.3
"""How long a lock is tried for: `vcmodels runs` takes it for an instant, to see whether it is held."""


class RunFolder(Run):
    """Holds the folder for one training at a time; the lock goes with the process, however it ends."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.outcome = "stopped"
        """How the training ended, for `environment.json`; an exception says more."""
        self._held: FileLock | None = None
        self._made: list[Path] = []
        self._has_begun = False
        self._aside: Path | None = None

    def __enter__(self) -> "RunFolder":
        self._held = self._locked()
        sweep_temporaries(self.folder)
        self._held.sign()
        return self

    def _locked(self) -> FileLock:
        """The lock of the folder; both are made if they are not there.

        Raises:
            OutputError: another training holds it, or it cannot be made.
        """
        tries = 0
        while True:
            tries += 1
            try:
                self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
                self.folder.mkdir(parents=True, exist_ok=True)
                return FileLock(self.lock, patience_s=LOCK_SECONDS)
            except BlockingIOError as error:
                found = f"in use by {holder(self.lock)}"
                remedy = "wait for it, or choose another ckpt_out_base"
                raise OutputError(str(self.folder), found, remedy) from error
            except OSError as error:
                if isinstance(error, FileNotFoundError) and tries < MOST_TRIES:
                    continue  # another training was refused, and has just removed what it had made
                found, remedy = f"{self.folder}: {error.strerror}", "choose a writable folder"
                raise OutputError("tr_params.ckpt_out_base", found, remedy) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._held is None:
            return
        if self._has_begun:
            with suppress(OSError):  # a full disk; what did not fit has reported it
                end_start(self.folder, self.outcome if error is None else _failure(error))
        if isinstance(error, RefusedError) and not self._has_begun:
            self._put_back()
        if isinstance(error, RefusedError) and self._made:
            self._unmake()
        self._held.close()

    def _unmake(self) -> None:
        """Remove the folders that were made for a task that is refused, if nothing is in them."""
        if [path.name for path in self.folder.iterdir()] != [LOCK]:
            return
        self.lock.unlink()
        with suppress(OSError):  # another process begins to use one of them
            for folder in self._made:
                folder.rmdir()

    def move_aside(self) -> Path | None:
        """Rename what runs wrote here into `<folder>/before-<time>/`; None if there was nothing.

        What else lies in the folder, such as volumes or the task file of a user, stays.
        """
        entries = self.own_entries()
        if not entries:
            return None
        aside = self.folder / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        aside.mkdir()
        for entry in entries:
            entry.replace(aside / entry.name)
        self._aside = aside
        return aside

    def _put_back(self) -> None:
        """Undo `move_aside` for a task that is refused after it."""
        if self._aside is None:
            return
        for made in (self.patches, self.splits_file):
            made.unlink(missing_ok=True)
        for entry in list(self._aside.iterdir()):
            entry.replace(self.folder / entry.name)
        self._aside.rmdir()

    def write_task(self, document: Mapping[str, Any]) -> None:
        """Write the resolved task: JSON values, with every default filled in."""
        write_atomic(self.task_file, json.dumps(document, indent=2).encode())

    def begin(self, record: Mapping[str, Any]) -> None:
        """Write with what the training goes on now; how it ended follows when the folder is left.

        Args:
            record: JSON values for `environment.json`.
        """
        add_start(self.folder, dict(record))
        self._record(self.kept())
        self._has_begun = True

    def note_validation(self, batch: int | None) -> None:
        """Record how many patches at a time a next start is to validate with; None for all."""
        with suppress(OSError):  # as at the end; what must not be lost is in the checkpoint
            note_start(self.folder, {"validation_batch": batch})

    def validation_batch(self, most: int) -> int:
        """What `note_validation` has recorded in the newest start, at most `most`, which it is else."""
        found = read_starts(self.folder)[-1:]
        noted = found[0].get("validation_batch") if found else None
        return min(noted, most) if isinstance(noted, int) and noted >= 1 else most

    def claim(self, epoch: int) -> bool:
        """Record that the checkpoint of an epoch is the run's; not if another file has its place."""
        written = self.written()
        if epoch not in written and os.path.lexists(self.numbered(epoch)):
            return False
        self._record({*written, epoch})
        return True

    def keep_only(self, count: int, unscored: int = 0) -> None:
        """Delete numbered checkpoints of the run, and nothing else.

        Args:
            count: how many of the newest stay.
            unscored: how many more stay, of the newest that a watcher has still to score.
        """
        kept, scored = self.kept(), self.scored()
        old = list(kept)[: max(len(kept) - count, 0)]
        waiting = [] if scored is None else [epoch for epoch in old if epoch not in scored]
        gone = set(old) - set(waiting[max(len(waiting) - unscored, 0) :])
        for epoch in gone:
            kept[epoch].unlink()
        self._record(kept.keys() - gone)

    def _record(self, epochs: Iterable[int]) -> None:
        write_json(self.folder / CHECKPOINTS, {"epochs": sorted(epochs)})


def newest_checkpoint(run: Run, task: Task) -> Checkpoint | None:
    """The state from which a task continues a run, None for a new one.

    Raises:
        CheckpointError: the newest is damaged or gone; its remedy names the previous generation.
        OutputError: something else lies in the folder, which a run would write over.
        TaskError: it was trained with other values of keys that must not change.
    """
    if not run.last.exists():
        _require_room(run)
        return None
    checkpoint = _load_last(run)
    checkpoint.require("task")
    before = resolved_task(checkpoint)
    if before is not None:  # what is left out now is taken from it
        sizes = before.tr_params
        task = fill_sizes(task, sizes.given_patch_size, sizes.given_batch_size)
        task = fill_normalization(task, before.dataset_config.normalization)
        task = fill_augment(task, before.augment)
        task = fill_prepare(task, before.dataset_config.prepare)
    changed = changes_since(checkpoint, task.to_json(), run.folder)
    if "data" in checkpoint.state:  # what lies at other places is compared with it
        changed = [found for found in changed if not is_place(found[0])]
    if changed:
        found = f"differs from the run in {run.folder} ({listed_changes(changed)})"
        remedy = "change it back, choose another ckpt_out_base, or --restart"
        raise TaskError(changed[0][0], found, remedy)
    return checkpoint


def _load_last(run: Run) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        CheckpointError: it is damaged; names the newest one that is whole.
    """
    try:
        return load_checkpoint(run.last)
    except CheckpointError as error:
        kept = newest_kept(run)
        remedy = "no other is whole: put a copy of it back, or --restart"
        if kept is not None:
            remedy = f"copy {kept.name} over it, and the run continues, or --restart"
        raise CheckpointError(error.subject, error.found, remedy) from error


def _require_room(run: Run) -> None:
    """Refuse to begin a run over what would be lost by it.

    Raises:
        OutputError: another run, or a task file that no run wrote, is in the folder.
        CheckpointError: the run has trained, but its newest checkpoint is gone.
    """
    folder, elsewhere = run.folder, "choose another ckpt_out_base, or --restart"
    if run.task_file.exists() and not run.is_begun():
        found = "no run wrote it, and this one would write over it"
        raise OutputError(str(run.task_file), found, elsewhere)
    other = Run(folder).name
    if other != run.name and any(folder.glob(f"{glob.escape(other)}_*.pth")):
        found = f'holds the run of "{other}", not of "{run.name}"'
        raise OutputError(str(folder), found, elsewhere)
    kept = newest_kept(run)
    # The first checkpoint is written before the first line of the log.
    if kept is not None or read_log(folder) or _was_complete(folder):
        copied = "another checkpoint of the run" if kept is None else kept.name
        remedy = f"copy {copied} to {run.last.name}, and the run continues, or --restart"
        raise CheckpointError(str(run.last), "is gone, but the run has been saved", remedy)


def newest_kept(run: Run) -> Path | None:
    """The whole checkpoint of a run with the most steps, other than its last; None without one."""
    if not run.folder.is_dir():
        return None
    places = {*map(previous_generation, (run.last, run.best)), run.best, *run.kept().values()}
    found: dict[Path, tuple[int, int]] = {}
    for path in sorted(path for path in places if path.exists()):
        with suppress(CheckpointError):
            state = load_checkpoint(path).state
            found[path] = (state.get("epoch", 0), state.get("step", 0))
    return max(found, key=lambda path: found[path], default=None)


def _was_complete(folder: Path) -> bool:
    """Whether a training in the folder has come to its end."""
    return any(start.get("outcome") == "complete" for start in read_starts(folder))


def _failure(error: BaseException) -> str:
    """How a training ended that an exception left; a signal that came early is one, too."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped"
    text = str(error) if isinstance(error, VcmodelsError) else f"{type(error).__name__}: {error}"
    return f"failed: {text}"
