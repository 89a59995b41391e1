"""Train on real volumes, predict what was held out, and score it.

    VCMODELS_DATA=<folder> python benchmarks/real_data.py flyem|hippocampus [--set KEY=VALUE ...]

Training, prediction and scoring are the commands that a user runs, on the task files in `tasks/`.
A second run continues or, when all is there, only scores. Prints one JSON line at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from flyem_labels import TRAINING_END, write_flyem_labels

from vcmodels.config import Task, load_task
from vcmodels.data.volumes import open_volumes
from vcmodels.evaluation import evaluate
from vcmodels.inference import run_inference
from vcmodels.volumes import expand_location, open_volume

ROOT = Path(__file__).parents[1]
FLYEM_HELD_OUT = [(128, 160), (0, 250), (0, 250)]


def main() -> None:
    """Run one of the two benchmarks."""
    parser = argparse.ArgumentParser(description="Train, predict and score on real volumes.")
    parser.add_argument("name", choices=("flyem", "hippocampus"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("runs/real_data"))
    arguments = parser.parse_args()
    run = {"flyem": flyem, "hippocampus": hippocampus}[arguments.name]
    sys.stdout.write(json.dumps(run(arguments.set, arguments.work)) + "\n")


def flyem(overrides: list[str], work: Path) -> dict[str, float]:
    """Membrane, normals and distance on z 128-159, beside the best constant."""
    store = expand_location("$VCMODELS_DATA/flyem_medulla_fibsem.zarr/z000_160")
    labels = write_flyem_labels(store, work)
    os.environ["FLYEM_LABELS"] = str(labels)
    path = ROOT / "tasks" / "flyem_membrane.json"
    minutes = command_minutes("train.py", path, overrides)
    command_minutes("infer.py", path, overrides)
    task = load_task(path, overrides).task
    scores = evaluate(task, bbox=FLYEM_HELD_OUT, overlay=work / "flyem.png")
    return {
        "training_minutes": minutes,
        "membrane_dice": scores["membrane"]["dice"],
        "normals_degrees": scores["normals"]["angle_deg"],
        "distance_mae": scores["distance"]["mae"],
        **constant_baselines(labels),
    }


def constant_baselines(labels: Path) -> dict[str, float]:
    """What the best constant (of the held-out labels themselves) scores."""
    distance = open_volume(str(labels / "distance"), key="distance")
    held_out = distance.read(distance.box)[0, 128:160].astype(np.float64)
    normals = open_volume(str(labels / "normals"), key="normals", channels=3)
    vectors = normals.read(normals.box)[:, 128:160].reshape(3, -1).astype(np.float64)
    length = np.linalg.norm(vectors, axis=0)
    vectors = vectors[:, length > 0] / length[length > 0]
    _, axes = np.linalg.eigh(vectors @ vectors.T)
    cosines = np.clip(np.abs(axes[:, -1] @ vectors), 0, 1)
    return {
        "constant_distance_mae": float(np.abs(held_out - np.median(held_out)).mean()),
        "constant_normals_degrees": float(np.degrees(np.arccos(cosines)).mean()),
    }


def hippocampus(overrides: list[str], work: Path) -> dict[str, float]:
    """Dice of both classes, averaged over the 20 validation cases."""
    path = ROOT / "tasks" / "hippocampus.json"
    minutes = command_minutes("train.py", path, overrides)
    held_out = [v for v in open_volumes(load_task(path, overrides).task) if v.split == "val"]
    scores: list[dict[str, float]] = []
    for volume in held_out:
        task = case_task(path, overrides, volume.inputs[0].location)
        run_inference(task)
        overlay = work / "hippocampus.png" if not scores else None
        scores.append(evaluate(task, overlay=overlay)["hippocampus"])
    anterior, posterior = (statistics.mean(s[f"dice_{c}"] for s in scores) for c in (1, 2))
    return {
        "training_minutes": minutes,
        "cases": len(scores),
        "anterior_dice": anterior,
        "posterior_dice": posterior,
        "mean_dice": (anterior + posterior) / 2,
    }


def case_task(path: Path, overrides: list[str], location: str) -> Task:
    """The task, set to predict one case into a folder of its own."""
    case = Path(location).parent.name
    folder = load_task(path, overrides).task.inference_params.output_dir
    here = [
        f"inference_params.input_path={location}",
        f"inference_params.output_dir={folder}/{case}",
    ]
    return load_task(path, [*overrides, *here]).task


def command_minutes(door: str, task: Path, overrides: list[str]) -> float:
    """Run one of the two commands as a user does; returns wall-clock minutes."""
    begun = time.monotonic()
    settings = [part for item in overrides for part in ("--set", item)]
    subprocess.run([sys.executable, ROOT / door, task, *settings], check=True)
    return (time.monotonic() - begun) / 60


assert FLYEM_HELD_OUT[0][0] > TRAINING_END

if __name__ == "__main__":
    main()
