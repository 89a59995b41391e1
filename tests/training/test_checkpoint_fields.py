"""Every field of a real checkpoint x values it cannot have: refused in one line, or harmless.

A file with a right checksum may still be made by hand, or by a program with a fault.
"""

import copy
import hashlib
import io
import json
import math
import re
import shutil
import zipfile

import pytest
import torch

from vcmodels.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.config.train_params import TrainingParams
from vcmodels.errors import CheckpointError, RefusedError
from vcmodels.models import ResidualUNet
from vcmodels.patches.resolve import resolve
from vcmodels.phantom import write_phantom
from vcmodels.reporting import Silent
from vcmodels.runs.run import TRAILER, Run
from vcmodels.training import train
from vcmodels.training.feed import Feed, weighted_targets
from vcmodels.training.run_folder import newest_checkpoint
from vcmodels.training.start import StartingPoint, compare_data, completion, idle_keys, start
from vcmodels.training.train import build_learner, datasets, summarise
from vcmodels.training.world import World

VALUES = {
    "None": None, "list": [1], "empty list": [], "text": "x", "negative": -1, "NaN": math.nan,
    "huge": 10**12, "fraction": 0.5, "dict": {}, "other dict": {"x": 1}, "yes": True,
    "tensor": torch.zeros(3), "view": torch.zeros(1).expand(10**9), "infinity": math.inf,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The task and the last checkpoint of a short run with all that a state can have."""
    folder = tmp_path_factory.mktemp("fields")
    write_phantom(str(folder / "s.zarr"), shape=(24, 72, 40), seed=0, chunks=(16, 16, 16))
    volume = {"input": f"{folder}/s.zarr/ct", "sheet": f"{folder}/s.zarr/sheet"}
    task = {
        "tr_params": {
            "model_name": "m", "patch_size": [16, 16, 16], "batch_size": 1, "tr_val_split": 0.6,
            "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1, "max_epoch": 1, "amp": "off",
            "num_dataloader_workers": 0, "ckpt_out_base": f"{folder}/run", "compile": False,
            "loss_balance": "uncertainty", "calibrate": True,
        },
        "model_config": {"f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {
            "volume_paths": [{**volume, "ref_label": "sheet"}], "min_bbox_percent": 0.1,
            "min_labeled_ratio": 0.01, "sampling": {"hard": 0.5},
            "targets": {"sheet": {
                "kind": "multiclass", "channels": 2, "ignore_label": 2,
                "loss": {"ce": {"class_weights": "counted"}},
            }},
        },
    }  # fmt: skip
    assert train(parse_task(task, "task")[0], reporter=Silent()) == 0
    task["tr_params"]["max_epoch"] = 2
    return task, folder / "run" / "m_last.pth"


@pytest.fixture(scope="module")
def use(trained):
    """Resumes from a file up to a step, and builds the network that would predict."""
    task, last = trained
    parsed = parse_task(task, "task")[0]
    resolved, device = resolve(parsed, Silent()), torch.device("cpu")
    learner = build_learner(resolved, device, World())
    document, first = resolved.task.to_json(), load_checkpoint(last)
    run = Run(parsed.run_dir, "m")
    summary = summarise(run, resolved, StartingPoint(first, None, False), Silent())
    feed = Feed(*datasets(resolved, summary), learner.settings, device, World())
    batch = next(iter(feed.train_batches(0, 1)))

    def act(path):
        checkpoint = newest_checkpoint(Run(path.parent, path.stem.removesuffix("_last")), parsed)
        build_network(checkpoint)
        origin = StartingPoint(checkpoint, None, False)
        completion(checkpoint, learner.settings, learner.targets)
        compare_data(origin, resolved.volumes, Silent(), accepts=False)
        counters = start(learner, origin, document, Silent())
        found = summarise(run, resolved, origin, Silent())
        learner.targets |= weighted_targets(learner.targets, found.class_counts, Silent())
        feed.restore(checkpoint.state, str(path))
        counters.add(learner.train_step(batch).read())
        assert all(bool(p.isfinite().all()) for p in learner.network.parameters())

    return act


def places(value, depth):
    """The paths to all that is in a state; of equal slots and lists the first."""
    yield ()
    items = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        items = list(enumerate(value[:1]))
    for key, inner in items[:12] if depth else ():
        yield from ((key, *rest) for rest in places(inner, depth - 1))


def put(state, path, value):
    """A copy of the state with another value at a path; without it where the value is ABSENT."""
    changed = copy.copy(state)
    *above, last = path
    inner = changed
    for key in above:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return changed


ABSENT = object()


def test_a_field_of_another_type_is_refused_or_harmless(trained, use, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    state = load_checkpoint(trained[1]).state
    path, seen = tmp_path / "m_last.pth", {"refused": 0, "harmless": 0}
    fields = [p for name in state if name != "task" for p in places({name: state[name]}, 4) if p]
    fields += [
        ("task",),
        ("task", "tr_params"),
        ("task", "model_config"),
        ("task", "dataset_config"),
    ]
    for number, field in enumerate(fields):
        # Not every pair: each field meets some values, each value many fields.
        values = list({"absent": ABSENT, **VALUES}.items())
        step = 30 if len(field) > 2 else 12 if len(field) > 1 else 5
        for name, value in values[number % step :: step]:
            save_checkpoint(path, put(state, field, value), keep_previous=False)
            if refusal := refused(use, path):
                assert len(refusal) < 500, (field, name)
                assert "\n" not in refusal
            seen["refused" if refusal else "harmless"] += 1
    assert min(seen.values()) > 20


def refused(use, path):
    """What is said against a file; "" where it is used."""
    try:
        use(path)
    except RefusedError as error:
        return str(error)
    return ""


def test_the_file_itself_is_fine(trained, use):
    use(trained[1])


def larger(state, **keys):
    task = json.loads(json.dumps(state["task"]))
    task["model_config"] |= keys
    return put(state, ("task",), task)


BOMBS = {
    "features": (lambda s: larger(s, f_maps=[4096, 4096]), "tensors do not fit the network"),
    "levels": (lambda s: larger(s, f_maps=None, num_levels=None), "do not fit the network"),
    "channels": (lambda s: put(s, ("in_channels",), 65000), "it has statistics of 1 channels"),
    "too many channels": (lambda s: put(s, ("in_channels",), 10**9), "in_channels is 1000000000"),
    "patch": (lambda s: put(s, ("patch_size",), [10**6] * 3), "patch_size.0 is 1000000"),
    "spacing": (lambda s: put(s, ("spacing",), [1e-300, 1.0, 1.0]), "."),
    "more tensors": (
        lambda s: put(s, ("ema",), s["ema"] | {f"x{n}": torch.zeros(1) for n in range(5000)}),
        "5000 of 28 tensors do not fit",
    ),
    "views": (
        lambda s: put(s, ("ema", "heads.sheet.0.weight"), torch.zeros(1).expand(2, 10**6, 1, 1, 1)),
        "ema holds a tensor [2, 1000000, 1, 1, 1], of which only a part is stored",
    ),
    "slots": (
        lambda s: put(s, ("optimizer", "state", 0, "exp_avg"), torch.zeros(1).expand(10**10)),
        "optimizer holds a tensor [10000000000], of which only a part is stored",
    ),
}


@pytest.mark.parametrize(("make", "found"), BOMBS.values(), ids=BOMBS)
def test_what_would_take_memory_is_refused_before(trained, tmp_path, monkeypatch, make, found):
    build = ResidualUNet.build

    def build_on_meta(self, *arguments):
        assert torch.empty(0).device.type == "meta"
        return build(self, *arguments)

    monkeypatch.setattr(ResidualUNet, "build", build_on_meta)
    path = tmp_path / "m.pth"
    save_checkpoint(path, make(load_checkpoint(trained[1]).state))
    with pytest.raises(CheckpointError, match=re.escape(found) if found != "." else "m.pth"):
        build_network(load_checkpoint(path))


def test_a_file_that_grows_when_it_is_read_is_refused(trained, tmp_path):
    buffer = io.BytesIO()
    torch.save({"schema": 1, "model": {"w": torch.zeros(10**7)}}, buffer)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(buffer) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    body = packed.getvalue()
    path = tmp_path / "m.pth"
    path.write_bytes(body + TRAILER + hashlib.sha256(body).digest())
    with pytest.raises(CheckpointError, match=r"its \d+ bytes stand for 4\d{7}"):
        load_checkpoint(path)


def test_many_names_for_few_bytes_are_refused(trained, tmp_path):
    state, one = load_checkpoint(trained[1]).state, torch.zeros(10**6)
    path = tmp_path / "m.pth"
    save_checkpoint(path, state | {"ema": {f"x{n}": one[:] for n in range(100)}})
    with pytest.raises(CheckpointError, match=r"its \d+ bytes stand for tensors of 40\d+"):
        load_checkpoint(path)


SETTINGS = ("task", "tr_params")
BATCH = (*SETTINGS, "batch_size")
OTHER = r"tr_params\.loss_balance: is uncertainty, .* was trained with fixed; change it back, or"
ODD_TASKS = {
    "no batch": (BATCH, ABSENT, r"tr_params\.batch_size was 2, is 1", None),
    "batch of text": (BATCH, "two", r'tr_params\.batch_size was "two", is 1', None),
    "no settings": (SETTINGS, ABSENT, r"tr_params\.batch_size was null, is 1", OTHER),
    "settings of null": (SETTINGS, None, r"tr_params\.amp was null", OTHER),
    "settings of a list": (SETTINGS, [1], r"tr_params\.amp was null", OTHER),
    "no task": (("task",), ABSENT, r"lacks task", "lacks task"),
}


@pytest.mark.parametrize("how", ["own", "given", "weights"])
@pytest.mark.parametrize(("field", "value", "own", "given"), ODD_TASKS.values(), ids=ODD_TASKS)
def test_a_task_that_a_checkpoint_cannot_have_is_refused_by_what_needs_it(
    trained, tmp_path, monkeypatch, capsys, how, field, value, own, given
):
    """The run that has it; another that goes on from it; one that takes its weights only."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    task, last = trained
    state = {**load_checkpoint(last).state}
    del state["validation_patches"]  # else what older files lack is not looked for in the task
    task, folder = copy.deepcopy(task), tmp_path / "run"
    path = tmp_path / "odd.pth"
    if how == "own":
        shutil.copytree(last.parent, folder)
        path = folder / last.name
    else:
        task["tr_params"] |= {"checkpoint_path": str(path), "load_weights_only": how == "weights"}
    save_checkpoint(path, put(state, field, value), keep_previous=False)
    task["tr_params"]["ckpt_out_base"] = str(folder)
    expected = {"own": own, "given": given, "weights": None}[how]
    document = tmp_path / "task.json"
    document.write_text(json.dumps(task))
    assert main(["check", str(document)]) == main(["train", str(document)]) == 2 * bool(expected)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (2 if expected else 0)
    assert all(re.search(expected, line) for line in errors)


@pytest.mark.parametrize("task", [{}, {"tr_params": None}, {"tr_params": {}}], ids=str)
def test_keys_of_a_start_are_idle_whatever_the_task_of_the_run_says(tmp_path, task):
    settings = TrainingParams(model_name="m", checkpoint_path="x.pth")
    own = Checkpoint(tmp_path / "m_last.pth", "", {"task": task})
    (line,) = idle_keys(settings, own)
    assert line.startswith("note: tr_params.checkpoint_path: has no effect: the run goes on from")
    assert list(idle_keys(settings, None)) == []
