"""`docs/cross-validation.md` and `docs/cluster.md` against the program."""

import re
from typing import get_args

import pytest
import typer

from vcmodels.cli.app import app
from vcmodels.config.train_params import FoldConfig
from vcmodels.workflows.slurm import MOST_REQUEUES, SECONDS_BEFORE_END

COMMON = {"--help", "--debug"}


@pytest.fixture
def pages(request):
    docs = request.config.rootpath / "docs"
    return {name: (docs / f"{name}.md").read_text() for name in ("cross-validation", "cluster")}


def options_of(*command):
    """The long options of a command of the command line."""
    found = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]
    return {name for parameter in found.params for name in parameter.opts if name[:2] == "--"}


def test_the_table_of_submit_names_every_option_and_no_other(pages):
    rows = re.findall(r"^\| (`--.*?) \|", pages["cluster"], re.MULTILINE)
    named = set(re.findall(r"--[a-z]+", " ".join(rows)))
    mentioned = set(re.findall(r"`(--parts) N`", pages["cluster"]))
    assert named | mentioned == options_of("submit") - COMMON


def test_what_the_pages_let_one_type_is_understood(pages):
    lines = [
        line for page in pages.values() for line in re.findall(r"^    ((?:python|vcmodels) .*)$", page, re.MULTILINE)
    ]  # fmt: skip
    assert len(lines) >= 8
    for line in lines:
        words = line.partition("#")[0].replace(".py", "").split()
        command = words[1:3] if words[1] == "cv" else words[1:2]
        assert set(re.findall(r"--[a-z]+", line)) <= options_of(*command), line


def test_every_way_to_divide_is_described(pages):
    ways = get_args(get_args(FoldConfig.model_fields["by"].annotation)[0])
    named = re.findall(r"^\| `(\w+)` \|", pages["cross-validation"], re.MULTILINE)
    assert sorted(named) == sorted(ways)


def test_numbers_in_the_text_are_those_of_the_script(pages):
    assert SECONDS_BEFORE_END == 120
    assert "Two minutes before the limit" in pages["cluster"]
    assert f"at most {MOST_REQUEUES} times" in pages["cluster"]
