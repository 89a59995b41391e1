"""How the voxels of a grid that was derived lie in the grid that it comes from: one map for any chain.

Cropping, padding, turning and resampling are all the same: along each axis of the derived grid an
index times a factor plus a shift is an index along one axis of the source. A chain of them is one such
map again, so that it is undone in one step, whatever it was made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vcmodels.geometry.affine import Affine, index_affine
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.symmetries import Symmetry

Row = tuple[float, float, float, float]
_EXACT = 1e-9
"""Factors and shifts this near to whole numbers are: what rounding leaves of a chain and its inverse."""


@dataclass(frozen=True)
class GridMap:
    """Index (z, y, x, 1) of a derived grid -> index (z, y, x) of its source.

    Centres of voxels are at whole numbers in both.
    """

    source: Shape
    shape: Shape
    """Of the derived grid."""
    matrix: tuple[Row, Row, Row]
    """(3, 4): factors, of which each row and column has one, and shifts."""

    @classmethod
    def identity(cls, shape: Shape) -> "GridMap":
        """The grid itself."""
        return cls._of(shape, shape, np.eye(3, 4))

    @classmethod
    def _of(cls, source: Shape, shape: Shape, matrix: NDArray[np.float64]) -> "GridMap":
        rows = [cast("Row", tuple(float(n) + 0.0 for n in row)) for row in matrix]  # no -0.0
        return cls(source, shape, triple(rows))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "GridMap":
        """Undo `to_json`.

        Raises:
            ValueError: it is no such map.
        """
        try:
            source, shape = (triple(int(n) for n in stored[key]) for key in ("source", "shape"))
            matrix = np.asarray(stored["matrix"], np.float64)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{stored} is no map between grids") from error
        is_map = matrix.shape == (3, 4) and bool(np.isfinite(matrix).all())
        used = matrix[:, :3] != 0 if is_map else np.zeros((3, 3), bool)
        if (used.sum(0) != 1).any() or (used.sum(1) != 1).any() or min(*source, *shape) < 1:
            raise ValueError(f"{stored} does not map each axis to one axis")
        return cls._of(source, shape, matrix)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        rows = [list(row) for row in self.matrix]
        return {"source": list(self.source), "shape": list(self.shape), "matrix": rows}

    # --- a step more

    def cropped(self, box: Box) -> "GridMap":
        """The part of the derived grid in a box; what of it lies outside is padded.

        Raises:
            ValueError: the box is empty.
        """
        if not box.voxels:
            raise ValueError(f"{box} is empty")
        step = np.eye(3, 4)
        step[:, 3] = box.origin
        return self.then(GridMap._of(self.shape, box.shape, step))

    def turned(self, symmetry: Symmetry) -> "GridMap":
        """The derived grid as `symmetry` turns arrays: axes exchanged and mirrored."""
        step = np.zeros((3, 4))
        step[:, :3] = symmetry.matrix
        for axis, is_flipped in zip(symmetry.permutation, symmetry.flips, strict=True):
            step[axis, 3] = self.shape[axis] - 1 if is_flipped else 0
        return self.then(GridMap._of(self.shape, symmetry.turned_shape(self.shape), step))

    def resampled(self, factors: Sequence[float]) -> "GridMap":
        """Voxels that are `factors` times as long along (z, y, x), from the same outer edges on.

        The edge of the first voxel stays where it is, so the centre of voxel i is at
        (i + 1/2) f - 1/2; there are round(n / f) of them, at least 1.

        Raises:
            ValueError: a factor is not above 0.
        """
        if min(factors) <= 0:
            raise ValueError(f"factors must be above 0, got {tuple(factors)}")
        step = np.zeros((3, 4))
        np.fill_diagonal(step, factors)
        step[:, 3] = [(f - 1) / 2 for f in factors]
        lengths = [max(1, round(n / f)) for n, f in zip(self.shape, factors, strict=True)]
        return self.then(GridMap._of(self.shape, triple(lengths), step))

    def then(self, other: "GridMap") -> "GridMap":
        """What `other` makes of the derived grid, as a map to the source.

        Raises:
            ValueError: `other` is of a grid of another shape.
        """
        if other.source != self.shape:
            raise ValueError(f"a map of {other.source} cannot follow a grid of {self.shape}")
        return GridMap._of(self.source, other.shape, (self._square @ other._square)[:3])

    def inverse(self) -> "GridMap":
        """The source as a grid that is derived from the derived one."""
        back = np.zeros((3, 4))
        for axis, (source, factor, shift) in enumerate(self.axes):
            back[axis, source], back[axis, 3] = 1 / factor, -shift / factor
        return GridMap._of(self.shape, self.source, back)

    # --- what it is

    @property
    def axes(self) -> tuple[tuple[int, float, float], ...]:
        """For each axis of the derived grid the source's axis, the factor, and the shift along it."""
        matrix = np.array(self.matrix)
        sources = [int(np.flatnonzero(matrix[:, axis])[0]) for axis in range(3)]
        return tuple((s, float(matrix[s, a]), float(matrix[s, 3])) for a, s in enumerate(sources))

    @property
    def symmetry(self) -> Symmetry:
        """How axes are exchanged and mirrored; vectors turn by `symmetry.matrix`."""
        axes = self.axes
        return Symmetry(triple(s for s, _, _ in axes), triple(f < 0 for _, f, _ in axes))

    @property
    def factors(self) -> Spacing:
        """Length of a voxel, along (z, y, x) of the derived grid, in voxels of the source."""
        return triple(abs(factor) for _, factor, _ in self.axes)

    @property
    def is_exact(self) -> bool:
        """Whether voxels lie on voxels: nothing is resampled."""
        return all(
            abs(abs(factor) - 1) <= _EXACT and abs(shift - round(shift)) <= _EXACT
            for _, factor, shift in self.axes
        )

    @property
    def is_identity(self) -> bool:
        """Whether the derived grid is the source."""
        return self == GridMap.identity(self.source)

    @property
    def linear(self) -> NDArray[np.float64]:
        """(3, 3): the Jacobian of the map, in voxels."""
        return np.array(self.matrix)[:, :3]

    def centres(self, axis: int, start: int, length: int) -> NDArray[np.float64]:
        """Where voxels along an axis of the derived grid lie, along the source's axis of it.

        Args:
            axis: 0, 1 or 2 of the derived grid.
            start: the first voxel.
            length: how many.

        Returns:
            (length,) in voxels of the source; falling on an axis that is mirrored.
        """
        _, factor, shift = self.axes[axis]
        return np.arange(start, start + length, dtype=np.float64) * factor + shift

    def spacing(self, source: Spacing) -> Spacing:
        """The voxel size of the derived grid, for that of the source."""
        return triple(abs(factor) * source[axis] for axis, factor, _ in self.axes)

    def affine(self, source: Affine) -> Affine:
        """The affine (see `geometry.affine`) of the derived grid, for that of the source."""
        return index_affine(index_affine(source) @ self._square)

    def holding(self, box: Box) -> Box:
        """The voxels of the derived grid whose centres lie in a box of the source.

        Of two boxes that share a face, one has the centres on it: that of the higher voxels of the
        derived grid. It may be empty, and is cut at the grid's end.
        """
        low, high = [0, 0, 0], [0, 0, 0]
        for axis, (source, factor, shift) in enumerate(self.axes):
            edges = (box.origin[source] - 0.5, box.end[source] - 0.5)
            first, last = sorted((edge - shift) / factor for edge in edges)
            low[axis] = max(ceil(first - _EXACT), 0)
            high[axis] = min(ceil(last - _EXACT), self.shape[axis])
        return Box.between(low, high)

    @property
    def _square(self) -> NDArray[np.float64]:
        return np.vstack([np.array(self.matrix), [0.0, 0.0, 0.0, 1.0]])
