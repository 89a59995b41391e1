"""kill -9 of a training and of its watcher at any instant: each checkpoint is scored once, the best is right.

And of a training that validates whole volumes: the same run, to the bit.
"""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.forks import forks
from tests.faults.learning import train_on
from tests.faults.test_training_kill import assert_same, outcome
from tests.faults.watching import follow, learn
from vcmodels.runs.run import Run, read_log, seal
from vcmodels.workflows.watch_folder import read_journal

EPOCHS = 5


@pytest.fixture
def job(sheet_task, tmp_path):
    """A task file of a training that keeps one checkpoint, and what waits for the watcher."""
    sheet_task["tr_params"] |= {
        "max_epoch": EPOCHS, "max_steps_per_epoch": 1, "ema_decay": 0.9, "threads": 1,
        "keep_checkpoints": 1, "keep_unscored": EPOCHS, "initial_lr": 0.02, "device": "cpu",
    }  # fmt: skip
    sheet_task["inference_params"]["device"] = "cpu"
    sheet_task["evaluation"] = {"metrics": {"sheet": ["dice"], "normals": ["angle_deg"]}}
    file = tmp_path / "task.json"
    file.write_text(json.dumps(sheet_task))
    return str(file)


def begin_watch(run: Run) -> None:
    """As a watcher leaves its folder that was killed before the run began: the training keeps all."""
    run.watch.mkdir(parents=True)
    (run.watch / "scored.json").write_text('{"epochs": []}')


def killed(workers, task: str, seed: int, times: int, longest: float) -> int:
    """Kill a worker so many times, each after a while; how often it was still at work."""
    rng = np.random.default_rng(seed)
    return sum(workers.kill({"task": task}, rng.uniform(0, longest)) for _ in range(times))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_nine_of_both_scores_each_checkpoint_once_and_finds_the_best(job, tmp_path, count):
    run = Run(tmp_path / "run", "tiny")
    begin_watch(run)
    learn(job)
    digests = {epoch: seal(path) for epoch, path in run.kept().items()}
    assert list(digests) == [*range(1, EPOCHS + 1)]
    assert follow(job) == 0
    wanted = {line.epoch: line.curves for line in read_journal(run.watch / "watch.jsonl")}
    costs = {epoch: -curves["val_volumes/dice_sheet"] for epoch, curves in wanted.items()}
    best = sorted(costs, key=lambda epoch: (costs[epoch], epoch))[:2]
    assert len({*costs.values()}) == EPOCHS
    rounds = count(20)
    done = 0
    with forks(learn) as trainings, forks(follow) as watchers:
        while done < rounds:
            shutil.rmtree(run.folder)
            begin_watch(run)
            trainer = threading.Thread(target=killed, args=(trainings, job, done, 3, 4.0))
            trainer.start()
            done += max(killed(watchers, job, 1000 + done, 4, 6.0), 1)
            trainer.join()
            assert trainings.run({"task": job}, 600) == 0
            assert watchers.run({"task": job}, 600) == 0
            lines = read_journal(run.watch / "watch.jsonl")
            assert sorted(line.epoch for line in lines) == [*range(1, EPOCHS + 1)]
            assert {line.epoch: line.curves for line in lines} == wanted
            found = json.loads((run.watch / "best.json").read_text())["checkpoints"]
            assert [one["epoch"] for one in found] == best
            for number, epoch in enumerate(best, 1):
                digest = next(line.sha256 for line in lines if line.epoch == epoch)
                assert seal(run.folder / f"tiny_best_{number}.pth") == digest
            assert not [path for path in run.folder.rglob("*") if ".vcmodels-" in path.name]
            assert not (run.watch / "held.pth").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_nine_in_a_validation_of_whole_volumes_then_the_same_run(job, tmp_path, count):
    task = json.loads(Path(job).read_text())
    task["tr_params"] |= {
        "validation": {"whole_volumes": True, "every": 1}, "max_epoch": 4, "keep_checkpoints": 2,
        "best_metric": "val_volumes/dice_sheet", "scheduler": "constant",
    }  # fmt: skip
    Path(job).write_text(json.dumps(task))
    begun = time.monotonic()
    train_on(job, 0)
    duration = time.monotonic() - begun
    run = tmp_path / "run"
    wanted, points = outcome(run), volume_points(run)
    assert all(points)
    rng, killed = np.random.default_rng(2), 0
    with forks(train_on) as trainings:
        while killed < count(40):
            shutil.rmtree(run)
            for _ in range(5):
                killed += trainings.kill({"task": job, "workers": 0}, rng.uniform(0, duration))
                # TensorBoard orders the files of a run by the second in which they begin.
                time.sleep(1 - time.time() % 1)
            train_on(job, 0)
            assert_same(outcome(run), wanted, killed)
            assert volume_points(run) == points
            assert not (run / "validation").exists()


def volume_points(run: Path) -> list[dict[str, float]]:
    """The values of the curves of whole volumes, by epoch."""
    return [
        {k: v for k, v in line.items() if k.startswith("val_volumes/")} for line in read_log(run)
    ]
