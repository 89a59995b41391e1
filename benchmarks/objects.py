"""What keeps objects apart: short trainings of the default and of what is made for the case.

    python benchmarks/objects.py [--only sheets] [--steps 400] [--patch 48] [--arms default ...] [--work runs/objects]

- sheets: pressed phantoms, wraps 2 to 6 voxels apart; one is learnt, another one scored. Printed is
  the share of neighbouring pairs of wraps that are resolved, by their spacing (docs/sheets.md).

All arms of a row take as many steps, on the CPU and one thread; the CPU seconds of each training are
printed. An arm that has its `result.json` is not run again unless its recipe changed.
"""

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from held_out import predict_and_score, train, write_json

from vcmodels.phantom import write_phantom

SHEET_SHAPES = {"train": (64, 160, 160), "val": (48, 128, 128)}
SPACING = (2.0, 6.0)
SEPARATE = {"bce": 1.0, "soft_dice": 1.0, "gap": 0.5, "skeleton_recall": 1.0}
PLACED = [{"name": "flip"}, {"name": "quarter_turn"}]
VALUES = [{"name": name} for name in ("noise", "brightness", "contrast", "gamma")]
SHEET_ARMS: dict[str, list[str]] = {
    "default": [],
    "gap": [f"dataset_config.targets.sheet.loss={json.dumps(SEPARATE)}"],
    "gap, nothing resampled": [
        f"dataset_config.targets.sheet.loss={json.dumps(SEPARATE)}",
        f"augment={json.dumps([*PLACED, *VALUES])}",
    ],
    "gap, compress": [
        f"dataset_config.targets.sheet.loss={json.dumps(SEPARATE)}",
        f"augment={json.dumps([*PLACED, {'name': 'compress'}, *VALUES])}",
    ],
}
RANGES = ("resolved_2_3", "resolved_3_4", "resolved_4_5", "resolved_5_6")


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description="What keeps objects apart.")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--arms", nargs="+", help="names; all when left out")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--work", type=Path, default=Path("runs/objects"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in arguments.only:
        ROWS[name](arguments.work.resolve() / name, arguments)


def sheets(work: Path, arguments: argparse.Namespace) -> None:
    """Train the arms on one pressed phantom, and score them on another."""
    for seed, (part, shape) in enumerate(SHEET_SHAPES.items()):
        if not (work / f"{part}.zarr").exists():
            write_phantom(str(work / f"{part}.zarr"), shape=shape, seed=seed, spacing=SPACING)
    task = work / "task.json"
    write_json(task, sheet_task(work, arguments.steps, arguments.patch))
    found: dict[str, dict[str, float]] = {}
    for arm, overrides in SHEET_ARMS.items():
        if not arguments.arms or arm in arguments.arms:
            found[arm] = arm_result(task, overrides, work / arm.replace(" ", "_"))
            sys.stdout.write(sheet_table(found))
            sys.stdout.flush()


def sheet_task(work: Path, steps: int, patch: int) -> dict[str, Any]:
    """The task of all arms."""
    volumes = [
        {"input": f"{work}/{part}.zarr/ct", "sheet": f"{work}/{part}.zarr/wraps", "split": part}
        for part in SHEET_SHAPES
    ]
    return {
        "tr_params": {
            "model_name": "sheets",
            "patch_size": [patch] * 3,
            "batch_size": 1,
            "compile": False,
            "max_epoch": 1,
            "max_steps_per_epoch": steps,
            "max_val_steps_per_epoch": 1,
            "num_dataloader_workers": 0,
            "device": "cpu",
        },
        "model_config": {"f_maps": [8, 16]},
        "inference_params": {
            "input_path": f"{work}/val.zarr/ct",
            "patch_size": [48, 96, 96],
            "device": "cpu",
        },
        "evaluation": {"metrics": {"sheet": ["dice", "sheets"]}},
        "dataset_config": {
            "volume_paths": volumes,
            "targets": {"sheet": {"kind": "binary", "foreground": "> 0", "ignore_label": 65535}},
        },
    }


def arm_result(task: Path, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """The figures of an arm and the CPU seconds of its training; measured unless they are there."""
    recipe = {"task": json.loads(task.read_text()), "set": list(overrides)}
    path = folder / "result.json"
    if path.exists() and (kept := json.loads(path.read_text()))["recipe"] == recipe:
        return kept["figures"]
    shutil.rmtree(folder, ignore_errors=True)
    places = [
        f"tr_params.ckpt_out_base={folder}/run",
        f"inference_params.output_dir={folder}/predictions",
        f"dataset_config.cache_file={folder}/patches.json",
    ]
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    train(task, [*overrides, *places])
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    figures = predict_and_score(task, [*overrides, *places])["sheet"] | {"cpu": seconds}
    write_json(path, {"recipe": recipe, "figures": figures})
    return figures


def sheet_table(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table of the arms."""
    ranges = [name.removeprefix("resolved_").replace("_", "-") for name in RANGES]
    lines = [
        f"\n| arm | Dice | resolved | {' | '.join(ranges)} | CPU s |",
        "|" + " --- |" * (4 + len(RANGES)),
    ]
    for arm, figures in found.items():
        shares = [f"{figures[name]:.1%}" for name in ("resolved", *RANGES)]
        cells = [arm, f"{figures['dice']:.3f}", *shares, f"{figures['cpu']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


ROWS: dict[str, Callable[[Path, argparse.Namespace], None]] = {"sheets": sheets}

if __name__ == "__main__":
    main()
