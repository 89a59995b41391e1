"""`docs/exchange.md` against the program."""

import re

import pytest
import typer

from vcmodels.cli.app import app
from vcmodels.exchange import FORMS


@pytest.fixture
def page(pytestconfig):
    return (pytestconfig.rootpath / "docs" / "exchange.md").read_text()


def test_every_form_has_a_row_and_a_command(page):
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(FORMS)
    assert set(re.findall(r"--to (\w+) -o", page)) == set(FORMS)


def test_the_help_names_every_form():
    command = typer.main.get_command(app).commands["export"]
    (option,) = (one for one in command.params if one.name == "to")
    assert all(name in option.help for name in FORMS)


def test_what_the_page_lets_one_type_is_understood(page):
    lines = re.findall(r"^    vcmodels (\w+) (.*)$", page, re.MULTILINE)
    assert len(lines) >= 7
    for command, words in lines:
        known = typer.main.get_command(app).commands[command].params
        names = {name for one in known for name in one.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z]+", words)) <= names, words
