"""Regions by every source, on a small cord that lies obliquely in its volume."""

import json

import numpy as np
import pytest

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.regions.base import Region
from vcmodels.regions.find import NotFoundYetError, SearchedVolume, find_region
from vcmodels.regions.section import RegionConfig
from vcmodels.reporting import Silent
from vcmodels.volumes import Description, Grid, Pyramid, open_volume, write_volume
from vcmodels.volumes.world import geometry_note

SPACING = (2.0, 1.0, 1.5)
SHAPE = (40, 56, 44)
Z, Y, X = np.mgrid[tuple(map(slice, SHAPE))] * np.array(SPACING).reshape(3, 1, 1, 1)
CY, CX = 24 + 0.2 * Z + 3 * np.sin(Z / 12), 30 + 2 * np.cos(Z / 15)
ASIDE = np.hypot(Y - CY, X - CX)
CORD = ASIDE < 5


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def scan(tmp_path):
    noise = np.random.default_rng(0).normal(0, 4, SHAPE)
    image = np.where(ASIDE < 9, 200, 60) - 90 * CORD + noise
    for name, values in (("image", image.astype(np.int16)), ("cord", CORD.astype(np.uint8))):
        write_volume(
            str(tmp_path / f"{name}.zarr"), values, grid=Grid(SPACING, unit="millimeter"),
            chunks=(16, 16, 16),
        )  # fmt: skip
    opened = {
        name: open_volume(str(tmp_path / f"{name}.zarr"), key=name, channels="any")
        for name in ("image", "cord")
    }
    return SearchedVolume("case", "image", (opened["image"],), {"cord": opened["cord"]})


def config(*sources, **keys):
    return RegionConfig.model_validate_json(json.dumps({"from": list(sources), **keys}))


def found(scan, tmp_path, *sources, segment=None, heard=None, **keys):
    return find_region(
        config(*sources, **keys), scan, known=tmp_path / "known", reporter=heard or Silent(),
        segment=segment,
    )  # fmt: skip


def off(region):
    """How far its line is from the cord's, in mm."""
    points = region.tube.line.points
    z = points[:, 0]
    inner = (z > 6) & (z < 70)
    error = np.hypot(
        points[:, 1] - 24 - 0.2 * z - 3 * np.sin(z / 12), points[:, 2] - 30 - 2 * np.cos(z / 15)
    )
    return error[inner].max()


def test_the_tube_around_a_mask(scan, tmp_path):
    region = found(scan, tmp_path, {"mask": "cord"}, radius_mm=8)
    assert off(region) < 0.4
    inside = np.zeros(SHAPE, bool)
    inside[region.box.slices()] = region.mask(region.box)
    assert inside[CORD].all()
    assert not inside[ASIDE > 12].any()
    outside = region.mask(Box((0, 0, 0), SHAPE))
    np.testing.assert_array_equal(outside, inside)


def test_the_box_around_a_mask(scan, tmp_path):
    region = found(scan, tmp_path, {"mask": "cord"}, shape="box", margin_mm=[0, 3, 1.6])
    index = np.argwhere(CORD)
    margin = np.array([0, 3, 1])
    low, high = index.min(axis=0) - margin, index.max(axis=0) + margin
    assert region.box.origin == tuple(low)
    assert region.box.end == tuple(high + 1)
    assert region.tube is None


@pytest.mark.parametrize("heuristic", ["symmetry", "intensity"])
def test_heuristics_find_the_cord_in_its_fluid(scan, tmp_path, heuristic):
    region = found(scan, tmp_path, {"heuristic": heuristic, "width_mm": 10}, axis="z")
    assert off(region) < 2


def test_points_are_voxels_or_a_curve_of_slicer(scan, tmp_path):
    points = [[z, 24 + 0.4 * z, 20] for z in (0, 12, 39)]
    (tmp_path / "case.json").write_text(json.dumps(points))
    region = found(scan, tmp_path, {"points": f"{tmp_path}/{{name}}.json"}, radius_mm=5)
    np.testing.assert_allclose(region.tube.line.points[[0, -1]], np.array(points)[[0, 2]] * SPACING)
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(VolumeError, match="holds no list of points"):
        found(scan, tmp_path, {"points": f"{tmp_path}/bad.json"})
    (tmp_path / "curve.json").write_text('{"markups": [{}]}')
    with pytest.raises(VolumeError, match="does not say where it lies"):
        found(scan, tmp_path, {"points": f"{tmp_path}/curve.json"})


def placed(place, values, flips=(1, 1, 1)):
    """A volume that says where it lies, mirrored along (x, y, z) about the middle of SHAPE."""
    affine = np.diag([*np.array(SPACING[::-1]) * flips, 1.0])
    ends = (np.array(SHAPE[::-1]) - 1) * SPACING[::-1]
    affine[:3, 3] = np.where(np.array(flips) < 0, ends, 0)
    note = {"vcmodels": {"geometry": geometry_note(affine)}}
    where = write_volume(
        str(place), values.astype(np.uint8), grid=Grid(SPACING, unit="millimeter"),
        chunks=(16, 16, 16), pyramid=Pyramid(levels=0), description=Description("a", note),
    )  # fmt: skip
    return open_volume(str(where), key="image", channels="any")


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path):
    image = placed(tmp_path / "image.zarr", CORD)
    scan = SearchedVolume("case", "image", (image,), {})
    placed(tmp_path / "there.zarr", CORD)
    placed(tmp_path / "mirrored.zarr", CORD[:, :, ::-1], flips=(-1, 1, 1))
    assert found(scan, tmp_path, {"mask": f"{tmp_path}/there.zarr"}).tube
    with pytest.raises(VolumeError, match=r"mirrored.* lies elsewhere .* on the grid of the input"):
        found(scan, tmp_path, {"mask": f"{tmp_path}/mirrored.zarr"})


def test_a_mask_may_be_a_url(scan, tmp_path, s3):
    s3.upload(tmp_path / "cord.zarr", f"{s3.bucket}/case.zarr")
    region = found(scan, tmp_path, {"mask": f"s3://{s3.bucket}/{{name}}.zarr"}, radius_mm=8)
    assert off(region) < 0.4


def test_the_next_source_is_taken_where_one_fails_and_that_is_said(scan, tmp_path):
    heard = Heard()

    def empty(source, scan):
        yield Box((0, 0, 0), (4, 5, 6)), np.zeros((4, 5, 6))

    sources = [
        {"points": f"{tmp_path}/none-of-{{name}}.json"},
        {"mask": f"{tmp_path}/no/{{name}}.zarr"},
        {"checkpoint": "a.pth", "sha256": "0" * 64},
        {"mask": "cord"},
    ]
    region = found(scan, tmp_path, *sources, segment=empty, heard=heard)
    assert region.source == "mask cord"
    (line,) = heard.lines
    for word in (
        "none-of-case.json",
        "there is none",
        "a.pth: it is empty",
        "region from mask cord",
    ):
        assert word in line
    with pytest.raises(VolumeError, match=r'nothing was found: .*it is empty.*"fallback": "whole"'):
        found(scan, tmp_path, sources[2], segment=empty)
    whole = found(scan, tmp_path, sources[2], segment=empty, fallback="whole", heard=heard)
    assert whole.box == scan.inputs[0].box
    assert "all of it is taken" in heard.lines[-1]


def test_a_short_object_fails_with_the_reason(scan, tmp_path):
    with pytest.raises(VolumeError, match="mm long, less than 500"):
        found(scan, tmp_path, {"mask": "cord"}, least_length_mm=500)


def test_a_network_runs_once_for_the_same_voxels(scan, tmp_path):
    calls = []

    def segment(source, scan):
        calls.append(source.threshold)
        yield scan.inputs[0].box, np.where(CORD, 0.8, 0.3)

    source = {"checkpoint": "a.pth", "sha256": "0" * 64}
    with pytest.raises(NotFoundYetError, match="run vcmodels region"):
        found(scan, tmp_path, source)
    with pytest.raises(VolumeError, match=r"there is no checkpoint b\.pth.*train it first"):
        found(scan, tmp_path, {"checkpoint": "b.pth"}, segment=segment)
    first = found(scan, tmp_path, source, segment=segment, radius_mm=7)
    again = found(scan, tmp_path, source, radius_mm=7)
    assert first.box == again.box
    np.testing.assert_array_equal(first.tube.line.points, again.tube.line.points)
    other = found(scan, tmp_path, source, radius_mm=9)  # another tube around the same line
    assert other.box != first.box
    found(scan, tmp_path, {**source, "threshold": 0.2}, segment=segment, least_share=0)
    assert calls == [0.5, 0.2]


def test_a_region_is_noted_as_json(scan, tmp_path):
    region = found(scan, tmp_path, {"mask": "cord"}, radius_mm=8)
    noted = json.loads(json.dumps(region.to_json()))
    assert (noted["source"], noted["spacing_mm"]) == (region.source, [*SPACING])
    assert noted["box"] == [*region.box.origin, *region.box.end]
    np.testing.assert_array_equal(noted["line"]["points"], region.tube.line.points)
    assert (noted["line"]["axis"], noted["radius_mm"]) == (region.tube.line.axis, 8)


def border_voxels(region):
    return dict(region.borders(Box((0, 0, 0), SHAPE), SHAPE))


def test_borders_are_where_the_region_ends_and_the_volume_does_not(scan, tmp_path):
    region = Region("x", Box((0, 10, 10), (40, 20, 34)), SPACING)
    faces = border_voxels(region)
    assert list(faces) == ["the low y face", "the high y face", "the low x face"]
    expected = np.zeros(SHAPE, bool)
    expected[:, 29, 10:] = True
    np.testing.assert_array_equal(faces["the high y face"], expected)
    part = Box((3, 9, 12), (4, 5, 6))
    (cut,) = region.borders(part, SHAPE)
    np.testing.assert_array_equal(cut[1], faces["the low y face"][part.slices()])

    tube = found(scan, tmp_path, {"mask": "cord"}, radius_mm=8)
    ((where, wall),) = border_voxels(tube).items()
    assert where == "the wall of the tube"
    assert not (wall & CORD)[3:-3].any()
    assert not (wall & ~tube.mask(Box((0, 0, 0), SHAPE))).any()
    inside = np.pad(tube.mask(Box((0, 0, 0), SHAPE)), 1, mode="edge")  # goes on past the volume
    nearby = [np.roll(inside, shift, axis) for axis in range(3) for shift in (-1, 1)]
    expected = (inside & ~np.logical_and.reduce(nearby))[1:-1, 1:-1, 1:-1]
    np.testing.assert_array_equal(wall, expected)  # one voxel thick, however long its voxels are
    part = Box((3, 9, 12), (14, 25, 21))
    ((_, cut),) = tube.borders(part, SHAPE)
    np.testing.assert_array_equal(cut, expected[part.slices()])


def test_an_unknown_voxel_size_is_refused(tmp_path):
    place = write_volume(str(tmp_path / "a.zarr"), CORD.astype(np.uint8), chunks=(16, 16, 16))
    bare = open_volume(str(place), key="a", channels="any")
    with pytest.raises(VolumeError, match='unknown, and a region has a size in mm; give "spacing"'):
        found(SearchedVolume("a", "a", (bare,), {"cord": bare}), tmp_path, {"mask": "cord"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"from": [{}]}, "exactly one of points, mask, checkpoint, heuristic"),
        ({"from": [{"mask": "a", "points": "b"}]}, "has points and mask"),
        ({"from": [{"mask": "a"}], "margin_mm": [1, 2, 3]}, "a tube has one margin"),
        ({"from": []}, "at least 1 item"),
    ],
)
def test_bad_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RegionConfig.model_validate_json(json.dumps(keys))
