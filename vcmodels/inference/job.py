"""Everything a run needs, checked and opened before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from vcmodels.errors import TaskError
from vcmodels.geometry.blocks import BoxSet, PatchGrid, column_edges
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.geometry.levels import level_factors
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.inference.averaging import Averaged, Member
from vcmodels.inference.checks import (
    checked_patch,
    choose_targets,
    open_inputs,
    output_chunks,
    output_root,
    region_of,
)
from vcmodels.inference.deviation import Written, deviations
from vcmodels.inference.ensemble import (
    Normalizer,
    Share,
    averaging_manifest,
    check_members,
    share_out,
)
from vcmodels.inference.forward import Forward
from vcmodels.inference.journal import Manifest
from vcmodels.inference.outputs import Layout, refuse_inside_input
from vcmodels.inference.provenance import make_manifest, make_provenance
from vcmodels.inference.reading import Normalize
from vcmodels.inference.sharing import WHOLE, Part, share
from vcmodels.inference.skipping import Mask, open_mask, wanted_boxes
from vcmodels.inference.units import Division, Footprint
from vcmodels.inference.views import choose_views
from vcmodels.models.fused import fused
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing
from vcmodels.volumes import Place, Volume

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
    root = output_root(task)
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
