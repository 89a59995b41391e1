"""What training costs on top of its forward and backward passes: python benchmarks/training.py ROW ...

Rows: loader, step, speed, memory, processes, planner. Each prints one JSON line per measurement. CPU
seconds are those of the process named, ratios are taken within one run, so that a busy machine
matters little; wall seconds want an idle one. One thread unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numcodecs import Zstd
from scipy import ndimage
from torch import nn

from vcmodels.config import Task, parse_task
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.patches.resolve import Resolved, resolve
from vcmodels.reporting import Silent
from vcmodels.samples import workers as data_workers
from vcmodels.samples.dataset import PatchDataset
from vcmodels.samples.loader import Batch, batches
from vcmodels.samples.training_set import augmented_set
from vcmodels.training import train
from vcmodels.training.feed import Feed
from vcmodels.training.learner import Learner
from vcmodels.training.step import supervised_loss
from vcmodels.training.world import World
from vcmodels.volumes import Volume, create_array

CPU = torch.device("cpu")
TARGETS = {"sheet": {"kind": "binary"}, "normals": {"kind": "normals", "channels": 3}}


def emit(row: str, **values: object) -> None:
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps({"row": row, **shown}) + "\n")
    sys.stdout.flush()


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="training-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_block(side: int) -> dict[str, np.ndarray]:
    """Image uint8, mask uint8 and normals uint16 (0 off the sheets) of wavy sheets, side^3."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((side,) * 3, np.float32), 4, mode="wrap")
    field /= field.std()
    noise = 10 * rng.standard_normal(field.shape, np.float32)
    mask = (np.abs(field) < 0.2).astype(np.uint8)
    slope = np.stack(np.gradient(field))[::-1]
    slope /= np.maximum(np.linalg.norm(slope, axis=0), 1e-6)
    return {
        "raw": np.clip(128 + 40 * field + noise, 0, 255).astype(np.uint8)[None],
        "sheet": mask[None],
        "normals": np.rint((slope + 1) * 32767.5 * mask).astype(np.uint16),
    }


def make_store(root: Path, extent: int, chunk: int, names: Sequence[str]) -> dict[str, str]:
    """Arrays of extent^3 voxels, one block of them repeated; nothing else of it is in memory."""
    block = make_block(min(extent, 2 * chunk))
    side, found = len(block["raw"][0]), {}
    for name in names:
        part = block[name]
        lead = () if len(part) == 1 else (len(part),)
        array = create_array(
            str(root), name, shape=(*lead, *(extent,) * 3), chunks=(*lead, *(chunk,) * 3),
            dtype=part.dtype,
        )  # fmt: skip
        starts = range(0, extent, side)
        for z, y, x in product(starts, starts, starts):
            array.write(Box((z, y, x), (side, side, side)), part)
        found["input" if name == "raw" else name] = array.location
    return found


def make_task(entry: Mapping[str, str], folder: Path, patch: int, **settings: Any) -> Task:  # noqa: ANN401
    targets = {name: block for name, block in TARGETS.items() if name in entry}
    sections = {name: settings.pop(name) for name in ("augment",) if name in settings}
    planned = {} if patch == 0 else {"patch_size": [patch] * 3, "batch_size": 2}
    task, _ = parse_task(
        {
            "tr_params": {
                "model_name": "net", "ckpt_out_base": str(folder / "run"), "device": "cpu",
                "num_dataloader_workers": 1, "threads": 1, **planned, **settings,
            },
            "model_config": {"name": "residual_unet", "f_maps": [16, 32, 64]} if planned else {},
            "dataset_config": {
                "volume_paths": [dict(entry)], "targets": targets, "min_bbox_percent": 0.5,
                "min_labeled_ratio": 0.0,
            },
            **sections,
        },
        "benchmark",
    )  # fmt: skip
    return task


def make_dataset(task: Task, step: int) -> PatchDataset:
    """All patches whose origins are multiples of `step`."""
    volumes = open_volumes(task)
    region, patch = volumes[0].region, task.tr_params.patch_size
    axes = [range(0, n - p + 1, step) for n, p in zip(region.shape, patch, strict=True)]
    rows = np.array([[0, *origin] for origin in product(*axes)])
    fitted = fit_normalization(task.dataset_config.normalization, volumes, [region])
    return augmented_set(Resolved(task, volumes), rows, [region], fitted)


def loader(options: argparse.Namespace) -> None:
    """CPU ms a 96^3 sample without augmentation, in the worker and in training, over their floor."""
    with scratch() as folder:
        for chunk, extent, aligned in ((96, 384, True), (64, 256, False), (128, 256, False)):
            entry = make_store(folder / f"{chunk}.zarr", extent, chunk, ("raw", "sheet", "normals"))
            for cache in (0, 1):
                task = make_task(
                    entry, folder, 96, augment=[], patch_jitter=not aligned, chunk_cache_gb=cache
                )
                dataset = make_dataset(task, 96 if aligned else 16)
                read = {"chunk": chunk, "aligned": aligned, "cache_gb": cache}
                emit("loader", **read, **loading(dataset, options.samples))


def loading(dataset: PatchDataset, count: int) -> dict[str, float]:
    """What it costs to read samples that were read once before."""
    groups = [range(first, first + 2) for first in range(0, count, 2)]
    for _ in batches(dataset, groups, workers=1, device=CPU):
        pass
    worker, ours = worker_seconds(dataset), time.process_time()
    for _ in batches(dataset, groups, workers=1, device=CPU):
        pass
    ours, worker = time.process_time() - ours, worker_seconds(dataset) - worker
    floor, touched = decode_seconds(dataset, range(count))
    return {
        "chunks_touched": touched / count,
        "decoding_ms": 1e3 * floor / count,
        "worker_ms": 1e3 * worker / count,
        "training_process_ms": 1e3 * ours / count,
    }


def worker_seconds(dataset: PatchDataset) -> float:
    """CPU seconds of the workers of a dataset so far."""
    pids = data_workers._running[dataset].pool._processes
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def decode_seconds(dataset: PatchDataset, draws: range) -> tuple[float, int]:
    """CPU seconds to decode the chunks that the patches touch, alone; and how many they are."""
    (volume,) = dataset._volumes
    codec, seconds, touched = Zstd(), 0.0, 0
    for draw in draws:
        box = Box(dataset.place(draw).origin, dataset.patch)
        for array in (*volume.inputs, *volume.labels.values()):
            for stored in chunk_bytes(array, box):
                begun = time.process_time()
                codec.decode(stored)
                seconds += time.process_time() - begun
                touched += 1
    return seconds, touched


def chunk_bytes(array: Volume, box: Box) -> Iterator[bytes]:
    stored = array.handle.array()
    for where in array.axes.slices(box, stored.shape, stored.chunks):
        for index in array._chunks_in(where):
            yield Path(array.location, array.names.name(index)).read_bytes()


class Bare(nn.Module):
    """Forward, losses, backward and step of the learner's network and optimiser, and no more."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def step(self, batch: Batch) -> None:
        learner = self.learner
        learner.optimizer.zero_grad(set_to_none=True)
        outputs = learner.run(learner.forward, batch)
        losses = [
            supervised_loss(target, outputs[name], batch.labels[name], batch.valid[name])
            for name, target in learner.targets.items()
        ]
        torch.stack(losses).sum().backward()
        learner.optimizer.step()


def make_learner(task: Task, amp: str, *, compiled: bool) -> Learner:
    torch.manual_seed(0)
    settings = task.tr_params.model_copy(update={"amp": amp})
    network = task.model.build(1, task.heads, task.tr_params.patch_size, (1.0, 1.0, 1.0))
    learner = Learner(network, task.dataset_config.targets, settings, CPU)
    if compiled:
        learner.compile(lambda line: emit("note", line=line))
    return learner


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def step(options: argparse.Namespace) -> None:
    """A whole step, read from Zarr and augmented, over a bare one on a batch that is there."""
    with scratch() as folder:
        entry = make_store(folder / "a.zarr", 256, 64, ("raw", "sheet", "normals"))
        task = make_task(entry, folder, options.patch)
        dataset = make_dataset(task, 32)
        learner = make_learner(task, "auto", compiled=options.compiled)
        feed = Feed(dataset, None, task.tr_params, CPU, World())
        ready = next(iter(feed.train_batches(0, 1)))
        bare = Bare(learner)
        for _ in range(2):
            learner.train_step(ready).read()
            bare.step(ready[0])
        count, turns = options.steps, {"bare": [], "cached": [], "whole": []}
        waited, workers = 0.0, worker_seconds(dataset)
        for turn in range(options.rounds):
            stream = feed.train_batches(1 + turn * (count + 1), count + 1)
            learner.train_step(next(stream)).read()  # as in the middle of an epoch
            for kind in ("whole", "bare", "cached"):
                begun = time.process_time(), time.perf_counter()
                for _ in range(count):
                    if kind == "whole":
                        mark = time.perf_counter()
                        micro = next(stream)
                        waited += time.perf_counter() - mark
                        learner.train_step(micro).read()
                    elif kind == "bare":
                        bare.step(ready[0])
                    else:
                        learner.train_step(ready).read()
                turns[kind].append([time.process_time() - begun[0], time.perf_counter() - begun[1]])
            del stream  # its thread ends
        samples = 2 * (count + 1) * options.rounds
        worker_ms = 1e3 * (worker_seconds(dataset) - workers) / samples
        cpu, wall = (
            {kind: statistics.median(t[part] for t in taken) for kind, taken in turns.items()}
            for part in (0, 1)
        )
        emit(
            "step", patch=options.patch, batch=2, compiled=options.compiled,
            precision=str(learner.amp), bare_cpu_s=cpu["bare"] / count,
            whole_over_bare_cpu=cpu["whole"] / cpu["bare"],
            cached_over_bare_cpu=cpu["cached"] / cpu["bare"],
            whole_over_bare_wall=wall["whole"] / wall["bare"],
            waiting_share=waited / sum(t[1] for t in turns["whole"]),
            worker_ms_a_sample=worker_ms,
            worker_over_step=2 * worker_ms / 1e3 / (cpu["bare"] / count),
        )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """The step with its default settings over one of the same network, eager in float32."""
    with scratch() as folder:
        entry = make_store(folder / "a.zarr", 128, 64, ("raw", "sheet", "normals"))
        task = make_task(entry, folder, options.patch, num_dataloader_workers=0)
        (ready,) = Feed(make_dataset(task, 32), None, task.tr_params, CPU, World()).train_batches(
            0, 1
        )
        eager = make_learner(task, "off", compiled=False)
        ours = make_learner(task, "auto", compiled=True)
        losses, gradients = [], []
        for learner in (eager, ours):
            losses.append(learner.train_step(ready).read().losses)
            parts = [p.grad.flatten() for p in learner.network.parameters() if p.grad is not None]
            gradients.append(torch.cat(parts).double())
        pairs = []
        for _ in range(options.rounds):
            taken = []
            for learner in (eager, ours):
                cpu, _ = timed(lambda at=learner: at.train_step(ready).read())
                taken.append(cpu)
            pairs.append(taken)
        eager_s, ours_s = (statistics.median(t[k] for t in pairs) for k in (0, 1))
        difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
        emit(
            "speed", patch=options.patch, batch=2, precision=str(ours.amp), eager_cpu_s=eager_s,
            ours_cpu_s=ours_s, times_faster=eager_s / ours_s,
            loss_error={k: abs(losses[1][k] - v) for k, v in losses[0].items()},
            gradient_error=float(difference),
        )  # fmt: skip


def memory(options: argparse.Namespace) -> None:
    """Largest resident memory of a whole training, its worker included, at 256^3 and 1024^3."""
    del options
    with scratch() as folder:
        peaks = []
        for extent in (256, 1024):
            at = folder / str(extent)
            entry = make_store(at / "a.zarr", extent, 128, ("raw", "sheet"))
            task = make_task(
                entry, at, 64, max_epoch=2, max_steps_per_epoch=12, max_val_steps_per_epoch=4,
                compile=False,
            )  # fmt: skip
            document = at / "task.json"
            document.write_text(json.dumps(task.to_json()))
            command = [sys.executable, __file__, "--train", str(document)]
            peaks.append(peak_of(subprocess.Popen(command)))
            emit("memory", extent=extent, peak_mib=peaks[-1])
        total = [sum(peak.values()) for peak in peaks]
        emit("memory", ratio=total[1] / total[0], training_process=peaks[1]["0"] / peaks[0]["0"])


def train_here(document: str) -> None:
    task, _ = parse_task(json.loads(Path(document).read_text()), document)
    train(task, reporter=Silent())


def peak_of(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Largest resident set, in MiB, of a process ("0") and of the processes under it, by order."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in family(process.pid):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            found = [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")]
            peaks[pid] = max(peaks.get(pid, 0), *found, 0)
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"training ended with {process.returncode}")
    ordered = [process.pid, *sorted(set(peaks) - {process.pid})]
    return {str(number): peaks[pid] for number, pid in enumerate(ordered)}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(other for child in below for other in family(int(child)))]


def processes(options: argparse.Namespace) -> None:
    """Two gloo processes with one thread each over one, the same samples a step; wall seconds."""
    with scratch() as folder:
        entry = make_store(folder / "a.zarr", 256, 64, ("raw", "sheet"))
        paces = []
        for count in (1, 2):
            at = folder / str(count)
            at.mkdir()
            # The first epoch warms up and compiles nothing; the second is timed.
            task = make_task(
                entry, at, options.patch, max_epoch=2, max_steps_per_epoch=options.steps,
                max_val_steps_per_epoch=1, compile=False,
            )  # fmt: skip
            document = at / "task.json"
            document.write_text(json.dumps(task.to_json()))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            root = Path(__file__).parents[1]
            command += [f"--nproc-per-node={count}", str(root / "train.py"), str(document)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            last = json.loads((at / "run/log.jsonl").read_text().splitlines()[-1])
            paces.append(last["speed/patches_per_s"])
            emit("processes", processes=count, patches_per_s=paces[-1])
        emit("processes", times_faster=paces[1] / paces[0])


def planner(options: argparse.Namespace) -> None:
    """Plan patch, batch and network of a task that names none."""
    del options
    with scratch() as folder:
        array = create_array(
            str(folder / "a.zarr"), "raw", shape=(512,) * 3, chunks=(128,) * 3, dtype=np.uint8
        )
        label = create_array(
            str(folder / "a.zarr"), "sheet", shape=(512,) * 3, chunks=(128,) * 3, dtype=np.uint8
        )
        corner: Shape = (64, 64, 64)
        for each in (array, label):
            each.write(Box((0, 0, 0), corner), np.ones((1, *corner), np.uint8))
        task = make_task({"input": array.location, "sheet": label.location}, folder, 0)
        planned: list[Task] = []
        cpu, wall = timed(lambda: planned.append(resolve(task, recorded=None).task))
        settings = planned[0].tr_params
        emit(
            "planner", cpu_s=cpu, wall_s=wall, patch=settings.patch_size, batch=settings.batch_size
        )


ROWS = {f.__name__: f for f in (loader, step, speed, memory, processes, planner)}


def main() -> None:
    """Run the rows that are named, or all."""
    parser = argparse.ArgumentParser(description="What training costs.")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--patch", type=int, default=64, help="side of the patch of a step")
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns")
    parser.add_argument("--samples", type=int, default=100, help="samples of the loader")
    parser.add_argument("--eager", dest="compiled", action="store_false", help="without compiling")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.train:
        train_here(options.train)
        return
    for name in options.rows or ROWS:
        ROWS[name](options)
    emit("machine", cores=os.cpu_count(), torch=torch.__version__)


if __name__ == "__main__":
    main()
