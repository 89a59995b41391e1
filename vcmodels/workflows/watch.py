"""A watcher: scores each new checkpoint of a run on whole volumes, next to the training, and keeps the best.

It is a process of its own, which may be suspended or killed for hours, and is started again by the same
command. What was scored stands in a journal; a checkpoint that is being scored has a second name in the
watcher's folder, so that the training may replace or delete its own. All else in that folder is made of
the journal.
"""

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from vcmodels.checkpoint import Checkpoint, build_network, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.task import OF_VOLUMES
from vcmodels.data.selection import choose_volumes
from vcmodels.data.volumes import open_volumes
from vcmodels.devices import choose_device
from vcmodels.errors import CheckpointError, OutputError, RefusedError, RunError, TaskError
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredVolume
from vcmodels.evaluation.task import VOLUMES, about_task
from vcmodels.evaluation.written import REPORT, write_report
from vcmodels.metrics.base import Metrics, Sense
from vcmodels.metrics.choice import measured_metrics
from vcmodels.metrics.registry import volume_senses
from vcmodels.reporting import Reporter, duration
from vcmodels.runs.run import BESTS, LOCK, SCORED, Run, now, read_log, seal
from vcmodels.runs.survey import read_status
from vcmodels.training.run_folder import LOCK_SECONDS
from vcmodels.volumes.locks import FileLock, holder
from vcmodels.volumes.places import (
    keep_as,
    read_json,
    sweep_temporaries,
    write_atomic,
    write_json,
)
from vcmodels.workflows.whole_volumes import PredictedPart, curve_points, score_network

JOURNAL, TABLE = "watch.jsonl", "scores.csv"
HELD, KEPT, PREDICTIONS, EVENTS = "held.pth", "kept", "predictions", "tensorboard"
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


@dataclass(frozen=True)
class Rule:
    """The figure by which the best checkpoints are chosen."""

    target: str
    figure: str
    sense: Sense

    def __str__(self) -> str:
        """As a user names it."""
        return f"{self.target}.{self.figure}"

    @property
    def curve(self) -> str:
        """The curve that shows it."""
        return f"{OF_VOLUMES}{self.figure}_{self.target}"

    @classmethod
    def of(cls, task: Task, metrics: Mapping[str, Metrics], named: str | None) -> "Rule":
        """The one that is named.

        Raises:
            RefusedError: there is no such figure; names those that there are.
        """
        targets = task.dataset_config.targets
        senses = {
            f"{name}.{figure}": cls(name, figure, sense)
            for name, target in targets.items()
            for figure, sense in volume_senses(metrics[name], target.class_names).items()
        }
        first = next(iter(targets))
        wanted = named or f"{first}.{targets[first].metric}"
        if wanted not in senses:
            found = f"{wanted} is no figure that is measured"
            raise RefusedError("--metric", found, f"choose from {', '.join(senses)}")
        return senses[wanted]


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A line of the journal."""

    epoch: int
    step: int
    checkpoint: str
    """Its name when it was found."""
    sha256: str
    curves: Mapping[str, float]
    """The figures that have a value, by the names of their curves."""
    seconds: float
    time: str

    def cost(self, rule: Rule) -> float | None:
        """What is the lower, the better; None where the figure has no value."""
        value = self.curves.get(rule.curve)
        return None if value is None else value if rule.sense == "min" else -value


def read_journal(path: Path) -> list[ScoredCheckpoint]:
    """The lines of a journal; one that a kill cut short is left out."""
    found: list[ScoredCheckpoint] = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                found.append(ScoredCheckpoint(**json.loads(line)))
    return found


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
    metrics = {
        name: measured_metrics(target.stored_metrics, task.evaluation.metrics.get(name))
        for name, target in targets.items()
    }
    rule = Rule.of(task, metrics, options.metric)
    device = choose_device(options.device or task.inference_params.device, "--device")
    if task.inference_params.threads:
        torch.set_num_threads(task.inference_params.threads)
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


class WatchFolder:
    """The folder of a watcher: one process at a time holds it; the lock goes with the process.

    Args:
        run: whose checkpoints are scored.
        rule: which are the best.
        keep: how many of them stay.
        reporter: gets what is found from before.
    """

    def __init__(self, run: Run, rule: Rule, keep: int, reporter: Reporter) -> None:
        self.run, self.rule, self.keep, self.reporter = run, rule, keep, reporter
        self.path = run.watch
        self.held = self.path / HELD
        """The second name of the checkpoint that is being scored."""
        self.journal: list[ScoredCheckpoint] = []
        self._damaged = set[str]()

    def __enter__(self) -> "WatchFolder":
        self._lock = self._locked()
        try:
            self._lock.sign()
            self._stat = self.path.stat()
            sweep_temporaries(self.path)
            self.journal = read_journal(self.path / JOURNAL)
            self._refuse_others()
            text = "".join(f"{json.dumps(asdict(line))}\n" for line in self.journal)
            write_atomic(self.path / JOURNAL, text.encode())  # without a line that was cut
            self.settle()
            self._begin_events()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        self._lock.close()

    def _locked(self) -> FileLock:
        """The lock; the folder is made if it is not there.

        Raises:
            OutputError: another watcher holds it, or it cannot be made.
        """
        path = self.path / LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return FileLock(path, patience_s=LOCK_SECONDS)
        except BlockingIOError as error:
            found = f"in use by {holder(path)}"
            remedy = "one watcher is enough: wait for it"
            raise OutputError(str(self.path), found, remedy) from error
        except OSError as error:
            found, remedy = f"cannot be written: {error.strerror}", "choose another ckpt_out_base"
            raise OutputError(str(self.path), found, remedy) from error

    def _refuse_others(self) -> None:
        """Refuse to write over a file of somebody else.

        Raises:
            OutputError: naming it.
        """
        for number in range(1, self.keep + 1):
            place = self._best(number)
            if os.path.lexists(place) and place.name not in self.run.watched_names():
                raise OutputError(
                    str(place), "no watcher wrote it", "move it away, or lower --keep"
                )

    def _best(self, number: int) -> Path:
        return self.run.folder / f"{self.run.name}_best_{number}.pth"

    def _kept(self, line: ScoredCheckpoint) -> Path:
        """The name under which a checkpoint that is among the best is kept here."""
        return self.path / KEPT / f"{line.epoch}.pth"

    def require_there(self) -> None:
        """Refuse to go on with a run that was moved aside.

        Raises:
            RunError: it was.
        """
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), self._stat):
                return
        found = "was moved away: its run was started again, or deleted"
        raise RunError(str(self.path), found, "start the watcher again")

    @property
    def epochs(self) -> set[int]:
        """Those that are scored."""
        return {line.epoch for line in self.journal}

    def hold(self, path: Path) -> Checkpoint | None:
        """Give a checkpoint a second name, and load it.

        None where it is gone by now, is no end of an epoch, is scored already, or is damaged, which is
        reported once.
        """
        if not path.exists():
            return None
        try:
            if path != self.held:
                keep_as(path, self.held)
            checkpoint = load_checkpoint(self.held)
            if _ends_epoch(checkpoint) and checkpoint.state["epoch"] not in self.epochs:
                return checkpoint
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            if path.name not in self._damaged:
                self.reporter.say(f"note: {path}: {error.found}; it is not scored")
            self._damaged.add(path.name)
        self.release()
        return None

    def release(self) -> None:
        """Give up the second name."""
        self.held.unlink(missing_ok=True)

    def add(self, line: ScoredCheckpoint) -> None:
        """Record that a checkpoint is scored; it is from the moment that its line is on the disk."""
        with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(asdict(line), allow_nan=False) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.journal.append(line)
        self._show(line)
        self.settle()

    def _begin_events(self) -> None:
        """Write the curves from the journal: what a killed process left of them may lack the last."""
        shutil.rmtree(self.path / EVENTS, ignore_errors=True)
        self._events = SummaryWriter(str(self.path / EVENTS))
        for line in sorted(self.journal, key=lambda line: line.step):
            self._show(line)

    def _show(self, line: ScoredCheckpoint) -> None:
        for curve, value in line.curves.items():
            self._events.add_scalar(curve, value, line.step)
        self._events.flush()

    def settle(self) -> None:
        """Bring all files to what the journal says; a kill in here is made up for by the next start."""
        best = self._ranked()
        for line, source in best:
            if source != self._kept(line):
                self._kept(line).parent.mkdir(exist_ok=True)
                keep_as(source, self._kept(line))
        self._place([line for line, _ in best])
        wanted = {self._kept(line) for line, _ in best}
        for path in (self.path / KEPT).glob("*.pth"):
            if path not in wanted:
                path.unlink()
        self._write_table()
        write_json(self.path / SCORED, {"epochs": sorted(self.epochs)})
        if seal(self.held) in {line.sha256 for line in self.journal}:
            self.release()

    def _ranked(self) -> list[tuple[ScoredCheckpoint, Path]]:
        """The best checkpoints that are there, each with where; of equals the earlier one first."""
        known = [
            (cost, line) for line in self.journal if (cost := line.cost(self.rule)) is not None
        ]
        known.sort(key=lambda one: (one[0], one[1].epoch))
        found: list[tuple[ScoredCheckpoint, Path]] = []
        for _, line in known:
            if len(found) < self.keep and (source := self._source(line)) is not None:
                found.append((line, source))
        return found

    def _source(self, line: ScoredCheckpoint) -> Path | None:
        """Where a scored checkpoint still is: here, or where the training has it."""
        places = (self._kept(line), self.held, self.run.numbered(line.epoch), self.run.last)
        return next((path for path in places if seal(path) == line.sha256), None)

    def _place(self, best: Sequence[ScoredCheckpoint]) -> None:
        """Write the best under their names in the run folder, and remove what is no longer."""
        names = [self._best(number).name for number in range(1, len(best) + 1)]
        before = self.run.watched_names()
        record: dict[str, Any] = {"metric": str(self.rule), "sense": self.rule.sense}
        if set(names) - set(before):  # before the files: what is written is the watcher's
            self._refuse_others()
            written = [*dict.fromkeys([*before, *names])]
            write_json(self.path / BESTS, {**self._record(), "written": written})
        for name, line in zip(names, best, strict=True):
            place = self.run.folder / name
            if seal(place) != line.sha256:
                second = self.path / KEPT / f".{name}"
                keep_as(self._kept(line), second)
                second.replace(place)
        record["written"] = names
        record["checkpoints"] = [self._entry(*pair) for pair in zip(names, best, strict=True)]
        for name in set(before) - set(names):
            (self.run.folder / name).unlink(missing_ok=True)
        write_json(self.path / BESTS, record)

    def _record(self) -> dict[str, Any]:
        """What `best.json` says; {} before there is one."""
        try:
            return read_json(self.path / BESTS)
        except FileNotFoundError:
            return {}

    def _entry(self, name: str, line: ScoredCheckpoint) -> dict[str, Any]:
        place = {"file": name, "epoch": line.epoch, "step": line.step, "sha256": line.sha256}
        report = f"epoch_{line.epoch}/{REPORT}"
        return {**place, "value": line.curves[self.rule.curve], "report": report}

    def _write_table(self) -> None:
        """Write a row for each checkpoint, and a column for each figure."""
        lines = sorted(self.journal, key=lambda line: line.step)
        curves = list(dict.fromkeys(curve for line in lines for curve in line.curves))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", "step", *(curve.removeprefix(OF_VOLUMES) for curve in curves)])
        for line in lines:
            values = [repr(line.curves[c]) if c in line.curves else "" for c in curves]
            writer.writerow([line.epoch, line.step, *values])
        write_atomic(self.path / TABLE, text.getvalue().encode())


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
            more = f" and {len(new) - MOST_NAMED} more" if len(new) > MOST_NAMED else ""
            listed = ", ".join(map(str, new[:MOST_NAMED]))
            self.reporter.say(
                f"note: epochs {listed}{more} were deleted before they were scored; "
                "tr_params.keep_unscored says how many wait"
            )
        return known | missed

    def _report_end(self) -> None:
        best = self.folder.run.watched_best()
        found = f"best: {best}" if best else f"{self.folder.rule} has no value yet"
        self.reporter.say(f"{len(self.folder.journal)} checkpoints are scored; {found}")


def _ends_epoch(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the end of an epoch, and not of some step in one."""
    settings = checkpoint.state["task"]["tr_params"]
    epoch, step = checkpoint.state["epoch"], checkpoint.state["step"]
    return epoch > 0 and step == epoch * settings["max_steps_per_epoch"]
