import json

import pytest

from vcmodels.config import load_task, parse_task
from vcmodels.errors import TaskError


@pytest.fixture
def load(good, tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(good))
    return lambda *lines: load_task(path, lines).task


def test_values_are_json_or_bare_text_and_are_recorded(load):
    lines = (
        "tr_params.batch_size=3",
        "tr_params.optimizer=SGD",
        "inference_params.overlap=[0, 0.5, 0]",
        "tr_params.ckpt_out_base=runs/a=b",
        'tr_params.model_name="7"',
        "tr_params.ema_decay=null",
        "volume_paths.1.weight=3",
        "dataset_config.volume_paths.0.input.1=x.zarr",
        "model_config.n_levels=3",
        "augment=[]",
    )
    task = load(*lines)
    assert task.tr_params.batch_size == 3
    assert task.tr_params.optimizer == "SGD"
    assert task.inference_params.overlap == (0, 0.5, 0)
    assert task.tr_params.ckpt_out_base == "runs/a=b"
    assert task.tr_params.model_name == "7"
    assert task.tr_params.ema_decay is None
    assert task.dataset_config.volume_paths[1].weight == 3
    assert task.dataset_config.volume_paths[0].inputs[1] == "x.zarr"
    assert task.augment == []
    assert task.overrides == list(lines)


def test_a_section_that_is_left_out_can_be_set(good, tmp_path):
    del good["inference_params"]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(good))
    assert load_task(path, ["inference_params.overlap=0.5"]).task.inference_params.overlap == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tr_params.batch_size", r'^--set: found "tr_params.batch_size"; give it as dotted\.key='),
        ("=3", "^--set: found"),
        (
            "tr_params.batch_sise=3",
            r'tr_params\.batch_sise: unknown key; did you mean "batch_size"',
        ),
        ("tr_params.batch_size=three", r'batch_size: found "three"; give an integer'),
        ("tr_params.batch_size=NaN", r"batch_size: found NaN; give a finite number"),
        ("tr_params.batch_size.x=3", r'batch_size\.x: .*"x" leads into 2; shorten the key'),
        ("volume_paths.7.input=x", r"volume_paths\.7\.input: .*the number of an entry"),
        ("volume_paths.x=3", "the number of an entry, from 0"),
        ('tr_params.ignore_label={"a": 1, "a": 2}', "^a: stands twice"),
        (".=3", "unknown key"),
    ],
)
def test_a_wrong_override_is_refused(load, line, message):
    with pytest.raises(TaskError, match=message):
        load(line)


def test_json_on_several_lines_is_recorded_in_one(load):
    task = load("tr_params.patch_size=[\n  64,\n  32, 32]")
    assert task.tr_params.patch_size == (64, 32, 32)
    again, _ = parse_task(task.to_json(), "the checkpoint")
    assert again.tr_params == task.tr_params
