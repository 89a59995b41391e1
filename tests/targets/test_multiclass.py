import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vcmodels.augment.resample import turn_tensor
from vcmodels.augment.views import turned_back
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.targets import MulticlassTarget
from vcmodels.targets.stored import LabelError

SHAPE = (6, 7, 8)
GAPS = [0, 7, 255, 20]
INTEGERS = [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float32], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("values", [None, GAPS], ids=["indices", "gaps"])
def test_stored_values_become_indices_in_every_dtype(dtype, values):
    index = np.random.default_rng(0).integers(0, 4, (1, *SHAPE))
    stored = np.asarray(values or [0, 1, 2, 3])[index].astype(dtype)
    label, valid = MulticlassTarget(channels=4, label_values=values).read_label(stored)
    np.testing.assert_array_equal(label, index)
    assert label.dtype == np.float32
    assert valid.all()


def test_negative_label_values_are_values_like_any_other():
    target = MulticlassTarget(channels=3, label_values=[-1, -128, 127])
    stored = np.array([127, -1, -128], np.int8).reshape(1, 1, 1, 3)
    label, _ = target.read_label(stored)
    assert label.flatten().tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (np.uint8, 3),
        (np.uint8, 255),
        (np.int8, -1),
        (np.int16, -300),
        (np.int64, -(2**40)),
        (np.uint32, 2**32 - 1),
        (np.float32, 0.5),
        (np.float32, 3.0),
        (np.float64, np.inf),
    ],
)
def test_a_value_that_is_no_class_is_refused_with_its_place(dtype, bad):
    stored = np.ones((1, *SHAPE), dtype)
    stored[0, 2, 3, 4] = stored[0, 5, 6, 7] = bad
    target = MulticlassTarget(channels=3)
    if math.isinf(bad):  # not finite is "not valid" in every kind
        assert not target.read_label(stored)[1][0, 2, 3, 4]
        return
    with pytest.raises(LabelError, match="the classes are 0, 1, 2;") as caught:
        target.read_label(stored)
    assert caught.value.value == bad
    assert caught.value.place == (2, 3, 4)
    assert f"value {bad} at (z, y, x) = (2, 3, 4)" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    _, valid = MulticlassTarget(channels=3, ignore_label=int(bad) if bad != 0.5 else 0).read_label(
        np.where(stored == bad, int(bad) if bad != 0.5 else 0, 1).astype(dtype)
    )
    assert (~valid).sum() == 2


def test_many_classes_are_named_in_short():
    with pytest.raises(LabelError, match=r"the classes are 0, 1, \.\.\. 299 \(300 values\)"):
        MulticlassTarget(channels=300).read_label(np.full((1, *SHAPE), 300, np.uint16))


def test_an_ignored_class_value_does_not_count():
    stored = np.random.default_rng(0).choice(np.array([0, 1, 2, 9], np.uint8), (1, *SHAPE))
    label, valid = MulticlassTarget(channels=3, ignore_label=[9, 2]).read_label(stored)
    np.testing.assert_array_equal(valid, stored <= 1)
    np.testing.assert_array_equal(label, np.where(stored <= 1, stored, 0))


def test_loss_only_on_label_leaves_out_stored_zeros():
    stored = np.random.default_rng(0).integers(0, 3, (1, *SHAPE)).astype(np.uint8)
    _, valid = MulticlassTarget(channels=3, loss_only_on_label=True).read_label(stored)
    np.testing.assert_array_equal(valid, stored > 0)


def test_metrics_by_hand():
    predicted = torch.tensor([0, 1, 1, 2, 2, 0])
    label = torch.tensor([0.0, 1, 2, 2, 2, 1]).view(1, 1, 1, 1, 6)
    valid = torch.tensor([True, True, True, True, True, False]).view(1, 1, 1, 1, 6)
    prediction = torch.eye(4)[predicted].T.reshape(1, 4, 1, 1, 6)
    target = MulticlassTarget(channels=4, label_values=GAPS)
    found = target.summarise(target.measure(prediction, label, valid))
    assert math.isnan(found["dice_20"])  # neither labelled nor predicted
    wanted = {"dice_7": 2 / 3, "dice_255": 0.8, "dice": (2 / 3 + 0.8) / 2, "accuracy": 0.8}
    wanted |= {"iou_7": 1 / 2, "iou_255": 2 / 3, "precision_7": 1 / 2, "recall_255": 2 / 3}
    wanted |= {"specificity_7": 3 / 4, "specificity_20": 1, "specificity_255": 1}
    wanted |= {"average_precision_7": 1 / 2, "average_precision_255": 2 / 3 + 1 / 3 * 3 / 5}
    wanted |= {"roc_area_7": 7 / 8, "best_dice_7": 2 / 3, "best_dice_255": 0.8}
    wanted |= {"calibration_error": 1 / 5, "brier": 2 / 5}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    nothing = target.measure(prediction, label, torch.zeros_like(valid))
    assert all(math.isnan(v) for v in target.summarise(nothing).values())


def test_a_label_seen_as_a_prediction_is_perfect():
    target = MulticlassTarget(channels=4)
    label = torch.randint(0, 4, (2, 1, *SHAPE)).float()
    valid = torch.ones_like(label, dtype=torch.bool)
    found = target.summarise(target.measure(target.as_prediction(label), label, valid))
    errors = {found.pop("calibration_error"), found.pop("brier")}
    thresholds = {found.pop(name) for name in [*found] if name.startswith("best_threshold")}
    assert errors == {0.0}
    assert thresholds <= {0.5 - 0.5 / 1020, 0.5 + 0.5 / 1020}
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("values", [None, GAPS], ids=["indices", "gaps"])
@pytest.mark.parametrize("name", ["uint8", "int16", "int32", "float16", "float32"])
def test_classes_are_written_back_with_the_original_values(values, name):
    target = MulticlassTarget(channels=4, label_values=values)
    dtype = np.dtype(name)
    probabilities = torch.randn(4, *SHAPE).softmax(0)
    stored = target.encode(probabilities, dtype)
    index = probabilities.argmax(0, keepdim=True).numpy()
    assert stored.dtype == dtype
    assert target.output_channels(dtype) is None
    np.testing.assert_array_equal(stored, np.asarray(values or range(4))[index])
    np.testing.assert_array_equal(target.decode(stored).argmax(0), index[0])
    np.testing.assert_array_equal(target.decode(stored).sum(0), 1)
    label, _ = target.read_label(stored)
    np.testing.assert_array_equal(label, index)
    assert target.encoding(dtype)["label_values"] == (values or [0, 1, 2, 3])


@pytest.mark.parametrize("name", ["uint8", "uint16", "float32"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_probabilities_are_written_to_half_a_step(name, seed):
    target, dtype = MulticlassTarget(channels=3, output="probabilities"), np.dtype(name)
    torch.manual_seed(seed)
    wanted = torch.randn(3, *SHAPE).softmax(0)
    stored = target.encode(wanted, dtype)
    assert target.output_channels(dtype) == len(stored) == 3
    half_step = 0 if name == "float32" else 0.5 * target.encoding(dtype)["scale"] + 1e-6
    np.testing.assert_allclose(target.decode(stored), wanted, rtol=0, atol=half_step)


def test_a_dtype_that_cannot_hold_the_values_is_refused():
    target = MulticlassTarget(channels=3, label_values=[0, 1, 300])
    with pytest.raises(ValueError, match=r"as uint8 \(label values are 0, 1, 300\); use uint16"):
        target.output_channels(np.dtype("uint8"))
    negative = MulticlassTarget(channels=2, label_values=[0, -1])
    with pytest.raises(ValueError, match=r"as uint16 .*; use int8, int16"):
        negative.encode(torch.zeros(2, *SHAPE), np.dtype("uint16"))


def test_a_nan_prediction_is_never_the_likeliest():
    prediction = torch.tensor([[torch.nan, 0.2, 0.1], [torch.nan] * 3]).T.reshape(3, 1, 1, 2)
    stored = MulticlassTarget(channels=3).encode(prediction, np.dtype("uint8"))
    assert stored.flatten().tolist() == [1, 0]


def test_classes_keep_their_colours():
    target = MulticlassTarget(channels=20)
    prediction = np.eye(20, dtype=np.float32)[:, None]
    picture = target.picture(prediction)
    assert picture.shape == (1, 20, 3)
    assert picture.dtype == np.float32
    assert (picture[0, 0] == 0).all()
    assert len(np.unique(picture[0, :9], axis=0)) == 9
    np.testing.assert_array_equal(picture[0, 9], picture[0, 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 1}, "greater than or equal to 2"),
        ({"channels": 3, "label_values": [0, 1]}, "must name 3 different values"),
        ({"channels": 3, "label_values": [0, 1, 1]}, "must name 3 different values"),
        ({"loss": "bce"}, 'no loss "bce" for this kind; choose from boundary, ce'),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        MulticlassTarget(**keys)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32], ids=lambda d: np.dtype(d).name)
def test_remap_merges_and_renames_at_once_and_outputs_hold_the_new_values(dtype):
    """5 and 6 become 20; 7 and 20 change places."""
    remap = {5: 20, 6: 20, 7: 20, 20: 7}
    target = MulticlassTarget(channels=3, label_values=[0, 7, 20], remap=remap)
    stored = np.array([0, 5, 6, 7, 20], dtype).reshape(1, 1, 1, 5)
    label, valid = target.read_label(stored)
    assert label.flatten().tolist() == [0, 2, 2, 2, 1]
    assert valid.all()
    written = target.encode(target.as_prediction(torch.from_numpy(label)), np.dtype(np.uint8))
    assert written.flatten().tolist() == [0, 20, 20, 20, 7]
    np.testing.assert_array_equal(target.decode(written).argmax(0), label[0])


def test_remap_applies_to_stored_values_as_does_what_is_ignored():
    target = MulticlassTarget(
        channels=2, remap={3: 1, 4: 0}, ignore_label=3, loss_only_on_label=True
    )
    stored = np.array([0, 1, 3, 4], np.uint8).reshape(1, 1, 1, 4)
    label, valid = target.read_label(stored)
    assert valid.flatten().tolist() == [False, True, False, True]
    assert label.flatten().tolist() == [0, 1, 0, 0]
    with pytest.raises(LabelError, match=r'the classes are 0, 1; correct "channels", .*"remap"'):
        target.read_label(np.full((1, 1, 1, 1), 9, np.uint8))


def test_a_remap_survives_json():
    target = MulticlassTarget(channels=2, remap={255: 1})
    assert MulticlassTarget.model_validate_json(target.model_dump_json()) == target


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5))
def test_averaged_shares_settle_on_the_class_with_the_largest(seed, classes):
    """Against counting; neighbours that do not count have no say, the background included."""
    rng = np.random.default_rng(seed)
    target = MulticlassTarget(channels=classes)
    label = rng.integers(0, classes, (1, 7, *SHAPE)).astype(np.float32)
    weight = rng.random(label.shape) * (rng.random(label.shape) > 0.4)
    weight[:, 0] += 0.01
    spread = np.stack(
        [
            target.spread(torch.from_numpy(np.where(w > 0, one, 0)))
            for one, w in zip(label[0][:, None], weight[0][:, None], strict=True)
        ]
    )
    shares = (spread * weight[0][:, None]).sum(0) / weight[0].sum(0)
    counts = np.stack([(weight * (label == c)).sum((0, 1)) for c in range(classes)])
    settled = target.settle(torch.from_numpy(shares).float())
    clear = np.sort(counts, axis=0)
    decided = clear[-1] - clear[-2] > 1e-4
    np.testing.assert_array_equal(settled[0].numpy()[decided], counts.argmax(0)[decided])
    assert torch.equal(
        target.settle(target.spread(torch.from_numpy(label[0, :1]))), torch.from_numpy(label[0, :1])
    )


def test_counted_class_weights_are_those_of_median_frequency_balancing():
    target = MulticlassTarget(
        channels=5, loss={"ce": {"class_weights": "counted"}, "soft_dice": 0.5}
    )
    assert target.needs_counts
    ready = target.with_counts(np.array([100_000, 1000, 0, 500, 2]))
    # The median of 2, 500, 1000, 100000 is 750; 0.0075 and 375 are clipped.
    assert ready.loss["ce"]["class_weights"] == [0.1, 0.75, 1, 1.5, 10]
    assert ready.loss["soft_dice"] == 0.5
    assert not ready.needs_counts
    assert MulticlassTarget.model_validate_json(ready.model_dump_json()) == ready
    torch.manual_seed(0)
    logits, label = torch.randn(2, 5, *SHAPE), torch.randint(0, 5, (2, 1, *SHAPE)).float()
    valid = torch.ones_like(label, dtype=torch.bool)
    wanted = torch.nn.functional.cross_entropy(
        logits, label[:, 0].long(), weight=torch.tensor([0.1, 0.75, 1, 1.5, 10])
    )
    alone = MulticlassTarget(channels=5, loss={"ce": ready.loss["ce"]})
    torch.testing.assert_close(alone.compute_loss(logits, label, valid), wanted)
    assert not MulticlassTarget(channels=5).needs_counts


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0], [[1, 2, 3]]])
def test_counts_that_do_not_fit_are_refused(counts):
    target = MulticlassTarget(channels=3, loss={"ce": {"class_weights": "counted"}})
    with pytest.raises(ValueError, match="needs 3 counts, not all 0"):
        target.with_counts(np.array(counts))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"remap": {5: 3}}, "remap reads 5 as 3, which is no class; the classes are 0, 1, 2"),
        ({"loss": {"ce": {"class_weights": [1.0, 2.0]}}}, "class_weights must hold 3 numbers"),
        ({"loss": {"ce": {"class_weights": "median"}}}, "class_weights"),
    ],
)
def test_remaps_and_weights_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        MulticlassTarget(channels=3, **keys)


PAIRED = MulticlassTarget(channels=5, mirror_pairs={"x": [(1, 3)], "z": [(2, 4)]})
KEEPING = [s for s in CUBE_SYMMETRIES if s.permutation == (0, 1, 2)]


def mirrored(values, symmetry):
    """As augmentation does it: voxels moved, then values turned."""
    moved = turn_tensor(symmetry, values)
    valid = torch.ones((1, *moved.shape[1:]), dtype=torch.bool)
    jacobian = torch.as_tensor(symmetry.matrix, dtype=torch.float32)
    return PAIRED.turn(moved, valid, jacobian, (1.0, 1.0, 1.0))[0]


@pytest.mark.parametrize("symmetry", KEEPING, ids=str)
def test_a_mirror_exchanges_the_pairs_of_its_axis_and_twice_is_nothing(symmetry):
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 5, (1, *SHAPE))).float()
    found = mirrored(label, symmetry)
    order = np.arange(5)
    order = order[[0, 3, 2, 1, 4]] if symmetry.flips[2] else order
    order = order[[0, 1, 4, 3, 2]] if symmetry.flips[0] else order
    np.testing.assert_array_equal(found, order[symmetry(label.numpy()).astype(int)])
    np.testing.assert_array_equal(mirrored(found, symmetry), label)


@pytest.mark.parametrize("symmetry", KEEPING, ids=str)
def test_what_is_predicted_in_a_mirror_comes_back_in_its_own_channel(symmetry):
    """A network that is right in every view is right after `tta`; `spread` and logits agree."""
    label = torch.from_numpy(np.random.default_rng(1).integers(0, 5, (1, *SHAPE))).float()
    logits = torch.nn.functional.one_hot(mirrored(label, symmetry)[0].long(), 5)
    logits = logits.movedim(-1, 0).float()[None].contiguous()
    back, known = turned_back(PAIRED, logits, symmetry, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(back[0].argmax(0, keepdim=True), label)
    assert known is None
    spread = mirrored(PAIRED.spread(label), symmetry)
    np.testing.assert_array_equal(PAIRED.settle(spread), mirrored(label, symmetry))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"x": [[1, 7]]}, "names 7, which is no class; the classes are 0, 1, 2, 3, 4"),
        ({"y": [[0, 1]]}, "mirror_pairs.y names 0, the background"),
        ({"x": [[1, 2], [2, 3]]}, "mirror_pairs.x names 2 twice; give each class one partner"),
        ({"w": [[1, 2]]}, "mirror_pairs"),
    ],
)
def test_pairs_that_mean_nothing_are_refused(pairs, message):
    with pytest.raises(ValidationError, match=message):
        MulticlassTarget(channels=5, mirror_pairs=pairs)


def test_a_warp_exchanges_nothing():
    label = torch.ones(1, 3, 3, 3)
    jacobian = -torch.eye(3)[:, :, None, None, None].expand(3, 3, 3, 3, 3)
    valid = torch.ones(1, 3, 3, 3, dtype=torch.bool)
    assert PAIRED.turn(label, valid, jacobian, (1.0, 1.0, 1.0))[0] is label
    assert not PAIRED.follows_warps
