"""Finished voxels on their way to disk: encoded, gathered into whole chunks, written once."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.geometry.grid import BoxSet, slabs, tiles
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.units import Mask, Unit
from vcmodels.reporting import Reporter, Silent, list_some

MOST_RUNNING = 64
"""Failures without a patch in between that worked: then it is not the places that are at fault."""
NAMED = 5


class PlaceError(RunError):
    """One place of the input cannot be predicted; the rest can."""


class ValuesError(PlaceError):
    """A place of the input holds what is no value; its other places may hold as much."""


class Failures:
    """What could not be predicted and why, each reason reported once.

    Args:
        reporter: told each reason when it is first met.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.blocks: set[Box] = set()
        """Of output, that are not written for it."""
        self.reasons: dict[str, RunError] = {}
        """By what they are told as: each in its own words, or one for an array."""
        self._seen: set[str] = set()
        self._running = 0

    def add(self, reason: RunError, blocks: Iterable[Box]) -> None:
        """Note that some blocks are left out.

        Raises:
            RunError: nothing seems to work any more.
        """
        self.blocks.update(blocks)
        if str(reason) in self._seen:
            return
        self._seen.add(str(reason))
        # Of values that are not finite the first place of an array is enough.
        named = reason.subject if isinstance(reason, ValuesError) else str(reason)
        if named not in self.reasons:
            self.reasons[named] = reason
            self.reporter.say(f"left out: {reason}")
        self._running += 1
        if self._running >= MOST_RUNNING:
            found = f"{self._running} places failed one after the other, the last: {reason}"
            raise RunError("prediction", found, "fix that; the same command continues")

    def worked(self) -> None:
        """Note that a patch was predicted."""
        self._running = 0

    def merge(self, other: "Failures") -> None:
        """Add what another worker met."""
        for reason in other.reasons.values():
            self.add(reason, other.blocks)
        self._running = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the reporter behind."""
        return self.__dict__ | {"reporter": Silent()}

    def error(self, root: object) -> RunError | None:
        """What to raise at the end; None if nothing failed."""
        if not self.reasons:
            return None
        first = min(self.blocks)
        reasons = list_some(self.reasons.values(), NAMED, between=" | ")
        return RunError(
            str(root),
            f"{len(self.blocks)} blocks of output are not written (the first: {first.shape} voxels "
            f"at {first.origin}); {reasons}",
            "the same command tries them again, and nothing else",
        )


ENCODED_DEPTH = 16
"""Planes that are encoded together at most: few enough for the temporaries to stay in the cache,
where a whole row took three times as long."""


class BoxArray(Protocol):
    """An array that boxes are written into: on a disk, in a store, or in memory."""

    @property
    def location(self) -> str: ...
    def write(self, box: Box, data: np.ndarray) -> None: ...
    def sync(self, box: Box) -> None: ...


@dataclass(frozen=True)
class Output:
    """Where one target goes."""

    target: OutputSpec
    array: BoxArray
    dtype: np.dtype
    check: Callable[[], None] = lambda: None
    """Raises when this process may not write any more."""

    @property
    def channels(self) -> int:
        """Channels of the stored array; 1 when it has no channel axis."""
        return self.target.output_channels(self.dtype) or 1

    def write(self, box: Box, data: np.ndarray) -> None:
        """Write (S, Z, Y, X) encoded voxels.

        Raises:
            RunError: the disk is full, the array cannot be written, or not by this process any more.
        """
        self.check()
        try:
            self.array.write(box, data)
        except OSError as error:
            raise RunError(
                self.array.location,
                f"cannot be written ({error.strerror or error})",
                "make space, then run the same command again: it continues here",
            ) from error


@dataclass(frozen=True)
class FiniteCheck:
    """The sums over the values of some patches, to find one that is not finite."""

    patches: "tuple[tuple[UnitOutput, Box], ...]"
    sums: Tensor
    """(targets, patches)."""

    def leave_out(self) -> None:
        """Leave out what a patch with NaN or infinity touches."""
        for target, patch in (~torch.isfinite(self.sums)).nonzero().tolist():
            output, box = self.patches[patch]
            reason = PlaceError(
                f"patch at (z, y, x) = {box.origin}",
                f'the network gave NaN or infinity for target "{list(output.outputs)[target]}"',
                'check the input there, or use "amp": "off" or another checkpoint',
            )
            output.leave_out(box, reason)


class UnitOutput:
    """The output of one unit while it is being filled. Used by one thread at a time.

    A brick is one row of output blocks (chunks, or shards) over the width of the unit. It is written
    when its last voxel is final, which is the only time that its blocks are touched, and forgotten;
    a layer of bricks is marked as done once all of them are on the disk. Blocks without a predicted
    voxel hold only the fill value and are not stored.

    Args:
        unit: the part of the volume.
        outputs: by target, in the order of the averaged channels.
        block: shape of a block.
        wanted: the parts of a box that get a prediction.
        mask: where else there is none; None: nowhere.
        mark: called with the box of a layer once it is written, or the blocks of it that are.
        failures: told what is left out.
    """

    def __init__(
        self,
        unit: Unit,
        outputs: Mapping[str, Output],
        block: Shape,
        wanted: Callable[[Box], BoxSet],
        mask: Mask | None,
        mark: Callable[..., None],
        failures: Failures,
    ) -> None:
        self.unit, self.outputs, self.block = unit, outputs, block
        self.wanted, self.mask, self.mark = wanted, mask, mark
        self.failures = failures
        self._left_out: set[Box] = set()
        depth = next(d for d in range(ENCODED_DEPTH, 0, -1) if block[0] % d == 0)
        self._brick = (*block[:2], unit.box.end[2])
        self._piece = (depth, *block[1:])
        self._layers = deque(slabs(unit.box, block[0]))
        self._bricks: dict[Box, dict[str, np.ndarray]] = {}

    def take(self, box: Box, blended: Tensor, checks: list[FiniteCheck]) -> None:
        """Accept voxels that are final, and write what they complete.

        Args:
            box: where they lie, inside the core of the unit; boxes come in (z, y) order, and what
                lies before one in that order is final.
            blended: (A, *box.shape) float32, all targets one after the other.
            checks: of the patches that were added since the last call.

        Raises:
            RunError: the disk is full.
        """
        for check in checks:
            check.leave_out()
        for piece in tiles(box, self._piece):
            wanted = self.wanted(piece)
            if len(wanted):
                self._encode(piece, blended[(slice(None), *piece.slices(box))], wanted)
        self._write_until(box.origin[0], box.end)

    def leave_out(self, patch: Box, reason: RunError) -> None:
        """Neither write nor mark the blocks that a patch touches, which cannot be predicted."""
        blocks = {
            block.intersect(self.unit.box)
            for block in tiles(patch.intersect(self.unit.core), self.block, whole=True)
        }
        self._left_out |= blocks
        self.failures.add(reason, blocks)

    def finish(self) -> None:
        """Write and mark all that is left."""
        self._write_until(self.unit.box.end[0], self.unit.box.end)

    def _sound(self, box: Box) -> list[Box]:
        """What of a box of whole blocks is not left out: the box, or single blocks."""
        if not self._left_out:
            return [box]
        blocks = [block.intersect(box) for block in tiles(box, self.block, whole=True)]
        kept = [block for block in blocks if block not in self._left_out]
        return [box] if len(kept) == len(blocks) else kept

    def _encode(self, piece: Box, blended: Tensor, wanted: BoxSet) -> None:
        """Encode a piece of one block, and keep what is wanted of it."""
        brick = next(b for b in tiles(piece, self._brick, whole=True))
        brick = brick.intersect(self.unit.box)
        buffers = self._bricks.setdefault(brick, {})
        allowed = None if self.mask is None else self.mask.read(piece)
        first = 0
        for name, output in self.outputs.items():
            last = first + output.target.blend_channels
            values = output.target.unblend(blended[first:last])
            encoded = output.target.encode(values, output.dtype)
            first = last
            if allowed is not None:
                encoded *= allowed
            if name not in buffers:
                buffers[name] = np.zeros((output.channels, *brick.shape), output.dtype)
            for part in wanted:
                into = (slice(None), *part.slices(brick))
                buffers[name][into] = encoded[(slice(None), *part.slices(piece))]

    def _write_until(self, plane: int, end: Shape) -> None:
        """Write the bricks that lie before `plane`, or end before `end` along z and y."""
        for brick in sorted(self._bricks):
            z, y, _ = brick.end
            if z <= plane or (z <= end[0] and y <= end[1]):
                self._write(brick)
        while self._layers and self._layers[0].end[0] <= plane:
            layer = self._layers.popleft()
            for output in self.outputs.values():
                output.array.sync(layer)
            self.mark(*self._sound(layer))

    def _write(self, brick: Box) -> None:
        for name, data in self._bricks.pop(brick).items():
            for part in self._sound(brick):
                self.outputs[name].write(part, data[(slice(None), *part.slices(brick))])


class Background:
    """One thread that does work in order, a few pieces behind at most.

    After one that failed no other is begun; what it raised surfaces in `submit` or `wait`.
    """

    def __init__(self, most_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()
        self.most_waiting = most_waiting
        self._has_failed = False

    def submit(self, work: Callable[[], None]) -> None:
        """Queue some work; waits while too much is queued, and raises what earlier work raised."""
        while len(self._waiting) > self.most_waiting or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, work))

    def wait(self) -> None:
        """Wait until all is done; raises what any of it raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def _do(self, work: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            work()
        except BaseException:
            self._has_failed = True
            raise

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
