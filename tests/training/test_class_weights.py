import copy

import numpy as np
import pytest

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.volumes import open_volume

KIND = {"kind": "multiclass", "channels": 2, "ignore_label": 2}
COUNTED = {**KIND, "loss": {"ce": {"class_weights": "counted"}}}


@pytest.fixture
def counted_task(sheet_task):
    task = copy.deepcopy(sheet_task)
    dataset = task["dataset_config"]
    dataset["targets"] = {"sheet": COUNTED}
    del dataset["volume_paths"][0]["normals"]
    return task


def run(task, **settings):
    task = copy.deepcopy(task)
    task["tr_params"] |= settings
    parsed, reporter = parse_task(task, "test")[0], Silent()
    assert train(parsed, reporter=reporter) == 0
    return load_checkpoint(parsed.run_dir / "tiny_last.pth").state, reporter.lines


def test_classes_are_counted_once_in_the_life_of_a_run(counted_task, phantom):
    state, lines = run(counted_task, max_epoch=1)
    (region,) = state["split"]["train_regions"]
    stored = open_volume(str(phantom / "sheet"), key="sheet")
    stored = stored.read(stored.box)[0][tuple(slice(*pair) for pair in region)]
    counts = np.bincount(stored.ravel(), minlength=3)[:2].tolist()
    assert state["class_counts"] == {"sheet": counts}
    assert "sheet: counting the voxels of each class" in lines
    told = next(line for line in lines if line.startswith("sheet: class weights 0: "))
    assert f"({counts[0]} voxels), 1: " in told
    assert f"({counts[1]} voxels)" in told

    state, lines = run(counted_task, max_epoch=2)
    assert state["class_counts"] == {"sheet": counts}
    assert told in lines
    assert not any("counting" in line for line in lines)


def test_the_weights_reach_the_loss(counted_task, tmp_path):
    weighted, _ = run(counted_task, max_epoch=1)
    counted_task["dataset_config"]["targets"]["sheet"] = {**KIND, "loss": "ce"}
    plain, _ = run(counted_task, max_epoch=1, ckpt_out_base=str(tmp_path / "other"))
    assert any(
        not np.array_equal(weighted["model"][name], plain["model"][name]) for name in plain["model"]
    )


def test_nothing_to_count_is_refused(counted_task):
    counted_task["dataset_config"]["targets"]["sheet"]["ignore_label"] = [0, 1, 2]
    del counted_task["dataset_config"]["volume_paths"][0]["ref_label"]
    with pytest.raises(TaskError, match=r"targets\.sheet: no voxel counts"):
        run(counted_task)


def test_a_value_that_is_no_class_is_named(counted_task):
    del counted_task["dataset_config"]["targets"]["sheet"]["ignore_label"]
    with pytest.raises(
        TaskError,
        match=r"volume_paths\.0\.sheet: volume scroll.zarr/ct holds 2 in .*; the classes are 0, 1; ",
    ):
        run(counted_task)
