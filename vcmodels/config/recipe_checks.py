"""What must agree between the keys on how weights are learnt; no file is opened."""

from collections.abc import Iterator

from vcmodels.config.curves import epoch_curves
from vcmodels.config.messages import Fault, listed, shown
from vcmodels.config.task import Task


def recipe_faults(task: Task) -> Iterator[Fault]:
    """Keys of `tr_params` that exclude each other, do nothing alone, or name what there is not."""
    yield from _mixup_faults(task)
    yield from _curve_faults(task)
    settings = task.tr_params
    if settings.freeze_epochs is not None and not settings.freeze:
        found = "is given, but nothing is frozen"
        yield Fault(("tr_params", "freeze_epochs"), found, "name what in freeze, or remove it")
    if settings.load_weights_only and settings.checkpoint_path is None:
        found = "is given, but no weights are: checkpoint_path is not set"
        yield Fault(("tr_params", "load_weights_only"), found, "set checkpoint_path, or remove it")


def _mixup_faults(task: Task) -> Iterator[Fault]:
    settings, sampling = task.tr_params, task.dataset_config.sampling
    if settings.mixup is not None:
        path = ("tr_params", "mixup")
        if settings.given_batch_size == 1:
            found = "needs two patches to mix, tr_params.batch_size is 1"
            yield Fault(path, found, "raise it, or remove mixup")
        if sampling is not None and sampling.hard > 0:
            found = "and dataset_config.sampling.hard exclude each other"
            yield Fault(path, found, "remove one: the loss of a mixed patch is of two")
        if settings.mixup.manifold and not task.model.mixes_features:
            found = f"{task.model.name} cannot mix the features of its levels"
            yield Fault((*path, "manifold"), found, "set it to false: the image alone is mixed")


def _curve_faults(task: Task) -> Iterator[Fault]:
    settings, curves = task.tr_params, epoch_curves(task.dataset_config.targets)
    named: dict[tuple[str, ...], str | None] = {("best_metric",): settings.best_metric}
    if settings.early_stopping is not None:
        named["early_stopping", "metric"] = settings.early_stopping.metric
    for path, curve in named.items():
        if curve is not None and curve not in curves:
            found = f"{shown(curve)} is no curve of this run"
            yield Fault(("tr_params", *path), found, f"give one of {listed(curves)}")
