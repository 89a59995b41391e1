from collections import Counter

import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches.find import PatchCriteria, search_patches
from vcmodels.patches.index_build import Indexer
from vcmodels.reporting import Silent
from vcmodels.samples.order import DrawOrder, draw_weights, volume_weights


@pytest.fixture
def organs():
    """Class 1 nearly everywhere, 2 in a corner, 5 in a few voxels."""
    rng = np.random.default_rng(0)
    labels = (rng.random((20, 25, 31)) < 0.3).astype(np.uint8)
    labels[:6, :7, :8] = 2
    labels[15:17, 20, 25:28] = 5
    labels[:, :, 17:] *= rng.random((20, 25, 14)) < 0.5
    return labels


@pytest.fixture
def make(make_task, store, organs):
    """Task, volumes, rows of the patch list and the label's voxels in each row."""
    image = store("raw", np.zeros(organs.shape, np.float32))
    first = {"input": image, "organ": store("organ", organs), "ref_label": "organ"}
    second = {**first, "organ": store("other", np.where(organs == 1, 1, 0).astype(np.uint8))}
    targets = {"organ": {"kind": "multiclass", "channels": 3, "label_values": [0, 1, 2]}}

    def build(sampling, weights=(1, 1), **dataset):
        entries = [
            {**entry, "weight": weight, "name": f"v{n}"}
            for n, (entry, weight) in enumerate(zip((first, second), weights, strict=True))
        ]
        task = make_task(entries, targets, dataset={"sampling": sampling, **dataset})
        volumes = open_volumes(task)
        rows = search_patches(task, volumes).rows
        stored = [v.labels["organ"].read(v.region)[0] for v in volumes]
        parts = [stored[n][z : z + 8, y : y + 8, x : x + 8] for n, z, y, x in rows.tolist()]
        return task, volumes, rows, parts

    return build


def weights_of(task, volumes, rows):
    config, indexer = task.dataset_config, Indexer(None, Silent())
    criteria = PatchCriteria.of(task)
    base = volume_weights(volumes, rows, config.balance)
    return draw_weights(config.sampling, base, volumes, rows, config.targets, criteria, indexer)


def test_without_sampling_the_volumes_weigh(make):
    task, volumes, rows, _ = make(None, weights=(3, 1))
    found = weights_of(task, volumes, rows)
    np.testing.assert_allclose(found / found[-1], np.where(rows[:, 0] == 0, 3, 1))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1)])
def test_balanced_draws_follow_the_voxels_of_each_class(make, weights):
    task, volumes, rows, parts = make({"foreground": 0.6, "classes": "balanced"}, weights)
    base = np.array(weights, float)[rows[:, 0]]
    wanted = 0.4 * base / base.sum()
    for value in (1, 2, 5):
        counts = np.array([(part == value).sum() for part in parts])
        wanted += 0.2 * base * counts / (base * counts).sum()
    found = weights_of(task, volumes, rows)
    np.testing.assert_allclose(found, wanted)
    assert found.sum() == pytest.approx(1)


def test_each_class_is_met_as_often_as_asked(make):
    task, volumes, rows, parts = make({"foreground": 1, "classes": {"1": 1, "5": 3}})
    order = DrawOrder(0, weights_of(task, volumes, rows))
    drawn = Counter(order.row(draw) for draw in range(20 * len(rows)))
    rare = sum(n for row, n in drawn.items() if (parts[row] == 5).any())
    assert rare / drawn.total() == pytest.approx(0.75, abs=0.05)


def test_foreground_alone_prefers_patches_with_labels(make):
    everything = {"min_bbox_percent": 0.0, "min_labeled_ratio": 0.0}
    task, volumes, rows, parts = make({"foreground": 0.5, "label": "organ"}, **everything)
    has = np.array([part.any() for part in parts], float)
    wanted = 0.5 / len(rows) + 0.5 * has / has.sum()
    np.testing.assert_allclose(weights_of(task, volumes, rows), wanted)


def test_a_class_that_no_patch_holds_is_refused(make):
    task, volumes, rows, _ = make({"classes": {"1": 1, "4": 1}})
    with pytest.raises(
        TaskError, match=r"sampling.classes: no training patch holds 4; there are 1, 2, 5"
    ):
        weights_of(task, volumes, rows)


def test_values_that_are_not_counted_are_refused(make, store, organs):
    task, volumes, _, _ = make({"classes": "balanced"})
    many = np.arange(organs.size, dtype=np.int32).reshape(organs.shape)
    entries = [
        {"input": volumes[0].inputs[0].location, "organ": store("ids", many), "ref_label": "organ"}
    ]
    task = task.model_copy(deep=True)
    entry = task.dataset_config.volume_paths[0].model_copy(
        update={"labels": {"organ": entries[0]["organ"]}}
    )
    config = task.dataset_config.model_copy(update={"volume_paths": [entry]})
    task = task.model_copy(update={"dataset_config": config})
    opened = open_volumes(task)
    with pytest.raises(TaskError, match="holds too many values"):
        weights_of(task, opened, search_patches(task, opened).rows)


def test_rows_of_another_grid_are_refused(make):
    task, volumes, rows, _ = make({"classes": "balanced"})
    with pytest.raises(TaskError, match="was not found with this task"):
        weights_of(task, volumes, rows + np.array([0, 1, 0, 0]))


@pytest.mark.parametrize("way", ["only target", "label", "derived target", "source as ref_label"])
def test_the_label_that_is_meant_needs_no_ref_label(make_task, store, organs, way):
    ids = organs.astype(np.uint16)
    entry = {
        "input": store("raw", np.zeros(organs.shape, np.float32)),
        "ids": store("ids", ids),
        "name": "v",
    }
    targets = {"far": {"kind": "distance", "derive": "ids", "clip": 4}}
    sampling = {"foreground": 0.5, "classes": "balanced"}
    if way == "source as ref_label":
        entry["ref_label"] = "ids"
    elif way != "only target":
        entry["also"] = store("also", (organs == 2).astype(np.uint8))
        targets["also"] = {"kind": "binary"}
        sampling["label"] = "ids" if way == "label" else "far"
    data = {"sampling": sampling, "min_bbox_percent": 0, "min_labeled_ratio": 0}
    task = make_task([entry], targets, dataset=data)
    volumes = open_volumes(task)
    rows = search_patches(task, volumes).rows
    parts = [ids[z : z + 8, y : y + 8, x : x + 8] for _, z, y, x in rows.tolist()]
    wanted = np.full(len(rows), 0.5 / len(rows))
    for value in (1, 2, 5):
        counts = np.array([(part == value).sum() for part in parts])
        wanted += 0.5 / 3 * counts / counts.sum()
    np.testing.assert_allclose(weights_of(task, volumes, rows), wanted)


def test_patches_without_any_voxel_of_the_label_are_refused_with_a_way_out(make_task, store):
    nothing = store("empty", np.zeros((20, 25, 31), np.uint8))
    entry = {"input": nothing, "organ": nothing, "name": "v"}
    data = {"sampling": {"foreground": 0.5}}
    task = make_task([entry], {"organ": {"kind": "binary"}}, dataset=data)
    volumes = open_volumes(task)
    rows = search_patches(task, volumes).rows
    with pytest.raises(TaskError, match=r"no training patch holds .* set it to 0"):
        weights_of(task, volumes, rows)
    data["sampling"]["foreground"] = 0
    task = make_task([entry], {"organ": {"kind": "binary"}}, dataset=data)
    np.testing.assert_allclose(weights_of(task, volumes, rows), 1 / len(rows))
