"""What training and prediction keep of their speed beside other work on the same cores.

    python benchmarks/busy.py [--busy 0 1 2 4] [--seconds 8] [--rounds 3] [--wait RULE ...]

Beside each number of processes that do nothing but count, each kind of work runs in a process of its own, with
as many threads as there are cores, and each way for threads to wait: `ours` (what `import vcmodels` sets),
`torch` (as torch alone has it), `passive` (OMP_WAIT_POLICY=PASSIVE), `one` (ours, one thread), or a
number of turns (GOMP_SPINCOUNT). One JSON line each: passes a second, the median of all rounds, and what is
kept of those of `torch` on idle cores. Wants a machine with nothing else on it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
WAITS = {
    "ours": {},
    "torch": {"GOMP_SPINCOUNT": "", "KMP_BLOCKTIME": ""},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one": {THREADS: "1"},
}
"""What is added to the environment; an empty value takes away what vcmodels sets."""


def training(patch: int, folder: Path) -> Callable[[], object]:
    """A step of the default network on one batch that is there, with two targets."""
    from benchmarks.training import CPU, Feed, World, make_dataset, make_learner, make_store
    from benchmarks.training import make_task as task_of

    entry = make_store(folder / "a.zarr", 128, 64, ("raw", "sheet", "normals"))
    task = task_of(entry, folder, patch, num_dataloader_workers=0)
    feed = Feed(make_dataset(task, 32), None, task.tr_params, CPU, World())
    (ready,) = feed.train_batches(0, 1)
    learner = make_learner(task, "auto", compiled=False)
    return lambda: learner.train_step(ready).read()


def prediction(patch: int, folder: Path) -> Callable[[], object]:
    """A pass of the fused network."""
    import torch

    from benchmarks.inference import TARGETS, make_input, make_network, make_task, prepared

    make_input(folder, (patch, patch, patch))
    task = make_task(folder, patch, TARGETS, compile=False)
    forward = prepared(task, make_network(task))
    noise = torch.randn(1, 1, patch, patch, patch)
    return torch.inference_mode()(lambda: forward.logits(noise))


def loading(patch: int, folder: Path) -> Callable[[], object]:
    """A batch, read from Zarr and augmented in this process."""
    from benchmarks.training import CPU, Feed, World, make_dataset, make_store
    from benchmarks.training import make_task as task_of

    entry = make_store(folder / "a.zarr", 128, 64, ("raw", "sheet", "normals"))
    task = task_of(entry, folder, patch, num_dataloader_workers=0)
    batches = Feed(make_dataset(task, 32), None, task.tr_params, CPU, World()).train_batches(
        0, 10**6
    )
    return lambda: next(batches)


KINDS = {
    "training, 32^3": partial(training, 32),
    "training, 64^3": partial(training, 64),
    "prediction, 32^3": partial(prediction, 32),
    "prediction, 96^3": partial(prediction, 96),
    "loader, 64^3": partial(loading, 64),
}


def measure(kind: str, wait: str, seconds: float) -> None:
    """In a process of its own: print how many passes a second there are."""
    user_threads = os.environ.get(THREADS)
    import vcmodels  # noqa: F401  (sets how threads wait)

    for name in [name for name, value in WAITS.get(wait, {}).items() if not value]:
        os.environ.pop(name, None)
    import torch

    from vcmodels.machine import usable_cores
    from vcmodels.scratch import scratch_folder

    torch.set_num_threads(int(user_threads) if user_threads else usable_cores())
    with scratch_folder() as folder:
        work = KINDS[kind](folder)
        work()
        begun, passes = time.perf_counter(), 0
        while passes < 2 or time.perf_counter() - begun < seconds:
            work()
            passes += 1
        sys.stdout.write(f"{passes / (time.perf_counter() - begun)}\n")


def passes_a_second(kind: str, wait: str, seconds: float) -> float:
    """Of one run in a new process."""
    kept = {name: value for name, value in os.environ.items() if name != THREADS}
    added = WAITS.get(wait, {"GOMP_SPINCOUNT": wait})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.busy", "--measure", kind, wait, str(seconds)],
        env=kept | {name: value for name, value in added.items() if value},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many others want a core all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def compare(
    kinds: Sequence[str], waits: Sequence[str], busy: Sequence[int], seconds: float, rounds: int
) -> None:
    """A row for each kind, way to wait and number of busy processes; rounds in turns."""
    idle: dict[str, float] = {}
    for count in busy:
        for kind in kinds:
            found: dict[str, list[float]] = {wait: [] for wait in waits}
            with busy_processes(count):
                for _ in range(rounds):
                    for wait in waits:
                        found[wait].append(passes_a_second(kind, wait, seconds))
            middle = {wait: float(statistics.median(speeds)) for wait, speeds in found.items()}
            idle.setdefault(kind, middle.get("torch", middle[waits[0]]))
            for wait, speed in middle.items():
                row = {"busy": count, "kind": kind, "wait": wait, "passes_s": round(speed, 3)}
                emit(row | {"kept": round(speed / idle[kind], 3)})


def emit(row: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--wait", nargs="+", default=list(WAITS))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, wait, seconds = options.measure
        return measure(kind, wait, float(seconds))
    from vcmodels.machine import cpu_name, instruction_sets, load, usable_cores

    emit({
        "cpu": cpu_name(), "instructions": instruction_sets(), "cores": usable_cores(),
        "load": load(),
    })  # fmt: skip
    compare(options.kind, options.wait, options.busy, options.seconds, options.rounds)
    return None


if __name__ == "__main__":
    main()
