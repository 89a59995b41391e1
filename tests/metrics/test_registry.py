import math

import numpy as np
import pytest
import torch

from tests.metrics.blocks import figures, masks
from vcmodels.comparison import Comparator
from vcmodels.evaluation.scoring import default_metrics
from vcmodels.metrics.overlap import confusion, masked_sum
from vcmodels.metrics.registry import (
    METRICS,
    Metric,
    VolumeMetric,
    curves,
    fitting_metrics,
    measure,
    measure_volume,
    senses,
    summarise,
)

SHAPE = (6, 7, 8)


def example(channels, label_channels):
    rng = np.random.default_rng(0)
    prediction = torch.from_numpy(rng.random((2, channels, *SHAPE)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 2, (2, label_channels, *SHAPE)).astype(np.float32))
    return prediction, label, torch.from_numpy(rng.random((2, 1, *SHAPE)) > 0.3)


@pytest.mark.parametrize(("predicted", "channels"), [("masks", 2), ("values", 2), ("vectors", 3)])
def test_sums_of_two_halves_give_the_figures_of_the_whole(predicted, channels):
    metrics, pair = fitting_metrics(predicted), example(channels, channels)
    first, second = (measure(metrics, *(t[n : n + 1] for t in pair)) for n in (0, 1))
    added = {key: first[key] + second[key] for key in first}
    figures = summarise(metrics, added)
    assert figures == pytest.approx(summarise(metrics, measure(metrics, *pair)))
    assert [name for name in figures if name != "best_threshold"] == list(senses(metrics))


def test_what_several_metrics_share_is_measured_once():
    calls = []

    def counting(prediction, label, valid):
        calls.append(valid)
        return confusion(prediction, label, valid)

    metrics = {
        name: Metric(counting, metric.summarise, metric.better, metric.by_class, compares="masks")
        for name, metric in METRICS.items()
        if isinstance(metric, Metric) and metric.measure is confusion
    }
    figures = summarise(metrics, measure(metrics, *example(1, 1)))
    assert len(calls) == 1
    assert list(figures) == ["dice", "iou", "precision", "recall", "specificity", "accuracy"]


def test_sums_of_one_name_in_two_metrics_are_kept_apart():
    def total(scale):
        return lambda prediction, _label, valid: {"n": scale * masked_sum(prediction, valid)}

    metrics = {
        name: Metric(total(scale), lambda sums: float(sums["n"]), "max", compares="values")
        for name, scale in (("one", 1.0), ("three", 3.0))
    }
    figures = summarise(metrics, measure(metrics, *example(1, 1)))
    assert figures["three"] == pytest.approx(3 * figures["one"])
    assert figures["one"] > 0


def test_figures_of_classes_are_named_after_them_and_their_mean_leaves_out_the_unknown():
    metrics = {name: METRICS[name] for name in ("dice", "best_threshold", "accuracy")}
    prediction, label, valid = example(4, 1)
    prediction[:, 3] = -1  # neither predicted nor labelled
    names = ("7", "20", "21")
    figures = summarise(metrics, measure(metrics, prediction, label, valid), names)
    dices = ["dice", "dice_7", "dice_20", "dice_21"]
    thresholds = [name.replace("dice", "best_threshold") for name in dices]
    assert list(figures) == [*dices, *thresholds, "accuracy"]
    assert list(senses(metrics, names)) == [*dices, "accuracy"]  # more is no better threshold
    assert math.isnan(figures["dice_21"])
    assert figures["dice"] == pytest.approx((figures["dice_7"] + figures["dice_20"]) / 2)


def test_a_whole_volume_is_measured_by_the_metrics_of_volumes():
    pair = [t[0].numpy() for t in example(3, 1)]
    metrics = default_metrics(fitting_metrics("classes"))
    figures = measure_volume(metrics, *pair, (4.0, 1.0, 0.5), ("7", "20"))
    assert list(figures) == ["centroid_distance", "centroid_distance_7", "centroid_distance_20"]
    assert figures["centroid_distance"] == figures["centroid_distance_7"] > 0
    assert math.isnan(figures["centroid_distance_20"])  # never labelled
    assert measure_volume(fitting_metrics("values"), *pair, (4.0, 1.0, 0.5)) == {}


def test_what_is_slow_or_special_is_measured_only_where_it_is_named():
    for form, more in (("masks", ["sheets"]), ("classes", [])):
        fitting = fitting_metrics(form)
        named = [name for name in fitting if name not in default_metrics(fitting)]
        assert named == ["surface_score", "components", "topology", "cldice", *more]
    pair = [t[0].numpy() for t in example(1, 1)]
    figures = measure_volume({"cldice": METRICS["cldice"]}, *pair, (1.0, 1.0, 1.0))
    assert list(figures) == ["cldice", "skeleton_precision", "skeleton_recall"]
    assert "instances" in default_metrics(fitting_metrics("instances"))


@pytest.mark.parametrize("name", ["surface_score", "components", "topology"])
def test_nothing_is_known_of_an_empty_box(name):
    nothing = np.zeros((2, 0, 5, 6), bool)
    found = figures(METRICS[name], masks(nothing, nothing, nothing[0]), (4, 4, 4))
    assert all(len(each) == 2 and np.isnan(each).all() for each in found.values())


def test_a_misspelt_form_is_refused():
    with pytest.raises(ValueError, match='nothing compares "mask"; choose from masks, classes'):
        VolumeMetric(lambda *_: {}, {}, compares="mask")
    with pytest.raises(ValueError, match='nothing compares "value"'):
        Comparator(compares=("masks", "value"))


def test_curves_are_named_after_their_classes_and_come_from_the_sums():
    metrics = fitting_metrics("classes")
    prediction, label, valid = example(3, 1)
    sums = measure(metrics, prediction, label, valid)
    found = curves(metrics, sums, ("7", "20"))
    titles = ("Precision and recall", "ROC", "Dice by threshold")
    assert list(found) == [
        *(f"{title}: {c}" for title in titles for c in ("7", "20")),
        "Reliability",
    ]
    assert list(curves(metrics, sums)) == [
        *(f"{title}: {n}" for title in titles for n in (1, 2)),
        "Reliability",
    ]
    masks = fitting_metrics("masks")
    assert list(curves(masks, measure(masks, *example(1, 1)))) == [*titles, "Reliability"]
    values = fitting_metrics("values")
    assert list(curves(values, measure(values, *example(2, 2)))) == ["Errors"]
