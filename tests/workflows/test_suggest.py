"""`suggest` end to end: on a task and on other volumes, stopped and continued, in both forms, and refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box
from vcmodels.inference import load_predictor
from vcmodels.reporting import Silent
from vcmodels.results import open_inputs
from vcmodels.suggestions.candidates import Ground
from vcmodels.suggestions.doubt import doubt_in_probabilities
from vcmodels.viewers.contents import scene_of_task
from vcmodels.viewers.scene import with_boxes
from vcmodels.workflows.suggest import SuggestOptions, suggest

SIZE = ["--size", "8,12,10"]


@pytest.fixture
def trained(sheet_task, task_file, tmp_path):
    """The file of a task that was trained for a step, and the task."""
    sheet_task["tr_params"] |= {"device": "cpu", "max_epoch": 1, "max_steps_per_epoch": 1}
    sheet_task["inference_params"] |= {"device": "cpu", "output_dir": str(tmp_path / "out")}
    path = task_file(sheet_task)
    assert main(["train", str(path)]) == 0
    return path, parse_task(sheet_task, "task")[0]


def boxes_of(path):
    return [Box.between(*zip(*row["bbox"], strict=True)) for row in json.loads(path.read_text())["boxes"]]  # fmt: skip


def test_boxes_have_no_label_and_the_doubt_of_what_is_predicted(trained, tmp_path, capsys) -> None:
    path, task = trained
    output = tmp_path / "boxes.json"
    options = ["--boxes", "3", "--noise", "0", "--candidates", "40", "-o", str(output)]
    assert main(["suggest", str(path), *SIZE, *options]) == 0
    assert "boxes.json" in capsys.readouterr().out
    rows, boxes = json.loads(output.read_text())["boxes"], boxes_of(output)
    (volume,) = open_volumes(task)
    ground = Ground(volume.name, volume.inputs, volume.region, volume)
    assert len(boxes) == 3
    assert not any(ground.is_labelled(box) for box in boxes)
    predictor = load_predictor(task.run_dir)
    params = predictor.params.changed(output_type="uint8")
    whole = predictor.predict(volume.inputs[0].read(volume.inputs[0].box), params=params)
    for row, box in zip(rows, boxes, strict=True):
        probabilities = whole["sheet"][None][(slice(None), *box.slices())]
        expected = doubt_in_probabilities("sheet", predictor.targets["sheet"], probabilities)
        # Its code is in 255 parts, and what is predicted for a box is what is predicted of all.
        assert row["doubt"] == pytest.approx(expected.by_class["sheet"], abs=0.01)
        with Image.open(output.parent / row["picture"]) as picture:
            assert min(picture.size) > 100
    assert [row["doubt"] for row in rows] == sorted((row["doubt"] for row in rows), reverse=True)
    assert not (task.run_dir / "suggestions").exists()

    scene = with_boxes(scene_of_task(task, None, Silent()), output)
    assert sorted(scene.boxes[-1].boxes) == sorted(boxes)


def test_of_another_volume_by_directions_and_as_an_array(trained, phantom, tmp_path) -> None:
    """Normals say no probability: views that are mirrored tell how far they lie apart."""
    path, _ = trained
    other = tmp_path / "other.zarr"
    shutil.copytree(phantom / "ct", other)
    options = [
        "--volume",
        str(other),
        "--volume",
        str(phantom / "ct"),
        "--target",
        "normals",
        "--boxes",
        "2",
        "--candidates",
        "4",
    ]
    assert main(["suggest", str(path), *SIZE, *options, "-o", str(tmp_path / "found.zarr")]) == 0
    found = [
        open_inputs(str(path))[0] for path in (tmp_path / "found.zarr").iterdir() if path.is_dir()
    ]
    counts = [np.bincount(one.read(one.box).ravel(), minlength=3)[1:] for one in found]
    assert sum(counts).tolist() == [8 * 12 * 10] * 2


def test_what_was_stopped_is_continued_with_the_same_choice(trained, tmp_path) -> None:
    _, task = trained
    options = SuggestOptions(count=2, size=(8, 12, 10), candidates=30)
    asked = iter(range(10**6))
    stops = suggest(task, options, tmp_path / "a.json", Silent(), lambda: next(asked) > 1)
    assert stops is None
    assert not (tmp_path / "a.json").exists()
    continued = suggest(task, options, tmp_path / "a.json", Silent(), lambda: False)
    again = suggest(task, options, tmp_path / "b.json", Silent(), lambda: False)
    assert continued == again


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["-o", "boxes.txt"], "boxes.json"),
        (["-o", "task.json/boxes.json"], "task.json is a file"),
        (["--target", "nothing"], "choose from sheet, normals"),
        (["--size", "4"], "three numbers"),
        (["--candidates", "3"], "give more"),
        (["--volume", "not/there.zarr"], "not/there.zarr"),
        (["--size", "24,96,56"], "smaller --size"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    trained, tmp_path, monkeypatch, capsys, options, named
) -> None:
    path, _ = trained
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["suggest", str(path), *options]) == 2
    assert named in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_untrained_task_is_refused(sheet_task, task_file, capsys) -> None:
    assert main(["suggest", str(task_file(sheet_task))]) == 2
    assert "train first" in capsys.readouterr().err
