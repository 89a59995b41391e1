"""nnU-Net v2 on the same cases for the same time (`accuracy.py --peers-python`).

    python benchmarks/nnunet_hippocampus.py FOLDER MINUTES

FOLDER/cases/NAME.npz holds `image` and, for training, `label`; FOLDER/split.json the names of each
side. Run by an interpreter that has nnunetv2. Writes FOLDER/MINUTES/predictions/NAME.npy and
FOLDER/MINUTES/figures.json. Preprocessing is done once and shared by all times.

Plan, network, loss, optimiser, augmentation, sampling and the prediction of the validation cases are
nnU-Net's own. Two things differ, both in its favour or neutral: training stops when the time is up,
wherever its epoch of 250 steps is then, and the rate falls by its own polynomial over the share of
the time used, instead of over 1000 epochs, so that the schedule ends with the time.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DATASET, CONFIGURATION = "Dataset004_Hippocampus", "3d_fullres"
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Prepare once, train, predict."""
    folder, minutes = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    here = folder / f"{minutes:g}"
    set_environment(folder, here)
    preparing = prepare(folder)
    import torch

    torch.set_num_threads(CORES)  # what its command does for a CPU
    trainer = timed_trainer(folder, minutes)
    trainer.run_training()
    begun = time.monotonic()
    trainer.perform_actual_validation(False)
    predicting = time.monotonic() - begun
    keep_predictions(Path(trainer.output_folder) / "validation", here / "predictions")
    configuration = trainer.configuration_manager
    figures = {
        "training_minutes": trainer.seconds / 60,
        "steps": trainer.steps,
        "batch": configuration.batch_size,
        "patch": list(configuration.patch_size),
        "preparing_minutes": preparing / 60,
        "predicting_minutes": predicting / 60,
    }
    (here / "figures.json").write_text(json.dumps(figures))


def set_environment(folder: Path, here: Path) -> None:
    """Where nnU-Net looks, and how many processes it starts beside the training."""
    os.environ |= {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(here / "results"),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }


def prepare(folder: Path) -> float:
    """Write raw NIfTI files, then plan and preprocess with its command; seconds of the latter."""
    done = folder / "prepared.json"
    if not done.exists():
        write_raw(folder)
        begun = time.monotonic()
        program = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
        subprocess.run([program, "-d", "4", "-c", CONFIGURATION, "-np", "1"], check=True)
        split = json.loads((folder / "split.json").read_text())
        splits = folder / "preprocessed" / DATASET / "splits_final.json"
        splits.write_text(json.dumps([split]))
        done.write_text(json.dumps(time.monotonic() - begun))
    return json.loads(done.read_text())


def write_raw(folder: Path) -> None:
    """Its raw layout: an image and a label of each case, and what the values mean."""
    import SimpleITK as sitk  # pyright: ignore # noqa: N813 (its own documentation's name)

    raw = folder / "raw" / DATASET
    cases = sorted((folder / "cases").glob("*.npz"))
    for part, key, ending in (("imagesTr", "image", "_0000"), ("labelsTr", "label", "")):
        (raw / part).mkdir(parents=True, exist_ok=True)
        for case in cases:
            with np.load(case) as arrays:
                image = sitk.GetImageFromArray(arrays[key])
            sitk.WriteImage(image, str(raw / part / f"{case.stem}{ending}.nii.gz"))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))


def timed_trainer(folder: Path, minutes: float):  # noqa: ANN201 (a class of its own)
    """nnU-Net's trainer, which stops by the clock."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore

    class TimedTrainer(nnUNetTrainer):
        steps, seconds, begun = 0, 0.0, 0.0

        def run_training(self) -> None:
            try:
                super().run_training()
            except TimeoutError:
                self.on_train_end()  # writes the final checkpoint

        def on_train_start(self) -> None:
            super().on_train_start()
            self.begun = time.monotonic()  # what starts its workers is not counted

        def train_step(self, batch: dict) -> dict:
            share = (time.monotonic() - self.begun) / (60 * minutes)
            if share >= 1:
                self.seconds = share * 60 * minutes
                raise TimeoutError
            self.lr_scheduler.step(share * self.num_epochs)
            self.steps += 1
            return super().train_step(batch)

    preprocessed = folder / "preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    description = json.loads((preprocessed / "dataset.json").read_text())
    trainer = TimedTrainer(
        plans | {"continue_training": False},
        CONFIGURATION,
        0,
        description,
        device=torch.device("cpu"),
    )
    shutil.rmtree(trainer.output_folder, ignore_errors=True)
    Path(trainer.output_folder).mkdir(parents=True)
    return trainer


def keep_predictions(written: Path, wanted: Path) -> None:
    """The predicted labels, as arrays along (z, y, x)."""
    import SimpleITK as sitk  # pyright: ignore # noqa: N813

    wanted.mkdir(parents=True, exist_ok=True)
    for path in sorted(written.glob("*.nii.gz")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.save(wanted / path.name.replace(".nii.gz", ".npy"), array.astype(np.uint8))


if __name__ == "__main__":
    main()
