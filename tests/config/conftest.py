import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def good():
    """A full task, as it stands in a file: two targets, two volumes, every section."""
    return json.loads((Path(__file__).parent / "good.json").read_text())


@pytest.fixture
def original():
    """The original project's own example task, with other paths."""
    return json.loads((Path(__file__).parent / "original.json").read_text())
