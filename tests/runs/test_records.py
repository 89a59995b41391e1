import json
from pathlib import Path

from vcmodels.runs.run import (
    Run,
    add_start,
    end_start,
    read_log,
    read_starts,
    starting_folder,
)


def test_every_start_is_kept(tmp_path):
    add_start(tmp_path, {"device": "cpu"})
    end_start(tmp_path, "stopped")
    add_start(tmp_path, {"device": "cuda"})
    first, second = read_starts(tmp_path)
    assert (first["device"], first["outcome"]) == ("cpu", "stopped")
    assert first["started"] <= first["ended"] <= second["started"]
    assert second["device"] == "cuda"
    assert "ended" not in second
    assert starting_folder(tmp_path) == Path.cwd()


def test_a_damaged_record_is_begun_anew(tmp_path):
    for content in ("{", "[1]", '{"starts": 3}', '{"starts": [3]}', "\xff"):
        (tmp_path / "environment.json").write_text(content, encoding="latin-1")
        assert read_starts(tmp_path) == []
        assert starting_folder(tmp_path) is None
    add_start(tmp_path, {})
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1


def test_a_log_is_read_up_to_what_a_kill_cut_short(tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_text('{"step": 3}\n[1]\n{"step": 6}\n{"step": 9, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [3, 6]


def test_a_task_file_alone_makes_no_run(tmp_path):
    (tmp_path / "task.json").write_text("{}")
    assert not Run(tmp_path).is_begun()
    (tmp_path / "splits.json").write_text("{}")
    assert Run(tmp_path).is_begun()
