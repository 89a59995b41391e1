import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.metrics import joint
from vcmodels.metrics.joint import joint_counts, slice_counts
from vcmodels.metrics.registry import fitting_metrics, is_countable, measure
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.stored import LabelError

SHAPES = st.tuples(*(st.integers(0, 7),) * 3)
LABEL_VALUES = st.lists(st.integers(0, 255), min_size=1, max_size=40, unique=True)


def counted(prediction, label, valid):
    """The pairs, by a dictionary."""
    found: dict[tuple[int, int], int] = {}
    for code, value, counts in zip(prediction.flat, label.flat, valid.flat, strict=True):
        if counts:
            found[int(value), int(code)] = found.get((int(value), int(code)), 0) + 1
    return dict(sorted(found.items()))


def as_dict(found):
    return {
        (int(value), int(code)): int(count)
        for code, value, count in zip(found.codes, found.labels, found.counts, strict=True)
    }


@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    values=LABEL_VALUES,
    code=st.sampled_from(["u1", "u2"]),
    of=st.sampled_from(["u1", "i2", "i8", "bool"]),
    shift=st.sampled_from([0, -300]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pairs_are_counted_whatever_the_types(shape, values, code, of, shift, masked, seed):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, np.iinfo(code).max + 1, shape).astype(code)
    chosen = np.array(values) + (shift if of in ("i2", "i8") else 0)
    label = rng.choice(chosen, shape).astype(of)
    valid = rng.random(shape) > 0.5 if masked else None
    found = joint_counts(prediction, label, valid)
    assert found is not None
    assert found.codes.dtype == prediction.dtype
    assert found.labels.dtype == label.dtype
    wanted = counted(prediction, label, np.ones(shape, bool) if valid is None else valid)
    assert as_dict(found) == wanted
    assert list(as_dict(found)) == list(wanted)


@pytest.mark.parametrize("rare", [3, 200, 255])
def test_a_label_that_no_sample_shows_is_found_and_pieces_are_added(monkeypatch, rare):
    monkeypatch.setattr(joint, "PIECE", 1000)
    joint._lanes.cache_clear()
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 256, (30, 40, 50)).astype(np.uint8)
    label = (255 * rng.integers(0, 2, prediction.shape)).astype(np.uint8)
    label[17, 23, 11] = rare
    assert as_dict(joint_counts(prediction, label)) == counted(
        prediction, label, np.ones(label.shape, bool)
    )
    joint._lanes.cache_clear()


def test_what_is_no_code_or_an_id_is_not_counted():
    codes = np.zeros((2, 3, 4), np.uint8)
    assert joint_counts(codes.astype(np.float32), codes) is None
    assert joint_counts(codes, codes.astype(np.float32)) is None
    ids = np.arange(24).reshape(2, 3, 4)
    assert joint_counts(codes, ids * 10_000) is None
    assert joint_counts(np.zeros((2, 300), np.uint8), np.arange(600).reshape(2, 300)) is None


@pytest.mark.parametrize("form", ["masks", "classes"])
def test_numbers_of_voxels_give_the_sums_of_all_of_them_to_the_bit(form):
    rng = np.random.default_rng(0)
    metrics = fitting_metrics(form)
    assert is_countable(metrics)
    channels, shape = (2, (1, 2, 1, 1, 30)) if form == "masks" else (4, (1, 1, 1, 1, 30))
    prediction = torch.rand(1, channels, 1, 1, 30, generator=torch.Generator().manual_seed(0))
    label = torch.from_numpy(rng.integers(0, channels, shape)).float()
    label = label.clamp(max=1) if form == "masks" else label
    counts = torch.from_numpy(rng.integers(0, 5, (1, 1, 1, 1, 30)))
    times = counts.flatten()
    repeated = [t.repeat_interleave(times, dim=-1) for t in (prediction, label)]
    valid = torch.ones(1, 1, 1, 1, int(times.sum()), dtype=torch.bool)
    found, wanted = measure(metrics, prediction, label, counts), measure(metrics, *repeated, valid)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not is_countable(fitting_metrics("values"))


CASES = {
    "mask": (BinaryTarget(ignore_label=2), 4, "u1"),
    "mask of 16 bits": (BinaryTarget(ignore_label=[2, 3]), 4, "u2"),
    "foreground": (BinaryTarget(foreground="== 1, 3", loss_only_on_label=True), 4, "u1"),
    "classes": (
        MulticlassTarget(channels=3, label_values=[0, 5, 7], remap={1: 7}, ignore_label=9),
        [0, 1, 5, 7, 9],
        "u1",
    ),
}


def slow_sums(target, codes, label):
    truth, valid = target.read_label(label)
    tensors = (torch.from_numpy(a)[None] for a in (target.decode(codes), truth, valid))
    prediction, wanted, counts = tensors
    pair = target.comparable(prediction, wanted)
    return measure(target.stored_metrics, *pair, counts)


@pytest.mark.parametrize("name", CASES)
def test_stored_blocks_give_the_sums_of_their_values_to_the_bit(name):
    target, values, dtype = CASES[name]
    rng = np.random.default_rng(0)
    label = rng.choice(values, (1, 6, 7, 8)).astype(np.uint8)
    choice = target.values if target.is_categorical else np.iinfo(dtype).max + 1
    codes = rng.choice(choice, label.shape).astype(dtype)
    found, wanted = target.measure_stored(codes, label), slow_sums(target, codes, label)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    figures = target.summarise_stored(found)
    assert not any(math.isnan(value) for value in figures.values())
    assert ("average_precision" in figures) == (not target.is_categorical)


def test_what_needs_neighbours_channels_or_values_is_not_counted():
    codes, label = np.zeros((1, 4, 5, 6), np.uint8), np.ones((1, 4, 5, 6), np.uint8)
    assert BinaryTarget().measure_stored(codes, label) is not None
    assert BinaryTarget(dilate_label=1).measure_stored(codes, label) is None
    assert BinaryTarget(derive="other").measure_stored(codes, label) is None
    assert BinaryTarget().measure_stored(codes.astype(np.float32), label) is None
    shares = MulticlassTarget(channels=2, output="probabilities")
    assert shares.measure_stored(np.repeat(codes, 2, 0), label) is None


def test_a_label_that_cannot_be_is_refused():
    codes, label = np.zeros((1, 4, 5, 6), np.uint8), np.full((1, 4, 5, 6), 9, np.uint8)
    with pytest.raises(LabelError, match="value 9"):
        MulticlassTarget(channels=2).measure_stored(codes, label)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5)),
    values=st.lists(st.integers(-300, 300), min_size=1, max_size=33, unique=True),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_slices_are_counted_as_one_by_one(shape, values, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    label, valid = rng.choice(np.array(values), shape), rng.random(shape) > 0.3
    found = slice_counts(codes, label, valid)
    if len({*label.ravel()}) > 31:
        assert found is None
        return
    rebuilt = [Counter() for _ in codes]
    for code, value, counts in zip(found.codes, found.labels, found.counts.T, strict=True):
        for slice_, count in zip(rebuilt, counts, strict=True):
            slice_[code, value] = int(count)
    for z, slice_ in enumerate(rebuilt):
        expected = Counter(zip(codes[z][valid[z]], label[z][valid[z]], strict=True))
        assert +slice_ == expected


def test_slices_of_other_types_are_not_counted():
    codes = np.zeros((2, 3, 4), np.uint8)
    assert slice_counts(codes.astype(np.uint16), codes) is None
    assert slice_counts(codes, codes.astype(np.float32)) is None
