"""Coarser levels of a finished output, each computed from the one before.

A block (chunk, or shard) of a level is a pure function of the finer level, computed in pieces that
are cut at places of the volume and written once; the journal notes it after it is on the disk. So a
build that was killed goes on where it was, to the same bytes. Blocks under which nothing is stored
are passed over.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from itertools import islice
from math import prod

import numpy as np
import torch
from torch import Tensor

from vcmodels.geometry.boxes import Box, Shape
from vcmodels.inference.journal import Journal
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.output import Layout, level_key
from vcmodels.inference.writing import ENCODED_DEPTH, Output
from vcmodels.reporting import Advance, Reporter
from vcmodels.results import VERIFY
from vcmodels.volumes import open_volume
from vcmodels.volumes.multiscale import CoarserLevel, evened, mean_code, most_frequent

MOST_BYTES = 1e9
"""What all threads together may hold; one of them may always work."""


def build_pyramid(
    layout: Layout,
    targets: Mapping[str, OutputSpec],
    journal: Journal,
    threads: int,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> bool:
    """Build what is missing of the coarser levels of all targets; whether that came to its end.

    Args:
        layout: of the output, of which level 0 is complete.
        targets: by name.
        journal: where finished blocks are noted.
        threads: how many blocks are computed at once, at most.
        reporter: shown a bar for each level.
        should_stop: asked after each block.

    Raises:
        RunError: the disk is full, a chunk of the finer level is damaged, or this process may not
            write any more.
    """
    for name, target in targets.items():
        for level in range(1, len(layout.factors)):
            output = replace(layout.open_level(name, target, level), check=journal.check)
            below = layout.location(name, level - 1)
            fine = open_volume(str(below), key="output", channels="any", on_damage=VERIFY)
            coarse = open_volume(output.array.location, key="output", channels="any")
            work = CoarserLevel(
                fine, coarse, layout.step(level), partial(halve, target), ENCODED_DEPTH
            )
            key = level_key(name, level)
            done = set(journal.done(key))
            blocks = [block for block in work.blocks() if block not in done]
            with reporter.bar(f"level {level} of {name}", len(blocks)) as advance:
                mark = partial(journal.mark, array=key)
                if not _build(work, output, blocks, threads, mark, advance, should_stop):
                    return False
    return True


def _build(
    level: CoarserLevel,
    output: Output,
    blocks: Iterable[Box],
    threads: int,
    mark: Callable[[Box], None],
    advance: Advance,
    should_stop: Callable[[], bool],
) -> bool:
    """Write blocks and note each; false when stopped before the last."""
    unit, chunks = level.coarse.storage_unit, level.coarse.chunks
    one = block_bytes(unit, chunks, level.step, output.channels, output.dtype)
    threads = most_threads(threads, one)

    def write(block: Box) -> Box:
        output.write(block, level.values(block))
        output.array.sync(block)  # only what is on the disk is noted
        return block

    todo = iter(blocks)
    with ThreadPoolExecutor(threads, thread_name_prefix="pyramid") as pool:
        while batch := list(islice(todo, 8 * threads)):  # few at a time: a stop waits for them
            for written in as_completed([pool.submit(write, block) for block in batch]):
                mark(written.result())
                advance(1, "")
            if should_stop():
                return next(todo, None) is None
    return True


def block_bytes(block: Shape, chunk: Shape, factor: Shape, channels: int, dtype: np.dtype) -> int:
    """Memory for one block at a time: what is stored, and float32 of a few planes."""
    stored = prod(block) + prod(factor) * prod(chunk)
    floats = 4 * 4 * prod(factor) * ENCODED_DEPTH * prod(chunk[1:])
    return channels * (stored * dtype.itemsize + floats)


def most_threads(threads: int, bytes_of_each: int) -> int:
    """How many of the threads may work at once."""
    return max(1, min(threads, int(MOST_BYTES // bytes_of_each)))


def halve(target: OutputSpec, stored: np.ndarray, factor: Shape) -> np.ndarray:
    """Make one voxel of `factor` voxels, in the stored encoding.

    Values are averaged, not codes: vectors get their length back, axes are averaged as tensors.
    Classes give the most frequent, of equally frequent ones the lowest value. Where an axis ends
    with an odd voxel, that one stands for itself.

    Args:
        target: what is stored.
        stored: (S, Z, Y, X), encoded.
        factor: 1 or 2 along each axis.

    Returns:
        (S, ceil(Z / fz), ceil(Y / fy), ceil(X / fx)), of the same dtype.
    """
    if target.is_categorical:
        return most_frequent(stored, factor)
    even = evened(stored, factor)
    if stored.dtype.kind == "u" and _averages_values(target):
        return mean_code(even, factor)
    values = target.averageable(torch.from_numpy(target.decode(even)))
    return target.encode(target.unblend(_mean(values, factor)), stored.dtype)


def _averages_values(target: OutputSpec) -> bool:
    """Whether values are averaged as they are, whose codes are then averaged as well."""
    value = torch.zeros(target.channels, 1, 1, 1)
    return target.averageable(value) is value


def _mean(values: Tensor, factor: Shape) -> Tensor:
    for axis, f in enumerate(factor, start=1):
        if f == 2:
            first, second = values.unflatten(axis, (-1, 2)).unbind(axis + 1)
            values = (first + second) * 0.5
    return values
