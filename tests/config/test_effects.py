"""A key that is given and does nothing is reported; the same key where it acts is not."""

import copy
import json

import pytest

from vcmodels.config import load_task, parse_task

TASK = {
    "tr_params": {"model_name": "m", "patch_size": [16, 24, 32], "ckpt_out_base": "run"},
    "model_config": {"name": "residual_unet", "f_maps": [4, 8, 16]},
    "dataset_config": {
        "volume_paths": [{"input": "a", "sheet": "b", "ref_label": "sheet"}],
        "targets": {"sheet": {"kind": "binary"}},
    },
}
IDLE = [
    ({"tr_params.momentum": 0.9}, {"tr_params.optimizer": "SGD"}),
    ({"tr_params.memory_gb": 3.0}, {"tr_params.patch_size": None}),
    ({"tr_params.image_interpolation": "cubic", "augment": []}, {"augment": [{"name": "affine"}]}),
    ({"tr_params.split_guard": 3, "tr_params.split_mode": "random"},
     {"tr_params.split_mode": "spatial"}),
    ({"tr_params.tr_val_split": 0.5, "tr_params.folds": {"count": 3}}, {"tr_params.folds": None}),
    ({"tr_params.max_val_steps_per_epoch": 7, "tr_params.tr_val_split": 1.0},
     {"tr_params.tr_val_split": 0.9}),
    ({"tr_params.label_smoothing": 0.1, "dataset_config.targets.sheet.label_smoothing": 0.2},
     {"dataset_config.targets.sheet.label_smoothing": None}),
    ({"tr_params.ignore_label": 3, "dataset_config.targets.sheet.ignore_label": 2},
     {"dataset_config.targets.sheet.ignore_label": None}),
    ({"model_config.base_features": 8}, {"model_config.f_maps": None}),
    ({"model_config.deep_supervision": True}, {"model_config.f_maps": [4, 8, 16, 16]}),
    ({"dataset_config.volume_paths.0.weight": 2.0}, {"dataset_config.volume_paths.0.input": "*"}),
    ({"dataset_config.volume_paths.0.ref_label": "sheet",
      "dataset_config.volume_paths.0.split": "test"}, {"dataset_config.volume_paths.0.split": "val"}),
    ({"dataset_config.cache_file": "c", "dataset_config.use_cache": False},
     {"dataset_config.use_cache": True}),
    ({"dataset_config.min_labeled_ratio": 0.3, "dataset_config.volume_paths.0.ref_label": None},
     {"dataset_config.volume_paths.0.ref_label": "sheet"}),
    ({"dataset_config.normalization.percentiles": [1, 99]},
     {"dataset_config.normalization.scheme": "ct"}),
    ({"dataset_config.sampling.classes": "balanced", "dataset_config.sampling.foreground": 0.0},
     {"dataset_config.sampling.foreground": 0.5}),
]  # fmt: skip


def notes_of(*changes):
    task = copy.deepcopy(TASK)
    for path, value in {k: v for change in changes for k, v in change.items()}.items():
        *parts, last = path.split(".")
        block = task
        for part in parts:
            block = block[int(part)] if part.isdigit() else block.setdefault(part, {})
        block[last] = value
    return parse_task(task, "test")[1]


@pytest.mark.parametrize(("idle", "acting"), IDLE, ids=[next(iter(idle)) for idle, _ in IDLE])
def test_a_key_without_effect_is_reported_until_it_has_one(idle, acting):
    key = next(iter(idle))
    [note] = [line for line in notes_of(idle) if line.startswith(key)]
    assert note.startswith(f"{key}: has no effect: ")
    assert not [line for line in notes_of(idle, acting) if line.startswith(key)]


def test_a_key_that_says_what_its_default_is_is_not_reported():
    assert notes_of({"tr_params.momentum": 0.99, "model_config.max_features": 320}) == []


FOR_EACH = {"sheet": 3, "air": [3, 4]}


def by_target():
    """A task whose `ignore_label` is an object, and the same as a run writes it."""
    document = copy.deepcopy(TASK)
    document["tr_params"] |= {"ignore_label": FOR_EACH, "memory_gb": 3.0}
    document["dataset_config"]["volume_paths"][0]["air"] = "c"
    document["dataset_config"]["targets"]["air"] = {"kind": "binary"}
    resolved = json.loads(json.dumps(parse_task(copy.deepcopy(document), "test")[0].to_json()))
    targets = resolved["dataset_config"]["targets"]
    assert [targets[name]["ignore_label"] for name in FOR_EACH] == [3, [3, 4]]
    return document, resolved


def test_what_targets_repeat_of_an_ignore_label_by_target_is_its_effect():
    for task in by_target():
        notes = parse_task(task, "test")[1]
        idle = [line.partition(": has no effect")[0] for line in notes if "has no effect" in line]
        assert idle == ["tr_params.memory_gb"]


@pytest.mark.parametrize("given", [FOR_EACH, {"sheet": 3}, {"sheet": 3, "air": None}], ids=str)
def test_an_ignore_label_by_target_that_none_of_them_takes_is_reported(given):
    task, _ = by_target()
    task["tr_params"]["ignore_label"] = given
    targets = task["dataset_config"]["targets"]
    targets["sheet"]["ignore_label"] = 7
    if given is FOR_EACH:
        targets["air"]["ignore_label"] = 7
    notes = parse_task(task, "test")[1]
    assert len([line for line in notes if line.startswith("tr_params.ignore_label: has no")]) == 1


def test_the_task_of_a_run_has_no_keys_without_effect(tmp_path):
    """Every key is written there, and some values were planned."""
    _, resolved = by_target()
    (tmp_path / "task.json").write_text(json.dumps(resolved))
    (tmp_path / "splits.json").write_text("{}")
    assert load_task(tmp_path / "task.json").notes != []
    assert load_task(tmp_path).notes == []
