"""How far a prediction is from another network's, voxel by voxel: 0 where they are equal.

The other one is a teacher (Hinton et al. 2015, "Distilling the knowledge in a neural network",
arXiv:1503.02531), a committee of them, or an average of the same network. Probabilities are compared
by the Kullback-Leibler divergence: the cross-entropy with the teacher's probabilities less their
entropy, so that its gradient is that of the soft cross-entropy and it is 0 when both agree. Gradients
go to the first argument alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masked import full_precision
from vcmodels.losses.regression import LENGTH_FLOOR


def mask_divergence(logits: Tensor, probability: Tensor) -> Tensor:
    """The divergence of the sigmoid of each channel from a probability.

    Args:
        logits: (B, K, Z, Y, X), before the sigmoid; half types are computed in float32.
        probability: (B, K, Z, Y, X) in [0, 1].

    Returns:
        (B, K, Z, Y, X) float32, 0 or more up to rounding.
    """
    logits, probability = full_precision(logits), probability.detach().float()
    crossed = F.binary_cross_entropy_with_logits(logits, probability, reduction="none")
    rest = 1 - probability
    return crossed + torch.xlogy(probability, probability) + torch.xlogy(rest, rest)


def class_divergence(logits: Tensor, probability: Tensor) -> Tensor:
    """The divergence of the softmax from probabilities.

    Args:
        logits: (B, C, Z, Y, X), before the softmax; half types are computed in float32.
        probability: (B, C, Z, Y, X), 1 in sum over C.

    Returns:
        (B, 1, Z, Y, X) float32, 0 or more up to rounding.
    """
    probability = probability.detach().float()
    own = full_precision(logits).log_softmax(1)
    return (torch.xlogy(probability, probability) - probability * own).sum(1, keepdim=True)


def value_distance(values: Tensor, others: Tensor) -> Tensor:
    """d^2 / 2 where |d| < 1 and |d| - 1/2 beyond (as `smooth_l1`), in the mean over channels.

    Args:
        values: (B, C, Z, Y, X); half types are computed in float32.
        others: (B, C, Z, Y, X).

    Returns:
        (B, 1, Z, Y, X) float32.
    """
    found = F.smooth_l1_loss(full_precision(values), others.detach().float(), reduction="none")
    return found.mean(1, keepdim=True)


def direction_distance(vectors: Tensor, others: Tensor) -> Tensor:
    """1 - cos(angle), for vectors with a sign; their lengths do not count.

    Args:
        vectors: (B, 3, Z, Y, X), of any length; half types are computed in float32.
        others: (B, 3, Z, Y, X), unit vectors; 0 where there is no direction.

    Returns:
        (B, 1, Z, Y, X) float32 in [0, 2].
    """
    return 1 - _cosine(vectors, others)


def axis_distance(vectors: Tensor, others: Tensor) -> Tensor:
    """1 - cos(angle)^2, for axes: the signs of both do not count; arguments as `direction_distance`.

    Squared for the reasons that `axial_cosine` gives: the absolute cosine has its corner where
    student and teacher are at right angles.
    """
    return 1 - _cosine(vectors, others).square()


def _cosine(vectors: Tensor, others: Tensor) -> Tensor:
    vectors, others = full_precision(vectors), others.detach().float()
    length_squared = vectors.square().sum(1, keepdim=True) + LENGTH_FLOOR**2
    return (vectors * others).sum(1, keepdim=True) * length_squared.rsqrt()


def sure_mean(distance: Tensor, certainty: Tensor, least: float | None) -> Tensor:
    """The sum of distances where the other network is sure enough, over *all* voxels of a sample.

    The divisor does not depend on what the teacher says, so that a step can be divided over
    micro-batches and processes at will, and a teacher that is sure of little pulls little (as in
    FixMatch, Sohn et al. 2020, arXiv:2001.07685, equation 4).

    Args:
        distance: (B, V, Z, Y, X) float32.
        certainty: (B, V or 1, Z, Y, X) in [0, 1]; where it is 0 nothing counts.
        least: from which on voxels count; all that are above 0 when None.

    Returns:
        (B,) float32.
    """
    sure = certainty > 0
    if least is not None:
        sure = sure & (certainty >= least)
    return torch.where(sure, distance, distance.new_zeros(())).flatten(1).mean(1)
