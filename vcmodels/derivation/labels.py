"""The derived label of a whole volume, block by block, stored to be read back as the same."""

import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.config import Task
from vcmodels.config.checks import refuse_in_input
from vcmodels.data.labels import Label
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.devices import machine_bytes
from vcmodels.errors import OutputError, TaskError
from vcmodels.geometry.boxes import Box, Shape, blocks_of, grow_shape
from vcmodels.reporting import Advance, Reporter, Silent
from vcmodels.results import KEY
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.binary import MaskTarget
from vcmodels.volumes import (
    WritableArray,
    create_array,
    expand_location,
    group_attributes,
    is_remote,
    write_multiscale_group,
)

UNLABELLED = -1
"""In masks. Whoever forgets to name it as `ignore_label` gets an error, not a foreground."""


def stored_dtype(target: Target) -> np.dtype:
    """int8 for masks of 0 and 1, float32 for values: what is derived is kept exactly."""
    return np.dtype(np.int8 if isinstance(target, MaskTarget) else np.float32)


def missing_value(dtype: np.dtype) -> float:
    """What stands where the label does not count."""
    return float(UNLABELLED) if dtype.kind == "i" else float("nan")


def stored_form(target: AnyTarget, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A label as it is stored: (L, Z, Y, X) float32 and (V, Z, Y, X) bool -> (S, Z, Y, X)."""
    dtype = stored_dtype(target)
    if dtype.kind == "i":
        return np.where(valid, label, UNLABELLED).astype(dtype)
    # NaN before the encoding, which brings the channels into their order on disk.
    known = torch.from_numpy(np.where(valid, label, np.float32(np.nan)))
    return target.encode(target.as_prediction(known[None])[0], dtype)


def encoding(target: AnyTarget) -> dict[str, Any]:
    """Attributes that tell a reader what the stored values mean."""
    attributes = target.encoding(np.dtype(np.float32))
    if stored_dtype(target).kind == "i":
        return {**attributes, "quantity": "mask", "ignore_label": UNLABELLED}
    return attributes


def keys_to_read(target: AnyTarget) -> dict[str, Any]:
    """Keys that the target needs, instead of `derive`, when it is read from what was stored."""
    ignored = [UNLABELLED] if stored_dtype(target).kind == "i" else []
    keys: dict[str, Any] = {"kind": target.kind, "ignore_label": ignored}
    # Done already, to the source.
    if target.loss_only_on_label:
        keys["loss_only_on_label"] = False
    if target.dilate_label:
        keys["dilate_label"] = False
    return keys


OPTION = "--output"


def check_place(text: str, *, overwrite: bool) -> Path:
    """The place of an output; an earlier one there must be ours, and may go.

    Raises:
        OutputError: a URL, something that exists and may not be replaced, no folder to write to.
    """
    if is_remote(text):
        raise OutputError(OPTION, f"{text} is a URL", "give a local path")
    place = Path(expand_location(text))
    if place.is_symlink() or place.exists():
        if not overwrite:
            raise OutputError(str(place), "exists already", "choose another, or give --overwrite")
        if not _is_ours(place):
            found = "exists and was not written by vcmodels derive"
            raise OutputError(str(place), found, "choose another, or move it away")
    return place


def _is_ours(place: Path) -> bool:
    if place.is_symlink() or not place.is_dir():
        return False
    try:
        notes = group_attributes(str(place)).get(KEY)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(notes, dict) and "derived_from" in notes


@contextmanager
def written_at(place: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when the block ends well, and is removed otherwise.

    Raises:
        OutputError: another process writes there, or the folder cannot be made.
    """
    partial = place.with_name(f".{place.name}.partial")
    with _held(place):
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            partial.mkdir()
            yield partial
            _replace(place, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Keep other processes off a place, by a lock on a file beside it."""
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        found = f"{path.parent} cannot be written ({error.strerror})"
        raise OutputError(OPTION, found, "choose a writable folder") from error
    try:
        if not _is_locked(handle, path):
            raise OutputError(str(place), "another process writes it", "wait for it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_locked(handle: int, path: Path) -> bool:
    """Lock a file that was opened; in vain if another has it, or has just deleted it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _replace(place: Path, new: Path) -> None:
    """Rename; what was there of ours goes after that, so that a kill loses neither."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if _is_ours(place):  # what has come there since, and is not, makes the renaming fail
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


LEVEL = "0"
LEAST_BLOCK = 128
"""Small chunks are computed several at a time: what lies around a block is computed with it."""
MOST_THREADS = 8
BYTES_PER_VOXEL = 200
"""What the kinds need at most while they derive a block, its margin included."""


def derive(
    task: Task,
    name: str,
    output: str,
    *,
    volume: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write the derived label of a target, over the used part of a volume, as an OME-Zarr image.

    It is the label that training sees there, and reads back as a stored one. Nothing appears at
    `output` until all of it is written.

    Args:
        task: the resolved task.
        name: of a target with `derive`.
        output: a local folder.
        volume: name of the volume; the only one with the source when None.
        overwrite: replace what an earlier call has written there.
        reporter: told the progress, and how to use the result.

    Returns:
        Where it is.

    Raises:
        TaskError: no such target or volume, or the target is not derived.
        OutputError: the output may not be written there.
        RunError: a value of the source cannot be.
    """
    reporter = reporter or Silent()
    target = _derived_target(task, name)
    place = check_place(output, overwrite=overwrite)
    chosen, label = _choose(name, target, open_volumes(task, reporter), volume)
    refuse_in_input(task, OPTION, str(place))
    chunks = task.inference_params.output_chunks or (LEAST_BLOCK, LEAST_BLOCK, LEAST_BLOCK)
    with written_at(place) as folder:
        array = _create(folder, task, name, chosen, label, chunks)
        with reporter.bar(f"derive {name}", chosen.region.voxels) as advance:
            _write(array, label, _block(chunks), advance)
    reporter.say(f"{name} of {chosen.name}: {place}")
    keys = json.dumps(keys_to_read(target))[1:-1]
    remedy = f'the target then has {keys} in the place of "derive" and its keys'
    reporter.say(f'to train on it, name it as "{name}" of the volume; {remedy}')
    return place


def _derived_target(task: Task, name: str) -> AnyTarget:
    targets = task.dataset_config.targets
    if name not in targets:
        raise TaskError("TARGET", f'"{name}" is no target', f"targets are {', '.join(targets)}")
    if targets[name].derive is None:
        key = f"dataset_config.targets.{name}"
        raise TaskError(key, "is stored, not derived", "name a target with derive")
    return targets[name]


def _choose(
    name: str, target: AnyTarget, volumes: Sequence[TaskVolume], wanted: str | None
) -> tuple[TaskVolume, Label]:
    """The volume to derive the label of."""
    found = {v.name: (v, label) for v in volumes if (label := v.label(name, target, v.region))}
    if wanted is None and len(found) == 1:
        return next(iter(found.values()))
    names = ", ".join(list(found)[:20]) + (", ..." if len(found) > 20 else "")
    if wanted is None:
        text = f'{len(found)} volumes have a label "{target.derive}"'
        raise TaskError("--volume", text, f"give one of {names}")
    if wanted not in found:
        text = f'there is no volume "{wanted}" with a label "{target.derive}"'
        raise TaskError("--volume", text, f"give one of {names}")
    return found[wanted]


def _create(
    folder: Path, task: Task, name: str, volume: TaskVolume, label: Label, chunks: Shape
) -> WritableArray:
    """The empty array, and the metadata of the group around it."""
    target, source = label.target, label.stored.array
    dtype, like = stored_dtype(target), volume.inputs[0]
    lead = () if target.stored_channels is None else (target.stored_channels,)
    version = task.inference_params.output_zarr_format
    grid = {"spacing": label.spacing, "offset": like.offset, "unit": volume.unit}
    write_multiscale_group(
        str(folder),
        name=name,
        axes=("c", "z", "y", "x") if lead else ("z", "y", "x"),
        levels=(LEVEL,),
        zarr_format=version,
        attributes={
            KEY: {
                "target": name,
                "encoding": encoding(target),
                # A URL's query may hold a key to it.
                "derived_from": source.location.split("?")[0],
                "source_content": source.fingerprint(),
                "task_target": target.model_dump(mode="json"),
                "vcmodels": vcmodels.__version__,
            }
        },
        **grid,
    )
    return create_array(
        str(folder),
        LEVEL,
        shape=(*lead, *source.extent),
        chunks=(*lead, *chunks),
        dtype=dtype,
        fill_value=missing_value(dtype),
        zarr_format=version,
        **grid,
    )


def _block(chunks: Shape) -> Shape:
    """Whole chunks, so that each is written once, and at least `LEAST_BLOCK` along each axis."""
    z, y, x = (-(-LEAST_BLOCK // n) * n for n in chunks)
    return z, y, x


def _write(array: WritableArray, label: Label, block: Shape, advance: Advance) -> None:
    """Derive and write all blocks of the region on threads, a bounded number at a time."""
    target, source, region = label.target, label.stored.array, label.stored.region
    margin = target.source_margin(label.spacing)
    # What follows where nothing is stored is the same everywhere: most of a sparse volume.
    alike: dict[Shape, np.ndarray] = {}

    def work(box: Box) -> Box:
        around = box.grow(margin)
        is_empty = region.contains(around) and not source.is_stored(around)
        stored = alike.get(box.shape) if is_empty else None
        if stored is None:
            stored = stored_form(target, *label.read(box))
            if is_empty:
                alike[box.shape] = stored
        array.write(box, stored)
        return box

    fitting = machine_bytes() // 4 // (BYTES_PER_VOXEL * prod(grow_shape(block, margin)))
    threads = max(1, min(os.cpu_count() or 1, MOST_THREADS, fitting))
    before = torch.get_num_threads()
    running: deque[Future[Box]] = deque()
    # One thread each: blocks are many, and their threads would get into each other's way.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for box in blocks_of(region, block):
            running.append(pool.submit(work, box))
            if len(running) > 2 * threads:
                advance(running.popleft().result().voxels, "")
        while running:
            advance(running.popleft().result().voxels, "")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
