"""The watcher of a run: which checkpoints it scores, which it keeps, and what the training keeps for it."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.checkpoint import save_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import OutputError, RefusedError, RunError
from vcmodels.evaluation.report import Report
from vcmodels.inference.ensemble import choose_checkpoints, find_checkpoints
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run, seal
from vcmodels.training import train
from vcmodels.training.run_folder import RunFolder
from vcmodels.workflows import watch as module
from vcmodels.workflows import watch_folder
from vcmodels.workflows.watch import WatchOptions, watch
from vcmodels.workflows.watch_folder import read_journal

STEPS = 3


@pytest.fixture
def task(sheet_task):
    """The task of a run, on the CPU."""
    sheet_task["inference_params"]["device"] = "cpu"
    sheet_task["tr_params"] |= {"device": "cpu", "keep_checkpoints": 0}
    return parse_task(sheet_task, "task.json")[0]


@pytest.fixture
def run(task) -> RunFolder:
    """A run that has begun, and of which a test writes checkpoints."""
    folder = RunFolder(task.run_dir, "tiny")
    folder.folder.mkdir()
    folder.write_task(task.to_json())
    (folder.folder / "environment.json").write_text('{"schema": 1, "starts": []}')
    return folder


def save(run: RunFolder, epoch: int, *, numbered: bool = True, step: int | None = None) -> Path:
    """A made-up checkpoint of the end of an epoch, of which nothing but the figures is asked."""
    state = {
        "schema": 1, "epoch": epoch, "step": STEPS * epoch if step is None else step,
        "task": run.task(), "model": {"w": torch.full((3,), float(epoch))},
    }  # fmt: skip
    if numbered:
        assert run.claim(epoch)
    path = run.numbered(epoch) if numbered else run.last
    save_checkpoint(path, state, keep_previous=False)
    return path


@pytest.fixture
def figures(monkeypatch):
    """The dice of each epoch; `figures.scored` lists the epochs in the order in which they are."""

    class Figures(dict[int, float]):
        scored: list[int]
        then = staticmethod(lambda epoch: None)

    found = Figures()
    found.scored = []

    def score(task, network, parts, metrics, *, about, keep, **others):
        del task, network, parts, metrics, others
        found.scored.append(about["epoch"])
        found.then(about["epoch"])
        report = Report((), {}, {}, {"epoch": about["epoch"]})
        keep(report, [])
        return report

    def points(report):
        return {"val_volumes/dice_sheet": found[report.provenance["epoch"]]}

    monkeypatch.setattr(module, "build_network", lambda checkpoint: None)
    monkeypatch.setattr(module.Watcher, "_parts", [])
    monkeypatch.setattr(module, "score_network", score)
    monkeypatch.setattr(module, "curve_points", points)
    return found


def look(task, **options) -> list[str]:
    reporter = Silent()
    assert watch(task, WatchOptions(once=True, **options), reporter, lambda: False)
    return reporter.lines


def best(run: RunFolder) -> list[int]:
    """The epochs of the best files, by what is in them."""
    digests = {line.sha256: line.epoch for line in read_journal(run.watch / "watch.jsonl")}
    names = sorted(run.folder.glob("tiny_best_*.pth"))
    assert [path.name for path in names] == [f"tiny_best_{n}.pth" for n in range(1, len(names) + 1)]
    return [digests[seal(path) or ""] for path in names]


def test_the_best_of_three_is_the_second(task, run, figures):
    for epoch, value in enumerate([0.1, 0.5, 0.3], 1):
        figures[epoch] = value
        save(run, epoch)
        look(task)
        run.keep_only(0, 0)  # the training deletes what it does not need
    assert figures.scored == [1, 2, 3]
    assert best(run) == [2, 3, 1]
    record = json.loads((run.watch / "best.json").read_text())
    assert (record["metric"], record["sense"]) == ("sheet.dice", "max")
    assert [one["value"] for one in record["checkpoints"]] == [0.5, 0.3, 0.1]
    found = run.watched_best()
    assert found is not None
    assert (found.epoch, found.path.name) == (2, "tiny_best_1.pth")


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_k_best_stay_whatever_the_order(task, run, figures, keep):
    values = [0.2, 0.9, 0.1, 0.9, math.nan, 0.5, 0.3]
    for epoch, value in enumerate(values, 1):
        figures[epoch] = value
        save(run, epoch)
        look(task, keep=keep)
        run.keep_only(0, 0)
    assert best(run) == [2, 4, 6, 7, 1][:keep]
    names = {path.name for path in (run.watch / "kept").iterdir()}
    assert names == {f"{epoch}.pth" for epoch in [2, 4, 6, 7, 1][:keep]}
    look(task, keep=1)  # fewer from now on
    assert best(run) == [2]


def test_a_figure_of_which_less_is_better_chooses_the_least(task, run, figures, monkeypatch):
    values = {1: 30.0, 2: 10.0, 3: 20.0}
    figures |= values
    monkeypatch.setattr(
        module, "curve_points",
        lambda report: {"val_volumes/angle_deg_normals": values[report.provenance["epoch"]]},
    )  # fmt: skip
    for epoch in values:
        save(run, epoch)
    look(task, metric="normals.angle_deg")
    assert best(run) == [2, 3, 1]


def test_what_is_scored_is_not_scored_again_and_shown_once(task, run, figures):
    figures |= {1: 0.25, 2: 0.75}
    save(run, 1)
    look(task)
    save(run, 2)
    look(task)
    look(task)
    assert figures.scored == [1, 2]
    assert run.scored() == {1, 2}
    events = EventAccumulator(str(run.watch / "tensorboard"))
    events.Reload()
    points = [(p.step, p.value) for p in events.Scalars("val_volumes/dice_sheet")]
    assert points == [(3, 0.25), (6, 0.75)]
    rows = list(csv.DictReader((run.watch / "scores.csv").read_text().splitlines()))
    assert [(row["epoch"], row["dice_sheet"]) for row in rows] == [("1", "0.25"), ("2", "0.75")]
    assert {path.name for path in run.watch.glob("epoch_*/*")} >= {"report.json", "scores.csv"}


def test_the_newest_counts_where_no_number_keeps_its_epoch(task, run, figures):
    figures |= {2: 0.5, 4: 0.7}
    (run.folder / "log.jsonl").write_text('{"epoch": 4}\n')
    save(run, 2)
    save(run, 3, numbered=False, step=STEPS * 4)  # saved before the validation of epoch 4
    look(task)
    assert figures.scored == [2]
    save(run, 4, numbered=False)
    look(task)
    save(run, 4, numbered=False, step=STEPS * 4 + 1)  # in the middle of the next
    look(task)
    assert figures.scored == [2, 4]
    assert best(run) == [4, 2]


def test_a_checkpoint_that_the_training_deletes_meanwhile_is_scored_all_the_same(
    task, run, figures
):
    figures |= {1: 0.5, 2: 0.25}
    paths = [save(run, 1), save(run, 2)]
    figures.then = lambda epoch: paths[epoch - 1].unlink()
    look(task)
    assert best(run) == [1, 2]


@pytest.mark.parametrize("place", ["journal", "kept", "best", "table", "scored"])
def test_a_kill_between_two_files_is_made_up_for(task, run, figures, monkeypatch, place):
    """The process ends where one of the files is about to be written."""
    figures |= {1: 0.1, 2: 0.5}
    save(run, 1)
    look(task)
    save(run, 2)

    class Kill(BaseException):
        pass

    def fail(*given):
        raise Kill

    def failing(original):
        """The same function, which ends the process once the second checkpoint is scored."""

        def call(*given):
            return fail() if figures.scored == [1, 2] else original(*given)

        return call

    owner, name = {
        "journal": (module, "write_report"),
        "kept": (watch_folder, "keep_as"),
        "best": (watch_folder.WatchFolder, "_place"),
        "table": (watch_folder.WatchFolder, "_write_table"),
        "scored": (watch_folder, "write_json"),
    }[place]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name)))
        with pytest.raises(Kill):
            look(task)
    run.numbered(2).unlink()  # what is held does not depend on the training
    look(task)
    assert best(run) == [2, 1]
    assert run.scored() == {1, 2}
    assert figures.scored == ([1, 2, 2] if place == "journal" else [1, 2])
    assert not (run.watch / "held.pth").exists()


def test_a_line_that_a_kill_cut_is_dropped(task, run, figures):
    figures |= {1: 0.1, 2: 0.5}
    save(run, 1)
    save(run, 2)
    look(task)
    journal = run.watch / "watch.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    look(task)
    assert figures.scored == [1, 2, 2]
    assert [line.epoch for line in read_journal(journal)] == [1, 2]


def test_a_damaged_checkpoint_is_reported_and_does_not_stop_the_others(task, run, figures):
    figures |= {2: 0.5}
    path = save(run, 1)
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    save(run, 2)
    lines = look(task)
    assert len([line for line in lines if "tiny_1.pth: sha256 differs" in line]) == 1
    assert best(run) == [2]


def test_files_of_others_are_never_written_over(task, run, figures):
    figures |= {1: 0.5}
    save(run, 1)
    other = run.folder / "tiny_best_2.pth"
    other.write_text("mine")
    with pytest.raises(
        OutputError, match=r"tiny_best_2.pth: no watcher wrote it; move it away, or"
    ):
        look(task)
    assert figures.scored == []
    look(task, keep=1)
    look(task, keep=1)
    assert other.read_text() == "mine"


def test_one_watcher_holds_the_folder(task, run, figures):
    figures |= {1: 0.5}
    save(run, 1)
    refused: list[str] = []

    def second(epoch):
        with pytest.raises(OutputError, match=r"watch: in use by pid \d+"):
            look(task)
        refused.append("yes")

    figures.then = second
    look(task)
    assert refused == ["yes"]


def test_a_run_that_is_started_again_ends_its_watcher(task, run, figures):
    figures |= {1: 0.5}
    save(run, 1)
    figures.then = lambda epoch: run.move_aside()
    with pytest.raises(RunError, match=r"watch: was moved away: .*; start the watcher again"):
        look(task)
    assert not run.watch.exists()
    (aside,) = run.folder.glob("before-*")
    assert (aside / "watch").is_dir()


def test_a_new_start_moves_the_best_files_aside_too(task, run, figures):
    figures |= {1: 0.5}
    save(run, 1)
    look(task)
    (run.folder / "tiny_best_7.pth").write_text("of a user")
    aside = run.move_aside()
    assert aside is not None
    assert {"tiny_best_1.pth", "watch", "tiny_1.pth"} <= {path.name for path in aside.iterdir()}
    assert (run.folder / "tiny_best_7.pth").exists()


def test_the_training_keeps_what_is_not_scored_within_the_bound(task, run):
    for epoch in range(1, 8):
        save(run, epoch)
        run.keep_only(2, 3)
    assert list(run.kept()) == [6, 7]  # without a watcher nothing more stays
    run.watch.mkdir()
    (run.watch / "scored.json").write_text('{"epochs": [8, 10]}')
    for epoch in range(8, 16):
        save(run, epoch)
        run.keep_only(2, 3)
    assert list(run.kept()) == [11, 12, 13, 14, 15]
    (run.watch / "scored.json").write_text('{"epochs": [8, 10, 11, 12]}')
    run.keep_only(0, 3)
    assert list(run.kept()) == [13, 14, 15]
    run.keep_only(0, 0)
    assert list(run.kept()) == []


def test_what_was_missed_is_reported_once(task, run, figures):
    figures |= {3: 0.5}
    for epoch in (1, 2, 3):
        save(run, epoch)
    written = json.loads((run.folder / "checkpoints.json").read_text())
    for epoch in (1, 2):
        run.numbered(epoch).unlink()
    assert written == {"epochs": [1, 2, 3]}
    notes = [line for line in look(task) if "deleted before they were scored" in line]
    assert notes == [
        "note: epochs 1, 2 were deleted before they were scored; "
        "tr_params.keep_unscored says how many wait"
    ]


def test_inference_takes_the_best_by_the_watcher_and_says_so(task, run, figures):
    figures |= {1: 0.1, 2: 0.5}
    shutil.copy(save(run, 1), run.best)
    assert choose_checkpoints(task) == [run.best]
    assert find_checkpoints(run.folder) == [run.best]
    save(run, 2)
    look(task)
    reporter = Silent()
    assert choose_checkpoints(task, reporter=reporter) == [run.folder / "tiny_best_1.pth"]
    (line,) = reporter.lines
    assert line.endswith("tiny_best_1.pth: epoch 2, sheet.dice 0.5")
    assert find_checkpoints(run.folder) == [run.folder / "tiny_best_1.pth"]
    (run.folder / "tiny_best_1.pth").unlink()
    assert choose_checkpoints(task) == [run.best]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--watch", "--metric", "sheet.hd96"], "--metric: sheet.hd96 is no figure .* sheet.dice"),
        (["--watch", "--once"], "no run has begun there; train first"),
        (["--watch", "--output", "x"], "--output: does not go with --watch"),
        (["--keep", "2"], "--keep: goes with --watch"),
        (["--watch", "--device", "cuda:77"], "cuda"),
    ],
)
def test_options_that_make_no_sense_are_refused(sheet_task, task_file, capsys, words, match):
    import re

    assert main(["evaluate", str(task_file(sheet_task)), *words]) == 2
    error = capsys.readouterr().err
    assert re.search(match, error), error


def test_a_watcher_ends_when_the_run_is_complete_and_scored(sheet_task, tmp_path, capsys):
    """A whole run, with real scores: the figures are those that the training would validate with."""
    from vcmodels.workflows.whole_volumes import WholeVolumes

    sheet_task["tr_params"] |= {"device": "cpu", "max_steps_per_epoch": 1, "keep_checkpoints": 2}
    sheet_task["tr_params"]["validation"] = {"whole_volumes": True, "every": 1}
    sheet_task["inference_params"]["device"] = "cpu"
    task = parse_task(sheet_task, "task.json")[0]
    assert train(task, reporter=Silent(), whole_volumes=WholeVolumes) == 0
    assert main(["evaluate", str(task.run_dir), "--watch", "--interval", "0.1"]) == 0
    assert "2 checkpoints are scored; best: tiny_best_1.pth" in capsys.readouterr().out
    run = Run(task.run_dir)
    log = [json.loads(line) for line in run.log.read_text().splitlines()]
    for line, found in zip(log, read_journal(run.watch / "watch.jsonl"), strict=True):
        wanted = {k: v for k, v in line.items() if k.startswith("val_volumes/")}
        assert found.curves == pytest.approx(wanted, rel=1e-12)
        assert (found.epoch, found.step) == (line["epoch"], line["step"])
    assert (run.watch / "epoch_2" / "report.json").exists()
    with pytest.raises(RefusedError, match="--metric"):
        look(task, metric="sheet.nothing")


def test_a_watcher_that_waits_for_a_run_makes_its_training_keep_all(sheet_task):
    """It is started first, and stopped: what the training then writes waits for the next start."""
    sheet_task["tr_params"] |= {
        "device": "cpu", "max_steps_per_epoch": 1, "max_epoch": 3, "keep_checkpoints": 0,
        "keep_unscored": 2,
    }  # fmt: skip
    task = parse_task(sheet_task, "task.json")[0]
    asked, reporter = iter(range(99)), Silent()
    assert not watch(task, WatchOptions(device="cpu"), reporter, lambda: next(asked) > 1)
    assert reporter.lines == [f"waiting for a run in {task.run_dir}"]
    run = Run(task.run_dir, "tiny")
    assert [path.name for path in run.folder.iterdir()] == ["watch"]
    assert train(task, reporter=Silent()) == 0
    assert list(run.kept()) == [2, 3]
