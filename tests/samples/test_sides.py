"""Nothing that a side of a split reads lies in the other, whatever the guard band."""

import numpy as np
import pytest

from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.patches.split import split_patches
from vcmodels.samples.training_set import augmented_set, plain_set

MOVES = [
    {"name": "quarter_turn", "p": 1.0},
    {"name": "affine", "p": 1.0},
    {"name": "elastic", "p": 1.0},
]
TARGETS = {
    "cells": {"kind": "binary", "dilate_label": 2},
    "far": {"kind": "distance", "derive": "ids", "clip": 4},
}


@pytest.fixture
def volumes_of(make_task, store):
    """Task and opened volumes over an image, a mask and ids."""

    def build(name, image, ids, **settings):
        entry = {
            "input": store(f"{name}_image", image),
            "cells": store(f"{name}_cells", (ids > 0).astype(np.uint8)),
            "ids": store(f"{name}_ids", ids),
            "name": "v",
        }
        dataset = {"min_bbox_percent": 0, "min_labeled_ratio": 0, "normalization": "zscore"}
        task = make_task([entry], targets=TARGETS, dataset=dataset, augment=MOVES, **settings)
        return task, open_volumes(task)

    return build


def samples(task, volumes, split, side):
    regions = split.train_regions if side == "train" else split.val_regions
    rows = split.train if side == "train" else split.val
    fitted = fit_normalization(task.dataset_config.normalization, volumes, regions)
    made = augmented_set if side == "train" else plain_set
    dataset = made(Resolved(task, volumes), rows, regions, fitted)
    return [dataset[draw] for draw in range(min(len(dataset), 10))]


@pytest.mark.parametrize("guard", [None, 0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_sample_of_a_side_depends_on_a_voxel_outside_of_it(volumes_of, guard, seed):
    """Other values everywhere outside of the own side, in image and labels, change no bit."""
    rng = np.random.default_rng(seed)
    patch = [int(n) for n in rng.choice([4, 6, 8], 3)]
    axis = int(rng.integers(3))
    shape = tuple(int(rng.integers(n - 2, n + 4)) for n in patch)
    shape = (*shape[:axis], 3 * patch[axis] + (guard or 0), *shape[axis + 1 :])
    image = rng.normal(size=shape).astype(np.float32)
    ids = rng.integers(0, 3, shape).astype(np.uint8)
    settings = {
        "patch_size": patch,
        "split_guard": guard,
        "tr_val_split": float(rng.choice([0.1, 0.7])),
    }
    task, volumes = volumes_of("one", image, ids, **settings)
    split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
    train, val = split.train_regions[0], split.val_regions[0]
    assert not train.intersect(val).voxels
    for side, region in (("train", train), ("val", val)):
        other_image = rng.normal(1000, 100, size=shape).astype(np.float32)
        other_ids = rng.integers(0, 9, shape).astype(np.uint8)
        other_image[region.slices()] = image[region.slices()]
        other_ids[region.slices()] = ids[region.slices()]
        _, others = volumes_of(side, other_image, other_ids, **settings)
        pairs = zip(
            samples(task, volumes, split, side), samples(task, others, split, side), strict=True
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one["image"], other["image"])
            for name in TARGETS:
                np.testing.assert_array_equal(one["valid"][name], other["valid"][name])
                np.testing.assert_array_equal(one["labels"][name], other["labels"][name])
