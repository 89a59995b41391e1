"""Folds as processes of their own, against the same folds trained here."""

import json
import os
import signal
import threading

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import load_task
from vcmodels.errors import RefusedError, TaskError
from vcmodels.patches import resolve as patch_sizes
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.workflows import cross_validation
from vcmodels.workflows.cross_validation import cross_validate


@pytest.fixture
def folds(sheet_task, task_file, tmp_path, monkeypatch):
    """Runs all folds of the tiny task, in `<tmp>/run`; returns the exit code and the lines."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sheet_task["tr_params"] |= {
        "folds": {"count": 2, "by": "slab"}, "split_guard": 0, "patch_size": [8, 16, 16],
        "max_epoch": 1, "threads": 1,
    }  # fmt: skip

    def run(*overrides, jobs=2, restart=False):
        path, reporter = task_file(sheet_task), Silent()
        words = ["train", str(path), *(w for o in overrides for w in ("--set", o))]
        task = load_task(path, overrides).task
        code = cross_validate(task, words, jobs=jobs, restart=restart, reporter=reporter)
        return code, reporter.lines

    return run


def state(folder):
    return load_checkpoint(folder / "tiny_last.pth").state


def assert_same(a, b):
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    assert (a["split"], a["counters"]) == (b["split"], b["counters"])


@pytest.mark.slow
def test_folds_at_once_are_those_of_one_command_each_and_a_failure_is_named(
    folds, sheet_task, tmp_path
):
    broken = tmp_path / "run" / "fold_1" / "tiny_last.pth"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut")
    code, lines = folds()
    assert code == 1
    assert "fold 1 failed (exit code 2); the same command continues it" in lines
    assert any(line.startswith("fold 1: error: ") and "no checksum" in line for line in lines)
    broken.unlink()

    code, lines = folds()
    assert code == 0
    run = tmp_path / "run"
    assert f"fold 0: {run / 'fold_0'}: already complete (1 epochs)" in lines
    sheet_task["tr_params"]["ckpt_out_base"] = str(tmp_path / "alone")
    path = tmp_path / "alone.json"
    path.write_text(json.dumps(sheet_task))
    for index in range(2):
        assert train(load_task(path).task.fold(index), reporter=Silent()) == 0
        assert_same(state(run / f"fold_{index}"), state(tmp_path / "alone" / f"fold_{index}"))
    validated = [state(run / f"fold_{n}")["split"]["val_regions"] for n in range(2)]
    assert validated[0] != validated[1]


@pytest.mark.slow
def test_a_signal_stops_all_folds_with_their_state_saved(folds, tmp_path):
    places = [tmp_path / "run" / f"fold_{n}" for n in range(2)]

    over = threading.Event()

    def stop_when_all_train():
        while not over.wait(0.05):
            if all((p / "log.jsonl").exists() for p in places):
                os.kill(os.getpid(), signal.SIGTERM)
                break

    thread = threading.Thread(target=stop_when_all_train)
    thread.start()
    code, lines = folds("tr_params.max_epoch=100000", "tr_params.max_steps_per_epoch=1")
    over.set()
    thread.join()
    assert code == 128 + signal.SIGTERM
    assert lines[-1] == "stopped; the same command continues"
    for index, place in enumerate(places):
        step = state(place)["step"]
        assert (
            f"fold {index}: stopped at step {step}, which is saved; the same command continues"
            in lines
        )


@pytest.fixture
def started(monkeypatch):
    """Stands in for the processes; holds the words and variables of each that is started."""
    calls = []

    def run_all(starts, jobs, stop):
        for number, start in starts.items():
            start(number % jobs)
        return dict.fromkeys(starts, 0)

    monkeypatch.setattr(cross_validation, "run_all", run_all)
    monkeypatch.setattr(cross_validation, "Child", lambda *call: calls.append(call))
    return calls


def test_folds_at_once_divide_devices_threads_and_loaders(folds, sheet_task, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    del sheet_task["tr_params"]["threads"]
    sheet_task["tr_params"] |= {"num_dataloader_workers": 5, "folds": {"count": 4}}
    sheet_task["tr_params"]["patch_size"] = [8, 8, 8]
    assert folds(jobs=2)[0] == 0
    words, variables, say = zip(*started, strict=True)
    assert [v["CUDA_VISIBLE_DEVICES"] for v in variables] == ["4", "5", "4", "5"]
    assert [w[-2:] for w in words] == [["--fold", str(n)] for n in range(4)]
    assert all(
        {"tr_params.threads=6", "tr_params.num_dataloader_workers=2"} < set(w) for w in words
    )
    assert all(say)

    started.clear()
    folds(jobs=1)
    words, variables, say = zip(*started, strict=True)
    assert not any("--set" in w for w in words)
    assert set(map(str, variables)) == {"{}"}
    assert not any(say)  # the terminal is theirs, with a progress bar


def test_what_is_planned_is_planned_once(folds, sheet_task, started):
    del sheet_task["tr_params"]["patch_size"], sheet_task["tr_params"]["batch_size"]
    code, lines = folds("tr_params.memory_gb=0.02")
    assert code == 0
    planned = [word for word in started[0][0] if word.startswith("tr_params.patch_size=")]
    assert planned
    assert any(planned[0].partition("=")[2] in line for line in lines)


@pytest.mark.parametrize(
    ("jobs", "devices", "sharing"), [(1, 0, 1), (2, 0, 2), (2, 1, 2), (2, 2, 1), (3, 2, 2)]
)
def test_folds_at_once_plan_for_their_part_of_a_device(
    folds, sheet_task, started, monkeypatch, jobs, devices, sharing
):
    """As planned for that part by a word of its own."""
    del sheet_task["tr_params"]["patch_size"], sheet_task["tr_params"]["batch_size"]
    sheet_task["tr_params"] |= {"folds": {"count": 3, "by": "slab"}, "amp": "off"}
    memory, share = 0.02e9, 0.9 if devices else 0.25
    monkeypatch.setattr(patch_sizes, "memory_bytes", lambda device: memory / share)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    folds(jobs=jobs)
    folds(f"tr_params.memory_gb={memory / 1e9 / sharing}")
    first, given = ([w for w in call[0] if "_size=" in w] for call in (started[0], started[3]))
    assert first == given
    folds("tr_params.memory_gb=0.02", jobs=3)  # is for a step, whoever else is there
    whole = [w for w in started[6][0] if "_size=" in w]
    assert (whole == given) == (sharing == 1)


def test_restart_moves_every_fold_aside_or_none(folds, tmp_path, started):
    for index in range(2):
        place = tmp_path / "run" / f"fold_{index}"
        place.mkdir(parents=True)
        (place / "log.jsonl").write_text("mine")
    folds(restart=True)
    assert [len(list((tmp_path / "run").glob(f"fold_{n}/before-*/log.jsonl"))) for n in (0, 1)] == [1, 1]  # fmt: skip
    assert not any("--restart" in word for call in started for word in call[0])


def test_what_no_fold_can_do_is_refused_before_the_first(folds, sheet_task, started, monkeypatch):
    with monkeypatch.context() as context:
        context.setenv("WORLD_SIZE", "2")
        with pytest.raises(RefusedError, match="torchrun trains one fold at a time"):
            folds()
    sheet_task["tr_params"]["folds"]["count"] = 60
    with pytest.raises(TaskError, match="cannot be cut into 60 slabs"):
        folds()
    assert not started
