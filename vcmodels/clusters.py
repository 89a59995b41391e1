"""Dask: a scheduler that runs somewhere, or processes of this machine for as long as it takes."""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vcmodels.errors import RefusedError

CONNECT_S = 20


@contextmanager
def dask_client(where: str) -> Iterator[Any]:
    """A connected `distributed.Client`.

    Args:
        where: address of a scheduler, as `tcp://host:8786`, or `local:N` for N processes, which
            divide the cores of this machine.

    Raises:
        RefusedError: no scheduler answers there.
    """
    distributed = importlib.import_module("distributed")  # late: it takes half a second
    with ExitStack() as stack:
        found = re.fullmatch(r"local:([1-9]\d{0,3})", where)
        if found:
            count = int(found[1])
            # Our own budget bounds the memory; Dask would kill a worker at a share of its own.
            cluster = distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=max(1, len(os.sched_getaffinity(0)) // count),
                processes=True,
                dashboard_address="127.0.0.1:0",  # or a second one warns of the first
                memory_limit=None,
            )
            where = stack.enter_context(cluster).scheduler_address
        try:
            client = distributed.Client(where, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            problem = f"no Dask scheduler answers at {where} ({type(error).__name__})"
            remedy = "start one, give local:N for N processes of this machine, or leave it out"
            raise RefusedError("--dask", problem, remedy) from error
        yield stack.enter_context(client)
