"""The processes of one training, which `torchrun` starts: who is who, and what they send each other."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from vcmodels.errors import RefusedError, RunError, VcmodelsError

Result = TypeVar("Result")

PATIENCE = timedelta(days=2)
"""How long a process waits for another one: finding the patches of a large volume takes hours. One
that has died is noticed at once, by the closed connection and by torchrun, which ends the others."""


class World:
    """One process of `size`; with a size of 1 nothing is ever sent.

    Started by `torchrun`, a process finds in its environment which one it is (`RANK`), of how many
    (`WORLD_SIZE`), and where they meet.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, device: torch.device) -> "World":
        """Meet the others, if there are any: through NCCL for CUDA devices, else through gloo."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # Objects travel from memory to memory, so gloo is there next to NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (ValueError, dist.DistError) as error:
            reason = str(error).strip().splitlines()[0]
            remedy = "start several processes with torchrun, or unset it"
            if "EADDRINUSE" in reason:
                reason = f"another process listens on port {os.environ.get('MASTER_PORT')}"
                remedy = "end it, or give another port: torchrun --master-port"
            raise RefusedError(f"WORLD_SIZE={size}", reason, remedy) from error
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else each process also opens the first one
        return cls(dist.get_rank(), size)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, of tensors of one shape."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes, in order; small ones, for they travel as pickles."""
        if self.size == 1:
            return [value]
        found: list[Result | None] = [None] * self.size
        dist.all_gather_object(found, value)
        return found  # pyright: ignore[reportReturnType]

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.sum(parameter.grad) / self.size

    def share(self, numbers: range) -> range:
        """Those that are for this process: consecutive ones, about as many for each process."""
        first, end = (rank * len(numbers) // self.size for rank in (self.rank, self.rank + 1))
        return numbers[first:end]

    def once(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, or raises, in the first process; the others wait for it.

        Raises:
            VcmodelsError: as the first process did.
        """
        if self.size == 1:
            return work()
        told: list[Result | VcmodelsError | None] = [None]
        if self.is_first:
            try:
                told = [work()]
            except VcmodelsError as error:
                dist.broadcast_object_list([error], device=torch.device("cpu"))
                raise
        dist.broadcast_object_list(told, device=torch.device("cpu"))
        if isinstance(told[0], VcmodelsError):
            told[0].is_told = True
            raise told[0]
        return told[0]  # pyright: ignore[reportReturnType]

    def require_same(self, value: object, what: str) -> None:
        """Refuse to go on when processes see different things.

        Raises:
            RunError: they do; of no file but one that all of them read.
        """
        told = self.gather(value)
        if any(other != told[0] for other in told):
            found = f"{what} differs between processes ({'; '.join(map(str, told))})"
            raise RunError("torchrun", found, "all hosts must see the same run folder; run again")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Say in one line when work ends because another process has.

        Raises:
            RunError: the connection to another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            # Of gloo there is no type of its own.
            if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
                raise
            raise RunError(
                f"process {self.rank} of {self.size}",
                "another process of this training has ended",
                "see what it said; the same command continues from the last checkpoint",
            ) from error

    def leave(self) -> None:
        """Close the connections."""
        if self.size > 1:
            dist.destroy_process_group()


def local_device(wanted: str | int) -> str | int:
    """The device of this process: of several on a host, each has one of its own.

    Raises:
        RefusedError: all of them are to share one CUDA device.
    """
    count, index = (
        int(os.environ.get(k, d)) for k, d in (("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if count == 1:
        return wanted
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Said by all, before any of them waits for another.
    if count > found and (wanted == "cuda" or (wanted == "auto" and found)):
        what = f"{count} processes on this host, which has {found} CUDA devices"
        raise RefusedError("tr_params.device", what, "start as many as there are devices")
    if wanted == "auto":
        return f"cuda:{index}" if found else "cpu"
    if wanted == "cuda":
        return f"cuda:{index}"
    if wanted in ("cpu", -1):
        return "cpu"
    what = f"is {wanted}, for {count} processes on this host"
    raise RefusedError("tr_params.device", what, 'use "auto", "cuda" or "cpu"')
