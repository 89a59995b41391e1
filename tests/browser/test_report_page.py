"""The page of a report as a person uses it."""

import pytest

from tests.evaluation.test_page import make_report, picture
from tests.evaluation.test_side_by_side import random, report
from vcmodels.evaluation.html import number
from vcmodels.evaluation.page import write_page
from vcmodels.evaluation.side_by_side import write_comparison

SCHEMES = ("light", "dark")


@pytest.fixture
def opened(page, tmp_path):
    """The page of twelve volumes, open in a browser, and its report."""
    made = make_report(12)
    write_page(made, tmp_path / "report.html", picture)
    page.open((tmp_path / "report.html").as_uri())
    return page, made


def column(page, index):
    """The texts of a column of the table of volumes that are not hidden."""
    return page.evaluate(
        "[...document.querySelectorAll('table.sortable tbody tr')].filter(r => !r.hidden)"
        f".map(r => r.cells[{index}].textContent)"
    )


def test_the_page_has_no_errors_and_asks_for_nothing_but_itself(opened):
    page, _ = opened
    page.evaluate(
        "[...document.images].forEach(i => i.loading = 'eager'),"
        "Promise.all([...document.images].map(i => i.decode())).then(() => true)"
    )
    assert page.evaluate("[...document.images].every(i => i.naturalWidth === 800)")
    assert page.evaluate("document.images.length") == 12
    assert page.errors == []
    assert len(page.requests) == 1


def test_the_browser_refuses_what_a_page_would_ask_for(opened):
    page, _ = opened
    page.evaluate("void fetch('https://example.invalid/').catch(() => 0)")
    page.wait_for("new Promise(done => setTimeout(() => done(true), 50))")
    assert len(page.requests) == 1
    assert any("Content Security Policy" in found for found in page.errors)


def test_a_click_on_a_header_sorts_and_another_turns_it_round(opened):
    page, made = opened
    values = [v.targets["organ"].figures["dice"] for v in made.volumes]
    assert column(page, 3) == list(map(number, values))
    header = "table.sortable th:nth-child(4) button"
    page.click(header)
    assert column(page, 3) == list(map(number, sorted(values)))
    assert page.evaluate("document.querySelector('[aria-sort]').ariaSort") == "ascending"
    page.click(header)
    assert column(page, 3) == list(map(number, sorted(values, reverse=True)))
    page.evaluate("document.querySelector('table.sortable th:nth-child(1) button').click()")
    assert column(page, 0) == [f"case_{i}" for i in range(12)]  # 2 before 10
    assert page.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


def test_what_is_typed_filters(opened):
    page, _ = opened
    page.click(".filter input")
    page.type("odd case_1")
    assert column(page, 0) == ["case_1", "case_11"]
    assert page.evaluate("document.querySelector('.count').textContent") == "2 of 12 volumes"


def test_columns_of_classes_are_hidden_on_request(opened):
    page, _ = opened
    seen = "[...document.querySelectorAll('th.of-class')].filter(e => e.offsetWidth).length"
    assert page.evaluate(seen) == 2
    page.click(".switch")
    assert page.evaluate(seen) == 0


def test_all_is_there_without_scripts(page, tmp_path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    write_page(make_report(12), tmp_path / "report.html", picture)
    page.open((tmp_path / "report.html").as_uri())
    assert len(column(page, 0)) == 12
    assert (
        page.evaluate("document.querySelectorAll('th button, label:not([hidden]).filter').length")
        == 0
    )


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_sticks_out_and_texts_can_be_read(opened, width, scheme):
    page, _ = opened
    page.resize(width, 800)
    page.emulate(prefers_color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for selector in ("h1", ".hint", "td", "nav a", "svg text", ".sense"):
        assert page.evaluate(CONTRAST % selector) >= 4.5, selector


def test_printed_tables_are_as_wide_as_the_page(opened):
    page, _ = opened
    page.emulate("print")
    wide = (
        "document.querySelector('.tall').offsetWidth / document.querySelector('main').offsetWidth"
    )
    assert page.evaluate(wide) == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).overflow") == "visible"


def test_all_is_printed_and_no_wider_than_a_sheet(opened):
    page, _ = opened
    page.resize(718, 1000)  # A4 with the margins of a browser
    page.emulate("print")
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    folded = "document.querySelector('details:not([open]) td').checkVisibility()"
    assert page.evaluate(folded)
    columns = "getComputedStyle(document.querySelector('%s')).gridTemplateColumns.split(' ').length"
    assert page.evaluate(columns % ".charts") == 2
    picture = "document.querySelector('.card img').offsetWidth / document.body.offsetWidth"
    assert page.evaluate(picture) > 0.55


def test_headers_stand_over_what_they_head_and_names_are_whole(opened):
    page, _ = opened
    cell = "getComputedStyle(document.querySelector('table.sortable %s %s:nth-child(2)')).textAlign"
    assert page.evaluate(cell % ("thead", "th")) == page.evaluate(cell % ("tbody", "td"))
    page.evaluate(
        "void (document.querySelector('table.sortable tbody th').textContent = 'a_name_of_26_characters___')"
    )
    height = "document.querySelector('table.sortable tbody tr:nth-child(%d)').offsetHeight"
    assert page.evaluate(height % 1) == page.evaluate(height % 2)


CONTRAST = """(() => {
  const part = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (text) => { const [r, g, b] = part(text); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const one = document.querySelector('%s'), style = getComputedStyle(one);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const ink = light(one.tagName === 'text' ? style.fill : style.color);
  return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
})()"""
"""As WCAG 2 defines it; 4.5 is what it asks of texts."""


def test_a_comparison_has_no_errors_and_sorts(page, tmp_path):
    write_comparison({"a": report(random(0)), "b": report(random(1))}, tmp_path / "c.html")
    page.open((tmp_path / "c.html").as_uri())
    page.click("table.sortable th:nth-child(2) button")
    values = [float(text.replace("−", "-")) for text in column(page, 1)]
    assert values == sorted(values)
    assert page.errors == []
    assert len(page.requests) == 1
