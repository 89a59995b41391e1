"""The patch and the batch that a memory budget allows, in closed form.

An axis of `m * 2^k` voxels with m of 4 to 7 is what `topology` halves k times, so these lengths, four
to an octave, are the only ones tried. From the patch that covers the volume, the physically longest
axes are cut one length at a time, together where they tie, until a step fits: nnU-Net's rule (Isensee
et al. 2021), but with physically cubic patches where that one keeps the proportions of the volume.
Which patches are tried does not depend on the budget, so more memory never makes one shorter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vcmodels.geometry.boxes import Shape
from vcmodels.models.topology import MIN_EDGE, Spacing

LONGEST = 1024
"""Voxels along an axis that are tried at most."""
SHORTEST = 2 * MIN_EDGE
"""Below, an axis is not cut any more."""
BATCH_SIZE = 2
"""Patches of a step, while patches can still grow (nnU-Net's least)."""
BATCH_SHARE = 0.05
"""Share of all voxels that the batch may be where patches cover their volume (nnU-Net's)."""
TIE = 0.99


def length_at_least(extent: int) -> int:
    """The shortest good length that covers `extent`, `LONGEST` at most."""
    extent = min(extent, LONGEST)
    return -(-extent // _step(extent)) * _step(extent)


def length_at_most(extent: int) -> int:
    """The longest good length that `extent` has room for, `LONGEST` at most."""
    extent = min(extent, LONGEST)
    return extent // _step(extent) * _step(extent)


def candidates(longest: Shape, spacing: Spacing) -> Iterator[Shape]:
    """Patches to try, the largest first, each inside the one before.

    Args:
        longest: good lengths along (z, y, x).
        spacing: voxel size along (z, y, x).
    """
    patch = list(longest)
    while True:
        yield patch[0], patch[1], patch[2]
        long = [n * s if n > SHORTEST else 0.0 for n, s in zip(patch, spacing, strict=True)]
        if not any(long):
            return
        cut = [length >= TIE * max(long) for length in long]
        patch = [length_at_most(n - 1) if c else n for n, c in zip(patch, cut, strict=True)]


@dataclass(frozen=True, slots=True)
class Tried:
    """A patch that the network takes, and what a step with it needs."""

    patch: Shape
    step_bytes: int


def plan_patch(
    longest: Shape, spacing: Spacing, budget: int, step_bytes: Callable[[Shape], int | None]
) -> list[Tried]:
    """The candidates up to the first that fits the budget.

    Args:
        longest: good lengths along (z, y, x) that the patch may have at most.
        spacing: voxel size along (z, y, x).
        budget: bytes for a step.
        step_bytes: what a step with a patch needs; None for one that the network cannot take.

    Returns:
        Those that the network takes, the planned one last; if that exceeds the budget, all do.
    """
    tried: list[Tried] = []
    for patch in candidates(longest, spacing):
        needed = step_bytes(patch)
        if needed is not None:
            tried.append(Tried(patch, needed))
            if needed <= budget:
                break
    return tried


def plan_batch(fixed_bytes: int, patch_bytes: int, budget: int, most: int) -> int:
    """Patches of a step that fit: `most` at most, but `BATCH_SIZE` at least.

    Args:
        fixed_bytes: what a step needs without any patch.
        patch_bytes: what each patch adds.
        budget: bytes for a step.
        most: patches that are worth having.
    """
    return max(min((budget - fixed_bytes) // patch_bytes, most), BATCH_SIZE)


def _step(length: int) -> int:
    """The power of two that good lengths around this one are multiples of."""
    return max(1 << length.bit_length() >> MIN_EDGE.bit_length(), 1)
