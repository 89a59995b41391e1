"""What this process may use of the machine, and what its processor can: cores, memory, instructions.

Containers and batch systems such as SLURM limit both through control groups (Linux's cgroups, in their
version 1 and 2), the latter in groups within groups: the tightest limit on the way up counts.
"""

import math
import os
import platform
import resource
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMORY_FILE = Path("/proc/meminfo")
_CPU_FILE = Path("/proc/cpuinfo")

_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
    "i8mm": "I8MM",
}  # fmt: skip
"""Flags of /proc/cpuinfo that decide how fast a network runs, and how they are called."""


def usable_cores() -> int:
    """How many cores this process may use: those it is bound to, or the time that it is granted."""
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    granted = min(_granted_cores(), default=math.inf)
    return min(bound, max(1, math.ceil(granted))) if math.isfinite(granted) else bound


def machine_bytes() -> int:
    """All memory of the machine, or less where it is limited for this process or container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    return min([*found, *(limit for limit, _ in _memory_groups())])


def free_machine_bytes() -> int:
    """Memory that a process could still get, within all limits."""
    found = [machine_bytes(), *(max(0, limit - used) for limit, used in _memory_groups())]
    with suppress(OSError, StopIteration):  # other systems have no such file
        lines = _MEMORY_FILE.read_text().splitlines()
        free = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        found.append(int(free) * 1024)
    return min(found)


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """The instructions of the processor that decide how fast a network runs: `AVX2`, `AVX512-BF16`..."""
    flags = (_cpu_line("flags") or _cpu_line("Features") or "").split()
    return tuple(name for flag, name in _INSTRUCTIONS.items() if flag in flags)


def load() -> float | None:
    """How many processes have wanted a core in the last minute, on average; None where nobody counts."""
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 1)
    return None


def wait_without_spinning(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other give the core away soon, unless the user has said how they wait.

    The threads of a parallel loop wait at its end for the last one. GNU's OpenMP lets them turn in a
    loop for milliseconds before they sleep; where another process has the core of the last one, they
    hold theirs for nothing, and a training beside one busy process kept .27 of its speed. After 1,000
    turns, some microseconds, it keeps about half (`benchmarks/busy.py`). LLVM's (macOS) and Intel's wait by
    the clock, 200 ms by default. To be called before torch is imported.
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    environment.setdefault("GOMP_SPINCOUNT", "1000")
    environment.setdefault("KMP_BLOCKTIME", "0")


def _cpu_line(key: str) -> str:
    with suppress(OSError):
        for line in _CPU_FILE.read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return ""


def _granted_cores() -> Iterator[float]:
    """Cores by time, of each group around this process that limits it."""
    for folder in _own_groups("cpu"):
        with suppress(OSError, ValueError):  # no such file; "max" is no number
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            if quota > 0:  # -1 is no limit
                yield quota / int((folder / "cpu.cfs_period_us").read_text())


def _memory_groups() -> Iterator[tuple[int, int]]:
    """(limit, in use and not to be had back) in bytes, of each group around this process that limits it."""
    files = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
    for folder in _own_groups("memory"):
        for limit, used in files.items():
            with suppress(OSError, ValueError):
                most = int((folder / limit).read_text())
                yield most, int((folder / used).read_text()) - _cached_bytes(folder)


def _cached_bytes(group: Path) -> int:
    """Files that the system keeps in memory for a group and drops when it needs room."""
    with suppress(OSError, StopIteration):
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return next(int(value) for key, value in lines if key.endswith("inactive_file"))
    return 0


def _own_groups(controller: str) -> Iterator[Path]:
    """Folders of the groups around this process, innermost first; a container sees its own as the root."""
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _GROUPS / controllers if controllers else _GROUPS
            inner = root / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))
