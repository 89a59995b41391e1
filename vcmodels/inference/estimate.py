"""What a run would do and cost, told before it starts."""

import time
from dataclasses import dataclass

import numpy as np

from vcmodels.inference.forward import channel_sums
from vcmodels.inference.job import Job

TIMED_BATCHES = 2


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
    bytes_read: int
    """Of input that is decoded."""
    bytes_written: int
    """Of output before compression."""
    memory_bytes: int
    """For sums, slabs and input; the network's own memory comes on top."""
    seconds: float
    """Expected, from a few timed patches."""

    def lines(self) -> list[str]:
        """For people."""
        share = self.repeated / self.patches if self.patches else 0
        forwards = [f"forwards  {self.patches * self.passes}, {self.passes} for each patch"]
        return [
            f"patches   {self.patches} ({self.skipped} skipped, {share:.1%} predicted twice)",
            *(forwards if self.passes > 1 else []),
            f"units     {self.units}, columns of {self.column[0]} x {self.column[1]} voxels (y, x)",
            f"reads     {self.bytes_read / 1e9:.3f} GB of input",
            f"writes    {self.bytes_written / 1e9:.3f} GB before compression",
            f"memory    {self.memory_bytes / 1e9:.2f} GB besides the network",
            f"expected  {self.seconds:.0f} s",
        ]


def estimate(job: Job) -> Estimate:
    """Count the work of a job, and time a few patches of noise."""
    grid, units = job.division.grid, list(job.division.units())
    itemsize = sum(volume.channels * volume.dtype.itemsize for volume in job.inputs)
    skipped = job.division.skipped_patches() or 0
    batches = -(-job.patches // job.forward.batch)
    return Estimate(
        patches=job.patches,
        passes=job.forward.passes,
        skipped=skipped,
        repeated=max(job.patches - job.division.count_different(), 0),
        units=len(units),
        column=job.division.edges,
        bytes_read=sum(grid.hull(unit.core).voxels for unit in units) * itemsize,
        bytes_written=sum(box.voxels for box in job.division.wanted) * job.footprint.stored_bytes,
        memory_bytes=job.footprint(*job.division.edges),
        seconds=batches * _seconds_per_batch(job) if batches else 0.0,
    )


def _seconds_per_batch(job: Job) -> float:
    channels = job.forward.images * sum(volume.channels for volume in job.inputs)
    shape = (job.forward.batch, channels, *job.division.grid.patch)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    channel_sums(job.forward(noise)).tolist()  # the first one compiles and allocates
    begun = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        channel_sums(job.forward(noise)).tolist()
    return (time.perf_counter() - begun) / TIMED_BATCHES
