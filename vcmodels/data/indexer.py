"""Label indexes of the volumes of a task: from the store, or made by threads or a Dask cluster."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vcmodels.clusters import dask_client
from vcmodels.config import Task
from vcmodels.data.index_store import IndexStore
from vcmodels.data.label_index import IndexPlan, LabelIndex
from vcmodels.data.label_pass import count_voxels, decoding_threads, index_label, stored_bricks
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume


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


@dataclass(frozen=True)
class Indexer:
    """Gives label indexes, each from the store as far as it is there and valid.

    Args:
        folder: of stored indexes; None to keep none.
        reporter: told the progress, and why an index is not kept.
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
        plans = [IndexPlan.of(w.label, w.frame, w.cell, w.ignore) for w in labels]
        bricks = [
            stored_bricks(w.label, plan, w.within) for w, plan in zip(labels, plans, strict=True)
        ]
        total = sum(count_voxels(plan, some) for plan, some in zip(plans, bricks, strict=True))
        with ExitStack() as stack:
            advance = stack.enter_context(self.reporter.bar("reading labels", total))
            pool = stack.enter_context(self._pool(labels))
            for wanted, plan, some in zip(labels, plans, bricks, strict=True):
                store = None
                if self.folder is not None:
                    store = IndexStore(self.folder, wanted.label, plan, self.reporter.say)
                yield index_label(wanted.label, plan, some, pool=pool, store=store, advance=advance)

    @contextmanager
    def _pool(self, labels: Sequence[Wanted]) -> Iterator[Executor]:
        if self.dask is None:
            with decoding_threads([w.label for w in labels]) as pool:
                yield pool
            return
        with dask_client(self.dask) as client:
            yield client.get_executor()
