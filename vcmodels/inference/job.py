"""Everything a run needs, checked and opened before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels import results
from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.devices import (
    CompiledOrEager,
    choose_amp,
    choose_device,
    keep_freed_memory,
    machine_bytes,
    place,
)
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing, level_factors
from vcmodels.geometry.grid import BoxSet, PatchGrid, column_edges
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.inference.averaging import Averaged, Member, Written, deviations
from vcmodels.inference.ensemble import (
    Normalizer,
    Share,
    averaging_manifest,
    check_members,
    share_out,
    trained_differences,
)
from vcmodels.inference.journal import Manifest
from vcmodels.inference.network import Forward, choose_views
from vcmodels.inference.output import Layout, make_manifest, make_provenance, refuse_inside_input
from vcmodels.inference.reading import Normalize
from vcmodels.inference.units import (
    WHOLE,
    Division,
    Footprint,
    Mask,
    Part,
    open_mask,
    share,
    wanted_boxes,
)
from vcmodels.models.fused import fused
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing
from vcmodels.volumes import Place, Volume

CHUNK = 128
MOST_LENGTH = 10**7
"""Voxels along an axis; more are damaged metadata, and their patches alone would fill the memory."""


def choose_targets(task: Task, predictor: Predictor) -> dict[str, AnyTarget]:
    """The targets to write, as the task describes them where the checkpoint leaves that open.

    Raises:
        TaskError: a name that the checkpoint does not have, or a target that it learnt differently.
    """
    params = task.inference_params
    known = ", ".join(predictor.targets)
    names = list(predictor.targets) if params.output_targets == "all" else params.output_targets
    chosen: dict[str, AnyTarget] = {}
    for name in names:
        if name not in predictor.targets:
            key = "inference_params.output_targets"
            raise TaskError(key, f'"{name}" is not in the checkpoint', f"choose from {known}")
        trained = predictor.targets[name]
        target = task.dataset_config.targets.get(name, trained)
        _require_same(name, trained, target)
        try:
            target.output_channels(params.dtype)
        except ValueError as error:
            key = "inference_params.output_type"
            raise TaskError(key, f'target "{name}" {error}') from error
        chosen[name] = target
    return chosen


def _require_same(name: str, trained: AnyTarget, target: AnyTarget) -> None:
    for key, before, now in trained_differences(trained, target):
        raise TaskError(
            f"dataset_config.targets.{name}.{key}",
            f"is {now!r}, the checkpoint was trained with {before!r}",
            "restore it, or use another checkpoint",
        )


def open_inputs(task: Task, predictor: Predictor, say: Callable[[str], None]) -> tuple[Volume, ...]:
    """Open `input_path`; only metadata is read.

    Raises:
        TaskError: no input is named, or the task contradicts the checkpoint.
        VolumeError: an array is missing, or its shape or channels do not fit.
    """
    key = "inference_params.input_path"
    params = task.inference_params
    trained = predictor.task.dataset_config.normalization
    if task.dataset_config.normalization != trained:
        raise TaskError(
            "dataset_config.normalization",
            f"is {task.dataset_config.normalization.model_dump()}, "
            f"the checkpoint was trained with {trained.model_dump()}",
            "restore it: another normalisation gives wrong predictions",
        )
    inputs = results.open_inputs(
        params.input_path, level=params.level, channel_axis=params.channel_axis
    )
    if max(inputs[0].extent) > MOST_LENGTH:
        found = f"{inputs[0].location} has shape {inputs[0].extent}"
        raise VolumeError(key, found, f"correct its metadata; at most {MOST_LENGTH} along an axis")
    for volume in inputs[1:]:
        if volume.extent != inputs[0].extent:
            found = f"{volume.location} has shape {volume.extent}, the first {inputs[0].extent}"
            raise VolumeError(key, found, "give arrays of one shape")
    channels = sum(volume.channels for volume in inputs)
    if channels != predictor.in_channels:
        found = f"{channels} channels, the network was trained with {predictor.in_channels}"
        raise VolumeError(key, found, "give the same channels in the same order")
    _compare_spacing(inputs[0], predictor, say)
    return inputs


def _compare_spacing(volume: Volume, predictor: Predictor, say: Callable[[str], None]) -> None:
    ratios = [a / b for a, b in zip(volume.spacing, predictor.spacing, strict=True)]
    if not all(0.8 < ratio < 1.25 for ratio in ratios):
        say(
            f"note: voxels of {volume.location} are {volume.spacing}, "
            f"those of the training were {predictor.spacing}"
        )


def region_of(task: Task, volume: Volume) -> Box:
    """The `bbox`, or the whole volume.

    Raises:
        TaskError: the bbox is not inside the volume.
    """
    bbox = task.inference_params.bbox
    if bbox is None:
        return volume.box
    region = Box.between([start for start, _ in bbox], [end for _, end in bbox])
    if not volume.box.contains(region):
        found = f"{[list(pair) for pair in bbox]} is not inside the volume, shape {volume.extent}"
        raise TaskError("inference_params.bbox", found, "give [[z0, z1], [y0, y1], [x0, x1]]")
    return region


def checked_patch(task: Task, predictor: Predictor) -> Shape:
    """The patch of the inference, which the trained network must be able to take.

    Raises:
        TaskError: a length that the network cannot halve as often as it must.
    """
    patch = task.inference_params.patch_size or predictor.patch
    if patch != predictor.patch:
        try:
            predictor.task.model.check_patch(patch, predictor.spacing, planned=predictor.patch)
        except ValueError as error:
            raise TaskError("inference_params.patch_size", str(error)) from error
    return patch


def output_chunks(task: Task, extent: Shape) -> tuple[Shape, Shape | None]:
    """Chunks and shards of the output; chunks are no longer than the volume.

    Raises:
        TaskError: shards that are not made of whole chunks, or that version 2 of Zarr cannot have.
    """
    params, key = task.inference_params, "inference_params.output_shards"
    chunks = params.output_chunks or (CHUNK, CHUNK, CHUNK)
    shards = params.output_shards
    if shards is None:
        z, y, x = (min(c, n) for c, n in zip(chunks, extent, strict=True))
        return (z, y, x), None
    if params.output_zarr_format == 2:
        raise TaskError(key, "needs version 3 of Zarr", 'set "output_zarr_format": 3')
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        found = f"{list(shards)} is not a multiple of the chunks {list(chunks)}"
        raise TaskError(key, found, "give whole numbers of chunks")
    return chunks, shards


WORTH_COMPILING = 200 * 64**3
"""Voxels in all patches from which a GPU repays compiling. On a CPU the fused network is faster than
the compiled one (64^3, bf16, one core: 165 and 215 ms), which takes half a minute to make."""
MOST_MEMORY = 4e9
"""What `memory: auto` takes at most: beyond, hardly a patch less is predicted twice."""


@dataclass(frozen=True)
class Job:
    """A run that can start."""

    inputs: tuple[Volume, ...]
    targets: dict[str, Written]
    """What to write, in the order of what the networks give."""
    normalize: Normalize
    below: float | None
    """Chunks of the first input below this are background."""
    mask: Mask | None
    forward: Forward | Averaged
    whole: Division
    """What all workers together predict."""
    division: Division
    """What this one predicts of it."""
    footprint: Footprint
    layout: Layout
    manifest: Manifest
    provenance: dict[str, Any]
    threads: int
    """That read; 0 reads in the computing thread."""
    patches: int
    """Of this worker, if nothing is done yet."""

    @property
    def root(self) -> Place:
        """The output group."""
        return self.layout.root


def prepare(
    task: Task, predictor: Predictor, say: Callable[[str], None], part: Part = WHOLE
) -> Job:
    """Open the input, check it and the task against the checkpoint, and divide the work.

    Raises:
        RefusedError: whatever a user can mend; nothing was written.
    """
    params = task.inference_params
    keep_freed_memory()
    if params.threads is not None:
        torch.set_num_threads(params.threads)
    targets = choose_targets(task, predictor)
    check_members(predictor, targets, params.patch_size)
    written: dict[str, Written] = {**targets, **(deviations(targets) if params.uncertainty else {})}
    inputs = open_inputs(task, predictor, say)
    extent, region = inputs[0].extent, region_of(task, inputs[0])
    layout = _layout(task, inputs)
    device = choose_device(params.device, "inference_params.device")
    grid = PatchGrid.covering(extent, checked_patch(task, predictor), params.overlaps)
    mask = open_mask(params.skip, extent)
    wanted = wanted_boxes(inputs, region, params.skip, mask)
    footprint = _footprint(grid, layout, inputs, written)
    budget = _budget(task, device)
    whole = _divide(grid, region, layout.block, wanted, footprint, budget)
    mine = share(region, wanted, layout.block, extent, part)
    division = _divide(grid, mine, layout.block, wanted, footprint, budget)
    manifest = make_manifest(task, predictor, inputs, written, grid, layout, mask)
    spacings = (inputs[0].spacing, predictor.spacing)
    views = choose_views(params.tta, grid.patch, spacings, say)
    shares = share_out(task, predictor, len(views))
    normalizer = Normalizer([one.predictor for one in shares], inputs)
    # A number that does not depend on memory or parts: compiled or not is part of the manifest.
    voxels = whole.count_different() * prod(grid.patch) * len(views)
    forwards, manner = _make_forwards(task, shares, targets, device, voxels, say)
    forward = _averaged(task, forwards, shares, normalizer.image, views, inputs[0].spacing)
    manifest |= averaging_manifest(task, shares, views) | manner
    workers = params.num_dataloader_workers
    return Job(
        inputs=inputs,
        targets=written,
        normalize=normalizer,
        below=params.skip.below,
        mask=mask,
        forward=forward,
        whole=whole,
        division=division,
        footprint=footprint,
        layout=layout,
        manifest=manifest,
        provenance=make_provenance(task, predictor, manifest),
        threads=task.tr_params.num_dataloader_workers if workers is None else workers,
        patches=division.count_patches(),
    )


def _layout(task: Task, inputs: Sequence[Volume]) -> Layout:
    """Where the result goes, and how it is stored: on the grid of the first input."""
    params, first = task.inference_params, inputs[0]
    root = results.result_root(params.output_dir, task.tr_params.model_name)
    refuse_inside_input(root, [volume.location for volume in inputs])
    chunks, shards = output_chunks(task, first.extent)
    levels = None if params.pyramid == "auto" else params.pyramid or 0
    factors = level_factors(first.extent, first.spacing, chunks, levels)
    return Layout(
        root, first.extent, chunks, shards, params.dtype, params.output_zarr_format,
        first.spacing, first.offset, first.unit, factors,
    )  # fmt: skip


def auto_memory(processes: int = 1) -> float:
    """Bytes for each of so many processes: a quarter of the machine's memory for all of them."""
    return min(machine_bytes() / 4 / processes, MOST_MEMORY)


def _budget(task: Task, device: torch.device) -> int:
    """Bytes that accumulators, input and output may take."""
    wanted = task.inference_params.memory
    budget = auto_memory() if wanted == "auto" else wanted * 1e9
    if device.type == "cuda":  # the sums lie beside the network's activations
        budget = min(budget, torch.cuda.mem_get_info(device)[0] / 2)
    return int(budget)


def _make_forwards(
    task: Task,
    shares: Sequence[Share],
    targets: dict[str, AnyTarget],
    device: torch.device,
    voxels: int,
    say: Callable[[str], None],
) -> tuple[list[Forward], Manifest]:
    """Each network on the device, to predict so many voxels, and what of the manner changes the bits."""
    params = task.inference_params
    amp = choose_amp(params.amp, device)
    if (device.type, params.amp) == ("cpu", "auto") and params.dtype != np.uint8:
        amp = None  # only the steps of uint8 are coarser than bf16's error
    is_worth_it = device.type == "cuda" and voxels >= WORTH_COMPILING
    is_compiled = is_worth_it if params.compile == "auto" else params.compile
    forwards = []
    for member in (one.predictor for one in shares):
        module = _Heads(member.module, tuple(targets)).eval()
        is_cpu = device.type == "cpu"
        module = place(module, device) if is_cpu or amp else module.to(device)
        eager = fused(module) if is_cpu else module
        network = CompiledOrEager(module, say, eager) if is_compiled else eager
        batch = params.batch_size or member.task.tr_params.batch_size
        forwards.append(Forward(network, targets, device, amp, batch))
    precision = str(amp or torch.float32).removeprefix("torch.")
    manner = {"device": device.type, "precision": precision, "compiled": is_compiled}
    if device.type == "cpu":  # sums over a patch are cut differently
        manner["threads"] = torch.get_num_threads()
    return forwards, manner


def _averaged(
    task: Task,
    forwards: Sequence[Forward],
    shares: Sequence[Share],
    images: Sequence[int],
    views: tuple[Symmetry, ...],
    spacing: Spacing,
) -> Forward | Averaged:
    """The networks as one; a single one that sees each patch once is that already."""
    if len(forwards) * len(views) == 1:
        return forwards[0]
    params = task.inference_params
    members = [
        Member(forward, one.weight, image)
        for forward, one, image in zip(forwards, shares, images, strict=True)
    ]
    by, with_deviation = params.ensemble.by, params.uncertainty
    return Averaged(members, views, spacing, by=by, with_deviation=with_deviation)


class _Heads(nn.Module):
    """A network that computes some of its heads alone."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, image: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return self.network(image, self.names)


def _footprint(
    grid: PatchGrid, layout: Layout, inputs: tuple[Volume, ...], targets: Mapping[str, Written]
) -> Footprint:
    stored = sum(target.output_channels(layout.dtype) or 1 for target in targets.values())
    averaged = sum(target.blend_channels for target in targets.values())
    return Footprint(grid, layout.block, inputs, averaged, stored * layout.dtype.itemsize)


def _divide(
    grid: PatchGrid,
    region: Box,
    block: Shape,
    wanted: BoxSet,
    footprint: Footprint,
    budget: int,
) -> Division:
    if not region.voxels:  # a part that there are too few blocks for
        return Division(grid, region, block, wanted, (0, 0))
    edges = column_edges(grid, region, block, footprint, budget)
    needed = footprint(*edges)
    if needed > budget:
        raise TaskError(
            "inference_params.memory",
            f"{budget / 1e9:g} GB are too little: one column of output chunks takes {needed / 1e9:.3g} GB",
            "raise it, or make output_chunks or patch_size smaller",
        )
    return Division(grid, region, block, wanted.within(region), edges)
