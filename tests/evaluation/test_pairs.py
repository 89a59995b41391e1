"""What metrics read of a pair is the crop of the whole, whatever the cells and chunks."""

import pickle
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.data.labels import Label, StoredLabel
from vcmodels.errors import RunError
from vcmodels.evaluation.evaluate import pair_of
from vcmodels.evaluation.pairs import (
    CELL_VALUES,
    LONG_EDGE,
    InstancePair,
    RecentArrays,
    TargetPair,
    cell_shape,
)
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.overlap import regions
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.volumes import ArrayVolume, open_volume

EXTENT = (10, 14, 18)
INNER = Box((1, 2, 3), (8, 11, 13))
spans = st.tuples(st.integers(-3, 16), st.integers(0, 12))


def in_memory(values, name="array"):
    return ArrayVolume.of(values, (1.0, 1.0, 1.0), name)


def label_of(target, volume, spacing=(2.0, 1.0, 0.5)):
    return Label(target, StoredLabel("label", volume, volume.box), spacing)


def target_pair(target, prediction, label, box=INNER, cell=(3, 4, 5)):
    volumes = in_memory(prediction), in_memory(label)
    return pair_of(label_of(target, volumes[1]), volumes[0], box, cell)


def some_pairs():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, EXTENT, dtype=np.uint8)
    codes = rng.integers(0, 256, EXTENT, dtype=np.uint8)
    classes = MulticlassTarget(channels=3, ignore_label=3)
    vectors = rng.integers(1, 256, (3, *EXTENT), dtype=np.uint8)
    axes = NormalsTarget(orientation="axial", loss="axial_cosine")
    ids = rng.integers(0, 9, EXTENT).astype(np.int64) << 40
    arrays = in_memory(ids), in_memory((ids + 5).astype(np.float64))
    return {
        "mask": target_pair(BinaryTarget(ignore_label=3), codes, label),
        "classes": target_pair(classes, codes % 3, label),
        "directions": target_pair(axes, vectors, vectors[::-1].copy()),
        "instances": InstancePair(*arrays, INNER, (1.0, 1.0, 1.0), (5,), cell=(3, 4, 5)),
    }


PAIRS = some_pairs()
ID_LABELS = {
    "mask": PAIRS["mask"].label.stored.array.read(Box((0, 0, 0), EXTENT))[0],
    "instances": PAIRS["instances"].label.read(Box((0, 0, 0), EXTENT))[0],
}


def crop(whole, box):
    """Of an array over `INNER`, zeros outside."""
    out = np.zeros((len(whole), *box.shape), whole.dtype)
    part = box.intersect(INNER)
    if part.voxels:
        out[:, *part.slices(within=box)] = whole[:, *part.slices(within=INNER)]
    return out


@pytest.mark.parametrize("name", ["mask", "instances"])
@given(z=spans, y=spans, x=spans)
@settings(max_examples=25, deadline=None)
def test_ids_of_a_box_are_a_crop_of_those_of_the_whole(name, z, y, x):
    box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
    pair = PAIRS[name]
    _, label, valid = pair.read(INNER)
    stored = ID_LABELS[name][INNER.slices()][None]
    np.testing.assert_array_equal(pair.ids(INNER), np.where(valid, stored, 0))
    np.testing.assert_array_equal(pair.ids(INNER) != 0, (label != 0) & valid)
    np.testing.assert_array_equal(pair.ids(box), crop(pair.ids(INNER), box))


def test_ids_of_a_mask_are_of_its_foreground_where_it_counts():
    label = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    target = BinaryTarget(foreground=">= 9", ignore_label=20)
    codes, counts = np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    counts[1, 2, 3] = 0
    box = Box((0, 0, 0), (2, 3, 4))
    pair = TargetPair(
        label_of(target, in_memory(label)), in_memory(codes), box, mask=in_memory(counts)
    )
    expected = np.where((label >= 9) & (label != 20) & (label != 23), label, 0)
    np.testing.assert_array_equal(pair.ids(box)[0], expected)
    assert pair.ids(Box((5, 0, 0), (1, 1, 1))).tolist() == [[[[0]]]]


@pytest.mark.parametrize("name", PAIRS)
@given(z=spans, y=spans, x=spans)
@settings(max_examples=25, deadline=None)
def test_a_box_is_the_crop_of_the_whole(name, z, y, x):
    pair = PAIRS[name]
    box = Box(*zip(z, y, x, strict=True))
    whole = pair.load(INNER)
    for found, expected in zip(pair.read(box), whole, strict=True):
        np.testing.assert_array_equal(found, crop(expected, box), strict=True)
    for found, expected in zip(pair.regions(box), whole_regions(pair), strict=True):
        np.testing.assert_array_equal(found, crop(expected, box), strict=True)


def whole_regions(pair):
    prediction, label, valid = pair.load(INNER)
    if pair.form == "instances":
        return (prediction != 0) & valid, (label != 0) & valid
    if pair.form not in ("masks", "classes"):
        return (np.zeros((0, *INNER.shape), bool),) * 2
    return [np.stack(side) for side in zip(*regions(prediction, label, valid), strict=True)]


def test_a_pair_says_what_it_is():
    assert [pair.form for pair in PAIRS.values()] == ["masks", "classes", "directions", "instances"]
    assert [pair.classes for pair in PAIRS.values()] == [1, 3, 1, 1]
    assert [pair.box for pair in PAIRS.values()] == [INNER] * 4
    assert PAIRS["mask"].spacing == (2.0, 1.0, 0.5)


def test_ids_are_read_exactly_and_those_that_say_nothing_do_not_count():
    ids = np.full((2, 3, 4), 2**63 + 5, np.uint64)
    label = np.full((2, 3, 4), 7.0)
    label[0, 0, 0], label[0, 0, 1], label[1, 2, 3] = np.nan, 9, 0
    volumes = in_memory(ids), in_memory(label)
    pair = InstancePair(*volumes, volumes[0].box, (1.0, 1.0, 1.0), (9,))
    prediction, truth, valid = pair.read(pair.box)
    assert prediction.dtype == np.uint64
    assert (prediction == 2**63 + 5).all()
    assert truth.dtype == np.int64
    np.testing.assert_array_equal(np.argwhere(~valid[0]), [[0, 0, 0], [0, 0, 1]])
    assert truth[0, 1, 2, 3] == 0
    assert truth[0, 0, 0, 2] == 7


@pytest.mark.parametrize(("bad", "name"), [(-1, "prediction"), (0.5, "label")])
def test_what_is_no_id_is_named_with_its_place(bad, name):
    arrays = {"prediction": np.ones(EXTENT, np.float32), "label": np.ones(EXTENT, np.float32)}
    arrays[name][4, 5, 6] = bad
    volumes = [in_memory(values, n) for n, values in arrays.items()]
    pair = InstancePair(*volumes, volumes[0].box, (1.0, 1.0, 1.0), cell=(4, 5, 6))
    with pytest.raises(RunError, match=rf"{name} holds {bad:.1f} at \(z, y, x\) = \(4, 5, 6\)"):
        pair.read(Box((3, 3, 3), (4, 4, 4)))


def test_nothing_counts_where_a_mask_is_zero():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, EXTENT, dtype=np.uint8)
    values = in_memory(rng.integers(0, 3, EXTENT, dtype=np.uint8))
    whole = values.box
    pairs = [
        TargetPair(label_of(BinaryTarget(), values), values, whole, mask=in_memory(mask)),
        InstancePair(values, values, whole, (1.0, 1.0, 1.0), mask=in_memory(mask)),
    ]
    for pair in pairs:
        np.testing.assert_array_equal(pair.read(whole)[2][0], mask != 0)


@dataclass(frozen=True)
class Sparse:
    """Arrays of which few chunks are stored, and how often something is read of them."""

    pair: TargetPair
    plain: TargetPair
    """The same, read as a whole."""


@pytest.fixture
def sparse(tmp_path):
    def write(name, fill, chunk):
        place = str(tmp_path / name)
        array = zarr.create_array(
            place, shape=EXTENT, chunks=(4, 5, 6), dtype="uint8", fill_value=fill
        )
        box = Box(chunk, (4, 5, 6))
        rng = np.random.default_rng(0)
        array[box.slices()] = rng.integers(0, 256, box.shape, dtype=np.uint8)
        return open_volume(place)

    def make(fills, target):
        prediction, label = (write(f"{n}{f}", f, (0, 5 + 5 * n, 6)) for n, f in enumerate(fills))
        truth = label_of(target, label)
        arrays = [in_memory(volume.read(volume.box)[0]) for volume in (prediction, label)]
        plain = pair_of(label_of(target, arrays[1]), arrays[0], INNER)
        return Sparse(pair_of(truth, prediction, INNER, (4, 5, 6)), plain)

    return make


@pytest.mark.parametrize("target", [BinaryTarget(), BinaryTarget(dilate_label=2, ignore_label=7)])
@pytest.mark.parametrize("fills", [*product((0, 200), (0, 1, 7))], ids=str)
def test_where_nothing_is_stored_all_is_like_the_first_voxel(sparse, fills, target, monkeypatch):
    made = sparse(fills, target)
    (*found, valid), (*expected, truly_valid) = made.pair.read(INNER), made.plain.read(INNER)
    np.testing.assert_array_equal(valid, truly_valid)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[valid], other[valid], strict=True)
    for found, expected in zip(made.pair.regions(INNER), made.plain.regions(INNER), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    cell = Box((8, 10, 12), (1, 3, 4))
    assert made.pair.is_constant(cell)
    assert not made.plain.is_constant(cell)
    read = []
    original = type(made.pair.prediction)._read_inside
    monkeypatch.setattr(
        type(made.pair.prediction), "_read_inside",
        lambda self, box: read.append(box.voxels) or original(self, box),
    )  # fmt: skip
    made.pair.regions(cell), made.pair.read(cell)
    assert max(read) <= 5**3


def test_what_was_read_last_is_kept_within_a_budget():
    kept, made = RecentArrays(100), []

    def get(key, size):
        return kept.get(key, lambda: made.append(key) or (np.zeros(size, np.uint8),))

    for key, size in [("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40), ("b", 40)]:
        assert get(key, size)[0].size == size
    get("large", 101), get("large", 101)
    assert made == ["a", "b", "c", "b", "large", "large"]


def test_a_pair_crosses_a_process_border_without_what_it_has_read():
    pair = PAIRS["mask"]
    pair.regions(INNER)
    copy = pickle.loads(pickle.dumps(pair))
    assert "_recent" in vars(pair)
    assert "_recent" not in vars(copy)
    for found, expected in zip(copy.read(INNER), pair.read(INNER), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_contents_change_with_what_is_read_and_with_nothing_else(store):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, EXTENT, dtype=np.uint8)
    prediction, label = store("prediction", values), store("label", values)

    def contents(target=None, **other):
        found = pair_of(label_of(target or BinaryTarget(), label), prediction, INNER)
        return {**found.contents(), **other}

    before = contents()
    assert contents(BinaryTarget(loss="bce", weight=2)) == before
    assert contents(BinaryTarget(ignore_label=3)) != before
    zarr.open_array(label.location)[0] = 0
    assert contents() != before


@given(
    extent=st.tuples(*[st.integers(1, 5000)] * 3),
    chunks=st.tuples(*[st.integers(1, 5000)] * 3),
    channels=st.integers(1, 100),
)
def test_cells_are_bounded_and_hold_whole_chunks_where_they_can(extent, chunks, channels):
    cell = cell_shape(extent, chunks, channels)
    assert all(1 <= edge <= LONG_EDGE for edge in cell)
    assert np.prod(cell) * channels <= CELL_VALUES or cell == (1, 1, 1)
    if max(chunks) <= 32 and channels == 1:
        assert all(e % c == 0 or e == n for e, c, n in zip(cell, chunks, extent, strict=True))


@pytest.mark.parametrize(
    ("chunks", "cell"),
    [
        ((1, 1024, 1024), (16, 512, 512)),
        ((64, 256, 256), (64, 256, 256)),
        ((128, 128, 128), (128, 128, 128)),
        ((48, 48, 600), (48, 96, 512)),
    ],
    ids=str,
)
def test_long_chunks_are_decoded_few_times(chunks, cell):
    assert cell_shape((999, 1024, 1024), chunks, 2) == cell


def test_what_needs_neighbours_channels_or_values_is_not_counted():
    codes, label = np.zeros(EXTENT, np.uint8), np.ones(EXTENT, np.uint8)

    def counted(target, prediction=codes, label=label):
        return target_pair(target, prediction, label).counted(INNER)

    assert counted(BinaryTarget()) is not None
    assert counted(BinaryTarget(dilate_label=1)) is None
    assert counted(BinaryTarget(derive="other")) is None
    assert counted(BinaryTarget(), codes.astype(np.float32)) is None
    assert counted(BinaryTarget(), codes.astype(np.uint16)) is None
    shares = MulticlassTarget(channels=2, output="probabilities")
    assert counted(shares, np.stack([codes, codes])) is None
