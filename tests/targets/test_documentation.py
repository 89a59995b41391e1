"""`docs/targets.md` has a section for every kind, and each block that it shows is understood."""

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from vcmodels.targets import KINDS, AnyTarget

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def test_every_kind_has_its_section():
    assert SECTIONS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_of_a_section_is_one_of_its_kind(kind):
    (text,) = re.findall(r"```json\n(.*?)```", SECTIONS[kind], re.S)
    ((_, block),) = json.loads("{" + text + "}").items()
    assert TypeAdapter(AnyTarget).validate_json(json.dumps(block)).kind == kind
