"""Probabilities and the label beside them, class by class: what losses on regions compare."""

import torch
from torch import Tensor

from vcmodels.losses.masking import keep_valid, masked_inputs


def region_pair(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    smoothing: float = 0.0,
    background: bool = False,
) -> tuple[Tensor, Tensor]:
    """Probability and target of each class, two (B, K, Z, Y, X) in [0, 1]; 0 where not valid.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) in [0, 1]: masks, each with the sigmoid of its channel, K = C. For
            C > 1, (B, 1, Z, Y, X) class indices 0..C-1 with the softmax, K = C - 1 or C.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        smoothing: a in [0, 1]: y becomes (1 - a) y + a / 2, one-hot (1 - a) onehot + a / C.
        background: keep class 0 of class indices.
    """
    logits, label = masked_inputs(logits, label, valid)
    classes = logits.shape[1]
    if label.shape[1] == classes:
        probability, soft = logits.sigmoid(), label * (1 - smoothing) + smoothing / 2
    else:
        first = 0 if background else 1
        probability = logits.softmax(1)[:, first:]
        index = torch.arange(first, classes, device=logits.device).view(1, -1, 1, 1, 1)
        soft = (label == index).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return keep_valid(probability, valid), keep_valid(soft, valid)
