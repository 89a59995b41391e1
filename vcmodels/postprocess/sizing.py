"""The keys that choose objects by their size."""

from collections.abc import Callable
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.geometry.boxes import Spacing
from vcmodels.postprocess.lengths import least_voxels, refuse_both, require_length
from vcmodels.postprocess.pieces import Pieces
from vcmodels.section import Section

VoxelCount = Annotated[int, Field(ge=1)]
PositiveNumber = Annotated[float, Field(gt=0)]


class SizeKeys(Section):
    """Which objects are kept."""

    min_size: VoxelCount | None = None
    """Smaller objects are removed; in voxels."""
    min_size_um3: PositiveNumber | None = None
    """Smaller objects are removed; in cubic micrometers."""
    largest: VoxelCount | None = None
    """Only so many are kept, the largest; of two of one size the one that comes first."""

    @model_validator(mode="after")
    def _check_one_size(self) -> Self:
        refuse_both("min_size", self.min_size, self.min_size_um3)
        return self

    def check_units(self, unit: str | None) -> None:
        """Refuse keys in micrometers where the store says no length, with a TaskError."""
        if self.min_size_um3 is not None:
            require_length("min_size_um3", unit)

    @property
    def chooses(self) -> bool:
        """Whether an object may be removed."""
        return any(key is not None for key in (self.min_size, self.min_size_um3, self.largest))

    def kept(self, voxels: np.ndarray, firsts: np.ndarray, spacing_um: Spacing) -> np.ndarray:
        """Which of some objects are kept.

        Args:
            voxels: (n,) int64: how many each one has.
            firsts: (n,) int64: the number of the first voxel of each.
            spacing_um: length of a voxel along (z, y, x).

        Returns:
            (n,) bool.
        """
        least = self.min_size or 1
        if self.min_size_um3 is not None:
            least = least_voxels(self.min_size_um3, spacing_um)
        kept = voxels >= least
        if self.largest is not None:
            kept[by_size(voxels, firsts)[self.largest :]] = False
        return kept


def kept_of(
    pieces: Pieces, groups: np.ndarray, rule_of: Callable[[int], SizeKeys], spacing_um: Spacing
) -> np.ndarray:
    """Which objects are kept, those of each group by themselves.

    Args:
        pieces: of the objects.
        groups: (objects + 1,) integers, 0 for the background only.
        rule_of: the keys that hold for a group.
        spacing_um: length of a voxel along (z, y, x).

    Returns:
        (objects + 1,) bool, false for the background.
    """
    voxels, firsts = pieces.voxels, pieces.firsts
    kept = np.zeros(len(voxels), bool)
    for group in np.unique(groups[1:]).tolist():
        chosen = np.flatnonzero(groups == group)
        kept[chosen] = rule_of(group).kept(voxels[chosen], firsts[chosen], spacing_um)
    return kept


def by_size(voxels: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """(n,) int64: the order of objects, the largest first; of two of one size the earlier one."""
    return np.lexsort((firsts, -voxels))
