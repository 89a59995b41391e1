import json

import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches.find import search_patches
from vcmodels.patches.split import load_or_split, split_patches
from vcmodels.prepare.section import Prepare
from vcmodels.runs.run import Run


@pytest.fixture
def opened(make_task, store):
    place = store("raw", np.zeros((20, 25, 64), np.uint8), chunks=(8, 8, 8))
    more = store("more", np.zeros((20, 25, 32), np.uint8), chunks=(8, 8, 8))

    def build(name="v", bbox=None, split=None, config=None, **settings):
        entry = {"input": place, "sheet": place, "name": name, "bbox": bbox, "split": split}
        entries = [entry]
        if split:
            entries.append({**entry, "name": "w", "input": more, "sheet": more, "split": "val"})
        targets = {"sheet": {"kind": "binary"}}
        task = make_task(entries, targets=targets, **settings).with_values(
            dataset_config=config or {}
        )
        volumes = open_volumes(task)
        return task.tr_params, volumes, search_patches(task, volumes)

    return build


@pytest.fixture
def other(opened, tmp_path):
    settings, volumes, patches = opened(patch_size=[8, 8, 8], split_guard=2, seed=1)
    return load_or_split(Run(tmp_path / "other"), settings, volumes, patches)


def test_volumes_are_divided_as_in_another_run_whatever_patch_seed_and_share(
    opened, other, tmp_path
):
    for named in (tmp_path / "other", tmp_path / "other" / "splits.json"):
        settings, volumes, patches = opened(
            patch_size=[8, 12, 4], seed=9, tr_val_split=0.5, split_from=str(named)
        )
        split = split_patches(settings, volumes, patches)
        assert split.train_regions == other.train_regions
        assert split.val_regions == other.val_regions
        assert len(split.train) > len(split.val) > 0
    saved = load_or_split(Run(tmp_path / "mine"), settings, volumes, patches)
    again = load_or_split(Run(tmp_path / "mine"), settings, volumes, patches)
    assert saved.to_dict() == again.to_dict()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "w"}, "knows no volume w; its volumes are v"),
        ({"bbox": [[0, 20], [0, 25], [0, 32]]}, "reaches out of what is used here"),
    ],
)
def test_other_volumes_are_refused(opened, other, tmp_path, keys, message):
    settings, volumes, patches = opened(
        **keys, patch_size=[8, 8, 8], split_from=str(tmp_path / "other")
    )
    with pytest.raises(TaskError, match=message):
        split_patches(settings, volumes, patches)


def test_no_split_and_a_random_one_are_refused(opened, other, tmp_path):
    settings, volumes, patches = opened(patch_size=[8, 8, 8], split_from=str(tmp_path / "none"))
    with pytest.raises(TaskError, match=r"splits\.json is not there"):
        split_patches(settings, volumes, patches)
    place = tmp_path / "other" / "splits.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"split_mode": "random"}))
    with pytest.raises(TaskError, match="divides patches at random"):
        split_patches(settings.changed(split_from=str(place)), volumes, patches)


CROP = {"prepare": Prepare.model_validate_json('{"crop": {"box": [[0, 20], [0, 25], [2, 62]]}}')}
"""Boxes of x count from 2 on then."""


def test_a_volume_that_is_cut_on_another_grid_is_refused(opened, other, tmp_path):
    settings, volumes, patches = opened(
        patch_size=[8, 8, 8], split_from=str(tmp_path / "other"), config=CROP
    )
    with pytest.raises(TaskError, match=r"cuts v on another grid .*; give volumes a \"split\""):
        split_patches(settings, volumes, patches)
    place = tmp_path / "other" / "splits.json"
    kept = json.loads(place.read_text())
    del kept["grids"]
    place.write_text(json.dumps(kept))
    split = split_patches(settings, opened(patch_size=[8, 8, 8])[1], patches)
    assert split.val_regions == other.val_regions


def test_whole_volumes_are_held_out_alike_on_any_grid(opened, tmp_path):
    settings, volumes, patches = opened(patch_size=[8, 8, 8], split="train")
    load_or_split(Run(tmp_path / "first"), settings, volumes, patches)
    settings, volumes, patches = opened(
        patch_size=[8, 8, 8], split="train", config=CROP, split_from=str(tmp_path / "first")
    )
    split = split_patches(settings, volumes, patches)
    assert split.train_regions == [volumes[0].region, None]
    assert split.val_regions == [None, volumes[1].region]
    assert volumes[0].region.shape == (20, 25, 60)


def test_a_split_of_its_own_that_says_otherwise_is_refused(opened, other, tmp_path):
    settings, volumes, patches = opened(
        patch_size=[8, 8, 8], split="train", split_from=str(tmp_path / "other")
    )
    with pytest.raises(TaskError, match=r'split: is "train", and .*other has it in val'):
        split_patches(settings, volumes[:1], patches)
