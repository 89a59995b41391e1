import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from vcmodels.augment.apply import LabelCrop, apply_spatial
from vcmodels.augment.transform import SpatialTransform
from vcmodels.targets import DistanceTarget

SHAPE = (6, 7, 8)
SPACING = (2.0, 1.0, 1.0)


def read(target, *stored):
    label, valid = target.read_label(np.reshape(np.asarray(stored), (1, 1, 1, -1)))
    return label.flatten().tolist(), valid.flatten().tolist()


def test_stored_distances_are_cut_and_divided_by_clip():
    stored = np.array([-9, -2, 0, 1, 50, np.nan, np.inf])
    known = [True] * 5 + [False] * 2
    assert read(DistanceTarget(clip=4.0), *stored) == ([-1, -0.5, 0, 0.25, 1, 0, 0], known)
    assert read(DistanceTarget(clip=4.0, signed=False), *stored)[0] == [0, 0, 0, 0.25, 1, 0, 0]
    codes = DistanceTarget(clip=4.0, encoding={"scale": 0.5, "offset": -64.0})
    assert read(codes, *np.array([128, 129, 0], np.uint8))[0] == [0, 0.125, -1]


def test_the_sign_is_that_of_the_stated_side():
    ids = torch.zeros(1, 3, 3, 12)
    ids[..., 6:] = 4
    valid = torch.ones_like(ids, dtype=torch.bool)
    for positive, sign in (("outside", 1), ("inside", -1)):
        target = DistanceTarget(derive="cells", clip=1.0, positive=positive)
        label, counts = target.derive_label(ids, valid, (1.0, 1.0, 1.0))
        assert counts.all()
        assert label.flatten().tolist() == [sign * v for v in (*[1] * 4, 0.5, -0.5, *[-1] * 4)]
    unsigned = DistanceTarget(derive="cells", clip=1.0, signed=False)
    label, _ = unsigned.derive_label(ids, valid, (1.0, 1.0, 1.0))
    assert label.flatten().tolist() == [1, 1, 1, 1, 0.5, 0.5, 1, 1, 1, 1]


def test_lengths_grow_with_the_map_and_those_at_the_clip_stay():
    label = torch.tensor([-1.0, -0.4, 0.0, 0.3, 0.6, 1.0]).view(1, 1, 1, -1)
    valid = torch.ones_like(label, dtype=torch.bool)
    turned, counts = DistanceTarget(clip=5.0).turn(label, valid, torch.eye(3) / 2, SPACING)
    assert counts.all()
    torch.testing.assert_close(
        turned.flatten(), torch.tensor([-1, -0.8, 0, 0.6, 1, 1]), atol=1e-6, rtol=0
    )
    logits = torch.tensor([-7.0, 0.2, 3.0]).view(1, 1, 1, -1)
    assert torch.equal(
        DistanceTarget(clip=5.0).turn(logits, valid, -torch.eye(3), SPACING)[0], logits
    )


def test_metrics_are_in_the_unit_of_the_spacing():
    target = DistanceTarget(clip=4.0)
    label = torch.tensor([0.5, -0.5, 0.25, 1.0]).view(1, 1, 1, 1, 4)
    prediction = torch.tensor([1.0, 1.0, 1.5, 4.0]).view(1, 1, 1, 1, 4)
    scores = target.summarise(target.measure(prediction, label, torch.ones_like(label).bool()))
    wanted = {"mae": (1 + 3 + 0.5) / 4, "sign_accuracy": 0.75}
    wanted |= {"r2": 1 - (1 + 9 + 0.25) / 18.75}
    wanted |= {"median_error": 0.5, "p90_error": 3, "p95_error": 3}
    assert scores == pytest.approx(wanted, rel=1 / 256)


def test_the_loss_takes_the_activated_output():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), torch.rand(2, 1, *SHAPE)
    valid = torch.ones_like(label, dtype=torch.bool)
    found = DistanceTarget(clip=3.0, activation="tanh").compute_loss(logits, label, valid)
    torch.testing.assert_close(found, (logits.tanh() - label).abs().mean())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "clip"),
        ({"clip": 0.0}, "greater than 0"),
        ({"clip": 1.0, "signed": False, "positive": "inside"}, "signed distances only"),
        ({"clip": 1.0, "surface_of": "instances"}, "of use with derive only"),
        ({"clip": 1.0, "derive": "a", "encoding": {"scale": 2.0}}, "has no encoding"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        DistanceTarget(**keys)


@pytest.mark.parametrize("scale", [0.7, 1.3])
def test_moving_a_stored_distance_is_nearly_deriving_it_from_the_moved_mask(scale):
    """Under a rotation and one scaling; ids are read at the nearest voxel: half of one either way."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    transform = SpatialTransform(matrix=turn * scale)
    patch, clip = (12, 18, 20), 5.0
    stored, derived = DistanceTarget(clip=clip), DistanceTarget(clip=clip, derive="mask")
    margin = derived.source_margin(SPACING)
    grown = tuple(n + 2 * m for n, m in zip(patch, margin, strict=True))
    crop = transform.input_shape(grown, SPACING)
    inner_crop = transform.input_shape(patch, SPACING)
    wide = [n + 2 * m for n, m in zip(crop, margin, strict=True)]
    noise = ndimage.gaussian_filter(rng.normal(size=wide), 4 / np.array(SPACING))
    ids = torch.from_numpy((noise > 0).astype(np.float32))[None]
    label, _ = derived.derive_label(ids, torch.ones_like(ids).bool(), SPACING)
    centre = [slice((n - i) // 2, (n + i) // 2) for n, i in zip(crop, inner_crop, strict=True)]
    source = ids[(slice(None), *(slice(m, m + n) for m, n in zip(margin, crop, strict=True)))]
    label = label[(slice(None), *centre)].contiguous()
    crops = {
        "stored": LabelCrop(label, torch.ones_like(label).bool(), stored),
        "ids": LabelCrop(source.contiguous(), torch.ones_like(source).bool(), None, margin),
    }
    _, moved = apply_spatial(transform, label, crops, patch, SPACING)
    wanted, _ = derived.derive_label(moved["ids"].values, moved["ids"].valid, SPACING)
    found, near = moved["stored"].values, wanted.abs() < 0.6
    assert near.float().mean() > 0.3
    assert ((found - wanted).abs() * clip)[near].mean() < 0.5
    # Lengths that did not follow the map would be 30 % off; picking voxels by `wanted` makes 10.
    assert found[near].abs().mean() == pytest.approx(float(wanted[near].abs().mean()), rel=0.15)
