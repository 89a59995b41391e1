"""Arrays in memory come out as files do, bit for bit."""

import pickle

import numpy as np
import pytest
import torch

from tests.inference.conftest import EXTENT, make_task, save
from vcmodels.errors import CheckpointError, RunError, TaskError, VolumeError
from vcmodels.inference import load_predictor, predict_volume, reproduce
from vcmodels.reporting import Silent
from vcmodels.volumes import Grid, create_array, open_volume

SPACING = (2.0, 0.5, 0.25)
NAMES = ("ct", "dose")


@pytest.fixture
def checkpoints(place):
    """Those of two networks, trained on volumes that are not there."""
    task = make_task(place, overlap=0.4)
    return [save(place, task, seed=n, name=f"runs/{n}/net_best.pth") for n in range(2)]


def write_inputs(place, values):
    """The channels as two arrays in a store of its own; returns their paths."""
    store = str(place / "other.zarr")
    for name, channel in zip(NAMES, values, strict=True):
        array = create_array(store, name, shape=channel.shape, chunks=(8, 16, 16), dtype=channel.dtype, grid=Grid(SPACING))  # fmt: skip
        array.write(open_volume(f"{store}/{name}", key="x").box, channel[None])
    return [f"{store}/{name}" for name in NAMES]


def noise(extent=EXTENT):
    return np.random.default_rng(1).integers(1, 200, (2, *extent)).astype(np.uint8)


def stored(place, name):
    volume = open_volume(str(place / "result.zarr" / name), key="x", channels="any")
    values = volume.read(volume.box)
    return values if volume.has_channel_axis else values[0]


MANNERS = {
    "plain": {},
    "views": {"tta": {"flips": ["z", "x"]}, "uncertainty": True, "overlap": [0.5, 0.25, 0.3]},
    "part": {"bbox": [[2, 5], [0, 16], [3, 9]], "num_dataloader_workers": 3},
}


@pytest.mark.parametrize("extent", [EXTENT, (5, 17, 9)], ids=["large", "smaller than a patch"])
@pytest.mark.parametrize("count", [1, 2], ids=["one network", "an ensemble"])
@pytest.mark.parametrize("manner", MANNERS)
def test_codes_of_an_array_are_those_in_a_file(place, checkpoints, manner, count, extent):
    predictor = load_predictor(*checkpoints[:count])
    params = make_task(place, **MANNERS[manner]).inference_params
    values = noise(extent)
    predict_volume(predictor, write_inputs(place, values), place / "result.zarr", params)
    found = predictor.predict(values, params=params, encoded=True)
    assert list(found)[:4] == ["sheet", "organ", "normals", "fibre"]
    assert ("sheet_uncertainty" in found) == (manner == "views")
    for name, codes in found.items():
        assert codes.dtype == np.uint8
        assert codes.shape[-3:] == extent
        np.testing.assert_array_equal(codes, stored(place, name))
    assert len(np.unique(found["normals"])) > 10
    assert len(np.unique(found["organ"])) > 1


def test_values_are_those_of_a_file_of_floats_and_ids_are_integers(place, checkpoints):
    predictor = load_predictor(*checkpoints)
    params = predictor.params.changed(device="cpu")
    values, file = noise(), place / "result.zarr"
    found = predictor.predict(values, params=params)
    paths = write_inputs(place, values)
    predict_volume(predictor, paths, file, params.changed(output_type="float32"))
    for name, array in found.items():
        np.testing.assert_array_equal(array, stored(place, name))
    assert reproduce(file, place / "again", reporter=Silent()).lines == []
    assert found["sheet"].dtype == found["normals"].dtype == np.float32
    assert found["organ"].dtype == np.uint8
    assert set(np.unique(found["organ"])) <= {0, 2, 7}
    assert {name: array.shape for name, array in found.items()} == {
        "sheet": EXTENT, "organ": EXTENT, "normals": (3, *EXTENT), "fibre": (3, *EXTENT),
    }  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(found["normals"], axis=0), 1, atol=1e-5)


def test_a_tensor_and_a_predictor_of_another_process_give_the_same(place, checkpoints):
    predictor = load_predictor(checkpoints[0])
    values = noise()
    params = predictor.params.changed(device="cpu", output_targets=["sheet"])
    expected = predictor.predict(values, params=params)["sheet"]
    for other in (torch.from_numpy(values), torch.from_numpy(values).bfloat16(), values * 1.0):
        np.testing.assert_array_equal(predictor.predict(other, params=params)["sheet"], expected)
    sent = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(sent.predict(values, params=params)["sheet"], expected)
    assert (predictor.patch, predictor.spacing) == ((16, 16, 16), SPACING)


def test_another_voxel_size_is_reported(checkpoints):
    predictor, reporter = load_predictor(checkpoints[0]), Silent()
    params = predictor.params.changed(output_targets=["sheet"])
    predictor.predict(noise(), params=params, reporter=reporter)
    assert reporter.lines == []
    predictor.predict(noise(), params=params, spacing=(1, 1, 1), reporter=reporter)
    (line,) = reporter.lines
    assert line.startswith("note: voxels of array are (1, 1, 1), those of the training were (2.0")


@pytest.mark.parametrize(
    ("array", "error", "match"),
    [
        (np.zeros((4, 5)), VolumeError, r"array: has shape \(4, 5\) and type float64; give numbers"),
        (np.zeros((2, 0, 5, 6)), VolumeError, r"array: has shape \(2, 0, 5, 6\)"),
        (np.zeros((2, 4, 5, 6), complex), VolumeError, "type complex128"),
        (np.zeros((4, 5, 6)), VolumeError, "array: 1 channels, the network was trained with 2"),
        (np.full((2, 4, 5, 6), np.nan), RunError, r"volume array: the input holds nan at .*0, 0, 0"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_predicted_are_refused(checkpoints, array, error, match):
    with pytest.raises(error, match=match):
        load_predictor(checkpoints[0]).predict(array)


def test_params_are_those_of_the_checkpoint_without_what_is_about_its_own_run(place):
    asked = {"tta": {"flips": ["y"]}, "bbox": [[0, 4], [0, 5], [0, 6]], "level": 2, "device": "cpu"}
    path = save(place, make_task(place, skip={"below": 3, "mask": "mask.zarr"}, **asked))
    params = load_predictor(path).params
    assert params.tta.flips == ("y",)
    assert (params.skip.below, params.skip.mask) == (3, None)
    assert (params.input_path, params.output_dir, params.bbox) == (None, None, None)
    assert (params.level, params.device) == (0, "auto")
    with pytest.raises(TaskError, match=r"inference_params\.overlap"):
        load_predictor(path).task_with(["inference_params.overlap=2"])


def test_the_best_of_a_run_folder_is_loaded_and_of_folds_all(place, tmp_path):
    task = make_task(place)
    best = save(place, task)
    save(place, task, seed=1, name="run/net_last.pth")
    save(place, task, seed=2, name="run/net_best.previous.pth")
    assert [n.path for n in load_predictor(place / "run").networks] == [best]
    folds = [save(place, task, seed=n, name=f"cv/fold_{n}/net_best.pth") for n in (0, 2)]
    assert [n.path for n in load_predictor(place / "cv").networks] == folds
    save(place, task, seed=3, name="run/other_best.pth")
    with pytest.raises(CheckpointError, match=r"several runs: net_best.pth, other_best.pth; name"):
        load_predictor(place / "run")
    with pytest.raises(CheckpointError, match=r"in.zarr: holds no \*_best.pth; train first"):
        load_predictor(place / "in.zarr")


def test_statistics_per_volume_are_those_of_the_array(place):
    """A brighter copy with more contrast gives the same prediction."""
    task = make_task(place, {"scheme": "zscore", "per": "volume"}, output_targets=["normals"])
    predictor, values = load_predictor(save(place, task, per="volume")), noise()
    before = predictor.predict(values)["normals"]
    brighter = values.astype(np.float32) * 3 + 100
    np.testing.assert_allclose(predictor.predict(brighter)["normals"], before, atol=1e-4)
    contrast = values.astype(np.float32)
    contrast[0, :10] += 100
    assert np.abs(predictor.predict(contrast)["normals"] - before).max() > 0.01


def test_codes_that_a_kind_does_not_have_are_refused_and_its_values_are_there(place):
    predictor = load_predictor(save(place, make_task(place, output_targets=["depth"])))
    with pytest.raises(TaskError, match=r'output_type: target "depth" .*output_range'):
        predictor.predict(noise(), encoded=True)
    assert predictor.predict(noise())["depth"].dtype == np.float32
