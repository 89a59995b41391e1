from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.metrics import joint
from vcmodels.metrics.joint import slice_counts
from vcmodels.metrics.registry import fitting_metrics, is_countable, measure

SHAPES = st.tuples(*(st.integers(0, 7),) * 3)
LABEL_VALUES = st.lists(st.integers(0, 255), min_size=1, max_size=40, unique=True)


def counted(prediction, label, valid):
    """The pairs of each slice."""
    slices = zip(prediction, label, valid, strict=True)
    return [Counter(zip(y[v].tolist(), p[v].tolist(), strict=True)) for p, y, v in slices]


def as_counters(found):
    """The same of what was found, by label and code."""
    pairs = [*zip(found.labels.tolist(), found.codes.tolist(), strict=True)]
    assert pairs == sorted(set(pairs))
    return [+Counter(dict(zip(pairs, row, strict=True))) for row in found.counts.tolist()]


@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    values=LABEL_VALUES,
    of=st.sampled_from(["u1", "i2", "i8", "bool"]),
    shift=st.sampled_from([0, -300]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pairs_are_counted_whatever_the_types(shape, values, of, shift, masked, seed):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, 256, shape).astype(np.uint8)
    chosen = np.array(values) + (shift if of in ("i2", "i8") else 0)
    label = rng.choice(chosen, shape).astype(of)
    valid = rng.random(shape) > 0.5 if masked else None
    found = slice_counts(prediction, label, valid)
    if len({*label.ravel()}) > 31:
        assert found is None
        return
    assert (found.codes.dtype, found.labels.dtype) == (prediction.dtype, label.dtype)
    assert as_counters(found) == counted(
        prediction, label, np.ones(shape, bool) if valid is None else valid
    )


@pytest.mark.parametrize("rare", [3, 200, 255])
def test_a_label_that_no_sample_shows_is_found_and_pieces_are_added(monkeypatch, rare):
    monkeypatch.setattr(joint, "PIECE", 1000)
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 256, (30, 40, 50)).astype(np.uint8)
    label = (255 * rng.integers(0, 2, prediction.shape)).astype(np.uint8)
    label[17, 23, 11] = rare
    found = slice_counts(prediction, label)
    assert as_counters(found) == counted(prediction, label, np.ones(label.shape, bool))


def test_what_is_no_code_or_an_id_is_not_counted():
    codes = np.zeros((2, 300, 4), np.uint8)
    assert slice_counts(codes.astype(np.uint16), codes) is None
    assert slice_counts(codes, codes.astype(np.float32)) is None
    ids = np.arange(codes.size).reshape(codes.shape)
    assert slice_counts(codes, ids * 10_000) is None
    assert slice_counts(codes, ids) is None


@pytest.mark.parametrize("labels", [31, 32])
def test_too_many_labels_are_noticed_that_no_sample_shows(monkeypatch, labels):
    monkeypatch.setattr(joint, "SAMPLE", 10)
    codes, label = np.zeros((2, 40, 5), np.uint8), np.zeros((2, 40, 5), np.int16)
    label[1, 1:labels, 1] = np.arange(100, 99 + labels)
    assert len(np.unique(label.ravel()[:: 1 + label.size // 10])) < 3
    found = slice_counts(codes, label)
    assert (found is None) == (labels == 32)


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
