"""Recipes set the defaults of keys; blocks that exclude each other are refused."""

import json
from pathlib import Path

import pytest

from vcmodels.config import parse_task
from vcmodels.config.train_params import RECIPES
from vcmodels.errors import TaskError
from vcmodels.models import ResidualUNet

GOOD = Path(__file__).with_name("good.json")


def task(**settings) -> dict:
    return {
        "tr_params": {"model_name": "a", "patch_size": [32, 32, 32], **settings},
        "model_config": {"name": "residual_unet"},
        "dataset_config": {
            "volume_paths": [{"input": "v.zarr/ct", "sheet": "v.zarr/sheet"}],
            "targets": {"sheet": {}},
        },
    }


def resolved(**settings) -> dict:
    return parse_task(task(**settings), "task.json")[0].to_json()["tr_params"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_the_keys_that_are_left_out(name):
    found = resolved(recipe=name)
    assert {key: found[key] for key in RECIPES[name]} == dict(RECIPES[name])
    own = {"optimizer": "Adam", "initial_lr": 0.125, "scheduler": "constant", "warmup_steps": 7}
    assert resolved(recipe=name, **own) == found | own


def test_every_recipe_sets_the_same_keys():
    keys = {frozenset(recipe) for recipe in RECIPES.values()}
    assert len(keys) == 1


def test_the_documented_defaults_of_a_task_file_stay():
    found = resolved()
    wanted = {"optimizer": "AdamW", "initial_lr": 1e-3, "weight_decay": 1e-4}
    assert {key: found[key] for key in wanted} == wanted


def test_nnunets_recipe_is_nnunets():
    """Of nnUNetTrainer.py: initial_lr, weight_decay, clip_grad_norm_, SGD and PolyLRScheduler."""
    found = resolved(recipe="sgd_poly")
    wanted = {
        "optimizer": "SGD", "momentum": 0.99, "initial_lr": 1e-2, "weight_decay": 3e-5,
        "gradient_clip": 12, "scheduler": "poly", "warmup_steps": 0,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted


def test_a_resolved_task_is_resolved_to_itself():
    first = resolved(recipe="sgd_poly", gradient_clip=1.0, mixup={}, early_stopping={})
    again = json.loads(json.dumps(first))
    assert resolved(**again) == first


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"recipe": "adam_poly"}, 'recipe: found "adam_poly"; give one of "adamw_constant"'),
        ({"mixup": {}, "batch_size": 1}, "mixup: needs two patches to mix, .*batch_size is 1"),
        ({"mixup": {"alpha": 0.0}}, "mixup.alpha"),
        ({"freeze_epochs": 3}, "freeze_epochs: is given, but nothing is frozen"),
        ({"load_weights_only": True}, "load_weights_only: is given, but no weights are"),
        ({"load_weights_only": "some"}, 'load_weights_only: .*"partial"'),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
        ({"early_stopping": {"patients": 3}}, 'early_stopping.patients: .*"patience"'),
    ],
    ids=["recipe", "batch", "alpha", "freeze", "no weights", "weights", "patience", "key"],
)
def test_what_cannot_be_is_refused(settings, match):
    with pytest.raises(TaskError, match=match):
        resolved(**settings)


def test_mixed_patches_cannot_be_told_hard_from_easy():
    given = task(mixup={})
    given["dataset_config"]["sampling"] = {"hard": 0.5}
    with pytest.raises(TaskError, match=r"mixup: and dataset_config\.sampling\.hard exclude"):
        parse_task(given, "task.json")


def test_a_network_that_cannot_mix_features_is_refused(monkeypatch):
    monkeypatch.setattr(ResidualUNet, "mixes_features", False)
    resolved(mixup={})
    with pytest.raises(TaskError, match=r"mixup\.manifold: residual_unet cannot mix the features"):
        resolved(mixup={"manifold": True})


@pytest.mark.parametrize("key", ["best_metric", "early_stopping.metric"])
def test_a_curve_that_the_run_will_not_have_is_refused(key):
    first, _, inner = key.partition(".")
    for curve in ("val/loss", "val/loss_sheet", "val/dice_sheet", "epoch/train_loss_sheet"):
        resolved(**{first: {inner: curve} if inner else curve})
    for curve in ("loss", "val/dice_ink", "val/mae_sheet", "train/loss"):
        match = rf'{key}: "{curve}" is no curve of this run; give one of .*"val/loss_sheet"'
        with pytest.raises(TaskError, match=match):
            resolved(**{first: {inner: curve} if inner else curve})
