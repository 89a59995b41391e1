import pytest

from vcmodels.config import parse_task
from vcmodels.errors import RefusedError, TaskError


@pytest.fixture
def make(sheet_task, tmp_path):
    def build(**folds):
        sheet_task["tr_params"] |= {
            "ckpt_out_base": f"{tmp_path}/run/", "folds": folds or None,
            "tensorboard_log_dir": f"{tmp_path}/curves",
        }  # fmt: skip
        sheet_task["dataset_config"]["cache_file"] = f"{tmp_path}/lists/my.patches.json"
        return parse_task(sheet_task, "task.json")[0]

    return build


def test_folds_share_no_output_and_are_tasks_of_their_own(make, tmp_path):
    task = make(count=3, by="slab")
    assert task.is_cross_validation
    folds = [task.fold(index) for index in range(3)]
    assert not any(one.is_cross_validation for one in folds)
    places = [(t.run_dir, t.tensorboard_dir, t.cache_file, t.inference_params.output_dir)
              for t in folds]  # fmt: skip
    assert len({str(place) for of_one in places for place in of_one}) == 12
    assert places[1] == (
        tmp_path / "run" / "fold_1", tmp_path / "curves" / "run" / "fold_1" / "tiny",
        tmp_path / "lists" / "my.patches.fold_1.json", f"{tmp_path}/out/fold_1",
    )  # fmt: skip
    again = parse_task(folds[2].to_json(), "task.json")[0]
    assert again.fold(2) == again == folds[2]


def test_what_the_task_leaves_out_stays_left_out(sheet_task, tmp_path):
    sheet_task["tr_params"]["folds"] = {"count": 2}
    del sheet_task["inference_params"]["output_dir"]
    task = parse_task(sheet_task, "task.json")[0].fold(1)
    assert task.tr_params.tensorboard_log_dir is None
    assert task.inference_params.output_dir is None
    assert task.cache_file == tmp_path / "run" / "fold_1" / "patches.json"


def test_a_fold_that_is_not_there_is_refused(make):
    with pytest.raises(RefusedError, match="there is no fold 3 of 3; give one from 0 to 2"):
        make(count=3).fold(3)
    with pytest.raises(TaskError, match=r"tr_params.folds.index: is 1, and fold 0 is asked for"):
        make(count=3, index=1).fold(0)
    with pytest.raises(TaskError, match=r"tr_params.folds: is not set"):
        make().fold(0)
