"""The command `symmetry`, and what `check` says of a run."""

import json

import pytest

from tests.training.test_symmetry import run_of, store, task  # noqa: F401 (fixtures)
from vcmodels.cli import main


@pytest.fixture
def path(task_file, task):  # noqa: F811
    return str(task_file(task))


def test_the_table_names_each_mirror_and_turn_and_what_follows(path, capsys):
    assert main(["symmetry", path]) == 0
    out = capsys.readouterr().out
    rows = dict(line.split("  ", 1) for line in out.splitlines() if line.startswith((" mirror", " quarter")))  # fmt: skip
    assert len(rows) == 10
    assert rows[" mirror z"].split()[0] == "no"
    assert rows[" mirror y"].split()[0] == "yes"
    assert "label mask: told apart in" in rows[" mirror z"]
    assert "hold: mirrors y, x; quarter turns yx (8 of 48 orientations)" in out
    assert "augment: the default list, with flip y, x; quarter_turn yx\n" in out
    assert 'tta "auto": flips y, x\n' in out


def test_json_is_what_a_run_keeps_and_check_shows(path, task, capsys):  # noqa: F811
    run, _ = run_of(task)
    assert main(["symmetry", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(run.symmetry.read_text())
    assert main(["check", path]) == 0
    out = capsys.readouterr().out
    assert "symmetry: mirrors y, x; quarter turns yx (8 of 48 orientations)\n" in out
    assert "found of other data" not in out
    kept = run.symmetry.read_text()
    for changed in ({"data_sha256": "0"}, {"task_sha256": "0"}, {"task_sha256": ""}):
        run.symmetry.write_text(json.dumps(json.loads(kept) | changed))
        assert main(["check", path]) == 0
        out = capsys.readouterr().out
        assert "note: symmetry: found of other data, targets or patches than these" in out
