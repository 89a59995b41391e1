"""Units on their way through reader, network and writer, which all work at the same time.

Threads read patches ahead, this thread feeds the network and adds what comes out, one thread
encodes and writes. Each waits for the next when it is a bounded distance ahead. Units follow each
other without a gap: a batch may hold the last patches of one and the first of the next. A patch that
cannot be read or predicted is left out, and the blocks of output that it touches with it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import Index
from vcmodels.inference.blend import Blender, FinalVoxels
from vcmodels.inference.cost import Meter
from vcmodels.inference.job import Pipeline
from vcmodels.inference.network import channel_sums
from vcmodels.inference.reading import UnitInput
from vcmodels.inference.units import WAITING_ROWS, Unit
from vcmodels.inference.writing import (
    Background,
    Failures,
    FiniteCheck,
    Output,
    PlaceError,
    UnitOutput,
)

MOST_BACKGROUND = 64
"""Patches of background after which the rest of a batch is not waited for."""


@dataclass(frozen=True)
class ReadPatch:
    """A patch that has been read."""

    unit: "UnitWork"
    index: Index
    image: np.ndarray | None
    """(C, Z, Y, X) float32; None where it is all background, or could not be read."""
    failure: PlaceError | None = None
    """Why it could not be read."""

    @property
    def box(self) -> Box:
        """Where it lies."""
        grid = self.unit.pipeline.grid
        return Box(grid.origin(self.index), grid.patch)


def predict_units(
    pipeline: Pipeline,
    units: Iterable[Unit],
    outputs: Mapping[str, Output],
    mark: Callable[..., None],
    failures: Failures,
    meter: Meter,
    should_stop: Callable[[], bool],
) -> tuple[int, bool]:
    """Predict units; returns how many patches, and whether it came to the end of them.

    What cannot be predicted is in `failures` then; all else is written. What is written of a unit is
    a pure function of the pipeline and the unit: it does not depend on the others, nor on their order.
    """
    with _reading_threads(pipeline.threads) as pool, Background(WAITING_ROWS - 1) as writer:
        queue = OutputQueue(writer, meter)
        current: UnitWork | None = None
        works = (UnitWork(pipeline, unit, outputs, mark, failures) for unit in units)
        ahead = 2 * pipeline.forward.batch + pipeline.threads
        for batch in batches(meter.timed(read_ahead(works, pool, ahead)), pipeline.forward.batch):
            values = _predict(pipeline, batch, queue)
            for patch in batch:
                if current is not None and patch.unit is not current:
                    current.finish(queue)
                    meter.record(current.unit.box, is_finished=True)
                current = patch.unit
                value = patch.failure if patch.image is None else next(values)
                if isinstance(value, PlaceError):
                    queue.leave_out(patch, value)
                elif value is not None:
                    current.add(patch.index, value, queue)
                    failures.worked()
                    meter.predicted()
            meter.advance(len(batch), batch[-1].unit.unit.box)
            if should_stop():
                writer.wait()
                meter.record(batch[-1].unit.unit.box, is_finished=False)
                return meter.patches, False
        if current is not None:
            current.finish(queue)
        with meter.waiting("writer"):
            writer.wait()
        if current is not None:
            meter.record(current.unit.box, is_finished=True)
    return meter.patches, True


def _predict(
    pipeline: Pipeline, batch: list[ReadPatch], queue: "OutputQueue"
) -> Iterator[list[Tensor] | PlaceError]:
    """The averageable values of each patch that holds an image, or why there are none.

    Patches of a batch that fails are tried once more, one by one.
    """
    patches = [patch for patch in batch if patch.image is not None]
    if not patches:
        return
    try:
        yield from _forward(pipeline, patches, queue)
    except RuntimeError:  # what torch raises
        for patch in patches:
            try:
                yield from _forward(pipeline, [patch], queue)
            except RuntimeError as error:
                found = f"the network failed ({' '.join(str(error).split())[:200]})"
                yield PlaceError(f"patch at (z, y, x) = {patch.box.origin}", found)


def _forward(
    pipeline: Pipeline, patches: list[ReadPatch], queue: "OutputQueue"
) -> list[list[Tensor]]:
    """The averageable values, by target, of each patch."""
    images = [patch.image for patch in patches if patch.image is not None]
    with queue.meter.waiting("device"):
        values = pipeline.forward(images[0][None] if len(images) == 1 else np.stack(images))
    places = tuple((patch.unit.output, patch.box) for patch in patches)
    queue.checks.append(FiniteCheck(places, channel_sums(values)))
    return [[value[n] for value in values.values()] for n in range(len(patches))]


class UnitWork:
    """A unit that is being predicted."""

    def __init__(
        self,
        pipeline: Pipeline,
        unit: Unit,
        outputs: Mapping[str, Output],
        mark: Callable[..., None],
        failures: Failures,
    ) -> None:
        grid = pipeline.grid
        self.pipeline, self.unit = pipeline, unit
        self.indices = unit.patches(grid)
        self.input = UnitInput(
            pipeline.inputs, grid, unit, pipeline.normalize, pipeline.below, pipeline.stack,
            has_coordinates=pipeline.coordinates,
        )  # fmt: skip
        block, wanted = pipeline.mine.block, self.input.wanted
        self.output = UnitOutput(unit, outputs, block, wanted, pipeline.mask, mark, failures)
        self._blender: Blender | None = None

    def read(self, index: Index) -> ReadPatch:
        """Read a patch.

        Raises:
            RunError: a server does not answer.
        """
        try:
            return ReadPatch(self, index, self.input.patch(index))
        except PlaceError as error:
            return ReadPatch(self, index, None, error)

    @property
    def blender(self) -> Blender:
        """Made when the first patch is added: then the sums of the unit before are gone."""
        if self._blender is None:
            channels = sum(target.blend_channels for target in self.pipeline.specs.values())
            device = self.pipeline.forward.device
            self._blender = Blender(self.pipeline.grid, self.unit.core, channels, device)
        return self._blender

    def add(self, index: Index, values: list[Tensor], queue: "OutputQueue") -> None:
        """Add the values of a patch, and hand on what that makes final."""
        for finished in self.blender.add(index, values):
            queue.take(self.output, finished)

    def finish(self, queue: "OutputQueue") -> None:
        """Hand on all that is left."""
        for finished in self.blender.finish():
            queue.take(self.output, finished)
        self._blender = None
        queue.submit(self.output.finish)


class OutputQueue:
    """The way to the writer, where patches are also found that hold no numbers."""

    def __init__(self, writer: Background, meter: Meter) -> None:
        self.writer, self.meter = writer, meter
        self.checks: list[FiniteCheck] = []
        """Of the patches that were predicted since the last voxels were handed on."""

    def take(self, output: UnitOutput, finished: FinalVoxels) -> None:
        """Hand voxels on that are final, after the checks of all patches in them."""
        self.meter.final(finished[0].voxels)
        self.submit(partial(output.take, *finished, self.checks))
        self.checks = []

    def leave_out(self, patch: ReadPatch, reason: RunError) -> None:
        """Report that a patch has no values, before anything that follows it is handed on."""
        self.submit(partial(patch.unit.output.leave_out, patch.box, reason))

    def submit(self, work: Callable[[], None]) -> None:
        with self.meter.waiting("writer"):
            self.writer.submit(work)


def read_ahead(
    works: Iterable[UnitWork], pool: ThreadPoolExecutor | None, ahead: int
) -> Iterator[ReadPatch]:
    """The patches of all units in order, some of them read before they are asked for.

    Args:
        works: the units.
        pool: the threads that read; None reads in the calling thread.
        ahead: how many patches are kept ready.
    """
    waiting: deque[Future[ReadPatch]] = deque()

    def next_one() -> ReadPatch:
        patch = waiting.popleft().result()
        patch.unit.input.drop_before(patch.index)  # all that still waits begins here or later
        return patch

    try:
        for work in works:
            for index in work.indices:
                if pool is None:
                    work.input.drop_before(index)
                    yield work.read(index)
                    continue
                waiting.append(pool.submit(work.read, index))
                if len(waiting) > ahead:
                    yield next_one()
        while waiting:
            yield next_one()
    finally:
        for future in waiting:
            future.cancel()


def batches(patches: Iterable[ReadPatch], size: int) -> Iterator[list[ReadPatch]]:
    """Runs of patches with `size` to predict each; background comes on top."""
    batch: list[ReadPatch] = []
    images = 0
    for patch in patches:
        batch.append(patch)
        images += patch.image is not None
        if images == size or len(batch) >= size + MOST_BACKGROUND:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


@contextmanager
def _reading_threads(count: int) -> Iterator[ThreadPoolExecutor | None]:
    if count == 0:
        yield None
        return
    with ThreadPoolExecutor(count, thread_name_prefix="reader") as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
