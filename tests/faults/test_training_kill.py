"""kill -9 at any step of a training, then the same command: the same run, to the bit.

100 kills in full, see docs/reliability.md.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.faults.forks import forks
from tests.faults.learning import command, train_on, train_within
from vcmodels.checkpoint import load_checkpoint

STEPS = 12


@pytest.fixture(params=["hard patches", "mixup"])
def job(request, sheet_task, tmp_path) -> Path:
    """A task file with everything that a step or an epoch keeps; two of these exclude each other."""
    if request.param == "mixup":
        sheet_task["tr_params"]["mixup"] = {"p": 0.5}
    else:
        sheet_task["dataset_config"]["sampling"] = {"foreground": 0.3, "hard": 0.5}
    sheet_task["dataset_config"]["targets"]["sheet"]["loss"] = {"bce": 1, "soft_dice": 1}
    sheet_task["tr_params"] |= {
        "max_epoch": 4, "max_steps_per_epoch": STEPS // 4, "gradient_accumulation": 2,
        "scheduler": "cosine", "ema_decay": 0.9, "loss_balance": "uncertainty", "threads": 1,
    }  # fmt: skip
    file = tmp_path / "task.json"
    file.write_text(json.dumps(sheet_task))
    return file


def flat(value: object, key: str = "") -> dict[str, object]:
    """The leaves of nested dicts and lists by their path."""
    items = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list | tuple)
        else None
    )  # fmt: skip
    if items is None:
        return {key: value}
    return {k: v for name, inner in items for k, v in flat(inner, f"{key}.{name}").items()}


def outcome(run: Path) -> dict[str, object]:
    """Everything that a finished run holds, but for times and for what may differ between runs."""
    found: dict[str, object] = {}
    for kind in ("last", "best", "3", "4"):
        state = load_checkpoint(run / f"tiny_{kind}.pth").state
        found |= {f"{kind}{key}": v for key, v in flat(state).items() if ".task." not in key}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found |= {
        f"log{key}": value
        for key, value in flat(log).items()
        if ".val/" in key or ".epoch/" in key or key.endswith(".step")
    }
    events = EventAccumulator(str(run / "tensorboard" / "tiny"))
    events.Reload()
    for tag in events.Tags()["scalars"]:
        if tag.startswith(("train/", "val/", "epoch/")) or tag == "lr":
            found[f"curve {tag}"] = [(point.step, point.value) for point in events.Scalars(tag)]
    return found


def assert_same(found: dict[str, object], wanted: dict[str, object], manner: object) -> None:
    assert found.keys() == wanted.keys(), manner
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert found[key] == value, (key, manner)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_nine_at_any_step_then_the_same_run_to_the_bit(job, tmp_path, count):
    begun = time.monotonic()
    train_on(job, workers=0)
    duration = time.monotonic() - begun
    run = tmp_path / "run"
    wanted = outcome(run)
    assert [step for step, _ in wanted["curve lr"]] == list(range(1, STEPS + 1))
    rng = np.random.default_rng(0)
    killed, rounds = 0, 0
    with forks(train_on) as trainings:
        while killed < count(100) / 2:  # here and for the other job
            shutil.rmtree(run)
            workers = (0, 2)[(rounds + ("mixup" in job.read_text())) % 2]
            order = {"task": str(job), "workers": workers}
            for _ in range(5):
                killed += trainings.kill(order, rng.uniform(0, duration * (1 + workers / 2)))
                # TensorBoard orders the files of a run by the second in which they begin.
                time.sleep(1 - time.time() % 1)
            train_on(job, workers)
            assert_same(outcome(run), wanted, (workers, rounds))
            assert not [path for path in run.rglob("*") if "partial" in path.name]
            rounds += 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_signal_at_any_instant_saves_and_leaves_in_time(job, tmp_path, count):
    train_on(job, workers=0)
    run = tmp_path / "run"
    wanted = outcome(run)
    rng = np.random.default_rng(1)
    stopped, rounds = 0, 0
    with forks(command) as commands:
        while stopped < count(100) / 2:
            shutil.rmtree(run)
            order = {"arguments": ["train", str(job), "--quiet"]}
            for _ in range(4):
                number = (signal.SIGTERM, signal.SIGINT)[rounds % 2]
                begun, seconds = time.monotonic(), rng.uniform(0, 1.5)
                code = commands.run(order, seconds, number)
                assert code in (0, 128 + number, -number)  # the last before it has begun
                assert time.monotonic() - begun - seconds < 30
                stopped += code != 0
                time.sleep(1 - time.time() % 1)
            train_on(job, workers=0)
            assert_same(outcome(run), wanted, rounds)
            rounds += 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_space_a_training_fails_and_goes_on_where_there_is_some(job, tmp_path, count):
    train_on(job, workers=0)
    run = tmp_path / "run"
    wanted = outcome(run)
    size = (run / "tiny_last.pth").stat().st_size
    rng = np.random.default_rng(2)
    with forks(train_within) as trainings:
        for number in range(max(count(50) // 2, 1)):
            shutil.rmtree(run)
            limit = int(rng.uniform(0.01 if number % 2 else 0.8, 0.95) * size)
            assert trainings.run({"task": str(job), "limit": limit}, 60) == 1, limit
            time.sleep(1 - time.time() % 1)
            train_on(job, workers=0)
            assert_same(outcome(run), wanted, limit)


def test_a_clock_that_jumps_changes_nothing(job, tmp_path, monkeypatch):
    task = json.loads(job.read_text())
    task["tr_params"]["max_minutes"] = 60
    job.write_text(json.dumps(task))
    train_on(job, workers=0)
    wanted = outcome(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    rng = np.random.default_rng(0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + rng.uniform(-1e6, 1e6))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    train_on(job, workers=0)
    assert_same(outcome(tmp_path / "run"), wanted, "jumps")
