"""Weights & Biases, against a module that takes what theirs takes, and against theirs if it is there."""

import sys
import threading
import types

import numpy as np
import pytest

from vcmodels import boards
from vcmodels.boards import require_wandb
from vcmodels.config import parse_task
from vcmodels.errors import RefusedError
from vcmodels.training.curves import open_board


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.metrics, self.ended = options, [], [], None

    def define_metric(self, name, *, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, data):
        self.logged.append(data)

    def finish(self, *, exit_code):
        self.ended = exit_code


class FakeSettings:
    def __init__(self, *, console, init_timeout, login_timeout):
        self.console, self.timeouts = console, (init_timeout, login_timeout)


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.runs = []

    def init(*, project, entity, mode, id, resume, name, dir, config, allow_val_change, settings):
        module.runs.append(FakeRun(dict(locals())))
        return module.runs[-1]

    module.init, module.Settings, module.Image = init, FakeSettings, lambda picture: picture
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def task(sheet_task):
    sheet_task["tr_params"]["wandb"] = {"project": "sheets", "mode": "offline"}
    return parse_task(sheet_task, "task.json")[0]


def test_it_gets_what_tensorboard_gets(wandb, task):
    board = open_board(task, 0, pytest.fail)
    board.scalars({"train/loss": 1.0}, 1)
    board.pictures({"images/sheet": np.full((4, 6, 3), 0.5, np.float32)}, 3)
    board.close()
    (run,) = wandb.runs
    assert run.metrics == [("*", "step")]
    assert run.logged[0] == {"train/loss": 1.0, "step": 1}
    picture = run.logged[1]["images/sheet"]
    assert (picture.dtype, picture.shape, picture[0, 0, 0]) == (np.uint8, (4, 6, 3), 128)
    assert run.ended == 0
    options = run.options
    assert (options["project"], options["entity"], options["mode"]) == ("sheets", None, "offline")
    assert options["dir"] == str(task.run_dir)
    assert options["config"] == task.to_json()
    assert options["settings"].console == "off"


def test_a_resumed_run_is_the_same_run_there(wandb, task, sheet_task, tmp_path):
    for _ in range(2):
        open_board(task, 0, pytest.fail).close(is_failed=True)
    sheet_task["tr_params"]["ckpt_out_base"] = str(tmp_path / "other")
    open_board(parse_task(sheet_task, "task.json")[0], 0, pytest.fail).close()
    first, second, other = (run.options["id"] for run in wandb.runs)
    assert first == second != other
    assert [run.options["resume"] for run in wandb.runs] == ["allow"] * 3
    assert [run.ended for run in wandb.runs] == [1, 1, 0]


@pytest.mark.parametrize("content", ["{", "[]", '{"id": 3}', "{}"])
def test_a_damaged_id_is_drawn_anew(wandb, task, content):
    task.run_dir.mkdir(parents=True)
    (task.run_dir / "wandb.json").write_text(content)
    for _ in range(2):
        open_board(task, 0, pytest.fail).close()
    assert len({run.options["id"] for run in wandb.runs}) == 1


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_whatever_it_raises_the_training_goes_on(wandb, task, monkeypatch, broken):
    def fail(*_arguments, **_options):
        raise RuntimeError("the network is down")

    monkeypatch.setattr(wandb if broken == "init" else FakeRun, broken, fail)
    said = []
    board = open_board(task, 0, said.append)
    board.scalars({"train/loss": 1.0}, 1)
    board.close()
    assert said == ["Weights & Biases is off from here on: the network is down"]


@pytest.mark.usefixtures("wandb")
def test_an_end_that_never_comes_is_not_waited_for(task, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(FakeRun, "finish", lambda _self, exit_code: release.wait(60))
    monkeypatch.setattr(boards, "PATIENCE", 0.05)
    said = []
    open_board(task, 0, said.append).close()
    release.set()
    assert len(said) == 1
    assert "`wandb sync` sends the rest" in said[0]


def test_where_it_is_not_installed_the_task_is_refused(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RefusedError, match=r"tr_params\.wandb: the package wandb is not installed"):
        require_wandb(task.tr_params.wandb)
    require_wandb(None)


def test_the_package_itself_takes_these_calls(task, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 1):
        board = open_board(task, step, pytest.fail)
        board.scalars({"train/loss": 1.0}, step + 1)
        board.pictures({"images/sheet": np.zeros((4, 6, 3), np.float32)}, step + 1)
        board.close()
    folders = list((task.run_dir / "wandb").glob("offline-run-*"))
    assert folders
    assert {folder.name.rpartition("-")[2] for folder in folders} == {boards.kept_id(task.run_dir)}
