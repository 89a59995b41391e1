"""Everything a run needs, checked and opened before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.blockwise import WHOLE, Part
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams
from vcmodels.config.reading import idle_notes
from vcmodels.config.slices import SliceStack, network_channels, reach_of
from vcmodels.data.statistics import VolumeStatistics
from vcmodels.devices import (
    CompiledOrEager,
    choose_amp,
    choose_device,
    keep_freed_memory,
    place,
    set_threads,
)
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape, level_factors
from vcmodels.geometry.grid import BoxSet, PatchGrid, column_edges
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.inference.ensemble import (
    Normalizer,
    WeightedNetwork,
    averaging_manifest,
    check_networks,
    weigh,
)
from vcmodels.inference.journal import Journal, Manifest
from vcmodels.inference.network import (
    Averaged,
    Forward,
    Member,
    OutputSpec,
    uncertainties,
)
from vcmodels.inference.output import Layout, make_manifest, make_provenance, refuse_inside_input
from vcmodels.inference.reading import Normalize
from vcmodels.inference.request import (
    Request,
    check_inputs,
    choose_targets,
    report_values,
    require_storable,
)
from vcmodels.inference.units import (
    ColumnMemory,
    Mask,
    UnitPlan,
    open_mask,
    share,
    wanted_boxes,
)
from vcmodels.inference.views import choose_views, report_refuted, wanted_tta
from vcmodels.machine import machine_bytes
from vcmodels.models.fused import fused
from vcmodels.reporting import Reporter
from vcmodels.results import require_writable
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing
from vcmodels.volumes import Place, Volume
from vcmodels.volumes.world import place_notes

CHUNK = 128
WORTH_COMPILING = 200 * 64**3
"""Voxels in all patches from which a GPU repays compiling. On a CPU the fused network is faster than
the compiled one (64^3, bf16, one core: 165 and 215 ms), which takes half a minute to make."""
MOST_MEMORY = 4e9
"""What `memory: auto` takes at most: beyond, hardly a patch less is predicted twice."""


@dataclass(frozen=True)
class Pipeline:
    """From stored voxels to final ones: what is read, computed and summed, in which units."""

    inputs: tuple[Volume, ...]
    specs: dict[str, OutputSpec]
    """What is given out, in the order of what the networks give."""
    normalize: Normalize
    measured: tuple[VolumeStatistics | None, ...]
    """What normalising takes from the inputs themselves; None for what the checkpoint has."""
    below: float | None
    """Chunks of the first input below this are background."""
    stack: SliceStack | None
    """Slices that are channels of the networks."""
    coordinates: bool
    """Whether the positions of voxels are channels of the networks, too."""
    mask: Mask | None
    forward: Forward | Averaged
    whole: UnitPlan
    """What all workers together predict."""
    mine: UnitPlan
    """What this one predicts of it."""
    column_memory: ColumnMemory
    threads: int
    """That read; 0 reads in the computing thread."""
    manner: Manifest
    """What of the way that the networks are run and averaged changes the bits."""

    @property
    def grid(self) -> PatchGrid:
        """Where the patches lie."""
        return self.whole.grid

    @property
    def channels(self) -> int:
        """Those that a network takes."""
        stored = sum(volume.channels for volume in self.inputs)
        return network_channels(stored, self.stack, has_coordinates=self.coordinates)

    @cached_property
    def patches(self) -> int:
        """Of this worker, if nothing is done yet."""
        return self.mine.count_patches()

    def warm_up(self) -> bool:
        """Compile the networks if that is wanted; false where it failed: they run without."""
        forward = self.forward
        return not forward.is_compiled or forward.warm_up(self.channels, self.grid.patch)


@dataclass(frozen=True)
class Job:
    """A run that can start."""

    pipeline: Pipeline
    layout: Layout
    manifest: Manifest
    provenance: dict[str, Any]
    network: TrainedNetwork
    """The first."""

    def report_values(self, reporter: Reporter) -> None:
        """Report inputs that are of another scale than what the network was trained on."""
        pipeline = self.pipeline
        for volume in pipeline.inputs:
            if oddity := volume.oddity:
                reporter.say(f"note: {volume.shown} {oddity}")
        report_values(pipeline.inputs, pipeline.whole.region, self.network, reporter)

    @property
    def root(self) -> Place:
        """The output group."""
        return self.layout.root

    def journal(self, check: Callable[[], None] = lambda: None) -> Journal:
        """The journal of the output, which notes how much was stored."""
        return Journal(self.root, check, self.layout.measure(self.pipeline.specs))

    @property
    def places(self) -> dict[str, Place]:
        """The group of each target."""
        return {name: self.root / name for name in self.pipeline.specs}


def prepare(request: Request, reporter: Reporter, part: Part = WHOLE) -> Job:
    """Check the request against the checkpoint and the input, and divide the work.

    Raises:
        RefusedError: whatever a user can fix; nothing was written.
    """
    params, networks, inputs = request.params, request.networks, request.inputs
    targets = choose_targets(request.targets, networks[0], params)
    require_storable(targets, params.dtype)
    specs = output_specs(targets, params)
    layout = layout_of(request)
    stored = sum(spec.output_channels(layout.dtype) or 1 for spec in specs.values())
    pipeline = make_pipeline(
        networks, inputs, targets, params,
        block=layout.block, stored_bytes=stored * layout.dtype.itemsize,
        part=part, reporter=reporter,
    )  # fmt: skip
    manifest = make_manifest(
        params, networks[0], inputs, specs, pipeline.grid, layout, pipeline.mask
    )
    manifest |= pipeline.manner
    provenance = make_provenance(request.record, networks)
    return Job(pipeline, layout, manifest, provenance, networks[0])


def output_specs(
    targets: Mapping[str, AnyTarget], params: InferenceParams
) -> dict[str, OutputSpec]:
    """The targets, and after them their uncertainties if those are wanted.

    Raises:
        TaskError: an uncertainty has the name of a target.
    """
    return {**targets, **(uncertainties(targets) if params.uncertainty else {})}


def make_pipeline(
    networks: Sequence[TrainedNetwork],
    inputs: tuple[Volume, ...],
    targets: Mapping[str, AnyTarget],
    params: InferenceParams,
    *,
    block: Shape,
    stored_bytes: int,
    part: Part = WHOLE,
    reporter: Reporter,
) -> Pipeline:
    """Check the networks against each other and the input, and divide the work.

    Args:
        networks: those to average.
        inputs: stacked as channels.
        targets: those to predict.
        params: how.
        block: what one writer of the output must own.
        stored_bytes: of one voxel of all outputs together.
        part: which of several workers this is.
        reporter: told what is done in another way than one may expect.

    Raises:
        RefusedError: whatever a user can fix.
    """
    keep_freed_memory()
    set_threads(params.threads)
    first, extent, spacing = networks[0], inputs[0].extent, inputs[0].spacing
    check_networks(networks, targets, params.patch_size)
    check_inputs(inputs, first, reporter)
    for note in idle_notes(params, inputs, "inference_params"):
        reporter.say(note)
    specs = output_specs(targets, params)
    # Where the patches lie, and what of the volume is wanted.
    patch = checked_patch(params.patch_size, first)
    grid = PatchGrid.covering(extent, patch, params.overlaps, params.window)
    stack = first.task.dataset_config.stack
    region, mask = region_of(params, inputs[0]), open_mask(params, inputs[0], reporter)
    if params.on_missing == "error":
        for volume in inputs:
            read = reach_of(stack, grid.hull(region), volume.box)
            volume.require_stored(read, "inference_params.on_missing")
    wanted = wanted_boxes(inputs, region, params.skip, mask)
    # How that is divided: into parts, and each into columns that fit the memory.
    device = choose_device(params.device, "inference_params.device")
    averaged = sum(spec.blend_channels for spec in specs.values())
    memory = ColumnMemory(grid, block, inputs, averaged, stored_bytes, stack)
    budget = _budget(params, device)
    whole = _divide(grid, region, wanted, memory, budget)
    mine = _divide(grid, share(region, wanted, block, extent, part), wanted, memory, budget)
    # What is computed for each patch.
    tta = wanted_tta(params.tta, networks, reporter)
    views = choose_views(tta, grid.patch, (spacing, first.spacing), reporter, targets)
    report_refuted(views, networks, reporter)
    weighted = weigh(networks, params, len(views))
    normalizer = Normalizer([one.network for one in weighted], inputs, reporter)
    # A number that does not depend on memory or parts: compiled or not is part of the manifest.
    voxels = whole.count_different() * prod(grid.patch) * len(views)
    forwards, manner = _make_forwards(params, weighted, targets, device, voxels, reporter)
    workers = params.num_dataloader_workers
    return Pipeline(
        inputs=inputs,
        specs=specs,
        normalize=normalizer,
        measured=normalizer.measured,
        below=params.skip.below,
        stack=stack,
        coordinates=first.task.dataset_config.coordinates,
        mask=mask,
        forward=_averaged(params, forwards, weighted, normalizer.image, views, spacing),
        whole=whole,
        mine=mine,
        column_memory=memory,
        threads=first.task.tr_params.num_dataloader_workers if workers is None else workers,
        manner=averaging_manifest(weighted, params, views) | manner,
    )


def region_of(params: InferenceParams, volume: Volume) -> Box:
    """The `bbox`, or the whole volume.

    Raises:
        TaskError: the bbox is not inside the volume.
    """
    bbox = params.bbox
    if bbox is None:
        return volume.box
    region = Box.between([start for start, _ in bbox], [end for _, end in bbox])
    if not volume.box.contains(region):
        found = f"{[list(pair) for pair in bbox]} is not inside the volume, shape {volume.extent}"
        raise TaskError("inference_params.bbox", found, "give [[z0, z1], [y0, y1], [x0, x1]]")
    return region


def checked_patch(given: Shape | None, network: TrainedNetwork) -> Shape:
    """The patch of the inference, which the trained network must be able to take.

    Raises:
        TaskError: a length that the network cannot halve as often as it must.
    """
    patch = given or network.patch
    try:
        network.check_patch(patch)
    except ValueError as error:
        raise TaskError("inference_params.patch_size", str(error)) from error
    return patch


def output_chunks(params: InferenceParams, extent: Shape) -> tuple[Shape, Shape | None]:
    """Chunks and shards of the output; chunks are no longer than the volume.

    Raises:
        TaskError: shards that are not made of whole chunks, or that version 2 of Zarr cannot have.
    """
    key = "inference_params.output_shards"
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


def layout_of(request: Request) -> Layout:
    """Where the result goes, and how it is stored: on the grid of the first input.

    Raises:
        RefusedError: it cannot be written there, or chunks and shards do not fit.
    """
    params, first, root = request.params, request.inputs[0], request.output
    refuse_inside_input(root, [volume.location for volume in request.inputs])
    require_writable(root)
    chunks, shards = output_chunks(params, first.extent)
    levels = None if params.pyramid == "auto" else params.pyramid or 0
    factors = level_factors(first.extent, first.spacing, chunks, levels)
    return Layout(
        root, first.extent, chunks, shards, params.dtype, params.output_zarr_format,
        first.spacing, first.offset, first.unit, factors, place_notes(first),
    )  # fmt: skip


def auto_memory(processes: int = 1) -> float:
    """Bytes for each of so many processes: a quarter of the machine's memory for all of them."""
    return min(machine_bytes() / 4 / processes, MOST_MEMORY)


def _budget(params: InferenceParams, device: torch.device) -> int:
    """Bytes that accumulators, input and output may take."""
    wanted = params.memory
    budget = auto_memory() if wanted == "auto" else wanted * 1e9
    if device.type == "cuda":  # the sums lie next to the network's activations
        budget = min(budget, torch.cuda.mem_get_info(device)[0] / 2)
    return int(budget)


def _make_forwards(
    params: InferenceParams,
    weighted: Sequence[WeightedNetwork],
    targets: Mapping[str, AnyTarget],
    device: torch.device,
    voxels: int,
    reporter: Reporter,
) -> tuple[list[Forward], Manifest]:
    """Each network on the device, to predict so many voxels, and what of the manner changes the bits."""
    amp = choose_amp(params.amp, device)
    if (device.type, params.amp) == ("cpu", "auto") and params.dtype != np.uint8:
        amp = None  # only the steps of uint8 are coarser than bf16's error
    is_fixed = any(one.network.is_fixed for one in weighted)
    if is_fixed:
        amp = None
        for key in (
            k for k in ("amp", "compile") if getattr(params, k) not in ("auto", "off", False)
        ):
            found = "has no effect: an exported graph runs in float32, as it is"
            reporter.say(f"inference_params.{key}: {found}")
    if device.type == "cpu" and (params.batch_size or 1) > 1:
        reporter.say("inference_params.batch_size: has no effect: a CPU predicts patch by patch")
    is_worth_it = device.type == "cuda" and voxels >= WORTH_COMPILING
    is_compiled = not is_fixed and (is_worth_it if params.compile == "auto" else params.compile)
    forwards = []
    for trained in (one.network for one in weighted):
        module = _Heads(trained.module, tuple(targets)).eval()
        is_cpu = device.type == "cpu"
        module = place(module, device) if is_cpu or amp else module.to(device)
        eager = fused(module) if is_cpu else module
        network = CompiledOrEager(module, reporter.say, eager) if is_compiled else eager
        batch = params.batch_size or trained.task.tr_params.batch_size
        forwards.append(Forward(network, targets, device, amp, batch, trained.temperatures))
    precision = str(amp or torch.float32).removeprefix("torch.")
    manner = {"device": device.type, "precision": precision, "compiled": is_compiled}
    if device.type == "cpu":  # sums over a patch are cut differently
        manner["threads"] = torch.get_num_threads()
    return forwards, manner


def _averaged(
    params: InferenceParams,
    forwards: Sequence[Forward],
    weighted: Sequence[WeightedNetwork],
    images: Sequence[int],
    views: tuple[Symmetry, ...],
    spacing: Spacing,
) -> Forward | Averaged:
    """The networks as one; a single one that sees each patch once is that already."""
    if len(forwards) * len(views) == 1:
        return forwards[0]
    members = [
        Member(forward, one.weight, image)
        for forward, one, image in zip(forwards, weighted, images, strict=True)
    ]
    by, with_uncertainty = params.ensemble.by, params.uncertainty
    return Averaged(members, views, spacing, by=by, with_uncertainty=with_uncertainty)


class _Heads(nn.Module):
    """A network that computes only some of its heads."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, image: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return self.network(image, self.names)


def _divide(
    grid: PatchGrid, region: Box, wanted: BoxSet, memory: ColumnMemory, budget: int
) -> UnitPlan:
    """The columns of a region, as wide as the budget allows.

    Raises:
        TaskError: the narrowest is too large for it.
    """
    block = memory.block
    if not region.voxels:  # a part that there are too few blocks for
        return UnitPlan(grid, region, block, wanted, (0, 0))
    edges = column_edges(grid, region, block, memory, budget)
    needed = memory(*edges)
    if needed > budget:
        raise TaskError(
            "inference_params.memory",
            f"{budget / 1e9:g} GB are too little: one column of output chunks takes {needed / 1e9:.3g} GB",
            "raise it, or make output_chunks or patch_size smaller",
        )
    return UnitPlan(grid, region, block, wanted.within(region), edges)
