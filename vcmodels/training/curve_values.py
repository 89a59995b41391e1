"""Which curves of a validation can have a value at all: known before the first step."""

import math
from collections.abc import Iterable, Mapping, Sequence

from vcmodels.config import Task
from vcmodels.config.task import volume_curves
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.metrics.base import Sums
from vcmodels.metrics.registry import add_sums
from vcmodels.reporting import Reporter
from vcmodels.samples.dataset import PatchDataset, make_sample
from vcmodels.targets import AnyTarget
from vcmodels.training.progress import watched

NO_VALIDATION = "there are no validation patches"


def refuse_unlabelled(
    task: Task, volumes: Sequence[TaskVolume], reporter: Reporter, *, is_new: bool
) -> None:
    """As `refuse_valueless`, by what the volumes of the validation side have labels of."""
    settings, targets = task.tr_params, task.dataset_config.targets
    is_cut = settings.tr_val_split < 1
    sides = [v for v in volumes if v.split == "val" or (v.split is None and is_cut)]
    labelled = {name for v in sides for name in targets if _has_label(v, name, targets[name])}
    reasons: dict[str, str] = {} if sides else {"val/loss": NO_VALIDATION}
    of_volumes = volume_curves(targets, settings.validation)
    for curve, (name, _) in (_sources(targets) | of_volumes).items():
        if name not in labelled:
            of_it = f"no volume of the validation side has a label of {name}"
            reasons[curve] = of_it if sides else NO_VALIDATION
    _refuse(task, reasons, reporter, is_new=is_new)


def refuse_valueless(
    task: Task, dataset: PatchDataset, reporter: Reporter, *, is_new: bool
) -> None:
    """Refuse to wait for a curve that cannot come, and to choose the best checkpoint by it.

    Where no other can be chosen, in a run that was begun so or has no validation, it is a note.

    Args:
        task: names the curves.
        dataset: the validation patches.
        reporter: gets the note.
        is_new: whether the run has no checkpoint yet.

    Raises:
        TaskError: naming the key and the curve.
    """
    curves = {watch.curve for watch in watched(task.tr_params, dataset.targets).values()}
    _refuse(task, _valueless(dataset, curves), reporter, is_new=is_new)


def _refuse(task: Task, reasons: Mapping[str, str], reporter: Reporter, *, is_new: bool) -> None:
    """Refuse the curves for which there is a reason."""
    for key, watch in watched(task.tr_params, task.dataset_config.targets).items():
        if (reason := reasons.get(watch.curve)) is None:
            continue
        if key == "tr_params.best_metric" and (not is_new or watch.curve == "val/loss"):
            found = f"{watch.curve} can have no value: {reason}"
            reporter.say(f"note: {found}; the newest checkpoint counts as the best")
            continue
        remedy = 'give a volume that has it "split": "val", or watch val/loss'
        if reason == NO_VALIDATION:
            other = "epoch/train_loss_<target>"
            remedy = f"lower tr_val_split, or watch {other}"
        if not is_new:  # how volumes are divided may not change
            remedy = remedy.rpartition("or ")[2]
        raise TaskError(key, f'is "{watch.curve}", but {reason}', remedy)


def _valueless(dataset: PatchDataset, curves: Iterable[str]) -> dict[str, str]:
    """Why curves can have no value, in words by their names.

    A figure has none that even a perfect prediction does not get, such as the Dice of a mask without
    foreground. Patches are read until each curve is known to have one: mostly one patch.
    """
    sources = _sources(dataset.targets)
    left = sources.keys() & curves  # the sum of all losses has one
    sums = {sources[curve][0]: Sums() for curve in left}
    voxels = dict.fromkeys(sums, 0)
    for n in range(len(dataset)):
        if not left:
            break
        sample = make_sample(dataset, n, n)
        for name in sums:
            target, label, valid = dataset.targets[name], sample.labels[name], sample.valid[name]
            perfect = target.as_prediction(label[None])
            sums[name] = add_sums(sums[name], target.measure(perfect, label[None], valid[None]))
            voxels[name] += int(valid.sum())
        figures = {name: dataset.targets[name].summarise(found) for name, found in sums.items()}
        left = {
            curve
            for curve in left
            if not voxels[(name := sources[curve][0])]
            or math.isnan(figures[name].get(sources[curve][1], 0.0))
        }
    return {
        curve: f"the validation patches have nothing of {sources[curve][0]} that it could measure"
        for curve in sorted(left)
    }


def _sources(targets: Mapping[str, AnyTarget]) -> dict[str, tuple[str, str]]:
    """The target and the figure of each curve of a validation but `val/loss`."""
    return {
        f"val/{figure}_{name}": (name, figure)
        for name, target in targets.items()
        for figure in ("loss", *target.figures)
    }


def _has_label(volume: TaskVolume, name: str, target: AnyTarget) -> bool:
    """Whether a volume has a label that a target is validated against."""
    is_counted = volume.pseudo_in_val or name not in volume.pseudo
    return (target.derive or name) in volume.labels and is_counted
