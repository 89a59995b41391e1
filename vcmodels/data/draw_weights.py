"""How often each patch is drawn: weights of volumes, foreground and classes, from the label index.

A share F of the draws is made for a class c with probability q_c, and for a patch in proportion to
its n_c voxels of that class (as nnU-Net takes a voxel of a random class; Isensee et al. 2021); the
others take any patch. That is one weight for each patch,

    (1 - F) w / sum(w) + F sum_c q_c w n_c / sum(w n_c),

with w the weight of its volume, so that draws stay a function of (seed, draw number) alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np

from vcmodels.config import Task
from vcmodels.config.sampling import SamplingConfig
from vcmodels.data.indexer import Indexer, Wanted
from vcmodels.data.label_index import LabelIndex, cell_shape
from vcmodels.data.patch_density import PatchGrid, patch_density, patch_grid
from vcmodels.data.patches import PatchCriteria, ignored_values
from vcmodels.data.volumes import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.reporting import Reporter, Silent

KEY = "dataset_config.sampling"


def draw_weights(
    task: Task, volumes: Sequence[TaskVolume], rows: np.ndarray, reporter: Reporter | None = None
) -> np.ndarray:
    """A weight for each row of the patch list, (n,) float64 that sum to 1.

    Args:
        task: the resolved task.
        volumes: all its volumes.
        rows: (n, 4) patches to draw from: volume number, z, y, x.
        reporter: told when labels have to be read.

    Raises:
        TaskError: no patch holds what is to be drawn, or a label's values are not counted.
    """
    base = np.array([volume.weight for volume in volumes])[rows[:, 0]]
    base /= base.sum()
    config = task.dataset_config.sampling
    if config is None or config.foreground == 0:
        return base
    held = voxels_held(task, volumes, rows, config, reporter or Silent())
    wanted = _class_shares(config, held)
    weights = (1 - config.foreground) * base
    for name, share in wanted.items():
        drawn = base * (held[name] > 0 if config.classes is None else held[name])
        weights += config.foreground * share * drawn / drawn.sum()
    return weights


def voxels_held(
    task: Task,
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    config: SamplingConfig,
    reporter: Reporter,
) -> dict[str, np.ndarray]:
    """By value as text, the voxels (n,) of it in each row; all together as "" without classes."""
    criteria = PatchCriteria.of(task)
    cell = cell_shape(criteria.patch, criteria.stride)
    names = [config.label or volume.ref_target for volume in volumes]
    grids: dict[int, PatchGrid] = {}
    labels: list[Wanted] = []
    for number, (volume, name) in enumerate(zip(volumes, names, strict=True)):
        if name is not None and name in volume.labels and (rows[:, 0] == number).any():
            box = volume.labels[name].box
            grid = patch_grid(box, volume.region, criteria.patch, criteria.stride, cell)
            ignore = ignored_values(task, name)
            grids[number] = grid
            labels.append(Wanted(volume.labels[name], grid.frame, volume.region, cell, ignore))
    held: dict[str, np.ndarray] = {}
    with closing(Indexer.of(task, reporter).indexes(labels)) as indexes:
        for (number, grid), index in zip(grids.items(), indexes, strict=True):
            mine = rows[:, 0] == number
            places = _places(grid, rows[mine, 1:], volumes[number])
            for value in _values(index, config, volumes[number]):
                density = patch_density(index, grid, None if value is None else [value])
                counts = held.setdefault("" if value is None else str(value), np.zeros(len(rows)))
                at = np.searchsorted(density.places, places)
                at = np.minimum(at, max(len(density.places) - 1, 0))
                if len(density.places):
                    counts[mine] = np.where(density.places[at] == places, density.labelled[at], 0)
    return held


def _values(index: LabelIndex, config: SamplingConfig, volume: TaskVolume) -> Sequence[int | None]:
    """The values to tell apart, or None for all labels together."""
    if config.classes is None:
        return [None]
    if index.values is None:
        found = f"the label of {volume.name} holds too many values, or none that are whole numbers"
        raise TaskError(f"{KEY}.classes", found, "leave it out, or name a label with few values")
    return index.values


def _class_shares(config: SamplingConfig, held: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of the foreground draws for each value; they sum to 1.

    Raises:
        TaskError: there is nothing to draw for.
    """
    present = sorted(name for name, counts in held.items() if counts.any())
    if not present:
        raise TaskError(f"{KEY}.foreground", "no training patch holds labels", "set it to 0")
    wanted = config.classes
    if not isinstance(wanted, dict):
        return dict.fromkeys(present, 1 / len(present))
    lacking = [name for name, weight in wanted.items() if weight and name not in present]
    if lacking:
        found = f"no training patch holds {', '.join(lacking)}; there are {', '.join(present)}"
        raise TaskError(f"{KEY}.classes", found, "correct the values, or leave those out")
    total = sum(wanted.values())
    if not total:
        raise TaskError(f"{KEY}.classes", "all weights are 0", "give one above 0")
    return {name: weight / total for name, weight in wanted.items() if weight}


def _places(grid: PatchGrid, origins: np.ndarray, volume: TaskVolume) -> np.ndarray:
    """Flat numbers in the grid of patches (n, 3) of the list.

    Raises:
        TaskError: one is not on the grid; such a list is not of this task's own finding.
    """
    indices = [
        np.minimum(np.searchsorted(axis, origins[:, a]), len(axis) - 1)
        for a, axis in enumerate(grid.origins)
    ]
    found = np.stack([axis[i] for axis, i in zip(grid.origins, indices, strict=True)], axis=1)
    if (found != origins).any():
        found = f"the patch list of {volume.name} was not found with this task"
        raise TaskError(KEY, found, "delete the cache_file, or leave sampling out")
    return np.asarray(np.ravel_multi_index(tuple(indices), grid.counts), np.int64)
