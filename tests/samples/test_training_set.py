"""The samples of a task, in one's own loop."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vcmodels.errors import TaskError
from vcmodels.patches.resolve import resolve
from vcmodels.samples.dataset import make_sample
from vcmodels.samples.loader import batches
from vcmodels.samples.training_set import sample, training_set

SHAPE = (14, 18, 44)
PATCH = (6, 7, 8)


@pytest.fixture
def task(make_task, store):
    """Two volumes: of one the sheet is a pseudo-label, and there is no depth."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE).astype(np.float32)
    full = {
        "input": store("raw", image),
        "sheet": store("sheet", (image > 0.5).astype(np.uint8)),
        "depth": store("depth", image),
    }
    other = {"input": store("other", image), "sheet": full["sheet"], "pseudo": {"sheet": 0.25}}
    augment = [{"name": "flip", "p": 0.5}, {"name": "affine", "p": 0.5}, {"name": "noise"}]
    targets = {
        "sheet": {"kind": "binary"},
        "depth": {"kind": "regression", "channels": 1, "activation": "none"},
    }
    return make_task(
        [{**full, "name": "full"}, {**other, "name": "pseudo", "split": "train"}],
        targets,
        augment,
        patch_size=list(PATCH),
        split_guard=4,
    )


def test_a_data_loader_gives_the_batches_of_training(task):
    dataset = training_set(resolve(task))
    loader = DataLoader(dataset, batch_size=2, sampler=range(8))
    groups = [range(first, first + 2) for first in range(0, 8, 2)]
    ours = list(batches(dataset, groups, workers=0, device=torch.device("cpu")))
    found = list(loader)
    assert len(found) == len(ours) == 4
    for item, batch in zip(found, ours, strict=True):
        assert item["image"].shape == (2, 1, *PATCH)
        assert torch.equal(item["image"], batch.image)
        for name in ("sheet", "depth"):
            assert torch.equal(item["labels"][name], batch.labels[name])
            assert torch.equal(item["valid"][name], batch.valid[name])
            weight = batch.weight[name]
            wanted = torch.ones(2) if weight is None else weight.flatten()
            assert torch.equal(item["weight"][name], wanted)
    sheets = torch.cat([item["weight"]["sheet"] for item in found])
    assert set(sheets.tolist()) == {0.25, 1.0}


def test_a_data_loader_needs_nothing_but_the_dataset(task):
    dataset = training_set(resolve(task))
    found = list(DataLoader(dataset, batch_size=2))
    assert sum(len(item["image"]) for item in found) == len(dataset)


def test_worker_processes_of_a_data_loader_change_nothing(task):
    dataset = training_set(resolve(task))
    options = {"batch_size": 3, "sampler": range(6)}
    here = [item["image"] for item in DataLoader(dataset, **options)]
    there = DataLoader(dataset, num_workers=1, multiprocessing_context="forkserver", **options)
    for one, item in zip(here, there, strict=True):
        assert torch.equal(one, item["image"])


def test_a_second_epoch_takes_the_same_patches_changed_otherwise(task):
    dataset = training_set(resolve(task))
    count = len(dataset)
    assert sorted(map(dataset.row, range(count))) == sorted(
        map(dataset.row, range(count, 2 * count))
    )
    row = dataset.row(0)
    again = next(draw for draw in range(count, 2 * count) if dataset.row(draw) == row)
    assert not torch.equal(dataset[0]["image"], dataset[again]["image"])


def test_one_sample_is_that_of_the_training_set(task):
    dataset = pickle.loads(pickle.dumps(training_set(resolve(task))))
    for index in (0, 3):
        found, wanted = sample(task, index), make_sample(dataset, index, dataset.row(index))
        assert found.place == wanted.place
        assert found.image.shape == (1, *PATCH)
        assert found.labels["sheet"].dtype == torch.float32
        assert found.valid["sheet"].dtype == torch.bool
        assert torch.equal(found.image, wanted.image)
        assert torch.equal(found.labels["depth"], wanted.labels["depth"])
        assert torch.equal(found.valid["depth"], wanted.valid["depth"])
    assert not torch.equal(sample(task, 0).image, sample(task, 3).image)


def test_a_sample_leaves_no_division_in_the_run_folder(task):
    sample(task)
    assert not (task.run_dir / "splits.json").exists()


def test_sizes_that_were_not_planned_are_named(task):
    settings = task.tr_params.model_copy(update={"given_patch_size": None})
    with pytest.raises(TaskError, match=r"tr_params\.patch_size: is left out.*resolve the task"):
        _ = settings.patch_size
