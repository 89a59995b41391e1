import shutil
from dataclasses import replace

import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.evaluation import evaluate
from vcmodels.evaluation.evaluate import ScoredRegion, given_regions
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.distance import DistanceTarget


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def sheet_dice(world, at):
    return pytest.approx(dice(world.probability[at] > 127.5, world.sheet[at] > 0), abs=1e-9)


def test_the_held_out_region_is_scored(world):
    reporter = Silent()
    scores = evaluate(world.task(), reporter=reporter)
    assert list(scores) == ["sheet", "normals"]
    assert scores["sheet"]["dice"] == sheet_dice(world, np.s_[6:10, 0:14, 3:18])
    assert reporter.lines[0] == "scoring sheet, normals on (z, y, x) = [6:10, 0:14, 3:18]"
    assert any(line.startswith("sheet: dice 0.") for line in reporter.lines)


def test_a_prediction_equal_to_its_label_is_perfect(world):
    angle = evaluate(world.task())["normals"]
    assert angle["angle_deg"] < 0.1


def test_a_bbox_is_scored_instead(world):
    scores = evaluate(world.task(), bbox=[(0, 3), (1, 9), (2, 18)])
    assert scores["sheet"]["dice"] == sheet_dice(world, np.s_[0:3, 1:9, 2:18])


def test_what_was_not_predicted_is_not_scored(world):
    scores = evaluate(world.task(bbox=[[0, 8], [0, 14], [0, 18]]))
    assert scores["sheet"]["dice"] == sheet_dice(world, np.s_[6:8, 0:14, 3:18])


def test_a_prediction_on_s3_is_scored_alike(world, s3):
    expected = evaluate(world.task())
    s3.upload(world.folder / "out", f"{s3.bucket}/out")
    task = world.task(output_dir=f"s3://{s3.bucket}/out")
    assert evaluate(task) == expected
    with pytest.raises(VolumeError, match=r"s3://.*net\.zarr/sheet: there is no prediction"):
        evaluate(world.task(output_dir=f"s3://{s3.bucket}/none"))


def test_targets_without_a_label_or_not_asked_for_are_left_out(world):
    assert list(evaluate(world.task(output_targets=["normals"]))) == ["normals"]


def test_a_random_split_says_that_it_is_no_held_out_score(world):
    world.split([[[0, 10], [0, 14], [0, 18]]], mode="random")
    reporter = Silent()
    evaluate(world.task(), reporter=reporter)
    assert "random split: voxels that were trained on are scored too" in reporter.lines


def test_an_overlay_is_written(world, tmp_path):
    path = tmp_path / "new" / "overlay.png"
    evaluate(world.task(), overlay=path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_volume_that_the_task_does_not_know_is_refused(world, store):
    store("other", np.zeros((10, 14, 18), np.uint8))
    with pytest.raises(TaskError, match=r"is none of dataset_config\.volume_paths"):
        evaluate(world.task(input_path=str(world.folder / "data.zarr/other")))


def test_nothing_held_out_is_refused(world):
    world.split([None])
    with pytest.raises(TaskError, match=r"held out.*give a bbox"):
        evaluate(world.task())


def test_no_split_is_refused(world):
    (world.folder / "run/splits.json").unlink()
    with pytest.raises(TaskError, match=r"splits.json.*train first, or give a bbox"):
        evaluate(world.task())


def test_a_bbox_outside_is_refused(world):
    with pytest.raises(TaskError, match=r"\[0:11, 0:14, 0:18\] is not inside"):
        evaluate(world.task(), bbox=[(0, 11), (0, 14), (0, 18)])


def test_an_unfinished_prediction_is_refused(world):
    world.predict("depth", BinaryTarget(), world.probability, complete=False)
    (world.folder / "out/net.zarr/sheet").rename(world.folder / "old")
    with pytest.raises(VolumeError, match=r"there is no prediction; run infer.py"):
        evaluate(world.task())
    (world.folder / "out/net.zarr/depth").rename(world.folder / "out/net.zarr/sheet")
    with pytest.raises(VolumeError, match="is not finished"):
        evaluate(world.task())


def test_a_prediction_of_other_settings_is_refused(world):
    task = world.task()
    normals = task.dataset_config.targets["normals"].model_copy(update={"vector_order": "zyx"})
    config = task.dataset_config.model_copy(
        update={"targets": {**task.dataset_config.targets, "normals": normals}}
    )
    with pytest.raises(VolumeError, match=r"vector_order.*restore the target's keys"):
        evaluate(task.model_copy(update={"dataset_config": config}))


def test_a_bbox_is_scored_once_for_each_set_of_labels(world):
    task = world.task()
    volume = open_volumes(task)[0]
    upper, lower = (replace(volume, region=Box((z, 0, 0), (5, 14, 18))) for z in (0, 5))
    other = replace(volume, labels={"sheet": volume.labels["sheet"]})
    box = Box((2, 3, 4), (6, 7, 8))
    assert given_regions([upper, lower], box, None) == [ScoredRegion(upper, box)]
    regions = given_regions([upper, other, lower], box, Box((4, 0, 0), (6, 14, 18)))
    assert regions == [
        ScoredRegion(upper, Box((4, 3, 4), (4, 7, 8))), ScoredRegion(other, Box((4, 3, 4), (4, 7, 8))),
    ]  # fmt: skip
    with pytest.raises(TaskError, match="nothing of the predicted part was held out"):
        given_regions([upper], box, Box((8, 0, 0), (2, 14, 18)))


def test_a_derived_label_is_derived_from_the_used_part_alone(world):
    """What lies outside of the bbox of a volume says nothing: it may just not be labelled."""
    task = world.task()
    target = DistanceTarget(derive="sheet", clip=2.5)
    entry = task.dataset_config.volume_paths[0]
    labels = {"sheet": entry.labels["sheet"]}
    used = {"bbox": [(0, 10), (0, 14), (5, 13)], "labels": labels}
    entry = entry.model_copy(update=used)
    update = {"targets": {"depth": target}, "volume_paths": [entry]}
    config = task.dataset_config.model_copy(update=update)
    codes = np.full(world.sheet.shape, 128, np.uint8)
    world.predict("depth", target, codes)
    before = evaluate(task.model_copy(update={"dataset_config": config}))
    changed = np.ones_like(world.sheet)
    changed[:, :, 5:13] = world.sheet[:, :, 5:13]
    shutil.rmtree(world.folder / "data.zarr/sheet")
    world.store("sheet", changed)
    assert evaluate(task.model_copy(update={"dataset_config": config})) == before
