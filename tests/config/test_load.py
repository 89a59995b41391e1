import copy
import json

import numpy as np
import pytest

from vcmodels.config import load_task, parse_task
from vcmodels.errors import TaskError


def parsed(data):
    return parse_task(data, "task.json")[0]


def test_defaults_are_those_of_the_contract():
    task = parsed(
        {
            "tr_params": {"model_name": "m", "patch_size": [32, 32, 32]},
            "volume_paths": [{"input": "a.zarr", "sheet": "b.zarr"}],
            "targets": {"sheet": {}},
        }
    )
    training, inference, data = task.tr_params, task.inference_params, task.dataset_config
    assert (training.batch_size, training.tr_val_split, training.label_smoothing) == (2, 0.8, 0)
    assert (training.initial_lr, training.weight_decay, training.optimizer) == (1e-3, 1e-4, "AdamW")
    assert (training.max_steps_per_epoch, training.max_val_steps_per_epoch) == (500, 25)
    assert (training.max_epoch, training.gradient_accumulation, training.seed) == (500, 1, 0)
    assert (training.ckpt_out_base, training.num_dataloader_workers) == ("checkpoints/", 4)
    assert (inference.overlap, inference.output_type, inference.output_targets) == (
        0.25,
        "np.uint8",
        "all",
    )
    assert (data.min_bbox_percent, data.min_labeled_ratio, data.use_cache) == (0.95, 0.05, True)
    assert data.normalization.scheme == "zscore"
    assert task.model.name == "residual_unet"
    assert task.augment
    assert task.run_dir.name == "checkpoints"
    assert task.tensorboard_dir == task.run_dir / "tensorboard" / task.tr_params.model_name
    assert task.cache_file == task.run_dir / "patches.json"


def test_the_workers_of_inference_are_those_of_training_when_left_out(good):
    del good["inference_params"]["num_dataloader_workers"]
    assert parsed(good).inference_params.num_dataloader_workers == 4


def test_the_patch_of_inference_is_left_to_the_checkpoint(good):
    """Which may be another than the task's own, with another patch."""
    for key in ("patch_size", "batch_size"):
        del good["inference_params"][key]
    task = parsed(good)
    assert task.inference_params.patch_size is None
    assert task.inference_params.batch_size is None


def test_a_resolved_task_parses_to_itself(good, original):
    for data in (good, original):
        task, before = parse_task(copy.deepcopy(data), "task.json")
        again, notes = parse_task(json.loads(json.dumps(task.to_json())), "task.json")
        assert again == task
        assert set(notes) <= set(before)


def test_parsing_leaves_the_given_object_alone(original):
    before = json.dumps(original)
    parsed(original)
    assert json.dumps(original) == before


@pytest.mark.parametrize(
    ("given", "sheet", "normals"),
    [
        (None, None, None),
        (2, 2, 2),
        ([0, 255], [0, 255], [0, 255]),
        ({"sheet": 2}, 2, None),
        ({"sheet": [2, 3], "normals": None}, [2, 3], None),
    ],
)
def test_ignore_label_reaches_the_targets(good, given, sheet, normals):
    good["tr_params"]["ignore_label"] = given
    targets = parsed(good).dataset_config.targets
    assert targets["sheet"].ignore_label == sheet
    assert targets["normals"].ignore_label == normals


def test_a_targets_own_label_keys_win(good):
    good["tr_params"] |= {"loss_only_on_label": True, "label_smoothing": 0.1, "dilate_label": 3}
    good["dataset_config"]["targets"]["sheet"] |= {
        "loss_only_on_label": False,
        "label_smoothing": 0.0,
        "dilate_label": 1,
        "ignore_label": 7,
    }
    targets = parsed(good).dataset_config.targets
    sheet, normals = targets["sheet"], targets["normals"]
    assert (sheet.loss_only_on_label, sheet.label_smoothing, sheet.dilate_label) == (False, 0, 1)
    assert sheet.ignore_label == 7
    assert (normals.loss_only_on_label, normals.label_smoothing) == (True, None)


@pytest.mark.parametrize(("key", "value"), [("label_smoothing", 0.1), ("dilate_label", True)])
def test_a_label_key_that_the_kind_of_its_target_has_no_use_for_is_named(good, key, value):
    good["dataset_config"]["targets"]["normals"][key] = value
    where = rf'targets\.normals\.{key}: kind "normals" has no use for {key}'
    with pytest.raises(TaskError, match=where):
        parsed(good)
    good["dataset_config"]["targets"]["normals"][key] = 0 if key == "label_smoothing" else False
    parsed(good)


def test_labels_of_a_volume_are_told_from_its_other_keys(good):
    first, second = parsed(good).dataset_config.volume_paths
    assert first.labels == {
        "sheet": "data/scroll.zarr/sheet",
        "normals": "data/scroll.zarr/normals",
    }
    assert first.inputs == ("data/scroll.zarr/ct", "data/scroll.zarr/ct2")
    assert second.labels == {"sheet": "data/*.zarr/sheet"}
    assert second.split.attribute == "split"


def test_a_label_of_null_is_one_that_the_volume_lacks(good):
    good["dataset_config"]["volume_paths"][1]["normals"] = None
    assert "normals" not in parsed(good).dataset_config.volume_paths[1].labels


def test_comments_and_the_editors_schema_are_left_out(good):
    good["$schema"] = "task.schema.json"
    good["_comment"] = "why\nnot"
    good["tr_params"]["_comment_lr"] = ["found by hand", 1e999]
    good["dataset_config"]["targets"]["sheet"]["_comment"] = {"batch_size": -1}
    good["dataset_config"]["volume_paths"][0]["_comment"] = "the good part"
    assert parsed(good).dataset_config.volume_paths[0].labels.keys() == {"sheet", "normals"}


@pytest.mark.parametrize("written", ["np.uint16", "uint16"])
def test_output_type_is_looked_up(good, written):
    good["inference_params"]["output_type"] = written
    assert parsed(good).inference_params.dtype == np.dtype("uint16")


def test_output_type_is_not_evaluated(good, tmp_path):
    canary = tmp_path / "canary"
    good["inference_params"]["output_type"] = f"__import__('pathlib').Path('{canary}').touch()"
    with pytest.raises(TaskError, match=r'output_type: found .*give one of "np\.uint8"'):
        parsed(good)
    assert not canary.exists()


def test_overlap_is_one_number_or_three(good):
    assert parsed(good).inference_params.overlaps == (0.25, 0.5, 0.5)
    good["inference_params"]["overlap"] = 0
    assert parsed(good).inference_params.overlaps == (0, 0, 0)


def test_folders_are_expanded(good, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS", str(tmp_path))
    good["tr_params"]["ckpt_out_base"] = "$RUNS/a/../b"
    assert parsed(good).run_dir == tmp_path / "b"


def test_an_unset_variable_is_named_with_its_key(good, monkeypatch):
    monkeypatch.delenv("RUNS", raising=False)
    good["tr_params"]["ckpt_out_base"] = "$RUNS/a"
    with pytest.raises(TaskError, match=r"^tr_params\.ckpt_out_base: \$RUNS is not set"):
        _ = parsed(good).run_dir


def test_a_run_folder_is_local(good):
    good["tr_params"]["ckpt_out_base"] = "s3://bucket/run"
    with pytest.raises(TaskError, match=r"ckpt_out_base: s3://bucket/run is a URL"):
        _ = parsed(good).run_dir


def test_yaml_and_json_give_the_same_task(good, tmp_path):
    json_file, yaml_file = tmp_path / "t.json", tmp_path / "t.yml"
    json_file.write_text(json.dumps(good))
    # JSON is YAML; the block style is tested on top of it.
    text = json.dumps({key: good[key] for key in good if key != "tr_params"})[1:-1]
    block = "\n".join(f"  {k}: {json.dumps(v)}" for k, v in good["tr_params"].items())
    sections = "\n".join(
        f"{key}: {json.dumps(value)}" for key, value in good.items() if key != "tr_params"
    )
    assert text
    yaml_file.write_text(f"tr_params:\n{block}\n{sections}\n")
    assert load_task(yaml_file).task == load_task(json_file).task
