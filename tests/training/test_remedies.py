"""What a message says to do is done here, and must work."""

import copy
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.reporting import Silent
from vcmodels.training import loop, train
from vcmodels.training.learner import Learner

SIZES = {"max_epoch": 2, "max_steps_per_epoch": 1, "threads": 1, "keep_checkpoints": 5}


class Work:
    """A training in a folder, and what the command line says of it."""

    def __init__(self, task, folder, task_file, capsys):
        self.task, self.folder, self.task_file, self.capsys = task, folder, task_file, capsys
        task["tr_params"] |= {"ckpt_out_base": str(folder), **SIZES}

    def call(self, *words, **settings):
        """The exit code of a command on the task, with some keys of `tr_params` changed."""
        self.task["tr_params"] |= settings
        code = main([words[0], str(self.task_file(self.task)), *words[1:]])
        self.said = "".join(self.capsys.readouterr())
        return code

    def path(self, end):
        return self.folder / f"tiny_{end}.pth"

    def error(self):
        """The one line of the error."""
        (line,) = [one for one in self.said.splitlines() if one.startswith("error: ")]
        assert len(line) < 480
        return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory, phantom, request):
    """A finished run, to be copied."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def work(sheet_task, tmp_path, task_file, capsys, trained):
    made = Work(sheet_task, tmp_path / "run", task_file, capsys)
    if not trained.exists():
        copy = json.loads(json.dumps(sheet_task))
        copy["tr_params"]["ckpt_out_base"] = str(trained)
        assert train(parse_task(copy, "task.json")[0], reporter=Silent()) == 0
    shutil.copytree(trained, made.folder)
    (made.folder / ".lock").unlink(missing_ok=True)
    return made


def lose_last(work):
    work.path("last").unlink()


def lose_all_but_the_best(work):
    for path in work.folder.glob("tiny_*.pth"):
        if path != work.path("best"):
            path.unlink()


def damage_last(work):
    work.path("last").write_bytes(work.path("last").read_bytes()[:-40] + bytes(40))


def damage_split(work):
    (work.folder / "splits.json").write_text("{")


def copy_named(work):
    """`copy A to B`, `copy A over it`."""
    (name,) = re.findall(r"copy (\S+) (?:to|over)", work.error())
    shutil.copy(work.folder / name, work.path("last"))


def delete_named(work):
    (name,) = re.findall(r"or delete (\S+)", work.error())
    Path(name).unlink()


def change_back(work):
    """`change it back`: the value that the message gives."""
    key, before = re.search(r"tr_params\.(\w+) was (\S+), is", work.error()).groups()
    work.task["tr_params"][key] = json.loads(before)


def elsewhere(work):
    work.task["tr_params"]["ckpt_out_base"] = str(work.folder.parent / "other")


def model_renamed(work):
    work.task["tr_params"]["model_name"] = "other"


def rate_changed(work):
    work.task["tr_params"]["initial_lr"] = 0.5


RESTART = "--restart"
NAMED = {
    copy_named: "copy ", RESTART: "--restart", elsewhere: "another ckpt_out_base",
    change_back: "change it back", delete_named: "or delete",
}  # fmt: skip
REMEDIES = {
    lose_last: [copy_named, RESTART],
    lose_all_but_the_best: [copy_named, RESTART],
    damage_last: [copy_named, RESTART],
    damage_split: [delete_named, elsewhere, RESTART],
    model_renamed: [elsewhere, RESTART],
    rate_changed: [change_back, elsewhere, RESTART],
}


@pytest.mark.parametrize(
    ("fault", "remedy"), [(fault, remedy) for fault in REMEDIES for remedy in REMEDIES[fault]]
)
def test_the_remedy_of_a_refusal_works(work, fault, remedy):
    """Each of those that the line names; the run then has all its epochs, and no other is lost."""
    fault(work)
    best = work.path("best").read_bytes()
    assert work.call("train", max_epoch=3) == 2, work.said
    assert work.path("best").read_bytes() == best
    assert {r for r in NAMED if NAMED[r] in work.error()} == set(REMEDIES[fault])
    words = [remedy] if isinstance(remedy, str) else []
    if not words:
        remedy(work)
    assert work.call("train", *words) == 0, work.said
    settings = work.task["tr_params"]
    last = Path(settings["ckpt_out_base"], f"{settings['model_name']}_last.pth")
    assert load_checkpoint(last).state["epoch"] == 3
    kept = [path.read_bytes() for path in work.folder.rglob("tiny_best*.pth")]
    assert best in kept


def never_finite(monkeypatch):
    original = Learner.run

    def run(self, network, batch):
        found = original(self, network, batch)
        return {name: tuple(torch.nan * one for one in levels) for name, levels in found.items()}

    monkeypatch.setattr(Learner, "run", run)


def no_label(work):
    """No voxel of a target counts, and the patches are found without it."""
    work.task["dataset_config"]["volume_paths"][0].pop("ref_label", None)
    work.task["dataset_config"]["targets"]["sheet"]["ignore_label"] = [0, 1, 2]


def no_memory(monkeypatch):
    def train_step(self, batches, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "train_step", train_step)


def test_a_rate_that_was_too_high_is_lowered_as_the_error_says(work, monkeypatch):
    with monkeypatch.context() as context:
        never_finite(context)
        assert work.call("train", max_steps_per_epoch=12, ckpt_out_base=f"{work.folder}2") == 1
    assert "10 steps in a row; " in work.error()
    assert "lower initial_lr" in work.error()
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    assert work.call("train", "--restart", initial_lr=1e-4, max_steps_per_epoch=1) == 0


def test_a_target_without_labels_is_changed_as_the_error_says(work):
    no_label(work)
    assert work.call("train", ckpt_out_base=f"{work.folder}2") == 2
    assert "ignore_label" in work.error()
    assert not Path(f"{work.folder}2").exists()
    work.task["dataset_config"]["targets"]["sheet"]["ignore_label"] = 2
    assert work.call("train", ckpt_out_base=f"{work.folder}2") == 0


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_smaller_patch_is_taken_as_the_error_says(work, monkeypatch, is_saved):
    """With batches of one patch nothing else can be smaller; a run that is there is of its size."""
    folder = f"{work.folder}2"
    sizes = {"batch_size": 1, "ckpt_out_base": folder}
    if is_saved:
        assert work.call("train", **sizes, max_epoch=1) == 0
    with monkeypatch.context() as context:
        no_memory(context)
        assert work.call("train", **sizes, max_epoch=2) == 1
    assert work.error().endswith(
        "make patch_size or f_maps smaller" + (", in another ckpt_out_base" if is_saved else "")
    )
    if is_saved:
        assert work.call("train", patch_size=[16, 16, 8]) == 2
        work.task["tr_params"]["ckpt_out_base"] = f"{work.folder}3"
    assert work.call("train", patch_size=[16, 16, 8]) == 0


def test_inference_names_a_checkpoint_that_it_takes(work, phantom, tmp_path):
    """Before the first epoch has ended there is no best one, and after it was deleted."""
    infer = ["--set", f"inference_params.input_path={phantom}/ct"]
    infer += ["--set", f"inference_params.output_dir={tmp_path / 'out'}"]
    work.path("best").unlink()
    assert work.call("infer", *infer) == 2
    assert "holds no tiny_best.pth, which was there; predict with " in work.error()
    (work.folder / "log.jsonl").unlink()
    assert work.call("infer", *infer) == 2
    assert "its first epoch has not ended; train on with the same command, or " in work.error()
    (named,) = re.findall(r"predict with (\S+) as checkpoint_path", work.error())
    assert main(["infer", str(work.folder), "--input", f"{phantom}/ct", "-o", str(tmp_path / "o")])
    assert named in work.capsys.readouterr().err
    assert work.call("infer", *infer, "--set", f"inference_params.checkpoint_path={named}") == 0


def test_a_best_checkpoint_that_is_gone_is_made_again(work):
    work.path("best").unlink()
    assert work.call("train", max_epoch=3) == 0
    assert "tiny_best.pth is gone: the best from here on is kept" in work.said
    assert load_checkpoint(work.path("best")).state["epoch"] == 3


def contents(folder):
    """The files of a run, besides the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def no_patch(work, monkeypatch):
    work.task["dataset_config"]["min_labeled_ratio"] = 1.0
    return "no patch qualifies"


def no_value(work, monkeypatch):
    """Refused when the patches are found and divided."""

    def refuse(*_, **__):
        assert (work.folder / "splits.json").exists()
        raise TaskError("dataset_config.targets.sheet", "no value", "correct it")

    monkeypatch.setattr(
        importlib.import_module("vcmodels.training.train"), "refuse_valueless", refuse
    )
    return "no value; correct it"


@pytest.mark.parametrize("fault", [no_patch, no_value])
def test_a_restart_that_is_refused_leaves_the_earlier_run(work, monkeypatch, fault):
    (work.folder / "mine.txt").write_text("a file of the user")
    (work.folder / "patches.json").unlink()  # and none is left that the refused one has made
    task, before = copy.deepcopy(work.task), contents(work.folder)
    with monkeypatch.context() as context:
        found = fault(work, context)
        assert work.call("train", "--restart", max_epoch=3) == 2
    assert found in work.error()
    assert contents(work.folder) == before
    assert not list(work.folder.glob("before-*"))
    work.task.update(task)
    assert work.call("train", max_epoch=3) == 0
    assert load_checkpoint(work.path("last")).state["epoch"] == 3
    assert work.call("train", "--restart", max_epoch=1) == 0
    (aside,) = work.folder.glob("before-*")
    assert load_checkpoint(aside / "tiny_last.pth").state["epoch"] == 3
    assert load_checkpoint(work.path("last")).state["epoch"] == 1
    assert (work.folder / "mine.txt").exists()
