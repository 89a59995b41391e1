import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.data import first_task as module
from vcmodels.data.first_task import FirstVolume, first_task, guess_targets, small_patch
from vcmodels.errors import VolumeError
from vcmodels.volumes import open_volume

EXTENT = (9, 11, 13)


def blocks_of(values) -> np.ndarray:
    """Cubes of 3 voxels a side, each of one of the values in turn."""
    z, y, x = (np.arange(n) // 3 for n in EXTENT)
    number = (z[:, None, None] * 4 + y[:, None]) * 5 + x
    return np.asarray(values)[number % len(values)]


def unit_vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(3, *EXTENT))
    return vectors / np.linalg.norm(vectors, axis=0)


ANGLES = unit_vectors()
LABELS = {
    "mask": (blocks_of([0, 1]).astype("u1"), {"kind": "binary"}),
    "mask of 255": (blocks_of([0, 255]).astype("u1"), {"kind": "binary"}),
    "mask in floats": (blocks_of([0, 1]).astype("f4"), {"kind": "binary"}),
    "ignored": (blocks_of([0, 1, -1]).astype("i1"), {"kind": "binary", "ignore_label": -1}),
    "classes": (blocks_of([0, 1, 2, 3]).astype("u2"), {"kind": "multiclass", "channels": 4}),
    "gaps": (
        blocks_of([0, 2, 40]).astype("i4"),
        {"kind": "multiclass", "channels": 3, "label_values": [0, 2, 40]},
    ),
    "no background": (blocks_of([1, 2]).astype("u1"), {"kind": "multiclass", "channels": 3}),
    "probability": (
        np.random.default_rng(0).integers(0, 256, EXTENT, dtype="u1"),
        {"kind": "regression", "encoding": {"scale": 1 / 255}, "activation": "sigmoid"},
    ),
    "depth": (
        np.linspace(-2, 7, np.prod(EXTENT), dtype="f4").reshape(EXTENT),
        {"kind": "regression", "output_range": [-2.0, 7.0]},
    ),
    "normals": (ANGLES.astype("f4"), {"kind": "normals", "channels": 3}),
    "normals in 8 bits": (
        ((ANGLES + 1) / 2 * 255).round().astype("u1"),
        {"kind": "normals", "channels": 3},
    ),
    "normals in 16 bits": (
        ((ANGLES + 1) / 2 * 65535).round().astype("u2"),
        {"kind": "normals", "channels": 3},
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_kind_follows_from_the_values_and_can_read_them(store, name):
    stored, wanted = LABELS[name]
    label = open_volume(store("label", stored), key="sheet", channels="any")
    guess = guess_targets("sheet", label)
    assert guess.targets == {"sheet": wanted}
    task, _ = parse_task(
        first_task(
            "net", FirstVolume("ct", {"sheet": "s"}), [guess], patch=small_patch(EXTENT, (1, 1, 1))
        ),
        "test",
    )
    _, valid = task.dataset_config.targets["sheet"].read_label(label.read(label.box))
    assert valid.any()


def test_ids_become_objects_that_are_learnt_with_what_is_between_them(store):
    label = open_volume(store("cells", blocks_of(range(45)).astype("u8")), key="cells")
    guess = guess_targets("cells", label)
    assert guess.targets == {"cells": {"kind": "instances", "recipe": "boundary"}}
    task, _ = parse_task(
        first_task("net", FirstVolume("ct", {"cells": "c"}), [guess], patch=None), "test"
    )
    assert list(task.dataset_config.targets) == ["cells_mask", "cells_boundary"]
    assert [step.output for step in task.postprocess] == ["cells"]
    assert task.dataset_config.volume_paths[0].ref_label is None
    assert task.tr_params.given_patch_size is None  # planned for the machine's GPU


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.zeros(EXTENT, "u1"), "holds no labelled voxel .* check the path"),
        (5 * ANGLES.astype("f4"), "vectors of length 5, not of 1; write the task by hand"),
        (np.zeros((3, *EXTENT), "f4"), "holds no vector"),
        (np.ones((2, *EXTENT), "u1"), "has 2 channels; give labels of one channel"),
    ],
    ids=["empty", "long vectors", "zero vectors", "channels"],
)
def test_what_fits_no_kind_is_refused(store, stored, message):
    label = open_volume(store("label", stored), key="sheet", channels="any", channel_axis="first")
    with pytest.raises(VolumeError, match=message):
        guess_targets("sheet", label)


def test_a_large_label_is_read_in_places_spread_over_it(store, monkeypatch):
    monkeypatch.setattr(module, "MOST_VOXELS", 4 * 5 * 6 * 7)
    stored = np.zeros(EXTENT, "u1")
    stored[0, 0, 0] = stored[-1, -1, -1] = 1  # in the first chunk and in the last
    stored[4, 5, 6] = 3
    label = open_volume(store("label", stored, fill_value=9), key="sheet")
    boxes, is_all = module._places(label)
    assert not is_all
    assert sum(box.voxels for box in boxes) <= module.MOST_VOXELS
    assert (boxes[0].origin, boxes[-1].end) == ((0, 0, 0), EXTENT)
    assert "places that were read" in guess_targets("sheet", label).reason


@pytest.mark.parametrize(
    ("extent", "spacing", "wanted"),
    [
        ((400, 300, 500), (1, 1, 1), (48, 48, 48)),
        ((20, 224, 224), (4, 1, 1), (20, 56, 56)),
        ((20, 250, 250), (1, 1, 1), (20, 56, 56)),
        ((1, 300, 300), (1, 1, 1), (1, 64, 64)),
        ((35, 51, 34), (1, 1, 1), (32, 48, 32)),
    ],
    ids=str,
)
def test_a_small_patch_is_physically_a_cube_as_far_as_the_volume_has_room(extent, spacing, wanted):
    assert small_patch(extent, spacing) == wanted


@pytest.mark.parametrize("extent", [(4, 4, 8), (7, 9, 11), (3, 60, 33), (1, 8, 70)], ids=str)
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 2), (0.3, 4, 1)], ids=str)
def test_no_small_patch_is_longer_than_its_volume_and_the_network_takes_it(extent, spacing):
    patch = small_patch(extent, spacing)
    assert all(p <= n for p, n in zip(patch, extent, strict=True))
    assert np.prod(patch) <= module.SMALL_VOXELS
    guess = module.Guess({"sheet": {"kind": "binary"}}, "")
    written = first_task("net", FirstVolume("ct", {"sheet": "s"}), [guess], patch=patch)
    task = parse_task(written, "test")[0]
    task.model.check_patch(patch, spacing)
