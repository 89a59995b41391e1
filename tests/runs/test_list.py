"""`vcmodels runs` itself."""

import json
import re
import subprocess
import sys

import pytest

from vcmodels.cli import main


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Runs the command in the folder of the runs; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments):
        assert main(["runs", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_in_a_pipe_each_run_is_one_line(command, make_run):
    make_run("runs/with-a-name-that-is-rather-long/and-a-folder-in-it", lr=0.1)
    make_run("runs/b", outcome="failed: step 3: not finite", epochs=2)
    lines = command("runs").splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        "runs/with-a-name-that-is-rather-long/and-a-folder-in-it",
        "runs/b",
        "runs/b:",
    ]
    assert "complete" in lines[1]
    assert "4/4    0.5       sheet dice 0.3, normals angle_deg 120  6    40.2" in lines[1]
    assert lines[3] == "runs/b: failed: step 3: not finite"


def test_names_are_shown_as_they_are(command, make_run):
    make_run("a[bold]b:smile:")
    assert "a[bold]b:smile:" in command()
    assert "a[bold]b:smile:" in command("a[bold]b:smile:", "a[bold]b:smile:")


def test_on_a_narrow_terminal_nothing_is_cut(command, make_run, monkeypatch):
    make_run("runs/with-a-name-that-is-rather-long")
    make_run("runs/b", epochs=2, outcome="")
    monkeypatch.setenv("COLUMNS", "80")
    out = command()
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out
    assert re.search(r"^runs/b +killed +2/4 ", out, re.M)
    for text in ("complete", "killed", "4/4", "0.5", "sheet dice 0.3", "40.2", "cpu", "now"):
        assert text in out


def test_two_runs_are_compared(command, make_run):
    make_run("a", lr=0.1)
    make_run("b", lr=0.2, epochs=2, outcome="stopped")
    out = command("a", "b")
    rows = {line[:25].strip(): line[25:].split() for line in out.splitlines()}
    assert rows["tr_params.initial_lr"] == ["0.1", "0.2"]
    assert "tr_params.ckpt_out_base" not in rows
    assert rows["sheet dice: best"] == ["0.3", "0.2"]
    assert rows["sheet dice: last"] == ["0.4", "0.2"]
    assert rows["epochs"] == ["4/4", "2/4"]
    assert rows["state"] == ["complete", "stopped"]


def test_json_holds_what_the_tables_show(command, make_run, tmp_path):
    make_run("a", lr=0.1)
    make_run("b", lr=0.2)
    one, _ = json.loads(command("--json"))
    assert (one["folder"], one["state"], one["best_loss"]) == ("a", "complete", 0.5)
    assert one["figures"]["sheet"] == {
        "metric": "dice",
        "best": pytest.approx(0.3),
        "last": 0.4,
    }
    both = json.loads(command("a", "b", "--json"))
    assert both["differences"] == {"tr_params.initial_lr": [0.1, 0.2]}
    assert [run["folder"] for run in both["runs"]] == ["a", "b"]


def test_a_folder_without_runs_says_so(command, make_run):
    assert command() == "no runs below .\n"
    assert json.loads(command("--json")) == []


def test_a_folder_that_is_not_there_is_refused(capsys):
    assert main(["runs", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: /nowhere: no such folder; ")


def test_listing_needs_no_torch(make_run):
    folder = make_run("a")
    code = f"import sys; from vcmodels.cli import main; main(['runs', {str(folder)!r}]); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=800, check=False).returncode == 0
