"""Rounds of self-distillation: what is kept, where it is from, and that a kill loses nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.config import load_task, parse_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import OutputError, RefusedError, TaskError
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Silent
from vcmodels.samples.training_set import plain_set, training_set
from vcmodels.training import train
from vcmodels.training.learner import Learner
from vcmodels.workflows import distill as workflow
from vcmodels.workflows.distill import Wish, distill, rounds

PLAIN = [[0, 24], [60, 96], [0, 56]]
CONFIDENCE = 0.51


@pytest.fixture
def document(sheet_task, phantom):
    """A task of two volumes of one scan, one of them without labels."""
    config = sheet_task["dataset_config"]
    (volume,) = config["volume_paths"]
    volume |= {"bbox": [[0, 24], [0, 60], [0, 56]], "name": "known"}
    del volume["normals"]
    config["targets"] = {
        "sheet": {"kind": "binary", "ignore_label": 2},
        "depth": {"kind": "distance", "clip": 20.0, "derive": "sheet"},
    }
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 2}
    return sheet_task


def with_plain(document, phantom):
    plain = {"input": str(phantom / "ct"), "bbox": PLAIN, "name": "plain"}
    document["dataset_config"]["volume_paths"].append(plain)
    return document


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def teacher(document, kept):
    if not (kept / "run").exists():
        copy = json.loads(json.dumps(document))
        copy["tr_params"]["ckpt_out_base"] = str(kept / "run")
        assert train(parse_task(copy, "task.json")[0], reporter=Silent()) == 0
    return kept / "run" / "tiny_best.pth"


@pytest.fixture
def wish(document, phantom, teacher, task_file, tmp_path):
    place = task_file(with_plain(document, phantom))
    return Wish(str(place), (str(teacher),), tmp_path / "out", 2, CONFIDENCE, 0.5)


@pytest.fixture
def whole(wish, kept):
    """The same, done without a stop, once for all tests here."""
    found = replace(wish, folder=kept / "whole")
    if not found.folder.exists():
        assert distill(found, Silent()) == 0
    return found


class Killed(BaseException):
    """As by the system: nothing catches it."""


def weights_of(folder, number):
    return load_checkpoint(folder / f"round_{number}" / "run" / "tiny_last.pth").state["model"]


def test_a_kill_at_any_step_loses_nothing(wish, whole, monkeypatch):
    def killing(module, name, is_due):
        """The function dies when it is called and something is due, and is as it was else."""
        original = getattr(module, name)

        def dying(*given, **options):
            if is_due(*given):
                raise Killed
            return original(*given, **options)

        return module, name, dying

    first, second = wish.folder / "round_1", wish.folder / "round_2"
    points = [
        killing(workflow, "predict_request", lambda *_: True),
        killing(workflow, "kept_share", lambda *_: True),
        killing(workflow, "_write", lambda place, _: place == first / "pseudo.json"),
        killing(workflow, "_write", lambda place, _: place == first / "task.json"),
        killing(Learner, "train_step", lambda learner, _: learner.step == 1),
        killing(workflow, "kept_share", lambda *_: True),
        killing(workflow, "_write", lambda place, _: place == second / "task.json"),
        killing(Learner, "train_step", lambda learner, _: learner.step == 0),
    ]
    for module, name, dying in points:
        with monkeypatch.context() as context:
            context.setattr(module, name, dying)
            with pytest.raises(Killed):
                distill(wish, Silent())
    assert distill(wish, Silent()) == 0
    for number in (1, 2):
        wanted = weights_of(whole.folder, number)
        for name, value in weights_of(wish.folder, number).items():
            assert torch.equal(value, wanted[name]), (number, name)
    reporter = Silent()
    assert distill(wish, reporter) == 0
    assert reporter.lines[-2:] == ["round 1: complete", "round 2: complete"]


def test_a_round_learns_what_the_teacher_was_sure_of_and_says_so(whole, teacher):
    one, two = rounds(whole.folder)
    (label,) = one.labels  # the distance is derived from it
    sha256 = load_checkpoint(teacher).sha256
    assert label.checkpoints == [{"path": str(teacher), "sha256": sha256}]
    assert (label.volume, label.target, label.confidence) == ("plain", "sheet", CONFIDENCE)
    stored = zarr.open_group(label.path, mode="r")
    part = tuple(slice(*pair) for pair in PLAIN)
    probability = np.asarray(stored["0"][part], np.float64)
    sure = np.maximum(probability, 1 - probability) >= CONFIDENCE
    assert label.kept == pytest.approx(sure.mean(), abs=1e-3)
    assert label.kept > 0
    best = load_checkpoint(whole.folder / "round_1" / "run" / "tiny_best.pth")
    assert two.labels[0].checkpoints[0]["sha256"] == best.sha256
    task = load_task(one.folder / "task.json").task
    assert task.tr_params.distill is None
    assert task.tr_params.checkpoint_path == str(teacher)
    assert load_task(two.folder / "task.json").task.tr_params.checkpoint_path == str(best.path)
    entry = task.dataset_config.volume_paths[1]
    assert entry.pseudo_label("sheet").weight == 0.5
    assert entry.pseudo_label("sheet").min_confidence == CONFIDENCE
    assert not (zarr.open_group(label.path, mode="r")["0"][0:24, 0:40, :] != 0).any()


def test_no_voxel_of_a_pseudo_label_validates_unless_it_is_asked_for(whole):
    document = json.loads((whole.folder / "round_1" / "task.json").read_text())
    for is_asked in (False, True):
        config = document["dataset_config"]
        config["pseudo_in_val"] = is_asked
        if is_asked:
            config["volume_paths"][1]["split"] = "val"
        task = parse_task(document, "task.json")[0]
        resolved = resolve(task, Silent())
        plain = next(v for v in resolved.volumes if v.name == "plain")
        assert plain.split == ("val" if is_asked else "train")
        dataset = training_set(resolved, Silent())
        rows = np.array([[1, 0, 64, 8]])
        regions = [None, plain.region]
        seen = plain_set(resolved, rows, regions, dataset._normalization)[0]
        assert bool(seen["valid"]["sheet"].any()) == is_asked
        assert seen["weight"]["sheet"] == (0.5 if is_asked else 0.0)
    config["pseudo_in_val"] = False
    with pytest.raises(TaskError, match='or true labels, or "pseudo_in_val": true'):
        parse_task(document, "task.json")


def test_the_command_teaches_while_it_trains_by_default(
    document, phantom, teacher, task_file, tmp_path, capsys
):
    place = task_file(document)
    words = ["distill", str(place), "--teacher", str(teacher.parent), "-o", str(tmp_path / "out")]
    words += ["--confidence", "0.6", "--weight", "2"]
    assert main(words) == 0
    state = load_checkpoint(tmp_path / "out" / "run" / "tiny_best.pth").state
    assert state["task"]["tr_params"]["distill"] == {
        "teachers": [str(teacher)],
        "weight": 2.0,
        "confidence": 0.6,
    }
    assert main(words) == 0
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(OutputError, match="a distillation of another task"):
        distill(Wish(str(place), (str(teacher),), tmp_path / "out"), Silent())


def test_volumes_without_labels_may_be_named_by_the_command(
    document, phantom, teacher, task_file, tmp_path, capsys
):
    document["tr_params"]["split_from"] = None
    document["dataset_config"]["volume_paths"][0]["split"] = "train"
    document["tr_params"]["tr_val_split"] = 1
    place = task_file(document)
    words = ["distill", str(place), "--teacher", str(teacher), "-o", str(tmp_path / "out")]
    words += ["--rounds", "1", "--unlabelled", str(phantom / "ct")]
    assert main(words) == 0
    assert "sheet 100 %" in capsys.readouterr().out
    task = load_task(tmp_path / "out" / "round_1" / "task.json").task
    assert [bool(volume.pseudo) for volume in open_volumes(task)] == [False, True]


@pytest.mark.parametrize(
    ("rounds_", "change", "error", "match"),
    [
        (1, "all labelled", TaskError, "no volume without labels, of which"),
        (1, "derived", TaskError, "each is derived from a label that no network"),
        (1, "folds", TaskError, "a student is one run"),
        (1, "occupied", OutputError, "holds other files"),
        (0, "no such teacher", RefusedError, "nowhere.pth"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_anything_is_written(
    document, phantom, teacher, task_file, tmp_path, rounds_, change, error, match
):
    folder = tmp_path / "out"
    if change != "all labelled":
        with_plain(document, phantom)
    if change == "derived":
        del document["dataset_config"]["targets"]["sheet"]
    if change == "folds":
        document["tr_params"]["folds"] = {"count": 2}
    if change == "occupied":
        folder.mkdir()
        (folder / "mine.txt").write_text("x")
    named = tmp_path / "nowhere.pth" if change == "no such teacher" else teacher
    with pytest.raises(error, match=match):
        distill(Wish(str(task_file(document)), (str(named),), folder, rounds_), Silent())
    left = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert left == ({"mine.txt"} if change == "occupied" else set())
