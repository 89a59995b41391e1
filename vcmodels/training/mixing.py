"""Mixup: training on weighted means of two patches, or of their features.

Zhang et al. 2018 (arXiv:1710.09412) mix images and labels; Verma et al. 2019, "Manifold mixup"
(arXiv:1806.05236), the features of a random level. Labels are not mixed here: the loss is the mean
of the losses against the labels of either patch, by the same shares. For a cross-entropy that is
the same as mixing labels, and it is lawful for all others, too: no vector is averaged with its
opposite, no class id becomes another, each patch keeps its own voxels that count, and its weight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.config.recipes import Mixup
from vcmodels.data.loader import Batch
from vcmodels.errors import TaskError
from vcmodels.models.base import FeatureMix, mix_samples
from vcmodels.training.objective import Outputs

_STREAM = 0x6D69780A
"""Keeps these draws apart from others that begin with the seed, too."""


@dataclass(frozen=True)
class Mix:
    """How the samples of one batch are mixed."""

    share: float
    """Of each sample, in [0, 1]; the rest is of the sample before it."""
    level: int | None = None
    """Of the encoder, whose features are mixed; the images are when None."""

    def batch(self, batch: Batch) -> Batch:
        """The batch that the network is to see: its images mixed, unless features are."""
        if self.level is not None:
            return batch
        return replace(batch, image=mix_samples(batch.image, self.share))

    def through(self, network: nn.Module) -> Callable[[Tensor], Outputs]:
        """The network, which mixes features where it shall."""
        if self.level is None:
            return network
        level = self.level
        return lambda image: network(
            image, None, FeatureMix(level, torch.full((), self.share, device=image.device))
        )

    def mean(self, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the losses against either labels make together, by name."""
        return {name: self.share * own[name] + (1 - self.share) * others[name] for name in own}


def draw_mix(
    settings: Mixup | None, levels: int, *, seed: int, step: int, number: int
) -> Mix | None:
    """How to mix a batch; a function of the arguments, so that a resumed run mixes alike.

    Args:
        settings: of the task.
        levels: of the network's encoder.
        seed: of the task.
        step: of the run, 0-based.
        number: of the batch in the step.

    Returns:
        None when the batch is not to be mixed.
    """
    if settings is None:
        return None
    random = np.random.default_rng((seed, _STREAM, step, number))
    is_mixed, share = random.random() < settings.p, random.beta(settings.alpha, settings.alpha)
    level = int(random.integers(-1, levels)) if settings.manifold else -1
    return Mix(float(share), None if level < 0 else level) if is_mixed else None


def require_pairs(settings: Mixup | None, samples: int) -> None:
    """Refuse to mix batches of one sample.

    Args:
        settings: of the task.
        samples: in the batch of one process.

    Raises:
        TaskError: there is only one.
    """
    if settings is not None and samples < 2:
        found = "needs two patches to mix, each process has one at a time"
        raise TaskError("tr_params.mixup", found, "raise batch_size, or start fewer processes")


def partners(batch: Batch) -> Batch:
    """The same images with the labels of the samples that they are mixed with."""
    return replace(
        batch,
        labels={name: label.roll(1, 0) for name, label in batch.labels.items()},
        valid={name: valid.roll(1, 0) for name, valid in batch.valid.items()},
        weight={
            name: None if weight is None else weight.roll(1, 0)
            for name, weight in batch.weight.items()
        },
    )
