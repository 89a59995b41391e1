"""All folds of a cross-validation: each a training in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import torch

import vcmodels
from vcmodels.config import Task, TrainingParams
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RefusedError
from vcmodels.patches.misfits import report_misfits
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Reporter, StopSignals, list_some
from vcmodels.training.other_folds import begun_folds
from vcmodels.training.run_folder import RunFolder

POLL_S = 0.1


class Child:
    """A running `vcmodels` command.

    Args:
        words: the arguments of `vcmodels`.
        environment: variables to add to those of this process, or to put in their place.
        say: gets its lines, stdout and stderr; when None it writes where this process does.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None] | None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vcmodels", *words],
            env={**os.environ, **_same_package(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if say else None,
            stderr=subprocess.STDOUT if say else None,
            text=True,
            errors="replace",
        )
        self._listener = Thread(target=self._listen, args=(say,), daemon=True) if say else None
        if self._listener:
            self._listener.start()

    def _listen(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                say(line.rstrip("\n"))

    def ended(self) -> int | None:
        """Its exit code, 128 + signal when one killed it; None while it runs."""
        code = self.process.poll()
        if code is not None and self._listener:
            self._listener.join()
        return 128 - code if code is not None and code < 0 else code


def run_all(
    starts: Mapping[int, Callable[[int], Child]], jobs: int, stop: StopSignals
) -> dict[int, int]:
    """Run children, at most `jobs` at once; pass a signal on to them, and start no more after it.

    Args:
        starts: by number, what starts the child in the place that it is given, 0 to `jobs` - 1.
        jobs: how many run at once.
        stop: active, and deferred.

    Returns:
        The exit codes by number, of those that were started.
    """
    waiting, places = list(starts), list(range(jobs))
    running: dict[int, tuple[int, Child]] = {}
    codes: dict[int, int] = {}
    is_passed_on = False
    try:
        while running or (waiting and not stop.is_stopped()):
            while waiting and places and not stop.is_stopped():
                place = places.pop(0)
                number = waiting.pop(0)
                running[number] = place, starts[number](place)
            if stop.received is not None and not is_passed_on:
                is_passed_on = True
                for _, child in running.values():
                    child.process.send_signal(stop.received)
            for number, (place, child) in list(running.items()):
                code = child.ended()
                if code is not None:
                    codes[number] = code
                    del running[number]
                    places.append(place)
            time.sleep(POLL_S)
    finally:
        for _, child in running.values():  # only after a failure of our own
            child.process.terminate()
            child.process.wait()
    return codes


def _same_package() -> dict[str, str]:
    """Variables by which a child finds this package, not one in the working directory."""
    package = str(Path(vcmodels.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    path = f"{package}{os.pathsep}{others}" if others else package
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


MOST_NAMED = 4


def cross_validate(
    task: Task, words: Sequence[str], *, jobs: int = 1, restart: bool = False, reporter: Reporter
) -> int:
    """Train the folds of a task, or continue each where it stands.

    Each fold is one command in a process of its own; one that fails does not stop the others.

    Args:
        task: the resolved task, with all its folds.
        words: the arguments of `vcmodels` that train it, without `--fold`.
        jobs: how many folds are trained at once; they divide cores, CUDA devices, loaders and,
            where sizes are planned, the memory of a device that several of them use.
        restart: move what there is of every fold aside.
        reporter: gets the folds, and which failed.

    Returns:
        0, 1 when a fold failed, or 128 + signal after one.

    Raises:
        RefusedError: the task or its volumes do not allow it, or a run folder is in use.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = "torchrun trains one fold at a time"
        raise RefusedError("--folds", found, "give it one with --fold, or leave torchrun out")
    given = task.tr_params
    assert given.folds is not None
    begun = None if restart else next((one for _, _, one in begun_folds(task.run_dir)), None)
    environments, shares = training_shares(given, jobs)
    sharing = environments.count(environments[0])
    resolved = resolve(task, reporter, recorded=begun, sharing=sharing)
    full = resolved.task
    report_misfits(full, resolved.volumes, reporter, is_begun=begun is not None)
    for line in fold_lines(resolved.folds):
        reporter.say(line)
    folds = [full.fold(index) for index in range(given.folds.count)]
    if restart:
        _move_aside([one.run_dir for one in folds], given.model_name, reporter)
    lines = [*_planned_sizes(given, full.tr_params), *shares]
    words = [*words, *(word for line in lines for word in ("--set", f"tr_params.{line}"))]

    def start(index: int) -> Callable[[int], Child]:
        def begin(place: int) -> Child:
            reporter.say(f"fold {index} of {len(folds)}: {folds[index].run_dir}")
            say = (lambda line: reporter.say(f"fold {index}: {line}")) if jobs > 1 else None
            return Child([*words, "--fold", str(index)], environments[place], say)

        return begin

    with StopSignals() as stop:
        stop.defer()
        codes = run_all({index: start(index) for index in range(len(folds))}, jobs, stop)
    if stop.is_stopped():
        reporter.say("stopped; the same command continues")
        return stop.exit_code
    failed = [index for index, code in sorted(codes.items()) if code]
    for index in failed:
        reporter.say(
            f"fold {index} failed (exit code {codes[index]}); the same command continues it"
        )
    return 1 if failed else 0


def fold_lines(folds: Sequence[Sequence[TaskVolume]]) -> list[str]:
    """A line for each fold: which volumes it validates on."""
    lines: list[str] = []
    for index, volumes in enumerate(folds):
        held = [volume for volume in volumes if volume.split == "val"]
        voxels = sum(volume.region.voxels for volume in held)
        listed = list_some((volume.name for volume in held), MOST_NAMED)
        lines.append(f"fold {index} validates on {listed} ({voxels:,} voxels)")
    return lines


def _move_aside(folders: Sequence[Path], name: str, reporter: Reporter) -> None:
    """Rename the earlier runs of all folds, when none of them is in use."""
    with ExitStack() as stack:
        runs = [stack.enter_context(RunFolder(one, name)) for one in folders if one.is_dir()]
        for run in runs:
            if (aside := run.move_aside()) is not None:
                reporter.say(f"moved the earlier run to {aside}")


def _planned_sizes(given: TrainingParams, planned: TrainingParams) -> Iterator[str]:
    """Overrides that give every fold the sizes that were planned here."""
    if given.given_patch_size is None:
        yield f"patch_size={json.dumps(planned.patch_size)}"
    if given.given_batch_size is None:
        yield f"batch_size={planned.batch_size}"


def training_shares(given: TrainingParams, jobs: int) -> tuple[list[Mapping[str, str]], list[str]]:
    """How trainings at once divide the machine.

    Args:
        given: of the task.
        jobs: how many run at once.

    Returns:
        Variables for the environment of each place, and overrides `key=value` of `tr_params`.
    """
    return _environments(given.device, jobs), list(_shares(given, jobs))


def _shares(given: TrainingParams, jobs: int) -> Iterator[str]:
    """Overrides by which trainings at once divide the cores and the loading processes."""
    if jobs > 1 and given.threads is None:
        yield f"threads={max(1, torch.get_num_threads() // jobs)}"
    if jobs > 1 and given.num_dataloader_workers > 1:
        yield f"num_dataloader_workers={max(1, given.num_dataloader_workers // jobs)}"


def _environments(device: str | int, jobs: int) -> list[Mapping[str, str]]:
    """For each of the trainings at once, which CUDA device it sees; all, if it is the only one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if jobs == 1 or count < 2 or device not in ("auto", "cuda"):
        return [{}] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": names[place % len(names)]} for place in range(jobs)]
