"""Results on the input's own grid, of networks that see a turned and resampled one.

The networks are functions whose value at a place is known: what comes back is compared with them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.conftest import Identity
from tests.prepare.conftest import affine_with
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import parse_task
from vcmodels.data.normalization import Normalization
from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.inference import (
    Predictor,
    RunOptions,
    predict_on,
    predict_request,
    request_of,
)
from vcmodels.inference.own_grid import _Undoing
from vcmodels.prepare.derived import prepared_folder
from vcmodels.reporting import Silent
from vcmodels.results import is_complete, our_attributes
from vcmodels.volumes import Description, Grid, Pyramid, open_volume, write_volume
from vcmodels.volumes.places import place_at
from vcmodels.volumes.world import geometry_note

SHAPE = (14, 40, 36)
SPACING = (3.0, 0.8, 0.9)
LAS = {"orientation": "RPI"}
ISO = {"orientation": "RPI", "spacing": [1.2, 1.2, 1.2]}


def scene(shape=SHAPE):
    """Smooth, and unequal along each axis."""
    z, y, x = (n * s for n, s in zip(np.indices(shape), SPACING, strict=True))
    return (100 * np.sin(z / 14) + 2.5 * y + 60 * np.cos(x / 11)).astype(np.float32)


class Slopes(nn.Module):
    """The slope of the first channel along each axis, per voxel, as three logits."""

    def forward(self, image, targets):
        slopes = torch.stack(torch.gradient(image[:, 0], dim=(1, 2, 3)), dim=1)
        return dict.fromkeys(targets, (slopes,))


class Bands(nn.Module):
    """Three classes by the value of the first channel."""

    def forward(self, image, targets):
        near = [-(image[:, :1] - middle).square() / 50 for middle in (-40, 60, 160)]
        return dict.fromkeys(targets, (torch.cat(near, dim=1),))


class Bench:
    """A store, and predictions of it."""

    def __init__(self, folder: Path, values=None, affine=True) -> None:
        self.folder, self.values = folder, scene() if values is None else values
        attributes = {"vcmodels": {"geometry": geometry_note(affine_with(SPACING))}}
        write_volume(
            str(folder / "in.zarr"), self.values, grid=Grid(SPACING, unit="millimeter"),
            chunks=(8, 16, 16), pyramid=Pyramid(levels=0),
            description=Description("in", attributes if affine else {}),
        )  # fmt: skip

    def task(self, prepare, target=None, **inference):
        settings = {
            "input_path": str(self.folder / "in.zarr"), "output_dir": str(self.folder / "out"),
            "output_type": "float32", "output_chunks": [8, 16, 16], "patch_size": [16, 16, 16],
            "device": "cpu", "amp": "off",
        }  # fmt: skip
        return parse_task(
            {
                "tr_params": {"model_name": "net", "patch_size": [16, 16, 16]},
                "model_config": {"name": "residual_unet", "f_maps": [2, 4]},
                "inference_params": settings | inference,
                "dataset_config": {
                    "normalization": "none",
                    "prepare": prepare,
                    "volume_paths": [{"input": "a.zarr", "value": "b.zarr"}],
                    "targets": {"value": target or {"kind": "regression"}},
                },
            },
            "test",
        )[0]

    def trained(self, task, network=None):
        return TrainedNetwork(
            module=(network or Identity()).eval(), task=task,
            targets=dict(task.dataset_config.targets), normalization=Normalization("none"),
            patch=(16, 16, 16), spacing=(1.2, 1.2, 1.2), in_channels=1, sha256="0" * 64,
            path=Path("net_best.pth"), unit="millimeter",
        )  # fmt: skip

    def request(self, prepare, network=None, target=None, **inference):
        task = self.task(prepare, target, **inference)
        return request_of(task, (self.trained(task, network),))

    def run(self, prepare, network=None, target=None, options=None, **inference):
        request = self.request(prepare, network, target, **inference)
        return predict_request(request, options or RunOptions())

    def read(self, name="value", level=0):
        found = open_volume(str(self.folder / f"out/net.zarr/{name}/{level}"), channels="any")
        return found, found.read(found.box)


def assert_moved(found, expected):
    """That voxels only moved: blending rounds where the last patches overlap."""
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_turned_inputs_come_back_voxel_by_voxel(bench):
    report = bench.run(LAS, overlap=0)
    assert report.is_complete
    found, values = bench.read()
    assert_moved(values[0], bench.values)
    assert found.spacing == SPACING
    assert found.unit == "millimeter"
    noted = our_attributes(place_at(str(report.root)))
    assert is_complete(noted)
    assert noted["manifest"]["prepare"]["orientation"] == "RPI"
    assert GridMap.from_json(noted["manifest"]["prepare"]["grid"]).source == SHAPE
    assert noted["provenance"]["task"]["dataset_config"]["prepare"]["orientation"] == "RPI"
    assert bench.read(level=1)[0].extent == (14, 20, 18)
    assert sorted(p.name for p in (bench.folder / "out").iterdir()) == ["net.zarr"]


def test_resampled_inputs_come_back_where_they_were(bench):
    bench.run(ISO)
    values = bench.read()[1][0]
    span = np.ptp(bench.values)
    error = np.abs(values - bench.values)
    # Voxels of 3 mm were interpolated to 1.2 mm and averaged back.
    assert error[1:-1, 2:-2, 2:-2].max() < 0.01 * span
    assert error.max() < 0.06 * span


def test_normals_are_turned_back(bench):
    target = {"kind": "normals", "vector_order": "zyx"}
    bench.run(ISO, Slopes(), target)
    values = bench.read()[1]
    expected = np.stack(np.gradient(bench.values, *SPACING))
    expected /= np.linalg.norm(expected, axis=0)
    inner = np.s_[2:-2, 3:-3, 3:-3]
    cosine = (values * expected).sum(0)[inner]
    assert cosine.mean() > 0.995
    assert cosine.min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(values[(slice(None), *inner)], axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("units", ["physical", "voxels"])
def test_displacements_are_turned_back_and_rescaled(bench, units):
    class Constant(nn.Module):
        def forward(self, image, targets):
            vector = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
            return dict.fromkeys(targets, (vector.expand(len(image), 3, *image.shape[2:]),))

    target = {"kind": "vector", "vector_order": "zyx", "units": units}
    bench.run(ISO, Constant(), target)
    values = bench.read()[1]
    # LAS: z goes up, y to the front, x to the left. Stored, z goes right, y up, x back.
    expected = np.array([-3.0, 1.0, -2.0])
    if units == "voxels":
        expected *= 1.2 / np.array(SPACING)
    np.testing.assert_allclose(values[:, 3:-3, 3:-3, 3:-3].mean((1, 2, 3)), expected, rtol=1e-5)
    assert values.reshape(3, -1).std(1).max() < 1e-5


def test_classes_are_the_largest_of_the_interpolated_shares(bench):
    target = {"kind": "multiclass", "channels": 3, "label_values": [0, 3, 9]}
    bench.run(ISO, Bands(), target, output_type="uint8")
    values = bench.read()[1][0]
    middles = np.array([-40, 60, 160])
    away = np.abs(bench.values[..., None] - middles)
    expected = np.array([0, 3, 9])[away.argmin(-1)]
    assert (values == expected).mean() > 0.985
    # The thresholds of the classes are crossed within a tenth of the range.
    two = np.sort(away, -1)[..., :2]
    clear = two[..., 1] - two[..., 0] > 30
    inner = np.s_[1:-1, 2:-2, 2:-2]
    np.testing.assert_array_equal(values[inner][clear[inner]], expected[inner][clear[inner]])


def test_probabilities_keep_their_encoding(bench):
    class Squash(Identity):
        def forward(self, image, targets):
            return dict.fromkeys(targets, ((image[:, :1] - 60) / 40,))

    bench.run(ISO, Squash(), {"kind": "binary"}, output_type="uint8")
    values = bench.read()[1][0].astype(float) / 255
    expected = 1 / (1 + np.exp(-(bench.values - 60) / 40))
    inner = np.s_[1:-1, 2:-2, 2:-2]
    assert np.abs(values - expected)[inner].max() < 0.05


def test_outside_of_a_crop_nothing_is_predicted(bench):
    values = np.zeros(SHAPE, np.float32)
    values[4:9, 10:24, 8:20] = 50
    cut = Bench(bench.folder / "cut", values)
    crop = {"crop": {"foreground": {"above": 10, "margin": 2}}, "order": {"image": "linear"}}
    cut.run({**crop, **ISO}, target={"kind": "binary"})
    found = cut.read()[1][0]
    assert (found[6, 14:20, 12:16] > 0.9).all()
    # Zeros give the probability 1/2 inside of the crop; a margin of 2 mm is 1, 2 and 2 voxels.
    np.testing.assert_allclose(found[3:10, 8:26, 6:22].min(), 0.5, atol=0.01)
    shown = np.argwhere(found > 0)
    assert (shown.min(0) >= [2, 7, 5]).all()
    assert (shown.max(0) <= [10, 26, 22]).all()


def test_a_bbox_that_a_crop_leaves_nothing_of_is_refused(bench):
    crop = {"crop": {"box": [[0, 8], [0, 20], [0, 30]]}}
    with pytest.raises(
        TaskError, match=r"bbox: nothing of it is left by dataset_config\.prepare\.crop"
    ):
        bench.run(crop, bbox=[[10, 14], [0, 20], [0, 30]])
    assert not (bench.folder / "out").exists()


def test_a_bbox_counts_in_the_voxels_of_the_input(bench):
    bench.run(ISO, bbox=[[3, 9], [10, 30], [5, 25]])
    box = Box((3, 10, 5), (6, 20, 20))
    values = bench.read()[1][0]
    whole = Bench(bench.folder / "whole")
    whole.run(ISO)
    expected = np.zeros_like(values)
    expected[box.slices()] = whole.read()[1][0][box.slices()]
    np.testing.assert_allclose(values, expected, atol=0.02 * np.ptp(values))
    assert (values[:3] == 0).all()


def test_a_mask_is_brought_to_the_prepared_grid(bench):
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 16:32] = 1
    place = write_volume(str(bench.folder / "mask.zarr"), mask, grid=Grid(SPACING, unit="millimeter"),
                         chunks=(8, 16, 16), pyramid=Pyramid(levels=0))  # fmt: skip
    bench.run(LAS, skip={"mask": str(place)}, overlap=0)
    assert_moved(bench.read()[1][0], np.where(mask, bench.values, 0))


def test_killed_at_any_point_the_same_command_continues(bench, monkeypatch):
    whole = Bench(bench.folder / "whole")
    whole.run(ISO)
    network = Identity()
    assert not bench.run(ISO, network, options=RunOptions(should_stop=lambda: True)).is_complete
    assert not (bench.folder / "out/net.zarr").exists()
    done = []
    undo = _Undoing.__call__

    def killed(self, box):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(box)
        return undo(self, box)

    with monkeypatch.context() as patch:
        patch.setattr(_Undoing, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.run(ISO, network)
    patches = network.patches
    assert not is_complete(our_attributes(place_at(str(bench.folder / "out/net.zarr"))))
    assert (bench.folder / "out/.net.zarr.prepared").exists()
    again = []
    monkeypatch.setattr(
        _Undoing, "__call__", lambda self, box: again.append(box) or undo(self, box)
    )
    assert bench.run(ISO, network).is_complete
    assert network.patches == patches, "nothing is predicted twice"
    assert len(again) < 2 * 3 * 3
    np.testing.assert_array_equal(bench.read()[1], whole.read()[1])
    assert not (bench.folder / "out/.net.zarr.prepared").exists()
    again.clear()
    assert bench.run(ISO, network).was_complete
    assert (network.patches, again) == (patches, [])


def test_another_result_is_refused_and_made_again_when_asked(bench):
    bench.run(ISO)
    with pytest.raises(OutputError, match="holds another result: prepare"):
        bench.run(LAS)
    assert bench.run(LAS, options=RunOptions(overwrite=True), overlap=0).is_complete
    assert_moved(bench.read()[1][0], bench.values)
    with pytest.raises(TaskError, match=r"--verify: goes with no dataset_config\.prepare"):
        bench.run(LAS, options=RunOptions(verify=True))


def test_a_dry_run_predicts_nothing(bench):
    report = bench.run(ISO, options=RunOptions(dry_run=True))
    assert report.estimate is not None
    assert not (bench.folder / "out").exists()


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (None, r"prepare: is not given, and the checkpoint was trained with it"),
        ({"orientation": "LPI", "spacing": [1.2] * 3}, r"prepare\.orientation: is LPI"),
        (
            {"orientation": "RPI", "spacing": [1, 1, 1]},
            r"prepare\.spacing: is \[1.*checkpoint has \[1\.2",
        ),
    ],
)
def test_a_task_that_prepares_otherwise_than_its_checkpoint_is_refused(bench, wanted, match):
    trained = bench.trained(bench.task(ISO))
    with pytest.raises(TaskError, match=match):
        request_of(bench.task(wanted), (trained,))


def test_a_task_may_leave_open_what_the_checkpoint_found(bench):
    task = bench.task({"orientation": {"to": "LAS"}, "spacing": "median"})
    request = request_of(task, (bench.trained(bench.task(ISO)),))
    assert request.prepare.spacing == (1.2, 1.2, 1.2)
    assert request.record["dataset_config"]["prepare"]["spacing"] == [1.2, 1.2, 1.2]


def test_an_array_is_taken_as_prepared_and_that_is_said(bench):
    lines = Silent()
    predictor = Predictor((bench.trained(bench.task(ISO)),))
    array = scene((20, 22, 24))
    found = predictor.predict(array, reporter=lines)["value"]
    np.testing.assert_allclose(found, array, rtol=1e-5)
    assert any("is taken as prepared" in line for line in lines.lines)


def test_the_manner_of_the_inner_prediction_is_recorded(bench):
    report = bench.run(LAS)
    provenance = our_attributes(report.root)["provenance"]
    assert provenance["prepared_grid"]["precision"] == "float32"
    assert provenance["prepared_grid"]["output_type"] == "float32"


def test_networks_that_want_other_inputs_are_not_averaged(bench):
    one, other = (bench.trained(bench.task(prepare)) for prepare in (ISO, LAS))
    with pytest.raises(TaskError, match=r"different dataset_config\.prepare"):
        request_of(bench.task(ISO), (one, other))


def test_inputs_that_cannot_be_prepared_are_refused_before_anything_is_written(tmp_path):
    bench, before = Bench(tmp_path, affine=False), {*prepared_folder().glob("*.zarr")}
    with pytest.raises(VolumeError, match="does not say how it lies"):
        bench.run(ISO)
    two = Bench(tmp_path / "two", np.stack([scene(), scene()]))
    with pytest.raises(VolumeError, match="2 channels, the network was trained with 1"):
        two.run(ISO)
    assert {*prepared_folder().glob("*.zarr")} == before
    assert not (tmp_path / "out").exists()


def test_uncertainty_comes_back_too(bench):
    class Slanted(Identity):
        def forward(self, image, targets):
            slope = torch.arange(image.shape[-1]) - 7.5
            return dict.fromkeys(targets, (image[:, :1] + slope,))

    bench.run(LAS, Slanted(), uncertainty=True, tta={"flips": ["x"]}, overlap=0)
    found, values = bench.read("value_uncertainty")
    assert found.extent == SHAPE
    # The x of the network is the stored axis that runs from left to right: z. Its views differ by
    # twice the slope.
    profile = np.abs(15 - np.arange(SHAPE[0]) - 7.5)
    assert np.abs(np.sort(values[0].mean((1, 2))) - np.sort(profile)).max() < 2
    assert values.min() > 0


@pytest.mark.slow
def test_two_processes_predict_and_one_brings_it_back(bench):
    task = bench.task(ISO)
    report = predict_on(request_of(task, (bench.trained(task),)), ["cpu", "cpu"])
    assert report.is_complete
    assert bench.read()[0].extent == SHAPE
