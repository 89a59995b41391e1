"""What must agree between the keys on how weights are learnt; no file is opened."""

from collections.abc import Iterator

from vcmodels.config.messages import Fault
from vcmodels.config.task import Task


def recipe_faults(task: Task) -> Iterator[Fault]:
    """Keys of `tr_params` that exclude each other, or do nothing alone."""
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
    if settings.freeze_epochs is not None and not settings.freeze:
        found = "is given, but nothing is frozen"
        yield Fault(("tr_params", "freeze_epochs"), found, "name what in freeze, or remove it")
