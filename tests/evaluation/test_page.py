import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from math import isfinite, nan
from statistics import fmean, median, stdev

import numpy as np
import pytest

from vcmodels.errors import OutputError
from vcmodels.evaluation import page as page_module
from vcmodels.evaluation.html import number
from vcmodels.evaluation.page import page_text, write_page
from vcmodels.evaluation.pictures import as_webp
from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import Curve

NASTY = '<script>alert("x")</script> & é 漢'
BETTER = {"dice": "max", "dice_a": "max", "dice_b_a": "max", "assd": "min"}


def scores(rng, depth=20, notes=()):
    a, b = (float(v) for v in rng.uniform(0.2, 1, 2))
    figures = {"dice": (a + b) / 2, "dice_a": a, "dice_b_a": b, "assd": float(rng.gamma(2))}
    curve = Curve((0.0, 0.5, 1.0), (1.0, a, 0.1), "recall", "precision")
    bars = Curve((0.5, 1.5), (a, 1 - a), "distance", "share", "bars")
    slices = {z: float(rng.uniform()) for z in range(3, depth)}
    return TargetScores(
        "classes", figures, BETTER, ("a", "b_a"), {"PR": curve, "distances": bars}, slices, notes
    )


def volume(name, targets, group=None):
    box = Box((1, 2, 3), (20, 30, 40))
    return VolumeScores(
        name, f"out/{name}", {"organ": f"label/{name}"}, (box,), (2.0, 1.0, 1.0), "millimeter",
        targets, group=group, split="val",
    )  # fmt: skip


def make_report(count=12, names=None, seed=0):
    rng = np.random.default_rng(seed)
    names = names or [f"case_{i}" for i in range(count)]
    volumes = tuple(
        volume(name, {"organ": scores(rng)}, "even" if i % 2 == 0 else "odd")
        for i, name in enumerate(names)
    )
    settings = {"metrics": {"organ": ["dice", "assd"]}, "tolerance": 1.5}
    return Report(volumes, {"organ": scores(rng)}, settings, {"version": "9", "task": "a/b.json"})


class Tables(HTMLParser):
    """The cells of all tables, the texts of headings, and the tags that were seen."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.headings, self.tags, self.images = [], [], [], []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append("")
            self._cell = False
        elif tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        if tag in ("td", "th") or re.fullmatch("h[1-6]", tag):
            self._cell = None

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data
        elif self._cell is False:
            self.headings[-1] += data

    def table(self, first):
        """Rows of the first table whose header begins so, by the first word of each."""
        found = next(t for t in self.tables if t and t[0] and t[0][0] == first)
        return {row[0].split(" ")[0]: row[1:] for row in found[1:]}


def picture(_volume, _target, z):
    pixels = np.random.default_rng(z).integers(0, 255, (200, 800, 3)).astype(np.uint8)
    return as_webp(pixels)


def test_the_summary_holds_the_figures_of_all_volumes():
    report = make_report()
    rows = Tables(page_text(report)).table("figure")
    for figure in ("dice", "assd"):
        values = [v.targets["organ"].figures[figure] for v in report.volumes]
        wanted = [fmean(values), stdev(values), median(values), min(values), max(values)]
        pooled = report.pooled["organ"].figures[figure]
        assert rows[figure] == [*map(number, wanted), "12", number(pooled)]


def test_the_table_of_volumes_holds_every_figure():
    report = make_report()
    tables = Tables(page_text(report)).tables
    (table,) = (t for t in tables if len(t) == 13 and "group" in t[0])
    assert [cell.strip(" ↑↓") for cell in table[0]] == [
        "volume", "group", "split", "dice", "dice a", "dice b_a", "assd"
    ]  # fmt: skip
    for row, one in zip(table[1:], report.volumes, strict=True):
        wanted = map(number, one.targets["organ"].figures.values())
        assert row == [one.name, one.group, "val", *wanted]


def test_classes_and_groups_hold_means():
    report = make_report()
    tables = Tables(page_text(report))
    found = {v.name: v.targets["organ"].figures for v in report.volumes}
    means = {f: fmean(one[f] for one in found.values()) for f in ("dice_a", "dice_b_a")}
    assert tables.table("class") == {
        "a": [number(means["dice_a"])], "b_a": [number(means["dice_b_a"])]
    }  # fmt: skip
    (groups,) = (t for t in tables.tables if t[0] == ["figure", "even", "odd"])
    even = [v.targets["organ"].figures["assd"] for v in report.volumes if v.group == "even"]
    row = next(row for row in groups if row[0] == "assd")
    assert row[1] == f"{number(fmean(even))} ± {number(stdev(even))} (6)"


def test_unknown_figures_are_dashes_and_count_nowhere():
    rng = np.random.default_rng(0)
    known, unknown = scores(rng), TargetScores("masks", {"dice": nan, "assd": nan}, BETTER)
    report = Report((volume("a", {"organ": known}), volume("b", {"organ": unknown})), {}, {}, {})
    rows = Tables(page_text(report)).table("figure")
    value = number(known.figures["dice"])
    assert rows["dice"] == [value, "–", value, value, value, "1", "–"]
    assert "nan" not in re.sub(
        "<style>.*?</style>|<script>.*?</script>", "", page_text(report), flags=re.S
    )


def test_best_and_worst_volumes_are_shown_by_the_first_figure():
    report = make_report()
    order = sorted(report.volumes, key=lambda v: -v.targets["organ"].figures["dice"])
    shown = [*order[:3], *order[-3:]]
    headings = Tables(page_text(report)).headings
    assert [h for h in headings if h.startswith("case_")] == [one.name for one in shown]


def test_the_slices_with_pictures_are_the_best_and_the_worst_inside():
    report = make_report(1)
    asked = []

    def remember(name, target, z):
        asked.append(z)
        return picture(name, target, z)

    tables = Tables(page_text(report, remember))
    slices = report.volumes[0].targets["organ"].slices
    inner = {z: value for z, value in slices.items() if 5 <= z < 18}
    assert max(inner, key=inner.get) in asked
    assert min(inner, key=inner.get) in asked
    assert set(asked) <= set(inner)
    assert len(asked) == len(tables.images) == 4  # two of each where there is one volume
    for image in tables.images:
        assert image["src"].startswith("data:image/webp;base64,")
        assert report.volumes[0].name in image["alt"]


def test_texts_are_escaped_everywhere():
    report = make_report(names=[NASTY, NASTY + "2"])
    scored = report.volumes[0].targets["organ"]
    bad = TargetScores(
        NASTY, {NASTY: 0.5, f"{NASTY}_{NASTY}": 0.4}, {NASTY: "max"}, (NASTY,),
        {NASTY: Curve((0, 1), (0, 1), NASTY, NASTY)}, {1: 0.5, 2: 0.6}, (NASTY,),
    )  # fmt: skip
    volumes = tuple(volume(f"{NASTY}{i}", {NASTY: bad, "organ": scored}, NASTY) for i in range(2))
    text = page_text(Report(volumes, {}, {NASTY: NASTY}, {NASTY: [NASTY]}), picture, NASTY)
    assert "alert(" in text
    assert "<script>alert" not in text
    tables = Tables(text)
    assert tables.tags.count("script") == 1
    assert tables.headings[0] == NASTY


def test_metrics_without_options_share_a_line():
    options = {"tolerances": (), "elements": "voxels"}
    made = replace(make_report(2), settings={"volumes": 2, "metrics": {"organ": {}}})
    made.settings["metrics"]["organ"] |= {"dice": {}, "surface": options, "assd": {}}
    for report in (made, Report.from_json(json.loads(made.to_text()))):
        rows = dict(
            row for table in Tables(page_text(report)).tables for row in table if len(row) == 2
        )
        found = {key: text for key, text in rows.items() if key.startswith(("metrics", "volumes"))}
        assert found == {
            "volumes": "2",
            "metrics.organ": "dice, assd",
            "metrics.organ.surface.tolerances": "none",
            "metrics.organ.surface.elements": "voxels",
        }


@pytest.mark.parametrize(("form", "is_filled"), [("classes", True), ("directions", False)])
def test_the_page_says_what_its_pictures_show(form, is_filled):
    made = make_report(2)
    volumes = [
        replace(one, targets={"organ": replace(one.targets["organ"], form=form)})
        for one in made.volumes
    ]
    text = page_text(replace(made, volumes=tuple(volumes), pooled={}), picture)
    assert ("the label filled" in text) == is_filled
    assert ("mixed with the prediction" in text) != is_filled


def test_a_page_asks_for_nothing():
    text = page_text(make_report(), picture)
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"https?://|@import|url\(", text)


def test_every_picture_has_words_and_headings_go_down_by_one():
    tables = Tables(text := page_text(make_report(), picture))
    assert all(image.get("alt") for image in tables.images)
    assert text.count("<svg") == text.count('role="img" aria-label="')
    levels = [int(tag[1]) for tag in tables.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert levels.count(1) == 1
    assert '<html lang="en">' in text


def test_a_hundred_cases_with_pictures_stay_small(tmp_path):
    write_page(make_report(100), tmp_path / "report.html", picture)
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_the_page_is_the_same_from_the_stored_report_and_pictures(tmp_path):
    report = make_report(8)
    write_page(report, tmp_path / "report.html", picture)
    first = (tmp_path / "report.html").read_text()
    read = Report.from_json(json.loads(report.to_text()))
    write_page(read, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == first
    assert "data:image/webp" in first


def test_pictures_of_an_earlier_report_are_removed_and_nothing_else(tmp_path):
    write_page(make_report(8, seed=1), tmp_path / "report.html", picture)
    before = set((tmp_path / "pictures").iterdir())
    (tmp_path / "pictures" / "mine.webp").write_bytes(b"mine")
    write_page(
        make_report(8, ["other"] + [f"o{i}" for i in range(7)]), tmp_path / "report.html", picture
    )
    after = set((tmp_path / "pictures").iterdir())
    assert tmp_path / "pictures" / "mine.webp" in after
    assert not before & after


def test_a_page_of_somebody_else_is_not_replaced(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("<html>my own</html>")
    with pytest.raises(OutputError, match="no page of vcmodels; name another"):
        write_page(make_report(2), path, picture)
    assert path.read_text() == "<html>my own</html>"
    assert not (tmp_path / "pictures").exists()
    path.unlink()
    write_page(make_report(2), path)
    write_page(make_report(3), path)
    assert "case_2" in path.read_text()


def test_curves_of_volumes_are_thin_and_those_of_all_voxels_strong():
    text = page_text(make_report(5))
    assert text.count('class="line thin') == 5 * 2
    assert text.count('class="line main') == 1 + 5  # the curve of all, and the profiles of volumes
    assert text.count('class="bar"') == 2


def test_many_volumes_do_not_make_many_lines(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_LINES", 4)
    assert page_text(make_report(9)).count('class="line thin') == 4 * 2


def test_notes_are_said_once_with_their_places():
    rng = np.random.default_rng(0)
    volumes = tuple(volume(f"v{i}", {"organ": scores(rng, notes=("too large",))}) for i in range(3))
    text = page_text(Report(volumes, {}, {}, {}))
    assert text.count("too large") == 1
    assert "3 times" in text
    assert "v0: organ, v1: organ, v2: organ" in text


def test_a_report_without_figures_has_a_page():
    empty = TargetScores("masks", {}, {})
    text = page_text(Report((volume("a", {"organ": empty}),), {}, {}, {}), picture)
    assert "Nothing was measured." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (nan, "–"), (0.0, "0.0000"), (-0.25, "−0.2500"), (123.456789, "123.457"),
     (1e-5, "1e-05"), (-2e-7, "−2e-07"), (1234567.0, "1.23e+06")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text
    if isfinite(value):
        assert float(text.replace("−", "-", 1)) == pytest.approx(value, rel=1e-2)
