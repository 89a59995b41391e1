"""Train and predict with nnU-Net itself: `python nnunet_reference.py FOLDER PLANNER ITERATIONS`.

FOLDER holds `raw/Dataset004_Hippocampus`; it runs where nnunetv2 is installed, and imports nothing of ours.
The network is small, so that a CPU trains it in minutes; all else is what nnU-Net plans. Last it
prints a line of JSON: the trained folder, seconds and peak memory (MB) of the prediction.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

NAME = "Dataset004_Hippocampus"
FEATURES = 8


def main(folder: Path, planner: str, iterations: int) -> None:
    for key in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{key}"] = str(folder / key)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    torch.set_num_threads(1)
    plans_name = "nnUNetPlans" if planner == "ExperimentPlanner" else "nnUNetResEncUNetPlans"
    if not (folder / "preprocessed" / NAME / "dataset_fingerprint.json").exists():
        extract_fingerprints([4], num_processes=1, check_dataset_integrity=False)
    plan_experiments([4], experiment_planner_class_name=planner, overwrite_plans_name=plans_name)
    place = folder / "preprocessed" / NAME / f"{plans_name}.json"
    plans = json.loads(place.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["batch_size"] = 2
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [FEATURES * 2**n for n in range(network["n_stages"])]
    place.write_text(json.dumps(plans, indent=4))
    preprocess([4], plans_name, configurations=("3d_fullres",), num_processes=(1,))
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 - its name; in this process; its planner wants one at least
    trained = train(plans, folder / "preprocessed" / NAME / "dataset.json", iterations)
    seconds = predict(trained, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        json.dumps({"trained": str(trained), "seconds": seconds, "peak_mb": peak}) + "\n"
    )


def train(plans: dict, dataset: Path, iterations: int) -> Path:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    description = json.loads(dataset.read_text())
    plans = plans | {"continue_training": False}  # what `nnUNetv2_train` adds
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, description, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, iterations // 2
    trainer.num_val_iterations_per_epoch, trainer.save_every = 1, 1
    trainer.perform_actual_validation = lambda *_, **__: None
    trainer.run_training()
    return Path(trainer.output_folder_base)


def predict(trained: Path, folder: Path) -> float:
    """Seconds of `nnUNetv2_predict` for all of imagesTs, without the start of the process."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), (0,), "checkpoint_final.pth")
    source, target = folder / "raw" / NAME / "imagesTs", folder / f"predicted_{trained.name}"
    target.mkdir()
    start = time.perf_counter()
    predictor.predict_from_files_sequential(str(source), str(target))
    return time.perf_counter() - start


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3]))
