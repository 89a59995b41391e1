import json

import pytest

from vcmodels.cli import main
from vcmodels.config import load_task


def test_a_first_task_is_one_that_check_takes(phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels = [f"surface={phantom}/sheet", f"{phantom}/normals"]
    assert main(["init", f"{phantom}/ct", *labels, "-o", "scroll.json"]) == 0
    said = capsys.readouterr().out
    assert "surface: multiclass, as its values are 0, 1, 2" in said
    assert 'give "ignore_label": 2' in said
    assert "normals: normals" in said
    assert "next: vcmodels check scroll.json" in said
    task = load_task(tmp_path / "scroll.json").task
    assert task.tr_params.model_name == "scroll"
    assert list(task.dataset_config.targets) == ["surface", "normals"]
    patch = "tr_params.patch_size=[8,8,8]"  # the phantom is small
    assert main(["check", "scroll.json", "--set", patch]) == 0


def test_locations_stay_as_they_were_given(phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(phantom.parent)
    output = tmp_path / "a.json"
    assert main(["init", "scroll.zarr/ct", "scroll.zarr/sheet", "-o", str(output)]) == 0
    (entry,) = json.loads(output.read_text())["dataset_config"]["volume_paths"]
    assert entry == {"input": "scroll.zarr/ct", "sheet": "scroll.zarr/sheet", "ref_label": "sheet"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            "{phantom}/sheet {phantom}/sheet",
            'is a second label "sheet"; name them, as in NAME=PATH',
        ),
        ("{phantom}/nothing", "does not exist; check the path"),
        ("in put={phantom}/sheet", "name it, as in NAME=PATH"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(
    phantom, tmp_path, capsys, label, message
):
    output = tmp_path / "task.json"
    labels = [part.format(phantom=phantom) for part in label.replace("in put", "in\0put").split()]
    labels = [one.replace("\0", " ") for one in labels]
    assert main(["init", f"{phantom}/ct", *labels, "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_task_that_is_there_stays(phantom, tmp_path, capsys):
    output = tmp_path / "task.json"
    output.write_text("mine")
    assert main(["init", f"{phantom}/ct", f"{phantom}/sheet", "-o", str(output)]) == 2
    assert "is there already; choose another --output" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_a_label_of_another_extent_is_refused(phantom, tmp_path, capsys):
    from vcmodels.phantom import write_phantom

    write_phantom(str(tmp_path / "b.zarr"), shape=(16, 32, 24), seed=0, chunks=(16, 16, 16))
    words = ["init", f"{phantom}/ct", f"{tmp_path}/b.zarr/sheet", "-o", str(tmp_path / "t.json")]
    assert main(words) == 2
    assert "has extent (16, 32, 24), the image (24, 96, 56)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my task", "-x", "é", "CON", "a.b.", "task"])
def test_a_file_name_that_no_model_can_have_is_no_obstacle(phantom, tmp_path, name):
    output = tmp_path / f"{name}.json"
    assert main(["init", f"{phantom}/ct", f"{phantom}/sheet", "-o", str(output)]) == 0
    assert load_task(output).task.tr_params.model_name == "first"


def five_axes(folder):
    """An image of two times and channels without names of its axes, and labels of two channels."""
    import numpy as np
    import zarr
    from zarr.storage import LocalStore

    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (2, 2, 16, 18, 20)).astype("u1")
    labels = rng.integers(0, 2, (16, 18, 20, 2)).astype("u1")
    for name, values in (("image", image), ("labels", labels)):
        array = zarr.create_array(
            LocalStore(folder / name), shape=values.shape, dtype="u1", chunks=values.shape
        )
        array[...] = values
    return [f"{folder}/image", f"sheet={folder}/labels"]


def test_the_remedies_of_messages_work_as_set(tmp_path, capsys):
    words = ["init", *five_axes(tmp_path), "-o", str(tmp_path / "t.json")]
    given = []
    for remedy in ("axes=tczyx", "index.t=0", "channel_axis=first"):
        assert main([*words, *given]) == 2
        assert f"(here: --set {remedy})" in capsys.readouterr().err
        given += ["--set", remedy.replace("axes=tczyx", 'axes={"input": "tczyx"}')]
    axes = '{"input": "tczyx", "sheet": "zyxc"}'
    given = ["axes=" + axes, "index.t=1", "index.c=0", "channels=[1, 0]", "spacing=[2, 1, 1]"]
    assert main([*words, *(word for one in given for word in ("--set", one))]) == 0
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["inference_params"] == {
        "input_path": f"{tmp_path}/image", "axes": "tczyx", "channels": [1, 0],
        "index": {"t": 1}, "spacing": [2, 1, 1], "output_dir": "predictions/t",
    }  # fmt: skip
    patch = "tr_params.patch_size=[8,8,8]"
    assert main(["check", str(tmp_path / "t.json"), "--set", patch]) == 0
    assert "2 of 16 x 18 x 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weight=2", "--set: weight says nothing of how arrays are read; give level, channel_axis"),
        ("axes=zy", 'axes: found "zy"; give a letter for each stored axis'),
        ("index.t=1", "VOLUME.index.t: no array has an axis t on which 1 can be read"),
    ],
)
def test_keys_that_do_not_fit_are_refused(phantom, tmp_path, capsys, given, message):
    output = tmp_path / "task.json"
    words = ["init", f"{phantom}/ct", f"{phantom}/sheet", "-o", str(output), "--set", given]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
