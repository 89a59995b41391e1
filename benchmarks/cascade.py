"""A cascade against its second stage on whole volumes: lesion Dice, and CPU seconds of inference.

    python benchmarks/cascade.py --folder /tmp/cascade [--subjects 8] [--size 112,112,88] [--epochs 12]

Makes the phantom of cords, trains `tasks/cord.json`, `tasks/cord_lesion.json`, and the same task
without its region (same network, patches, steps and seed), and predicts the validation scans with
both. Each prediction starts with an empty cache: the seconds have the first stage, the preparation of
the input and the way back in them. They are CPU seconds of all threads: other work on the machine does
not count.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vcmodels.config import Task, load_task
from vcmodels.evaluation import evaluate
from vcmodels.inference import predict_request
from vcmodels.inference.ensemble import load_networks
from vcmodels.inference.many import named_inputs
from vcmodels.runs.run import Run

TASKS = Path(__file__).parents[1] / "tasks"


def main() -> None:
    """Print one line for each way, and how they compare."""
    parser = argparse.ArgumentParser(description="A cascade against its second stage alone.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--subjects", default="8")
    parser.add_argument("--size", default="112,112,88")
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    os.environ["XDG_CACHE_HOME"] = str(given.folder / "cache")
    vcmodels("phantom", "cords.zarr", "--kind", "cord", "--keep", "--subjects", given.subjects,
             "--size", given.size)  # fmt: skip
    vcmodels("train", TASKS / "cord.json")
    whole = without_region(TASKS / "cord_lesion.json", Path("whole.json"))
    found: dict[str, tuple[float, float]] = {}
    for name, path in (("cascade", TASKS / "cord_lesion.json"), ("whole", whole)):
        settings = [f"tr_params.max_epoch={given.epochs}", "tr_params.compile=false"]
        vcmodels("train", path, *(word for line in settings for word in ("--set", line)))
        task = load_task(path, ["inference_params.compile=false"]).task
        seconds = predict(task, given.folder / "fresh")
        dice = evaluate(task)["lesion"]["dice"]
        found[name] = dice, seconds
        report(f"{name}: lesion dice {dice:.3f}, {seconds:.1f} CPU s for the validation scans")
    (dice, seconds), (other, longer) = found["cascade"], found["whole"]
    report(f"cascade: dice {dice - other:+.3f}, {longer / seconds:.1f} times as fast")


def vcmodels(*words: str | Path) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "vcmodels", *map(str, words)], check=True)


def report(line: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def without_region(path: Path, output: Path) -> Path:
    """The same task on whole volumes."""
    task = json.loads(path.read_text(encoding="utf-8"))
    del task["dataset_config"]["region"]
    task["tr_params"] |= {"model_name": "whole", "ckpt_out_base": "runs/whole"}
    output.write_text(json.dumps(task), encoding="utf-8")
    return output


def predict(task: Task, cache: Path) -> float:
    """CPU seconds to predict the validation scans of a task, with nothing cached of any of them."""
    networks = load_networks([Run(task.run_dir, task.tr_params.model_name).best])
    inputs = named_inputs(task)
    before, seconds = os.environ["XDG_CACHE_HOME"], 0.0
    os.environ["XDG_CACHE_HOME"] = str(cache)
    for number, one in enumerate([inputs[0], *inputs]):  # the first time it is for the imports
        shutil.rmtree(cache, ignore_errors=True)
        request = one.request(task, networks)
        request.output.remove()
        begun = time.process_time()
        predict_request(request)
        seconds += time.process_time() - begun if number else 0.0
    os.environ["XDG_CACHE_HOME"] = before
    return seconds


if __name__ == "__main__":
    main()
