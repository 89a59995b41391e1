"""Metrics that an installed package brings."""

import subprocess
import sys

import pytest

from vcmodels.errors import RefusedError
from vcmodels.metrics import plugins
from vcmodels.metrics.base import Metric

MODULE = """
from vcmodels.metrics import Metric

def count(prediction, label, valid):
    return {"n": valid.sum().double()}

voxels = Metric(count, lambda sums: float(sums["n"]), "max", compares="values")
number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package next to its metadata, as pip leaves it, with the given entry points."""

    def install(*lines):
        (tmp_path / "theirs.py").write_text(MODULE)
        info = tmp_path / "theirs-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[vcmodels.metrics]\n" + "\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield install
    sys.modules.pop("theirs", None)


def test_they_are_found_by_their_names(package):
    package("voxels = theirs:voxels")
    found = plugins.installed_metrics({"dice"})
    assert list(found) == ["voxels"]
    assert isinstance(found["voxels"], Metric)


def test_a_fresh_process_measures_with_them(package):
    folder = package("voxels = theirs:voxels")
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from vcmodels.targets import RegressionTarget\n"
        "print('voxels' in RegressionTarget().figures)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dice = theirs:voxels", "there is a metric of this name; rename it"),
        ("gone = theirs:missing", "cannot be imported .*; repair or uninstall"),
        ("lost = nowhere:voxels", "cannot be imported .*nowhere"),
        ("three = theirs:number", "is a int; make it a Metric"),
    ],
)
def test_what_is_no_metric_is_refused(line, message, package):
    package(line)
    with pytest.raises(RefusedError, match=message):
        plugins.installed_metrics({"dice"})
