import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import adapted_rand_error, variation_of_information

from tests.metrics.blocks import figures, instances, measured
from vcmodels.metrics.instances import THRESHOLDS, Instances, Overlaps

METRIC = Instances(compares="instances")
SHAPES = st.tuples(*[st.integers(1, 8)] * 3)
BLOCKS = st.tuples(*[st.integers(1, 9)] * 3)


def blobs(shape, rng, count, background=0.3):
    """Ids of the nearest of some points, with holes of background."""
    points = rng.random((count, 3)) * shape
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ids = ((places[..., None, :] - points) ** 2).sum(-1).argmin(-1) + 1
    return np.where(rng.random(shape) < background, 0, ids)


def similar(ids, rng, share=0.2):
    """The same ids but for a share of the voxels, which take those of other voxels."""
    mixed = rng.permutation(ids.ravel()).reshape(ids.shape)
    return np.where(rng.random(ids.shape) < share, mixed, ids)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, block=BLOCKS, ignore=st.booleans(), seed=st.integers(0, 10_000))
def test_voi_and_rand_of_any_blocks_are_those_of_scikit_image(shape, block, ignore, seed):
    rng = np.random.default_rng(seed)
    labelled = blobs(shape, rng, 5)
    predicted = similar(blobs(shape, rng, 7), rng) if seed % 2 else similar(labelled, rng)
    found = figures(
        replace(METRIC, ignore_background=ignore), instances(predicted, labelled), block
    )
    ignored = (0,) if ignore else ()
    if ignore and not labelled.any():
        assert math.isnan(found["voi"])
        return
    split, merge = variation_of_information(labelled, predicted, ignore_labels=ignored)
    assert found["voi_split"] == pytest.approx(split, abs=1e-9)
    assert found["voi_merge"] == pytest.approx(merge, abs=1e-9)
    assert found["voi"] == pytest.approx(split + merge, abs=1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        error, of_labels, of_predictions = adapted_rand_error(
            labelled, predicted, ignore_labels=ignored
        )
    wanted = {"rand_error": error, "rand_recall": of_labels, "rand_precision": of_predictions}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True)


def brute_force_rand(predicted, labelled):
    """Precision and recall by looking at each pair of voxels."""
    voxels = [(p, t) for p, t in zip(predicted.ravel(), labelled.ravel(), strict=True) if t]
    pairs = list(permutations(range(len(voxels)), 2))
    both = {(a, b) for a, b in pairs if voxels[a] == voxels[b]}
    together = [{(a, b) for a, b in pairs if voxels[a][n] == voxels[b][n]} for n in (0, 1)]
    return [len(both) / len(side) for side in together]


def test_rand_precision_is_of_predicted_pairs_and_recall_of_labelled_ones():
    rng = np.random.default_rng(0)
    labelled = blobs((3, 4, 5), rng, 3)
    predicted = np.where(labelled > 1, 2, labelled)  # two objects are one: all pairs are found
    found = figures(METRIC, instances(predicted, labelled), (2, 3, 4))
    precision, recall = brute_force_rand(predicted, labelled)
    assert found["rand_precision"] == pytest.approx(precision)
    assert found["rand_recall"] == recall == 1
    assert precision < 1
    assert found["voi_split"] == 0 < found["voi_merge"]


def brute_force_matches(predicted, labelled, threshold):
    """The most matches that any assignment has, and their IoU, by trying all."""
    objects = [[ids == k for k in np.unique(ids) if k] for ids in (predicted, labelled)]
    small, large = sorted(objects, key=len)
    ious = [[(a & b).sum() / (a | b).sum() for b in large] for a in small]
    ways = permutations(range(len(large)), len(small))
    matches = ([ious[a][b] for a, b in enumerate(way) if ious[a][b] >= threshold] for way in ways)
    return max(matches, key=len), len(objects[0]), len(objects[1])


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, block=BLOCKS, seed=st.integers(0, 10_000))
def test_precision_and_panoptic_quality_are_those_of_the_best_assignment(shape, block, seed):
    rng = np.random.default_rng(seed)
    labelled = blobs(shape, rng, 4, 0.1)
    predicted = similar(labelled, rng, rng.choice([0.05, 0.3])) % rng.integers(3, 6)
    found = figures(METRIC, instances(predicted, labelled), block)
    precisions = []
    for threshold in THRESHOLDS:
        ious, ours, theirs = brute_force_matches(predicted, labelled, threshold)
        objects = ours + theirs - len(ious)
        precisions.append(len(ious) / objects if objects else math.nan)
    assert found["ap"] == pytest.approx(np.mean(precisions), nan_ok=True)
    assert found["ap_50"] == pytest.approx(precisions[0], nan_ok=True)
    assert found["ap_75"] == pytest.approx(precisions[5], nan_ok=True)
    ious, ours, theirs = brute_force_matches(predicted, labelled, 0.5)
    if ours + theirs:
        assert found["f1_50"] == pytest.approx(2 * len(ious) / (ours + theirs))
        missed_and_false = found["missed_objects"], found["false_objects"]
        assert missed_and_false == (theirs - len(ious), ours - len(ious))
        assert found["count_error"] == abs(ours - theirs)
    above, *_ = brute_force_matches(predicted, labelled, np.nextafter(0.5, 1))
    if above:
        wanted = np.mean(above), 2 * len(above) / (ours + theirs)
        assert (found["sq"], found["rq"]) == pytest.approx(wanted)
        assert found["pq"] == pytest.approx(wanted[0] * wanted[1])


def test_of_two_halves_of_an_object_one_is_a_match_and_none_a_panoptic_one():
    labelled = np.ones((2, 3, 4), np.uint8)
    predicted = np.where(np.arange(4) < 2, 7, 9) * labelled
    for pair in (instances(predicted, labelled), instances(labelled, predicted)):
        found = figures(METRIC, pair, (1, 2, 3))
        assert found["ap_50"] == 1 / 2
        assert found["f1_50"] == 2 / 3
        assert found["pq"] == found["rq"] == found["sq"] == 0


def test_an_iou_that_is_a_threshold_counts():
    labelled, predicted = np.zeros((2, 1, 1, 20), np.int16)
    labelled[..., :20], predicted[..., :11] = 5, 6
    joined = measured(METRIC, instances(predicted, labelled), (1, 1, 7))
    curve = METRIC.curves(joined)["Average precision of objects"]
    assert curve.x == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert curve.y == (1.0, 1.0, *[0.0] * 8)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64"])
def test_ids_of_any_width_are_told_apart(dtype):
    top = int(np.iinfo(dtype).max)
    labelled = np.array([0, 1, top - 1, top, top], dtype).reshape(1, 1, 5)
    predicted = np.array([0, 2, top, top, top], dtype).reshape(1, 1, 5)
    found = figures(METRIC, instances(predicted, labelled), (1, 1, 2))
    assert found["voi_split"] == 0 < found["voi_merge"]
    assert found["count_error"] == 1
    joined = measured(METRIC, instances(predicted, labelled), (1, 1, 2))
    assert joined["labelled"].tolist() == [0, 1, top - 1, top]


def test_voxels_that_do_not_count_are_in_no_object():
    rng = np.random.default_rng(0)
    labelled, predicted = blobs((6, 7, 8), rng, 4), blobs((6, 7, 8), rng, 4)
    valid = rng.random(labelled.shape) < 0.5
    found = figures(METRIC, instances(predicted, labelled, valid), (4, 4, 4))
    pair = instances(predicted[valid][None, None], labelled[valid][None, None])
    assert found == figures(METRIC, pair, (9, 9, 999))


def test_the_figures_do_not_depend_on_the_blocks_by_a_bit():
    rng = np.random.default_rng(1)
    labelled = blobs((9, 10, 11), rng, 30)
    pair = instances(similar(labelled, rng), labelled)
    whole = figures(METRIC, pair, (99, 99, 99))
    for seed, block in enumerate([(1, 1, 1), (2, 3, 4), (9, 1, 5)]):
        assert figures(METRIC, pair, block, seed) == whole


@pytest.mark.parametrize(("predicts", "labels"), [(0, 0), (1, 0), (0, 1)])
def test_without_objects(predicts, labels):
    predicted, labelled = (np.full((2, 3, 4), k, np.uint8) for k in (predicts, labels))
    found = figures(METRIC, instances(predicted, labelled), (2, 2, 2))
    if predicts or labels:
        assert found["ap"] == found["pq"] == found["f1_50"] == found["sq"] == 0
        assert (found["missed_objects"], found["false_objects"]) == (labels, predicts)
    else:
        assert all(math.isnan(found[name]) for name in ("ap", "pq", "f1_50"))
    assert math.isnan(found["voi"]) == math.isnan(found["rand_error"]) == (not labels)


def test_where_nothing_counts_all_is_unknown():
    ids = np.ones((2, 3, 4), np.uint8)
    found = figures(METRIC, instances(ids, ids, np.zeros(ids.shape, bool)), (2, 2, 2))
    assert all(map(math.isnan, found.values()))


def test_a_long_stream_of_tables_is_added_up_on_the_way(monkeypatch):
    monkeypatch.setattr("vcmodels.metrics.instances._ROWS", 4)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (2, 40, 3, 4, 5))
    whole = Overlaps.of(ids[0], ids[1], np.ones(ids[0].shape, bool))
    tables = (Overlaps.of(*pair, np.ones((3, 4, 5), bool)) for pair in zip(*ids, strict=True))
    added = Overlaps.added(tables)
    for name in ("predicted", "labelled", "voxels"):
        np.testing.assert_array_equal(getattr(added, name), getattr(whole, name))
    assert added.voxels.sum() == ids[0].size
