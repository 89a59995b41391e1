"""The derived label of a whole volume, block by block."""

import json
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch

import vcmodels
from vcmodels.config import Task
from vcmodels.config.checks import refuse_in_input
from vcmodels.data.labels import Label
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.derivation.form import (
    encoding,
    keys_to_read,
    missing_value,
    stored_dtype,
    stored_form,
)
from vcmodels.derivation.place import KEY, OPTION, check_place, written_at
from vcmodels.devices import machine_bytes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape, blocks_of, grow_shape
from vcmodels.reporting import Advance, Reporter, Silent
from vcmodels.targets import AnyTarget
from vcmodels.volumes import WritableArray, create_array, write_multiscale_group

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
