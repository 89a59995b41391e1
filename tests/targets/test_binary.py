import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import distance_transform_edt

from vcmodels.losses import LOSSES
from vcmodels.targets import BinaryTarget
from vcmodels.targets.stored import LabelError

SHAPE = (6, 7, 8)
LABEL_DTYPES = [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint64, np.float16, np.float32]


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=lambda d: np.dtype(d).name)
def test_any_value_above_zero_is_foreground(dtype):
    mask = np.random.default_rng(0).random((1, *SHAPE)) < 0.3
    for foreground in (1, 255, 100):
        stored = (mask * foreground).astype(dtype)
        label, valid = BinaryTarget().read_label(stored)
        np.testing.assert_array_equal(label, mask)
        assert label.dtype == np.float32
        assert valid.all()


@pytest.mark.parametrize("ignore", [2, [2, 9], [-1, 2, 1000]])
def test_ignored_values_do_not_count(ignore):
    stored = np.random.default_rng(0).choice(np.array([0, 1, 2, 9], np.uint8), (1, *SHAPE))
    label, valid = BinaryTarget(ignore_label=ignore).read_label(stored)
    ignored = np.isin(stored, ignore)
    np.testing.assert_array_equal(valid, ~ignored)
    np.testing.assert_array_equal(label, (stored > 0) & ~ignored)


def test_nan_does_not_count():
    stored = np.ones((1, *SHAPE), np.float32)
    stored[0, 1, 2, 3] = np.nan
    label, valid = BinaryTarget().read_label(stored)
    assert np.argwhere(~valid).tolist() == [[0, 1, 2, 3]]
    assert label[0, 1, 2, 3] == 0


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_a_negative_value_is_refused_unless_ignored(dtype):
    stored = np.zeros((1, *SHAPE), dtype)
    stored[0, 2, 3, 4] = stored[0, 5, 6, 7] = -1
    with pytest.raises(LabelError, match=r"value -1(\.0)? at \(z, y, x\) = \(2, 3, 4\); a mask"):
        BinaryTarget().read_label(stored)
    _, valid = BinaryTarget(ignore_label=-1).read_label(stored)
    assert (~valid).sum() == 2


def test_loss_only_on_label_counts_foreground_only():
    stored = np.random.default_rng(0).integers(0, 3, (1, *SHAPE)).astype(np.uint8)
    _, valid = BinaryTarget(ignore_label=2, loss_only_on_label=True).read_label(stored)
    np.testing.assert_array_equal(valid, stored == 1)


@pytest.mark.parametrize(("dilate", "radius"), [(True, 1), (2, 2), (3, 3), (False, 0), (None, 0)])
def test_dilation_grows_the_mask_but_not_into_what_is_ignored(dilate, radius):
    rng = np.random.default_rng(0)
    stored = rng.choice(np.array([0, 1, 255], np.uint8), (1, 12, 13, 14), p=[0.97, 0.01, 0.02])
    target = BinaryTarget(ignore_label=255, dilate_label=dilate)
    label, valid = target.read_label(stored)
    assert target.label_margin == radius
    np.testing.assert_array_equal(valid, stored != 255)
    near = distance_transform_edt(stored[0] != 1) <= radius
    np.testing.assert_array_equal(label[0], near & valid[0])


def test_a_patch_with_its_margin_reads_as_the_whole_volume_does():
    stored = (np.random.default_rng(0).random((1, 20, 21, 22)) < 0.01).astype(np.uint8)
    target = BinaryTarget(dilate_label=3)
    whole, _ = target.read_label(stored)
    m = target.label_margin
    part, _ = target.read_label(stored[:, 5 - m : 11 + m, 6 - m : 13 + m, 4 - m : 12 + m])
    np.testing.assert_array_equal(part[:, m:-m, m:-m, m:-m], whole[:, 5:11, 6:13, 4:12])


def test_metrics_by_hand():
    prediction = torch.tensor([0.9, 0.6, 0.2, 0.7, 0.1]).view(1, 1, 1, 1, 5)
    label = torch.tensor([1.0, 0, 1, 1, 0]).view(1, 1, 1, 1, 5)
    valid = torch.tensor([True, True, True, False, True]).view(1, 1, 1, 1, 5)
    wanted = {"dice": 0.5, "iou": 1 / 3, "precision": 0.5, "recall": 0.5}
    wanted |= {"specificity": 0.5, "accuracy": 0.5}
    ranked = {"average_precision": (1 + 2 / 3) / 2, "roc_area": 0.75, "best_dice": 0.8}
    ranked |= {"best_threshold": 0.2 - 0.5 / 1020}  # the nearest to a half below 0.2
    ranked |= {"calibration_error": (0.1 + 0.6 + 0.8 + 0.1) / 4, "brier": 1.02 / 4}
    target = BinaryTarget()
    found = target.summarise(target.measure(prediction, label, valid))
    assert found == pytest.approx(wanted | ranked)
    raw = BinaryTarget(activation="none")
    logits = torch.logit(prediction)
    assert raw.summarise(raw.measure(logits, label, valid)) == pytest.approx(wanted | ranked)
    logits.data.view(-1)[:4] = torch.tensor([1e-9, 1e-30, -1e-9, 0.0])  # all of them round to 0.5
    found = raw.summarise(raw.measure(logits, label, valid))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    nothing = target.measure(prediction, label, torch.zeros_like(valid))
    assert all(math.isnan(v) for v in target.summarise(nothing).values())


def test_the_default_loss_is_bce_and_dice_of_logits():
    target = BinaryTarget(label_smoothing=0.1)
    label = torch.randint(0, 2, (2, 1, *SHAPE)).float()
    valid = torch.ones_like(label, dtype=torch.bool)
    logits = torch.zeros_like(label)
    single = [
        BinaryTarget(loss=name, label_smoothing=0.1).compute_loss(logits, label, valid)
        for name in ("bce", "soft_dice")
    ]
    assert target.compute_loss(logits, label, valid) == sum(single)
    # At logit 0 the cross-entropy is ln 2; a second sigmoid would make it 0.72.
    assert single[0].item() == pytest.approx(math.log(2))
    doubled = BinaryTarget(loss={"bce": 2}).compute_loss(logits, label, valid)
    assert doubled.item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("name", ["bce", "soft_dice", "soft_jaccard"])
def test_label_smoothing_reaches_every_loss(name):
    label = torch.randint(0, 2, (2, 1, *SHAPE)).float()
    valid = torch.ones_like(label, dtype=torch.bool)
    logits = torch.randn_like(label)
    found = BinaryTarget(loss=name, label_smoothing=0.3).compute_loss(logits, label, valid)
    assert found == LOSSES[name].function(logits, label, valid, label_smoothing=0.3)
    assert found != LOSSES[name].function(logits, label, valid)


@pytest.mark.parametrize("name", ["uint8", "uint16", "float16", "float32"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_decoding_undoes_encoding_to_half_a_step(name, seed):
    dtype, target = np.dtype(name), BinaryTarget()
    wanted = np.random.default_rng(seed).random((1, *SHAPE)).astype(np.float32)
    wanted[0, 0, 0, :3] = (0, 1, 0.5)
    stored = target.encode(torch.from_numpy(wanted), dtype)
    scale = target.encoding(dtype)["scale"]
    half_step = {"float16": 5e-4, "float32": 0}.get(name, 0.5 * scale + 1e-6)
    assert stored.dtype == dtype
    np.testing.assert_allclose(target.decode(stored), wanted, rtol=0, atol=half_step)
    np.testing.assert_allclose(stored * scale, wanted, rtol=0, atol=half_step)
    if dtype.kind == "u":
        limit = np.iinfo(dtype).max
        np.testing.assert_array_equal(stored, np.rint(wanted * np.float32(limit)))


@pytest.mark.parametrize(("name", "limit"), [("uint8", 255), ("uint16", 65535)])
def test_bad_predictions_are_clipped_and_never_wrap(name, limit):
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.5, -0.2, 300]).view(1, 1, 1, 6)
    stored = BinaryTarget().encode(bad, np.dtype(name))
    assert stored.flatten().tolist() == [0, limit, 0, limit, 0, limit]


def test_raw_logits_are_written_as_floats_only():
    target = BinaryTarget(activation="none")
    with pytest.raises(ValueError, match='as uint8 \\(activation "none" writes raw logits'):
        target.output_channels(np.dtype("uint8"))
    assert target.output_channels(np.dtype("float32")) is None
    logits = torch.tensor([-1e6, 3.0]).view(1, 1, 1, 2)
    np.testing.assert_allclose(
        target.encode(logits, np.dtype("float16")).flatten(), (-65504, 3), rtol=0
    )
    assert target.blendable(logits) is not None
    torch.testing.assert_close(target.blendable(logits), logits)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="as int32; use uint8, uint16, float16, float32"):
        BinaryTarget().output_channels(np.dtype("int32"))


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_a_label_seen_as_a_prediction_is_perfect(activation):
    target = BinaryTarget(activation=activation)
    label = torch.randint(0, 2, (2, 1, *SHAPE)).float()
    valid = torch.ones_like(label, dtype=torch.bool)
    prediction = target.as_prediction(label)
    assert target.summarise(target.measure(prediction, label, valid))["dice"] == 1
    picture = target.picture(prediction[0, :, 3].numpy())
    np.testing.assert_array_equal(picture, label[0, 0, 3, ..., None].expand(-1, -1, 3))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 2}, "less than or equal to 1"),
        ({"loss": "cosine"}, 'no loss "cosine" for this kind; choose from bce, boundary'),
        ({"activation": "softmax"}, "'sigmoid' or 'none'"),
        ({"dilate_label": -1}, "greater than or equal to 0"),
        ({"label_smoothing": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        BinaryTarget(**keys)
