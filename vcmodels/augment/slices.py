"""Geometry of patches that are single slices: what leaves their plane would read other slices."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vcmodels.augment.base import Augmentation, Axis
from vcmodels.augment.geometric import Flip, QuarterTurn
from vcmodels.augment.transform import Lattice
from vcmodels.geometry.boxes import Shape

Member = TypeVar("Member", bound=Augmentation)


def in_plane(augmentations: Sequence[Member], across: Axis) -> list[Member]:
    """The list for slices across an axis: without mirrors along it, and turns that exchange it.

    A mirror along it leaves a slice as it is and turns its vectors about; after a turn, what are
    slices here would be cuts through many.
    """
    kept: list[Member] = []
    for one in augmentations:
        if isinstance(one, Flip):
            axes = tuple(axis for axis in one.axes if axis != across)
            kept += [one.changed(axes=axes)] if axes else []
        elif isinstance(one, QuarterTurn):
            planes = tuple(plane for plane in one.planes if across not in plane)
            kept += [one.changed(planes=planes)] if planes else []
        else:
            kept.append(one)
    return kept


def flat_matrix(matrix: np.ndarray, patch: Shape) -> np.ndarray:
    """A Jacobian (3, 3) that stays in the plane of a patch that is one voxel thick along an axis."""
    flat = matrix.copy()
    for axis in _flat_axes(patch):
        flat[axis], flat[:, axis] = 0, 0
        flat[axis, axis] = 1
    return flat


def flat_lattice(lattice: Lattice, patch: Shape) -> Lattice:
    """Displacements within the plane of such a patch."""
    offsets = lattice.offsets.copy()
    offsets[_flat_axes(patch)] = 0
    return Lattice(offsets, lattice.distance)


def _flat_axes(patch: Shape) -> list[int]:
    return [axis for axis, length in enumerate(patch) if length == 1]
