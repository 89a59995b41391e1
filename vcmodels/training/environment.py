"""With what a training runs: programs, machine and command, for `environment.json`."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import vcmodels
from vcmodels.devices import machine_bytes


def environment() -> dict[str, Any]:
    """What a person needs to make the same run again, besides the task: JSON values."""
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "vcmodels": vcmodels.__version__,
        "commit": commit(Path(vcmodels.__file__).parents[1]),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "zarr", "numcodecs")},
        "cuda": torch.version.cuda,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "memory_gb": round(machine_bytes() / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def commit(root: Path) -> str | None:
    """The commit of a checkout, with `-dirty` when files differ from it; None for no checkout."""
    if not (root / ".git").exists():  # else it might be the one of a folder around an installation
        return None
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return None


def cpu_name() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Processors that this process may use; others of the machine may be kept from it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
