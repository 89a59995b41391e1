"""Limits of containers and batch systems, by made groups of both versions; how threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vcmodels import machine
from vcmodels.devices import free_bytes, set_threads

GIB = 2**30


class Groups:
    """A made /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.own = root / "groups", root / "own"
        patch.setattr(machine, "_GROUPS", self.root)
        patch.setattr(machine, "_OWN_GROUPS", self.own)
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))

    def be_in(self, *lines: str) -> None:
        """This process is in these groups."""
        self.own.write_text("\n".join(lines) + "\n")

    def write(self, folder: str, **files: object) -> None:
        """Files of one group; `__` stands for a dot."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (self.root / folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """No groups yet, and a machine of 32 cores."""
    return Groups(tmp_path, monkeypatch)


def test_without_groups_the_cores_are_those_it_is_bound_to(groups: Groups) -> None:
    assert machine.usable_cores() == 32
    groups.be_in("0::/")
    groups.write(".", cpu__max="max 100000", memory__max="max")
    assert machine.usable_cores() == 32


def test_a_container_sees_its_own_group_as_the_root(groups: Groups) -> None:
    groups.be_in("0::/")
    groups.write(".", cpu__max="250000 100000", memory__max=2 * GIB, memory__current=GIB)
    assert machine.usable_cores() == 3  # two and a half, of which the half is used too
    assert machine.machine_bytes() == 2 * GIB
    assert machine.free_machine_bytes() == GIB


def test_the_tightest_group_on_the_way_up_counts(groups: Groups) -> None:
    """SLURM: the job has 4 cores and 8 GiB, a step in it more memory, a task in that no limit."""
    groups.be_in("0::/slurm/job_7/step_0/task_0")
    groups.write("slurm", cpu__max="3200000 100000", memory__max="max")
    groups.write("slurm/job_7", cpu__max="400000 100000", memory__max=8 * GIB, memory__current=GIB)
    groups.write("slurm/job_7/step_0", memory__max=9 * GIB, memory__current=8 * GIB)
    groups.write("slurm/job_7/step_0/task_0", cpu__max="max 100000", memory__max="max")
    groups.write("other", cpu__max="100000 100000", memory__max=GIB, memory__current=0)
    assert machine.usable_cores() == 4
    assert machine.machine_bytes() == 8 * GIB
    assert machine.free_machine_bytes() == GIB


def test_groups_of_version_1_have_a_folder_for_each_controller(groups: Groups) -> None:
    groups.be_in("4:memory:/job", "3:cpu,cpuacct:/job", "1:name=systemd:/user", "0::/")
    groups.write("memory/job", memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=3 * GIB)
    groups.write("cpu,cpuacct/job", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    groups.write("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert machine.usable_cores() == 2
    assert machine.machine_bytes() == 4 * GIB
    assert machine.free_machine_bytes() == GIB


def test_files_in_memory_can_be_had_back(groups: Groups) -> None:
    """A long training reads many files; the system keeps them in memory until it needs room."""
    groups.be_in("0::/")
    groups.write(".", memory__max=4 * GIB, memory__current=4 * GIB)
    (groups.root / "memory.stat").write_text(f"anon 5\ninactive_file {3 * GIB}\n")
    assert machine.free_machine_bytes() == free_bytes(torch.device("cpu")) == 3 * GIB


def test_less_than_a_core_is_one(groups: Groups) -> None:
    groups.be_in("0::/")
    groups.write(".", cpu__max="20000 100000")
    assert machine.usable_cores() == 1


def test_torch_takes_no_more_threads_than_are_granted(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    groups.be_in("0::/")
    groups.write(".", cpu__max="200000 100000")
    set_threads(None)
    set_threads(None)  # it has two now, and keeps them
    set_threads(5)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_threads(None)  # the user has said how many
    assert counts == [8, 2, 5]


def test_threads_sleep_soon_unless_the_user_says_how_they_wait() -> None:
    default: dict[str, str] = {}
    machine.wait_without_spinning(default)
    assert default == {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
    for said in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5", "KMP_BLOCKTIME": "7"}):
        kept = dict(said)
        machine.wait_without_spinning(kept)
        assert kept == said


def test_how_threads_wait_is_set_before_torch_is_imported() -> None:
    """torch's OpenMP reads it as it is loaded."""
    code = (
        "import sys, os, vcmodels\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'])\n"
        "import vcmodels.devices\n"
    )
    left_out = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1000"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu sse2 avx2 fma", ("AVX2",)),
        (
            "flags : avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_int8",
            ("AVX2", "AVX-512", "AVX512-BF16", "AVX512-VNNI", "AMX-BF16", "AMX-INT8"),
        ),
        ("Features\t: fp asimd i8mm bf16", ("NEON", "BF16", "I8MM")),
        ("model name : avx2", ()),
    ],
)
def test_instructions_are_named(
    line: str, found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    monkeypatch.setattr(machine, "_CPU_FILE", tmp_path / "cpuinfo")
    assert machine.instruction_sets() == found
