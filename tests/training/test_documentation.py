"""`docs/training.md` against what a training does."""

import re
from pathlib import Path
from typing import get_args

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.reporting import Silent
from vcmodels.runs.survey import RunState
from vcmodels.training import train
from vcmodels.training.run_folder import MAY_CHANGE
from vcmodels.workflows.whole_volumes import WholeVolumes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def rows(section):
    """The cells of each row of the tables of a section, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", SECTIONS[section], re.M)
    cells = [line.split(" | ") for line in lines]
    heads = [n - 1 for n, row in enumerate(cells) if set(row[0]) == {"-"}]
    return [row for n, row in enumerate(cells) if n not in heads and n - 1 not in heads]


def codes(text):
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, graphs):
    """Of a short training that writes all that may be written on a CPU."""
    from vcmodels.phantom import write_phantom

    folder = tmp_path_factory.mktemp("documented")
    write_phantom(str(folder / "scroll.zarr"), shape=(24, 96, 56), seed=0, chunks=(16, 16, 16))
    paths = {name: str(folder / "scroll.zarr" / name) for name in ("ct", "sheet", "normals")}
    volume = {"input": paths.pop("ct"), **paths, "ref_label": "sheet"}
    task = {
        "tr_params": {
            "model_name": "m", "patch_size": [16, 16, 16], "batch_size": 2, "tr_val_split": 0.7,
            "max_steps_per_epoch": 2, "max_val_steps_per_epoch": 1, "max_epoch": 2,
            "num_dataloader_workers": 0, "ckpt_out_base": str(folder / "run"), "amp": "off",
            "compile": False, "device": "cpu", "loss_balance": "uncertainty",
            "validation": {"whole_volumes": True, "every": 2}, "calibrate": True,
        },
        "model_config": {"f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {
            "min_bbox_percent": 0.1, "min_labeled_ratio": 0.01, "volume_paths": [volume],
            "targets": {"sheet": {"ignore_label": 2}, "normals": {"kind": "normals"}},
        },
    }  # fmt: skip
    parsed = parse_task(task, "task.json")[0]
    assert train(parsed, reporter=Silent(), whole_volumes=WholeVolumes) == 0
    return folder / "run"


def test_every_curve_is_explained_and_there_is_no_other(run_folder):
    events = EventAccumulator(str(run_folder / "tensorboard" / "m"))
    events.Reload()
    written = set()
    for tag in events.Tags()["scalars"]:
        name = re.sub(r"_(sheet|normals)$", "_<target>", tag)
        is_metric = name.startswith("val/") and name.endswith("_<target>") and "loss" not in name
        is_figure = name.startswith("val_volumes/") and name.endswith("_<target>")
        name = "val_volumes/<figure>_<target>" if is_figure else name
        written.add("val/<metric>_<target>" if is_metric else name)
    explained = {codes(row[0])[0] for row in rows("Curves")}
    assert explained - written == {"speed/memory_gib"}  # on CUDA alone
    assert written - explained == set()
    assert set(events.Tags()["images"]) == {"images/sheet", "images/normals"}
    assert set(events.Tags()["tensors"]) == {"task/text_summary", "custom_scalars__config__"}
    assert events.Tags()["graph"]


def test_every_file_of_a_run_folder_is_explained(run_folder):
    explained = [name for row in rows("The run folder") for name in codes(row[0])]
    patterns = [
        re.escape(name.rstrip("/"))
        .replace("<model_name>", "m").replace("<epoch>", r"\d+").replace("<time>", ".*")
        for name in explained
    ]  # fmt: skip
    files = {path.name for path in run_folder.iterdir() if path.name != ".lock"}
    assert files == {name for name in files if any(re.fullmatch(p, name) for p in patterns)}
    unseen = {
        n
        for n, p in zip(explained, patterns, strict=True)
        if not any(map(re.compile(p).fullmatch, files))
    }
    later = {"evaluation/", "validation/", "watch/", "<model_name>_best_<k>.pth"}
    assert unseen == {"before-<time>/", "held_out/", "wandb.json", "wandb/", *later}


def test_every_key_of_a_checkpoint_is_explained_and_there_is_no_other(run_folder):
    explained = [key for row in rows("What a checkpoint holds") for key in codes(row[0])]
    state = load_checkpoint(run_folder / "m_last.pth").state
    assert sorted(explained) == sorted([*state, "hard", "tuned", "untuned_sha256", "stages"])


def test_the_keys_that_may_change_are_listed():
    listed = set()
    for row in rows("Stop, continue, start anew"):
        section = codes(row[0])
        if section and row[1] == "all":
            listed.add(section[0])
        elif section:
            listed |= {f"{section[0]}.{key}" for key in codes(row[1])}
    assert listed == set(MAY_CHANGE) - {"overrides"}  # which say again what --set changed


def test_every_state_of_a_run_is_explained():
    assert [row[0] for row in rows("Many runs")] == list(get_args(RunState))


def test_every_message_is_one_that_there_is():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "vcmodels").rglob("*.py"))
    messages = [codes(row[0])[0] for row in rows("When something goes wrong")]
    assert len(messages) > 5
    assert [message for message in messages if message not in source] == []


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
