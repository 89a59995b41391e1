"""Commands that look at one fold of a cross-validation."""

from types import SimpleNamespace

import pytest

import vcmodels.evaluation
import vcmodels.training
from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.volumes.places import read_json, write_json
from vcmodels.workflows import cross_validation


@pytest.fixture
def path(sheet_task, task_file):
    sheet_task["tr_params"] |= {
        "folds": {"count": 3}, "split_guard": 0, "patch_size": [8, 16, 16],
    }  # fmt: skip
    return str(task_file(sheet_task))


def test_patches_and_pictures_are_those_of_a_fold(path, tmp_path, capsys):
    assert main(["patches", path]) == 0
    assert main(["patches", path, "--fold", "1"]) == 0
    out = capsys.readouterr().out
    assert "fold 0 of 3; --fold shows another\n" in out
    assert "scroll.zarr/ct#train1: " in out  # the middle slab has two sides
    lists = [read_json(tmp_path / "run" / f"fold_{n}" / "patches.json") for n in range(2)]
    assert lists[0]["fingerprint"] != lists[1]["fingerprint"]
    assert main(["preview", path, "--fold", "1", "--samples", "1", "--set", "augment=[]"]) == 0
    assert len(list((tmp_path / "run" / "fold_1" / "preview").glob("*.png"))) == 1
    assert read_json(tmp_path / "run" / "fold_1" / "patches.json") == lists[1]


def test_check_names_the_folders_of_all_folds(path, tmp_path, capsys):
    assert main(["check", path]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "run"
    assert f"run folders {run / 'fold_0'} to {run / 'fold_2'}, one for each of 3 folds" in out
    assert not run.exists()


def scorer(scored):
    """Stands for `evaluate`, and keeps the tasks."""

    def evaluate(task, **_):
        scored.append(task)
        return SimpleNamespace(failures=(), report=None)

    return evaluate


def test_what_all_folds_predict_is_not_scored(path, monkeypatch, capsys):
    scored = []
    monkeypatch.setattr(vcmodels.evaluation, "evaluate", scorer(scored))
    assert main(["evaluate", path]) == 2
    assert "error: --fold: nothing is held out of all folds" in capsys.readouterr().err
    assert main(["evaluate", path, "--fold", "2"]) == 0
    assert main(["evaluate", path, "--bbox", "0:1,0:1,0:1"]) == 0
    assert [task.tr_params.folds.index for task in scored] == [2, None]


def test_folds_that_only_the_command_line_named_are_known_from_those_begun(
    sheet_task, path, task_file, tmp_path, monkeypatch, capsys
):
    begun = load_task(path).task.fold(1)
    write_json(begun.run_dir / "task.json", begun.to_json())
    del sheet_task["tr_params"]["folds"]
    plain = str(task_file(sheet_task))
    scored = []
    monkeypatch.setattr(vcmodels.evaluation, "evaluate", scorer(scored))
    assert main(["evaluate", plain, "--fold", "2"]) == 0
    assert scored[0].run_dir == tmp_path / "run" / "fold_2"
    assert main(["evaluate", plain, "--fold", "3"]) == 2
    assert "there is no fold 3 of 3" in capsys.readouterr().err
    assert main(["cv", "evaluate", plain]) == 2
    assert "fold_0: holds no tiny_best.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "3"], "--fold: there is no fold 3 of 3; give one from 0 to 2"),
        (["--fold", "0", "--jobs", "2"], "--jobs: there is one training"),
        (["--folds", "1"], "Invalid value for '--folds'"),
    ],
)
def test_options_that_name_no_fold_are_refused(path, options, message, capsys):
    assert main(["train", path, *options]) == 2
    assert message in capsys.readouterr().err


def test_folds_of_the_command_line_are_recorded_as_an_override(
    sheet_task, task_file, tmp_path, monkeypatch, capsys
):
    seen = []
    monkeypatch.setattr(vcmodels.training, "train", lambda task, **_: seen.append(task) or 0)
    plain = str(task_file(sheet_task))
    assert main(["train", plain, "--folds", "4", "--fold", "3", "--set", "tr_params.seed=5"]) == 0
    assert seen[0].overrides == ["tr_params.folds.count=4", "tr_params.seed=5"]
    assert seen[0].run_dir == tmp_path / "run" / "fold_3"
    assert f"--logdir {tmp_path / 'run' / 'fold_3' / 'tensorboard'}" in capsys.readouterr().out


def test_all_folds_are_trained_by_the_same_words(path, monkeypatch, capsys):
    calls = {}

    def cross_validate(task, words, **options):
        calls.update(options, words=words, folds=task.tr_params.folds)
        return 1

    monkeypatch.setattr(cross_validation, "cross_validate", cross_validate)
    assert main(["train", path, "--folds", "2", "--set", "tr_params.seed=1", "--jobs", "2"]) == 1
    assert calls["words"] == [
        "train", path, "--set", "tr_params.folds.count=2", "--set", "tr_params.seed=1",
    ]  # fmt: skip
    assert (calls["folds"].count, calls["jobs"], calls["restart"]) == (2, 2, False)

    assert "tensorboard --logdir" in capsys.readouterr().out


def test_what_comes_after_a_training_is_named_once_for_all_folds(
    task_file, sheet_task, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(vcmodels.training, "train", lambda _task, **_: 0)
    monkeypatch.setattr(cross_validation, "cross_validate", lambda *_, **__: 0)
    for folder in ("run", "run/fold_0"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tiny_best.pth").touch()
    del sheet_task["inference_params"]["input_path"]
    path = str(task_file(sheet_task))
    for words, following in (
        (["--set", "tr_params.seed=1"], f"infer {path} --set tr_params.seed=1 --input VOLUME\n"),
        (["--folds", "2"], f"infer {path} --set tr_params.folds.count=2 --input VOLUME\n"),
        (["--folds", "2", "--fold", "0"], None),
    ):
        assert main(["train", path, *words]) == 0
        said = capsys.readouterr().out
        if following is None:
            assert "next: " not in said
        else:
            assert said.endswith(f"next: vcmodels {following}")
