"""A thread that makes the next item while the last one is in use."""

import signal
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vcmodels.stopping import STOP_SIGNALS

Item = TypeVar("Item")


def one_ahead(
    items: Generator[Item, None, None], stop: Callable[[], object]
) -> Generator[Item, None, None]:
    """The items of a generator, each made by a thread while the one before is in use.

    At most two exist at a time. What the generator raises is raised here, at the place of its item;
    when this generator is closed, or is not needed any more, so is that one, and the thread ends.

    Args:
        items: runs in the thread, and nowhere else.
        stop: called first when there are items left; makes a generator that waits give up.
    """
    thread = ThreadPoolExecutor(1, "ahead", _leave_signals)
    coming = thread.submit(next, items, None)
    try:
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
    finally:
        stop()
        thread.shutdown(cancel_futures=True)
        items.close()
        del coming  # an error holds this frame, and must not be held by it


def _leave_signals() -> None:
    """Stop signals are for the main thread, and not for processes that this one starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
