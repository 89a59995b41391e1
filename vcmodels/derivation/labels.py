"""The derived label of a whole volume, block by block, stored to be read back as the same."""

import json
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.config import Task
from vcmodels.config.checks import read_places
from vcmodels.data.labels import Label
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, grow_shape
from vcmodels.geometry.grid import blocks_of
from vcmodels.machine import machine_bytes, usable_cores
from vcmodels.reporting import Advance, Reporter, Silent, list_some
from vcmodels.results import KEY
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.binary import MaskTarget
from vcmodels.volumes import (
    Blocks,
    Description,
    Grid,
    Pyramid,
    Storage,
    expand_location,
    group_attributes,
    image_label,
    is_remote,
    whole_folder,
)
from vcmodels.volumes.backend import ZarrFormat
from vcmodels.volumes.multiscale import write_image
from vcmodels.volumes.places import input_stores, refuse_in_stores
from vcmodels.volumes.spacing import in_unit
from vcmodels.volumes.writer import Rgba

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
    """Attributes that say what the stored values mean."""
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
    except (FileNotFoundError, VolumeError):
        return False
    return isinstance(notes, dict) and "derived_from" in notes


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
        reporter: gets the progress, and how to use the result.

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
    refuse_in_stores(OPTION, str(place), input_stores(read_places(task)))
    chunks = task.inference_params.output_chunks or (LEAST_BLOCK, LEAST_BLOCK, LEAST_BLOCK)
    lead = () if target.stored_channels is None else (target.stored_channels,)
    dtype, source = stored_dtype(target), label.stored.array
    image = chosen.inputs[0]
    grid = Grid(label.spacing, in_unit(image.offset, image.unit, chosen.unit), chosen.unit)
    version = task.inference_params.output_zarr_format
    with (
        whole_folder(place, key=OPTION, replaces=_is_ours) as folder,
        reporter.bar(f"derive {name}", chosen.region.voxels) as advance,
        closing(_pieces(label, _block(chunks), advance)) as pieces,
    ):
        write_image(
            folder,
            Blocks((*lead, *source.extent), dtype, pieces),
            grid=grid,
            chunks=chunks,
            storage=Storage(version, fill_value=missing_value(dtype)),
            pyramid=Pyramid(levels=0),
            description=_describe(name, label, version),
        )
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
    names = list_some(found, 20)
    if wanted is None:
        text = f'{len(found)} volumes have a label "{target.derive}"'
        raise TaskError("--volume", text, f"give one of {names}")
    if wanted not in found:
        text = f'there is no volume "{wanted}" with a label "{target.derive}"'
        raise TaskError("--volume", text, f"give one of {names}")
    return found[wanted]


_COLOURS: dict[int, Rgba] = {
    UNLABELLED: (127, 127, 127, 127),
    0: (0, 0, 0, 0),
    1: (230, 158, 0, 255),
}


def _describe(name: str, label: Label, zarr_format: ZarrFormat) -> Description:
    """What the group says: how values are stored, and what they were made from."""
    target, source = label.target, label.stored.array
    notes = {
        "target": name,
        "encoding": encoding(target),
        # A URL's query may hold a key to it.
        "derived_from": source.location.split("?")[0],
        "source_content": source.fingerprint(),
        "task_target": target.model_dump(mode="json"),
        "vcmodels": vcmodels.__version__,
    }
    # A viewer takes a label image for one picture: not for as many as it has channels.
    is_mask = stored_dtype(target).kind == "i" and target.stored_channels is None
    shown = image_label(_COLOURS, zarr_format) if is_mask else {}
    return Description(name, {KEY: notes}, shown)


def _block(chunks: Shape) -> Shape:
    """Whole chunks, so that each is written once, and at least `LEAST_BLOCK` along each axis."""
    z, y, x = (-(-LEAST_BLOCK // n) * n for n in chunks)
    return z, y, x


def _pieces(label: Label, block: Shape, advance: Advance) -> Generator[tuple[Box, np.ndarray]]:
    """Derive all blocks of the region on threads, a bounded number at a time, in order."""
    target, source, region = label.target, label.stored.array, label.stored.region
    margin = target.source_margin(label.spacing)
    # What follows where nothing is stored is the same everywhere: most of a sparse volume.
    alike: dict[Shape, np.ndarray] = {}

    def derived(box: Box) -> tuple[Box, np.ndarray]:
        around = box.grow(margin)
        is_empty = region.contains(around) and not source.is_stored(around)
        stored = alike.get(box.shape) if is_empty else None
        if stored is None:
            stored = stored_form(target, *label.read(box))
            if is_empty:
                alike[box.shape] = stored
        return box, stored

    fitting = machine_bytes() // 4 // (BYTES_PER_VOXEL * prod(grow_shape(block, margin)))
    threads = max(1, min(usable_cores(), MOST_THREADS, fitting))
    before = torch.get_num_threads()
    running: deque[Future[tuple[Box, np.ndarray]]] = deque()
    # One thread each: blocks are many, and their threads would get into each other's way.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        boxes = blocks_of(region, block)
        running.extend(pool.submit(derived, box) for box in islice(boxes, 2 * threads))
        while running:
            running.extend(pool.submit(derived, box) for box in islice(boxes, 1))
            yield running[0].result()
            advance(running.popleft().result()[0].voxels, "")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
