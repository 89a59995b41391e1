"""What a run would do and cost, told before it starts."""

import time
from dataclasses import dataclass
from math import prod
from statistics import median

import numpy as np
import torch

from vcmodels.geometry.boxes import Box
from vcmodels.inference.blend import Blender
from vcmodels.inference.forward import channel_sums
from vcmodels.inference.job import Job
from vcmodels.inference.meter import peak_bytes
from vcmodels.inference.pyramid import block_bytes, most_threads
from vcmodels.inference.traffic import Traffic, count_traffic

LEAST_TIMED, MOST_TIMED, TIMED_S = 3, 20, 3.0
"""Batches that are timed, and seconds after which no other is begun."""
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Estimate:
    """The plan of a run."""

    patches: int
    passes: int
    """Of a network, for each patch: views times networks."""
    skipped: int
    """Patches of which no input is stored; 0 where they are too many to count."""
    repeated: int
    """Patches that are predicted again because they touch two units."""
    units: int
    column: tuple[int, int]
    """(y, x) edges of a column of units, in voxels."""
    traffic: Traffic
    streaming_bytes: int
    """Of memory, for sums, input and output; on CUDA the sums are on the device."""
    memory_bytes: int
    """Of the process at its peak: that, and what it took after the timed patches."""
    device_bytes: int
    """Of a CUDA device at the peak; 0 without one."""
    seconds: float
    """Expected, from the timed patches; reading and writing go on at the same time."""
    first_seconds: float
    """That the first patch takes longer: the network is compiled."""

    def lines(self) -> list[str]:
        """For people."""
        share = self.repeated / self.patches if self.patches else 0
        forwards = [f"forwards  {self.patches * self.passes}, {self.passes} for each patch"]
        traffic, levels = self.traffic, len(self.traffic.chunks_written)
        back = f", and {_size(traffic.bytes_reread)} of output for its levels"
        device = [f"device    {_size(self.device_bytes)} of memory at most"]
        first = f", after {self.first_seconds:.0f} s to compile the network"
        return [
            f"patches   {self.patches} ({self.skipped} skipped, {share:.1%} predicted twice)",
            *(forwards if self.passes > 1 else []),
            f"units     {self.units}, columns of {self.column[0]} x {self.column[1]} voxels (y, x)",
            f"reads     {_size(traffic.bytes_read)} of input in {traffic.chunks_read} chunks"
            f"{back if levels > 1 else ''}",
            f"writes    {_size(traffic.bytes_written)} before compression, in "
            f"{sum(traffic.chunks_written)} chunks of {levels} level{'s'[: levels > 1]} a target",
            f"memory    {_size(self.memory_bytes)} at most, {_size(self.streaming_bytes)} of them for "
            "sums, input and output",
            *(device if self.device_bytes else []),
            f"expected  {self.seconds:.0f} s{first if self.first_seconds >= 1 else ''}",
        ]


def _size(count: int) -> str:
    unit, scale = next(u for u in _UNITS if count >= 0.9995 * u[1] or u[0] == "kB")
    return f"{count / scale:.3g} {unit}"


def estimate(job: Job) -> Estimate:
    """Count the work of a job, and time a few patches of noise."""
    units = list(job.division.units())
    batches = -(-job.patches // job.forward.batch)
    first, each = _time_batches(job) if batches else (0.0, 0.0)
    streaming = _streaming_bytes(job)
    is_cuda = job.forward.device.type == "cuda"
    sums = job.footprint.sums(*job.division.edges) if is_cuda else 0
    return Estimate(
        patches=job.patches,
        passes=job.forward.passes,
        skipped=job.division.skipped_patches() or 0,
        repeated=max(job.patches - job.division.count_different(), 0),
        units=len(units),
        column=job.division.edges,
        traffic=count_traffic(job, units),
        streaming_bytes=streaming,
        memory_bytes=peak_bytes() + max(streaming - sums, _levels_bytes(job)),
        device_bytes=sums + torch.cuda.max_memory_reserved(job.forward.device) if is_cuda else 0,
        seconds=batches * each,
        first_seconds=max(first - each, 0.0),
    )


def _streaming_bytes(job: Job) -> int:
    """What the column and the patches that are read ahead take."""
    channels = sum(volume.channels for volume in job.inputs) * job.forward.images
    ahead = 3 * job.forward.batch + job.threads
    return job.footprint(*job.division.edges) + ahead * channels * 4 * prod(job.division.grid.patch)


def _levels_bytes(job: Job) -> int:
    """What building the coarser levels takes, after the column is gone."""
    layout, most = job.layout, 0
    if len(layout.factors) == 1:
        return 0
    for target in job.targets.values():
        channels = target.output_channels(layout.dtype) or 1
        one = block_bytes(layout.block, layout.chunks, layout.step(1), channels, layout.dtype)
        most = max(most, one * most_threads(job.threads, one))
    return most


def _time_batches(job: Job) -> tuple[float, float]:
    """Seconds of the first batch, which compiles and allocates, and of any other, sums included."""
    grid = job.division.grid
    channels = job.forward.images * sum(volume.channels for volume in job.inputs)
    noise = np.random.default_rng(0).standard_normal(
        (job.forward.batch, channels, *grid.patch), np.float32
    )
    unit = next(job.division.units())
    index = unit.patches(grid)[0]
    core = Box(grid.origin(index), grid.patch).intersect(unit.core)
    blended = sum(target.blend_channels for target in job.targets.values())
    blender = Blender(grid, core, blended, job.forward.device)
    seconds: list[float] = []
    while len(seconds) <= LEAST_TIMED or (
        sum(seconds[1:]) < TIMED_S and len(seconds) <= MOST_TIMED
    ):
        begun = time.perf_counter()
        values = job.forward(noise)
        for number in range(job.forward.batch):
            for _ in blender.add(index, [value[number] for value in values.values()]):
                pass
        channel_sums(values).tolist()  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return seconds[0], median(seconds[1:])
