"""The one pass over a label that makes its index: each stored chunk is decoded once.

Only bricks that are not in the store, or not valid there, are made; each is stored when it is done,
so that a pass that was killed continues, and an edited chunk costs the pass over its brick.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import prod
from pathlib import Path

import numpy as np

from vcmodels.config import Task
from vcmodels.devices import dask_client
from vcmodels.geometry.boxes import Box, Shape, cut_block, triple, unit_box
from vcmodels.machine import usable_cores
from vcmodels.patches.index import (
    MOST_VALUES,
    UNCOUNTED,
    Cells,
    IndexPlan,
    LabelIndex,
    cells_of,
    labelled_voxels,
)
from vcmodels.patches.index_store import IndexStore
from vcmodels.reporting import Advance, Reporter
from vcmodels.targets.census import ValueFigures
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import Volume, is_remote
from vcmodels.volumes.remote import StoredFile

MOST_THREADS = 8
REMOTE_THREADS = 32  # they wait for the network, not for a core
IN_FLIGHT = 2  # results waiting per worker, which bounds the memory

MANY_LABELS = 64
UNSTORED_VOXELS = 1 << 22
"""Of many labels, those with fewer are decoded faster than the store of an index is opened: 1,000
labels of 10^4 voxels took 120 s to store and load three times, and 25 s to read as often."""

UNIT = Box((0, 0, 0), (1, 1, 1))

Units = Mapping[Shape, tuple[StoredFile, ...]]
"""Storage units by index, with their files; none where only the fill value makes it a label."""
Bricks = dict[Shape, Units]


def index_label(
    volume: Volume,
    plan: IndexPlan,
    wanted: Bricks,
    *,
    pool: Executor,
    store: IndexStore | None = None,
    advance: Advance = lambda _voxels, _text: None,
    most: int | None = None,
) -> LabelIndex:
    """The index of some bricks, from the store as far as it has them.

    Args:
        volume: the label.
        plan: what is counted.
        wanted: which bricks, with their storage units: `stored_bricks`.
        pool: where chunks are decoded.
        store: where bricks are kept.
        advance: called with the voxels that were decoded or need not be, and the speed.
        most: voxels to decode; more are looked at in bricks that are spread over them. All if None.

    Raises:
        ChunkError: a chunk cannot be read; the bricks before it are kept.
    """
    bricks: dict[Shape, Cells] = {}
    missing: Bricks = {}
    for brick, units in wanted.items():
        cells = store.load(brick, _files(units)) if store else None
        if cells is None:
            missing[brick] = units
        else:
            bricks[brick] = cells.cropped()
            advance(len(units) * prod(plan.unit), "")
    chosen = missing if most is None else _spread(missing, plan, most)
    report = _speed_reporter(advance, plan)
    for brick, cells in _made(volume, plan, chosen, pool, report):
        if store:
            store.save(brick, cells, _files(wanted[brick]))
        bricks[brick] = cells.cropped()
    filled = {b: cells for b, cells in sorted(bricks.items()) if cells.box.voxels or cells.figures}
    seen = [units for brick, units in wanted.items() if brick in bricks]
    looked = np.array([unit for units in seen for unit in units], np.int64).reshape(-1, 3)
    return LabelIndex(plan, filled, looked, len(chosen) == len(missing))


def _spread(bricks: Bricks, plan: IndexPlan, most: int) -> Bricks:
    """Bricks in even steps, of about `most` voxels together; at least one."""
    step = max(1, min(-(-count_voxels(plan, bricks) // most), len(bricks)))
    return dict(list(bricks.items())[step // 2 :: step])


@contextmanager
def decoding_threads(volumes: Iterable[Volume]) -> Iterator[Executor]:
    """Threads that decode chunks, as many as cores, more when they wait for a network."""
    count = min(usable_cores(), MOST_THREADS)
    if any(is_remote(volume.location) for volume in volumes):
        count = REMOTE_THREADS
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def stored_bricks(volume: Volume, plan: IndexPlan, within: Box) -> Bricks:
    """The bricks that touch a box, with those of their storage units that may hold labels.

    The store is listed once, at the first call for a volume.

    Raises:
        RunError: a server that cannot list does not answer.
    """
    spans = plan.bricks(within.intersect(plan.region))
    units: dict[Shape, tuple[StoredFile, ...]] = {}
    for index, file in volume.stored_files(_units_of(plan, volume, spans)):
        units[index] = (*units.get(index, ()), file)
    if labelled_voxels(_fill(volume, UNIT), plan.ignore, plan.foreground).any():
        every = product(*_units_of(plan, volume, spans))
        units = {index: units.get(index, ()) for index in every}
    found: dict[Shape, dict[Shape, tuple[StoredFile, ...]]] = {}
    for index in sorted(units):
        found.setdefault(plan.brick_of(index), {})[index] = units[index]
    return dict(sorted(found.items()))


def count_voxels(plan: IndexPlan, bricks: Bricks) -> int:
    """How much there is to decode at most, for a progress bar."""
    return sum(map(len, bricks.values())) * prod(plan.unit)


def summarise_unit(volume: Volume, plan: IndexPlan, unit: Shape, is_stored: bool) -> Cells:
    """The cells of one storage unit; a large shard is read in parts."""
    block = unit_box(unit, plan.unit).intersect(volume.box)
    found: list[Cells] = []
    for part in cut_block(block, volume.chunks):
        piece = part.intersect(plan.region)
        if piece.voxels:
            stored = volume.read(piece) if is_stored else _fill(volume, piece)
            rules = plan.ignore, plan.foreground
            found.append(cells_of(stored, piece, plan.region.origin, plan.cell, *rules))
    if len(found) == 1:
        return found[0]
    whole = Cells.empty(plan.cells(block.intersect(plan.region)))
    for cells in found:
        whole.add(cells)
    return whole


def _units_of(
    plan: IndexPlan, volume: Volume, spans: tuple[range, range, range]
) -> tuple[range, range, range]:
    """The storage units of bricks, along each axis; those outside of the plan's region left out."""
    return triple(
        range(max(s.start * b, r // u), min(s.stop * b, -(-e // u)))
        for s, b, u, r, e in zip(
            spans, plan.brick, plan.unit, plan.region.origin, plan.region.end, strict=True
        )
    )


def _files(units: Units) -> list[StoredFile]:
    return [file for files in units.values() for file in files]


def _fill(volume: Volume, piece: Box) -> np.ndarray:
    """What is read where nothing is stored."""
    return np.full((volume.channels, *piece.shape), volume.fill_value, volume.dtype)


def _made(
    volume: Volume, plan: IndexPlan, bricks: Bricks, pool: Executor, advance: Callable[[], None]
) -> Iterator[tuple[Shape, Cells]]:
    """Make bricks one after the other, from units that are decoded side by side."""

    def jobs() -> Iterator[tuple[Shape, Future[Cells]]]:
        for brick, units in bricks.items():
            for unit, files in units.items():
                yield brick, pool.submit(summarise_unit, volume, plan, unit, bool(files))

    for brick, results in groupby(_buffered(jobs(), pool), key=lambda result: result[0]):
        whole = Cells.empty(plan.cells(plan.brick_box(brick)))
        for _, cells in results:
            whole.add(cells)
            advance()
        yield brick, _limited(whole, plan)


def _buffered(
    jobs: Iterable[tuple[Shape, Future[Cells]]], pool: Executor
) -> Iterator[tuple[Shape, Cells]]:
    """Results in order, a few jobs ahead."""
    workers: int = getattr(pool, "_max_workers", REMOTE_THREADS)
    waiting: deque[tuple[Shape, Future[Cells]]] = deque()
    for job in jobs:
        waiting.append(job)
        if len(waiting) >= IN_FLIGHT * workers:
            brick, future = waiting.popleft()
            yield brick, future.result()
    while waiting:
        brick, future = waiting.popleft()
        yield brick, future.result()


def _limited(cells: Cells, plan: IndexPlan) -> Cells:
    """Values in ascending order, or all labelled voxels together when there are too many."""
    if len(cells.counts) <= MOST_VALUES:
        return replace(cells, counts=dict(sorted(cells.counts.items())))
    labelled = np.zeros(cells.box.shape, np.uint16)
    for value, counts in cells.counts.items():
        if plan.is_labelled(value):
            labelled += counts
    counted = {v: int(n.sum(dtype=np.int64)) for v, n in cells.counts.items() if v != UNCOUNTED}
    figures = (cells.figures or ValueFigures()) + ValueFigures.counted(counted, plan.ignore)
    return Cells(cells.box, cells.planes, {UNCOUNTED: labelled}, figures)


def _speed_reporter(advance: Advance, plan: IndexPlan) -> Callable[[], None]:
    """Reports each decoded unit, with the speed since the first."""
    begun, done, voxels = time.perf_counter(), 0, prod(plan.unit)

    def report() -> None:
        nonlocal done
        done += voxels
        speed = done / max(time.perf_counter() - begun, 1e-9)
        advance(voxels, f"{speed / 1e6:,.0f} Mvoxel/s")

    return report


@dataclass(frozen=True)
class Wanted:
    """A label that an index is wanted of."""

    label: Volume
    frame: Box
    """Where cells start, and what is counted: the volume, or a part of it."""
    within: Box
    """The part of the frame that is asked about."""
    cell: Shape
    ignore: tuple[int, ...] = ()
    foreground: ForegroundRule | None = None
    """Which of the other values are labelled; all when None."""
    most: int | None = None
    """Voxels to decode at most, see `index_label`; all if None."""

    @property
    def plan(self) -> IndexPlan:
        """What its index counts."""
        return IndexPlan.of(self.label, self.frame, self.cell, self.ignore, self.foreground)


@dataclass(frozen=True)
class Indexer:
    """Gives label indexes, each from the store as far as it is there and valid.

    Args:
        folder: of stored indexes; None to keep none.
        reporter: shows the progress, and why an index is not kept.
        dask: address of a scheduler whose workers decode, or `local:N`; None for threads.
    """

    folder: Path | None
    reporter: Reporter
    dask: str | None = None

    @classmethod
    def of(cls, task: Task, reporter: Reporter, dask: str | None = None) -> "Indexer":
        """The one for a task, which keeps nothing with `use_cache: false`."""
        folder = task.index_dir if task.dataset_config.use_cache else None
        return cls(folder, reporter, dask)

    def indexes(self, labels: Sequence[Wanted]) -> Generator[LabelIndex, None, None]:
        """One index after the other, with one progress bar.

        Raises:
            ChunkError: a label chunk cannot be read; what was done before is kept.
            RunError: a server or the cluster does not answer.
        """
        plans = [wanted.plan for wanted in labels]
        bricks = [
            stored_bricks(w.label, plan, w.within) for w, plan in zip(labels, plans, strict=True)
        ]
        voxels = [count_voxels(plan, some) for plan, some in zip(plans, bricks, strict=True)]
        are_many = len(labels) >= MANY_LABELS
        with ExitStack() as stack:
            advance = stack.enter_context(self.reporter.bar("reading labels", sum(voxels)))
            pool = stack.enter_context(self._pool(labels))
            for wanted, plan, some, count in zip(labels, plans, bricks, voxels, strict=True):
                store = None
                if self.folder is not None and not (are_many and count <= UNSTORED_VOXELS):
                    store = IndexStore(self.folder, wanted.label, plan, self.reporter.say)
                yield index_label(
                    *(wanted.label, plan, some),
                    pool=pool,
                    store=store,
                    advance=advance,
                    most=wanted.most,
                )

    @contextmanager
    def _pool(self, labels: Sequence[Wanted]) -> Iterator[Executor]:
        if self.dask is None:
            with decoding_threads([w.label for w in labels]) as pool:
                yield pool
            return
        with dask_client(self.dask) as client:
            yield client.get_executor()
