"""What importing the package does to its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CHILD = """
import resource, vcmodels, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
torch.ones(8 << 20)
print(faults() - before)
"""


def faults(**environment):
    """Page faults of a tensor of 32 MiB in a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        check=True, capture_output=True, text=True, env=inherited | environment,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the system grants huge pages to all or to none",
)
def test_large_tensors_lie_in_huge_pages_unless_told_otherwise():
    pages = (32 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults(THP_MEM_ALLOC_ENABLE="0") >= pages
    assert faults() < pages / 2
