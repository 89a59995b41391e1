import numpy as np
import pytest

from vcmodels import evaluation
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.centres import CentresTarget
from vcmodels.targets.distance import DistanceTarget
from vcmodels.targets.multiclass import MulticlassTarget

EXTENT = (10, 14, 18)
INNER = Box((1, 2, 3), (7, 9, 11))


def score(target, prediction, array, box=INNER, **options):
    return evaluation.score(prediction, array, target, box=box, **options)


def masks(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, EXTENT, dtype=np.uint8), rng.integers(0, 3, EXTENT, dtype=np.uint8)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("block", [(128, 128, 128), (3, 5, 4), (1, 14, 18)], ids=str)
def test_dice_is_that_of_the_whole_arrays_for_any_block(store, block):
    codes, label = masks()
    target = BinaryTarget(ignore_label=2)
    scores = score(target, store("prediction", codes), store("label", label), block=block)
    at = INNER.slices()
    counts = label[at] != 2
    expected = dice((codes[at] > 127.5) & counts, (label[at] == 1) & counts)
    assert scores["dice"] == pytest.approx(expected, abs=1e-9)


def test_a_dilated_label_is_right_at_block_borders(store):
    codes, label = masks()
    label = (label == 2) & (np.random.default_rng(1).random(EXTENT) < 0.05)
    target = BinaryTarget(dilate_label=2)
    volumes = store("prediction", codes), store("label", label.astype(np.uint8))
    whole = score(target, *volumes)
    assert score(target, *volumes, block=(2, 3, 4)) == pytest.approx(whole, abs=1e-9)
    undilated = score(BinaryTarget(), *volumes)
    assert whole["precision"] > undilated["precision"] + 0.1


def test_classes_are_scored_by_their_stored_values(store):
    label = np.random.default_rng(0).choice(np.array([0, 3, 7], np.uint8), EXTENT)
    predicted = np.where(label == 7, 3, label).astype(np.uint8)
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7])
    scores = score(target, store("prediction", predicted), store("label", label))
    three, seven = (label == 3)[INNER.slices()].sum(), (label == 7)[INNER.slices()].sum()
    assert scores["dice_3"] == pytest.approx(2 * three / (2 * three + seven))
    assert scores["dice_7"] == 0


def test_nothing_labelled_scores_nan_and_reads_no_prediction(store, monkeypatch):
    prediction = store("prediction", masks()[0])
    label = store("label", np.full(EXTENT, 2, np.uint8))
    monkeypatch.setattr(
        type(prediction), "_read_inside", lambda self, box: pytest.fail("read")
        if self == prediction else np.full((1, *box.shape), 2, np.uint8),
    )  # fmt: skip
    scores = score(BinaryTarget(ignore_label=2), prediction, label)
    assert np.isnan(scores["dice"])


def test_a_value_that_is_no_class_is_named_with_its_array(store):
    codes, label = masks()
    with pytest.raises(RunError, match=r"label: volume label holds 2 at"):
        score(MulticlassTarget(channels=2), store("p", codes * 0), store("label", label), INNER)


def test_wrong_arguments_are_refused(store):
    codes, label = masks()
    prediction, label = store("prediction", codes), store("label", label)
    with pytest.raises(ValueError, match="is not inside the extent"):
        score(BinaryTarget(), prediction, label, Box((1, 0, 0), EXTENT))
    with pytest.raises(ValueError, match=r"extent \(9, 14, 18\) and the label \(10, 14, 18\)"):
        score(BinaryTarget(), store("short", codes[:9]), label)


def test_blocks_cover_the_box_once_on_the_grid_of_chunks():
    seen = np.zeros(EXTENT, int)
    parts = list(blocks_of(INNER, (4, 5, 6)))
    for part in parts:
        seen[part.slices()] += 1
        assert all(
            o // b == (e - 1) // b for o, e, b in zip(part.origin, part.end, (4, 5, 6), strict=True)
        )
    expected = np.zeros(EXTENT, int)
    expected[INNER.slices()] = 1
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("block", [(128, 128, 128), (3, 5, 4), (1, 14, 18)], ids=str)
def test_a_derived_label_scores_the_same_for_any_block(store, block):
    ids = np.zeros(EXTENT, np.int64)
    for number, (z, y, x) in enumerate(np.ndindex(2, 3, 3), start=2**40):
        ids[5 * z + 1 : 5 * z + 4, 4 * y + 1 : 4 * y + 4, 5 * x + 1 : 5 * x + 5] = number
    target = CentresTarget(derive="cells", max_extent=4)
    cells, heat = store("cells", ids), masks()[0]
    label = Label(target, StoredLabel("scroll", cells, cells.box), (1.0, 1.0, 1.0))
    whole, valid = label.read(cells.box)
    scores = score(target, store("prediction", heat), cells, block=block)
    at = (0, *INNER.slices())
    errors = np.abs(heat[INNER.slices()] / 255 - whole[at])[valid[at]]
    assert scores["mae"] == pytest.approx(errors.mean(), abs=1e-6)
    assert whole[at].max() > 0.9


def test_arrays_in_memory_score_as_stored_ones(store):
    codes, label = masks()
    target = BinaryTarget(ignore_label=2)
    stored = score(target, store("prediction", codes), store("label", label), block=(3, 5, 4))
    assert score(target, codes, label, block=(3, 5, 4)) == stored
    certain = evaluation.score((codes > 127).astype(np.float32), label, target, box=INNER)
    assert certain["dice"] == pytest.approx(stored["dice"], abs=1e-12)
    everywhere = evaluation.score(codes, label == 1, BinaryTarget())
    assert everywhere["dice"] == pytest.approx(dice(codes > 127.5, label == 1), abs=1e-9)
    with pytest.raises(ValueError, match=r"prediction has shape \(18,\)"):
        evaluation.score(codes[0, 0], label, target)


def test_a_distance_is_measured_in_the_unit_of_the_spacing():
    ids = np.zeros(EXTENT, np.uint8)
    ids[3:] = 1  # the border lies between z = 2 and z = 3
    target, spacing = DistanceTarget(derive="cells", clip=6.0), (2.0, 0.5, 0.5)
    z = np.arange(EXTENT[0])[:, None, None]
    distance = 2.0 * (2.5 - z)  # negative inside
    exact = np.broadcast_to(np.clip(distance, -6, 6), EXTENT).astype(np.float32)
    inner = Box((0, 6, 6), (10, 2, 6))
    found = evaluation.score(exact, ids, target, spacing=spacing, box=inner)
    assert found["mae"] == pytest.approx(0, abs=1e-5)
    assert evaluation.score(exact, ids, target, box=inner)["mae"] > 0.5


def test_metrics_of_whole_volumes_are_scored_on_request():
    """The centres of two boxes, one of which does not count where the label is ignored."""
    label, prediction = np.zeros((6, 9, 13), np.uint8), np.zeros((6, 9, 13), np.float32)
    label[1:3, 2:4, 3:6], prediction[2:4, 2:4, 5:8] = 1, 1
    label[5], prediction[5] = 2, 1
    target = BinaryTarget(ignore_label=2)
    found = evaluation.score(prediction, label, target, spacing=(3.0, 1.0, 2.0), whole=True)
    assert found["centroid_distance"] == pytest.approx(np.hypot(1 * 3.0, 2 * 2.0))
    assert "centroid_distance" not in evaluation.score(prediction, label, target)
