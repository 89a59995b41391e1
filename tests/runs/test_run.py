import json

import pytest

from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.runs.run import Run

SPLITS = {
    "split_mode": "spatial",
    "volumes": ["a", "b", "c"],
    "train_regions": [[[0, 6], [0, 7], [0, 8]], [[1, 2], [0, 7], [0, 8]], None],
    "val_regions": [[[8, 12], [0, 7], [0, 8]], None, [[0, 3], [1, 4], [2, 9]]],
}


def test_a_run_names_its_checkpoints_after_the_model_of_its_task(make_run):
    run = Run(make_run("x"))
    assert (run.best.name, run.last.name) == ("m_best.pth", "m_last.pth")
    assert run.best.exists()
    assert run.numbered(3) == run.folder / "m_3.pth"
    assert run.task()["tr_params"]["model_name"] == "m"
    assert run.is_begun()


def test_a_run_that_is_not_there_yet_takes_the_name_that_is_given(tmp_path):
    run = Run(tmp_path / "new", "net")
    assert run.last == tmp_path / "new" / "net_last.pth"
    assert run.task() == {}
    assert run.splits() is None
    assert not run.is_begun()


def test_kept_checkpoints_are_those_that_are_recorded_in_the_order_of_epochs(tmp_path):
    for name in ("a.b_10.pth", "a.b_9.pth", "a.b_last.pth", "axb_3.pth", "a.b_2.pth"):
        (tmp_path / name).touch()
    run = Run(tmp_path, "a.b")
    assert list(run.kept()) == []
    (tmp_path / "log.jsonl").write_text(
        '{"epoch": 2.0}\n{"epoch": 1}\n{"epoch": 1e999}\n{"x": 1}\n'
    )
    assert list(run.kept()) == [2]  # of a run without a record
    (tmp_path / "checkpoints.json").write_text('{"epochs": [10, 9, 3, "2"]}')
    assert list(run.kept()) == [9, 10]


def test_folds_are_found_by_number(tmp_path):
    for name in (
        "fold_10",
        "fold_2",
        "fold_0",
        "fold_02",
        "fold_x",
        "fold_-1",
        "fold_1.old",
        "fold_\u0663",
        "my_fold_3",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "fold_4").touch()
    run = Run(tmp_path, "net")
    found = [(index, one.folder.name) for index, one in run.folds().items()]
    assert found == [(0, "fold_0"), (2, "fold_2"), (10, "fold_10")]
    assert Run(tmp_path / "not there").folds() == {}
    assert run.fold(7).best == tmp_path / "fold_7" / "net_best.pth"


def test_a_division_comes_back_as_it_was_written(tmp_path):
    run = Run(tmp_path, "net")
    run.write_splits(SPLITS)
    splits = run.splits()
    assert splits is not None
    assert splits.train_regions[1] == Box((1, 0, 0), (1, 7, 8))
    assert splits.held_out() == {
        "a": Box((8, 0, 0), (4, 7, 8)),
        "c": Box((0, 1, 2), (3, 3, 7)),
    }
    assert splits.document == SPLITS
    assert not splits.is_random


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError"),
        ("\udcff", "UnicodeDecodeError"),
        ("[]", "not an object"),
        ("{}", "its regions"),
        (json.dumps(SPLITS | {"val_regions": [None]}), "its regions"),
        (json.dumps(SPLITS | {"val_regions": [[[0, 1]], None, None]}), "its regions"),
        (json.dumps(SPLITS | {"train_regions": None}), "its regions"),
    ],
)
def test_a_damaged_division_is_an_error_that_names_the_file(tmp_path, text, why):
    (tmp_path / "splits.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        TaskError, match=rf"splits.json: damaged \({why}\).*or delete .*splits.json"
    ):
        Run(tmp_path).splits()
