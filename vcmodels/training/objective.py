"""What is minimised: the loss of each sample, weighted by how many of its voxels count."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.data.loader import Batch
from vcmodels.targets import AnyTarget

Outputs = Mapping[str, tuple[Tensor, ...]]
"""Logits (B, C, Z, Y, X) of each target, full resolution first."""


def voxel_counts(batch: Batch) -> dict[str, Tensor]:
    """Per target (B,) float32: how many voxels of each sample count.

    They weigh the samples of a step, so that a patch with few labels has a small say. As they are
    known before any network runs, the samples of a step can be divided over micro-batches and
    processes at will: the weighted sum of their losses, and its gradient, stay the same. A loss
    over a whole batch could not be (a Dice of sums is no sum of Dices).
    """
    return {name: valid.flatten(1).sum(1).float() for name, valid in batch.valid.items()}


def sample_losses(
    targets: Mapping[str, AnyTarget], outputs: Outputs, batch: Batch
) -> dict[str, Tensor]:
    """Per target (B,) float32: the loss of each sample by itself, 0 where no voxel counts."""
    found: dict[str, Tensor] = {}
    for name, target in targets.items():
        label, valid, weight = batch.labels[name], batch.valid[name], batch.weight.get(name)
        # Split, not indexed: the gradient of all parts is put together once, where that of each
        # index would be a tensor of the whole batch.
        parts = zip(
            zip(*(logits.split(1) for logits in outputs[name]), strict=True),
            label.split(1),
            valid.split(1),
            [None] * len(label) if weight is None else weight.split(1),
            strict=True,
        )
        found[name] = torch.stack([supervised_loss(target, *part) for part in parts])
    return found


def weighted_sums(losses: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per target the sum of the losses (B,) of samples, each times its count (B,)."""
    return {name: (found * counts[name]).sum() for name, found in losses.items()}


@torch.no_grad()
def mean_over_targets(
    targets: Mapping[str, AnyTarget], losses: Mapping[str, Tensor], counts: Mapping[str, Tensor]
) -> Tensor:
    """(B,) the mean loss of each sample by the fixed weights of its targets; NaN where none counts.

    Of a mean, not the sum, so that volumes with few labels do not pass for easy ones.
    """
    weights = torch.stack([t.weight * (counts[name] > 0) for name, t in targets.items()])
    found = torch.stack([losses[name] for name in targets])
    return (found * weights).sum(0) / weights.sum(0)


def supervised_loss(
    target: AnyTarget,
    outputs: Sequence[Tensor],
    label: Tensor,
    valid: Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The target's loss over its outputs, full resolution first, with weights 1, 1/2, 1/4 ...

    Deep supervision (Lee et al. 2015; the weights are nnU-Net's): labels of the coarser outputs are
    the nearest voxels, since averaging class ids or vectors would make new ones.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = label.new_zeros(())
    for logits, weight in zip(outputs, weights, strict=True):
        shape = logits.shape[2:]
        if shape == label.shape[2:]:
            fitted, counted = label, valid
        else:
            fitted = F.interpolate(label, shape, mode="nearest-exact")
            counted = F.interpolate(valid.float(), shape, mode="nearest-exact") > 0
        part = target.compute_loss(logits.float(), fitted, counted, sample_weight)
        total = total + weight * part
    return total / sum(weights)
