"""200 names that would lead elsewhere, in full, in each of the fields that become file names."""

import copy
import itertools
import json
import os
from pathlib import Path

import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError

GOOD = json.loads((Path(__file__).parents[1] / "config" / "good.json").read_text())
PARTS = [
    "..",
    ".",
    "/",
    "\\",
    "~",
    "$HOME",
    "\0",
    "\n",
    " ",
    "a",
    "%2e%2e",
    "\u2025",
    "C:",
    "-",
    "\u202e",
]
NAMES = [one + other for one, other in itertools.product(PARTS, PARTS)][:200]


def with_model(task, name):
    task["tr_params"]["model_name"] = name


def with_target(task, name):
    config = task["dataset_config"]
    config["targets"] = {name: {"kind": "binary"}}
    config["volume_paths"] = [{"input": "data/ct", name: "data/sheet"}]
    task["tr_params"]["ignore_label"] = None
    task["inference_params"]["output_targets"] = "all"


def with_volume(task, name):
    task["dataset_config"]["volume_paths"][0]["name"] = name


def with_source(task, name):
    with_target(task, "t")
    task["dataset_config"]["targets"]["t"] = {"kind": "boundary", "derive": name}
    task["tr_params"]["dilate_label"] = task["tr_params"]["label_smoothing"] = 0
    task["dataset_config"]["volume_paths"] = [{"input": "data/ct", name: "data/sheet"}]


FIELDS = {"model": with_model, "target": with_target, "volume": with_volume, "source": with_source}


@pytest.mark.parametrize("field", FIELDS)
def test_a_name_that_is_accepted_is_the_name_of_a_file_in_its_folder(field, tmp_path, count):
    accepted = 0
    for name in ["good", *NAMES[:: 200 // count(200)]]:
        task = copy.deepcopy(GOOD)
        FIELDS[field](task, name)
        try:
            parse_task(task, "task.json")
        except TaskError:
            continue
        accepted += 1
        inside = os.path.normpath(tmp_path / name)
        assert Path(inside).parent == tmp_path, name
        assert name.isprintable(), name
        (tmp_path / name).touch()
        assert (tmp_path / name).samefile(inside)
    assert 0 < accepted < count(200) / 4
