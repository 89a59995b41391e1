"""What a run would do and cost, and how fast it goes."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product, zip_longest
from math import prod
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from vcmodels.config.slices import SliceStack, reach_of
from vcmodels.geometry.boxes import Box, Shape, coarse_extent, units_touching
from vcmodels.geometry.grid import BoxSet, PatchGrid, live_patches
from vcmodels.inference.blend import Blender
from vcmodels.inference.job import Job, Pipeline
from vcmodels.inference.network import channel_sums
from vcmodels.inference.output import Layout
from vcmodels.inference.pyramid import block_bytes, most_threads
from vcmodels.inference.units import Unit, tile_shape
from vcmodels.reporting import Advance, Record
from vcmodels.volumes import Volume

Waiting = Literal["reader", "device", "writer"]
WAITED: tuple[Waiting, ...] = ("reader", "device", "writer")
MOST_SILENT_S = 60.0
"""A unit may take hours: after so long a record says how far it is."""

T = TypeVar("T")


class Meter:
    """Counts what one worker does.

    Args:
        advance: moves the bar.
        report: given a record when a unit ends, once a minute before that, and at a stop.
        worker: which of several this is; None for the only one.
    """

    def __init__(
        self,
        advance: Advance,
        report: Callable[[Record], None] = lambda _record: None,
        worker: str | None = None,
    ) -> None:
        self.report, self.worker = report, worker
        self._advance = advance
        self._begun = self._reported = time.perf_counter()
        self._counted = {"patches": 0.0, "voxels": 0.0, **dict.fromkeys(WAITED, 0.0)}
        self._before = dict(self._counted)

    @property
    def patches(self) -> int:
        """How many were predicted."""
        return int(self._counted["patches"])

    @contextmanager
    def waiting(self, name: Waiting) -> Iterator[None]:
        """Count the time that the context takes as waited for the reader, device or writer."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._counted[name] += time.perf_counter() - begun

    def timed(self, patches: Iterable[T]) -> Iterator[T]:
        """The same, with the time counted that the reader takes for each."""
        iterator = iter(patches)
        while True:
            with self.waiting("reader"):
                try:
                    patch = next(iterator)
                except StopIteration:
                    return
            yield patch

    def predicted(self) -> None:
        """Count a patch."""
        self._counted["patches"] += 1

    def final(self, voxels: int) -> None:
        """Count voxels of the output that no later patch changes."""
        self._counted["voxels"] += voxels

    def advance(self, patches: int, unit: Box) -> None:
        """Move the bar, and record how far the unit is if nothing was recorded for long."""
        now = time.perf_counter()
        seconds = max(now - self._begun, 1e-9)
        self._advance(patches, _text({k: v / seconds for k, v in self._counted.items()}))
        if now - self._reported > MOST_SILENT_S:
            self.record(unit, is_finished=False)

    def record(self, unit: Box, *, is_finished: bool) -> None:
        """Report what was done since the last record; docs/inference.md explains the keys."""
        now = time.perf_counter()
        seconds = max(now - self._reported, 1e-9)
        counted = {name: value - self._before[name] for name, value in self._counted.items()}
        self._reported, self._before = now, dict(self._counted)
        self.report(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "worker": self.worker,
                "unit": unit.pairs,
                "finished": is_finished,
                "patches": int(counted["patches"]),
                "seconds": round(seconds, 6),
                "patches_per_s": round(counted["patches"] / seconds, 3),
                "voxels_per_s": round(counted["voxels"] / seconds),
                **{f"{name}_share": round(counted[name] / seconds, 4) for name in WAITED},
                "memory_bytes": resident_bytes(),
            }
        )


def _text(rates: dict[str, float]) -> str:
    waits = ", ".join(f"{name} {rates[name]:.0%}" for name in WAITED)
    return (
        f"{rates['patches']:.1f} patches/s, {rates['voxels'] / 1e6:.3g} Mvoxels/s, waits: {waits}"
    )


def resident_bytes() -> int:
    """Memory of this process that is in use now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory that this process has had."""
    with suppress(OSError, StopIteration):  # not Linux; there `ru_maxrss` counts the parent's too
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Traffic:
    """Chunks and bytes, decoded."""

    chunks_read: int
    """Of the inputs; one that two units read counts twice."""
    bytes_read: int
    chunks_written: tuple[int, ...]
    """Of one target, by level; a chunk that comes out as zeros is not stored, but counted here."""
    bytes_written: int
    """Of all targets and levels."""
    bytes_reread: int
    """Of the output, for the next level."""


def count_traffic(job: Job, units: Iterable[Unit]) -> Traffic:
    """Count what predicting `units`, and building the levels, reads and writes."""
    units, layout, pipeline = list(units), job.layout, job.pipeline
    read = [(volume, _chunks_read(pipeline, volume, units)) for volume in pipeline.inputs]
    levels = list(_levels(units, layout))
    sizes = [
        len(found) * prod(chunk) * pipeline.column_memory.stored_bytes for chunk, found in levels
    ]
    return Traffic(
        chunks_read=sum(count for _, count in read),
        bytes_read=sum(
            count * prod(volume.chunks) * volume.channels * volume.dtype.itemsize
            for volume, count in read
        ),
        chunks_written=tuple(len(found) for _, found in levels),
        bytes_written=sum(sizes),
        bytes_reread=sum(sizes[:-1]),
    )


def _chunks_read(pipeline: Pipeline, volume: Volume, units: Iterable[Unit]) -> int:
    """Chunks of one input that are decoded, as `reading.RollingInput` reads it."""
    stored = BoxSet.of(volume.stored_blocks())
    return sum(_chunks_of_unit(pipeline, volume, stored, unit) for unit in units)


def _chunks_of_unit(pipeline: Pipeline, volume: Volume, stored: BoxSet, unit: Unit) -> int:
    grid, stack = pipeline.grid, pipeline.stack
    hull = reach_of(stack, grid.hull(unit.core), volume.box)
    # Chunks are read over the whole width of a tile: along (z, y) it matters which.
    counts = [-(-n // c) for n, c in zip(volume.extent, volume.chunks, strict=True)]
    is_read = np.zeros(counts[:2], np.bool_)
    for z, y in _tiles(grid, unit, tile_shape(volume), stack):
        part = [
            slice(max(i * t, low) // c, -(-min((i + 1) * t, high) // c))
            for i, t, low, high, c in zip(
                (z, y), tile_shape(volume), hull.origin, hull.end, volume.chunks, strict=False
            )
        ]
        is_read[tuple(part)] = True
    before = np.zeros([n + 1 for n in is_read.shape], np.int64)
    before[1:, 1:] = is_read.cumsum(0).cumsum(1)
    bounds = stored.within(hull).bounds
    (z0, y0, x0), (z1, y1, x1) = (
        (bounds[:, 0] // volume.chunks).T,
        (-(-bounds[:, 1] // volume.chunks)).T,
    )
    flat = before[z1, y1] - before[z0, y1] - before[z1, y0] + before[z0, y0]
    return int((flat * (x1 - x0)).sum())


def _tiles(
    grid: PatchGrid, unit: Unit, tile: tuple[int, int], stack: SliceStack | None
) -> Iterator[tuple[int, int]]:
    """The tiles that are read for the patches of a unit along (z, y); some more than once."""
    ranges, whole = grid.touching(unit.core), Box((0, 0, 0), grid.extent)
    rows = live_patches(grid, ranges, unit.wanted).any(axis=2)
    for z, y in np.argwhere(rows).tolist():
        origin = grid.origin((ranges[0].start + z, ranges[1].start + y, ranges[2].start))
        read = reach_of(stack, Box(origin, grid.patch).intersect(whole), whole)
        rows_of, lines_of, _ = units_touching(read, (*tile, 1))
        yield from product(rows_of, lines_of)


Indices = npt.NDArray[np.int64]
"""(n, 3) along (z, y, x)."""


def _levels(units: Iterable[Unit], layout: Layout) -> Iterator[tuple[Shape, Indices]]:
    """For each level the chunk shape and the indices of the chunks under wanted voxels."""
    chunk = layout.chunks
    found = np.concatenate([np.zeros((0, 3), np.int64), *(_touched(u, chunk) for u in units)])
    yield chunk, found
    for level in range(1, len(layout.factors)):
        finer, chunk = layout.chunks_of(level - 1), layout.chunks_of(level)
        extent = coarse_extent(layout.extent, layout.factors[level - 1])
        step = np.array(layout.step(level), np.int64)
        start = found * finer // step
        end = -(-np.minimum((found + 1) * finer, extent) // step)
        corners = _corners(start // chunk, (end - 1) // chunk)
        found = np.unique(np.concatenate(list(corners)), axis=0)
        yield chunk, found


def _touched(unit: Unit, chunk: Shape) -> Indices:
    """The chunks of a unit's box that hold a wanted voxel."""
    low = np.array(unit.box.origin, np.int64) // chunk
    high = -(-np.array(unit.box.end, np.int64) // chunk)
    is_touched = np.zeros(tuple(high - low), np.bool_)
    for start, end in unit.wanted.bounds:
        spans = zip(start // chunk - low, -(-end // chunk) - low, strict=True)
        is_touched[tuple(slice(a, b) for a, b in spans)] = True
    return np.argwhere(is_touched) + low


def _corners(low: Indices, high: Indices) -> Iterator[Indices]:
    """The eight mixtures of two index arrays: a chunk lies over two of the next at most."""
    for choice in product((False, True), repeat=3):
        yield np.where(choice, high, low)


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


def add_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """The work of several runs, one after another: one or more estimates as one."""
    traffic = [one.traffic for one in estimates]
    written = zip_longest(*(one.chunks_written for one in traffic), fillvalue=0)
    return Estimate(
        **{key: sum(getattr(one, key) for one in estimates) for key in _ADDED},
        **{key: max(getattr(one, key) for one in estimates) for key in _LARGEST},
        traffic=Traffic(
            chunks_read=sum(one.chunks_read for one in traffic),
            bytes_read=sum(one.bytes_read for one in traffic),
            chunks_written=tuple(map(sum, written)),
            bytes_written=sum(one.bytes_written for one in traffic),
            bytes_reread=sum(one.bytes_reread for one in traffic),
        ),
    )


_ADDED = ("patches", "skipped", "repeated", "units", "seconds", "first_seconds")
_LARGEST = ("passes", "column", "streaming_bytes", "memory_bytes", "device_bytes")


def _size(count: int) -> str:
    unit, scale = next(u for u in _UNITS if count >= 0.9995 * u[1] or u[0] == "kB")
    return f"{count / scale:.3g} {unit}"


def estimate(job: Job) -> Estimate:
    """Count the work of a job, and time a few patches of noise."""
    pipeline = job.pipeline
    mine, forward, patches = pipeline.mine, pipeline.forward, pipeline.patches
    units = list(mine.units())
    batches = -(-patches // forward.batch)
    first, each = _time_batches(pipeline) if batches else (0.0, 0.0)
    streaming = _streaming_bytes(pipeline)
    is_cuda = forward.device.type == "cuda"
    sums = pipeline.column_memory.sums(*mine.edges) if is_cuda else 0
    return Estimate(
        patches=patches,
        passes=forward.passes,
        skipped=mine.skipped_patches() or 0,
        repeated=max(patches - mine.count_different(), 0),
        units=len(units),
        column=mine.edges,
        traffic=count_traffic(job, units),
        streaming_bytes=streaming,
        memory_bytes=peak_bytes() + max(streaming - sums, _levels_bytes(job)),
        device_bytes=sums + torch.cuda.max_memory_reserved(forward.device) if is_cuda else 0,
        seconds=batches * each,
        first_seconds=max(first - each, 0.0),
    )


def _streaming_bytes(pipeline: Pipeline) -> int:
    """What the column and the patches that are read ahead take."""
    channels = pipeline.channels * pipeline.forward.images
    ahead = 3 * pipeline.forward.batch + pipeline.threads
    column = pipeline.column_memory(*pipeline.mine.edges)
    return column + ahead * channels * 4 * prod(pipeline.grid.patch)


def _levels_bytes(job: Job) -> int:
    """What building the coarser levels takes, after the column is gone."""
    layout, most = job.layout, 0
    if len(layout.factors) == 1:
        return 0
    for spec in job.pipeline.specs.values():
        channels = spec.output_channels(layout.dtype) or 1
        one = block_bytes(layout.block, layout.chunks, layout.step(1), channels, layout.dtype)
        most = max(most, one * most_threads(job.pipeline.threads, one))
    return most


def _time_batches(pipeline: Pipeline) -> tuple[float, float]:
    """Seconds of the first batch, which compiles and allocates, and of any other, sums included."""
    grid, forward = pipeline.grid, pipeline.forward
    channels = forward.images * pipeline.channels
    noise = np.random.default_rng(0).standard_normal(
        (forward.batch, channels, *grid.patch), np.float32
    )
    unit = next(pipeline.mine.units())
    index = unit.patches(grid)[0]
    core = Box(grid.origin(index), grid.patch).intersect(unit.core)
    blended = sum(spec.blend_channels for spec in pipeline.specs.values())
    blender = Blender(grid, core, blended, forward.device)
    seconds: list[float] = []
    while len(seconds) <= LEAST_TIMED or (
        sum(seconds[1:]) < TIMED_S and len(seconds) <= MOST_TIMED
    ):
        begun = time.perf_counter()
        values = forward(noise)
        for number in range(forward.batch):
            for _ in blender.add(index, [value[number] for value in values.values()]):
                pass
        channel_sums(values).tolist()  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return seconds[0], median(seconds[1:])
