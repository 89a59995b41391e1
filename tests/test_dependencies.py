from pathlib import Path

from tools.dependencies import SILENT, WHY, groups, licence, page

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_is_installed():
    assert (ROOT / "docs" / "dependencies.md").read_text() == page()


def test_each_package_has_a_reason_and_none_is_gone():
    named = {name for _, names in groups() for name in names}
    assert named == WHY.keys()
    assert named >= SILENT.keys()
    assert all(licence(name) for name in named)
