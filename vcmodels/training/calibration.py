"""Temperatures of heads, fitted to logits of the validation patches as they are validated."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vcmodels.metrics.calibration import Calibration, fit_temperature
from vcmodels.targets import AnyTarget

SAMPLED = 4096
"""Voxels of each patch: neighbours say nearly the same, and all patches together hold enough."""
_GOLDEN = (5**0.5 - 1) / 2

LogitSample = tuple[Tensor, Tensor]
"""Logits (n, C) float32 of single voxels, and what is labelled there, (n, 1); on the CPU."""


def is_calibrated(target: AnyTarget) -> bool:
    """Whether a target predicts probabilities that a temperature changes."""
    return target.predicts in ("masks", "classes")


def sample_logits(logits: Tensor, label: Tensor, valid: Tensor) -> LogitSample:
    """Logits of up to `SAMPLED` voxels of one patch that count, spread over all of them.

    Args:
        logits: (C, Z, Y, X).
        label: (C, Z, Y, X) masks, of which each channel is sampled as a voxel of its own; or
            (1, Z, Y, X) class indices.
        valid: (V, Z, Y, X) bool.
    """
    label = label.float()
    if label.shape == logits.shape:
        logits, valid = logits.reshape(1, -1), valid.expand_as(label)
    places = valid.flatten().nonzero()[:, 0]
    places = places[_spread(len(places)).to(places.device)]
    found = logits.flatten(1)[:, places].T, label.flatten()[places, None]
    return found[0].float().cpu(), found[1].cpu()


def _spread(count: int) -> Tensor:
    """Up to `SAMPLED` of 0 ... count - 1: all, or multiples of the golden ratio.

    A constant step could meet the same column of every row.
    """
    if count <= SAMPLED:
        return torch.arange(count)
    return (torch.arange(SAMPLED, dtype=torch.float64) * _GOLDEN % 1 * count).long()


def fit_heads(samples: Mapping[str, Sequence[LogitSample]]) -> dict[str, Calibration]:
    """The temperature of each head of which a voxel is known; logits that are not finite are left out."""
    found: dict[str, Calibration] = {}
    for name, parts in samples.items():
        logits, label = (torch.cat(column) for column in zip(*parts, strict=True))
        known = logits.isfinite().all(1)
        if known.any():
            found[name] = fit_temperature(logits[known], label[known])
    return found
