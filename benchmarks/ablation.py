"""What the parts of a recipe gain: short runs with each and without it, on training voxels alone.

    VCMODELS_DATA=<folder> python benchmarks/ablation.py [--sets hippocampus flyem] [--seeds 3]
        [--steps 400 | --minutes 20] [--arms base "no gates" ...]

Seed k trains on all but fold k of the 80 training cases (hippocampus), or on z 0-79 (FlyEM), and is
scored on that fold, or on z 88-119: the validation cases and the validation slab of the benchmarks
are not touched. A run that has its `result.json` is not run again unless its recipe changed, so the
command may be stopped and given again; it prints the table after each run. `--list` prints the table
alone. Minutes are those of the last start of each run.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from held_out import (
    ROOT,
    case_entry,
    case_scores,
    hippocampus_cases,
    predict_and_score,
    train,
    write_json,
)

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.config import load_task
from vcmodels.patches.resolve import resolve

FOLDS = 5
PROBE_STEPS = 100
"""Of an epoch, where epochs are counted by time."""
SLACK = 0.97
"""Share of the time that is planned for; a run that is slower than its probe stops at the limit."""
FLYEM_PLANE = ([0, 250], [0, 250])
BASE = "base"
CONSTANT = "constant rate"
FALLING = "adamw_poly"
"""Of the base, and of all arms that do not name another."""
STRONG_CONSTANT = "strong augmentation, constant rate"
NO_AVERAGE = {
    BASE: "no average of weights",
    CONSTANT: f"{CONSTANT}, no average of weights",
    STRONG_CONSTANT: f"{STRONG_CONSTANT}, no average of weights",
}
"""No runs of their own: the average has no say in training, so the runs of these arms have both."""


@dataclass(frozen=True)
class Study:
    """One set of data: how a run is set up, which arms there are, and what is measured."""

    task: Callable[[int], dict[str, Any]]
    """The task of a seed."""
    arms: dict[str, list[str]]
    """Overrides of the base by name, the most informative first."""
    score: Callable[[Path, list[str]], float]
    """From task file and overrides."""


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description="Ablations on training voxels alone.")
    parser.add_argument("--sets", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="names; all when left out")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, help="all runs last as long, not as many steps")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    minutes, steps = arguments.minutes, arguments.steps
    work = arguments.work.resolve() / (f"{minutes:g}min" if minutes else f"{steps}")
    if not arguments.list:
        for seed in range(arguments.seeds):
            for name in arguments.sets:
                arms = [
                    a for a in STUDIES[name].arms if a in (arguments.arms or STUDIES[name].arms)
                ]
                for arm in arms:
                    run(name, arm, seed, minutes, steps, work)
    for name in arguments.sets:
        sys.stdout.write(table(name, work / name))


def run(name: str, arm: str, seed: int, minutes: float | None, steps: int, work: Path) -> None:
    """One training and its score, unless its result is there."""
    study, folder = STUDIES[name], work / name / arm.replace(" ", "_") / f"seed{seed}"
    recipe = {"task": study.task(seed), "set": study.arms[arm]}
    if results(folder.parents[1], arm).get(seed, {}).get("recipe") == recipe:
        return
    task = folder / "task.json"
    is_begun = task.exists() and json.loads(task.read_text()) == recipe["task"]
    if minutes or not is_begun:
        shutil.rmtree(folder, ignore_errors=True)  # else train.py continues what was stopped
    write_json(task, recipe["task"])
    overrides = [
        *study.arms[arm],
        f"tr_params.seed={seed}",
        "tr_params.max_epoch=1",
        f"tr_params.max_steps_per_epoch={PROBE_STEPS if minutes else steps}",
        "tr_params.max_val_steps_per_epoch=1",
        "tr_params.num_dataloader_workers=0",
        f"tr_params.ckpt_out_base={folder}/run",
        f"inference_params.output_dir={folder}/predictions",
        f"inference_params.checkpoint_path={folder}/last.pth",
        f"dataset_config.cache_file={folder}/patches.json",
    ]
    try:
        if minutes:
            overrides += epochs_within(task, overrides, minutes, folder / "probe")
        found = {"seed": seed, "recipe": recipe, "seconds": train(task, overrides)}
    except subprocess.CalledProcessError as error:  # the others can do without it
        sys.stderr.write(f"{folder}: {error}\n")
        return
    last = load_checkpoint(next((folder / "run").glob("*_last.pth"))).state
    weights = [(folder, last)]
    if arm in NO_AVERAGE:
        alone = folder.parents[1] / NO_AVERAGE[arm].replace(" ", "_") / folder.name
        weights.insert(0, (alone, last | {"ema": None}))
    for place, state in weights:
        save_checkpoint(folder / "last.pth", state, keep_previous=False)
        write_json(place / "result.json", found | {"score": study.score(task, overrides)})
    for part in ("probe", "run", "predictions"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "last.pth").unlink()
    sys.stdout.write(table(name, work / name))
    sys.stdout.flush()


def epochs_within(task: Path, overrides: Sequence[str], minutes: float, folder: Path) -> list[str]:
    """As many epochs as fit, by the time between the checkpoints of the first and the second one."""
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.time()
    probe = ["max_epoch=2", f"ckpt_out_base={folder}", "compile=true", "save_every=1"]
    train(task, [*overrides, *(f"tr_params.{line}" for line in probe)])
    name = load_task(task, overrides).task.tr_params.model_name
    first, second = ((folder / f"{name}_{n}.pth").stat().st_mtime for n in (1, 2))
    epoch = second - first
    starting = first - begun - epoch  # imports, patch list, statistics, compilation
    fitting = max(1, int((SLACK * 60 * minutes - starting) / epoch))
    return [f"tr_params.max_epoch={fitting}", f"tr_params.max_minutes={minutes}"]


def table(name: str, folder: Path) -> str:
    """A Markdown table: mean and deviation of each arm, and of its differences to the base."""
    lines = [
        f"\n{name}",
        "| arm | runs | mean | sd | difference | sd | minutes |",
        "|" + " --- |" * 7,
    ]
    base = results(folder, BASE)
    for arm in [*STUDIES[name].arms, *NO_AVERAGE.values()]:
        found = results(folder, arm)
        if found:
            scores = [r["score"] for r in found.values()]
            paired = [r["score"] - base[s]["score"] for s, r in found.items() if s in base]
            minutes = statistics.mean(r["seconds"] for r in found.values()) / 60
            cells = [arm, str(len(scores)), *spread(scores), *spread(paired, "+"), f"{minutes:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def results(folder: Path, arm: str) -> dict[int, dict[str, Any]]:
    """What was measured of an arm, by seed."""
    files = sorted((folder / arm.replace(" ", "_")).glob("seed*/result.json"))
    return {found["seed"]: found for found in (json.loads(f.read_text()) for f in files)}


def spread(values: Sequence[float], sign: str = "") -> tuple[str, str]:
    """Mean and standard deviation, as text."""
    if not values:
        return "", ""
    deviation = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}", deviation


def hippocampus_task(seed: int) -> dict[str, Any]:
    """The task on the 80 training cases, fold `seed` of them held out, with a base of its own."""
    task = json.loads((ROOT / "tasks" / "hippocampus.json").read_text())
    task["model_config"]["f_maps"], task["augment"] = NARROW, WEAK
    task["tr_params"]["recipe"] = FALLING
    task["dataset_config"]["volume_paths"] = [case_entry(c) for c in hippocampus_cases("train")]
    task["tr_params"]["folds"] = {"count": FOLDS, "index": seed % FOLDS}
    return task


def hippocampus_score(task: Path, overrides: list[str]) -> float:
    """Mean Dice over classes and cases of the fold."""
    volumes = resolve(load_task(task, overrides).task).volumes
    held_out = [Path(v.inputs[0].location).parent.name for v in volumes if v.split == "val"]
    return case_scores(task, overrides, held_out)["dice"]


def flyem_task(seed: int) -> dict[str, Any]:
    """The task on z 0-79; the guard band of 8 slices is the benchmark's own."""
    del seed
    task = json.loads((ROOT / "tasks" / "flyem_membrane.json").read_text())
    below, above = task["dataset_config"]["volume_paths"]
    below["bbox"], above["bbox"] = [[0, 80], *FLYEM_PLANE], [[80, 120], *FLYEM_PLANE]
    task["tr_params"] |= {"patch_size": [48, 48, 48], "recipe": FALLING}
    task["inference_params"] |= {
        "bbox": [[88, 120], *FLYEM_PLANE],
        "output_targets": ["membrane"],
    }
    return task


def flyem_score(task: Path, overrides: list[str]) -> float:
    """Dice of the membrane."""
    return predict_and_score(task, overrides)["membrane"]["dice"]


NARROW, WIDE = [16, 32, 64, 128], [32, 64, 128, 256]
WEAK = [
    {"name": "affine", "p": 1.0, "rotation_degrees": 10, "scaling": [0.9, 1.1]},
    {"name": "noise", "p": 0.5},
    {"name": "brightness", "p": 0.3},
    {"name": "contrast", "p": 0.3},
    {"name": "gamma", "p": 0.3},
]
STRONG = [
    {"name": "affine", "p": 0.8, "rotation_degrees": 20, "per_axis_scaling": True},
    {"name": "elastic", "p": 0.5},
    {"name": "noise", "p": 0.3},
    {"name": "blur"},
    {"name": "brightness", "p": 0.3},
    {"name": "contrast", "p": 0.3},
    {"name": "low_resolution", "p": 0.2},
    {"name": "gamma", "p": 0.4},
]
TWICE = [f"model_config.f_maps={WIDE}"]
MEMBRANE_ALONE = 'dataset_config.targets={"membrane": {"kind": "binary"}}'
STUDIES = {
    "flyem": Study(
        flyem_task,
        {
            BASE: [],
            "membrane alone": [MEMBRANE_ALONE],
            "no gates": ["model_config.squeeze_excitation=false"],
            "deep supervision": ["model_config.deep_supervision=true"],
            CONSTANT: ["tr_params.recipe=adamw_constant"],
            "membrane alone, no gates": [MEMBRANE_ALONE, "model_config.squeeze_excitation=false"],
            "a decoder for each": ["model_config.decoder=separate"],
        },
        flyem_score,
    ),
    "hippocampus": Study(
        hippocampus_task,
        {
            BASE: [],
            "no gates": ["model_config.squeeze_excitation=false"],
            "deep supervision": ["model_config.deep_supervision=true"],
            CONSTANT: ["tr_params.recipe=adamw_constant"],
            "strong augmentation": [f"augment={json.dumps(STRONG)}"],
            STRONG_CONSTANT: [f"augment={json.dumps(STRONG)}", "tr_params.recipe=adamw_constant"],
            "strong and mirrored": [f"augment={json.dumps([*STRONG, {'name': 'flip'}])}"],
            "twice the features": TWICE,
            "both": [f"augment={json.dumps(STRONG)}", *TWICE],
            "rate 4e-3": ["tr_params.initial_lr=4e-3"],
            "rate 1e-3": ["tr_params.initial_lr=1e-3"],
            "SGD": ["tr_params.optimizer=SGD", "tr_params.initial_lr=0.01"],
            "cosine": ["tr_params.recipe=adamw_cosine"],
            "batch of 4": ["tr_params.batch_size=4"],
            "decay 0.05": ["tr_params.weight_decay=0.05"],
        },
        hippocampus_score,
    ),
}

if __name__ == "__main__":
    main()
