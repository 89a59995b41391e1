import re
from itertools import pairwise
from math import nan
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.pictures.charts import (
    MOST_POINTS,
    Line,
    Scale,
    StripRow,
    bar_chart,
    line_chart,
    profile_chart,
    strip_chart,
)


def parts(svg, tag, kind=None):
    """The elements of a chart, by their tag and class."""
    return [
        one
        for one in ElementTree.fromstring(svg).iter()
        if one.tag == tag and (kind is None or kind in one.get("class", "").split())
    ]


def ticks(svg):
    """Pixels and values of the ticks along x, and along y."""
    along_x, along_y = {}, {}
    for text in parts(svg, "text"):
        if re.fullmatch(r"-?[\d.e+-]+", text.text or ""):
            is_y = text.get("text-anchor") == "end"
            at = float(text.get("y")) - 3.5 if is_y else float(text.get("x"))
            (along_y if is_y else along_x)[at] = float(text.text)
    return along_x, along_y


def as_values(pixels, marks):
    """Pixels as values, by a line through the ticks."""
    slope, start = np.polyfit(list(marks), list(marks.values()), 1)
    return slope * np.asarray(pixels) + start


def points(path):
    return np.array([list(map(float, one.split())) for one in re.split("[ML]", path.get("d"))[1:]])


def test_a_line_lies_where_the_axes_say():
    x, y = np.linspace(2, 8, 13), np.linspace(-1, 3, 13) ** 2
    svg = line_chart([Line(tuple(x), tuple(y))], "x", "y", "t")
    (line,) = parts(svg, "path", "line")
    along_x, along_y = ticks(svg)
    np.testing.assert_allclose(as_values(points(line)[:, 0], along_x), x, atol=0.03)
    np.testing.assert_allclose(as_values(points(line)[:, 1], along_y), y, atol=0.06)


def test_what_is_not_finite_is_not_drawn():
    svg = line_chart([Line((0, 1, 2), (0, nan, 2)), Line((nan,), (nan,))], "x", "y", "t")
    (line,) = parts(svg, "path", "line")
    assert len(points(line)) == 2
    assert not re.search("nan|inf", svg)


def test_a_long_line_keeps_its_ends_and_no_more_points_than_can_be_seen():
    svg = line_chart([Line(range(1000), range(1000))], "x", "y", "t")
    (line,) = parts(svg, "path", "line")
    assert len(points(line)) == MOST_POINTS
    np.testing.assert_allclose(as_values(points(line)[[0, -1], 0], ticks(svg)[0]), [0, 999], atol=2)


def test_bars_start_at_zero_and_are_as_high_as_their_values():
    svg = bar_chart(Line((0.5, 1.5, 3.5), (4, 0, 1)), [], "x", "y", "t")
    along_x, along_y = ticks(svg)
    bars = parts(svg, "rect", "bar")
    tops = [float(bar.get("y")) for bar in bars]
    bottoms = [float(bar.get("y")) + float(bar.get("height")) for bar in bars]
    np.testing.assert_allclose(as_values(tops, along_y), [4, 0, 1], atol=0.05)
    np.testing.assert_allclose(as_values(bottoms, along_y), 0, atol=0.05)
    left = [float(bar.get("x")) for bar in bars]
    np.testing.assert_allclose(as_values(left, along_x), [0, 1, 3], atol=0.05)


def test_every_point_of_a_strip_has_its_value_and_its_name():
    values = (0.25, 0.5, 0.5, 0.5, 1.0)
    svg = strip_chart([StripRow("all", values, tuple("abcde")), StripRow("some", (0.3, nan))], "t")
    dots = parts(svg, "circle", "dot")
    found = as_values([float(dot.get("cx")) for dot in dots], ticks(svg)[0])
    np.testing.assert_allclose(found, values, atol=0.01)
    assert [dot[0].text for dot in dots] == ["a: 0.25", "b: 0.5", "c: 0.5", "d: 0.5", "e: 1"]
    places = {(dot.get("cx"), dot.get("cy")) for dot in dots}
    assert len(places) == len(values)  # equal ones do not hide each other
    (others,) = parts(svg, "path", "dots")
    assert others.get("d").count("M") == 1


def test_the_box_of_a_strip_holds_the_middle_half():
    values = np.random.default_rng(0).normal(size=41)
    svg = strip_chart([StripRow("all", tuple(values))], "t")
    (box,) = parts(svg, "rect", "box")
    (median,) = parts(svg, "path", "median")
    left = float(box.get("x"))
    pixels = [left, float(median.get("d")[1:].split()[0]), left + float(box.get("width"))]
    wanted = np.quantile(values, (0.25, 0.5, 0.75))
    np.testing.assert_allclose(as_values(pixels, ticks(svg)[0]), wanted, atol=0.03)


def test_the_origin_of_differences_is_always_there():
    svg = strip_chart([StripRow("all", (3.0, 4.0))], "t", origin=0.0)
    (line,) = parts(svg, "path", "origin")
    at = float(re.match(r"M([\d.]+)", line.get("d"))[1])
    assert as_values([at], ticks(svg)[0])[0] == pytest.approx(0, abs=0.02)


def test_marks_lie_on_the_profile():
    svg = profile_chart([4, 5, 6, 7], [0.1, 0.9, 0.4, 0.2], [5, 7], ("z", "dice"))
    along_x, along_y = ticks(svg)
    marks = parts(svg, "circle", "mark")
    np.testing.assert_allclose(
        as_values([float(m.get("cx")) for m in marks], along_x), [5, 7], 0.01
    )
    np.testing.assert_allclose(
        as_values([float(m.get("cy")) for m in marks], along_y), [0.9, 0.2], atol=0.01
    )


def test_texts_are_escaped():
    name = '<b>"&'
    svg = line_chart([Line((0, 1), (0, 1), name)], name, name, name)
    assert ElementTree.fromstring(svg).get("aria-label") == name
    svg = strip_chart([StripRow(name, (1.0,), (name,))], name)
    assert name in {text.text for text in parts(svg, "text")}


@given(low=st.floats(-1e6, 1e6), length=st.floats(1e-3, 1e6), most=st.integers(2, 8))
def test_ticks_are_round_inside_and_neither_few_nor_many(low, length, most):
    found = Scale(low, low + length, 0, 100).ticks(most)
    assert all(low - 1e-6 * length <= value <= low + length * (1 + 1e-6) for value in found)
    assert (most - 1) // 2.5 <= len(found) <= most + 1
    steps = [b - a for a, b in pairwise(found)]
    for step in steps:
        lead = f"{step:.2e}".partition("e")[0]
        assert float(lead) in (1, 2, 2.5, 5)


def test_one_value_has_room_around_it():
    scale = Scale.of([3.0, 3.0], 0, 100)
    assert scale.low < 3 < scale.high
    assert scale(3.0) == 50
    scale = Scale.of([nan], 0, 100)
    assert scale.low < scale.high


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((12000.0, 12040.0), ["12000", "12010", "12020", "12030", "12040"]),  # nanometres
        ((1e6 + 1, 1e6 + 5), ["1000001", "1000002", "1000003", "1000004", "1000005"]),
        ((0.0, 1.0), ["0", "0.25", "0.5", "0.75", "1"]),
        ((0.0, 2e-5), ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
    ],
)
def test_no_two_ticks_have_one_text(values, texts):
    chart = strip_chart([StripRow("a", values)], "t")
    assert re.findall(r'text-anchor="middle">([^<]*)<', chart) == texts
