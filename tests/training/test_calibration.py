"""Temperatures: which voxels they are fitted to, and what of a run keeps them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_fine_tuning import assert_same_state, stop_at, with_folder
from vcmodels.checkpoint import (
    build_network,
    load_checkpoint,
    previous_generation,
    save_checkpoint,
)
from vcmodels.config import parse_task
from vcmodels.config.effects import effect_notes
from vcmodels.errors import CheckpointError
from vcmodels.inference import Predictor, load_predictor
from vcmodels.metrics.calibration import fit_temperature
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.training.calibration import SAMPLED, fit_heads, sample_logits

SHAPE = (16, 32, 64)


def run(task: dict) -> tuple[int, list[str]]:
    reporter = Silent()
    return train(parse_task(task, "task.json")[0], reporter=reporter), reporter.lines


@pytest.fixture(scope="module")
def calibrated_task(phantom, tmp_path_factory) -> dict:
    """Of a run that is complete."""
    labels = {"sheet": str(phantom / "sheet"), "sides": str(phantom / "sheet")}
    volume = {"input": str(phantom / "ct"), **labels, "ref_label": "sheet"}
    task = {
        "tr_params": {
            "model_name": "tiny", "patch_size": [16, 16, 16], "batch_size": 1, "tr_val_split": 0.7,
            "max_steps_per_epoch": 2, "max_val_steps_per_epoch": 1, "max_epoch": 2, "amp": "off",
            "num_dataloader_workers": 0, "compile": False, "device": "cpu", "calibrate": True,
        },
        "model_config": {"f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {
            "min_bbox_percent": 0.1, "min_labeled_ratio": 0.01, "volume_paths": [volume],
            "targets": {
                "sheet": {"ignore_label": 2},
                "sides": {"kind": "multiclass", "channels": 2, "ignore_label": 2},
            },
        },
    }  # fmt: skip
    task = with_folder(task, tmp_path_factory.mktemp("calibrated") / "run")
    assert run(task)[0] == 0
    return task


@pytest.fixture
def copied(calibrated_task, tmp_path):
    """The same in another folder, where nothing was trained."""
    return lambda name="run", **keys: with_folder(calibrated_task, tmp_path / name, **keys)


def state_of(task: dict, name: str = "last") -> dict:
    folder = Path(task["tr_params"]["ckpt_out_base"])
    return load_checkpoint(folder / f"tiny_{name}.pth").state


def test_samples_are_of_valid_voxels_spread_over_all_axes():
    places = torch.arange(float(np.prod(SHAPE))).view(1, *SHAPE)
    valid = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.3
    logits, label = sample_logits(places, places, valid)
    assert logits.shape == label.shape == (SAMPLED, 1)
    assert torch.equal(logits, label)
    chosen = logits[:, 0].long()
    assert valid.flatten()[chosen].all()
    assert len(set(chosen.tolist())) == SAMPLED
    # A constant step, here 8, through rows of 64 voxels would meet the same columns of all.
    logits, _ = sample_logits(places, places, valid | True)
    chosen = logits[:, 0].long()
    for axis, counts in zip(
        (64, 32, 16), (chosen % 64, chosen // 64 % 32, chosen // 2048), strict=True
    ):
        shares = torch.bincount(counts, minlength=axis).float() / SAMPLED * axis
        assert shares.min() > 0.5
        assert shares.max() < 1.5


def test_few_voxels_are_all_taken_channels_of_masks_apart_and_classes_together():
    logits, label = torch.randn(3, 2, 3, 4), (torch.rand(3, 2, 3, 4) > 0.5).float()
    valid = torch.rand(1, 2, 3, 4) > 0.4
    found, wanted = sample_logits(logits, label, valid)
    where = valid.expand_as(label)
    assert torch.equal(found[:, 0], logits[where])
    assert torch.equal(wanted[:, 0], label[where])
    classes = torch.randint(0, 3, (1, 2, 3, 4)).float()
    found, wanted = sample_logits(logits, classes, valid)
    assert torch.equal(found, logits[:, valid[0]].T)
    assert torch.equal(wanted[:, 0], classes[valid])


def test_heads_without_a_voxel_that_is_known_get_no_temperature():
    logits, label = torch.randn(20, 1), (torch.rand(20, 1) > 0.5).float()
    broken = torch.cat([logits, torch.full((1, 1), torch.nan)])
    samples = {
        "whole": [(logits[:9], label[:9]), (logits[9:], label[9:])],
        "broken": [(broken, torch.cat([label, label[:1]]))],
        "lost": [(torch.full((3, 1), torch.inf), label[:3])],
        "none": [(logits[:0], label[:0])],
    }
    found = fit_heads(samples)
    assert found == dict.fromkeys(("whole", "broken"), fit_temperature(logits, label))


def test_a_run_keeps_the_temperature_of_each_epoch_with_its_weights(calibrated_task):
    folder = Path(calibrated_task["tr_params"]["ckpt_out_base"])
    best, last = (load_checkpoint(folder / f"tiny_{name}.pth") for name in ("best", "last"))
    for checkpoint in (best, last):
        assert set(checkpoint.state["calibration"]) == {"sheet", "sides"}
    # Before the validation the weights are saved, and have no temperature yet.
    before = load_checkpoint(previous_generation(folder / "tiny_last.pth"))
    assert before.state["step"] == last.state["step"]
    assert "calibration" not in before.state
    assert build_network(before).temperatures == {}
    wanted = {name: one["temperature"] for name, one in best.state["calibration"].items()}
    assert build_network(best).temperatures == wanted


def test_calibrating_changes_nothing_that_is_learnt(calibrated_task, copied):
    plain = copied(calibrate=False)
    assert run(plain)[0] == 0
    assert_same_state(state_of(calibrated_task), state_of(plain))
    assert "calibration" not in state_of(plain)


def test_a_run_that_goes_on_fits_the_same_temperatures_and_says_what_they_do(
    calibrated_task, copied, monkeypatch
):
    task = copied()
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert run(task)[0] == 143
    code, lines = run(task)
    assert code == 0
    assert state_of(task)["calibration"] == state_of(calibrated_task)["calibration"]
    shown = [line for line in lines if "ECE" in line]
    assert [line.partition(":")[0] for line in shown] == ["sheet", "sides"]
    error = state_of(task, "best")["calibration"]["sheet"]["error_before"]
    assert f"ECE {error:.4f} ->" in shown[0]


def test_a_fine_tuning_does_not_take_temperatures_over(calibrated_task, copied):
    folder = Path(calibrated_task["tr_params"]["ckpt_out_base"])
    tuned = copied(
        calibrate=False, load_weights_only=True, max_epoch=1,
        checkpoint_path=str(folder / "tiny_best.pth"),
    )  # fmt: skip
    assert run(tuned)[0] == 0
    assert all("calibration" not in state_of(tuned, name) for name in ("best", "last"))


def test_a_prediction_is_made_with_the_temperature_of_its_checkpoint(calibrated_task):
    folder = Path(calibrated_task["tr_params"]["ckpt_out_base"])
    predictor = load_predictor(folder / "tiny_best.pth")
    (network,) = predictor.networks
    cold = dataclasses.replace(network, temperatures={})
    array = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
    warm, plain = (Predictor((n,)).predict(array)["sheet"].astype(float) for n in (network, cold))
    logits = np.log(plain / (1 - plain)) / network.temperatures["sheet"]
    np.testing.assert_allclose(warm, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert abs(warm - plain).max() > 1e-4


@pytest.mark.parametrize(
    "value",
    [
        {"sheet": {"temperature": 0.0, "error_before": 0.1, "error_after": 0.1}},
        {"sheet": {"temperature": 1.0, "error_before": 1.5, "error_after": 0.1}},
        {"sheet": {"temperature": "1", "error_before": 0.1, "error_after": 0.1}},
        {"sheet": {"temperature": 1.0}},
        {"sheet": 2.0},
    ],
    ids=["zero", "error", "text", "lacking", "number"],
)
def test_a_temperature_that_cannot_be_is_refused(tmp_path, value):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"schema": 1, "calibration": value})
    with pytest.raises(CheckpointError, match="calibration"):
        load_checkpoint(path)


def test_where_nothing_is_calibrated_the_key_is_said_to_have_no_effect(calibrated_task):
    def notes(task):
        return [line for line in effect_notes(parse_task(task, "t")[0]) if "calibrate" in line]

    assert notes(calibrated_task) == []
    whole = json.loads(json.dumps(calibrated_task))
    whole["tr_params"]["tr_val_split"] = 1.0
    assert "nothing is validated" in notes(whole)[0]
    config = whole["dataset_config"]
    volume = config["volume_paths"][0]
    for name in ("sheet", "sides"):
        del config["targets"][name], volume[name]
    volume |= {"value": volume["input"], "ref_label": "value"}
    config["targets"]["value"] = {"kind": "regression"}
    assert "no target is a mask" in notes(whole)[0]
