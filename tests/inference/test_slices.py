"""Predicting slice by slice: the bare network on each slice and its neighbours is the oracle."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import parse_task
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import CheckpointError, TaskError, VolumeError
from vcmodels.geometry.grid import tiles
from vcmodels.inference import RunOptions, predict_request, request_of, units
from vcmodels.inference.job import prepare
from vcmodels.inference.predictor import Predictor
from vcmodels.inference.repair import InputRecord, lets_continue
from vcmodels.reporting import Silent
from vcmodels.samples.dataset import PatchDataset, make_sample
from vcmodels.volumes import create_array, open_volume
from vcmodels.volumes.reader import Volume

EXTENT = (12, 10, 14)
OFFSETS = (-3, -1, 0, 1)
STATISTICS = (
    ChannelStatistics(100.0, 20.0, 0.0, 200.0, 100.0, 20.0, 0.0, 200.0),
    ChannelStatistics(3.0, 2.0, 0.0, 9.0, 3.0, 2.0, 0.0, 9.0),
)
AXES = "zyx"


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(100, 20, EXTENT), rng.normal(3, 2, EXTENT)]).astype(np.float32)


@pytest.fixture
def stored(tmp_path, image):
    """Two inputs, and a label."""
    for name, values in (("ct", image[:1]), ("dose", image[1:]), ("value", image[:1])):
        array = create_array(
            str(tmp_path / "in.zarr"), name, shape=EXTENT, chunks=(4, 4, 4), dtype=np.float32
        )
        array.write(open_volume(str(tmp_path / "in.zarr" / name), key="x").box, values)
    return tmp_path


def task_of(folder: Path, axis: str, *, stack=OFFSETS, **inference):
    """Whole slices as patches, so that nothing is blended."""
    patch = [1 if name == axis else n for name, n in zip(AXES, EXTENT, strict=True)]
    data = {"slice_axis": axis} | (
        {"stack": {"axis": axis, "offsets": list(stack)}} if stack else {}
    )
    task, _ = parse_task(
        {
            "tr_params": {"model_name": "net", "patch_size": patch, "num_dataloader_workers": 0},
            "model_config": {"name": "residual_unet", "f_maps": [4, 6]},
            "inference_params": {
                "input_path": [str(folder / "in.zarr/ct"), str(folder / "in.zarr/dose")],
                "output_dir": str(folder / "out"),
                "output_type": "float32",
                "output_chunks": [4, 4, 4],
                "num_dataloader_workers": 2,
                "device": "cpu",
                "amp": "off",
                "pyramid": None,
            }
            | inference,
            "dataset_config": {
                "volume_paths": [
                    {
                        "input": [str(folder / "in.zarr/ct"), str(folder / "in.zarr/dose")],
                        "value": str(folder / "in.zarr/value"),
                    }
                ],
                "targets": {"value": {"kind": "regression"}},
                **data,
            },
        },
        "test",
    )
    return task


def trained(task, seed=0, **changes) -> TrainedNetwork:
    stack, patch = task.dataset_config.stack, task.tr_params.patch_size
    channels = 2 * (stack.depth if stack else 1)
    torch.manual_seed(seed)
    network = TrainedNetwork(
        module=task.model.build(channels, task.heads, patch, (1.0, 1.0, 1.0)).eval(),
        task=task,
        targets=dict(task.dataset_config.targets),
        normalization=Normalization("zscore", channels=STATISTICS),
        patch=patch,
        spacing=(1.0, 1.0, 1.0),
        in_channels=channels,
        sha256=str(seed) * 64,
        path=Path(f"net{seed}_best.pth"),
    )
    return replace(network, **changes)


def slice_by_slice(network: TrainedNetwork, image: np.ndarray, axis: int, offsets) -> np.ndarray:
    """The bare network on each slice, stacked and normalised by hand: (Z, Y, X)."""
    scaled = [(c - s.mean) / s.sd for c, s in zip(image, STATISTICS, strict=True)]
    found = []
    for at in range(EXTENT[axis]):
        planes = [min(max(at + o, 0), EXTENT[axis] - 1) for o in offsets]
        seen = [channel.take([plane], axis) for channel in scaled for plane in planes]
        with torch.no_grad():
            logits = network.module(torch.from_numpy(np.stack(seen)[None].astype(np.float32)))
        found.append(logits["value"][0][0, 0].numpy())
    return np.concatenate(found, axis)


@pytest.mark.parametrize("stack", [OFFSETS, None], ids=["stack", "alone"])
@pytest.mark.parametrize("axis", AXES)
def test_a_volume_is_predicted_as_each_slice_by_the_bare_network(stored, image, axis, stack):
    network = trained(task := task_of(stored, axis, stack=stack))
    predict_request(request_of(task, (network,)), RunOptions())
    found = open_volume(str(stored / "out/net.zarr/value/0"), key="out")
    wanted = slice_by_slice(network, image, AXES.index(axis), stack or (0,))
    np.testing.assert_allclose(found.read(found.box)[0], wanted, atol=1e-4)


def test_an_array_in_memory_is_predicted_alike(stored, image):
    network = trained(task_of(stored, "y"))
    found = Predictor((network,)).predict(image)["value"]
    np.testing.assert_allclose(found, slice_by_slice(network, image, 1, OFFSETS), atol=1e-4)


@pytest.mark.parametrize("axis", AXES)
def test_training_reads_the_stack_that_inference_reads(stored, image, axis):
    """At both ends and inside, in a region that is not the whole volume; middle channel: the slice."""
    task, number = task_of(stored, axis), AXES.index(axis)
    (volume,) = open_volumes(task)
    assert (volume.channels, volume.stored_channels) == (8, 2)
    low, high = 3, EXTENT[number] - 2
    region = volume.region.cut(number, low, high)
    rows = np.zeros((3, 4), np.int64)
    rows[:, 1 + number] = low, low + 2, high - 1
    ways = Normalization("zscore", channels=STATISTICS)
    config = task.dataset_config
    dataset = PatchDataset(
        [volume], rows, [region], config.targets, task.tr_params.patch_size, ways
    )
    for draw, at in enumerate(rows[:, 1 + number]):
        seen = make_sample(dataset, draw, draw).image.numpy()
        planes = [min(max(at + o, low), high - 1) for o in OFFSETS]
        wanted = [
            (channel.take([plane], number) - s.mean) / s.sd
            for channel, s in zip(image, STATISTICS, strict=True)
            for plane in planes
        ]
        np.testing.assert_allclose(seen, np.stack(wanted), atol=1e-5)
        alone = replace(volume, stack=None)
        plain = PatchDataset(
            [alone], rows, [region], config.targets, task.tr_params.patch_size, ways
        )
        np.testing.assert_array_equal(seen[[2, 6]], make_sample(plain, draw, draw).image.numpy())


@pytest.mark.parametrize("bbox", [None, [[5, 8], [5, 8], [5, 8]]], ids=["all", "a box"])
@pytest.mark.parametrize("axis", AXES)
def test_each_chunk_is_decoded_about_once(stored, monkeypatch, axis, bbox):
    """In 1-voxel reads, a chunk of 4 slices would be decoded 4 times, with a stack 16 times."""
    monkeypatch.setattr(units, "LEAST_TILE", 4)
    patch = [1 if name == axis else 4 for name in AXES]
    task = task_of(stored, axis, patch_size=patch, bbox=bbox)
    counted, read = Counter(), Volume.read

    def counting(self, box, *rest, **more):
        counted[self.location] += sum(1 for _ in tiles(box.intersect(self.box), self.chunks))
        return read(self, box, *rest, **more)

    monkeypatch.setattr(Volume, "read", counting)
    network = trained(task, normalization=Normalization("zscore", channels=STATISTICS))
    plan = predict_request(request_of(task, (network,)), RunOptions(dry_run=True)).estimate
    assert not counted
    predict_request(request_of(task, (network,)), RunOptions())
    reads = [n for location, n in counted.items() if "in.zarr" in location]
    if bbox is None:
        assert reads == [np.prod([-(-n // 4) for n in EXTENT])] * 2
    assert plan.traffic.chunks_read == sum(reads)


@pytest.mark.parametrize(("changed", "end", "goes_on"), [(2, 8, False), (2, 7, True)])
def test_a_run_goes_on_only_if_no_slice_that_was_read_has_changed(stored, changed, end, goes_on):
    """Chunks 2 hold the slices from 8 on, of which the first is read for slice 7."""
    pipeline = prepare(
        request_of(task := task_of(stored, "z"), (trained(task),)), Silent()
    ).pipeline
    before = InputRecord.of(pipeline)
    other = {
        index: (1, 1) if index[0] == changed else state for index, state in before.chunks[0].items()
    }
    now = replace(before, chunks=(other, before.chunks[1]))
    done = [pipeline.inputs[0].box.cut(0, 0, end)]
    assert lets_continue(pipeline, before, before, done)
    assert lets_continue(pipeline, before, now, done) is goes_on


def test_tta_keeps_slices_in_their_plane(stored):
    task = task_of(stored, "z", tta={"flips": ["z", "y"], "quarter_turns": True})
    network = trained(task)
    request = request_of(task, (network,))
    predict_request(request, RunOptions())
    found = open_volume(str(stored / "out/net.zarr/value/0"), key="out")
    plain = task_of(stored, "z", tta={"flips": ["y", "x"]}, output_dir=str(stored / "plain"))
    predict_request(request_of(plain, (network,)), RunOptions())
    wanted = open_volume(str(stored / "plain/net.zarr/value/0"), key="out")
    np.testing.assert_allclose(found.read(found.box), wanted.read(wanted.box), atol=1e-5)


def test_other_slices_than_those_of_the_training_are_refused(stored):
    task = task_of(stored, "z")
    with pytest.raises(TaskError, match=r"dataset_config.stack: is null, the checkpoint was"):
        request_of(task_of(stored, "z", stack=None), (trained(task),))
    other = trained(task_of(stored, "z", stack=(-2, -1, 0, 1)), seed=1)
    request = request_of(task, (trained(task), other))
    with pytest.raises(CheckpointError, match="sees other slices as channels than the first"):
        predict_request(request, RunOptions())
    thick = task.with_values(inference_params={"patch_size": (2, 10, 14)})
    request = request_of(thick, (trained(task),))
    with pytest.raises(TaskError, match=r"is 2 along z, the network is planned for 1"):
        predict_request(request, RunOptions())


def test_another_number_of_channels_is_said_in_those_that_are_stored(stored):
    task = task_of(stored, "z", input_path=str(stored / "in.zarr/ct"))
    with pytest.raises(VolumeError, match="1 channels, the network was trained with 2"):
        predict_request(request_of(task, (trained(task),)), RunOptions())
