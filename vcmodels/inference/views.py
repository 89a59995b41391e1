"""Views of a patch: mirrored and turned, predicted, and turned back, values and all."""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from vcmodels.augment.exact import AXES
from vcmodels.augment.reading import turn_tensor
from vcmodels.config.averaging import Tta
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.symmetries import (
    IDENTITY,
    Symmetry,
    generated_group,
    have_equal_spacing,
    mirror,
    quarter_turn,
)
from vcmodels.targets.base import Spacing, Target


def choose_views(
    tta: Tta | None, patch: Shape, spacings: Sequence[Spacing], say: Callable[[str], None]
) -> tuple[Symmetry, ...]:
    """Every product of the mirrors and turns that are asked for, the patch as it is first.

    All of them keep the shape of the patch: the network sees none that it was not trained with, and
    is compiled once. A plane is turned by 180 degrees only where its axes differ in length of the
    patch, or in the voxel size of the volume or of the training.

    Args:
        tta: what is asked for; None: nothing.
        patch: shape of a patch, (z, y, x).
        spacings: length of a voxel along (z, y, x), for each volume that counts.
        say: told which planes are not turned by 90 degrees.
    """
    if tta is None:
        return (IDENTITY,)
    generators = [mirror(AXES.index(axis)) for axis in tta.flips]
    every = tuple(combinations(AXES, 2))
    planes = tta.quarter_turns if isinstance(tta.quarter_turns, tuple) else every
    for first, second in planes if tta.quarter_turns else ():
        a, b = AXES.index(first), AXES.index(second)
        turn = quarter_turn(a, b)
        is_lawful = all(have_equal_spacing(spacing, a, b) for spacing in spacings)
        if is_lawful and patch[a] == patch[b]:
            generators.append(turn)
        else:
            why = "patch length" if is_lawful else "voxel size"
            say(f"tta: {first} and {second} differ in {why}, turned by 180 degrees only")
            generators.append(turn @ turn)
    return generated_group(generators)


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
