"""Accuracy on volumes that were held out, after a given time, next to nnU-Net's after the same.

    VCMODELS_DATA=<folder> python benchmarks/accuracy.py flyem|hippocampus
        [--minutes 20 60] [--peers-python PYTHON] [--set KEY=VALUE ...]

Training is the user's own command on `tasks/`. Without --minutes it lasts as long as the task says;
with it, as long as that, and of several times each continues the run of the one before: the rate is
constant, so a longer run begins as a shorter one. With --peers-python, an interpreter that has
nnunetv2, its trainer then gets the same cases for each time, from the start: see
`nnunet_hippocampus.py`. What is done is kept under --work and not repeated, and each time prints one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held_out import (
    ROOT,
    case_arrays,
    case_scores,
    hippocampus_cases,
    predict_and_score,
    train,
    write_json,
)

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import load_task
from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box

TASKS = {
    "flyem": ROOT / "tasks" / "flyem_membrane.json",
    "hippocampus": ROOT / "tasks" / "hippocampus.json",
}

ENDLESS = 1_000_000
MARGIN = 0.15
"""Minutes of a command outside of what `max_minutes` counts: imports, the step it is in, saving."""


def main() -> None:
    """Run what is missing, print what there is."""
    parser = argparse.ArgumentParser(description="Accuracy at equal time.")
    parser.add_argument("name", choices=list(TASKS))
    parser.add_argument("--minutes", type=float, nargs="+", default=[None])
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    given = parser.parse_args()
    if given.peers_python and (given.name != "hippocampus" or None in given.minutes):
        parser.error("--peers-python is for hippocampus with --minutes")
    work = given.work.resolve() / given.name
    done: dict[str, Any] = {"training_minutes": 0.0, "steps": 0}
    for minutes in sorted(given.minutes):
        done = ours(given.name, minutes, done, given.set, work)
        show(done)
        if given.peers_python:
            show(nnunet(given.peers_python, minutes, work / "nnunet"))


def show(result: dict[str, Any]) -> None:
    """One line for programs."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def ours(
    name: str, minutes: float | None, before: dict[str, Any], settings: list[str], work: Path
) -> dict[str, Any]:
    """Train from what the result `before` has to `minutes`, predict, score."""
    folder = work / ("whole" if minutes is None else "timed")
    done = work / ("whole.json" if minutes is None else f"{minutes:g}.json")
    if done.exists():
        return json.loads(done.read_text())
    spent, last = before["training_minutes"], folder / f"{name}_last.pth"
    if (steps_in(last) if last.exists() else 0) != before["steps"]:
        raise SystemExit(f"{folder} holds steps that were not timed; remove {work}")
    overrides = [
        *settings,
        *([] if minutes is None else timed(minutes - spent)),
        f"tr_params.ckpt_out_base={folder}",
        f"inference_params.checkpoint_path={last}",
        f"inference_params.output_dir={folder}/predictions",
    ]
    seconds = train(TASKS[name], overrides)
    score = {"flyem": flyem_scores, "hippocampus": hippocampus_scores}[name]
    result = {
        "program": "vcmodels",
        "minutes": minutes,
        "training_minutes": spent + seconds / 60,
        "steps": steps_in(last),
        **score(TASKS[name], overrides),
    }
    write_json(done, result)
    return result


def steps_in(checkpoint: Path) -> int:
    """How many steps it has seen."""
    return load_checkpoint(checkpoint).state["step"]


def timed(minutes: float) -> list[str]:
    """What ends the command after `minutes`, with its start and its last checkpoint."""
    return [f"tr_params.max_epoch={ENDLESS}", f"tr_params.max_minutes={minutes - MARGIN}"]


def hippocampus_scores(task: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Dice of the 20 validation cases."""
    return case_scores(task, overrides, hippocampus_cases("val"))


def flyem_scores(task: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Membrane, normals and distance on z 128-159, beside the best constants."""
    scores = predict_and_score(task, overrides)
    voxels_per_unit = 1 / next(iter(open_volumes(load_task(task, overrides).task))).spacing[0]
    return {
        "membrane_dice": scores["membrane"]["dice"],
        "normals_degrees": scores["normals"]["angle_deg"],
        "distance_mae_voxels": scores["distance"]["mae"] * voxels_per_unit,
        **constant_scores(task, overrides, voxels_per_unit),
    }


def constant_scores(
    path: Path, overrides: Sequence[str], voxels_per_unit: float
) -> dict[str, float]:
    """What the best constant (of the held-out labels themselves) scores."""
    task = load_task(path, overrides).task
    (held_out,) = (v for v in open_volumes(task) if v.split == "val")
    assert task.inference_params.bbox is not None
    starts, ends = zip(*task.inference_params.bbox, strict=True)
    box, labels = Box.between(starts, ends), {}
    for name in ("distance", "normals"):
        target = task.dataset_config.targets[name]
        label = held_out.label(name, target, held_out.region)
        assert label is not None
        values, valid = label.read(box)
        known = target.as_prediction(torch.from_numpy(values[:, valid[0]]))
        labels[name] = known.double().numpy()
    distance = labels["distance"][0]
    _, axes = np.linalg.eigh(labels["normals"] @ labels["normals"].T)
    cosines = np.clip(np.abs(axes[:, -1] @ labels["normals"]), 0, 1)
    error = np.abs(distance - np.median(distance)).mean()
    return {
        "constant_normals_degrees": float(np.degrees(np.arccos(cosines)).mean()),
        "constant_distance_mae_voxels": float(error) * voxels_per_unit,
    }


def nnunet(python: Path, minutes: float, folder: Path) -> dict[str, Any]:
    """The same cases, split and time for nnU-Net, and the same scorer."""
    here = folder / f"{minutes:g}"
    if not (here / "figures.json").exists():
        export_cases(folder)
        script = ROOT / "benchmarks" / "nnunet_hippocampus.py"
        subprocess.run([python, script, folder, str(minutes)], check=True, stdout=sys.stderr)
    figures = json.loads((here / "figures.json").read_text())
    target = load_task(TASKS["hippocampus"]).task.dataset_config.targets["hippocampus"]
    scores = []
    for case in hippocampus_cases("val"):
        _, label = case_arrays(case)
        predicted = torch.from_numpy(np.load(here / "predictions" / f"{case}.npy"))[None, None]
        wanted = torch.from_numpy(label.astype(np.float32))[None, None]
        sums = target.measure(target.as_prediction(predicted), wanted, torch.ones_like(wanted) > 0)
        scores.append(target.summarise(sums))
    anterior, posterior = (statistics.mean(s[f"dice_{c}"] for s in scores) for c in (1, 2))
    dice = {"dice": (anterior + posterior) / 2, "anterior": anterior, "posterior": posterior}
    return {"program": "nnU-Net", "minutes": minutes, **figures, **dice}


def export_cases(folder: Path) -> None:
    """All cases as arrays, for an interpreter that has no Zarr, and the split by name."""
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    split = {side: hippocampus_cases(side) for side in ("train", "val")}
    for case in (*split["train"], *split["val"]):
        image, label = case_arrays(case)
        np.savez(folder / "cases" / f"{case}.npz", image=image.astype(np.float32), label=label)
    write_json(folder / "split.json", split)


if __name__ == "__main__":
    main()
