"""What a network learns of voxels without a label: to predict them as its own average does in another view.

Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv:1703.01780): the average of the
weights of many steps is nearly always a better network than the last ones. It sees the patch of the
student mirrored or turned; what it says is turned back, vectors with the voxels, so that a direction
has to follow the image. Each kind is compared by its own measure (`Target.disagreement`), and
only where the average is sure of it. A voxel that has a label learns from that alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp

import torch
from torch import Tensor, nn

from vcmodels.augment.apply import exact_moves
from vcmodels.augment.base import Augmentation
from vcmodels.augment.resample import turn_tensor
from vcmodels.augment.views import turned_back
from vcmodels.config.train_params import ConsistencyParams
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.losses.agreement import sure_mean
from vcmodels.models.base import Logits
from vcmodels.samples.loader import Batch
from vcmodels.targets import AnyTarget

Run = Callable[[Callable[[Tensor], Logits], Batch], Logits]
"""Runs a network on a batch, in the precision of the training."""


@dataclass(frozen=True)
class Consistency:
    """The loss against the averaged weights; a `Lesson`."""

    averaged: nn.Module
    """In eval mode; the learner moves its weights after each step, this loss never does."""
    run: Run
    targets: Mapping[str, AnyTarget]
    views: Sequence[Symmetry]
    """Those of which one is drawn for each micro-batch."""
    spacing: Spacing
    settings: ConsistencyParams
    total_steps: int
    name: str = "consistency"

    def weight(self, step: int) -> float:
        """exp(-5 (1 - t)^2) of the factor while t rises from 0 to 1 (Laine and Aila 2017, arXiv:1610.02242)."""
        ramp = self.settings.ramp_steps
        steps = self.total_steps // 4 if ramp is None else ramp
        rest = max(0.0, 1 - step / steps) if steps else 0.0
        return self.settings.weight * exp(-5 * rest**2)

    def losses(self, batch: Batch, outputs: Logits) -> dict[str, Tensor]:
        """As `Lesson.losses`; voxels with a label count as 0, and so do those that are not sure.

        The view is drawn from torch's generator, which each step seeds.
        """
        drawn = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        taught = self.predictions(batch, self.views[drawn])
        found: dict[str, Tensor] = {}
        for name, target in self.targets.items():
            blended, known = taught[name]
            certainty = target.certainty(blended)
            free = ~batch.valid[name]
            certainty = certainty * (free if known is None else free & known)
            distance = target.disagreement(outputs[name][0].float(), blended)
            found[name] = sure_mean(distance, certainty, self.settings.confidence)
        return found

    @torch.no_grad()
    def predictions(self, batch: Batch, view: Symmetry) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Per target what the average says of a batch, through one view.

        Returns:
            `blendable` values (B, A, Z, Y, X) float32, and where the view says something, (V, Z, Y, X)
            bool; None: everywhere.
        """
        turned = batch if view.is_identity else replace(batch, image=turn_tensor(view, batch.image))
        logits = self.run(self.averaged, turned)
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, target in self.targets.items():
            mine, known = turned_back(target, logits[name][0].float(), view, self.spacing)
            found[name] = target.blendable(mine), known
        return found


def views_of(
    augmentations: Sequence[Augmentation], patch: Shape, spacing: Spacing
) -> tuple[Symmetry, ...]:
    """The views that a task's own mirrors and turns may give, and that keep the shape of the patch.

    Args:
        augmentations: of the task: what they leave out, such as a mirror that makes a left hand of a
            right one, is no view either.
        patch: (z, y, x).
        spacing: length of a voxel along (z, y, x).

    Returns:
        All but the identity; the identity where there is no other.
    """
    moves = exact_moves(augmentations, spacing)
    fitting = [m for m in moves if not m.is_identity and m.turned_shape(patch) == patch]
    return tuple(fitting) or moves[:1]
