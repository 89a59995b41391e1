"""Keys in physical units: a key that ends in `_um` or `_um3` stands beside one in voxels."""

from math import ceil, prod

from vcmodels.errors import FaultError, TaskError
from vcmodels.extras import require_extra
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.volumes.spacing import in_unit, is_length

SLACK = 1e-5
"""Lengths and volumes that differ by less than this share are one, however they were rounded."""


def in_micrometers(spacing: Spacing, unit: str | None) -> Spacing:
    """The length of a voxel in micrometers; as it is where the store says no length."""
    return in_unit(spacing, unit, "micrometer")


def require_length(key: str, unit: str | None) -> None:
    """Refuse a key in micrometers for a store that says no length.

    Args:
        key: it ends in `_um` or `_um3`; its voxel form is what stands before.
        unit: of the spacing.

    Raises:
        TaskError: the unit is none, or no length.
    """
    if not is_length(unit):
        said = "no unit of length" if unit is None else f'the unit "{unit}", which is no length'
        in_voxels = key[: key.rindex("_um")]
        raise TaskError(key, f"the store says {said}", f'give "{in_voxels}", in voxels')


def refuse_both(key: str, in_voxels: float | None, in_um: float | None) -> None:
    """Refuse a key that is given in voxels and in micrometers.

    Raises:
        FaultError: both are there.
    """
    if in_voxels is not None and in_um is not None:
        raise FaultError(f'"{key}" is given twice, in voxels and in micrometers', "leave one out")


def least_voxels(volume_um3: float, spacing_um: Spacing) -> int:
    """The fewest voxels that hold a volume."""
    return max(ceil(volume_um3 / prod(spacing_um) * (1 - SLACK)), 1)


def least_size(
    in_voxels: int | None, in_um3: float | None, spacing: Spacing, unit: str | None
) -> int:
    """The fewest voxels by one of the keys `min_size` and `min_size_um3`; 1 where neither is given.

    Args:
        in_voxels: the first.
        in_um3: the second.
        spacing: length of a voxel along (z, y, x).
        unit: of the spacing; a length if the second is given.
    """
    if in_um3 is not None:
        return least_voxels(in_um3, in_micrometers(spacing, unit))
    return in_voxels or 1


def most_voxels(volume_um3: float, spacing_um: Spacing) -> int:
    """The most voxels that a volume holds."""
    return int(volume_um3 / prod(spacing_um) * (1 + SLACK))


def reach_of(radius: float, spacing: Spacing) -> Shape:
    """How many voxels along (z, y, x) have their centres within a radius, in the unit of both."""
    return triple(int(radius / step * (1 + SLACK)) for step in spacing)


def require_package(package: str, step: str) -> None:
    """Refuse a step whose library is not installed.

    Raises:
        RefusedError: it is not.
    """
    require_extra(package, extra="objects", subject="name", who=f'step "{step}"')
