import json

import numpy as np
import pytest
import zarr
from PIL import Image

from tests.evaluation.conftest import EXTENT, store, world
from vcmodels.cli import main
from vcmodels.errors import RefusedError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.targets import BinaryTarget
from vcmodels.viewers.drawn import subject_of_array, subject_of_result, subject_of_task
from vcmodels.volumes import set_group_attributes

__all__ = ["store", "world"]

WHOLE = Box((0, 0, 0), EXTENT)


@pytest.fixture
def result(world):
    """A result that says what it was made of."""
    params = world.task().inference_params.model_dump(mode="json")
    notes = {"manifest": {}, "complete": True, "provenance": {"task": {"inference_params": params}}}
    set_group_attributes(str(world.folder / "out/net.zarr"), {"vcmodels": notes})
    return world


def drawn(source, at=(slice(None), 4)):
    """What a source holds on a slice."""
    level = source.levels[0]
    return source.values(level.read(Box((0, 0, 0), level.extent))[at])


def test_a_task_has_its_labels_and_what_was_predicted(result):
    subject = subject_of_task(result.task(), None, (), Silent())
    assert [layer.name for layer in subject.layers] == ["sheet", "normals"]
    assert subject.image.location.endswith("raw")
    assert (subject.box, subject.extent) == (WHOLE, EXTENT)
    sheet = subject.layers[0]
    np.testing.assert_allclose(drawn(sheet.prediction).values[0], result.probability[4] / 255)
    label = drawn(sheet.label)
    np.testing.assert_array_equal(label.values[0], result.sheet[4])
    assert label.counts.all()


def test_a_task_without_a_result_has_its_labels(world):
    task = world.task(output_dir=str(world.folder / "other"))
    subject = subject_of_task(task, "scroll", ("sheet",), Silent())
    (layer,) = subject.layers
    assert layer.prediction is None
    assert layer.label is not None


def test_a_result_lies_over_the_input_that_it_names(result):
    root = str(result.folder / "out/net.zarr")
    subject = subject_of_result(root, None, {}, ("normals",), Silent())
    (layer,) = subject.layers
    assert layer.label is None
    assert drawn(layer.prediction).values.shape == (3, 14, 18)
    assert subject.image.location.endswith("raw")


def test_a_label_is_given_by_the_name_of_its_target(result):
    root, path = str(result.folder / "out/net.zarr"), str(result.folder / "data.zarr/sheet")
    subject = subject_of_result(root, None, {"sheet": path}, (), Silent())
    labels = {layer.name: layer.label for layer in subject.layers}
    np.testing.assert_array_equal(drawn(labels["sheet"]).values[0], result.sheet[4])
    assert labels["normals"] is None
    subject = subject_of_result(root, None, {None: path}, ("sheet",), Silent())
    assert subject.layers[0].label is not None
    with pytest.raises(RefusedError, match=r"is of one of 2 targets; write NAME=PATH"):
        subject_of_result(root, None, {None: path}, (), Silent())
    with pytest.raises(RefusedError, match='"other" is none of normals, sheet'):
        subject_of_result(root, None, {"other": path}, (), Silent())
    with pytest.raises(RefusedError, match="choose from normals, sheet"):
        subject_of_result(root, None, {}, ("other",), Silent())


def test_a_prediction_of_ours_says_itself_what_it_is(result):
    subject = subject_of_array(
        str(result.folder / "out/net.zarr/sheet"), None, {}, None, None, Silent()
    )
    (layer,) = subject.layers
    assert isinstance(layer.drawing, BinaryTarget)
    np.testing.assert_allclose(drawn(layer.prediction).values[0], result.probability[4] / 255)


def test_any_other_array_is_what_it_is_said_to_be(world):
    path = str(world.folder / "data.zarr/raw")
    with pytest.raises(RefusedError, match="says what its values are; give one of binary"):
        subject_of_array(path, None, {}, None, None, Silent())
    (layer,) = subject_of_array(path, None, {}, "binary", ">= 128", Silent()).layers
    raw = world.store("copy", world.probability)
    (layer,) = subject_of_array(raw.location, path, {}, "binary", ">= 128", Silent()).layers
    np.testing.assert_array_equal(drawn(layer.prediction).values[0], world.probability[4] >= 128)
    (layer,) = subject_of_array(
        raw.location, None, {None: path}, "instances", None, Silent()
    ).layers
    np.testing.assert_array_equal(drawn(layer.prediction).values[0], world.probability[4])
    assert layer.label is not None


def test_what_does_not_fit_is_refused(world):
    path = str(world.folder / "data.zarr/raw")
    with pytest.raises(RefusedError, match="with 1 channels is no normals"):
        subject_of_array(path, None, {}, "normals", None, Silent())
    with pytest.raises(RefusedError, match="which are no ids; give another kind"):
        subject_of_array(
            str(world.folder / "data.zarr/normals"), None, {}, "instances", None, Silent()
        )
    small = world.store("small", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(VolumeError, match=r"has shape \(3, 4, 5\)"):
        subject_of_array(path, small.location, {}, "instances", None, Silent())
    with pytest.raises(VolumeError, match="give arrays of one shape"):
        subject_of_array(path, None, {None: small.location}, "binary", None, Silent())


def _write_task(folder):
    data = str(folder / "data.zarr")
    arrays = {"input": f"{data}/raw", "sheet": f"{data}/sheet", "normals": f"{data}/normals"}
    task = {
        "tr_params": {
            "model_name": "net",
            "patch_size": [16, 16, 16],
            "ckpt_out_base": str(folder / "run"),
        },
        "inference_params": {"input_path": f"{data}/raw", "output_dir": str(folder / "out")},
        "dataset_config": {
            "volume_paths": [arrays],
            "targets": {
                "sheet": {"kind": "binary"},
                "normals": {"kind": "normals", "channels": 3},
            },
        },
    }
    (folder / "task.json").write_text(json.dumps(task))


COMMANDS = {
    "task": ["task.json", "--count", "2", "-o", "a.png"],
    "result": ["out/net.zarr", "--axis", "y", "--at", "2,11", "-o", "b.png"],
    "flight": ["out/net.zarr", "--target", "sheet", "--bbox", "0:4,0:14,0:18", "-o", "c.gif"],
    "film": ["out/net.zarr/sheet", "--image", "data.zarr/raw", "--count", "3", "-o", "d.mp4"],
    "array": ["data.zarr/sheet", "--kind", "instances", "-o", "e.png"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_draws(name, result, monkeypatch, capsys):
    monkeypatch.chdir(result.folder)
    _write_task(result.folder)
    words = COMMANDS[name]
    assert main(["overlay", *words]) == 0, capsys.readouterr().err
    assert (result.folder / words[-1]).stat().st_size > 100
    assert f"wrote {words[-1]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out/net.zarr", "-o", "a.avi"], "is no .png, .mp4 or .gif; name it so"),
        (["out/net.zarr", "-o", "out/net.zarr/a.png"], "-o"),
        (["out/net.zarr", "--axis", "q"], "--axis: found"),
        (["out/net.zarr", "--at", "1,x"], "--at: found"),
        (["out/net.zarr", "--at", "10"], "10 is not between 0 and 9"),
        (["out/net.zarr", "--at", "1", "--count", "1"], "--count: is given, and so is --at"),
        (["out/net.zarr", "--bbox", "0:4,0:14,0:19"], "is not inside the volume"),
        (["out/net.zarr", "--kind", "binary"], "--kind: is not for a result"),
        (["data.zarr/sheet", "--kind", "cats"], "give one of binary"),
        (["data.zarr/sheet", "--kind", "instances", "--foreground", "> 1"], "--foreground"),
        (["data.zarr/sheet", "--kind", "binary", "--target", "x"], "--target: is not for an array"),
        (["gone.zarr"], "gone.zarr does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_written(
    words, said, result, monkeypatch, capsys
):
    monkeypatch.chdir(result.folder)
    before = set(result.folder.rglob("*"))
    assert main(["overlay", *words]) == 2
    assert said in capsys.readouterr().err
    assert set(result.folder.rglob("*")) == before


def test_a_value_that_the_kind_cannot_have_is_one_line(store, tmp_path, capsys):
    values = np.zeros((2, 4, 5), np.float32)
    values[1, 2, 3] = -3
    words = ["overlay", store("floats", values).location, "--kind", "binary"]
    assert main([*words, "-o", str(tmp_path / "a.png")]) == 1
    said = capsys.readouterr().err
    assert "floats: holds -3.0, which this kind cannot have; give another --kind" in said
    assert not (tmp_path / "a.png").exists()
    rule = ["--foreground", "> 0", "-o", str(tmp_path / "a.png")]
    assert main([*words, *rule]) == 0


def test_where_channels_are_can_be_said(tmp_path, capsys):
    vectors = np.zeros((3, 4, 5, 3), np.float32)  # z, y, x, and the components
    vectors[..., 0] = 1  # along x, which is light red
    place = str(tmp_path / "vectors.zarr")
    zarr.create_array(place, data=vectors, chunks=vectors.shape)
    words = ["overlay", place, "--kind", "normals", "-o", str(tmp_path / "a.png")]
    assert main(words) == 2
    assert '"channel_axis"' in capsys.readouterr().err
    assert main([*words, "--channel-axis", "middle"]) == 2
    assert '--channel-axis: found "middle"; give first or last' in capsys.readouterr().err
    assert main([*words, "--channel-axis", "last"]) == 0
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert (pixels[-20:-10, 10:200] == (255, 128, 128)).all()
