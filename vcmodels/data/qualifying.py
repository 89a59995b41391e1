"""Random shifts of a drawn patch to places that meet the task's thresholds as well."""

from collections.abc import Sequence

import numpy as np

from vcmodels.config import Task
from vcmodels.data.label_index import cell_shape
from vcmodels.data.patches import Candidates, PatchCriteria, survey
from vcmodels.data.volumes import TaskVolume
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent

TRIES = 32
"""Shifts that are drawn before a patch stays where it is."""


class QualifyingShifts:
    """Shifts by whole cells, for which the label index says exactly what a patch holds.

    Args:
        task: the resolved task.
        volumes: all its volumes; where one has no reference label, every place qualifies.
    """

    def __init__(self, task: Task, volumes: Sequence[TaskVolume]) -> None:
        criteria = PatchCriteria.of(task)
        self.cell = cell_shape(criteria.patch, criteria.stride)
        self.reach = [s // 2 // c for s, c in zip(criteria.stride, self.cell, strict=True)]
        found = survey(task, volumes, Silent(), stride=self.cell)
        self._grids = [one.grid for one in found]
        self._places = [_qualifying(one, criteria) for one in found]

    def moved(self, number: int, patch: Box, region: Box, rng: np.random.Generator) -> Box:
        """The patch at a random qualifying place within half a stride, inside its region.

        Args:
            number: of the volume.
            patch: as found.
            region: what may be read.
            rng: of this draw.
        """
        grid, places = self._grids[number], self._places[number]
        for shift in rng.integers(
            [-r for r in self.reach], [r + 1 for r in self.reach], (TRIES, 3)
        ):
            z, y, x = (
                o + int(s) * c for o, s, c in zip(patch.origin, shift, self.cell, strict=True)
            )
            moved = Box((z, y, x), patch.shape)
            if not region.contains(moved):
                continue
            if places is None or _holds(places, grid.place(moved.origin)):
                return moved
        return patch


def _qualifying(one: Candidates, criteria: PatchCriteria) -> np.ndarray | None:
    """Flat numbers of the places that meet the thresholds, ascending; None for all."""
    if one.density is None or criteria.takes_everything:
        return None
    return one.density.places[one.enough(criteria)]


def _holds(ascending: np.ndarray, number: int | None) -> bool:
    if number is None:
        return False
    at = int(np.searchsorted(ascending, number))
    return at < len(ascending) and int(ascending[at]) == number
