import pickle

import numpy as np
import pytest

from vcmodels.config import Task
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.patches.find import PatchCriteria, search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.patches.split import split_patches
from vcmodels.samples.training_set import augmented_set


@pytest.fixture
def entry(store):
    """Labels with gaps, so that some shifts qualify and some do not."""
    rng = np.random.default_rng(0)
    labels = (rng.random((22, 33, 120)) < 0.15).astype(np.uint8)
    labels[8:12, :, 50:90] = 0
    labels[:, 9:14, :38] = 0
    image = store("raw", np.zeros(labels.shape, np.float32))
    return {"input": image, "sheet": store("sheet", labels), "ref_label": "sheet"}


def training(task: Task):
    volumes = open_volumes(task)
    split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
    fitted = fit_normalization(task.dataset_config.normalization, volumes, split.train_regions)
    resolved = Resolved(task, volumes)
    dataset = augmented_set(resolved, split.train, split.train_regions, fitted, seed=3)
    return dataset, volumes[0], split.train_regions[0]


@pytest.mark.parametrize("size", [[8, 8, 36], [12, 8, 40]])
def test_shifted_patches_meet_the_thresholds_voxel_by_voxel(make_task, entry, size):
    wanted = {"min_bbox_percent": 0.7, "min_labeled_ratio": 0.1}
    task = make_task([entry], patch_size=size, patch_jitter="qualifying", dataset=wanted)
    dataset, volume, region = training(task)
    criteria, listed = PatchCriteria.of(task), {tuple(row[1:]) for row in dataset.rows.tolist()}
    places = [dataset.place(draw).origin for draw in range(300)]
    for origin in set(places):
        assert region.contains(type(region)(origin, criteria.patch))
        mask = volume.ref.read(type(region)(origin, criteria.patch))[0] != 0
        inside = np.argwhere(mask)
        box = np.prod(np.ptp(inside, axis=0) + 1)
        assert box / mask.size >= 0.7
        assert len(inside) / box >= 0.1
    assert len(set(places) - listed) > 3
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.place(draw).origin for draw in range(300)] == places


def test_without_reference_label_patches_shift_freely_by_cells(make_task, entry):
    del entry["ref_label"]
    dataset, _, _ = training(make_task([entry], patch_size=[8, 8, 36], patch_jitter="qualifying"))
    places = np.array([dataset.place(draw).origin for draw in range(100)])
    assert (places % [4, 4, 9] == 0).all()
    listed = {tuple(row[1:]) for row in dataset.rows.tolist()}
    assert len({tuple(place) for place in places.tolist()} - listed) > 20
