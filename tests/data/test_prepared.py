"""Labelled volumes of different orientations and voxel sizes on one prepared grid."""

import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.data.selection import ChosenVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Silent


def task_of(folder, prepare, volumes=None, **dataset):
    entries = volumes or [
        {"input": f"{folder}/{n}.zarr", "cord": f"{folder}/{n}_seg.zarr", "name": n} for n in "ab"
    ]
    return parse_task(
        {
            "tr_params": {"model_name": "net", "patch_size": [8, 8, 8], "ckpt_out_base": f"{folder}/run"},
            "model_config": {"name": "residual_unet", "f_maps": [2, 4]},
            "dataset_config": {
                "prepare": prepare,
                "volume_paths": entries,
                "targets": {"cord": {"kind": "binary"}},
                **dataset,
            },
        },
        "test",
    )[0]  # fmt: skip


def whole(volume):
    return volume.read(volume.box)[0]


def test_scans_of_any_orientation_and_voxel_size_share_a_grid(folder):
    lines = Silent()
    first, second = open_volumes(
        task_of(folder, {"orientation": "RPI", "spacing": [1.5, 1.5, 1.5]}), lines
    )
    assert first.inputs[0].extent == (23, 25, 20)
    assert second.inputs[0].extent == (24, 27, 23)
    for volume, voxels in ((first, 1.0), (second, 3 * 0.8 * 0.8)):
        assert volume.spacing == pytest.approx((1.5, 1.5, 1.5))
        assert volume.inputs[0].shown == volume.as_stored.inputs[0].shown
        mask, scan = whole(volume.labels["cord"]), whole(volume.inputs[0])
        stored = whole(volume.as_stored.labels["cord"])
        assert mask.dtype == np.uint8
        assert mask.sum() * 1.5**3 == pytest.approx(stored.sum() * voxels, rel=0.03)
        # The image and its label still lie on each other.
        assert scan[mask > 0].mean() > 110
        assert scan[mask == 0].mean() < 25
    assert sum(line.startswith("preparing ") for line in lines.lines) == 2
    again = Silent()
    open_volumes(task_of(folder, {"orientation": "RPI", "spacing": [1.5, 1.5, 1.5]}), again)
    assert not any("preparing" in line for line in again.lines)


def test_the_median_and_the_landmarks_are_learnt_and_recorded(folder):
    task = task_of(
        folder, {"orientation": "RPI", "spacing": "median", "standardize": {"method": "nyul"}}
    )
    volumes = open_volumes(task)
    assert volumes[0].spacing == pytest.approx((2.0, 0.9, 0.9))
    resolved = resolve(task, reads_labels=False).task.dataset_config.prepare
    assert resolved.is_settled
    assert resolved.spacing == (2.0, 0.9, 0.9)
    (standard,) = resolved.standardize
    assert standard.landmarks[0] == 0
    assert standard.landmarks[-1] == 100
    assert task.dataset_config.prepare.contradiction(resolved) is None
    round_trip = task_of(folder, resolved.model_dump(mode="json", by_alias=True))
    assert open_volumes(round_trip)[0].inputs[0].location == volumes[0].inputs[0].location


def test_only_volumes_that_train_are_learnt_from(folder):
    entries = [
        {"input": f"{folder}/{n}.zarr", "cord": f"{folder}/{n}_seg.zarr", "name": n, "split": split}
        for n, split in (("a", "train"), ("b", "val"))
    ]
    volumes = open_volumes(task_of(folder, {"spacing": "median"}, entries))
    assert volumes[1].preparation.prepare.spacing == (1.0, 1.0, 1.0)


def test_a_bbox_counts_in_stored_voxels_and_boxes_go_back(folder):
    entry = {"input": f"{folder}/b.zarr", "cord": f"{folder}/b_seg.zarr", "name": "b",
             "bbox": [[2, 10], [8, 40], [4, 44]], "ref_label": "cord"}  # fmt: skip
    (volume,) = open_volumes(task_of(folder, {"spacing": [1.5, 1.6, 0.8]}, [entry]))
    assert volume.region == Box((4, 4, 4), (16, 16, 40))
    assert volume.ref is volume.labels["cord"]
    assert volume.as_stored.region == Box((2, 8, 4), (8, 32, 40))
    assert volume.box_as_stored(volume.region) == volume.as_stored.region
    part = ChosenVolume(volume, Box((4, 4, 4), (8, 16, 40)), "val").as_stored()
    assert part.box == Box((2, 8, 4), (4, 32, 40))
    assert part.volume.inputs[0].extent == (12, 50, 44)


def test_a_bbox_outside_of_the_crop_is_refused(folder):
    entry = {
        "input": f"{folder}/b.zarr",
        "cord": f"{folder}/b_seg.zarr",
        "bbox": [[0, 1], [0, 2], [0, 2]],
    }
    task = task_of(folder, {"crop": {"foreground": {"above": 80}}}, [entry])
    with pytest.raises(TaskError, match=r"bbox: nothing of it is left by .*crop"):
        open_volumes(task)


def test_pairs_of_voxels_have_no_other_grid(folder):
    with pytest.raises(TaskError, match=r"targets\.cord: is of pairs of voxels"):
        parse_task(
            {
                **task_of(folder, None).to_json(),
                "dataset_config": {
                    "prepare": {"orientation": "RPI"},
                    "volume_paths": [{"input": "a", "cord": "b"}],
                    "targets": {
                        "cord": {"kind": "affinities", "channels": 3,
                                 "offsets": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
                    },
                },
            },
            "test",
        )  # fmt: skip


def test_the_order_of_labels_is_without_effect_where_voxels_only_move(folder):
    prepare = {"orientation": "RPI", "order": {"labels": "linear"}}
    document = task_of(folder, None).to_json()
    document["dataset_config"]["prepare"] = prepare
    notes = parse_task(document, "test")[1]
    assert any("prepare.order: has no effect" in note for note in notes)
