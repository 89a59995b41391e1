"""Arrays on another grid: labels of every kind, the cache, and what a kill leaves."""

import numpy as np
import pytest
import torch

from vcmodels.blockwise import BlockRecord
from vcmodels.errors import RunError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, Symmetry
from vcmodels.prepare import derived
from vcmodels.prepare.contents import Classes, ImageContent, ValueContent, content_of
from vcmodels.prepare.derived import DerivedVolume, kept, prepared_folder
from vcmodels.targets import (
    BinaryTarget,
    CentresTarget,
    DistanceTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)
from vcmodels.volumes import WritableArray

SHAPE = (11, 17, 20)
TURN = Symmetry((2, 0, 1), (True, False, True))


def field(shape=SHAPE):
    """A smooth scalar of unequal slopes."""
    z, y, x = np.indices(shape)
    return (np.sin(z / 4) * 9 + y * 0.7 + np.cos(x / 5) * 8).astype(np.float32)


def read(volume):
    return volume.read(volume.box)


@pytest.mark.parametrize("symmetry", [TURN, *CUBE_SYMMETRIES[5::9]], ids=str)
def test_turned_normals_are_those_of_the_turned_field(store, symmetry):
    target = NormalsTarget()
    gradient = np.stack(np.gradient(field()))
    stored = target.encode(torch.from_numpy(gradient), np.dtype(np.uint16))
    label = store("n", stored)
    grid = GridMap.identity(SHAPE).turned(symmetry)
    found, valid = target.read_label(read(DerivedVolume.of(label, grid, ValueContent(target))))
    expected = np.stack(np.gradient(symmetry(field())))
    expected /= np.linalg.norm(expected, axis=0)
    assert valid.all()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_resampled_normals_are_unit_vectors_in_physical_space(store):
    target = NormalsTarget(vector_order="zyx")
    spacing = (2.0, 1.0, 0.5)
    gradient = np.stack(np.gradient(field(), *spacing)).astype(np.float32)
    label = store("n", target.encode(torch.from_numpy(gradient), np.dtype(np.float32)), spacing)
    grid = GridMap.identity(SHAPE).resampled((0.5, 1, 2))
    found, valid = target.read_label(read(DerivedVolume.of(label, grid, ValueContent(target))))
    assert valid.all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, atol=1e-5)
    back = DerivedVolume.of(label, grid, ValueContent(target))
    again = read(DerivedVolume.of(back, grid.inverse(), ValueContent(target)))
    unit = gradient / np.linalg.norm(gradient, axis=0)
    inner = (slice(None), *[slice(2, -2)] * 3)
    # The field bends by up to a third of a turn within two voxels, over which it was averaged.
    cosine = (again * unit).sum(0)[inner[1:]]
    assert cosine.min() > 0.8
    assert cosine.mean() > 0.97


@pytest.mark.parametrize(("units", "factor"), [("physical", 1.0), ("voxels", 0.5)])
def test_displacements_keep_their_length_in_the_world(store, units, factor):
    target = VectorTarget(units=units, vector_order="zyx")
    vectors = np.broadcast_to(np.float32([[[[4]]], [[[2]]], [[[6]]]]), (3, *SHAPE)).copy()
    grid = GridMap.identity(SHAPE).resampled((2, 2, 2)).turned(TURN)
    found = read(DerivedVolume.of(store("v", vectors), grid, ValueContent(target)))
    expected = TURN.matrix.T @ np.float32([4, 2, 6]) * factor
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None, None], found.shape))


def test_values_that_do_not_count_are_not_mixed_with_others(store):
    target = RegressionTarget(ignore_label=-1)
    array = field()
    array[:, :, 9:] = -1
    grid = GridMap.identity(SHAPE).resampled((1, 1, 0.5))
    found = read(DerivedVolume.of(store("r", array), grid, ValueContent(target)))[0]
    assert np.isnan(found[:, :, 18:]).all()
    assert np.isfinite(found[:, :, :18]).all()
    assert (found[:, :, 17] > array[:, :, 8] - 0.5).all()


def test_labels_that_count_only_where_marked_still_count_elsewhere(store):
    target = DistanceTarget(clip=5, loss_only_on_label=True)
    array = field() * 0
    found = DerivedVolume.of(
        store("d", array), GridMap.identity(SHAPE).turned(TURN), ValueContent(target)
    )
    np.testing.assert_array_equal(read(found)[0], TURN(array))


def test_codes_are_undone_once(store):
    target = RegressionTarget.model_validate_json(
        '{"kind": "regression", "encoding": {"scale": 0.5, "offset": -10}}'
    )
    codes = (np.random.default_rng(0).integers(0, 50, SHAPE)).astype(np.uint8)
    grid = GridMap.identity(SHAPE).turned(TURN)
    plain = read(DerivedVolume.of(store("r", codes), grid, ValueContent(target)))
    np.testing.assert_allclose(target.read_label(plain)[0][0], TURN(codes) * 0.5 - 10, atol=1e-5)


def test_a_label_is_made_as_its_target_asks(store):
    mask = store("m", np.ones(SHAPE, np.uint8))
    assert content_of(mask, BinaryTarget(), "linear") == Classes("linear")
    shares = store("f", np.ones(SHAPE, np.float32))
    assert content_of(shares, BinaryTarget(), "linear") == Classes("nearest")
    assert content_of(mask, BinaryTarget(), "nearest") == Classes("nearest")
    assert isinstance(content_of(shares, RegressionTarget(), "linear"), ValueContent)
    assert isinstance(content_of(mask, DistanceTarget(clip=3, derive="m"), "linear"), Classes)


def test_padding_is_what_is_outside(store):
    grid = GridMap.identity(SHAPE).cropped(Box((-2, 0, 0), (5, 4, 4)))
    image = DerivedVolume.of(store("a", field()), grid, ImageContent(outside=-3))
    assert (read(image)[0, :2] == -3).all()
    np.testing.assert_array_equal(read(image)[0, 2:], field()[:3, :4, :4])
    label = DerivedVolume.of(store("b", field()), grid, ValueContent(RegressionTarget()))
    assert np.isnan(read(label)[0, :2]).all()


def test_what_is_not_stored_stays_so_and_is_not_read(store):
    array = np.zeros((64, 70, 80), np.uint8)
    array[:8, :8, :8] = 3
    volume = store("s", array, chunks=(16, 16, 16))
    grid = GridMap.identity(array.shape).resampled((0.25, 0.25, 0.25))
    found = kept(DerivedVolume.of(volume, grid, Classes()), {})
    assert found.extent == (256, 280, 320)
    assert len(list(found.stored_blocks())) == 1
    np.testing.assert_array_equal(found.read(Box((0, 0, 0), (40, 40, 40)))[0, :, :, 3] > 0,
                                  np.add.outer(np.arange(40) >= 32, np.arange(40) >= 32) == 0)  # fmt: skip


def test_the_cache_knows_what_it_holds(store):
    grid = GridMap.identity(SHAPE).turned(TURN)
    first, second = store("a", field()), store("b", field() + 1)
    places = {
        kept(DerivedVolume.of(volume, grid, content), {}).location
        for volume in (first, second)
        for content in (ImageContent(), ImageContent(outside=1), Classes())
    }
    assert len(places) == 6
    before = {p: p.stat().st_mtime_ns for p in prepared_folder().rglob("*") if p.is_file()}
    kept(DerivedVolume.of(first, grid, ImageContent()), {})
    assert before == {p: p.stat().st_mtime_ns for p in prepared_folder().rglob("*") if p.is_file()}


def test_a_killed_preparation_goes_on(store, monkeypatch):
    volume = DerivedVolume.of(
        store("a", np.tile(field(), (12, 1, 8))), GridMap.identity((132, 17, 160)), ImageContent()
    )
    done = []

    def add(self, box, part, original=BlockRecord.add):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(box)
        original(self, box, part)

    with monkeypatch.context() as patch:
        patch.setattr(BlockRecord, "add", add)
        with pytest.raises(KeyboardInterrupt):
            kept(volume, {})
    assert not list(prepared_folder().glob(f"{volume.fingerprint()[:32]}.zarr"))
    read_boxes = []
    writing = derived._Writing.__call__

    def spy(self, box):
        read_boxes.append(box)
        return writing(self, box)

    monkeypatch.setattr(derived._Writing, "__call__", spy)
    found = kept(volume, {})
    assert not set(done) & set(read_boxes)
    assert len(read_boxes) == 9 - 3
    np.testing.assert_array_equal(read(found), read(volume))
    assert not list(prepared_folder().glob(".*"))


def test_nan_has_no_place_between_voxels(store):
    array = field()
    array[3, 4, 5] = np.nan
    volume = store("a", array)
    moved = read(DerivedVolume.of(volume, GridMap.identity(SHAPE).turned(TURN), ImageContent()))
    np.testing.assert_array_equal(moved[0], TURN(array))
    finer = DerivedVolume.of(volume, GridMap.identity(SHAPE).resampled((0.5, 1, 1)), ImageContent())
    with pytest.raises(VolumeError, match="holds NaN or infinity"):
        kept(finer, {})


def test_a_value_that_a_label_cannot_have_is_named(store):
    label = store("c", np.full(SHAPE, 3, np.float32))
    derived_label = DerivedVolume.of(label, GridMap.identity(SHAPE), ValueContent(CentresTarget()))
    with pytest.raises(VolumeError, match="holds 3, which is no value of this label"):
        read(derived_label)


def test_a_full_disk_is_told_and_what_was_made_stays(store, monkeypatch):
    volume = DerivedVolume.of(
        store("a", np.tile(field(), (12, 1, 8))), GridMap.identity((132, 17, 160)), ImageContent()
    )
    write, count = WritableArray.write, []

    def full(self, box, data):
        count.append(box)
        if len(count) > 4:
            raise OSError(28, "No space left on device")
        write(self, box, data)

    with monkeypatch.context() as patch:
        patch.setattr(WritableArray, "write", full)
        with pytest.raises(RunError, match=r"No space left.*the same command continues"):
            kept(volume, {})
    np.testing.assert_array_equal(read(kept(volume, {})), read(volume))


def test_large_voxels_are_made_piece_by_piece(store, monkeypatch):
    volume = DerivedVolume.of(
        store("a", np.tile(field(), (3, 2, 2))), GridMap.identity((33, 34, 40)).resampled((3, 2.5, 4)),
        ImageContent(),
    )  # fmt: skip
    whole = read(volume)
    monkeypatch.setattr(derived, "MOST_VOXELS", 2000)
    assert np.prod(volume._piece()) * 3 * 2.5 * 4 <= 2000
    np.testing.assert_allclose(read(volume), whole, atol=1e-5)
