"""Finished voxels on their way to disk: encoded, gathered into slabs of whole chunks, written once."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vcmodels.errors import RunError
from vcmodels.geometry.blocks import BoxSet, slabs
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.inference.units import Unit
from vcmodels.targets import AnyTarget
from vcmodels.volumes import WritableArray


@dataclass(frozen=True)
class Output:
    """Where one target goes."""

    target: AnyTarget
    array: WritableArray
    dtype: np.dtype

    @property
    def channels(self) -> int:
        """Channels of the stored array; 1 when it has no channel axis."""
        return self.target.output_channels(self.dtype) or 1


@dataclass(frozen=True)
class Check:
    """The sums over the values of some patches, to find one that is not finite."""

    origins: tuple[Shape, ...]
    sums: Tensor
    """(targets, patches)."""

    def require_finite(self, targets: tuple[str, ...]) -> None:
        """Raise for the first patch with NaN or infinity.

        Raises:
            RunError: naming the patch and the target.
        """
        bad = (~torch.isfinite(self.sums)).nonzero().tolist()
        if bad:
            target, patch = bad[0]
            raise RunError(
                f"patch at (z, y, x) = {self.origins[patch]}",
                f'the network gave NaN or infinity for target "{targets[target]}"',
                'check the input there, or use "amp": "off" or another checkpoint',
            )


class UnitOutput:
    """The slabs of one unit that are being filled. Used by one thread at a time.

    A slab is one layer of output chunks (or shards). It is written when its last voxel has arrived,
    which is the only time that its chunks are touched. Chunks without a predicted voxel hold the
    fill value alone and are not stored.

    Args:
        unit: the part of the volume.
        outputs: by target, in the order of the averaged channels.
        depth: of a slab.
        mark: called with a slab's box once it is written.
    """

    def __init__(
        self, unit: Unit, outputs: Mapping[str, Output], depth: int, mark: Callable[[Box], None]
    ) -> None:
        self.unit, self.outputs, self.mark = unit, outputs, mark
        self.depth = depth
        self._slabs = {box.origin[0] // depth: box for box in slabs(unit.box, depth)}
        self._buffers: dict[int, dict[str, np.ndarray]] = {}
        self._missing = {n: box.intersect(unit.core).voxels for n, box in self._slabs.items()}

    def take(self, box: Box, blended: Tensor, checks: list[Check]) -> None:
        """Accept voxels that are final.

        Args:
            box: where they lie, inside the core of the unit; each voxel comes once.
            blended: (A, *box.shape) float32, all targets one after the other.
            checks: of the patches that were added since the last call.

        Raises:
            RunError: a patch was not finite, or the disk is full.
        """
        for check in checks:
            check.require_finite(tuple(self.outputs))
        wanted = self.unit.wanted.within(box)
        if len(wanted):
            self._store(box, blended, wanted)
        for part in slabs(box, self.depth):
            number = part.origin[0] // self.depth
            self._missing[number] -= part.voxels
            if self._missing[number] == 0:
                self._write(number)

    def _store(self, box: Box, blended: Tensor, wanted: BoxSet) -> None:
        """Encode and copy what is wanted: the voxels whose input exists."""
        first = 0
        for name, output in self.outputs.items():
            last = first + output.target.blend_channels
            values = output.target.unblend(blended[first:last])
            encoded = output.target.encode(values, output.dtype)
            first = last
            for part in wanted:
                for piece in slabs(part, self.depth):
                    number = piece.origin[0] // self.depth
                    buffer = self._buffer(number)[name]
                    into = (slice(None), *piece.slices(self._slabs[number]))
                    buffer[into] = encoded[(slice(None), *piece.slices(box))]

    def _buffer(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._buffers:
            shape = self._slabs[number].shape
            self._buffers[number] = {
                name: np.zeros((output.channels, *shape), output.dtype)
                for name, output in self.outputs.items()
            }
        return self._buffers[number]

    def _write(self, number: int) -> None:
        box = self._slabs[number]
        for name, data in self._buffers.pop(number, {}).items():
            array = self.outputs[name].array
            try:
                array.write(box, data)
            except OSError as error:
                raise RunError(
                    array.location,
                    f"cannot be written ({error.strerror or error})",
                    "make space, then run the same command again: it continues here",
                ) from error
        self.mark(box)


class Background:
    """One thread that does tasks in order, a few behind at most.

    After a task that failed no other is begun; what it raised surfaces in `submit` or `wait`.
    """

    def __init__(self, most_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()
        self.most_waiting = most_waiting
        self._has_failed = False

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task; waits while too many are queued, and raises what an earlier one raised."""
        while len(self._waiting) > self.most_waiting or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, task))

    def wait(self) -> None:
        """Wait for all tasks; raises what one of them raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def _do(self, task: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            task()
        except BaseException:
            self._has_failed = True
            raise

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
