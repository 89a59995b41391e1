"""What prediction costs, compared with bare forward passes, MONAI and nnU-Net.

    python benchmarks/inference.py [ROW ...] [--size 256] [--peers-python PYTHON]

Rows: machinery, passes, overhead, memory, identity, chunks, workers; and where they are named, sparse, and peers,
which needs a PYTHON that has torch, monai and nnunetv2. Each prints one JSON line per measurement.
CPU seconds are those of the process, ratios are taken within one run, so that a busy machine matters
little. One thread unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numcodecs import Zstd
from torch import Tensor, nn
from zarr.storage import LocalStore

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task, parse_task
from vcmodels.data.normalization import Normalization
from vcmodels.devices import keep_freed_memory
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.inference import InferenceReport, RunOptions, predict_request, request_of
from vcmodels.inference.job import prepare
from vcmodels.inference.network import Forward
from vcmodels.reporting import Silent
from vcmodels.volumes import create_array, open_volume

CHUNK = 64
HEADS = {"sheet": 1, "normals": 3}
TARGETS = {
    "sheet": {"kind": "binary"},
    "normals": {"kind": "normals", "channels": 3},
}
PLAIN = {
    "sheet": {"kind": "regression", "output_range": [0, 1]},
    "normals": {"kind": "regression", "channels": 3, "output_range": [0, 1]},
}
"""Heads that are only averaged, as the rivals average theirs."""


class Null(nn.Module):
    """Almost free: copies its input to every head."""

    def forward(self, image: Tensor, targets: tuple[str, ...]) -> dict[str, tuple[Tensor]]:
        return {name: (image[:, :1].expand(-1, HEADS[name], -1, -1, -1),) for name in targets}


def make_input(folder: Path, shape: Shape) -> str:
    """A float32 volume of noise, written slab by slab: nothing of it stays in memory."""
    array = create_array(
        str(folder / "in.zarr"), "raw", shape=shape, chunks=(CHUNK,) * 3, dtype=np.float32
    )
    rng = np.random.default_rng(0)
    for z in range(0, shape[0], CHUNK):
        box = Box((z, 0, 0), (min(CHUNK, shape[0] - z), *shape[1:]))
        array.write(box, rng.random((1, *box.shape), np.float32))
    return array.location


def make_task(folder: Path, patch: int, targets: dict[str, Any], **inference: Any) -> Task:  # noqa: ANN401
    task, _ = parse_task(
        {
            "tr_params": {"model_name": "net", "patch_size": [patch] * 3},
            "model_config": {"name": "residual_unet", "f_maps": [16, 32, 64]},
            "inference_params": {
                "input_path": str(folder / "in.zarr/raw"),
                "output_dir": str(folder / "out"),
                "device": "cpu",
                "num_dataloader_workers": 1,
            }
            | inference,
            "dataset_config": {
                "normalization": "none",
                "volume_paths": [{"input": "a.zarr", **dict.fromkeys(targets, "b.zarr")}],
                "targets": targets,
            },
        },
        "benchmark",
    )
    return task


def make_network(task: Task, network: nn.Module | None = None) -> TrainedNetwork:
    patch = task.tr_params.patch_size
    torch.manual_seed(0)
    module = network or task.model.build(1, HEADS, patch, (1.0, 1.0, 1.0))
    return TrainedNetwork(
        module.eval(), task, dict(task.dataset_config.targets), Normalization("none"), patch,
        (1.0, 1.0, 1.0), 1, "0" * 64, Path("benchmark"),
    )  # fmt: skip


def predict(
    task: Task, network: TrainedNetwork, *, overwrite: bool = False, dry_run: bool = False
) -> InferenceReport:
    options = RunOptions(overwrite=overwrite, dry_run=dry_run)
    return predict_request(request_of(task, (network,)), options)


def prepared(task: Task, network: TrainedNetwork) -> Forward:
    """One network and one view, as a run would use them."""
    forward = prepare(request_of(task, (network,)), Silent()).pipeline.forward
    assert isinstance(forward, Forward)
    return forward


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def emit(row: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"row": row, **values}) + "\n")
    sys.stdout.flush()


def machinery() -> None:
    """The null network, Zarr to Zarr: CPU ms a window, and what the pieces of it cost alone."""
    with scratch() as folder:
        make_input(folder, (256, 256, 256))
        for targets, name in ((PLAIN, "4 averaged channels"), (TARGETS, "sheet and normals")):
            cases = ((64, 0.25, "auto"), (64, 0.25, 0), (64, 0.5, 0), (96, 0.25, 0), (96, 0.5, 0))
            for patch, overlap, pyramid in cases:
                settings = {"overlap": overlap, "amp": "off", "pyramid": pyramid}
                task = make_task(folder, patch, targets, **settings)
                costs = []
                for _ in range(4):  # the first one imports
                    cpu = time.process_time()
                    report = predict(task, make_network(task, Null()), overwrite=True)
                    costs.append((time.process_time() - cpu) / report.patches * 1e3)
                emit(
                    "machinery", heads=name, patch=patch, overlap=overlap, pyramid=pyramid,
                    cpu_ms=round(statistics.median(costs[1:]), 2),
                )  # fmt: skip
    emit("floor", patch=64, overlap=0.25, cpu_ms=floor())


def floor() -> dict[str, float]:
    """CPU ms of what one 64^3 window of 4 channels cannot do without, each at its fastest."""
    patch, out = torch.rand(4, 64, 64, 64), torch.empty(4, 64, 64, 64)
    weight, sums = torch.rand(64, 64, 64), torch.zeros(4, 64, 64, 256)
    final = torch.rand(4, 256**3 // 125)
    codes = final.mul(255).round_().to(torch.uint8)
    codec = Zstd(level=3, checksum=True)
    source = codec.encode(np.random.default_rng(0).random(final.shape[1], np.float32).tobytes())
    parts: dict[str, Callable[[], object]] = {
        "weight": lambda: torch.mul(patch, weight, out=out),
        "add": lambda: sums[..., 64:128].add_(out),
        "encode": lambda: final.mul(255).round_().clamp_(0, 255).to(torch.uint8),
        "compress": lambda: codec.encode(codes.numpy()),
        "decode": lambda: codec.decode(source),
    }
    costs = {name: round(cpu_of(part, 20) * 1e3, 2) for name, part in parts.items()}
    return costs | {"sum": round(sum(costs.values()), 2)}


def cpu_of(work: Callable[[], object], times: int) -> float:
    """CPU seconds of one call, the mean of several after a first."""
    work()
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def overhead(size: int = 256) -> None:
    """Zarr to Zarr with all heads over the bare forward of as many windows, made as the job does.

    A job of one window is taken off, for its start and its compilation. The bare forward is timed
    before and after the job.
    """
    manners = (
        {"amp": "off", "compile": False},
        {"amp": "bf16", "compile": False},
        {"amp": "bf16", "compile": True},
    )
    for patch, overlap in ((64, 0.25), (64, 0.5), (96, 0.25), (96, 0.5)):
        for manner in manners:
            with scratch() as folder:
                make_input(folder, (size, size, size))
                network = make_network(make_task(folder, patch, TARGETS))
                whole, one, first = (
                    make_task(folder, patch, TARGETS, overlap=overlap, bbox=box, **manner)
                    for box in (None, [[0, 16]] * 3, [[0, 16]] * 3)
                )
                predict(first, network, overwrite=True)  # fills caches
                forward = prepared(whole, network)
                noise = torch.randn(1, 1, patch, patch, patch)
                bare = [cpu_of(lambda f=forward, n=noise: f.logits(n), 6)]
                costs: list[tuple[int, float]] = []
                for task in (one, whole):
                    cpu = time.process_time()
                    report = predict(task, network, overwrite=True)
                    costs.append((report.patches, time.process_time() - cpu))
                bare.append(cpu_of(lambda f=forward, n=noise: f.logits(n), 6))
                each = (costs[1][1] - costs[0][1]) / (costs[1][0] - costs[0][0])
                emit(
                    "overhead", patch=patch, overlap=overlap, **manner, windows=costs[1][0],
                    bare_ms=[round(b * 1e3, 1) for b in bare], job_ms=round(each * 1e3, 1),
                    ratio=round(each / statistics.mean(bare), 3),
                )  # fmt: skip


def passes() -> None:
    """One forward pass: as it was trained, and fused for prediction, in turns."""
    for patch, rounds in ((64, 7), (96, 3), (128, 3)):
        with scratch() as folder:
            make_input(folder, (patch, patch, patch))
            trained = make_network(make_task(folder, patch, TARGETS))
            networks: dict[str, Callable[[Tensor], object]] = {"as trained": trained.module}
            for amp in ("off", "bf16"):
                task = make_task(folder, patch, TARGETS, amp=amp, compile=False)
                forward = prepared(task, trained)
                networks[f"fused, amp {amp}"] = forward.logits
            noise = torch.randn(1, 1, patch, patch, patch)
            with torch.inference_mode():
                turns = [
                    {name: cpu_of(partial(network, noise), 1) for name, network in networks.items()}
                    for _ in range(rounds)
                ]
            for name in networks:
                cost = statistics.median(turn[name] for turn in turns)
                emit("passes", patch=patch, network=name, cpu_ms=round(cost * 1e3))


class Logits(nn.Module):
    """The full resolution logits of every head alone, for those that take just tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: maps[0] for name, maps in self.network(image).items()}


def peers(python: str, size: int = 256, overlap: float = 0.25) -> None:
    """A whole job with default settings, and MONAI and nnU-Net with theirs, each in its own process.

    Ours reads and writes; theirs begin and end in memory. `window_ms` leaves out the imports and the
    first window, `process_s` is all CPU time from the start of the process to its end.
    """
    for patch in (64, 96):
        with scratch() as folder:
            make_input(folder, (size, size, size))
            volume = open_volume(str(folder / "in.zarr/raw"), key="in")
            np.save(folder / "in.npy", volume.read(volume.box)[0])
            network = Logits(make_network(make_task(folder, patch, TARGETS)).module)
            example = torch.zeros(1, 1, patch, patch, patch)
            torch.export.save(torch.export.export(network, (example,)), folder / "net.pt2")
            ours = f"import inference as b; b.predict_alone({str(folder)!r}, {patch}, {overlap})"
            script = str(Path(__file__).with_name("inference_peers.py"))
            given = [str(folder / "net.pt2"), str(folder / "in.npy"), str(patch), str(overlap)]
            commands = {
                "vcmodels": [sys.executable, "-c", ours],
                "monai": [python, script, "monai", *given],
                "nnunet": [python, script, "nnunet", *given],
            }
            found: dict[str, dict[str, float]] = {}
            for name, command in commands.items():
                cpu, wall = cpu_of_children(), time.perf_counter()
                done = subprocess.run(
                    command,
                    check=True,
                    cwd=Path(__file__).parent,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                cpu, wall = cpu_of_children() - cpu, time.perf_counter() - wall
                told = json.loads(done.stdout.splitlines()[-1])
                window = told["cpu_s"] / told["windows"] * 1e3
                found[name] = {"window_ms": window, "process_s": cpu, "process_wall_s": wall}
                emit("peers", patch=patch, name=name, windows=told["windows"], **found[name])
            for peer in ("monai", "nnunet"):
                ratios = {key: found[peer][key] / found["vcmodels"][key] for key in found[peer]}
                emit("peers", patch=patch, times_faster_than=peer, **ratios)


def cpu_of_children() -> float:
    """CPU seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def predict_alone(folder: str, patch: int, overlap: float) -> None:
    """In a process of its own: predict with default settings, but for the threads."""
    torch.set_num_threads(1)
    task = make_task(Path(folder), patch, TARGETS, overlap=overlap)
    network = make_network(task)
    cpu = time.process_time()
    report = predict(task, network)
    emit("alone", windows=report.patches, cpu_s=time.process_time() - cpu)


def memory(budget: float = 0.35) -> None:
    """Growth of resident memory over the loaded process, null network, patch 64, 4 channels."""
    for shape in ((128, 128, 128), (256, 256, 256), (512, 512, 512), (256, 1024, 1024)):
        with scratch() as folder:
            make_input(folder, shape)
            for limit in (budget, "auto"):
                code = f"import inference as b; b.grow({str(folder)!r}, {limit!r}, {shape!r})"
                subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def grow(folder: str, limit: float | str, shape: Shape) -> None:
    """In a process of its own: predict, and tell how much memory that took at most."""
    settings = {"amp": "off", "compile": False, "memory": limit}
    small = make_task(Path(folder), 64, PLAIN, bbox=[[0, 64]] * 3, **settings)
    predict(small, make_network(small, Null()), overwrite=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    task = make_task(Path(folder), 64, PLAIN, **settings)
    report = predict(task, make_network(task, Null()), overwrite=True)
    plan = predict(task, make_network(task, Null()), dry_run=True).estimate
    assert plan is not None
    emit(
        "memory", shape=shape, memory=limit, growth_mib=resident("VmHWM") - before,
        patches=report.patches, predicted_twice=round(plan.repeated / plan.patches, 3),
    )  # fmt: skip


def resident(field: str) -> int:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024


def identity() -> None:
    """The largest error of blending a volume with itself."""
    for shape in ((150, 131, 97), (64, 64, 64), (40, 200, 90)):
        with scratch() as folder:
            make_input(folder, shape)
            values = open_volume(str(folder / "in.zarr/raw"), key="in")
            expected = values.read(values.box)
            for overlap in (0, 0.25, 0.5, 0.75):
                settings = {"overlap": overlap, "output_type": "float32", "compile": False}
                task = make_task(folder, 64, PLAIN, **settings)
                predict(task, make_network(task, Null()), overwrite=True)
                out = open_volume(str(folder / "out/net.zarr/normals/0"), key="out", channels=3)
                error = float(np.abs(out.read(out.box) - expected).max())
                emit("identity", shape=shape, overlap=overlap, largest_error=error)


def chunks() -> None:
    """How often the store is asked for each chunk of the input, and given each of the output."""
    got, put = Counter[str](), Counter[str]()
    get, set_ = LocalStore.get, LocalStore.set

    async def counting_get(self: LocalStore, key: str, *a: Any, **k: Any) -> Any:  # noqa: ANN401
        if "in.zarr" in str(self.root) and key[:1].isdigit():
            got[key] += 1
        return await get(self, key, *a, **k)

    async def counting_set(self: LocalStore, key: str, *a: Any, **k: Any) -> None:  # noqa: ANN401
        if "out" in str(self.root) and key[:1].isdigit():
            put[f"{self.root}/{key}"] += 1
        await set_(self, key, *a, **k)

    with scratch() as folder:
        make_input(folder, (300, 270, 260))
        for overlap in (0.25, 0.5):
            got.clear()
            put.clear()
            task = make_task(folder, 64, PLAIN, overlap=overlap, amp="off", compile=False)
            LocalStore.get, LocalStore.set = counting_get, counting_set
            predict(task, make_network(task, Null()), overwrite=True)
            LocalStore.get, LocalStore.set = get, set_
            emit(
                "chunks", overlap=overlap, decoded_per_chunk=sum(got.values()) / len(got),
                written_per_chunk=sum(put.values()) / len(put), input=len(got), output=len(put),
            )  # fmt: skip


def workers() -> None:
    """Two Dask workers over one, each with one thread; the wall clock counts: use an idle machine.

    Each cluster predicts the volume twice: the workers import torch in the first run.
    """
    from vcmodels.devices import dask_client  # late: other rows would pay for importing dask
    from vcmodels.inference.dask_cluster import predict_on_cluster

    with scratch() as folder:
        make_input(folder, (512, 128, 128))
        task = make_task(folder, 64, TARGETS, threads=1)
        request = request_of(task, (make_network(task),))
        walls: list[float] = []
        for count in (1, 2):
            with dask_client(f"local:{count}") as client:
                predict_on_cluster(request, client, RunOptions(overwrite=True))
                report = predict_on_cluster(request, client, RunOptions(overwrite=True))
            walls.append(report.seconds)
            emit("workers", workers=count, windows=report.patches, wall_s=report.seconds)
        emit("workers", times_faster=walls[0] / walls[1])


def sparse(side: int = 10_000, present: int = 1_000) -> None:
    """10^12 voxels of which 1,000 chunks are stored, null network: what there is costs, no more."""
    with scratch() as folder:
        array = create_array(
            str(folder / "in.zarr"), "raw", shape=(side,) * 3, chunks=(CHUNK,) * 3, dtype=np.uint8
        )
        rng = np.random.default_rng(0)
        for z, y, x in rng.integers(0, side // CHUNK, (present, 3)).tolist():
            box = Box((z * CHUNK, y * CHUNK, x * CHUNK), (CHUNK, CHUNK, CHUNK))
            array.write(box, rng.integers(1, 255, (1, *box.shape), np.uint8))
        task = make_task(folder, 64, PLAIN, amp="off")
        before = resident("VmRSS")
        cpu, wall = time.process_time(), time.perf_counter()
        report = predict(task, make_network(task, Null()))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        emit(
            "sparse", voxels=side**3, chunks=present, windows=report.patches, cpu_s=cpu, wall_s=wall,
            cpu_ms=cpu / report.patches * 1e3, growth_mib=resident("VmHWM") - before,
        )  # fmt: skip


def main() -> None:
    """Measure the rows that are named."""
    parser = argparse.ArgumentParser(description="What prediction costs.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all but peers and sparse")
    parser.add_argument("--peers-python", help="Python that has torch, monai and nnunetv2")
    parser.add_argument("--size", type=int, default=256, help="of `overhead` and `peers`, voxels")
    given = parser.parse_args()
    rows: dict[str, Callable[[], None]] = {
        "machinery": machinery,
        "passes": passes,
        "overhead": lambda: overhead(given.size),
        "peers": lambda: peers(given.peers_python, given.size),
        "memory": memory,
        "identity": identity,
        "chunks": chunks,
        "workers": workers,
        "sparse": sparse,
    }
    names = given.rows or [name for name in rows if name not in ("peers", "sparse")]
    if unknown := set(names) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    if "peers" in names and not given.peers_python:
        parser.error("peers needs --peers-python")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()  # as a prediction does, before threads that make the input take arenas of their own
    for name in names:
        rows[name]()
    emit("machine", cpu=resource.getrusage(resource.RUSAGE_SELF).ru_utime, torch=torch.__version__)


if __name__ == "__main__":
    main()
