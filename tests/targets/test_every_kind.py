"""What every kind of target promises, whatever it predicts: one line in `CASES` puts it to the test."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.targets import KINDS, AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.stored import OUTPUT_DTYPES

SHAPE = (6, 7, 8)
CUBES, SLABS = (1.0, 1.0, 1.0), (3.0, 0.5, 0.5)
PARSER = TypeAdapter(AnyTarget)


def numbers(channels, low=-3.0, high=3.0):
    """Stored floats of any value."""
    return lambda rng: rng.uniform(low, high, (channels, *SHAPE)).astype(np.float32)


def codes(*values):
    """Stored codes, one channel."""
    return lambda rng: rng.choice(np.array(values, np.uint8), (1, *SHAPE))


def stacked(channels):
    """Masks, each with its own unknown voxels to come."""
    return lambda rng: rng.integers(0, 2, (channels, *SHAPE), np.uint8)


CLOSED = ((1, 0, 0), (0, 2, 0), (0, 0, 1), (0, 1, 0), (0, 0, -2), (-2, 0, 0))
"""Each turn of one is another of them, or the opposite of one."""


def scaled(values, jacobian, spacing):
    """Lengths, in the mean."""
    return values / np.cbrt(abs(np.linalg.det(jacobian)))


def unchanged(values, jacobian, spacing):
    """Scalars do not care."""
    return values


def displaced(values, jacobian, spacing):
    """Start 0 and end v, both taken back through the sampling map."""
    return np.einsum("ij,jzyx->izyx", np.linalg.inv(jacobian), values)


def slopes(values, jacobian, spacing):
    """f(p) = g . p by the voxel, sampled at M q: what one step along each axis of q adds."""
    per_length = values / np.reshape(spacing, (3, 1, 1, 1))
    steps = jacobian * np.asarray(spacing)
    return np.stack([np.einsum("i,izyx->zyx", steps[:, j], per_length) for j in range(3)])


def directions(values, jacobian, spacing):
    """The unit normal of the plane n . p = const, from two vectors that span it, taken back."""
    z, y, x = values
    helper = np.stack([y, x, -z]) + 0.1 * np.stack([x, -z, y])
    first = np.cross(values, helper, axis=0)
    pair = [displaced(v, jacobian, spacing) for v in (first, np.cross(values, first, axis=0))]
    normal = np.cross(*pair, axis=0) * np.sign(np.linalg.det(jacobian))
    return normal / np.linalg.norm(normal, axis=0)


@dataclass(frozen=True)
class Case:
    """A block of the task file, labels for it, and what an affine does to them."""

    name: str
    block: dict
    stored: Callable = field(compare=False)
    moved: Callable | None = unchanged
    """(values (C, ...), jacobian, spacing) -> values; None if only exact moves are known."""

    def __str__(self):
        return f"{self.block['kind']}-{self.name}"

    @property
    def target(self) -> Target:
        return PARSER.validate_python(self.block)


CASES = [
    Case("mask", {"kind": "binary"}, codes(0, 1, 255)),
    Case("logits", {"kind": "binary", "activation": "none"}, codes(0, 1)),
    Case("indices", {"kind": "multiclass", "channels": 3}, codes(0, 1, 2)),
    Case(
        "gaps",
        {"kind": "multiclass", "channels": 3, "label_values": [0, 7, 20], "remap": {5: 7}}
        | {"output": "probabilities", "label_interpolation": "linear"},
        codes(0, 7, 20, 5),
    ),
    Case("values", {"kind": "regression", "channels": 2, "output_range": [-9.0, 9.0]}, numbers(2)),
    Case("sigmoid", {"kind": "regression", "activation": "sigmoid"}, numbers(1, 0, 1)),
    Case("oriented", {"kind": "normals"}, numbers(3), directions),
    Case("axial", {"kind": "normals", "orientation": "axial"}, numbers(3), directions),
    Case("displacement", {"kind": "vector", "output_range": [-9.0, 9.0]}, numbers(3), displaced),
    Case(
        "gradient",
        {"kind": "vector", "transforms_as": "gradient", "units": "voxels", "vector_order": "zyx"},
        numbers(3),
        slopes,
    ),
    Case("heat", {"kind": "centres"}, numbers(1, 0, 1)),
    Case("signed", {"kind": "distance", "clip": 4.0}, numbers(1, -1, 1), scaled),
    Case(
        "tanh", {"kind": "distance", "clip": 3.5, "activation": "tanh"}, numbers(1, -1, 1), scaled
    ),
    Case("plain", {"kind": "distance", "clip": 3.0, "signed": False}, numbers(1, 0, 1), scaled),
    Case("stored", {"kind": "boundary"}, codes(0, 1)),
    Case("nearest", {"kind": "affinities"}, stacked(3), None),
    Case("closed", {"kind": "affinities", "offsets": CLOSED}, stacked(6), None),
]
DERIVED = {
    "vector-flow": {"kind": "vector", "derive": "cells", "max_extent": 4},
    "vector-cut": {"kind": "vector", "derive": "cells", "max_extent": 4, "units": "voxels"}
    | {"keep_cut": True},
    "centres-heat": {"kind": "centres", "derive": "cells", "max_extent": 4, "sigma": 0.8},
    "centres-physical": {"kind": "centres", "derive": "cells", "max_extent": 4, "sigma": 1.0}
    | {"sigma_units": "physical", "loss_only_on_label": True},
    "binary-grown": {"kind": "binary", "derive": "cells", "dilate_label": 2},
    "boundary-all": {"kind": "boundary", "derive": "cells", "width": 1.5},
    "boundary-inner": {"kind": "boundary", "derive": "cells", "width": 3.2}
    | {"between": "instances"},
    "distance-mask": {"kind": "distance", "derive": "cells", "clip": 2.0},
    "distance-cells": {"kind": "distance", "derive": "cells", "clip": 3.3, "positive": "inside"}
    | {"surface_of": "instances", "activation": "tanh"},
    "distance-unsigned": {"kind": "distance", "derive": "cells", "clip": 1.0, "signed": False},
    "normals-oriented": {"kind": "normals", "derive": "cells", "smoothing_sigma": 0.8},
    "normals-axial": {"kind": "normals", "derive": "cells", "orientation": "axial"},
    "normals-of-faces": {
        "kind": "normals",
        "derive": "cells",
        "orientation": "axial",
        "surface_of": "instances",
    },
    "affinities-nearest": {"kind": "affinities", "derive": "cells"},
    "affinities-closed": {"kind": "affinities", "derive": "cells", "offsets": CLOSED},
}
BLOCKS = {str(case): case.block for case in CASES} | DERIVED
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_free_case = pytest.mark.parametrize("case", [c for c in CASES if c.moved], ids=str)
every_derived = pytest.mark.parametrize(
    "target", [pytest.param(PARSER.validate_python(b), id=name) for name, b in DERIVED.items()]
)


def test_every_kind_has_a_case():
    assert {case.block["kind"] for case in CASES} == set(KINDS)
    derivable = {kind for kind, target in KINDS.items() if target.is_derivable}
    assert {block["kind"] for block in DERIVED.values()} == derivable


def read(case, seed=0):
    """A label and which of its voxels count, some of which do not."""
    rng = np.random.default_rng(seed)
    label, valid = (torch.from_numpy(a) for a in case.target.read_label(case.stored(rng)))
    valid = valid & torch.from_numpy(rng.random(valid.shape) > 0.2)
    return torch.where(valid, label, 0.0), valid


def logits_of(target, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, target.channels, *SHAPE, generator=generator)


def predict(target, logits):
    return target.unblend(target.blendable(logits))


def assert_same_prediction(target, one, other):
    """Equal, or equal axes: what is averaged does not tell n from -n."""
    one, other = (target.blendable(v if v.ndim == 5 else v[None]) for v in (one, other))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def assert_same(target, one, other, tolerance=1e-5):
    """Equal, or equal axes, as labels."""
    one, other = (target.spread(torch.as_tensor(np.asarray(v)).float()) for v in (one, other))
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@every_case
def test_a_label_is_finite_and_zero_where_it_does_not_count(case):
    label, valid = case.target.read_label(case.stored(np.random.default_rng(0)))
    assert label.dtype == np.float32
    assert valid.dtype == bool
    assert label.shape[1:] == valid.shape[1:] == SHAPE
    assert len(valid) in (1, len(label))
    assert (np.where(valid, 0, label) == 0).all()


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_stored_value_that_is_not_finite_does_not_count(case, bad):
    stored = case.stored(np.random.default_rng(0)).astype(np.float64)
    before = case.target.read_label(stored)[1]
    stored[-1, 2, 3, 4] = bad
    label, valid = case.target.read_label(stored)
    assert not valid[-1, 2, 3, 4]
    assert (valid == before).sum() == valid.size - before[-1, 2, 3, 4]
    assert np.isfinite(label).all()


@every_case
def test_an_ignored_value_does_not_count(case):
    stored = case.stored(np.random.default_rng(0))
    stored[:, 2, 3, 4], stored[:, 1, 1, 1] = 99, 98
    target = case.target.model_copy(update={"ignore_label": [98, 99]})
    _, valid = target.read_label(stored)
    assert not valid[:, [2, 1], [3, 1], [4, 1]].any()
    alone = stored.copy()
    alone[:, [2, 1], [3, 1], [4, 1]] = stored[:, :1, 0, 0]
    assert (case.target.read_label(alone)[1] & ~valid).sum() <= 2 * len(valid)


def turned_by(symmetry, target, label, valid, spacing=CUBES):
    """What the augmentation does: voxels are moved, then the target changes the values."""
    moved = [torch.from_numpy(symmetry(a.numpy()).copy()) for a in (label, valid)]
    return target.turn(*moved, torch.from_numpy(symmetry.matrix).float(), spacing)


@every_case
def test_every_symmetry_and_its_inverse_leave_a_label_as_it_was(case):
    """To the bit; but partners that were outside for a while are lost."""
    label, valid = read(case)
    for symmetry in CUBE_SYMMETRIES:
        turned = turned_by(symmetry, case.target, label, valid)
        again, counts = turned_by(symmetry.inverse, case.target, *turned)
        if not case.target.turns_freely:
            assert not (counts & ~valid).any(), symmetry
            label = torch.where(counts, label, 0.0)
            valid = counts
        assert torch.equal(again, label), symmetry
        assert torch.equal(counts, valid), symmetry


@every_free_case
@pytest.mark.parametrize("as_field", [False, True])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_affine_does_to_a_label_what_the_oracle_says(case, as_field, seed):
    """On voxels of unequal sides; the oracles know vectors by their ends and planes by their edges."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + 0.3 * rng.uniform(-1, 1, (3, 3))
    label, valid = read(case, seed)
    jacobian = torch.from_numpy(matrix).float()
    if as_field:
        jacobian = jacobian[..., None, None, None].expand(3, 3, *SHAPE)
    turned, counts = case.target.turn(label, valid, jacobian, SLABS)
    wanted = np.where(valid, case.moved(label.double().numpy() + 1e-30, matrix, SLABS), 0)
    assert_same(case.target, np.where(valid, turned, 0), wanted, 1e-4)
    assert torch.equal(counts, valid)
    inverse = torch.from_numpy(np.linalg.inv(matrix)).float()
    again, _ = case.target.turn(turned, counts, inverse, SLABS)
    assert_same(case.target, again, label, 1e-4)


@every_free_case
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_logits_turn_like_labels(case, seed):
    """A prediction of turned logits is the turned prediction."""
    target, rng = case.target, np.random.default_rng(seed)
    matrix = np.eye(3) + 0.3 * rng.uniform(-1, 1, (3, 3))
    if case.moved is scaled:  # logits are only turned by maps that keep lengths
        matrix /= np.cbrt(np.linalg.det(matrix))
    jacobian = torch.from_numpy(matrix).float()
    logits, valid = logits_of(target, seed, 1)[0], torch.ones(1, *SHAPE, dtype=torch.bool)
    turned, _ = target.turn(logits, valid, jacobian, SLABS)
    after = predict(target, turned[None])[0]
    before, _ = target.turn(predict(target, logits[None])[0], valid, jacobian, SLABS)
    assert_same_prediction(target, after, before)


@every_case
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 8))
def test_averaging_equal_predictions_changes_nothing(case, seed, count):
    target = case.target
    blendable = target.blendable(logits_of(target, seed))
    assert blendable.shape == (2, target.blend_channels, *SHAPE)
    weights = torch.rand(count, 1, *SHAPE, generator=torch.Generator().manual_seed(seed)) + 1e-3
    averaged = sum(blendable[1] * w for w in weights / weights.sum(0))
    assert_same_prediction(target, target.unblend(averaged), target.unblend(blendable)[1])


def losses_of(case):
    """The target with each of its losses alone, where that loss fits the case."""
    for name in sorted(case.target.allowed_losses()):
        try:
            yield PARSER.validate_python({**case.block, "loss": name})
        except ValidationError:  # such as the cosine of axes
            continue


LOSSES = [(case, target) for case in CASES for target in losses_of(case)]


def test_every_loss_of_a_kind_fits_one_of_its_cases():
    for kind, target in KINDS.items():
        fitting = {t.loss for case, t in LOSSES if case.block["kind"] == kind}
        # The length of a vector is a term beside its direction.
        assert target.allowed_losses() - fitting <= {"unit_length"}


@pytest.mark.parametrize(
    ("case", "target"), LOSSES, ids=lambda v: v.loss if isinstance(v, Target) else str(v)
)
def test_voxels_that_do_not_count_have_no_loss_and_no_gradient(case, target):
    labels, counts = zip(*(read(case, seed) for seed in (0, 1)), strict=True)
    label, valid = torch.stack(labels), torch.stack(counts)
    found = []
    for junk in (0.0, torch.nan, torch.inf, 1e30):
        logits = torch.where(valid.any(1, keepdim=True), logits_of(target), junk).requires_grad_()
        loss = target.compute_loss(logits, label, valid)
        loss.backward()
        found.append(loss.detach())
        assert logits.grad.isfinite().all()
        assert (logits.grad[(~valid.any(1, keepdim=True)).expand_as(logits)] == 0).all()
        assert (logits.grad != 0).any()
    assert all(torch.equal(loss, found[0]) for loss in found)
    logits = logits_of(target).requires_grad_()
    nothing = target.compute_loss(logits, label, torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


@every_case
def test_voxels_that_do_not_count_have_no_weight_in_metrics(case):
    target, (label, valid) = case.target, read(case)
    prediction = predict(target, logits_of(target, batch=1))
    clean = target.measure(prediction, label[None], valid[None])
    for junk in (torch.nan, torch.inf, -1e30):
        dirty = torch.where(valid.any(0), prediction, junk)
        for key, value in target.measure(dirty, label[None], valid[None]).items():
            torch.testing.assert_close(value, clean[key], rtol=0, atol=0, msg=key)
    nothing = target.summarise(
        target.measure(prediction, label[None], torch.zeros_like(valid)[None])
    )
    assert all(math.isnan(value) for value in nothing.values())
    assert target.metric in nothing


@every_case
def test_sums_of_parts_add_up_to_the_metrics_of_the_whole(case):
    target, (label, valid) = case.target, read(case)
    prediction = predict(target, logits_of(target, batch=1))
    whole = target.measure(prediction, label[None], valid[None])
    parts = [
        target.measure(prediction[:, :, part], label[None, :, part], valid[None, :, part])
        for part in (slice(0, 2), slice(2, None))
    ]
    added = {key: parts[0][key] + parts[1][key] for key in whole}
    assert target.summarise(added) == pytest.approx(target.summarise(whole), nan_ok=True)


@every_case
def test_a_label_as_a_prediction_is_perfect(case):
    target, (label, valid) = case.target, read(case)
    prediction = target.as_prediction(label[None])
    scores = target.summarise(target.measure(prediction, label[None], valid[None]))
    random = predict(target, logits_of(target, batch=1))
    worse = target.summarise(target.measure(random, label[None], valid[None]))
    best = round(scores[target.metric])
    assert best in (0, 1)
    assert scores[target.metric] == pytest.approx(best, abs=1e-4)
    assert abs(worse[target.metric] - best) > 0.05


def storable(case):
    for name in OUTPUT_DTYPES:
        try:
            case.target.output_channels(np.dtype(name))
        except ValueError:
            continue
        yield np.dtype(name)


STORED = [(case, dtype) for case in CASES for dtype in storable(case)]


@pytest.mark.parametrize(("case", "dtype"), STORED, ids=str)
def test_decoding_undoes_encoding_to_half_a_step_and_what_is_outside_is_clipped(case, dtype):
    target = case.target
    prediction = predict(target, logits_of(target, batch=1))[0]
    stored = target.encode(prediction, dtype)
    channels = target.output_channels(dtype)
    assert stored.dtype == dtype
    assert stored.shape == (channels or 1, *SHAPE)
    attributes = target.encoding(dtype)
    decoded = target.decode(stored)
    if attributes.get("quantity") == "class":
        np.testing.assert_array_equal(decoded.argmax(0), prediction.argmax(0))
        return
    exact = {"float32": 1e-6, "float16": 4e-3}
    step = exact.get(dtype.name, attributes["scale"])
    np.testing.assert_allclose(decoded, prediction, rtol=0, atol=step / 2 + 1e-6)
    for far in (1e3, 1e15):
        beyond = target.decode(target.encode(prediction * far, dtype))
        assert (np.sign(prediction.numpy()) * (beyond - decoded) >= -step).all()
    target.encode(torch.full_like(prediction, torch.nan), dtype)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_survives_json(name):
    block = BLOCKS[name]
    target = PARSER.validate_python(block)
    again = PARSER.validate_json(target.model_dump_json())
    assert again == target
    assert PARSER.validate_python(target.model_dump()) == target
    with pytest.raises(ValidationError, match="chanels"):
        PARSER.validate_python({**block, "chanels": 1})


@every_case
def test_what_is_spread_settles_on_the_same_label(case):
    label, _ = read(case)
    assert_same(case.target, case.target.settle(case.target.spread(label)), label)


@every_case
def test_a_picture_of_any_prediction_has_colours_in_range(case):
    slices = predict(case.target, logits_of(case.target))[0, :, 3].numpy()
    slices[:, 0, 0], slices[:, 1, 1] = np.nan, 1e30
    picture = case.target.picture(slices)
    assert picture.shape == (*SHAPE[1:], 3)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1


@every_case
def test_on_one_scale_a_picture_of_a_part_is_a_part_of_the_picture(case):
    whole = predict(case.target, 3 * logits_of(case.target))[0, :, 3].numpy()
    scaled = case.target.on_scale_of(whole)
    assert scaled.has_scale
    assert (scaled == case.target) == case.target.has_scale
    picture = case.target.picture(whole)
    np.testing.assert_allclose(scaled.picture(whole), picture, atol=1e-6)
    for part in (np.s_[:, :3], np.s_[:, :, 5:], np.s_[:, 2:3, 2:3]):
        np.testing.assert_allclose(scaled.picture(whole[part]), picture[part[1:]], atol=1e-6)


def cells(rng, shape):
    """Boxes of a few voxels, some touching, one id in several places."""
    ids = np.zeros(shape, np.float32)
    for _ in range(14):
        low = [rng.integers(0, n) for n in shape]
        size = rng.integers(1, 5, 3)
        ids[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] = rng.integers(0, 20)
    return ids, rng.random(shape) > 0.003


def derive(target, ids, known, spacing):
    """The label of a whole volume, outside of which nothing is known."""
    around = [(m, m) for m in target.source_margin(spacing)]
    source, inside = np.pad(ids, around), np.pad(known, around)
    return target.derive_label(
        torch.from_numpy(source.copy())[None], torch.from_numpy(inside.copy())[None], spacing
    )


@every_derived
@pytest.mark.parametrize("spacing", [CUBES, SLABS], ids=["cubes", "slabs"])
def test_turning_what_was_derived_is_deriving_from_what_was_turned(target, spacing):
    ids, known = cells(np.random.default_rng(0), (11, 12, 13))
    label, valid = derive(target, ids, known, spacing)
    assert valid.any()
    assert (label != 0).any()
    for symmetry in CUBE_SYMMETRIES:
        if symmetry.is_lawful(spacing):
            turned, counts = turned_by(symmetry, target, label, valid, spacing)
            wanted, wanted_counts = derive(target, symmetry(ids), symmetry(known), spacing)
            assert torch.equal(counts, wanted_counts), symmetry
            turned = torch.where(counts, turned, 0.0)
            assert_same(target, turned, wanted)


@every_derived
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_derived_label_of_a_patch_is_the_crop_of_the_whole(target, seed):
    rng = np.random.default_rng(seed)
    ids, known = cells(rng, (11, 12, 13))
    label, valid = derive(target, ids, known, SLABS)
    low = [rng.integers(0, n) for n in ids.shape]
    high = [rng.integers(a, n) + 1 for a, n in zip(low, ids.shape, strict=True)]
    part = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    margin = target.source_margin(SLABS)
    around = [(m, m) for m in margin]
    grown = tuple(slice(a, b + 2 * m) for a, b, m in zip(low, high, margin, strict=True))
    source, inside = (torch.from_numpy(np.pad(a, around)[grown].copy())[None] for a in (ids, known))
    found, counts = target.derive_label(source, inside, SLABS)
    assert torch.equal(counts, valid[part])
    torch.testing.assert_close(found, label[part], atol=1e-5, rtol=0)


@every_case
def test_metrics_are_named_with_the_sense_in_which_they_improve(case):
    target = case.target
    labels, counts = zip(*(read(case, seed) for seed in (0, 1)), strict=True)
    label, valid = torch.stack(labels), torch.stack(counts)
    perfect = target.as_prediction(label)
    found = target.summarise(target.measure(perfect, label, valid))
    spoiled = target.summarise(target.measure(predict(target, logits_of(target)), label, valid))
    assert [name for name in found if "best_threshold" not in name] == [*target.figures]
    for name, sense in target.figures.items():
        assert (found[name] < spoiled[name]) if sense == "min" else (found[name] > spoiled[name])
