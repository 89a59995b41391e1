"""The scores as values, and `report.json`."""

import json
import math

import pytest

from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.geometry.boxes import Box
from vcmodels.metrics import Curve


def scores(dice: float, **more) -> TargetScores:
    figures = {"dice": dice, "hd95": math.nan}
    return TargetScores("masks", figures, {"dice": "max", "hd95": "min"}, **more)


def volume(name: str, group: str | None, dice: float) -> VolumeScores:
    curves = {"precision and recall": Curve((0.0, 1.0), (1.0, math.nan), "recall", "precision")}
    found = scores(dice, curves=curves, slices={3: 0.5, 4: math.nan}, notes=("no surface",))
    boxes = (Box((1, 2, 3), (4, 5, 6)),)
    return VolumeScores(
        name, f"{name}.zarr/sheet", {"sheet": "label.zarr"}, boxes, (1.0, 2.0, 3.0), "um",
        {"sheet": found}, ("image.zarr",), group, "val", 1.5,
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    volumes = volume("a", "p1", 0.5), volume("b", "p2", 0.7), volume("c", "p1", math.nan)
    settings, provenance = {"metrics": {"sheet": ["dice"]}}, {"version": "1"}
    return Report(volumes, {"sheet": scores(0.55)}, settings, provenance)


def test_it_is_the_same_after_a_file(report):
    again = Report.from_json(json.loads(report.to_text()))
    assert repr(again) == repr(report)  # NaN is not equal to itself
    assert again.to_text() == report.to_text()


def test_means_are_of_the_volumes_that_have_a_value(report):
    assert report.means("sheet")["dice"] == pytest.approx(0.6)
    assert report.means("sheet", "p1")["dice"] == 0.5
    assert math.isnan(report.means("sheet")["hd95"])
    assert report.groups == ("p1", "p2")
    assert json.loads(report.to_text())["means"]["sheet"]["groups"]["p2"]["dice"] == 0.7


def test_another_version_is_refused(report):
    with pytest.raises(ValueError, match="schema 2"):
        Report.from_json({**report.to_json(), "schema": 2})
