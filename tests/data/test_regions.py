"""Volumes of which a task takes a region."""

import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.volumes import Grid, create_array

SHAPE, SPACING = (12, 40, 44), (2.0, 1.0, 1.0)
Z, Y, X = np.mgrid[tuple(map(slice, SHAPE))] * np.array(SPACING).reshape(3, 1, 1, 1)
ASIDE = np.hypot(Y - 15 - 0.2 * Z, X - 20)
RAW = np.random.default_rng(0).integers(50, 200, SHAPE).astype(np.uint8)
SHEET = (RAW > 120).astype(np.uint8)


@pytest.fixture
def store(tmp_path):
    def write(name, array):
        made = create_array(
            str(tmp_path / "data.zarr"), name, shape=SHAPE, chunks=(5, 16, 16), dtype=array.dtype,
            grid=Grid(SPACING, unit="millimeter"),
        )  # fmt: skip
        made.write(Box((0, 0, 0), SHAPE), array[None])
        return made.location

    return write


@pytest.fixture
def opened(make_task, store, tmp_path):
    entry = {
        "input": store("raw", RAW), "sheet": store("sheet", SHEET), "ref_label": "sheet",
        "name": "case",
    }  # fmt: skip
    store("of-case", (ASIDE < 3).astype(np.uint8))
    mask = f"{tmp_path}/data.zarr/of-{{name}}"

    def build(dataset, mask=mask, bbox=None):
        region = {"from": [{"mask": mask}]} | dataset.pop("region", {})
        targets = {"sheet": {"channels": 1, "activation": "sigmoid"}}
        task = make_task(
            [entry | {"bbox": bbox}], targets=targets, dataset={"region": region} | dataset
        )
        (volume,) = open_volumes(task, Silent())
        return volume

    return build


def test_training_sees_the_region_and_nothing_else(opened):
    volume = opened({"region": {"radius_mm": 6}})
    (image,) = volume.inputs
    stored = volume.as_stored
    assert stored.inputs[0].extent == SHAPE
    assert stored.labels["sheet"].extent == SHAPE
    inside = ASIDE < 6  # the line is a little oblique: near its wall both may be right
    certain = np.abs(ASIDE - 6) > 0.5
    grid = volume.preparation.grid
    low = np.array(grid.matrix)[:, 3].astype(int)
    part = tuple(slice(o, o + n) for o, n in zip(low, image.extent, strict=True))
    for array, values in ((image, RAW), (volume.labels["sheet"], SHEET)):
        found = array.read(array.box)[0]
        expected = np.where(inside, values, 0)[part]
        np.testing.assert_array_equal(found[certain[part]], expected[certain[part]])
    assert (inside & certain).sum() == (inside & certain)[part].sum()
    assert volume.region == image.box
    assert volume.box_as_stored(image.box) == stored.region
    assert volume.spacing == SPACING


def test_a_box_comes_before_turns_and_a_bbox_is_kept(opened):
    region = {"shape": "box", "margin_mm": 2}
    volume = opened({"region": region}, bbox=[[0, 6], [0, 40], [0, 44]])
    index = np.argwhere(ASIDE < 3)
    margin = np.array([1, 2, 2])
    low = np.maximum(index.min(axis=0) - margin, 0)
    high = np.minimum(index.max(axis=0) + margin + 1, SHAPE)
    assert volume.inputs[0].extent == tuple(high - low)
    assert volume.region.end[0] == 6
    found = volume.inputs[0].read(volume.inputs[0].box)[0]
    np.testing.assert_array_equal(found, RAW[tuple(map(slice, low, high))])


def test_without_any_region_the_volume_is_refused_or_taken_whole(opened):
    with pytest.raises(VolumeError, match="nothing was found: mask nowhere: there is none"):
        opened({}, mask="nowhere")
    whole = opened({"region": {"fallback": "whole"}}, mask="nowhere")
    assert whole.inputs[0].extent == SHAPE


def test_values_are_made_comparable_by_the_whole_volume(opened):
    prepare = {"standardize": {"method": "zscore", "above": 100}}
    kept = RAW[RAW > 100].astype(float)
    for radius in (4, 9):
        volume = opened({"region": {"radius_mm": radius}, "prepare": prepare})
        found = volume.inputs[0].read(volume.inputs[0].box)[0]
        expected = (RAW - kept.mean()) / kept.std()
        low = np.array(volume.preparation.grid.matrix)[:, 3].astype(int)
        part = tuple(slice(o, o + n) for o, n in zip(low, found.shape, strict=True))
        inside = (radius - 0.5 > ASIDE)[part]
        np.testing.assert_allclose(found[inside], expected[part][inside], atol=1e-3)
