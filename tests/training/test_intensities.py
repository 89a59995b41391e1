"""A training keeps, in every checkpoint, the values that it saw; a prediction compares its input."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.test_train import continued_from, last, run, with_folder
from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.data.intensities import ChannelValues
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import create_array, open_volume


@pytest.fixture
def task(sheet_task, tmp_path):
    """Without normalisation, so that nothing else measures the volume."""
    sheet_task["dataset_config"]["normalization"] = "none"
    return with_folder(sheet_task, tmp_path / "run", max_epoch=1)


def folder(task):
    return Path(task["tr_params"]["ckpt_out_base"])


@pytest.fixture
def brighter(phantom, tmp_path):
    """The phantom's `ct` as a scanner gives it that has 20 times the values."""
    raw = open_volume(str(phantom / "ct"))
    store, like = str(tmp_path / "other.zarr"), {"shape": raw.extent, "chunks": raw.chunks}
    array = create_array(store, "ct", dtype=np.int16, **like)
    array.write(raw.box, raw.read(raw.box).astype(np.int16) * 20 - 1000)
    return array.location


def test_every_checkpoint_holds_the_values_of_the_training_side(task, phantom):
    run(task)
    state = last(task)
    (known,) = map(ChannelValues.from_dict, state["intensities"])
    region = Box.between(*zip(*state["split"]["train_regions"][0], strict=True))
    raw = open_volume(str(phantom / "ct"))
    assert region.voxels < raw.box.voxels
    values = raw.read(region)
    assert (known.name, known.dtype) == ("ct", raw.dtype.name)
    np.testing.assert_allclose(known.range, np.percentile(values, (0.5, 99.5)), atol=2)
    np.testing.assert_allclose((known.mean, known.sd), (values.mean(), values.std()), rtol=0.02)
    best = load_checkpoint(folder(task) / "tiny_best.pth")
    assert best.state["intensities"] == state["intensities"]


def test_a_run_that_is_continued_keeps_them_and_an_older_one_gets_them(task):
    run(task)
    path = folder(task) / "tiny_last.pth"
    state = last(task)
    for before in ([{**state["intensities"][0], "mean": 1e6}], None):
        older = {k: v for k, v in state.items() if k != "intensities"}
        save_checkpoint(path, older if before is None else older | {"intensities": before})
        run(with_folder(task, folder(task), max_epoch=state["epoch"] + 1))
        assert last(task)["intensities"] == (before or state["intensities"])


def test_weights_that_learn_from_other_volumes_get_their_values(task, tmp_path, brighter):
    run(task)
    source = folder(task) / "tiny_last.pth"
    tuned = continued_from(task, tmp_path / "tuned", source, load_weights_only=True)
    tuned["dataset_config"]["volume_paths"][0]["input"] = brighter
    run(tuned)
    ((before,), (now,)) = (last(each)["intensities"] for each in (task, tuned))
    assert now["dtype"] == "int16"
    assert now["maximum"] == before["maximum"] * 20 - 1000


def test_a_checkpoint_alone_knows_an_input_of_another_scale(
    task, phantom, brighter, tmp_path, capsys
):
    run(task)
    for volume, count in ((str(phantom / "ct"), 0), (brighter, 1)):
        path, output = str(folder(task) / "tiny_best.pth"), str(tmp_path / f"out{count}")
        capsys.readouterr()
        assert main(["infer", path, volume, "-o", output]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "values of" in line]
        assert len(lines) == count
    assert "values of channel 0 (ct) lie in -" in lines[0]
