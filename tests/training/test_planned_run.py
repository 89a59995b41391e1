"""A run whose patch and batch size are planned keeps them, wherever it is continued."""

import json

import pytest

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import load_task
from vcmodels.errors import TaskError
from vcmodels.inference import load_predictor
from vcmodels.patches import resolve as patch_sizes
from vcmodels.patches.resolve import recorded_task, resolve
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.training import train


@pytest.fixture
def planned_task(sheet_task, task_file, monkeypatch):
    """Loads the task without sizes, as on a machine with so many bytes of memory."""
    settings = sheet_task["tr_params"]
    del settings["patch_size"], settings["batch_size"]
    settings |= {"split_guard": 0, "max_epoch": 1, "max_steps_per_epoch": 2, "device": "cpu"}

    def load(memory: int, *overrides: str):
        monkeypatch.setattr(patch_sizes, "memory_bytes", lambda _: memory)
        return load_task(task_file(sheet_task), overrides).task

    return load


def sizes(task) -> tuple:
    return task.tr_params.patch_size, task.tr_params.batch_size


def test_a_continued_run_takes_its_sizes_from_its_checkpoint(planned_task):
    reporter = Silent()
    task = planned_task(64_000_000)
    assert train(task, reporter=reporter) == 0
    (said,) = [line for line in reporter.lines if line.startswith("patch_size")]
    assert said.endswith("planned, `vcmodels plan` says why")
    saved = load_checkpoint(task.run_dir / "tiny_last.pth").state
    written = json.loads((task.run_dir / "task.json").read_text())
    assert written["tr_params"] == saved["task"]["tr_params"]
    patch, batch = written["tr_params"]["patch_size"], written["tr_params"]["batch_size"]
    assert patch == saved["patch_size"]
    first = resolve(planned_task(64_000_000), recorded=None).task
    assert sizes(first) == (tuple(patch), batch)

    bigger = planned_task(640_000_000, "tr_params.max_epoch=2", "tr_params.memory_gb=auto")
    anew = resolve(bigger, recorded=None).task
    assert sizes(anew) != sizes(first)
    (task.run_dir / "task.json").unlink()  # the checkpoint alone decides
    assert train(bigger, reporter=reporter) == 0
    assert reporter.lines.count(f"patch_size {patch}, batch_size {batch}: as the run has them") == 1
    after = load_checkpoint(task.run_dir / "tiny_last.pth").state
    assert after["task"]["tr_params"]["patch_size"] == patch
    assert (after["step"], after["patch_size"]) == (4, patch)
    assert recorded_task(Run(bigger.run_dir)).tr_params.patch_size == tuple(patch)
    assert load_predictor(task.run_dir).patch == tuple(patch)

    assert train(bigger, reporter=reporter, restart=True) == 0
    assert load_checkpoint(task.run_dir / "tiny_last.pth").state["patch_size"] == list(
        anew.tr_params.patch_size
    )


def test_a_size_that_is_given_must_be_that_of_the_run(planned_task):
    train(planned_task(64_000_000), reporter=Silent())
    with pytest.raises(TaskError, match=r"^tr_params\.batch_size: differs from the run"):
        train(planned_task(64_000_000, "tr_params.batch_size=7"), reporter=Silent())


def test_what_no_patch_fits_is_refused_and_leaves_no_folder(planned_task):
    task = planned_task(64_000_000, "tr_params.memory_gb=1e-6")
    with pytest.raises(TaskError, match=r"^tr_params\.memory_gb: .*smallest patches .* need"):
        train(task, reporter=Silent())
    assert not task.run_dir.exists()
