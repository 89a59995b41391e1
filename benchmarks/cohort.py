"""How long a cohort of many small volumes takes to begin: a table of cases, one step, and the end.

    python benchmarks/cohort.py [--cases 1000] [--folder DIR]

Writes volumes of 16 x 32 x 32 voxels with labels and a cases.csv once, and then trains one step on them,
each time in a new run folder: the first time nothing is known of the labels, the second time their
index is. A JSON line each: seconds by the clock and of the CPUs, from the start of the command to its end.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Grid, create_array

SHAPE, CHUNKS = (16, 32, 32), (16, 32, 32)


def write_cases(folder: Path, count: int) -> Path:
    """The volumes and their table, unless they are there."""
    table = folder / "cases.csv"
    if table.exists():
        return table
    rng, rows = np.random.default_rng(0), ["SubjectID,Image,Label:sheet"]
    for number in range(count):
        root = folder / f"c{number}.zarr"
        label = (rng.random(SHAPE) < 0.3).astype(np.uint8)
        for name, voxels in (("raw", rng.integers(1, 255, SHAPE, np.uint8)), ("sheet", label)):
            array = create_array(
                str(root), name, shape=SHAPE, chunks=CHUNKS, dtype=np.uint8,
                grid=Grid((1.0, 1.0, 1.0), unit="millimeter"),
            )  # fmt: skip
            array.write(Box((0, 0, 0), SHAPE), voxels[None])
        rows.append(f"s{number},c{number}.zarr/raw,c{number}.zarr/sheet")
    table.write_text("\n".join(rows) + "\n")
    return table


def task_of(table: Path) -> dict[str, object]:
    """One step of a tiny network on the cases."""
    return {
        "tr_params": {
            "model_name": "cohort",
            "patch_size": [8, 16, 16],
            "batch_size": 2,
            "max_epoch": 1,
            "max_steps_per_epoch": 1,
            "max_val_steps_per_epoch": 1,
            "num_dataloader_workers": 0,
            "compile": False,
            "device": "cpu",
        },
        "model_config": {"f_maps": [4, 8]},
        "dataset_config": {
            "volume_paths": str(table),
            "index_dir": str(table.parent / "index"),
            "targets": {"sheet": {"kind": "binary"}},
        },
    }


def main() -> None:
    """Print a line for each start."""
    parser = argparse.ArgumentParser(description="The start of a cohort.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        table = write_cases(folder, arguments.cases)
        (folder / "task.json").write_text(json.dumps(task_of(table)))
        for start in ("first", "again"):
            with tempfile.TemporaryDirectory() as run:
                place = f"tr_params.ckpt_out_base={run}/run"
                before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
                command = ["-m", "vcmodels", "train", str(folder / "task.json"), "--set", place]
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            line = {"start": start, "seconds": time.monotonic() - begun, "cpu_s": cpu}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
