"""What docs/objects.md lets one write is understood."""

import json
import re

import pytest

from vcmodels.config import parse_task
from vcmodels.config.load import parse_steps
from vcmodels.postprocess import AnyStep


@pytest.fixture
def page(request):
    return (request.config.rootpath / "docs/objects.md").read_text()


def test_the_tasks_and_steps_of_the_page_are_valid(page):
    task, steps = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    (step,) = parse_task(task, "page")[0].postprocess
    assert (step.name, step.output) == ("watershed", "cells")
    assert [one.name for one in parse_steps(steps)] == [
        "watershed", "agglomerate", "components", "thin",
    ]  # fmt: skip


def test_the_table_of_steps_names_them_all(page):
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    kinds = AnyStep.__args__[0].__args__
    assert {kind.model_fields["name"].default for kind in kinds} <= named
