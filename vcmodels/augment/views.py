"""What a network says of a turned patch, as a prediction of the patch itself."""

import torch
from torch import Tensor

from vcmodels.augment.resample import turn_tensor
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.targets.base import Spacing, Target


def turned_back(
    target: Target, logits: Tensor, view: Symmetry, spacing: Spacing
) -> tuple[Tensor, Tensor | None]:
    """The logits of a turned patch as logits of the patch: voxels moved, values turned.

    Args:
        target: whose values they are.
        logits: (B, C, Z', Y', X') float32, of the patch turned by `view`.
        view: the symmetry.
        spacing: length of a voxel along (z, y, x) of the patch.

    Returns:
        (B, C, Z, Y, X), and where the view says something, (V, Z, Y, X) bool; None: everywhere.
    """
    if view.is_identity:
        return logits, None
    back = view.inverse
    moved = turn_tensor(back, logits)
    jacobian = torch.as_tensor(back.matrix, dtype=torch.float32)
    everywhere = torch.ones((1, *moved.shape[2:]), dtype=torch.bool, device=moved.device)
    known = everywhere
    turned = []
    for sample in moved:
        values, known = target.turn(sample, everywhere, jacobian, spacing)
        turned.append(values)
    result = turned[0][None] if len(turned) == 1 else torch.stack(turned)
    return result, None if known is everywhere else known
