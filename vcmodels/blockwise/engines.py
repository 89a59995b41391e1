"""Who works on the blocks: the threads of this process, or the workers of a Dask cluster."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import torch

from vcmodels.errors import RunError, VcmodelsError
from vcmodels.geometry.boxes import Box
from vcmodels.machine import usable_cores
from vcmodels.metrics.base import BlockPart

Work = Callable[[Box], BlockPart]
"""What is made of a block; picklable, and the same whenever and wherever it is called."""
ShouldStop = Callable[[], bool]
POLL_S = 0.2
"""Between two looks at whether to stop."""


class Engine(Protocol):
    """Works on blocks, several at a time."""

    def run(
        self, work: Work, blocks: Sequence[Box], should_stop: ShouldStop
    ) -> Iterator[tuple[Box, BlockPart]]:
        """Each block with its part, in the order in which they are done.

        After a stop, only those that are being worked on.
        """
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process: decoding and most of NumPy and PyTorch let go of the interpreter."""

    count: int | None = None
    """As many as cores when None."""

    def run(
        self, work: Work, blocks: Sequence[Box], should_stop: ShouldStop
    ) -> Iterator[tuple[Box, BlockPart]]:
        count = self.count or usable_cores()
        before = torch.get_num_threads()
        # One thread each: blocks are many, and sums in parallel would depend on how many cores do them.
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        running: dict[Future[BlockPart], Box] = {}
        rest = iter(blocks)
        try:
            while not should_stop():
                for box in islice(rest, count + 1 - len(running)):
                    running[pool.submit(work, box)] = box
                if not running:
                    return
                for future in wait(running, POLL_S, FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
            for future in running:
                future.cancel()
            for future in wait(running).done:
                if not future.cancelled():
                    yield running[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(before)


@dataclass(frozen=True)
class DaskWorkers:
    """The workers of a Dask cluster, which see the same files under the same paths."""

    client: Any
    """A connected `distributed.Client`."""

    def run(
        self, work: Work, blocks: Sequence[Box], should_stop: ShouldStop
    ) -> Iterator[tuple[Box, BlockPart]]:
        """As `Engine.run`.

        Raises:
            RunError: the cluster is gone, or its workers died twice of one block.
        """
        pickled, running = pickle.dumps(work), dict[Any, Box]()
        rest = iter(blocks)
        try:
            while not should_stop():
                for box in islice(rest, max(0, 2 * self._threads() - len(running))):
                    # With each block: a worker that comes later has nothing else to go by.
                    future = self.client.submit(_run_pickled, pickled, box, pure=False, retries=1)
                    running[future] = box
                if not running:
                    return
                for future in _done(running):
                    box = running.pop(future)
                    yield box, _result(future, box)
        except (OSError, CancelledError) as error:
            found = f"the Dask cluster is gone ({type(error).__name__})"
            raise RunError("--dask", found, "the same command continues") from error
        finally:
            self.client.cancel(list(running))

    def _threads(self) -> int:
        """How many blocks the workers that are there now can do at a time; 1 without any."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return max(1, sum(int(worker["nthreads"]) for worker in workers))


def _done(running: Iterable[Any]) -> list[Any]:
    from distributed import wait as wait_for  # late: it takes half a second

    try:
        ended: Any = wait_for(list(running), POLL_S, "FIRST_COMPLETED")
    except TimeoutError:
        return []
    return list(ended.done)


def _result(future: Any, box: Box) -> BlockPart:  # noqa: ANN401 -- distributed has no types
    from distributed.scheduler import KilledWorker, NoWorkerError

    try:
        return future.result()
    except VcmodelsError:
        raise
    except KilledWorker as error:
        found = f"workers died of the block at {box.origin}, {box.shape}"
        raise RunError("--dask", found, "see their logs; give them more memory") from error
    except NoWorkerError as error:
        found = "no worker came for as long as no-workers-timeout says"
        raise RunError("--dask", found, "start some; the same command continues") from error


def _run_pickled(pickled: bytes, box: Box) -> BlockPart:
    """Runs on a worker."""
    torch.set_num_threads(1)
    return _unpickled(pickled)(box)


@lru_cache(maxsize=4)
def _unpickled(pickled: bytes) -> Work:
    """Once in a process, so that what the work keeps of earlier blocks serves later ones."""
    return pickle.loads(pickled)
