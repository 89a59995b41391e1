"""What `chunk_cache_gb` gives to each reading process."""

import numpy as np
import pytest
import torch

from vcmodels.data.normalization import Normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.patches.resolve import Resolved
from vcmodels.samples import dataset
from vcmodels.samples.dataset import cached_volumes, make_sample, worker_budget
from vcmodels.samples.training_set import augmented_set
from vcmodels.volumes.chunk_cache import CachedVolume

SHAPE = (14, 18, 44)
DECODED = 14 * 18 * 44 * (4 + 1 + 3 * 2)


@pytest.fixture
def build(make_task, store):
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE).astype(np.float32)
    entry = {
        "input": store("raw", image),
        "sheet": store("sheet", (image > 0.5).astype(np.uint8)),
        "normals": store("normals", rng.integers(0, 65535, (3, *SHAPE)).astype(np.uint16)),
    }
    targets = {"sheet": {"kind": "binary"}, "normals": {"kind": "normals"}}

    def make(**settings):
        task = make_task([entry], patch_size=[6, 7, 8], targets=targets, **settings)
        return task, open_volumes(task)

    return make


@pytest.mark.parametrize(
    ("asked", "workers", "most", "budget"),
    [
        (0, 2, 10**12, 0),
        (0.5, 4, 0, 125_000_000),
        (0.5, 0, 0, 500_000_000),
        ("auto", 2, 2 * DECODED, DECODED),
        ("auto", 2, 2 * DECODED - 1, 0),
        ("auto", 0, DECODED, DECODED),
    ],
)
def test_budget_of_a_process(build, monkeypatch, asked, workers, most, budget):
    monkeypatch.setattr(dataset, "AUTO_BYTES", most)
    task, volumes = build(chunk_cache_gb=asked, num_dataloader_workers=workers)
    assert worker_budget(task.tr_params, volumes) == budget
    (found,) = cached_volumes(volumes, budget)
    arrays = [*found.inputs, *found.labels.values()]
    assert {isinstance(array, CachedVolume) for array in arrays} == {budget > 0}
    if budget:
        assert len({id(array.cache) for array in arrays}) == 1


def budget_of(task, volumes):
    return worker_budget(task.tr_params, volumes)


def test_processes_of_one_host_share_what_may_be_kept(build, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(dataset, "AUTO_BYTES", 6 * DECODED)
    asked = {"num_dataloader_workers": 2}
    assert budget_of(*build(chunk_cache_gb="auto", **asked)) == DECODED
    assert budget_of(*build(chunk_cache_gb=0.6, **asked)) == 100_000_000
    monkeypatch.setattr(dataset, "AUTO_BYTES", 6 * DECODED - 1)
    assert budget_of(*build(chunk_cache_gb="auto", **asked)) == 0


def test_an_array_in_several_volumes_counts_once(build, monkeypatch):
    monkeypatch.setattr(dataset, "AUTO_BYTES", DECODED)
    task, volumes = build(chunk_cache_gb="auto", num_dataloader_workers=1)
    assert worker_budget(task.tr_params, [*volumes, *volumes]) == DECODED


def test_patches_are_the_same_through_a_cache(build):
    patches = []
    for asked in (0, 0.00001, "auto"):
        task, volumes = build(chunk_cache_gb=asked)
        rows = np.array([[0, 0, 0, 0], [0, 8, 11, 36], [0, 4, 5, 9]])
        regions = [volumes[0].region]
        dataset = augmented_set(
            Resolved(task, volumes), rows, regions, Normalization("none"), seed=3
        )
        patches.append([make_sample(dataset, draw, draw % 3) for draw in range(12)])
    for others in patches[1:]:
        for one, other in zip(patches[0], others, strict=True):
            assert one.place == other.place
            assert torch.equal(one.image, other.image)
            assert all(torch.equal(one.labels[n], other.labels[n]) for n in one.labels)
            assert all(torch.equal(one.valid[n], other.valid[n]) for n in one.valid)
