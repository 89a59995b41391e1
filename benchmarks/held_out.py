"""Train with the user's own command, predict cases that were held out, and score them."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

from vcmodels.config import Task, load_task
from vcmodels.evaluation import evaluate
from vcmodels.inference import RunOptions, run_inference
from vcmodels.volumes import expand_location

ROOT = Path(__file__).parents[1]
HIPPOCAMPUS = "$VCMODELS_DATA/msd_hippocampus.zarr"


def train(task: Path, overrides: Sequence[str] = ()) -> float:
    """Run `train.py` as a user does; returns wall-clock seconds."""
    begun = time.monotonic()
    settings = [part for item in overrides for part in ("--set", item)]
    subprocess.run([sys.executable, ROOT / "train.py", task, *settings], check=True)
    return time.monotonic() - begun


def hippocampus_cases(split: str) -> list[str]:
    """Names of the cases whose attribute `split` is this."""
    store = zarr.open_group(expand_location(HIPPOCAMPUS), mode="r")
    return sorted(name for name, group in store.groups() if group.attrs["split"] == split)


def case_arrays(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of one case, (Z, Y, X) as stored."""
    group = zarr.open_group(expand_location(f"{HIPPOCAMPUS}/{case}"), mode="r")
    return np.asarray(group["raw"]), np.asarray(group["labels/hippocampus"])


def case_entry(case: str) -> dict[str, str]:
    """The volume entry of one case, to be divided by folds."""
    label = f"{HIPPOCAMPUS}/{case}/labels/hippocampus"
    input_path = f"{HIPPOCAMPUS}/{case}/raw"
    return {"input": input_path, "hippocampus": label, "ref_label": "hippocampus"}


def case_scores(task: Path, overrides: Sequence[str], cases: Sequence[str]) -> dict[str, float]:
    """Dice of both classes, each the mean over cases of what the case has by itself."""
    scores = [
        predict_and_score(task, [*overrides, *case_overrides(task, overrides, case)])
        for case in cases
    ]
    found = [score["hippocampus"] for score in scores]
    anterior, posterior = (statistics.mean(s[f"dice_{c}"] for s in found) for c in (1, 2))
    return {"dice": (anterior + posterior) / 2, "anterior": anterior, "posterior": posterior}


def case_overrides(task: Path, overrides: Sequence[str], case: str) -> list[str]:
    """What makes the task predict one case, into a folder of its own."""
    folder = load_task(task, overrides).task.inference_params.output_dir
    return [
        f"inference_params.input_path={HIPPOCAMPUS}/{case}/raw",
        f"inference_params.output_dir={folder}/{case}",
    ]


def predict_and_score(task: Path, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Predict `inference_params.input_path` and score what the run held out of it, by target."""
    resolved: Task = load_task(task, overrides).task
    run_inference(resolved, options=RunOptions(overwrite=True))
    return dict(evaluate(resolved))


def write_json(path: Path, value: object) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)
