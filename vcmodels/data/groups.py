"""Groups of volumes, such as those of one patient, that no split may divide."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vcmodels.errors import TaskError

if TYPE_CHECKING:
    from vcmodels.data.volumes import TaskVolume


def settle_groups(volumes: "Sequence[TaskVolume]") -> "list[TaskVolume]":
    """The volumes, each with the `split` that another one of its group has of its own.

    Raises:
        TaskError: a group has volumes that train and others that validate.
    """
    fixed: dict[str, TaskVolume] = {}
    for volume in volumes:
        if volume.group is not None and volume.split is not None:
            first = fixed.setdefault(volume.group, volume)
            if first.split != volume.split:
                found = (
                    f'is "{volume.split}", and {first.name}, also of group {volume.group}, is '
                    f'"{first.split}"'
                )
                raise TaskError(f"{volume.key}.split", found, "give a group to one side")
    return [
        replace(v, split=fixed[v.group].split) if v.group in fixed and v.split is None else v
        for v in volumes
    ]


def units_of(volumes: "Sequence[TaskVolume]", numbers: Iterable[int]) -> list[list[int]]:
    """The numbers of volumes that stay together: those of a group, else each alone.

    In the order of their first volume.
    """
    units: dict[str | int, list[int]] = {}
    for n in numbers:
        group = volumes[n].group
        units.setdefault(n if group is None else group, []).append(n)
    return list(units.values())
