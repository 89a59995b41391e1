"""The helper reports what it is to find: an error that nobody sees would let every page pass."""

import pytest
from PIL import Image


@pytest.fixture
def write(tmp_path):
    def written(body: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><title>t</title>{body}", encoding="utf-8")
        return path.as_uri()

    return written


def test_a_quiet_page_has_no_errors_and_asks_for_itself_only(page, write):
    url = write('<p>é</p><img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">')
    page.open(url)
    assert page.evaluate("document.querySelector('p').textContent") == "é"
    assert page.requests == [url]
    assert page.errors == []


def test_errors_are_kept_whether_they_are_said_or_thrown(page, write):
    page.open(
        write("<script>console.error('said'); setTimeout(() => { throw Error('thrown') })</script>")
    )
    page.wait_for("new Promise(done => setTimeout(() => done(true), 50))")
    assert "said" in page.errors
    assert any("thrown" in found for found in page.errors)


def test_what_a_page_asks_for_is_kept(page, write):
    page.open(write('<img alt="" src="missing.png">'))
    assert page.requests[-1].endswith("/missing.png")
    assert page.errors


def test_a_click_hits_what_is_clicked(page, write):
    page.open(write("<p style='height:3000px'></p><button onclick='this.id=\"hit\"'>b</button>"))
    page.click("button")
    assert page.evaluate("document.querySelector('#hit') !== null")


def test_size_and_colour_scheme_are_what_the_page_sees(page, write, tmp_path):
    page.open(write("<style>@media (prefers-color-scheme:dark){body{background:#102030}}</style>"))
    page.resize(400, 300)
    page.emulate(prefers_color_scheme="dark")
    picture = Image.open(page.screenshot(tmp_path / "s.png")).convert("RGB")
    assert picture.size == (400, 300)
    assert picture.getpixel((5, 5)) == (0x10, 0x20, 0x30)


def test_webgl_is_there_without_a_gpu(page, write):
    page.open(write("<canvas></canvas>"))
    assert page.evaluate("document.querySelector('canvas').getContext('webgl2') !== null")
