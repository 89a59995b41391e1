"""No key of a task file without effect: each is flipped on a small run that trains and predicts.

A value that is accepted changes what the run learns, draws, writes or says; or it is told that the
key has no effect. `MANNER` lists the keys that promise the same result in another manner.
"""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.config.schema import task_schema
from vcmodels.errors import VcmodelsError
from vcmodels.evaluation import evaluate
from vcmodels.inference import RunOptions, run_inference
from vcmodels.phantom import write_phantom
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.workflows.whole_volumes import WholeVolumes

SHAPE = (24, 80, 56)
STORED = {"binary": "sheet", "multiclass": "sides", "regression": "density", "normals": "normals",
          "vector": "push"}  # fmt: skip
BLOCKS = {
    "binary": {"kind": "binary", "ignore_label": 2},
    "multiclass": {"kind": "multiclass", "channels": 3, "label_values": [0, 3, 7]},
    "regression": {"kind": "regression", "output_range": [0.0, 1.0]},
    "normals": {"kind": "normals"},
    "vector": {"kind": "vector", "output_range": [-9.0, 9.0]},
    "centres": {"kind": "centres", "derive": "cells", "max_extent": 8},
    "distance": {"kind": "distance", "derive": "cells", "clip": 4.0},
    "boundary": {"kind": "boundary", "derive": "cells"},
    "affinities": {"kind": "affinities", "derive": "cells"},
}


PLACES = {
    "TrainingParams": ("tr_params",),
    "ValidationParams": ("tr_params", "validation"),
    "InferenceParams": ("inference_params",),
    "DatasetConfig": ("dataset_config",),
    "ResidualUNet": ("model_config",),
    "VolumeEntry": ("dataset_config", "volume_paths", 0),
    "NormalizationConfig": ("dataset_config", "normalization"),
    "SamplingConfig": ("dataset_config", "sampling"),
    "EvaluationParams": ("evaluation",),
}
"""Where the blocks of the one task stand; targets and augmentations have a task each."""
SCENES = {"ValidationParams": "whole volumes", "EvaluationParams": "evaluation"}
"""Blocks whose keys mean something in another task only."""
SCENES_OF_KEYS = {"keep_unscored": "watched"}
"""The same of keys."""
MANNER = {
    "tr_params": {"num_dataloader_workers", "chunk_cache_gb", "device", "compile", "threads", "amp",
                  "max_minutes", "wandb"},
    "inference_params": {"num_dataloader_workers", "device", "compile", "threads", "memory", "amp",
                         "on_missing", "wandb", "output_format"},
    "dataset_config": {"use_cache", "index_dir", "cache_file", "on_missing"},
}  # fmt: skip
"""Keys by which the same result is reached in another manner, or not at all here: files are written by
the command, `tests/workflows/test_result_files.py`."""
FIXED = {"kind", "name", "input", "labels", "targets", "volume_paths", "channels"}
"""What makes another task of a task."""
ALREADY = {"normals": {"loss_only_on_label"}}
"""Keys that ask for what a kind does in any case: a vector of zeros is no label."""
VALUES: dict[str, list[Any]] = {
    "tr_params.model_name": ["other"],
    "tr_params.folds": [{"count": 2, "index": 0}],
    "tr_params.mixup": [{"alpha": 1.0}],
    "tr_params.split_from": ["absent"],
    "tr_params.distill": [{"teachers": ["absent.pth"]}],
    "tr_params.consistency": [{"ramp_steps": 0, "confidence": None}],
    "tr_params.best_metric": ["val/dice_sheet"],
    "tr_params.validation": [{"whole_volumes": True, "every": 1}],
    "tr_params.validation.whole_volumes": [False],
    "tr_params.validation.metrics": [{"sheet": ["iou"]}],
    "tr_params.early_stopping": [{"metric": "val/loss", "patience": 1, "min_delta": 1e8}],
    "tr_params.checkpoint_path": ["CHECKPOINT"],
    "tr_params.freeze": [["encoder"]],
    "tr_params.calibrate": [True],
    "tr_params.gradient_clip": [1e-3],
    "tr_params.ckpt_out_base": ["elsewhere"],
    "tr_params.tensorboard_log_dir": ["curves"],
    "tr_params.patch_jitter": [False],
    "inference_params.skip": [{"below": 90.0}, {"mask": "STORE/sheet"}],
    "inference_params.output_dir": ["elsewhere"],
    "inference_params.tensorboard_log_dir": ["curves"],
    "inference_params.ensemble": [{"by": "variance"}, {"weights": [2.0]}],
    "inference_params.tta": [{"flips": ["z"]}],
    "inference_params.input_path": ["STORE/other"],
    "inference_params.volumes": ["all"],
    "evaluation.volumes": ["all"],
    "evaluation.metrics": [{"sheet": ["dice"]}],
    "inference_params.output_targets": [["sheet"]],
    "inference_params.bbox": [[[0, 16], [0, 40], [8, 40]]],
    "inference_params.checkpoint_path": ["absent.pth"],
    "dataset_config.normalization": ["minmax"],
    "dataset_config.sampling": [{"foreground": 1.0, "label": "sheet", "classes": {"1": 1.0}}],
    "dataset_config.volume_paths.0.ref_label": [None, "normals"],
    "dataset_config.volume_paths.0.bbox": [[[0, 24], [0, 40], [8, 40]]],
    "dataset_config.volume_paths.0.pseudo": [{"sheet": 0.5}],
    "dataset_config.volume_paths.0.split": ["train"],
    "dataset_config.volume_paths.0.name": ["other"],
    "dataset_config.volume_paths.0.axes": [{"input": "zyx"}, "xyz"],
    "dataset_config.volume_paths.0.channels": [[0], [1]],
    "dataset_config.volume_paths.0.index": [{"t": 1}],
    "inference_params.axes": ["xyz"],
    "inference_params.channels": [[0], [1]],
    "inference_params.index": [{"t": 1}],
    "inference_params.spacing": [[3.0, 2.0, 1.0]],
    "dataset_config.volume_paths.0.spacing": [[3.0, 2.0, 1.0]],
    "dataset_config.targets.t.foreground": [">= 2"],
    "dataset_config.volume_paths.0.group": ["one"],
    "dataset_config.volume_paths.0.cohort": ["one"],
    "dataset_config.slice_axis": ["y"],
    "dataset_config.prepare": [{"spacing": [2.0, 1.0, 1.0]}],
    "dataset_config.region": [{"from": [{"mask": "STORE/sheet"}], "shape": "box"}],
    "dataset_config.stack": [{"axis": "z"}],
    "dataset_config.targets.t.loss": [{"LOSS": 0.5}],
    "dataset_config.targets.t.derive": ["cells", "absent"],
    "dataset_config.sampling.classes": [{"0": 1.0, "1": 5.0}],
    "dataset_config.sampling.label": ["normals", "absent"],
    "augment.0.planes": [[["y", "x"]]],
    "augment.0.axes": [["z"]],
    "augment.0.axis": ["y"],
    "augment.0.direction": ["y"],
    "dataset_config.targets.t.encoding": [{"scale": 0.5}],
    "model_config.f_maps": [[4, 6]],
    "dataset_config.targets.t.label_values": [[0, 3, 8], [7, 3, 0]],
    "dataset_config.targets.t.remap": [{"7": 3}],
    "dataset_config.targets.t.mirror_pairs": [{"x": [[3, 7]]}],
    "dataset_config.targets.t.offsets": [[[1, 0, 0], [0, 2, 0], [0, 0, 1]]],
    "dataset_config.targets.t.output_range": [[-5.0, 5.0]],
}
"""Of keys whose values a schema cannot guess."""
Seen = dict[str, Any]


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """A scroll with a stored label for every kind of target."""
    path = tmp_path_factory.mktemp("keys") / "scroll.zarr"
    write_phantom(str(path), shape=SHAPE, seed=0, chunks=(16, 16, 16))
    group = zarr.open_group(path)
    sheet, normals = group["sheet"][:], group["normals"][:]
    seeds = ndimage.label(np.random.default_rng(0).random(SHAPE) < 0.01)[0]
    far, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    cells = seeds[tuple(nearest)] * (far < 3.5)  # many touch
    for name, values in {
        "cells": cells.astype(np.uint16),
        "sides": np.where(sheet == 1, np.where(normals[2] > 32767, 7, 3), 0).astype(np.uint8),
        "density": ndimage.gaussian_filter(group["ct"][:].astype(np.float32), 1)
        / 255
        * (sheet > 0),
        "push": 3 * (normals / np.float32(32767.5) - 1) * (sheet > 0),
        "other": 255 - group["ct"][:],
    }.items():
        chunks = (*values.shape[:-3], 16, 16, 16)
        group.create_array(name, data=np.ascontiguousarray(values), chunks=chunks)
    return str(path)


def base(store: str, targets: dict[str, dict[str, Any]], **sections: Any) -> dict[str, Any]:
    """A task that trains two steps and predicts, in a fifth of a second."""
    stored = {
        name: STORED[block["kind"]] for name, block in targets.items() if "derive" not in block
    }
    derived = {"cells": "cells"} if len(stored) < len(targets) else {}
    labels = {name: f"{store}/{array}" for name, array in {**stored, **derived}.items()}
    return {
        "tr_params": {
            "model_name": "tiny", "patch_size": [16, 16, 16], "batch_size": 2, "max_epoch": 1,
            "max_steps_per_epoch": 2, "max_val_steps_per_epoch": 1, "num_dataloader_workers": 0,
            "ckpt_out_base": "run", "amp": "off", "compile": False, "warmup_steps": 1,
            "tr_val_split": 0.7,
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8], "num_levels": 2},
        "inference_params": {"input_path": f"{store}/ct", "output_dir": "out"},
        "dataset_config": {
            "min_bbox_percent": 0.1, "min_labeled_ratio": 0.01, "index_dir": "index",
            "volume_paths": [{"input": f"{store}/ct", **labels, "ref_label": next(iter(labels))}],
            "targets": targets,
        },
        **sections,
    }  # fmt: skip


def stages(document: dict[str, Any], folder: Path, checkpoint: str | None = None) -> Iterator[Seen]:
    """What is seen of a run but its task, when it is read, trained, and has predicted.

    That is weights, draws, curves, result, lines; or a refusal, which is the last. No stage takes
    back what the one before has shown: runs that differ once do so in the end.

    Args:
        document: the task.
        folder: an empty working directory.
        checkpoint: predict with this one, and train nothing.
    """
    reporter, notes = Silent(), []
    try:
        with chdir(folder):
            task, notes = parse_task(copy.deepcopy(document), "task.json")
        yield {"notes": notes}
        if checkpoint is None:
            with chdir(folder):
                train(task, reporter=reporter, whole_volumes=WholeVolumes)
            yield seen_in(folder, reporter, notes)
        with chdir(folder):
            chosen = None if task.inference_params.checkpoint_path else checkpoint
            run_inference(task, chosen, RunOptions(reporter=reporter))
            if "evaluation" in document:
                scores = evaluate(task, reporter=reporter)
                reporter.say(str([volume.boxes for volume in scores.report.volumes]))
        yield seen_in(folder, reporter, notes)
    except VcmodelsError as error:
        yield {"refused": str(error)}


def seen_in(folder: Path, reporter: Silent, notes: Any) -> Seen:
    seen: Seen = {"notes": notes, "lines": [plain(line, folder) for line in reporter.lines]}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        seen[name_of(file, folder)] = content(file)
    return seen


class Stages:
    """Stages that are looked at more than once; each is reached when one asks for it."""

    def __init__(self, coming: Iterator[Seen]) -> None:
        self._coming, self._known = coming, []

    def __iter__(self) -> Iterator[Seen]:
        for number in itertools.count():
            if number == len(self._known):
                for seen in itertools.islice(self._coming, 1):
                    assert "refused" not in seen, seen
                    self._known.append(seen)
            if number == len(self._known):
                return
            yield self._known[number]


def differs(one: Iterable[Seen], other: Iterable[Seen]) -> bool:
    """Whether runs differ at some stage: those that come after are not reached."""
    return any(a != b for a, b in itertools.zip_longest(one, other))


def plain(line: str, folder: Path) -> str:
    """A line without what differs between two runs of one task."""
    return re.sub(r"[\d.]+ (s|min|GiB memory free)\b", "", line.replace(str(folder), ""))


def name_of(file: Path, folder: Path) -> str:
    return "events" if "tfevents" in file.name else str(file.relative_to(folder))


OWN = ("task.json", "session.json", "environment.json")
"""Files that hold the task itself, or what the machine is."""


def content(file: Path) -> Any:
    if file.suffix == ".pth":
        state = load_checkpoint(file).state
        return digest({k: v for k, v in state.items() if k not in ("task", "versions")})
    if "tfevents" in file.name or file.name in OWN or "index" in file.parts:
        return None
    if file.name == "log.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [
            {k: v for k, v in line.items() if k.startswith(("val", "epoch/", "train/"))}
            for line in lines
        ]
    if file.name in (".zattrs", "zarr.json", ".zgroup"):
        return attributes(json.loads(file.read_text()))
    if file.name == "patches.json":
        return json.loads(file.read_text())["patches"]
    return file.read_bytes()


def attributes(document: Any) -> Any:
    """Metadata without the record of how they were made."""
    if isinstance(document, dict):
        return {k: attributes(v) for k, v in document.items() if k != "vcmodels"}
    return document


def digest(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, dict):
        return {str(key): digest(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [digest(inner) for inner in value]
    return value


def candidates(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that a JSON schema allows, a few of each type."""
    for choice in schema.get("anyOf", [schema]):
        yield from choice.get("enum", [])
        low = choice.get("minimum", choice.get("exclusiveMinimum", 0))
        match choice.get("type"):
            case "boolean":
                yield from (True, False)
            case "integer":
                yield from (low + 1, low + 2)
            case "number":
                high = choice.get("maximum", choice.get("exclusiveMaximum", low + 10))
                yield from (low + (high - low) * share for share in (0.03, 0.4))
            case "array" if "prefixItems" in choice:
                columns = [list(candidates(item)) for item in choice["prefixItems"]]
                yield from ([*row] for row in zip(*columns, strict=False))


@dataclass(frozen=True)
class Flip:
    """One key of one task, and where the task comes from."""

    scene: str
    path: tuple[str | int, ...]
    schema: dict[str, Any]

    def __str__(self) -> str:
        return ".".join(map(str, (self.scene, *self.path)))

    def document(self, store: str) -> dict[str, Any]:
        if self.scene in BLOCKS:
            augment = [
                {"name": "affine", "p": 1.0},
                {"name": "flip"},
            ]  # a label turns with the image
            document = base(store, {"t": copy.deepcopy(BLOCKS[self.scene])}, augment=augment)
            document["dataset_config"]["volume_paths"][0]["spacing"] = [2.0, 1.0, 0.5]
            document["inference_params"]["spacing"] = [2.0, 1.0, 0.5]
            return document
        document = base(store, {"sheet": BLOCKS["binary"], "normals": BLOCKS["normals"]})
        if self.scene == "whole volumes":
            document["tr_params"]["validation"] = {"whole_volumes": True, "every": 1}
        elif self.scene == "watched":
            document["tr_params"] |= {"max_epoch": 3, "keep_checkpoints": 0}
        elif self.scene == "evaluation":
            document["evaluation"] = {}
            document["inference_params"]["output_targets"] = ["sheet"]
        elif self.scene != "task":
            document["augment"] = [{"name": self.scene, "p": 1.0}]
            both = [f"{store}/ct", f"{store}/other"]
            document["dataset_config"]["volume_paths"][0]["input"] = both
            document["inference_params"]["input_path"] = both
        return document

    def prepare(self, folder: Path) -> None:
        """Bring a working directory to what the scene takes for granted."""
        if self.scene == "watched":
            (folder / "run" / "watch").mkdir(parents=True)
            (folder / "run" / "watch" / "scored.json").write_text('{"epochs": []}')

    def values(self, store: str, checkpoint: str) -> list[Any]:
        given = VALUES.get(".".join(map(str, self.path)), list(candidates(self.schema)))
        text = json.dumps(given).replace("STORE", store).replace("CHECKPOINT", checkpoint)
        loss = next(iter(LOSSES_OF.get(self.scene, ["mse"])))
        return json.loads(text.replace("LOSS", loss))


LOSSES_OF = {"binary": ["soft_dice"], "multiclass": ["soft_dice"], "boundary": ["soft_dice"],
             "affinities": ["soft_dice"], "regression": ["l1"], "vector": ["l1"],
             "normals": ["cosine"], "centres": ["l1"], "distance": ["l1"]}  # fmt: skip


def flips() -> Iterator[Flip]:
    """Every key of the schema, where it can be given."""
    for name, block in task_schema()["$defs"].items():
        keys = block.get("properties", {})
        if name in PLACES:
            places = [(SCENES.get(name, "task"), PLACES[name])]
        elif name.endswith("Target"):
            places = [(keys["kind"]["const"], ("dataset_config", "targets", "t"))]
        elif "p" in keys and "name" in keys and name != "Albumentation":
            places = [(keys["name"]["const"], ("augment", 0))]
        else:
            places = []
        for scene, place in places:
            skipped = (
                FIXED
                | ALREADY.get(scene, set())
                | MANNER.get(str(place[0]) if len(place) == 1 else "", set())
            )
            open_keys = {k: s for k, s in keys.items() if k not in skipped and "const" not in s}
            for key, inner in open_keys.items():
                yield Flip(SCENES_OF_KEYS.get(key, scene), (*place, key), inner)


def pytest_generate_tests(metafunc):
    """Every tenth key; all of them, and all of their values, with `--full`."""
    if "flip" in metafunc.fixturenames:
        step = 1 if metafunc.config.getoption("full") else 10
        metafunc.parametrize("flip", list(flips())[::step], ids=str)


@pytest.fixture(scope="session")
def seen_of(store, tmp_path_factory):
    """The stages of a scene as it is; each is run once."""
    known: dict[tuple[str, bool], Stages] = {}

    def look(flip: Flip, checkpoint: str | None) -> Stages:
        key = (flip.scene, checkpoint is None)
        if key not in known:
            folder = tmp_path_factory.mktemp("base")
            flip.prepare(folder)
            known[key] = Stages(stages(flip.document(store), folder, checkpoint))
        return known[key]

    return look


@pytest.fixture(scope="session")
def checkpoint(store, tmp_path_factory) -> str:
    """Of the one task, trained."""
    folder = tmp_path_factory.mktemp("trained")
    reading, training = itertools.islice(stages(Flip("task", (), {}).document(store), folder), 2)
    assert "refused" not in reading | training
    return str(folder / "run" / "tiny_best.pth")


def test_runs_differ_if_they_do_at_any_stage():
    """And a stage that nobody asks for is not reached."""
    first, second, third = {"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 3}
    assert not differs(Stages(iter([first, second])), [first, second])
    assert differs(Stages(iter([first, second])), [first, third])
    assert differs(Stages(iter([first, second])), [first])
    assert differs(Stages(iter([first])), [first, second])
    assert differs(Stages(iter([first])), [{"refused": "for a reason"}])
    coming = iter([first, second, third])
    known = Stages(coming)
    assert differs(known, [third])
    assert differs(known, [first, third])
    assert list(coming) == [third]


@pytest.mark.slow
def test_a_key_changes_something_or_is_refused_or_reported(
    flip, store, checkpoint, seen_of, tmp_path, pytestconfig
):
    used = checkpoint if flip.path[0] == "inference_params" else None
    before = seen_of(flip, used)
    values = flip.values(store, checkpoint)
    assert values, f"give VALUES of {flip}"
    outcomes: list[tuple[Any, bool]] = []
    for index, value in enumerate(values[:3]):
        document = flip.document(store)
        block: Any = document
        for part in flip.path[:-1]:
            block = block[part] if isinstance(part, int) else block.setdefault(part, {})
        if block.get(flip.path[-1], flip.schema.get("default")) == value:
            continue
        block[flip.path[-1]] = value
        (folder := tmp_path / str(index)).mkdir()
        flip.prepare(folder)
        outcomes.append((value, differs(before, stages(document, folder, used))))
        if outcomes[-1][1] and not pytestconfig.getoption("full"):
            break
    assert any(changed for _, changed in outcomes), f"{flip}: {outcomes} change nothing"
