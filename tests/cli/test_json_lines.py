"""The log of figures that a command appends to a file."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.cli.test_app import Terminal, replace_prediction
from vcmodels.cli import main
from vcmodels.cli.console import Console, Errors, JsonLines
from vcmodels.errors import RefusedError
from vcmodels.inference import InferenceReport


def test_lines_are_appended_and_there_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("before\n")
    with JsonLines(path) as log, JsonLines(path) as other:
        assert log.append({"a": 1}) == ""
        assert other.append({"b": [2]}) == ""
        assert path.read_text() == 'before\n{"a": 1}\n{"b": [2]}\n'


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_full_disk_is_told_once_and_stops_nothing(is_quiet, capsys):
    console = Console(is_quiet=is_quiet)
    with JsonLines("/dev/full") as console.log:
        for number in range(3):
            console.record({"number": number})
    assert capsys.readouterr() == (
        "",
        "note: /dev/full loses lines (No space left on device); the work goes on\n",
    )


def test_a_torn_line_does_not_spoil_the_next(tmp_path, monkeypatch):
    path, write = tmp_path / "log.jsonl", os.write
    with JsonLines(path) as log:
        monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:4]))
        assert "loses lines" in log.append({"first": 1})
        monkeypatch.undo()
        log.append({"second": 2})
        log.append({"third": 3})
    first, *rest = path.read_text().splitlines()
    assert first == '{"fi'
    assert list(map(json.loads, rest)) == [{"second": 2}, {"third": 3}]


@pytest.mark.parametrize("name", ["missing/log", "."])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(RefusedError, match=r"--log-json: .* cannot be written \("):
        JsonLines(tmp_path / name)


def test_records_go_to_stdout_where_no_person_reads_it(tmp_path, capsys, monkeypatch):
    console = Console(has_records=True)
    console.record({"a": 1})
    assert capsys.readouterr().out == '{"a": 1}\n'
    with JsonLines(tmp_path / "log") as console.log:
        console.record({"a": 2})
    console.log = None
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdout", Terminal())
    console.record({"a": 3})
    assert sys.stdout.getvalue() == ""


def test_commands_whose_stdout_is_their_result_put_no_records_there(capsys):
    Console().record({"a": 1})
    Errors().record({"a": 1})
    assert capsys.readouterr() == ("", "")


def test_infer_logs_to_the_file_that_is_named(tmp_path, task_file, sheet_task, monkeypatch, capsys):
    def predict_request(_request, options):
        options.reporter.record({"patches": 7})
        return InferenceReport(Path("out"))

    replace_prediction(monkeypatch, predict_request)
    path, log = str(task_file(sheet_task)), tmp_path / "log"
    assert main(["infer", path, "--log-json", str(log)]) == 0
    assert log.read_text() == '{"patches": 7}\n'
    assert "{" not in capsys.readouterr().out
    assert main(["infer", path]) == 0
    assert '{"patches": 7}\n' in capsys.readouterr().out
    log.unlink()
    assert main(["infer", path, "--log-json", str(log), "--dry-run"]) == 0
    assert not log.exists()  # it writes nothing
    assert main(["infer", path, "--log-json", str(tmp_path)]) == 2
