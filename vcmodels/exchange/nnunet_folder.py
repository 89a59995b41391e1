"""Where the trained folds of an nnU-Net result folder are; nothing of them is read.

Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/
    plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_1/...
"""

from pathlib import Path

from vcmodels.errors import CheckpointError

PLANS, DATASET = "plans.json", "dataset.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
"""The first that a fold has counts, as in nnU-Net."""
FOLD = "fold_"


def is_nnunet(path: Path) -> bool:
    """Whether a path is a result folder of nnU-Net, a fold in it, or a checkpoint in a fold."""
    return home_of(path) is not None


def home_of(path: Path) -> Path | None:
    """The folder that has the plans of a result folder, a fold or a checkpoint; None of all else."""
    if path.is_file():
        is_fold = path.suffix == ".pth" and path.parent.name.startswith(FOLD)
        return home_of(path.parent) if is_fold else None
    home = path.absolute().parent if path.name.startswith(FOLD) else path
    return home if (home / PLANS).is_file() and (home / DATASET).is_file() else None


def folds_of(path: Path) -> list[Path]:
    """The checkpoint of every fold, or of the one that is named; `fold_all` where there is no other.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return [path]
    folders = [path] if path.name.startswith(FOLD) else sorted(path.glob(f"{FOLD}[0-9]*"))
    folders = folders or [path / f"{FOLD}all"]
    found = [one for folder in folders if (one := _checkpoint_in(folder))]
    if not found:
        remedy = f"give a folder with {FOLD}0/{CHECKPOINTS[0]}, as nnU-Net leaves it"
        raise CheckpointError(str(path), "is an nnU-Net folder without a trained fold", remedy)
    return found


def _checkpoint_in(fold: Path) -> Path | None:
    return next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)


def models_at(path: Path) -> list[Path]:
    """The models at a path: each fold of an nnU-Net folder, else the path itself.

    Raises:
        CheckpointError: as `folds_of`.
    """
    return folds_of(path) if is_nnunet(path) else [path]
