"""What is made of a volume: where it lies afterwards, and what it refuses."""

import json

import nibabel
import numpy as np
import pytest

from tests.prepare.conftest import PSR, affine_with, world
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.affine import axis_codes
from vcmodels.geometry.boxes import Box
from vcmodels.prepare.derived import kept
from vcmodels.prepare.plan import notes_of, plan_of, settled
from vcmodels.prepare.section import Prepare
from vcmodels.reporting import Silent
from vcmodels.volumes.world import grid_map, world_affine

SHAPE = (11, 17, 20)


def prepare(**keys):
    return Prepare.model_validate_json(json.dumps(keys))


def blobs(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)


@pytest.mark.parametrize("wanted", ["RPI", {"from": "RPI"}, {"to": "LAS"}])
def test_orientation_is_that_of_nibabel(store, wanted):
    array = blobs()
    volume = store("a", array)
    (image,) = plan_of(prepare(orientation=wanted), (volume,), None).images((volume,))
    nifti = nibabel.Nifti1Image(array.T, PSR)
    assert nibabel.aff2axcodes(nifti.affine) == ("P", "S", "R")
    codes = nibabel.orientations
    turn = codes.ornt_transform(codes.io_orientation(PSR), codes.axcodes2ornt("LAS"))
    expected = nifti.as_reoriented(turn)
    np.testing.assert_array_equal(image.read(image.box)[0], np.asarray(expected.dataobj).T)
    np.testing.assert_allclose(image.affine, expected.affine)
    assert image.dtype == np.int16
    assert axis_codes(image.affine) == "LAS"


def test_what_is_kept_lies_where_it_lay(store):
    volume = store("a", blobs(), spacing=(2.0, 0.8, 0.9))
    made = plan_of(prepare(orientation="RPI", spacing=[1, 1, 1]), (volume,), None)
    (image,) = made.images((volume,))
    found = kept(image, {"prepare": "so"})
    assert found.spacing == pytest.approx((1, 1, 1))
    assert found.unit == "millimeter"
    grid, affine = grid_map(found), world_affine(found)
    assert grid == made.grid
    assert grid.source == SHAPE
    index = np.array([[0, 0, 0], [3, 4, 5], [7, 2, 1]])
    there = index @ np.array(grid.matrix)[:, :3].T + np.array(grid.matrix)[:, 3]
    np.testing.assert_allclose(
        world(affine, index), world(affine_with((2.0, 0.8, 0.9)), there), atol=1e-6
    )
    np.testing.assert_allclose(found.read(found.box), image.read(image.box), atol=1e-6)


def test_a_crop_to_the_foreground_keeps_its_margin(store):
    array = np.zeros(SHAPE, np.int16)
    array[4:7, 5:9, 12:15] = 100
    volume = store("a", array, spacing=(2.0, 1.0, 0.5))
    crop = {"foreground": {"above": 50, "margin": 2}}
    grid = plan_of(prepare(crop=crop), (volume,), None).grid
    assert grid.is_exact
    assert grid.holding(Box((4, 5, 12), (3, 4, 3))) == Box((1, 2, 4), (3, 4, 3))
    assert grid.shape == (5, 8, 11)
    mean = plan_of(prepare(crop={"foreground": {}}), (volume,), None).grid
    assert mean.shape == (3, 4, 3)
    given = plan_of(prepare(crop={"box": [[2, 40], [0, 5], [3, 9]]}), (volume,), None).grid
    assert given.shape == (9, 5, 6)


def test_a_given_box_may_lie_outside_and_a_mask_hides_voxels(store):
    array = blobs()
    volume, mask = store("a", array), np.ones(SHAPE, np.uint8)
    mask[:, 8:] = 0
    made = plan_of(prepare(orientation="RPI"), (volume,), None, Box((-2, 0, 0), SHAPE))
    (image,) = made.images((volume,), within=store("m", mask), outside=-7)
    undone = image.grid.inverse()
    expected = np.where(mask, array, -7)
    expected = np.concatenate([np.full((2, *SHAPE[1:]), -7), expected[:-2]])
    symmetry = image.grid.symmetry
    np.testing.assert_array_equal(image.read(image.box)[0], symmetry(expected))
    assert undone.shape == SHAPE


def test_units_are_brought_together(store):
    volume = store("a", blobs(), spacing=(800.0, 500.0, 1000.0), unit="micrometer")
    grid = plan_of(prepare(spacing=[1, 1, 1]), (volume,), "millimeter").grid
    assert grid.factors == pytest.approx((1.25, 2, 1))


def test_what_a_volume_does_not_say_is_refused(store):
    plain = store("a", blobs(), affine=False)
    with pytest.raises(VolumeError, match="does not say how it lies"):
        plan_of(prepare(orientation="RPI"), (plain,), None)
    unknown = store("b", blobs(), spacing=(1.0, 1.0, 1.0), affine=False, unit=None)
    with pytest.raises(VolumeError, match=r"voxel size .* is unknown"):
        plan_of(prepare(spacing=[1, 1, 1]), (unknown,), None)
    with pytest.raises(VolumeError, match="has no voxel above 1000"):
        plan_of(prepare(crop={"foreground": {"above": 1000}}), (plain,), None)
    with pytest.raises(TaskError, match=r"crop.box: lies outside"):
        plan_of(prepare(crop={"box": [[50, 60], [0, 5], [3, 9]]}), (plain,), None)
    with pytest.raises(TaskError, match="is a list of 2, and there are 1 channels"):
        plan_of(prepare(standardize=[None, {"method": "zscore"}]), (plain,), None)


def test_what_is_learnt_is_refused_where_channels_do_not_fit(store):
    one, two = store("one", blobs()), store("two", np.stack([blobs(), blobs(seed=1)]))
    nyul = {"method": "nyul", "above": None}
    with pytest.raises(TaskError, match=r"standardize: is a list of 2, and there are 1 channels"):
        settled(prepare(standardize=[None, nyul]), [(two,), (one,)], None, Silent())
    for first, second in ((one, two), (two, one)):
        with pytest.raises(VolumeError, match="another number of channels than"):
            settled(prepare(standardize=nyul), [(first,), (second,)], None, Silent())


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({}, "asks for nothing"),
        ({"orientation": "RLI"}, "left-right"),
        ({"orientation": {"from": "RPI", "to": "LAS"}}, "or two"),
        ({"crop": {}}, "no part"),
        ({"crop": {"box": [[2, 2], [0, 5], [3, 9]]}}, "empty"),
        ({"standardize": {"method": "window", "low": 3, "high": 1}}, "not below"),
        ({"standardize": {"method": "nyul", "landmarks": [0] * 11}}, "do not rise"),
    ],
)
def test_blocks_that_mean_nothing_are_refused(keys, match):
    with pytest.raises(ValueError, match=match):
        prepare(**keys)


def test_a_contradiction_is_named_and_what_is_open_is_none():
    marks = [float(n) for n in range(11)]
    settled = prepare(
        orientation={"to": "LAS"},
        spacing=[1, 2, 3],
        standardize={"method": "nyul", "landmarks": marks},
    )
    open_ = prepare(orientation="RPI", spacing="median", standardize={"method": "nyul"})
    assert open_.contradiction(settled) is None
    assert settled.contradiction(settled) is None
    both = settled.changed(standardize=[settled.standardize] * 2)
    assert open_.contradiction(both) is None, "one for all channels"
    assert open_.changed(standardize=[None, None]).contradiction(both) == "standardize"
    assert not open_.is_settled
    assert settled.is_settled
    for key, value in {
        "orientation": "LPI",
        "spacing": [1, 2, 4],
        "standardize": {"method": "zscore"},
        "crop": {"foreground": {}},
        "order": {"image": "linear"},
    }.items():
        other = prepare(
            **{**settled.model_dump(mode="json", by_alias=True, exclude_none=True), key: value}
        )
        assert other.contradiction(settled) == key


def test_zeros_stand_around_what_is_cropped_however_fine_voxels_get(store):
    """Nothing of the volume that the crop leaves out is seen, nor the border of what is kept."""
    array = np.full((12, 14, 16), 7, np.float32)
    array[3:9, 2:12, 4:10] += np.random.default_rng(0).random((6, 10, 6))
    volume = store("a", array, spacing=(1, 1, 1))
    way = prepare(
        spacing=[0.5, 1, 0.8], order={"image": "linear"}, least=[15, 16, 6],
        crop={"box": [[3, 9], [2, 12], [4, 10]]},
    )  # fmt: skip
    plan = plan_of(way, [volume], None)
    (image,) = plan.images([volume])
    assert image.extent == plan.grid.shape == (15, 16, 8)
    core = Box((1, 3, 0), (12, 10, 8))
    assert plan.filled.core == core
    found = image.read(image.box)[0]
    inner = found[core.slices()]
    assert (inner >= 7).all()
    assert found.sum() == pytest.approx(inner.sum())
    part = store("b", array[3:9, 2:12, 4:10], spacing=(1, 1, 1))
    (expected,) = plan_of(way.changed(crop=None, least=None), [part], None).images([part])
    np.testing.assert_allclose(inner, expected.read(expected.box)[0], atol=1e-5)


def test_a_prepared_image_says_later_keys_only_where_they_are_used():
    plain = notes_of(prepare(spacing=[1, 1, 1], standardize={"method": "zscore"}))["prepare"]
    assert plain["standardize"] == {"method": "zscore", "above": None}
    assert plain["order"] == {"image": "cubic", "labels": "nearest"}
    assert plain.keys() == {"orientation", "spacing", "order", "crop", "standardize"}
    used = notes_of(
        prepare(least=[8, 8, 8], standardize=[None, {"method": "zscore", "keep_zero": True}])
    )
    assert used["prepare"]["least"] == [8, 8, 8]
    assert used["prepare"]["standardize"][1]["keep_zero"] is True
