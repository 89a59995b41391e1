"""A watcher: scores each new checkpoint of a run on whole volumes, next to the training, and keeps the best.

It is a process of its own, which may be suspended or killed for hours, and is started again by the same
command. What was scored stands in a journal; a checkpoint that is being scored has a second name in the
watcher's folder, so that the training may replace or delete its own. All else in that folder is made of
the journal.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from vcmodels.checkpoint import Checkpoint, build_network
from vcmodels.config import Task
from vcmodels.config.task import volume_metrics
from vcmodels.data.selection import choose_volumes
from vcmodels.data.volumes import open_volumes
from vcmodels.devices import choose_device, set_threads
from vcmodels.errors import RefusedError, TaskError
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredVolume
from vcmodels.evaluation.task import VOLUMES, about_task
from vcmodels.evaluation.written import write_report
from vcmodels.metrics.base import Metrics
from vcmodels.reporting import Reporter, duration, list_some
from vcmodels.runs.run import Run, now, read_log
from vcmodels.runs.survey import read_status
from vcmodels.workflows.watch_folder import Rule, ScoredCheckpoint, WatchFolder
from vcmodels.workflows.whole_volumes import PredictedPart, curve_points, score_network

PREDICTIONS = "predictions"
PAUSE_S = 0.2
"""How often it is asked whether to stop."""
MOST_NAMED = 8


@dataclass(frozen=True)
class WatchOptions:
    """How a run is watched."""

    metric: str | None = None
    """`<target>.<figure>`, by which the best are chosen; the main figure of the first target when None."""
    keep: int = 3
    """How many of the best checkpoints are kept."""
    device: str | None = None
    """As `inference_params.device`, which it is when None."""
    interval_s: float = 30.0
    """Seconds from one look for new checkpoints to the next."""
    once: bool = False
    """Score what is there, and wait for nothing."""


def watch(
    task: Task, options: WatchOptions, reporter: Reporter, should_stop: Callable[[], bool]
) -> bool:
    """Score the checkpoints of a run until it is complete and all are scored; false after a stop.

    Args:
        task: of the run, begun or not.
        options: how.
        reporter: gets what is scored, and what was missed.
        should_stop: asked several times a second.

    Raises:
        RefusedError: there is no run, no volume to score, no such figure or device, or another
            watcher is at work.
        RunError: a volume cannot be predicted or scored, or the run was moved aside.
    """
    run, targets = Run(task.run_dir, task.tr_params.model_name), task.dataset_config.targets
    metrics = volume_metrics(targets, task.evaluation)
    rule = Rule.of(task, metrics, options.metric)
    device = choose_device(options.device or task.inference_params.device, "--device")
    set_threads(task.inference_params.threads)
    if options.once and not run.is_begun():
        raise RefusedError(str(run.folder), "no run has begun there", "train first")
    # From here on a training keeps what is not scored, also one that is still to begin.
    with WatchFolder(run, rule, options.keep, reporter) as folder:
        if not _is_begun(folder, reporter, should_stop):
            return False
        reporter.say(f"watching {run.folder}; curves: tensorboard --logdir {run.folder}")
        return Watcher(task, folder, metrics, device, options, reporter, should_stop).run_through()


def _is_begun(folder: "WatchFolder", reporter: Reporter, should_stop: Callable[[], bool]) -> bool:
    """Wait until the run begins; false after a stop.

    Raises:
        RunError: the folder was moved away.
    """
    if not folder.run.is_begun():
        reporter.say(f"waiting for a run in {folder.run.folder}")
    while not folder.run.is_begun():
        if should_stop():
            return False
        folder.require_there()
        time.sleep(PAUSE_S)
    return True


@dataclass(frozen=True)
class Watcher:
    """Looks for checkpoints, and scores them."""

    task: Task
    folder: WatchFolder
    metrics: Mapping[str, Metrics]
    device: torch.device
    options: WatchOptions
    reporter: Reporter
    should_stop: Callable[[], bool]

    def run_through(self) -> bool:
        """Score until nothing is left and nothing more will come; false after a stop."""
        run, missed = self.folder.run, set[int]()
        while not self.should_stop():
            self.folder.require_there()
            # Asked before looking: what a training wrote at its end is then seen.
            is_over = self.options.once or read_status(run.folder).state == "complete"
            found = next(self._waiting(), None)
            if found is not None:
                if not self._score(*found):
                    return False
                continue
            missed = self._report_missed(missed)
            if is_over:
                self._report_end()
                return True
            self._wait()
        return False

    def _wait(self) -> None:
        until = time.monotonic() + self.options.interval_s
        while time.monotonic() < until and not self.should_stop():
            time.sleep(min(PAUSE_S, self.options.interval_s))

    def _waiting(self) -> Iterator[tuple[Checkpoint, str]]:
        """The checkpoints that are not scored, the oldest first, each held by a second name.

        The newest one of the run is among them where its epoch is kept under no number.
        """
        folder, run = self.folder, self.folder.run
        places = [path for epoch, path in run.kept().items() if epoch not in folder.epochs]
        ended = {int(line.get("epoch", 0)) for line in read_log(run.folder)[-1:]}
        if ended - folder.epochs - run.kept().keys():
            places.append(run.last)
        # The first is of a process that was killed.
        for path in (folder.held, *places):
            if (found := folder.hold(path)) is not None:
                yield found, path.name

    def _score(self, checkpoint: Checkpoint, name: str) -> bool:
        """Score a checkpoint; false after a stop."""
        epoch, step = checkpoint.state["epoch"], checkpoint.state["step"]
        begun, folder = time.monotonic(), self.folder
        about = {"checkpoint": name, "epoch": epoch, "step": step, "sha256": checkpoint.sha256}

        def keep(report: Report, volumes: Sequence[ScoredVolume]) -> None:
            folder.require_there()
            write_report(report, folder.path / f"epoch_{epoch}", volumes, self.reporter)

        report = score_network(
            self.task, build_network(checkpoint), self._parts, self.metrics,
            folder=folder.path / PREDICTIONS, device=self.device,
            about={**about_task(self.task), **about},
            reporter=self.reporter, should_stop=self.should_stop, keep=keep,
        )  # fmt: skip
        if report is None:
            return False
        curves = {c: value for c, value in curve_points(report).items() if value - value == 0}
        seconds = time.monotonic() - begun
        rule = folder.rule
        shown = (
            f"{rule} {curves[rule.curve]:.4f}" if rule.curve in curves else f"{rule} has no value"
        )
        folder.add(ScoredCheckpoint(epoch, step, name, checkpoint.sha256, curves, seconds, now()))
        self.reporter.say(f"epoch {epoch}: {shown}, scored in {duration(seconds)}")
        return True

    @cached_property
    def _parts(self) -> list[PredictedPart]:
        """What is predicted and scored: what was held out, or what `evaluation.volumes` chooses.

        Raises:
            TaskError: none of it has a label.
        """
        choice, targets = self.task.evaluation.volumes or "val", self.task.dataset_config.targets
        volumes, run = open_volumes(self.task), self.folder.run
        chosen = choose_volumes(volumes, choice, run, key=VOLUMES, reporter=self.reporter)
        every = [PredictedPart(one.volume, one.box, one.split) for one in chosen]
        if parts := [part for part in every if part.has_label(targets)]:
            return parts
        raise TaskError(VOLUMES, "none of the chosen volumes has a label", "choose others")

    def _report_missed(self, known: set[int]) -> set[int]:
        """Say once which checkpoints were deleted before they were scored."""
        run = self.folder.run
        missed = run.written() - run.kept().keys() - self.folder.epochs
        if new := sorted(missed - known):
            self.reporter.say(
                f"note: epochs {list_some(new, MOST_NAMED)} were deleted before they were scored; "
                "tr_params.keep_unscored says how many wait"
            )
        return known | missed

    def _report_end(self) -> None:
        best = self.folder.run.watched_best()
        found = f"best: {best}" if best else f"{self.folder.rule} has no value yet"
        self.reporter.say(f"{len(self.folder.journal)} checkpoints are scored; {found}")
