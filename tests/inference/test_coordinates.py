"""Coordinates as channels in a prediction: a network that gives them back is the oracle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.test_own_grid import SHAPE, Bench
from vcmodels.blockwise import Part
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.coordinates import coordinates
from vcmodels.inference import RunOptions, predict_request, request_of
from vcmodels.inference.predictor import Predictor
from vcmodels.models import MedPatchNet
from vcmodels.volumes import open_volume

EXTENT = (13, 18, 21)
WEIGHTS = (1.0, 10.0, 100.0)
TTA = {"flips": ["z", "y", "x"]}


class Places(nn.Module):
    """A mixture of the coordinates, from which each can be told; none of the image."""

    def forward(self, image, targets):
        mixed = sum(w * image[:, c] for w, c in zip(WEIGHTS, (-3, -2, -1), strict=True))
        return dict.fromkeys(targets, (mixed[:, None],))


def wanted() -> np.ndarray:
    """(Z, Y, X): the same mixture of the positions of all voxels."""
    places = coordinates(Box((0, 0, 0), EXTENT), EXTENT)
    return np.tensordot(WEIGHTS, places, 1)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=EXTENT).astype(np.float32)


def with_coordinates(task, *, are_on=True):
    return task.with_values(dataset_config={"coordinates": are_on})


def run(work, *, options=None, **inference):
    task = with_coordinates(work.task(**inference))
    request = work.request(task, in_channels=4)
    return predict_request(request, RunOptions(**(options or {})))


@pytest.mark.parametrize(
    "inference",
    [
        {"overlap": 0.5},
        {"tta": {"flips": ["z", "y", "x"], "quarter_turns": True}, "patch_size": [6, 8, 8]},
        {"patch_size": [16, 8, 10]},
        {"bbox": [[2, 11], [3, 18], [0, 14]]},
    ],
    ids=["overlap", "mirrored and turned", "longer than the volume", "a box"],
)
def test_each_voxel_has_its_place_in_the_volume(workplace, values, inference):
    work = workplace(values, network=Places())
    run(work, **inference)
    box = inference.get("bbox") or [[0, n] for n in EXTENT]
    there = tuple(slice(*pair) for pair in box)
    np.testing.assert_allclose(work.read()[there], wanted()[there], atol=1e-4)


def test_networks_of_other_normalisation_are_told_the_same(workplace, values):
    work = workplace(values, network=Places())
    task = with_coordinates(work.task())
    one = work.trained(task, in_channels=4)
    scaled = ChannelStatistics(5.0, 2.0, 0.0, 9.0, 5.0, 2.0, 0.0, 9.0)
    two = replace(one, normalization=Normalization("zscore", channels=(scaled,)), sha256="1" * 64)
    predict_request(request_of(task, (one, two)), RunOptions())
    np.testing.assert_allclose(work.read(), wanted(), atol=1e-4)


def test_an_array_in_memory_is_predicted_alike(workplace, values):
    work = workplace(values, network=Places())
    network = work.trained(with_coordinates(work.task()), in_channels=4)
    found = Predictor((network,)).predict(values)["value"]
    np.testing.assert_allclose(found, wanted(), atol=1e-4)


def medpatchnet() -> nn.Module:
    """One whose result depends much on the position."""
    torch.manual_seed(0)
    model = MedPatchNet(f_maps=(4, 6), position_features=8)
    network = model.build(4, {"value": 1}, (6, 8, 10), (1.0, 1.0, 1.0))
    nn.init.normal_(network.heads["value"].filters.weight)
    return network


def test_blocks_parts_and_memory_do_not_change_a_bit(workplace, values):
    settings = {"overlap": 0.3, "tta": TTA}
    network = medpatchnet()
    reference, small, parts = (workplace(values, network=network) for _ in range(3))
    run(reference, **settings, memory=1.0)
    run(small, **settings, memory=4e-4, num_dataloader_workers=0)
    for index in (1, 0):
        run(parts, **settings, options={"part": Part(index, 2)})
    assert np.ptp(reference.read()) > 0
    assert small.hashes() == parts.hashes() == reference.hashes()
    others = workplace(values, network=network)
    run(others, **settings, output_chunks=[4, 16, 8], memory=4e-4)
    np.testing.assert_array_equal(others.read(), reference.read())


def test_another_place_gives_another_result(workplace, values):
    """Two equal halves: only the position tells them apart."""
    twice = np.concatenate([values[:, :, :10], values[:, :, :10]], axis=2)
    work = workplace(twice, network=medpatchnet())
    run(work, patch_size=[14, 18, 10], overlap=0)
    left, right = np.split(work.read(), 2, axis=2)
    assert np.abs(left - right).max() > 0.01
    deaf = medpatchnet()
    nn.init.zeros_(deaf.heads["value"].filters.weight)
    work = workplace(twice, network=deaf)
    run(work, patch_size=[14, 18, 10], overlap=0)
    left, right = np.split(work.read(), 2, axis=2)
    np.testing.assert_array_equal(left, right)


def test_a_task_that_says_otherwise_is_refused(workplace, values):
    work = workplace(values, network=Places())
    plain, told = work.task(), with_coordinates(work.task())
    network = work.trained(told, in_channels=4)
    with pytest.raises(TaskError, match=r"coordinates: is false, the checkpoint was .* true"):
        request_of(plain, (network,))
    with pytest.raises(TaskError, match=r"coordinates: is true, the checkpoint was .* false"):
        request_of(told, (work.trained(plain),))
    other = work.trained(plain, in_channels=4, sha256="1" * 64, path=Path("other.pth"))
    with pytest.raises(CheckpointError, match=r"sees other channels .*dataset_config.coordinates"):
        predict_request(request_of(told, (network, other)), RunOptions())
    assert network.stored_channels == 1


def test_on_a_prepared_grid_they_are_those_of_that_grid(tmp_path):
    """Its z lies along the y of the stored volume, its y against x, its x against z."""
    bench = Bench(tmp_path)
    task = with_coordinates(bench.task({"orientation": "RPI"}))
    network = replace(bench.trained(task, Places()), in_channels=4)
    predict_request(request_of(task, (network,)), RunOptions())
    found = open_volume(str(tmp_path / "out/net.zarr/value/0"), key="out")
    z, y, x = coordinates(Box((0, 0, 0), SHAPE), SHAPE)
    mixed = np.tensordot(WEIGHTS, np.stack([y, -x, -z]), 1)
    np.testing.assert_allclose(found.read(found.box)[0], mixed, atol=1e-4)
