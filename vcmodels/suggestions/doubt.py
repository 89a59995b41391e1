"""How unsure a network is of a box, apart for each class that it may hold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vcmodels.targets import AnyTarget
from vcmodels.targets.multiclass import MulticlassTarget


@dataclass(frozen=True)
class BoxDoubt:
    """Of one box."""

    by_class: Mapping[str, float]
    """0 where the network is sure, up to 1, by the name of the class."""
    foreground: float
    """The share of voxels that are predicted to be something."""


def doubt_in_probabilities(name: str, target: AnyTarget, probabilities: np.ndarray) -> BoxDoubt:
    """The entropy of each voxel, counted for a class by how likely that class is.

    So a box full of unsure background counts less than one with an unsure border of what is looked
    for. Entropy in units of its largest value (Shannon); weighing by classes follows what works best
    in 3D (Luth et al. 2025, nnActive, on foreground-aware choice).

    Args:
        name: of the target.
        target: of a kind that predicts probabilities.
        probabilities: (P, Z, Y, X) in [0, 1]: of one mask, of several, or of classes that add up to 1,
            the first of them the background.
    """
    shares = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    if isinstance(target, MulticlassTarget):
        entropy = -(shares * np.log(shares)).sum(0) / np.log(len(shares))
        by_class = zip(target.class_names, shares[1:], strict=True)
        doubts = {f"{name}: {c}": float((entropy * share).mean()) for c, share in by_class}
        return BoxDoubt(doubts, float((shares[0] < 0.5).mean()))
    entropy = -(shares * np.log2(shares) + (1 - shares) * np.log2(1 - shares))
    means = map(float, (entropy * shares).mean(axis=(1, 2, 3)))
    names = [name] if len(shares) == 1 else [f"{name}: {n}" for n in range(len(shares))]
    return BoxDoubt(dict(zip(names, means, strict=True)), float((shares > 0.5).any(0).mean()))


def doubt_in_dispersion(name: str, dispersion: np.ndarray, largest: float) -> BoxDoubt:
    """How far several predictions lie apart, of a target that says no probability.

    Args:
        name: of the target.
        dispersion: (1, Z, Y, X), the stored uncertainty.
        largest: what counts as 1.
    """
    found = np.nan_to_num(dispersion.astype(np.float64))
    share = float(np.clip(found / largest, 0, 1).mean())
    return BoxDoubt({name: share}, float((found > 0).mean()))


def joined(parts: list[BoxDoubt]) -> BoxDoubt:
    """Of several targets of one box: the classes of all, and the largest share of foreground."""
    classes = {name: value for part in parts for name, value in part.by_class.items()}
    return BoxDoubt(classes, max(part.foreground for part in parts))
