import pytest

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import CheckpointError
from vcmodels.inference.ensemble import choose_checkpoints
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.volumes import group_attributes


@pytest.fixture
def touch(tmp_path):
    """Makes the (empty) best checkpoint of a fold, or of the run itself."""

    def make(*names):
        for name in names:
            place = tmp_path / "run" / name
            place.mkdir(parents=True, exist_ok=True)
            (place / "tiny_best.pth").touch()

    return make


@pytest.fixture
def chosen(sheet_task, tmp_path):
    """Which checkpoints a task predicts with, below the run folder."""

    def choose(named=None, **tr_params):
        sheet_task["tr_params"] |= tr_params
        task = parse_task(sheet_task, "task.json")[0]
        paths = choose_checkpoints(task, named)
        return [str(p.relative_to(tmp_path / "run").parent) for p in paths]

    return choose


def test_folds_are_taken_when_nothing_else_is_there_or_the_task_is_folds(chosen, touch, tmp_path):
    touch("fold_0", "fold_10", "fold_2", "fold_x")
    assert chosen() == ["fold_0", "fold_2", "fold_10"]
    touch("")
    assert chosen() == ["."]  # the run's own
    assert chosen(folds={"count": 3}) == ["fold_0", "fold_2", "fold_10"]
    assert chosen(f"{tmp_path}/run/fold_x/tiny_best.pth") == ["fold_x"]
    assert chosen(folds={"count": 3, "index": 2}) == ["."]


def test_a_fold_without_a_checkpoint_is_named(sheet_task, touch):
    touch("fold_0", "fold_2")
    sheet_task["tr_params"]["folds"] = {"count": 4}
    task, reporter = parse_task(sheet_task, "task.json")[0], Silent()
    lines = reporter.lines
    paths = choose_checkpoints(task, reporter=reporter)
    assert [p.parent.name for p in paths] == ["fold_0", "fold_2"]
    assert lines[:2] == [f"fold {n} has no tiny_best.pth yet: it is left out" for n in (1, 3)]
    assert lines[2].startswith("predicting with the best of folds 0, 2 in ")
    paths = choose_checkpoints(task, folds=[2, 0, 2])
    assert [p.parent.name for p in paths] == ["fold_0", "fold_2"]
    with pytest.raises(CheckpointError, match=r"fold_1.*tiny_best.pth: there is no such fold"):
        choose_checkpoints(task, folds=[0, 1])


def test_without_any_checkpoint_the_remedy_is_to_train(chosen):
    with pytest.raises(CheckpointError, match=r"holds no tiny_best.pth; train first"):
        chosen()
    with pytest.raises(CheckpointError, match="there is no such fold to predict with"):
        chosen(folds={"count": 3})


@pytest.mark.slow
def test_the_folds_of_a_task_predict_together_and_one_alone_elsewhere(
    sheet_task, task_file, tmp_path, capsys
):
    sheet_task["tr_params"] |= {
        "folds": {"count": 2, "by": "slab"}, "split_guard": 0, "patch_size": [8, 16, 16],
        "max_epoch": 1, "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1,
    }  # fmt: skip
    sheet_task["inference_params"] |= {"bbox": [[0, 8], [0, 32], [0, 32]], "pyramid": 0}
    path, task = str(task_file(sheet_task)), parse_task(sheet_task, "task.json")[0]
    for index in range(2):
        assert train(task.fold(index), reporter=Silent()) == 0
    assert main(["infer", path]) == 0
    assert "predicting with the best of folds 0, 1 in " in capsys.readouterr().out
    assert main(["infer", path, "--fold", "1"]) == 0
    assert main(["infer", path, "--folds", "1", "--dry-run"]) == 0
    assert "predicting with the best of folds 1 in " in capsys.readouterr().out
    both, one = (
        group_attributes(str(tmp_path / f"out{place}" / "tiny.zarr"))["vcmodels"]["manifest"]
        for place in ("", "/fold_1")
    )
    assert len(both["checkpoint_sha256"]) == 2
    assert one["checkpoint_sha256"] in both["checkpoint_sha256"]
    for option in (["--folds", "x"], ["--folds", "0", "--checkpoint", "c.pth"], ["--folds", "7"]):
        assert main(["infer", path, *option]) == 2
    assert "--folds: found" in capsys.readouterr().err
