"""How much label the patches of a grid hold, from the label index alone."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from vcmodels.data.label_index import LabelIndex
from vcmodels.geometry.boxes import Box, Shape

_Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]
_NOWHERE = np.iinfo(np.int32).max

_VALUES = np.arange(1 << 16)
_HIGHEST = (np.frexp(_VALUES)[1] - 1).astype(np.int32)  # of the set bits; -1 when there is none
_LOWEST = (np.frexp(_VALUES & -_VALUES)[1] - 1).astype(np.int32)


@dataclass(frozen=True)
class PatchGrid:
    """The candidate patches of a region: every combination of the origins of the three axes."""

    region: Box
    patch: Shape
    origins: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis, ascending int64 origins relative to the region."""

    @property
    def patch_voxels(self) -> int:
        """Voxels of a patch that lie in the region: a thin region pads its only patch."""
        return prod(min(p, n) for p, n in zip(self.patch, self.region.shape, strict=True))

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Absolute origins (n, 3) int64, in z, y, x order, of the chosen ones of the grid."""
        axes = zip(np.nonzero(chosen), self.origins, self.region.origin, strict=True)
        return np.stack([origins[i] + low for i, origins, low in axes], axis=1)


@dataclass(frozen=True)
class PatchDensity:
    """Labelled voxels of each patch of a grid."""

    labelled: np.ndarray
    """(origins z, y, x) int64: labelled voxels."""
    box: np.ndarray
    """(origins z, y, x) int64: voxels of their bounding box; 0 without labels."""


def patch_grid(region: Box, patch: Shape, stride: Shape, cell: Shape) -> PatchGrid:
    """Origins at multiples of the stride from the region's start, and one at its tail.

    The tail origin is rounded down to the cell, so that all patches are made of whole cells. A
    region thinner than the patch gets one patch along that axis.
    """
    z, y, x = (
        np.array(_axis_origins(n, p, s, c), np.int64)
        for n, p, s, c in zip(region.shape, patch, stride, cell, strict=True)
    )
    return PatchGrid(region, patch, (z, y, x))


def _axis_origins(extent: int, patch: int, stride: int, cell: int) -> tuple[int, ...]:
    room = max(extent - patch, 0)
    regular = range(0, room + 1, stride)
    tail = room // cell * cell
    return tuple(regular) if tail == regular[-1] else (*regular, tail)


def patch_density(index: LabelIndex, grid: PatchGrid) -> PatchDensity:
    """The exact labelled voxels and bounding box of every patch of the grid.

    Raises:
        ValueError: a patch of the grid is not made of whole cells of the index.
    """
    starts, widths = zip(*(_cell_windows(index, grid, axis) for axis in range(3)), strict=True)
    labelled = index.counts.astype(np.int64)
    for axis in range(3):
        labelled = _window_sums(labelled, axis, starts[axis], widths[axis])
    box = np.ones(labelled.shape, np.int64)
    for axis in range(3):
        planes = index.planes[axis]
        for other in range(3):
            if other != axis:
                planes = _windows(planes, other, starts[other], widths[other], np.bitwise_or)
        box *= _lengths(planes, axis, index.cell[axis], starts[axis], widths[axis])
    return PatchDensity(labelled, box)


def _cell_windows(index: LabelIndex, grid: PatchGrid, axis: int) -> tuple[np.ndarray, int]:
    """First cell of each patch along an axis, and how many cells a patch has."""
    cell, patch, cells = index.cell[axis], grid.patch[axis], index.counts.shape[axis]
    if patch % cell or (grid.origins[axis] % cell).any() or grid.region != index.region:
        raise ValueError(f"patches of {grid.patch} do not fit cells of {index.cell}")
    return grid.origins[axis] // cell, min(patch // cell, cells)


def _window_sums(array: np.ndarray, axis: int, starts: np.ndarray, width: int) -> np.ndarray:
    sums = np.cumsum(np.moveaxis(array, axis, 0), axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    return np.moveaxis(sums[starts + width] - sums[starts], 0, axis)


def _windows(
    array: np.ndarray, axis: int, starts: np.ndarray, width: int, combine: _Combine
) -> np.ndarray:
    """Reduce windows of `width` along an axis by an operation that may count entries twice.

    Spans double until two of them cover the window, so the cost is logarithmic in its width.
    """
    reach, span = np.moveaxis(array, axis, 0), 1
    while 2 * span <= width:
        reach = combine(reach[:-span], reach[span:])
        span *= 2
    return np.moveaxis(combine(reach[starts], reach[starts + width - span]), 0, axis)


def _lengths(
    planes: np.ndarray, axis: int, cell: int, starts: np.ndarray, width: int
) -> np.ndarray:
    """Voxels from the first to the last occupied plane of each window along the axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    base = (np.arange(planes.shape[axis], dtype=np.int32) * cell).reshape(shape)
    low = np.where(planes > 0, base + _LOWEST[planes], _NOWHERE)
    high = np.where(planes > 0, base + _HIGHEST[planes], -1)
    low = _windows(low, axis, starts, width, np.minimum)
    high = _windows(high, axis, starts, width, np.maximum)
    return np.where(high >= 0, high.astype(np.int64) - low + 1, 0)
