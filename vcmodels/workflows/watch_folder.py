"""The folder of a watcher: the journal of what it has scored, and the files that are made of it."""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vcmodels.checkpoint import Checkpoint, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.task import OF_VOLUMES
from vcmodels.errors import CheckpointError, OutputError, RefusedError, RunError
from vcmodels.evaluation.written import REPORT
from vcmodels.metrics.base import Metrics, Sense
from vcmodels.metrics.registry import volume_senses
from vcmodels.reporting import Reporter
from vcmodels.runs.run import BESTS, LOCK, SCORED, Run, seal
from vcmodels.training.run_folder import LOCK_SECONDS
from vcmodels.volumes.locks import FileLock, holder
from vcmodels.volumes.places import (
    keep_as,
    read_json,
    sweep_temporaries,
    write_atomic,
    write_json,
)

JOURNAL, TABLE = "watch.jsonl", "scores.csv"
HELD, KEPT, EVENTS = "held.pth", "kept", "tensorboard"


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


def _ends_epoch(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the end of an epoch, and not of some step in one."""
    settings = checkpoint.state["task"]["tr_params"]
    epoch, step = checkpoint.state["epoch"], checkpoint.state["step"]
    return epoch > 0 and step == epoch * settings["max_steps_per_epoch"]
