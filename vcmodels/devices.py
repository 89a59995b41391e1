"""The device and precision to compute with, how a network is compiled for it, and Dask clusters."""

import ctypes
import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import config

from vcmodels.errors import RefusedError
from vcmodels.machine import free_machine_bytes, machine_bytes, usable_cores
from vcmodels.section import Amp

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def choose_device(wanted: str | int, key: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:1`, an index, or -1 (the CPU).

    Raises:
        RefusedError: a CUDA device is asked for that torch does not see.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda" if found else "cpu")
    name = wanted if isinstance(wanted, str) else "cpu" if wanted < 0 else f"cuda:{wanted}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RefusedError(
            key, f"{wanted!r} is no device", 'use "auto", "cpu" or "cuda:0"'
        ) from error
    if device.type == "cuda" and (device.index or 0) >= found:
        raise RefusedError(
            key, f"{name} was asked for, {found} CUDA devices are visible", 'use "auto" or "cpu"'
        )
    return device


def memory_bytes(device: torch.device) -> int:
    """All memory of a CUDA device; for the CPU that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_bytes()


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nothing uses now; for the CPU, what a process could still get."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_machine_bytes()


def set_threads(wanted: int | None) -> None:
    """Let torch compute with so many threads; None: as many as it would take, and not more than granted.

    `OMP_NUM_THREADS`, with which a user says how many, is torch's own affair.
    """
    if wanted is not None:
        torch.set_num_threads(wanted)
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run natively: emulated, they cost more than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capability: str = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()


def choose_amp(wanted: Amp, device: torch.device) -> torch.dtype | None:
    """The autocast dtype, None for float32: `auto` takes bf16 where native, else fp16 on CUDA."""
    if wanted == "auto":
        if has_fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context in which convolutions run in `dtype`; nothing changes for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small; for the CPU and for libraries of CUDA, torch has no type."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def keep_freed_memory() -> None:
    """Let the C library hand freed memory to the next allocation instead of back to the system.

    glibc returns large blocks at once, and every page of the next one faults again: 28,000 faults
    in one float32 forward pass of a 64^3 patch, 7 % of its time. Blocks above 32 MB, which no
    threshold keeps, are another 13 % of a prediction with patches of 96^3 in float32, 14 % with 128^3
    in bf16, for a peak that is up to 16 % higher (853 to 987 MiB). Threads then share one arena: with
    one each, a prediction of 384^3 voxels took 439 MiB instead of 332. Elsewhere this does nothing.
    """
    with suppress(AttributeError, OSError):  # no mallopt, as on macOS
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # no block, however large, is mapped on its own
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        mallopt(_M_ARENA_MAX, 1)


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, its weights channels-last: the layout that convolutions want.

    Those of three dimensions and of two: a network for single slices may be one of images.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    network = network.to(device)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() in layouts:
            tensor.data = tensor.data.contiguous(memory_format=layouts[tensor.dim()])
    return network


class CompiledOrEager(nn.Module):
    """Runs a compiled network and falls back to the network itself when compiling fails.

    The compiler (and the C++ or Triton toolchain behind it) runs at the first forward pass, so only
    that one can tell whether it works here; the fallback is said once.
    """

    def __init__(
        self, network: nn.Module, say: Callable[[str], None], eager: nn.Module | None = None
    ) -> None:
        """`eager` is what runs where compiling fails, when it is not `network` itself."""
        super().__init__()
        self.network, self.say = network if eager is None else eager, say
        self.compiled: Callable[..., dict[str, tuple[Tensor, ...]]] | None = torch.compile(
            network, dynamic=False
        )
        # The levels of manifold mixup, what is frozen, training and validation: each has a program.
        config.recompile_limit = max(config.recompile_limit, 64)
        self.is_proven = False

    def forward(self, *given: object) -> dict[str, tuple[Tensor, ...]]:
        """As the network's own `forward`."""
        if self.compiled is None:
            return self.network(*given)
        if self.is_proven:
            return self.compiled(*given)
        try:
            result = self.compiled(*given)
        except (RuntimeError, OSError, ImportError) as error:  # dynamo's and inductor's own errors
            if is_out_of_memory(error):
                raise  # running eagerly takes even more
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            self.say(f"torch.compile does not work here, running eagerly ({reason[:120]})")
            self.compiled = None
            return self.network(*given)
        self.is_proven = True
        return result


CONNECT_S = 20


_CLUSTER_TRIES = 3


def _local_cluster(distributed: Any, count: int) -> Any:  # noqa: ANN401
    """A Dask cluster of so many processes on this machine; tried again when one dies as it starts.

    Raises:
        RefusedError: some did each time.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=max(1, usable_cores() // count),
                processes=True,
                dashboard_address="127.0.0.1:0",  # or a second one warns of the first
                memory_limit=None,
            )
        except RuntimeError as error:
            if tries == _CLUSTER_TRIES:
                found = f"processes died as they started, {tries} times ({error})"
                raise RefusedError("--dask", found, "start fewer, or free memory") from error


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
            cluster = _local_cluster(distributed, count)
            where = stack.enter_context(cluster).scheduler_address
        try:
            client = distributed.Client(where, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            problem = f"no Dask scheduler answers at {where} ({type(error).__name__})"
            remedy = "start one, give local:N for N processes of this machine, or leave it out"
            raise RefusedError("--dask", problem, remedy) from error
        yield stack.enter_context(client)
