"""Runs that start from another run's weights, freeze parts of them, or mix patches."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_world import start
from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.training.learner import Learner
from vcmodels.volumes import create_array, open_volume


def run(task: dict) -> tuple[int, list[str]]:
    reporter = Silent()
    return train(parse_task(task, "task.json")[0], reporter=reporter), reporter.lines


def with_folder(task: dict, folder: Path, **settings) -> dict:
    copy = json.loads(json.dumps(task))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    return copy


def last(task: dict) -> dict:
    return load_checkpoint(Path(task["tr_params"]["ckpt_out_base"]) / "tiny_last.pth").state


def losses(task: dict) -> list[dict]:
    log = Path(task["tr_params"]["ckpt_out_base"]) / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def assert_same_state(a: dict, b: dict) -> None:
    for part in ("model", "ema"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), f"{part}.{name} differs"
    for key, slot in a["optimizer"]["state"].items():
        for name, value in slot.items():
            assert torch.equal(value, b["optimizer"]["state"][key][name]), f"{key} {name} differs"
    assert a["counters"] == b["counters"]


def stop_at(monkeypatch, step: int) -> None:
    """Ask the process to stop when the 0-based `step` begins."""
    original = Learner.train_step

    def stop(self, *args, **kwargs):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "train_step", stop)


@pytest.fixture
def source(sheet_task, tmp_path) -> Path:
    """The best checkpoint of a run on the sheet alone."""
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    del first["dataset_config"]["targets"]["normals"]
    del first["dataset_config"]["volume_paths"][0]["normals"]
    run(first)
    return tmp_path / "first" / "tiny_best.pth"


def tuned(task: dict, folder: Path, source: Path, **settings) -> dict:
    return with_folder(
        task, folder, checkpoint_path=str(source), load_weights_only=True, **settings
    )


def test_a_new_head_learns_on_an_old_encoder_that_stays(sheet_task, tmp_path, source):
    task = tuned(sheet_task, tmp_path / "tuned", source, freeze=["encoder", "heads.sheet"])
    code, lines = run(task)
    assert code == 0
    assert lines.index(
        f"weights of {source}: taken: encoder, decoders.sheet, heads.sheet; "
        "new and random: decoders.normals, heads.normals"
    )
    old, new = load_checkpoint(source).state["ema"], last(task)
    frozen = {name for name in old if name.startswith(("encoder.", "heads.sheet."))}
    for part in ("model", "ema"):
        same = {name for name in old if torch.equal(old[name], new[part][name])}
        assert same == frozen, part
    torch.manual_seed(0)
    parsed = parse_task(task, "task.json")[0]
    fresh = parsed.model.build(1, parsed.heads, (16, 16, 16), (1.0, 1.0, 1.0)).state_dict()
    for name in fresh.keys() - old.keys():
        assert not torch.equal(fresh[name], new["model"][name]), name
    assert new["normalization"] == load_checkpoint(source).state["normalization"]


def test_the_average_of_a_frozen_part_stays_where_it_was(sheet_task, tmp_path):
    """Of a training that goes on, where it differs from the weights."""
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    run(first)
    source = tmp_path / "first" / "tiny_last.pth"
    second = with_folder(
        sheet_task, tmp_path / "second", max_epoch=2, checkpoint_path=str(source),
        freeze=["encoder"],
    )  # fmt: skip
    run(second)
    before, after = last(first)["ema"], last(second)["ema"]
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("encoder.")}


def test_frozen_parts_learn_after_their_epochs_and_a_stopped_run_continues(
    sheet_task, tmp_path, source, monkeypatch
):
    settings = {"freeze": ["encoder"], "freeze_epochs": 1, "optimizer": "SGD", "initial_lr": 0.01}
    whole = tuned(sheet_task, tmp_path / "whole", source, **settings)
    run(whole)
    old = load_checkpoint(source).state["ema"]
    after_one = load_checkpoint(tmp_path / "whole" / "tiny_1.pth").state["model"]
    encoder = [name for name in old if name.startswith("encoder.")]
    assert all(torch.equal(old[name], after_one[name]) for name in encoder)
    assert not any(torch.equal(old[name], last(whole)["model"][name]) for name in encoder)
    for step in (1, 4):
        parts = tuned(sheet_task, tmp_path / f"parts{step}", source, **settings)
        with monkeypatch.context() as context:
            stop_at(context, step)
            assert run(parts)[0] == 128 + signal.SIGTERM
        assert run(parts)[0] == 0
        assert_same_state(last(whole), last(parts))


def test_another_number_of_channels_needs_a_partial_load(sheet_task, tmp_path, source):
    sheet_task["dataset_config"]["volume_paths"][0]["input"] = [
        sheet_task["dataset_config"]["volume_paths"][0]["input"]
    ] * 2
    task = tuned(sheet_task, tmp_path / "tuned", source, max_epoch=1)
    with pytest.raises(CheckpointError, match=r'is \[4, 1, .*, here is \[4, 2, .*"partial"'):
        run(task)
    assert not (tmp_path / "tuned").exists()
    task["tr_params"]["load_weights_only"] = "partial"
    code, lines = run(task)
    assert code == 0
    assert any("taken: encoder (in part), decoders.sheet" in line for line in lines)
    (stats,) = last(task)["normalization"]["volumes"].values()
    assert len(stats) == 2


def written(folder: Path, values: np.ndarray) -> str:
    array = create_array(
        str(folder / "other.zarr"),
        "ct",
        shape=values.shape,
        chunks=(16, 16, 32),
        dtype=values.dtype,
    )
    array.write(Box((0, 0, 0), values.shape), values[None])
    return array.location


def statistics(task: dict) -> list[tuple[float, float]]:
    volumes = last(task)["normalization"]["volumes"].values()
    return [(channel["mean"], channel["sd"]) for stats in volumes for channel in stats]


@pytest.mark.parametrize("name", ["scan", "another"])
def test_a_volume_has_statistics_of_its_own_whatever_its_name(sheet_task, tmp_path, name):
    """Also where a volume of that name, of another gain, was trained on before."""
    entry = sheet_task["dataset_config"]["volume_paths"][0]
    entry["name"] = "scan"
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    run(first)
    raw = open_volume(entry["input"])
    brighter = raw.read(raw.box)[0].astype(np.uint16) * 50 + 7000
    entry |= {"input": written(tmp_path, brighter), "name": name}
    task = tuned(
        sheet_task, tmp_path / "tuned", tmp_path / "first" / "tiny_best.pth", max_epoch=1
    )  # fmt: skip
    code, lines = run(task)
    assert code == 0
    assert "normalization: zscore per volume, as the weights are used to" in lines
    (start,) = json.loads((tmp_path / "first" / "environment.json").read_text())["starts"]
    assert (start["normalization"]["scheme"], start["normalization"]["per"]) == ("zscore", "volume")
    assert start["normalization"]["reason"].startswith("one training volume does not show")
    ((mean, sd),), ((now, spread),) = statistics(first), statistics(task)
    assert (now, spread) == pytest.approx((mean * 50 + 7000, sd * 50))


def test_a_normalization_that_the_weights_are_not_used_to_is_refused(sheet_task, tmp_path, source):
    task = tuned(sheet_task, tmp_path / "tuned", source, max_epoch=1)
    task["dataset_config"]["normalization"] = {"scheme": "percentile", "per": "volume"}
    with pytest.raises(
        TaskError, match=r"normalization: scheme is percentile, the .* leave it out"
    ):
        run(task)
    assert not (tmp_path / "tuned").exists()
    for block in (None, {"per": "volume"}, {"scheme": "zscore", "per": "auto"}):
        task["tr_params"]["ckpt_out_base"] = str(tmp_path / f"tuned{block}")
        task["dataset_config"].pop("normalization")
        task["dataset_config"] |= {"normalization": block} if block else {}
        assert run(task)[0] == 0
        assert last(task)["task"]["dataset_config"]["normalization"]["per"] == "volume"
        assert run(task)[1][-1].endswith("already complete (1 epochs)")
        task["dataset_config"].setdefault("normalization", None)


def test_global_statistics_of_another_scale_are_told(sheet_task, tmp_path):
    sheet_task["dataset_config"]["normalization"] = {"per": "global"}
    first = with_folder(sheet_task, tmp_path / "first", max_epoch=1)
    run(first)
    source = tmp_path / "first" / "tiny_best.pth"
    entry = sheet_task["dataset_config"]["volume_paths"][0]
    raw = open_volume(entry["input"])
    brighter = raw.read(raw.box)[0].astype(np.uint16) * 50 + 7000
    for path, count in ((entry["input"], 0), (written(tmp_path, brighter), 1)):
        entry["input"] = path
        _, lines = run(tuned(sheet_task, tmp_path / f"tuned{count}", source, max_epoch=1))
        found = [line for line in lines if "by the statistics of other volumes; bring" in line]
        assert len(found) == count


def test_a_run_of_before_keeps_its_global_statistics(sheet_task, tmp_path):
    """It was begun when those were what a task got that named none."""
    old = with_folder(sheet_task, tmp_path / "run", max_epoch=1)
    old["dataset_config"]["normalization"] = {"scheme": "zscore", "per": "global"}
    run(old)
    before = last(old)["normalization"]
    for stat in before["channels"]:
        del stat["background"]
    del before["choice"]
    path = tmp_path / "run" / "tiny_last.pth"
    save_checkpoint(path, last(old) | {"normalization": before})
    assert run(with_folder(sheet_task, tmp_path / "run", max_epoch=2))[0] == 0
    assert last(old)["epoch"] == 2
    assert last(old)["task"]["dataset_config"]["normalization"]["per"] == "global"
    (now,) = last(old)["normalization"]["channels"]
    assert now == before["channels"][0] | {"background": None}


def test_an_unknown_part_is_refused_before_any_work(sheet_task, tmp_path):
    task = with_folder(sheet_task, tmp_path / "run", freeze=["encoder.level"])
    with pytest.raises(TaskError, match=r'freeze: "encoder\.level" is no part .* are encoder, dec'):
        run(task)
    assert not (tmp_path / "run").exists()


def test_freezing_random_weights_is_told(sheet_task, tmp_path):
    _, lines = run(with_folder(sheet_task, tmp_path / "run", freeze=["encoder"], max_epoch=1))
    assert any(line.startswith("encoder: frozen with random weights") for line in lines)


def test_a_mixed_run_continues_bit_for_bit(sheet_task, tmp_path, monkeypatch):
    settings = {"mixup": {"alpha": 1.0, "manifold": True}, "gradient_accumulation": 2}
    whole = with_folder(sheet_task, tmp_path / "whole", **settings)
    run(whole)
    parts = with_folder(sheet_task, tmp_path / "parts", **settings)
    with monkeypatch.context() as context:
        stop_at(context, 4)
        assert run(parts)[0] == 128 + signal.SIGTERM
    run(parts)
    assert_same_state(last(whole), last(parts))
    plain = with_folder(sheet_task, tmp_path / "plain", gradient_accumulation=2)
    run(plain)
    key = "epoch/train_loss_normals"
    assert losses(whole)[-1][key] > losses(plain)[-1][key] + 1e-3


def test_batches_that_are_not_mixed_are_those_of_a_plain_run(sheet_task, tmp_path):
    """With a share of 1: what is added is the loss against the other labels, times 0."""
    plain = with_folder(sheet_task, tmp_path / "plain")
    run(plain)
    never = with_folder(sheet_task, tmp_path / "never", mixup={"p": 1e-9})
    run(never)
    assert_same_state(last(plain), last(never))


@pytest.mark.slow
def test_two_processes_release_frozen_parts_and_stop_early_as_one(sheet_task, tmp_path, source):
    settings = {
        "freeze": ["encoder", "heads.sheet"], "freeze_epochs": 1, "threads": 1, "max_epoch": 5,
        "early_stopping": {"metric": "val/dice_sheet", "patience": 2, "min_delta": 1.0},
        "optimizer": "SGD", "initial_lr": 0.01,  # a step in proportion to what rounding leaves
    }  # fmt: skip
    one = tuned(sheet_task, tmp_path / "one", source, **settings)
    run(one)
    two = tuned(sheet_task, tmp_path / "two", source, **settings)
    running = start(two, tmp_path / "job")
    out, err = running.communicate(timeout=800)
    assert running.returncode == 0, err
    assert out.count("stopped early after epoch 3: val/dice_sheet has not improved") == 1
    assert last(two)["epoch"] == last(one)["epoch"] == 3
    before, a, b = (load_checkpoint(source).state, last(one), last(two))
    for part in ("model", "ema"):
        shared = [name for name in a[part] if name in before[part]]
        learnt, apart = (
            torch.cat([(state[part][n] - other[part][n]).double().flatten() for n in shared]).norm()
            for state, other in ((a, before), (b, a))
        )
        assert apart < 1e-2 * learnt, part


def test_a_start_that_a_run_has_no_use_for_is_reported(sheet_task, tmp_path, source):
    task = with_folder(sheet_task, tmp_path / "run")
    run(task)
    task["tr_params"] |= {"max_epoch": 3, "checkpoint_path": str(source), "load_weights_only": True}
    _, lines = run(task)
    keys = ("checkpoint_path", "load_weights_only")
    for key in keys:
        assert [line for line in lines if line.startswith(f"note: tr_params.{key}: has no effect")]
    tuned = with_folder(task, tmp_path / "tuned")
    for _ in range(2):  # used by the first start, and repeated by the second
        assert not [line for line in run(tuned)[1] if "has no effect" in line]
