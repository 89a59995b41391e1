import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline2D

from vcmodels.cli import main
from vcmodels.errors import VolumeError
from vcmodels.regions.outlines import Outline, Outlines, PaintedSlices, read_outlines
from vcmodels.volumes import Description, Grid, open_volume, write_volume
from vcmodels.volumes.world import GEOMETRY, OURS, geometry_note, world_affine

EXTENT, SPACING = (7, 30, 41), (3.0, 0.5, 0.8)
JIM = """
Begin Irregular ROI
  Build version="8.0_1"
  Annotation="a lesion"
  Colour=0
  Image source="T2"
  Slice={slice}
  Created  "1 Jan 2020 10:00:00.000" by Operator ID="x"
  {deleted}
  Statistics: Area=0; Mean=0; Std Dev=0; Min=0; Max=0
  Begin Shape
    Points={count}
    {points}
  End Shape
End Irregular ROI
"""


def jim(slice_, points, deleted=""):
    lines = "\n    ".join(f"X={x:.6f}; Y={y:.6f}" for y, x in points)
    return JIM.format(slice=slice_, points=lines, count=len(points), deleted=deleted)


def whole(painted, size=(4, 16, 9)):
    mask = np.zeros(painted.extent, np.uint8)
    for box, block in painted.pieces(size):
        mask[box.slices()] = block[0]
    return mask


corners = st.lists(
    st.tuples(st.floats(0, 29, allow_nan=False), st.floats(0, 40, allow_nan=False)),
    min_size=3, max_size=7, unique=True,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(corners, st.integers(0, 6))
def test_a_voxel_is_inside_where_its_centre_is(points, number):
    """Against matplotlib, for stars that may cross themselves: even and odd, sorted by angle."""
    middle = np.mean(points, axis=0)
    order = np.argsort(np.arctan2(*(np.array(points) - middle).T))
    points = [points[n] for n in order]
    mask = whole(
        PaintedSlices.of(Outlines(polygons=[Outline(slice=number, points=points)]), EXTENT)
    )
    assert not np.delete(mask, number, axis=0).any()
    y, x = np.mgrid[:30, :41]
    spots = np.stack([y.ravel(), x.ravel()], 1)
    closed = Outline2D([*points, points[0]])
    inside = closed.contains_points(spots).reshape(30, 41)
    # Within rounding of the line either answer is right.
    sure = np.ones(len(spots), bool)
    for a, b in zip(points, [*points[1:], points[0]], strict=True):
        a, b = np.array(a), np.array(b)
        length = max((b - a) @ (b - a), 1e-30)
        share = np.clip((spots - a) @ (b - a) / length, 0, 1)
        sure &= np.linalg.norm(spots - a - share[:, None] * (b - a), axis=1) > 1e-6
    sure = sure.reshape(30, 41)
    np.testing.assert_array_equal(mask[number][sure] == 1, inside[sure])


def test_the_area_of_a_disc_is_right_within_a_ring_of_voxels():
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    points = [(15 + 10 * np.sin(t), 20 + 10 * np.cos(t)) for t in turn]
    mask = whole(PaintedSlices.of(Outlines(polygons=[Outline(slice=3, points=points)]), EXTENT))
    assert abs(mask.sum() - np.pi * 100) < 2 * np.pi * 10
    y, x = np.nonzero(mask[3])
    assert np.hypot(y - 15, x - 20).max() <= 10 + 1e-9


def test_one_inside_of_another_is_a_hole_and_a_later_value_lies_over():
    square = [(2.5, 2.5), (2.5, 20.5), (20.5, 20.5), (20.5, 2.5)]
    inner = [(8.5, 8.5), (8.5, 12.5), (12.5, 12.5), (12.5, 8.5)]
    polygons = [
        Outline(slice=1, points=square),
        Outline(slice=1, points=inner),
        Outline(slice=2, points=square, value=3),
        Outline(slice=2, points=inner, value=2),
    ]
    mask = whole(PaintedSlices.of(Outlines(polygons=polygons), EXTENT))
    assert (mask[1] == 1).sum() == 18 * 18 - 16
    assert [(mask[2] == v).sum() for v in (3, 2)] == [18 * 18 - 16, 16]


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_jim_counts_slices_from_one_and_mm_from_the_middle(tmp_path, axis):
    across = [n for n in range(3) if "zyx"[n] != axis]
    rng = np.random.default_rng(0)
    ends = np.array([EXTENT[n] for n in across])
    voxels = rng.uniform(0, ends - 1, (5, 2))
    lengths = np.array([SPACING[n] for n in across])
    mm = (voxels - (ends - 1) / 2) * lengths
    text = jim(4, mm) + jim(5, mm, 'Deleted "1 Jan 2020" by Operator ID="x"')
    (tmp_path / "a.roi").write_text(text)
    found = read_outlines(tmp_path / "a.roi", EXTENT, SPACING, axis)
    (one,) = found.polygons
    assert (one.slice, found.axis) == (3, axis)
    np.testing.assert_allclose(one.points, voxels, atol=1e-5)
    (flipped,) = read_outlines(tmp_path / "a.roi", EXTENT, SPACING, axis, "x").polygons
    np.testing.assert_allclose(flipped.points, voxels * [1, -1] + [0, ends[1] - 1], atol=1e-5)


def test_json_may_be_in_mm(tmp_path):
    points = [[1.0, 2.0], [5.0, 2.0], [5.0, 8.0]]
    block = {"polygons": [{"slice": 2, "points": points}], "unit": "mm", "axis": "y"}
    (tmp_path / "a.json").write_text(json.dumps(block))
    (one,) = read_outlines(tmp_path / "a.json", EXTENT, SPACING).polygons
    np.testing.assert_allclose(one.points, np.array(points) / [3.0, 0.8])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: .*give {"),
        ('{"polygons": []}', "polygons: list should have at least 1 item"),
        ('{"polygons": [{"slice": 1, "points": [[1, 2], [3, 4]]}]}', "polygons.0.points"),
        ('{"polygons": [{"slice": 7, "points": [[1, 2], [3, 4], [5, 6]]}]}', "slice 7 of 7 along z"),
        ('{"polygons": [{"slice": 1, "points": [[1, 2], [33, 4], [5, 6]]}]}', "the slice has .30, 41."),
        (jim(1, [(0, 0), (1, 0), (0, 1)])[:-30], "the file is cut"),
        (jim(1, [(0, 0), (1, 0), (0, 1)]).replace("Points=3", "Points=4"), "an ROI is damaged"),
        (jim(1, [(0, 0), (1, 0), (0, 1)]).replace("Irregular", "Elliptical"), "kind Elliptical"),
    ],
)  # fmt: skip
def test_what_is_no_outline_of_the_image_is_refused(tmp_path, text, message):
    (tmp_path / "a.roi").write_text(text)
    with pytest.raises(VolumeError, match=message):
        read_outlines(tmp_path / "a.roi", EXTENT, SPACING)


def test_the_command_writes_a_mask_on_the_grid_of_the_image(tmp_path, capsys):
    affine = np.diag([-0.8, 0.5, 3.0, 1.0])
    note = Description("image", {OURS: {GEOMETRY: geometry_note(affine)}})
    image = str(tmp_path / "image.zarr")
    write_volume(
        image, np.zeros(EXTENT, np.int16), grid=Grid(SPACING, unit="millimeter"),
        chunks=(7, 16, 16), description=note,
    )  # fmt: skip
    (tmp_path / "a.roi").write_text(jim(4, [(-2, -3), (-2, 3), (2, 3), (2, -3)]))
    out = str(tmp_path / "mask.zarr")
    assert main(["roi", str(tmp_path / "a.roi"), "--like", image, "-o", out]) == 0
    assert "1 outlines on 1 slices" in capsys.readouterr().out
    mask = open_volume(out, key="mask")
    np.testing.assert_array_equal(world_affine(mask), affine)
    assert (mask.spacing, mask.unit) == (SPACING, "millimeter")
    voxels = mask.read(mask.box)[0]
    assert voxels.sum() == 8 * 7  # 4 mm by 6 mm, centres of voxels of 0.5 by 0.8
    assert main(["roi", str(tmp_path / "a.roi"), "--like", image, "-o", out]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["roi", str(tmp_path / "no.roi"), "--like", image, "-o", f"{out}2"]) == 2
