"""Tables of objects against scikit-image, which sees the volume whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from tests.objects.places import CREW, SPACING, blocks, in_memory, random_ids, stored
from vcmodels.blockwise import Crew, Part, Threads
from vcmodels.errors import RunError, VolumeError
from vcmodels.objects import rows
from vcmodels.objects.table import ObjectArrays, measure_objects
from vcmodels.postprocess.site import Source


def table_of(measured, folder, block=(64, 64, 64), crew=CREW):
    found = measure_objects(measured, folder, crew, block)
    assert found is not None
    return found


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), block=blocks)
def test_a_table_is_what_is_measured_of_the_whole_volume_for_any_blocks(
    tmp_path_factory, seed, block
):
    ids = random_ids(seed)
    rng = np.random.default_rng(seed)
    values, classes = rng.random(ids.shape), rng.integers(-1, 3, ids.shape)
    values[rng.random(ids.shape) < 0.3] = np.nan
    measured = ObjectArrays(
        in_memory(ids), Source("p", in_memory(values), "binary"), in_memory(classes, "classes")
    )
    columns = table_of(measured, tmp_path_factory.mktemp("t"), block).columns()
    distinct, small = np.unique(ids, return_inverse=True)
    props = regionprops(small.reshape(ids.shape), spacing=SPACING)
    np.testing.assert_array_equal(columns["id"], distinct[1:])
    assert columns["id"].dtype == np.uint64
    np.testing.assert_array_equal(columns["voxels"], [p.num_pixels for p in props])
    np.testing.assert_allclose(columns["volume"], [p.area for p in props])
    centroids = np.stack([columns[f"centroid_{a}"] for a in "zyx"], 1)
    np.testing.assert_allclose(centroids, [p.centroid for p in props])
    boxes = [columns[f"{a}_{end}"] for end in ("start", "end") for a in "zyx"]
    np.testing.assert_array_equal(np.stack(boxes, 1), [p.bbox for p in props])
    for row, value in enumerate(distinct[1:]):
        inside = ids == value
        with np.errstate(invalid="ignore"):
            mean = values[inside & ~np.isnan(values)].mean() if inside.any() else np.nan
        np.testing.assert_allclose(columns["mean_value"][row], mean, atol=1 / 65535)
        kinds, counts = np.unique(classes[inside], return_counts=True)
        assert columns["class"][row] == kinds[counts.argmax()]
        core = inside[1:-1, 1:-1, 1:-1].sum()
        assert columns["touches_border"][row] == (core < inside.sum())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), block=blocks, dtype=st.sampled_from(["u1", "i2", "u4"]))
def test_the_mean_of_whole_numbers_is_exact(tmp_path_factory, seed, block, dtype):
    ids = random_ids(seed)
    low = -100 if dtype == "i2" else 0
    values = np.random.default_rng(seed).integers(low, np.iinfo(dtype).max, ids.shape).astype(dtype)
    measured = ObjectArrays(in_memory(ids), Source("v", in_memory(values), "regression"))
    columns = table_of(measured, tmp_path_factory.mktemp("t"), block).columns()
    expected = [
        values[ids == one].astype(object).sum() / (ids == one).sum() for one in columns["id"]
    ]
    np.testing.assert_array_equal(columns["mean_value"], expected)


def test_rows_that_are_joined_in_many_steps_are_the_same(tmp_path, monkeypatch):
    ids = random_ids(4)
    kinds = in_memory(np.random.default_rng(4).integers(0, 3, ids.shape), "classes")
    measured = ObjectArrays(in_memory(ids), None, kinds)
    whole = table_of(measured, tmp_path / "whole").columns()
    held, together = [], rows._together
    monkeypatch.setattr(rows, "FEW", 20)
    monkeypatch.setattr(
        rows,
        "_together",
        lambda parts: (held.append(sum(map(rows._length, parts))), together(parts))[1],
    )
    found = table_of(measured, tmp_path / "steps", (2, 3, 4)).columns()
    for name, column in whole.items():
        np.testing.assert_array_equal(found[name], column)
    assert len(held) > 3
    # What is held, as much again, and the last block: at most 3 objects, each of 3 classes.
    assert max(held) <= 20 + 12 + 12


def test_codes_of_probabilities_are_met_exactly():
    from vcmodels.objects.rows import STEPS, probability_codes

    for most in (255, 65535):
        codes = np.arange(most + 1)
        shares = (codes / most).astype(np.float32)
        np.testing.assert_array_equal(probability_codes(shares), codes * (STEPS // most))


def test_lengths_are_in_the_unit_and_at_the_place_of_the_store(tmp_path):
    ids = np.zeros((6, 7, 8), np.uint16)
    ids[2:4, 3, 5] = 9
    columns = table_of(ObjectArrays(stored(ids, tmp_path / "a.zarr")), tmp_path / "r").columns()
    assert columns["volume_um3"].tolist() == [24.0]
    assert columns["centroid_z_um"].tolist() == [10 + 2.5 * 4]
    assert columns["centroid_y_um"].tolist() == [20 + 3 * 1.5]
    assert columns["centroid_x_um"].tolist() == [30 + 5 * 2]
    assert columns["touches_border"].tolist() == [False]


def test_ids_below_one_are_no_objects_and_no_objects_are_an_empty_table(tmp_path):
    ids = np.full((6, 7, 8), -1, np.int32)
    ids[0, 0, 0] = 3
    assert table_of(ObjectArrays(in_memory(ids)), tmp_path / "a").ids.tolist() == [3]
    nothing = ObjectArrays(in_memory(np.zeros((6, 7, 8), bool)), None, in_memory(ids, "classes"))
    columns = table_of(nothing, tmp_path / "b", (4, 4, 4)).columns()
    assert {len(column) for column in columns.values()} == {0}


def test_chunks_that_are_not_stored_hold_no_object(tmp_path, monkeypatch):
    ids = np.zeros((12, 15, 18), np.uint8)
    ids[-1, -1, -1] = 1
    volume = stored(ids, tmp_path / "a.zarr")
    read, boxes = type(volume).read, []
    monkeypatch.setattr(
        type(volume),
        "read",
        lambda self, box, *more: (boxes.append(box), read(self, box, *more))[1],
    )
    found = table_of(ObjectArrays(volume), tmp_path / "r", (4, 5, 6))
    assert found.ids.tolist() == [1]
    assert sum(box.voxels > 1 for box in boxes) == 1


class Stopping:
    """Stops after some questions."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left < 0


def test_a_stopped_table_goes_on_and_two_parts_do_it_together(tmp_path):
    ids = random_ids(3)
    measured = ObjectArrays(in_memory(ids))
    whole = table_of(measured, tmp_path / "whole").columns()
    crew = Crew(Threads(1), should_stop=Stopping(3))
    assert measure_objects(measured, tmp_path / "r", crew, (3, 4, 5)) is None
    assert list((tmp_path / "r").iterdir())
    for part in (Part(0, 2), Part(1, 2)):
        found = table_of(measured, tmp_path / "r", (3, 4, 5), Crew(Threads(1), part)).columns()
        for name, column in whole.items():
            np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((6, 7, 9), np.uint8), r"--values: .*6, 7, 9.*one channel of the voxels"),
        (np.zeros((2, 6, 7, 8), np.uint8), r"--values: .* 2 x .*one channel"),
        (np.zeros((6, 7, 8), np.uint64), "--values: .*uint64; give values of at most 32 bits"),
    ],
)
def test_values_that_do_not_fit_are_refused(other, message):
    ids = in_memory(np.zeros((6, 7, 8), np.uint8))
    with pytest.raises(VolumeError, match=message):
        ObjectArrays(ids, Source("v", in_memory(other, "v"), "regression")).check()


def test_ids_and_classes_are_whole_numbers():
    floats, ids = in_memory(np.zeros((6, 7, 8)), "f"), in_memory(np.zeros((6, 7, 8), np.uint8))
    with pytest.raises(VolumeError, match="f holds float64; give an array"):
        ObjectArrays(floats).check()
    with pytest.raises(VolumeError, match="f holds float64; give an array of the value of a class"):
        ObjectArrays(ids, None, floats).check()


def test_values_beyond_probabilities_are_reported(tmp_path):
    values = np.linspace(-1, 3, 6 * 7 * 8).reshape(6, 7, 8)
    measured = ObjectArrays(
        in_memory(np.ones((6, 7, 8), np.uint8)), Source("v", in_memory(values, "v"), "regression")
    )
    with pytest.raises(VolumeError, match="v has values from -1 to 3, which are no probabilities"):
        table_of(measured, tmp_path / "record")
    assert not (tmp_path / "record").exists()


def test_values_beyond_probabilities_that_lie_aside_are_reported_when_met(tmp_path):
    values = np.full((60, 7, 8), 0.5, np.float32)
    values[5, 0, 0] = 2  # in none of the voxels that are looked at first
    ids = stored(np.ones(values.shape, np.uint8), tmp_path / "i.zarr")
    measured = ObjectArrays(ids, Source("v", stored(values, tmp_path / "v.zarr"), "regression"))
    measured.check()
    with pytest.raises(RunError, match=r"values from 0\.5 to 2, which are no prob"):
        table_of(measured, tmp_path / "record")
