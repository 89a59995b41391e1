"""`docs/cohorts.md` against what is read."""

import re
from pathlib import Path

import pytest

from vcmodels.cohorts.header import read_header
from vcmodels.config.values import VOLUME_KEYS

PAGE = (Path(__file__).parents[2] / "docs/cohorts.md").read_text(encoding="utf-8")
NAMED = re.findall(r"^\| (input|subject|split|group|cohort|weight) \| (.*?) \|", PAGE, re.M)


@pytest.mark.parametrize(
    ("meaning", "name"),
    [(meaning, name) for meaning, names in NAMED for name in re.findall(r"`(\w+)`", names)],
)
def test_a_column_of_the_page_is_what_it_says(meaning, name):
    header = ["Image", name] if meaning != "input" else [name, "Age"]
    found = read_header(header, (), "the page")
    assert {0: "input", **{n: key for key, n in found.others.items()}}[
        header.index(name)
    ] == meaning


def test_the_page_names_all_keys_that_have_no_column():
    sentence = re.search(r"no column for the other keys of an entry: (.*?)\.", PAGE, re.S)
    columns = {"input", "name", *dict(NAMED)}
    assert set(re.findall(r"`(\w+)`", sentence[1])) == {*VOLUME_KEYS} - columns
