import pytest

from tests.evaluation.test_page import make_report, picture
from vcmodels.cli import main
from vcmodels.evaluation.page import write_page


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders with reports, as evaluate writes them."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("first", "second")):
        report = make_report(8, seed=number)
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report.to_text(), encoding="utf-8")
        write_page(report, tmp_path / name / "report.html", picture)
    return tmp_path


def test_the_page_of_a_folder_is_made_again_with_its_pictures(folders, capsys):
    page = folders / "first/report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", "first"]) == 0
    assert page.read_text() == before
    assert "wrote first/report.html" in capsys.readouterr().out
    assert main(["report", "first/report.json", "-o", "else.html", "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in (folders / "else.html").read_text()
    assert "data:image/webp" in (folders / "else.html").read_text()


def test_several_are_compared_by_the_names_of_their_folders(folders):
    assert main(["report", "first", "second"]) == 0
    text = (folders / "comparison.html").read_text()
    assert "<strong>first</strong> (8 volumes)" in text
    assert "<strong>second</strong> (8 volumes)" in text


def test_names_are_where_the_folders_differ(folders):
    for run, name in (("a", "first"), ("b", "second")):
        (folders / run).mkdir()
        (folders / name).rename(folders / run / "evaluation")
    assert main(["report", "a/evaluation", "b/evaluation", "-o", "c.html"]) == 0
    text = (folders / "c.html").read_text()
    assert "<strong>a</strong>" in text
    assert "<strong>b</strong>" in text
    assert main(["report", "a/evaluation", "a/evaluation", "-o", "c.html"]) == 0
    assert "<strong>2: a/evaluation</strong>" in (folders / "c.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone"], "gone: is not there; name a folder that evaluate -o wrote"),
        (["empty"], "empty/report.json: is not there"),
        (["broken.json"], "is no report of this version"),
        (["other.json"], "is no report of this version (ValueError: schema 99, not 1)"),
        (["list.json"], "is no report of this version"),
        (["first", "second", "--title", "x"], "--title"),
        (["first", "-o", "mine.html"], "is there, and is no page of vcmodels"),
    ],
)
def test_what_is_no_report_is_refused(words, said, folders, capsys):
    (folders / "empty").mkdir()
    (folders / "broken.json").write_text("{")
    (folders / "other.json").write_text('{"schema": 99}')
    (folders / "list.json").write_text("[]")
    (folders / "mine.html").write_text("mine")
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
    assert (folders / "mine.html").read_text() == "mine"


def test_pictures_of_another_report_in_the_folder_of_the_page_stay(folders):
    (folders / "first/pictures").rename(folders / "first/kept")
    (folders / "second/pictures").rename(folders / "pictures")
    (folders / "first/kept").rename(folders / "first/pictures")
    before = {path: path.read_bytes() for path in folders.rglob("*.webp")}
    assert main(["report", "first", "-o", "page.html"]) == 0
    assert "data:image/webp" in (folders / "page.html").read_text()
    assert {path: path.read_bytes() for path in folders.rglob("*.webp")} == before
