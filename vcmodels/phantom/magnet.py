"""How a made-up neck looks in a magnetic resonance scanner, and on which grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np

from vcmodels.geometry.affine import Affine
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.phantom.neck import CORD, GREY, LESION, Neck
from vcmodels.phantom.scroll import Array, draw, white_noise

_SAMPLE = 0.8
"""A voxel longer than this is the mean of several samples, mm."""
_NOISE = 7.0
MOST_TILT = 8.0
"""Of a grid about right, and about front, in degrees."""


@dataclass(frozen=True)
class MrContrast:
    """A kind of image."""

    name: str
    spacing: Spacing
    """Of the voxels along (top, front, right), in mm."""
    brightness: Mapping[int, float]
    """By tissue; 0 where it is not named."""


def _contrast(name: str, spacing: Spacing, *values: float) -> MrContrast:
    return MrContrast(name, spacing, MappingProxyType(dict(enumerate(values))))


CONTRASTS = (
    #                                  air muscle fat  bone disc cyst fluid cord grey lesion
    _contrast("T2", (0.9, 0.9, 2.2), 0.0, 60.0, 170.0, 90.0, 55.0, 165.0, 230.0, 105.0, 115.0, 165.0),
    _contrast("T2s", (2.5, 0.7, 0.7), 0.0, 85.0, 120.0, 45.0, 120.0, 165.0, 190.0, 110.0, 135.0, 165.0),
    _contrast("STIR", (1.0, 1.0, 2.4), 0.0, 70.0, 25.0, 40.0, 60.0, 160.0, 220.0, 100.0, 105.0, 160.0),
)  # fmt: skip


@dataclass(frozen=True)
class Slices:
    """The grid of an image: its shape, and where its voxels lie."""

    shape: Shape
    affine: Affine

    @classmethod
    def of(cls, contrast: MrContrast, size: Spacing, seed: int) -> "Slices":
        """A grid about as large as the field of view, its axes in any order, and a little oblique."""
        draws = [draw(seed, 5, n) for n in range(8)]
        order = np.argsort(draws[:3])  # which axis of the world each of (x, y, z) runs along
        steps = np.zeros((3, 3))
        lengths = np.array(contrast.spacing[::-1])[order]
        steps[order, np.arange(3)] = np.where(np.array(draws[3:6]) < 0.5, -1, 1) * lengths
        counts = np.maximum(np.rint(np.array(size[::-1])[order] / lengths).astype(int), 1)
        affine = np.eye(4)
        tilts = (np.deg2rad(MOST_TILT * (2 * u - 1)) for u in draws[6:])
        affine[:3, :3] = _tilt(*tilts) @ steps
        affine[:3, 3] = -affine[:3, :3] @ ((counts - 1) / 2)
        return cls(triple(int(n) for n in counts[::-1]), affine)

    def positions(self, shift: Spacing = (0.0, 0.0, 0.0)) -> tuple[Array, Array, Array]:
        """(right, front, top) of places in all voxels, (Z, Y, X) each.

        Args:
            shift: from the voxel's centre, in voxels along (z, y, x).
        """
        index = [
            (np.arange(n) + s).reshape([-1 if a == axis else 1 for a in range(3)])
            for axis, (n, s) in enumerate(zip(self.shape, shift, strict=True))
        ]
        a = self.affine
        return triple(
            a[w, 2] * index[0] + a[w, 1] * index[1] + a[w, 0] * index[2] + a[w, 3] for w in range(3)
        )


def _tilt(about_right: float, about_front: float) -> Array:
    """The rotation of (right, front, top) by an angle about right, then one about front, in radians."""
    a, b = (
        np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        for t in (about_right, about_front)
    )
    first, second = np.eye(3), np.eye(3)
    first[1:, 1:], second[::2, ::2] = a, b
    return second @ first


@dataclass(frozen=True)
class Scanned:
    """An image and its exact labels, (Z, Y, X)."""

    image: Array
    """int16, of a scale that differs from scan to scan."""
    cord: Array
    """uint8: 1 where the centre of a voxel lies in the cord, its lesions included."""
    lesion: Array
    """uint8, likewise."""


def scan(of: Neck, contrast: MrContrast, slices: Slices, seed: int) -> Scanned:
    """Take an image.

    A voxel is the mean of its samples, so that thick slices blur; noise is that of a magnitude
    (Rician), and coil and gain change the brightness.
    """
    lengths = np.linalg.norm(slices.affine[:3, 2::-1], axis=0)
    counts = [max(int(np.ceil(length / _SAMPLE)), 1) for length in lengths]
    shifts = [[(n + 0.5) / count - 0.5 for n in range(count)] for count in counts]
    table = np.array([contrast.brightness.get(kind, 0.0) for kind in range(LESION + 1)])
    samples = (table[of.tissue(*slices.positions(triple(s)))] for s in product(*shifts))
    signal = sum(samples) / np.prod(counts) * _shading(of, slices.positions())
    whole = Box((0, 0, 0), slices.shape)
    real, imaginary = (_NOISE * white_noise(whole, seed * 64 + n) for n in (7, 8))
    gain = 1.5 + 4 * draw(seed, 9)
    image = gain * np.hypot(signal + real, imaginary)
    at_centres = of.tissue(*slices.positions())
    return Scanned(
        np.rint(image).astype(np.int16),
        np.isin(at_centres, (CORD, GREY, LESION)).astype(np.uint8),
        (at_centres == LESION).astype(np.uint8),
    )


def _shading(of: Neck, where: tuple[Array, Array, Array]) -> Array:
    """By what the brightness of tissue is multiplied: its texture, and the coil."""
    texture, shading = (waves.value(*where[::-1]) for waves in (of.texture, of.shading))
    return (1 + texture) * np.clip(1 + shading, 0.5, 1.5)
