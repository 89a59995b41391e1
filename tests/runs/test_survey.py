import fcntl
import json

import pytest

from vcmodels.runs.run import add_start, end_start
from vcmodels.runs.survey import Figure, find_runs, read_status


def test_a_run_is_read_from_its_small_files(make_run):
    run = read_status(make_run("x"))
    assert (run.name, run.state, run.epoch, run.max_epoch) == ("m", "complete", 4, 4)
    assert (run.best_epoch, run.best_loss, run.last_loss) == (3, 0.5, 1.5)
    assert run.figures == {
        "sheet": Figure("dice", pytest.approx(0.3), 0.4),
        "normals": Figure("angle_deg", 120.0, 160.0),  # not named: the first one that is logged
    }
    assert (run.minutes, run.patches_per_second, run.device) == (6.0, 40.25, "cpu")


def test_several_processes_are_told(make_run):
    folder = make_run("x")
    add_start(folder, {"device": "cuda", "processes": 4})
    assert read_status(folder).device == "4 x cuda"


def test_the_best_epoch_is_that_of_the_best_checkpoint(make_run):
    folder = make_run("x")
    for sense, epoch, dice in (("max", 4, 0.4), ("min", 1, 0.1)):
        add_start(folder, {"best": {"curve": "val/dice_sheet", "sense": sense}})
        run = read_status(folder)
        assert (run.best_epoch, run.figures["sheet"].best) == (epoch, dice)
    add_start(folder, {"best": {"curve": "val/nothing", "sense": "min"}})
    assert read_status(folder).best_epoch == 4  # without a value each epoch is the best so far
    (folder / "log.jsonl").unlink()
    assert read_status(folder).best_epoch is None


@pytest.mark.parametrize(
    ("epochs", "outcome", "state", "reason"),
    [
        (4, "stopped", "complete", ""),  # stopped when it had all epochs
        (2, "complete", "complete", ""),  # by early stopping
        (2, "stopped", "stopped", ""),
        (2, "failed: step 3: not finite", "failed", "step 3: not finite"),
        (2, "", "killed", "ended without a word"),
    ],
)
def test_the_state_of_a_run(make_run, epochs, outcome, state, reason):
    run = read_status(make_run("x", epochs=epochs, outcome=outcome))
    assert run.state == state
    assert reason in run.reason
    assert bool(reason) == bool(run.reason)


def test_a_run_that_is_held_is_being_trained(make_run):
    folder = make_run("x", outcome="")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_status(folder).state == "training"
        assert read_status(folder).state == "training"
    assert read_status(folder).state == "complete"
    with (folder / ".lock").open() as lock:  # by another list of runs
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert read_status(folder).state == "complete"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("task.json", b"{", "task.json cannot be read"),
        ("m_last.pth", b"weights", "m_last.pth is cut short"),
        ("m_best.pth", b"weights" * 20, "m_best.pth is cut short"),
        ("m_best.pth", None, "m_best.pth is gone"),
    ],
)
def test_a_damaged_run_is_named(make_run, name, content, reason):
    folder = make_run("x")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    run = read_status(folder)
    assert (run.state, run.reason) == ("damaged", reason)


@pytest.mark.parametrize("most", [1, 4])
def test_a_kill_before_the_first_best_is_saved_damages_nothing(make_run, most):
    """The epoch is in the log by then, and its steps in the last checkpoint."""
    folder = make_run("x", epochs=1, outcome="")
    task = json.loads((folder / "task.json").read_text())
    task["tr_params"]["max_epoch"] = most
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "m_best.pth").unlink()
    assert read_status(folder).state == "killed"
    end_start(folder, "failed: disk full")
    assert read_status(folder).state == "failed"
    end_start(folder, "complete")
    assert read_status(folder).state == "damaged"
    end_start(folder, "")
    (folder / "m_last.pth").unlink()
    assert read_status(folder).reason == "m_last.pth is gone"


def test_a_run_without_validation_has_no_figures(make_run):
    folder = make_run("x")
    (folder / "log.jsonl").write_text('{"step": 10, "epoch": 1.0, "epoch/train_loss_sheet": 1.0}\n')
    run = read_status(folder)
    assert (run.epoch, run.best_epoch, run.best_loss, run.minutes) == (1, 1, None, None)
    assert run.figures == {"sheet": Figure("dice", None, None)}


def test_runs_are_found_at_any_depth_but_not_in_volumes(make_run, tmp_path):
    wanted = [make_run("a"), make_run("b/c"), make_run("b/c/fold-1")]
    for name in ("before-2026/a", ".hidden/a", "scan.zarr/a"):
        make_run(name)
    (tmp_path / "scan.zarr" / ".zgroup").write_text("{}")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.json").write_text("{}")
    assert list(find_runs(tmp_path)) == wanted
    assert list(find_runs(wanted[0])) == wanted[:1]
