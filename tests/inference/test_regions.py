"""Predictions inside a region that is found first: by a mask, or by another network.

The networks are functions of the voxel, so that each value of a result is known.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import parse_task
from vcmodels.data.normalization import Normalization
from vcmodels.data.regions import regions_folder
from vcmodels.errors import RunError, TaskError, VolumeError
from vcmodels.fields.centreline import Centreline
from vcmodels.fields.tube import Tube
from vcmodels.geometry.boxes import Box
from vcmodels.inference import Predictor, RunOptions, predict_request, predict_volume, request_of
from vcmodels.inference import segment as segmenting
from vcmodels.inference.own_grid import Undone, _touched
from vcmodels.regions.base import Region
from vcmodels.regions.find import SearchedVolume
from vcmodels.regions.section import RegionSource
from vcmodels.reporting import Silent
from vcmodels.results import our_attributes
from vcmodels.volumes import Description, Grid, Pyramid, Volume, open_volume, write_volume
from vcmodels.volumes.places import place_at
from vcmodels.volumes.world import geometry_note, world_affine

SHAPE, SPACING = (30, 40, 36), (2.0, 1.0, 1.0)
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])
Z, Y, X = np.mgrid[tuple(map(slice, SHAPE))] * np.array(SPACING).reshape(3, 1, 1, 1)
ASIDE = np.hypot(Y - 16 - 0.1 * Z, X - 18 - 0.1 * Z)
CORD = ASIDE < 4
# Bright in the cord; a spot there, and one like it far off.
SPOTS = (np.abs(Z - 30) < 4) & ((ASIDE < 2.5) | (np.hypot(Y - 35, X - 32) < 3))
IMAGE = (10 + 20 * CORD + 50 * SPOTS).astype(np.float32)


class Above(nn.Module):
    """A logit that is above 0 where the first channel is above a value."""

    def __init__(self, value):
        super().__init__()
        self.value, self.voxels = value, 0

    def forward(self, image, targets):
        self.voxels += image[:, :1].numel()
        return dict.fromkeys(targets, ((image[:, :1] - self.value) / 2,))


class Bench:
    def __init__(self, folder):
        self.folder, self.spots, self.cord = folder, Above(60.0), Above(20.0)
        note = {"vcmodels": {"geometry": geometry_note(AFFINE)}}
        for name, values in (("case", IMAGE), ("cord", CORD.astype(np.uint8))):
            write_volume(
                str(folder / f"{name}.zarr"), values, grid=Grid(SPACING, unit="millimeter"),
                chunks=(8, 16, 16), pyramid=Pyramid(levels=0), description=Description(name, note),
            )  # fmt: skip

    def task(self, name, *sources, prepare=None, keys=(), **inference):
        settings = {
            "input_path": str(self.folder / "case.zarr"), "output_dir": str(self.folder / "out"),
            "output_chunks": [8, 16, 16], "patch_size": [16, 16, 16], "device": "cpu", "amp": "off",
        }  # fmt: skip
        region = {"from": list(sources), "radius_mm": 7.0} | dict(keys)
        return parse_task(
            {
                "tr_params": {"model_name": name, "patch_size": [16, 16, 16]},
                "model_config": {"name": "residual_unet", "f_maps": [2, 4]},
                "inference_params": settings | inference,
                "dataset_config": {
                    "normalization": "none",
                    "prepare": prepare,
                    "region": region if sources else None,
                    "volume_paths": [{"input": "a.zarr", name: "b.zarr"}],
                    "targets": {name: {"channels": 1, "activation": "sigmoid"}},
                },
            },
            "test",
        )[0]

    def trained(self, task, network, digest="0"):
        return TrainedNetwork(
            module=network.eval(), task=task, targets=dict(task.dataset_config.targets),
            normalization=Normalization("none"), patch=(16, 16, 16), spacing=SPACING,
            in_channels=1, sha256=digest * 64, path=Path(f"{digest}.pth"), unit="millimeter",
        )  # fmt: skip

    def run(self, task, options=None):
        return predict_request(request_of(task, (self.trained(task, self.spots),)), options)

    def read(self, name="spots"):
        found = open_volume(str(self.folder / f"out/{name}.zarr/{name}/0"), channels="any", key="x")
        return found.read(found.box)[0] / 255

    @property
    def region(self):
        noted = our_attributes(place_at(str(self.folder / "out/spots.zarr")))
        region = noted["manifest"]["region"]
        box, tube = Box.between(region["box"][:3], region["box"][3:]), None
        if "line" in region:
            line = Centreline(region["line"]["axis"], np.array(region["line"]["points"]))
            tube = Tube(line, region["radius_mm"])
        return Region(region["source"], box, tuple(region["spacing_mm"]), tube)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def mask(bench):
    return {"mask": f"{bench.folder}/cord.zarr"}


def test_what_lies_in_the_region_is_predicted_on_the_grid_of_the_input(bench, mask):
    assert bench.run(bench.task("spots", mask)).is_complete
    found = bench.read()
    assert found.shape == SHAPE
    inside = bench.region.mask(Box((0, 0, 0), SHAPE))
    assert inside[CORD].all()
    assert not inside[ASIDE > 9].any()
    logits = (IMAGE[inside] - 60.0) / 2
    np.testing.assert_allclose(found[inside], 1 / (1 + np.exp(-logits)), atol=1 / 255)
    assert not found[~inside].any()  # the far spot, too
    looked, bench.spots.voxels = bench.spots.voxels, 0
    bench.run(bench.task("spots", output_dir=str(bench.folder / "whole")))
    assert looked < bench.spots.voxels / 2  # few patches reach into the tube


def test_blocks_outside_of_the_region_are_not_computed(bench, mask, monkeypatch):
    made, prediction = [], Undone._prediction

    def noted(one, box):
        made.append(box)
        return prediction(one, box)

    monkeypatch.setattr(Undone, "_prediction", noted)
    bench.run(bench.task("spots", mask, prepare={"spacing": [1.6, 1.0, 1.0]}))
    assert 0 < len(made) < 30 * 40 * 36 / (8 * 16 * 16)
    assert all(bench.region.mask(box).any() for box in made)


def test_a_border_is_looked_for_where_something_is_stored(bench, mask, monkeypatch):
    bench.run(bench.task("spots", mask))
    place = bench.folder / "out/spots.zarr/spots/0"
    stored = open_volume(str(place), channels="any", key="x")
    read, seen = Volume.read, []
    monkeypatch.setattr(Volume, "read", lambda one, box: seen.append(box) or read(one, box))
    spec = bench.task("spots").dataset_config.targets["spots"]
    assert not [*_touched(bench.region, stored, spec)]
    assert seen
    assert all(stored.is_stored(box) for box in seen)


def test_the_region_is_of_the_input_and_what_is_done_to_it_comes_after(bench, mask):
    prepare = {"orientation": {"to": "LPI"}, "spacing": [1.6, 1.0, 1.0]}
    assert bench.run(bench.task("spots", mask, prepare=prepare)).is_complete
    found, inside = bench.read(), bench.region.mask(Box((0, 0, 0), SHAPE))
    assert not found[~inside].any()
    seen = SPOTS & inside & CORD
    away = np.abs(Z - 30)
    assert (found[seen & (away < 2)] > 0.5).all()
    assert (found[inside & (away > 6)] < 0.5).all()


def test_a_box_is_a_region_too_and_its_border_is_watched(bench, mask):
    reporter = Silent()
    lines = reporter.lines
    keys = {"shape": "box", "margin_mm": [0, 3, -0.0]}
    task = bench.task("spots", mask, keys=[*keys.items(), ("radius_mm", 20.0)])
    bench.run(task, RunOptions(reporter=reporter))
    box, found = bench.region.box, bench.read()
    assert box.shape[0] == SHAPE[0]
    assert not np.delete(found, np.s_[box.origin[1] : box.end[1]], axis=1).any()
    assert not any("border" in line for line in lines)
    touching = IMAGE.copy()
    middle = (box.origin[1] + box.end[1]) // 2
    touching[10:13, middle - 1 : middle + 2, box.origin[2]] = 80.0
    write_volume(
        str(bench.folder / "touch.zarr"), touching, grid=Grid(SPACING, unit="millimeter"),
        chunks=(8, 16, 16),
    )  # fmt: skip
    task = bench.task(
        "spots", mask, keys=keys.items(), input_path=str(bench.folder / "touch.zarr"),
        output_dir=str(bench.folder / "out2"),
    )  # fmt: skip
    bench.run(task, RunOptions(reporter=reporter))
    (line,) = (line for line in lines if "border" in line)
    assert line.endswith(f"the low x face, about voxel (11, {middle}, {box.origin[2]})")


def test_a_network_finds_the_region_once_and_a_stopped_one_continues(bench, monkeypatch):
    cord = bench.task("cord")
    monkeypatch.setattr(
        segmenting, "stage_network", lambda *_: bench.trained(cord, bench.cord, "a")
    )
    source = {"checkpoint": "a.pth", "sha256": "a" * 64}
    task = bench.task("spots", source)
    asked = iter([False, True])
    stopping = RunOptions(should_stop=lambda: next(asked, True))
    with pytest.raises(RunError, match="stopped"):
        bench.run(task, stopping)
    assert not (bench.folder / "out/spots.zarr/spots").exists()
    assert bench.run(task).is_complete
    looked = bench.cord.voxels
    inside = bench.region.mask(Box((0, 0, 0), SHAPE))
    assert inside[CORD].all()
    assert (bench.read()[SPOTS & CORD & inside] > 0.5).all()
    again = bench.task("spots", source, output_dir=str(bench.folder / "again"))
    assert bench.run(again).is_complete
    assert bench.cord.voxels == looked
    assert not [place for place in regions_folder().iterdir() if place.suffix == ".zarr"]


def test_a_network_runs_for_no_dry_run_and_for_nothing_that_is_refused(bench, monkeypatch):
    cord = bench.task("cord")
    monkeypatch.setattr(
        segmenting, "stage_network", lambda *_: bench.trained(cord, bench.cord, "a")
    )
    task = bench.task("spots", {"checkpoint": "a.pth", "sha256": "a" * 64})
    with pytest.raises(TaskError, match=r"--verify: goes with no dataset_config\.region"):
        bench.run(task, RunOptions(verify=True))
    with pytest.raises(VolumeError, match=r"has not run on it yet.*leave --dry-run out once"):
        bench.run(task, RunOptions(dry_run=True))
    assert not bench.cord.voxels
    assert not (bench.folder / "out").exists()
    assert bench.run(task).is_complete
    looked = bench.cord.voxels
    assert bench.run(task, RunOptions(dry_run=True)).estimate is not None
    assert bench.cord.voxels == looked


def test_what_was_begun_otherwise_is_left_and_what_is_not_wanted_goes(bench, monkeypatch):
    cord = bench.task("cord")
    monkeypatch.setattr(
        segmenting, "stage_network", lambda *_: bench.trained(cord, bench.cord, "a")
    )
    source = {"checkpoint": "a.pth", "sha256": "a" * 64}
    asked = iter([False, True])
    with pytest.raises(RunError, match="stopped"):
        bench.run(bench.task("spots", source), RunOptions(should_stop=lambda: next(asked, True)))
    (left,) = regions_folder().glob("*.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(segmenting, "version", lambda _: "another")
        assert bench.run(bench.task("spots", source)).is_complete
    assert [*regions_folder().glob("*.zarr")] == [left]

    request = request_of(bench.task("cord", input_path=str(bench.folder / "case.zarr")),
                         (bench.trained(cord, bench.cord, "a"),))  # fmt: skip
    segment = segmenting.Segmenter((), "cpu", predict_request, RunOptions())
    scan = SearchedVolume("case", "case", request.inputs, {})
    blocks = segment(RegionSource(**source), scan)
    next(blocks)
    assert [*regions_folder().glob(".*.lock")]
    blocks.close()
    assert not [*regions_folder().glob("*.zarr"), *regions_folder().glob(".*.lock")]


def test_what_a_source_finds_must_be_one_of_its_masks(bench, monkeypatch):
    cord = bench.task("cord")
    monkeypatch.setattr(
        segmenting, "stage_network", lambda *_: bench.trained(cord, bench.cord, "a")
    )
    source = {"checkpoint": "a.pth", "sha256": "a" * 64, "target": "liver"}
    with pytest.raises(
        TaskError, match=r'"liver" is no mask of checkpoint a\.pth.* its masks are cord'
    ):
        bench.run(bench.task("spots", source))
    assert not (bench.folder / "out").exists()


def test_another_region_than_that_of_the_training_is_refused(bench, mask):
    trained = bench.trained(bench.task("spots", mask), bench.spots)
    for keys, words in (
        ({"radius_mm": 9.0}, r"radius_mm: is 9.0, the checkpoint was trained with 7.0"),
        ({"margin_mm": 2.0}, "margin_mm: is 2.0"),
        ({"shape": "box"}, "shape: is box"),
    ):
        with pytest.raises(TaskError, match=words):
            request_of(bench.task("spots", mask, keys=keys.items()), (trained,))
    with pytest.raises(TaskError, match="is not given, and the checkpoint was trained with it"):
        request_of(bench.task("spots"), (trained,))
    wider = bench.trained(bench.task("spots", mask, keys={"radius_mm": 9.0}.items()), bench.spots)
    case = f"{bench.folder}/case.zarr"
    with pytest.raises(TaskError, match=r"radius_mm: is 7.0, the checkpoint was trained with 9.0"):
        predict_volume(Predictor((trained, wider)), case, bench.folder / "out")
    assert not (bench.folder / "out").exists()
    other = {"heuristic": "intensity"}
    assert request_of(bench.task("spots", other), (trained,)).region.sources[0].heuristic


def test_nothing_found_is_said_and_nothing_is_written(bench):
    source = {"mask": f"{bench.folder}/none/{{name}}.zarr"}
    with pytest.raises(
        VolumeError, match=r"region of case: nothing was found: mask .*there is none"
    ):
        bench.run(bench.task("spots", source))
    assert not (bench.folder / "out").exists()
    assert bench.run(bench.task("spots", source, keys=[("fallback", "whole")])).is_complete
    assert (bench.read()[SPOTS] > 0.5).all()


@pytest.mark.skipif("VCMODELS_DATA" not in os.environ, reason="needs the shared scans")
def test_a_scan_of_a_hospital_goes_to_its_tube_and_back(bench):
    """NIfTI stored as PSR with 0.8 mm -> RPI with 0.5 mm, a tube around its cord -> its own grid."""
    import nibabel

    folder = Path(os.environ["VCMODELS_DATA"]) / "nifti"
    scan = nibabel.load(folder / "t2_fake_lesion.nii.gz")
    image = np.asarray(scan.dataobj).T.astype(float)
    mask = np.asarray(nibabel.load(folder / "t2_fake_lesion_sc_seg.nii.gz").dataobj).T > 0
    source = {"mask": f"{folder}/{{name}}_sc_seg.nii.gz"}
    task = bench.task(
        "spots", source, prepare={"orientation": "RPI", "spacing": [0.5, 0.5, 0.5]},
        keys=[("radius_mm", 12.0), ("axis", "y")], patch_size=[32, 32, 32],
        input_path=str(folder / "t2_fake_lesion.nii.gz"),
    )  # fmt: skip
    value = float(np.percentile(image[mask], 50))
    bench.spots.value = value
    assert bench.run(task).is_complete
    found, region = bench.read(), bench.region
    assert found.shape == image.shape == scan.shape[::-1]
    inside = region.mask(Box((0, 0, 0), image.shape))
    assert (inside & mask).sum() > 0.97 * mask.sum()
    assert not found[~inside].any()
    sure = inside & (np.abs(image - value) > 60)
    assert ((found > 0.5) == (image > value))[sure].mean() > 0.99
    stored = open_volume(str(bench.folder / "out/spots.zarr/spots/0"), key="x")
    np.testing.assert_allclose(world_affine(stored), scan.affine, atol=1e-5)
