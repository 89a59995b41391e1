"""Whole trainings of a tiny network on the phantom."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import OutputError, RefusedError, RunError, TaskError
from vcmodels.reporting import Silent, StopSignals
from vcmodels.training import train
from vcmodels.training.learner import Learner
from vcmodels.training.loop import Loop
from vcmodels.training.run_folder import RunFolder


def run(task: dict, **kwargs) -> tuple[int, list[str]]:
    reporter = Silent()
    parsed, _ = parse_task(task, "task.json")
    return train(parsed, reporter=reporter, **kwargs), reporter.lines


def last(task: dict) -> dict:
    settings = task["tr_params"]
    return load_checkpoint(
        Path(settings["ckpt_out_base"]) / f"{settings['model_name']}_last.pth"
    ).state


def with_folder(task: dict, folder: Path, **settings) -> dict:
    copy = json.loads(json.dumps(task))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    return copy


def assert_same_state(a: dict, b: dict) -> None:
    for part in ("model", "ema"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), f"{part}.{name} differs"
    for key, slot in a["optimizer"]["state"].items():
        for name, value in slot.items():
            assert torch.equal(value, b["optimizer"]["state"][key][name]), f"{key} {name} differs"
    assert a["counters"] == b["counters"]


def stop_after(monkeypatch, step: int) -> None:
    """Deliver SIGTERM in the middle of the given step."""
    original = Learner.train_step

    def train_step(self, batches, **kwargs):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, **kwargs)

    monkeypatch.setattr(Learner, "train_step", train_step)


@pytest.mark.parametrize(
    ("step", "workers", "accumulation"), [(1, 0, 1), (2, 0, 2), (4, 2, 1)], ids=str
)
def test_a_stopped_run_continues_bit_for_bit(
    sheet_task, tmp_path, monkeypatch, step, workers, accumulation
):
    whole = with_folder(sheet_task, tmp_path / "whole", gradient_accumulation=accumulation)
    assert run(whole)[0] == 0
    parts = with_folder(
        sheet_task,
        tmp_path / "parts",
        gradient_accumulation=accumulation,
        num_dataloader_workers=workers,
    )
    with monkeypatch.context() as context:
        stop_after(context, step)
        code, lines = run(parts)
    assert code == 128 + signal.SIGTERM
    assert last(parts)["step"] == step + 1
    assert f"stopped at step {step + 1}, which is saved; the same command continues" in lines
    parts["tr_params"]["num_dataloader_workers"] = 0
    code, lines = run(parts)
    assert code == 0
    assert any(f"step {step + 1}" in line and "continuing" in line for line in lines)
    assert_same_state(last(whole), last(parts))


def test_a_stop_in_the_validation_is_not_kept_waiting(sheet_task, tmp_path, monkeypatch):
    sheet_task["tr_params"]["max_val_steps_per_epoch"] = 3
    whole = with_folder(sheet_task, tmp_path / "whole")
    run(whole)
    parts = with_folder(sheet_task, tmp_path / "parts")
    seen = []

    original = Learner.run

    def stopped(self, network, batch):
        if not network.training:
            seen.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(self, network, batch)

    with monkeypatch.context() as context:
        context.setattr(Learner, "run", stopped)
        assert run(parts)[0] == 128 + signal.SIGTERM
    assert len(seen) == 1
    assert (last(parts)["step"], last(parts)["epoch"]) == (3, 0)
    assert run(parts)[0] == 0
    assert_same_state(last(whole), last(parts))


@pytest.mark.parametrize(
    ("section", "key", "value", "match"),
    [
        ("dataset_config", "min_labeled_ratio", 1.0, "min_labeled_ratio: no patch qualifies"),
        ("dataset_config", "cache_file", "$UNSET_FOR_SURE/p.json", "cache_file: .* is not set"),
        ("tr_params", "tensorboard_log_dir", "$UNSET_FOR_SURE", "tensorboard_log_dir: .* not set"),
        (
            "model_config",
            "f_maps",
            [4096, 4096],
            "batch_size: a step needs about .* GiB, the cpu has",
        ),
    ],
)
def test_a_refused_task_leaves_no_folder(sheet_task, tmp_path, section, key, value, match):
    sheet_task["tr_params"]["ckpt_out_base"] = str(tmp_path / "runs" / "first")
    sheet_task[section][key] = value
    with pytest.raises(TaskError, match=match):
        run(sheet_task)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_share_a_log_folder_keep_their_curves(sheet_task, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGS", str(tmp_path / "logs"))
    for name in ("a", "b"):
        settings = {"tensorboard_log_dir": "$LOGS/all", "max_epoch": 1}
        assert run(with_folder(sheet_task, tmp_path / name, **settings))[0] == 0
    for name in ("a", "b"):
        events = EventAccumulator(str(tmp_path / "logs" / "all" / name / "tiny")).Reload()
        assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3]


def test_a_stop_in_the_first_step_leaves_at_once(sheet_task, monkeypatch):
    """It may take minutes to compile, and there is nothing to save."""
    stop_after(monkeypatch, 0)
    reporter = Silent()
    with pytest.raises(SystemExit, match="143"):
        train(parse_task(sheet_task, "task.json")[0], reporter=reporter)
    folder = sheet_task["tr_params"]["ckpt_out_base"]
    assert reporter.lines[-1] == (
        f"stopped before the first step: nothing was trained, {folder} keeps patches.json; "
        "the same command starts again"
    )
    monkeypatch.undo()
    assert run(sheet_task)[0] == 0


def test_a_kill_between_the_files_of_an_epoch_loses_none(sheet_task, tmp_path, monkeypatch):
    sheet_task["tr_params"] |= {"max_epoch": 1}
    whole = with_folder(sheet_task, tmp_path / "whole")
    run(whole)
    for count in range(3):
        killed = with_folder(sheet_task, tmp_path / f"killed{count}")
        with monkeypatch.context() as context:
            context.setattr(Loop, "save", save_and_die_after(count, Loop.save))
            with pytest.raises(KeyboardInterrupt):
                run(killed)
        assert run(killed)[0] == 0
        for name in ("tiny_best.pth", "tiny_last.pth", "tiny_1.pth"):
            states = [
                load_checkpoint(tmp_path / f / name).state for f in ("whole", f"killed{count}")
            ]
            assert_same_state(*states)
        assert not (tmp_path / f"killed{count}" / "tiny_1.previous.pth").exists()
        log = (tmp_path / f"killed{count}" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [3]


def save_and_die_after(count, save):
    saved = []

    def die(self, path, *calibration):
        if len(saved) == count:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path, *calibration)

    return die


def test_what_killed_saves_left_is_swept_at_the_start(sheet_task):
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    folder.mkdir()
    ours = [".tiny_last.pth.vcmodels-x1y2", ".tiny_last.previous.pth.vcmodels-4711"]
    foreign = [".tiny_last.pth.partial", "tiny_last.pth.vcmodels-old", "tiny_1.pth.backup"]
    for name in ours + foreign:
        (folder / name).touch()
    run(sheet_task)
    assert {n for n in ours + foreign if (folder / n).exists()} == set(foreign)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(sheet_task, tmp_path, task_file):
    # Another number of threads sums in another order, and this process may have its own.
    sheet_task["tr_params"]["threads"] = torch.get_num_threads()
    whole = with_folder(sheet_task, tmp_path / "whole", max_epoch=4)
    assert run(whole)[0] == 0
    killed = with_folder(sheet_task, tmp_path / "killed", max_epoch=4)
    checkpoint = tmp_path / "killed" / "tiny_last.pth"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, root / "train.py", task_file(killed)], stderr=subprocess.DEVNULL
    ) as worker:
        while not checkpoint.exists() and worker.poll() is None:
            time.sleep(0.01)
        worker.send_signal(signal.SIGKILL)
    assert worker.returncode == -signal.SIGKILL
    assert last(killed)["step"] < 12
    assert run(killed)[0] == 0
    assert_same_state(last(whole), last(killed))


def test_a_finished_run_is_complete_and_restart_moves_it_aside(sheet_task, tmp_path):
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1}
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    assert run(sheet_task)[0] == 0
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}
    code, lines = run(sheet_task)
    assert (code, lines[-1]) == (0, f"{folder}: already complete (1 epochs)")
    assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}
    mine = ["tiny_7.pth", "scan.zarr", "my_task.json", "best.pth", "fold_x"]
    for name in mine:
        (folder / name).mkdir()
    _, lines = run(sheet_task, restart=True)
    aside = next(folder.glob("before-*"))
    assert {p.name for p in aside.iterdir()} == set(before)
    assert all((folder / name).is_dir() for name in mine)
    assert last(sheet_task)["step"] == 1


def test_the_run_folder_holds_what_made_it(sheet_task):
    run(sheet_task)
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "task.json", "splits.json", "patches.json", "log.jsonl", "tensorboard",
        "tiny_last.pth", "tiny_best.pth", "tiny_1.pth", "tiny_2.pth",
    }  # fmt: skip
    parsed, _ = parse_task(json.loads((folder / "task.json").read_text()), "task.json")
    assert parsed == parse_task(sheet_task, "task.json")[0]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [3, 6]
    events = EventAccumulator(str(folder / "tensorboard" / "tiny"))
    events.Reload()
    assert {"train/loss", "train/loss_sheet", "val/dice_sheet", "lr", "speed/data_wait"} <= set(
        events.Tags()["scalars"]
    )
    assert set(events.Tags()["images"]) == {"images/sheet", "images/normals"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("initial_lr", 0.5), ("batch_size", 1), ("seed", 7), ("patch_size", [16, 16, 32])],
)
def test_a_changed_task_is_named_and_refused(sheet_task, key, value):
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1}
    run(sheet_task)
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    before = (folder / "tiny_last.pth").read_bytes()
    sheet_task["tr_params"][key] = value
    with pytest.raises(TaskError, match=f"tr_params.{key}"):
        run(sheet_task)
    assert (folder / "tiny_last.pth").read_bytes() == before


def test_more_epochs_continue_a_finished_run(sheet_task):
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 2}
    run(sheet_task)
    sheet_task["tr_params"] |= {"max_epoch": 2}
    assert run(sheet_task)[0] == 0
    assert last(sheet_task)["step"] == 4


def test_weights_only_starts_at_step_zero(sheet_task, tmp_path):
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    run(first)
    source = str(tmp_path / "first" / "tiny_best.pth")
    second = with_folder(
        sheet_task, tmp_path / "second", max_epoch=1, max_steps_per_epoch=1, initial_lr=1e-7,
        checkpoint_path=source, load_weights_only=True,
    )  # fmt: skip
    run(second)
    assert last(second)["step"] == 1
    for name, value in load_checkpoint(Path(source)).state["ema"].items():
        torch.testing.assert_close(value, last(second)["ema"][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "SGD"}, "optimizer: is SGD, .*first_last.pth was trained with AdamW"),
        ({"max_epoch": 1}, "max_epoch: is 1, .* has 1 epochs already"),
        ({"max_steps_per_epoch": 3}, "max_steps_per_epoch: is 3, .* was trained with 1"),
        ({"checkpoint_path": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
    ids=["optimizer", "epochs", "steps", "missing"],
)
def test_a_checkpoint_that_cannot_be_continued_is_refused_before_any_work(
    sheet_task, tmp_path, settings, message
):
    first = {"model_name": "first", "max_epoch": 1, "max_steps_per_epoch": 1}
    run(with_folder(sheet_task, tmp_path / "first", **first))
    given = {"checkpoint_path": str(tmp_path / "first" / "first_last.pth")}
    second = with_folder(sheet_task, tmp_path / "second", max_steps_per_epoch=1, **given)
    second["tr_params"] |= settings
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "notes.txt").touch()
    with pytest.raises(RefusedError, match=message):
        run(second, restart=True)
    assert {p.name for p in (tmp_path / "second").iterdir()} == {".lock", "notes.txt"}


def test_a_second_training_on_the_folder_is_refused(sheet_task):
    parsed, _ = parse_task(sheet_task, "task.json")
    with (
        RunFolder(parsed.run_dir, "tiny"),
        pytest.raises(OutputError, match=rf"in use by pid {os.getpid()} on host"),
    ):
        run(sheet_task)


def test_a_loss_that_is_not_finite_skips_the_step_and_names_the_patch(sheet_task, monkeypatch):
    original = Learner.run

    def run_network(self, network, batch):
        factor = float("nan") if self.step == 1 and self.network.training else 1.0
        outputs = original(self, network, batch)
        return {
            name: tuple(logits * factor for logits in levels) for name, levels in outputs.items()
        }

    monkeypatch.setattr(Learner, "run", run_network)
    code, lines = run(sheet_task)
    assert code == 0
    assert any(line.startswith("step 2 skipped") and "(z, y, x)" in line for line in lines)
    state = last(sheet_task)
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert {int(slot["step"]) for slot in state["optimizer"]["state"].values()} == {5}


def test_too_many_bad_steps_end_the_run_and_keep_the_checkpoint(sheet_task, monkeypatch):
    sheet_task["tr_params"] |= {"max_steps_per_epoch": 20, "max_epoch": 1}
    original = Learner.run

    def run_network(self, network, batch):
        outputs = original(self, network, batch)
        return {
            name: tuple(logits * torch.nan for logits in levels) for name, levels in outputs.items()
        }

    monkeypatch.setattr(Learner, "run", run_network)
    with pytest.raises(RunError, match="10 steps in a row"):
        run(sheet_task)


def test_a_head_without_data_is_an_error(sheet_task, monkeypatch):
    del sheet_task["dataset_config"]["volume_paths"][0]["ref_label"]  # so that patches are found
    sheet_task["dataset_config"]["targets"]["sheet"]["ignore_label"] = [0, 1, 2]
    with pytest.raises(TaskError, match=r"targets\.sheet: no voxel counts; all of it is ignored"):
        run(sheet_task)
    module = sys.modules["vcmodels.training.train"]  # the package has a function of that name
    monkeypatch.setattr(module, "report_misfits", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"targets\.sheet: not one valid label voxel in epoch 1"):
        run(sheet_task)


DECOYS = [
    "tiny_1.pth.backup", "tiny_x.pth", "other_1.pth", "tiny_10.pth", "tiny_01.pth", "tiny_2.pth",
    "tiny_\u0663.pth",
]  # fmt: skip


def test_old_numbered_checkpoints_go_and_nothing_else(sheet_task):
    """Whatever its name is: only what the run has written itself."""
    sheet_task["tr_params"] |= {
        "max_epoch": 4, "max_steps_per_epoch": 1, "keep_checkpoints": 1,
    }  # fmt: skip
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    folder.mkdir(parents=True)
    for name in DECOYS:
        (folder / name).write_text("mine")
    run(sheet_task)
    assert all((folder / name).read_text() == "mine" for name in DECOYS)
    ours = {p.name for p in folder.glob("tiny_[0-9]*.pth")} - set(DECOYS)
    assert ours == {"tiny_4.pth"}
    (folder / "tiny_3.pth").write_text("mine")
    sheet_task["tr_params"]["max_epoch"] = 5
    run(sheet_task)
    assert (folder / "tiny_3.pth").read_text() == "mine"
    ours = {p.name for p in folder.glob("tiny_[0-9]*.pth")} - {*DECOYS, "tiny_3.pth"}
    assert ours == {"tiny_5.pth"}


def test_a_run_from_before_checkpoints_were_recorded_goes_on_deleting_its_own(sheet_task):
    sheet_task["tr_params"] |= {"max_epoch": 2, "max_steps_per_epoch": 1, "keep_checkpoints": 1}
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    run(sheet_task)
    (folder / "checkpoints.json").unlink()
    (folder / "tiny_9.pth").write_text("mine")
    sheet_task["tr_params"]["max_epoch"] = 3
    run(sheet_task)
    assert {p.name for p in folder.glob("tiny_[0-9].pth")} == {"tiny_3.pth", "tiny_9.pth"}


def test_a_signal_before_the_loop_leaves_at_once():
    with StopSignals() as stop:
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130


def test_the_loop_saves_now_and_then_within_an_epoch(sheet_task, monkeypatch):
    monkeypatch.setattr("vcmodels.training.loop.SAVE_EVERY_SECONDS", 0.0)
    saved = []
    original = Loop.save

    def save(self, path, *more):
        saved.append((self.learner.step, path.name))
        original(self, path, *more)

    monkeypatch.setattr(Loop, "save", save)
    sheet_task["tr_params"]["max_epoch"] = 1
    run(sheet_task)
    assert [s for s in saved if s[1] == "tiny_last.pth"][:3] == [
        (1, "tiny_last.pth"), (2, "tiny_last.pth"), (3, "tiny_last.pth"),
    ]  # fmt: skip


def test_what_may_change_the_bits_is_told_on_resuming(sheet_task):
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1, "threads": 1}
    run(sheet_task)
    sheet_task["tr_params"] |= {"max_epoch": 2, "threads": 2}
    try:
        _, lines = run(sheet_task)
    finally:
        torch.set_num_threads(1)
    assert "threads 2 instead of 1: may no longer be bit-identical" in lines


def test_max_minutes_stops_within_an_epoch_and_the_run_continues(sheet_task, tmp_path):
    whole = with_folder(sheet_task, tmp_path / "whole")
    run(whole)
    parts = with_folder(sheet_task, tmp_path / "parts", max_minutes=1e-9)
    code, lines = run(parts)
    assert code == 0
    assert "stopped by max_minutes at step 1, which is saved; the same command continues" in lines
    del parts["tr_params"]["max_minutes"]
    run(parts)
    assert_same_state(last(whole), last(parts))


def test_what_the_time_ends_with_is_validated_predicts_and_leaves_no_trace(sheet_task, tmp_path):
    whole = with_folder(sheet_task, tmp_path / "whole")
    run(whole)
    parts = with_folder(sheet_task, tmp_path / "parts", max_minutes=1e-9)
    _, lines = run(parts)
    assert any(line.startswith("validated at step 1: the best so far") for line in lines)
    best = tmp_path / "parts" / "tiny_best.pth"
    assert load_checkpoint(best).state["step"] == 1
    del parts["tr_params"]["max_minutes"]
    run(parts)
    assert_same_state(last(whole), last(parts))
    ended = [
        load_checkpoint(tmp_path / part / "tiny_best.pth").state for part in ("whole", "parts")
    ]
    assert ended[0]["step"] == ended[1]["step"]
    assert_same_state(*ended)


def test_a_signal_ends_a_run_without_a_validation(sheet_task, monkeypatch):
    stop_after(monkeypatch, 1)
    _, lines = run(sheet_task)
    assert not any(line.startswith("validated") for line in lines)
    assert not (Path(sheet_task["tr_params"]["ckpt_out_base"]) / "tiny_best.pth").exists()


def test_steps_end_early_enough_for_the_validation(sheet_task, monkeypatch):
    """Each step takes a minute of a clock of its own, a batch of the validation half of one."""
    clock, original = [0.0], Learner.train_step

    def train_step(self, batches, **kwargs):
        clock[0] += 60
        return original(self, batches, **kwargs)

    monkeypatch.setattr(Learner, "train_step", train_step)
    slow = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0])
    for module in ("loop", "progress", "train"):
        monkeypatch.setattr(sys.modules[f"vcmodels.training.{module}"], "time", slow)
    sheet_task["tr_params"] |= {"max_minutes": 8.1, "max_steps_per_epoch": 20}
    reporter = Silent()
    assert train(parse_task(sheet_task, "task.json")[0], reporter=reporter) == 0
    patches = last(sheet_task)["validation_patches"]
    batches = patches / sheet_task["tr_params"]["batch_size"]
    assert 60 * (last(sheet_task)["step"] + 0.5 * batches) == pytest.approx(60 * 8.1, abs=60)
    assert any(line.startswith("validated at step") for line in reporter.lines)


def test_a_run_is_lengthened_without_a_trace_where_the_rate_is_constant(sheet_task, tmp_path):
    whole = with_folder(sheet_task, tmp_path / "whole", max_epoch=3)
    run(whole)
    for epochs in (1, 3):
        parts = with_folder(sheet_task, tmp_path / "parts", max_epoch=epochs)
        run(parts)
    assert_same_state(last(whole), last(parts))


def continued_from(task: dict, folder: Path, source: Path, **settings) -> dict:
    return with_folder(task, folder, checkpoint_path=str(source), **settings)


def test_another_runs_checkpoint_is_continued_with_its_intensities(sheet_task, tmp_path):
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    first["dataset_config"]["normalization"] = "minmax"
    run(first)
    source = tmp_path / "first" / "tiny_last.pth"
    second = continued_from(sheet_task, tmp_path / "second", source, max_epoch=2)
    code, lines = run(second)
    assert code == 0
    assert any(line.startswith(f"continuing {source} at epoch 2, step 3") for line in lines)
    assert "normalization: minmax per volume, as the weights are used to" in lines
    assert last(second)["task"]["dataset_config"]["normalization"]["scheme"] == "minmax"
    assert last(second)["step"] == 6
    assert last(second)["normalization"] == last(first)["normalization"]
    assert (tmp_path / "second" / "tiny_best.pth").exists()


def test_a_run_goes_on_in_another_precision(sheet_task):
    sheet_task["tr_params"]["max_epoch"] = 1
    run(sheet_task)
    task, _ = parse_task(sheet_task, "task.json")
    learner = Learner(build(task), task.dataset_config.targets, task.tr_params, torch.device("cpu"))
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True)
    learner.restore(last(sheet_task), "last")  # its scaler was off
    assert learner.scaler.get_scale() == 65536


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(sheet_task, monkeypatch):
    def train_step(self, batches, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Learner, "train_step", train_step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(sheet_task)


def build(task):
    return task.model.build(1, {"sheet": 1, "normals": 3}, (16, 16, 16), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "take",
    [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**62)],
    ids=["torch", "python"],
)
def test_out_of_memory_is_one_line_with_a_remedy(sheet_task, monkeypatch, take):
    def train_step(self, batches, **kwargs):
        take()

    monkeypatch.setattr(Learner, "train_step", train_step)
    with pytest.raises(RunError, match=r"batch_size: out of memory with 2 patches of \[16, 16"):
        run(sheet_task)


def test_device_curves_and_pace_are_reported_once_and_the_bar_names_the_phase(sheet_task):
    class Bars(Silent):
        def __init__(self):
            super().__init__()
            self.shown = []

        @contextmanager
        def bar(self, name, total):
            with super().bar(name, total):
                yield lambda _amount, text: self.shown.append((name, text))

    reporter = Bars()
    sheet_task["tr_params"]["max_epoch"] = 3
    assert train(parse_task(sheet_task, "task.json")[0], reporter=reporter) == 0
    lines, texts = reporter.lines, [text for name, text in reporter.shown if name == "training"]
    assert re.fullmatch(r".*GiB memory free; torch threads \d+, cores \d+", lines[0])
    curves = f"curves: tensorboard --logdir {sheet_task['tr_params']['ckpt_out_base']}/tensorboard"
    (pace,) = [n for n, line in enumerate(lines) if "patches/s; an epoch of 3 steps" in line]
    (epoch,) = [n for n, line in enumerate(lines) if line.startswith("epoch 1/3")]
    assert lines.index(curves) < pace < epoch
    phases = [text for text in texts if text and "patches/s" not in text]
    starting = ["starting workers and reading the first patches", "first step"]
    assert phases == [*starting, *["validating"] * 3]
