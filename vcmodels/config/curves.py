"""The curves that a training has a value of after each epoch."""

from collections.abc import Mapping

from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Sense


def epoch_curves(targets: Mapping[str, AnyTarget]) -> dict[str, Sense]:
    """Their names, and whether less or more of each is better.

    Those of `val/` have no value in a run without validation patches.
    """
    found: dict[str, Sense] = {"val/loss": "min"}
    for name, target in targets.items():
        found |= {f"val/loss_{name}": "min", f"epoch/train_loss_{name}": "min"}
        found |= {f"val/{metric}_{name}": sense for metric, sense in target.metrics.items()}
    return found
