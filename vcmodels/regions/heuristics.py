"""Finding a long object without a network, on a coarse copy of the image."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from vcmodels.fields.centreline import Trace, trace
from vcmodels.fields.components import label_components
from vcmodels.geometry.affine import axis_codes
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.grid import slabs
from vcmodels.regions.section import RegionConfig, RegionSource
from vcmodels.regions.symmetric import best_path, symmetry_scores
from vcmodels.volumes import Volume
from vcmodels.volumes.world import world_affine

MOST_VOXELS = 1 << 24
"""Of the coarse copy, which is in memory."""
_FINE = 8
"""Voxels of the coarse copy across the object, at least."""
_LEAST_SCORE = 0.2
_CANDIDATES = 32


@dataclass(frozen=True)
class CoarseCopy:
    """An image of large voxels, each the mean of some."""

    values: NDArray[np.float32]
    """(Z, Y, X)."""
    factor: Shape
    """Voxels of the image in one of these."""
    spacing: Spacing
    """Of these, in mm."""

    @classmethod
    def of(cls, image: Volume, spacing: Spacing, width: float) -> "CoarseCopy":
        """A copy in which an object of this width (mm) still has some voxels."""
        factor = [max(int(width / _FINE / s), 1) for s in spacing]
        while np.prod([n // f for n, f in zip(image.extent, factor, strict=True)]) > MOST_VOXELS:
            finest = int(np.argmin([f * s for f, s in zip(factor, spacing, strict=True)]))
            factor[finest] += 1
        factor = [min(f, n) for f, n in zip(factor, image.extent, strict=True)]
        shape = [n // f for n, f in zip(image.extent, factor, strict=True)]
        kept = Box((0, 0, 0), triple(n * f for n, f in zip(shape, factor, strict=True)))
        planes = factor[0] * ceil(image.chunks[0] / factor[0])
        means = [_mean(image.read(slab)[0], triple(factor)) for slab in slabs(kept, planes)]
        lengths = triple(f * s for f, s in zip(factor, spacing, strict=True))
        return cls(np.concatenate(means), triple(factor), lengths)

    def trace(
        self, index: NDArray[np.integer], weights: NDArray[np.floating], config: RegionConfig
    ) -> Trace | None:
        """The line of voxels of the copy, in mm of the image."""
        found = trace(
            index, weights, self.spacing, axis=config.axis_number, most_gap=config.most_gap_mm
        )
        # The centre of the first voxel of the copy is not that of the image's.
        shift = [(1 - 1 / f) * s / 2 for f, s in zip(self.factor, self.spacing, strict=True)]
        return None if found is None else found.moved(triple(shift))


def _mean(values: NDArray[np.generic], factor: Shape) -> NDArray[np.float32]:
    z, y, x = (n // f for n, f in zip(values.shape, factor, strict=True))
    cells = np.nan_to_num(values.astype(np.float32)).reshape(
        z, factor[0], y, factor[1], x, factor[2]
    )
    return cells.mean(axis=(1, 3, 5))


def guess(
    source: RegionSource, config: RegionConfig, image: Volume, spacing: Spacing
) -> Trace | str:
    """The line of what a heuristic takes for the object, or why it has none.

    Args:
        source: which heuristic, and how wide the object is.
        config: of the region.
        image: of which the first channel is looked at.
        spacing: length of its voxels, in mm.
    """
    copy = CoarseCopy.of(image, spacing, source.width_mm)
    if source.heuristic == "intensity":
        return _thinnest(copy, config)
    return _symmetric(copy, config, _upright(image, copy), source.width_mm)


def _thinnest(copy: CoarseCopy, config: RegionConfig) -> Trace | str:
    """Of the large bright objects, the one that is longest for its width."""
    from skimage.filters import threshold_otsu

    if copy.values.min() == copy.values.max():
        return "the image is plain"
    ids, _ = label_components(copy.values > threshold_otsu(copy.values), 26)
    sizes = np.bincount(ids.ravel())
    sizes[0] = 0
    best: tuple[float, Trace] | None = None
    for number in np.argsort(-sizes)[:_CANDIDATES].tolist():
        index = np.argwhere(ids == number) if sizes[number] else np.empty((0, 3), int)
        found = copy.trace(index, np.ones(len(index)), config)
        if found is not None and found.line.length >= config.least_length_mm:
            area = sizes[number] * np.prod(copy.spacing) / found.line.length
            thinness = found.line.length / np.sqrt(area)
            best = max(best or (0.0, found), (float(thinness), found), key=lambda pair: pair[0])
    return "nothing bright is long" if best is None else best[1]


def _symmetric(copy: CoarseCopy, config: RegionConfig, upright: int, width: float) -> Trace | str:
    axis = upright if config.axis_number is None else config.axis_number
    image = np.moveaxis(copy.values, axis, 0)
    across = [s for a, s in enumerate(copy.spacing) if a != axis]
    radii = (width / across[0], width / across[1])
    if min(image.shape[1:]) <= 2 * max(1, *map(int, radii)):
        return f"the image is too small for a width of {width:g} mm"
    scores = symmetry_scores(image, radii)
    path = best_path(scores)
    mean = float(scores[np.arange(len(path)), *path.T].mean())
    if mean < _LEAST_SCORE:
        return f"nothing is alike from both sides (score {mean:.2f}, less than {_LEAST_SCORE:g})"
    index = np.insert(path, axis, np.arange(len(path)), axis=1)
    along = config.model_copy(update={"axis": "zyx"[axis]})
    return copy.trace(index, np.ones(len(index)), along) or "the image has one slice"


def _upright(image: Volume, copy: CoarseCopy) -> int:
    """The axis from foot to head, if the image says where it lies; else its longest."""
    affine = world_affine(image)
    if affine is None:
        lengths = [n * s for n, s in zip(copy.values.shape, copy.spacing, strict=True)]
        return int(np.argmax(lengths))
    return 2 - next(n for n, code in enumerate(axis_codes(affine)) if code in "IS")
