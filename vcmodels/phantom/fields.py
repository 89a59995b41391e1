"""Random fields as pure functions of the voxel's position, so that any box gives the same voxels.

No generator is advanced anywhere: each number is a hash of a seed and of where it stands.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from vcmodels.geometry.boxes import Box

Array = np.ndarray
Point = tuple[float, float, float]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def positions(box: Box) -> tuple[Array, Array, Array]:
    """The voxels' coordinates as three float64 arrays that broadcast to (Z, Y, X)."""
    z, y, x = (
        np.arange(o, o + n, dtype=np.float64) for o, n in zip(box.origin, box.shape, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def draw(seed: int, *where: int) -> float:
    """One number in [0, 1), a function of the seed and of integers that say which one it is."""
    state = seed & _MASK
    for part in where:
        state = _mix_int(state ^ (part * _GOLDEN & _MASK))
    return (_mix_int(state) >> 11) / 2.0**53


def white_noise(box: Box, seed: int) -> Array:
    """Independent values of mean 0 and variance 1, nearly normal, one for each voxel.

    The sum of the four 16-bit parts of a hash (SplitMix64; Steele et al., OOPSLA 2014) of the
    position: bounded by 3.5 standard deviations, and cheap.
    """
    state = np.zeros((1, 1, 1), dtype=np.uint64)
    for axis, (origin, length) in enumerate(zip(box.origin, box.shape, strict=True)):
        # Two's complement: a halo may begin before voxel 0.
        index = np.arange(origin, origin + length, dtype=np.int64).view(np.uint64)
        key = _mix(index * np.uint64(_GOLDEN) + np.uint64((seed * 4 + axis) & _MASK))
        state = state ^ key.reshape([-1 if a == axis else 1 for a in range(3)])
        state = _mix(state)
    low = np.uint64(0xFFFF)
    parts = [(state >> np.uint64(16 * k)) & low for k in range(4)]
    total = (parts[0] + parts[1] + parts[2] + parts[3]).astype(np.float64)
    return (total / 65536.0 - 2.0) * np.sqrt(3.0)


@dataclass(frozen=True)
class Wave:
    """`height * cos(k . p + phase)`, with k = (kz, ky, kx) in radians per voxel."""

    k: Point
    phase: float
    height: float


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, with its exact gradient."""

    terms: tuple[Wave, ...]

    @classmethod
    def random(
        cls, seed: int, count: int, lengths: tuple[float, float], deviation: float
    ) -> "Waves":
        """Waves of random directions and lengths (in voxels), of this standard deviation in sum."""
        terms: list[Wave] = []
        for n in range(count):
            u = [draw(seed, n, k) for k in range(4)]
            length = lengths[0] * (lengths[1] / lengths[0]) ** u[0]
            cosine, turn = 2 * u[1] - 1, 2 * np.pi * u[2]
            sine = np.sqrt(1 - cosine * cosine)
            factor = 2 * np.pi / length
            k = (factor * cosine, factor * sine * np.cos(turn), factor * sine * np.sin(turn))
            terms.append(Wave(k, 2 * np.pi * u[3], deviation * np.sqrt(2 / count)))
        return cls(tuple(terms))

    def value(self, z: Array, y: Array, x: Array) -> Array:
        """The field at broadcastable positions."""
        total = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape))
        for wave in self.terms:
            a = wave.k[0] * z + wave.k[1] * y + wave.phase
            b = wave.k[2] * x
            total += wave.height * (np.cos(a) * np.cos(b) - np.sin(a) * np.sin(b))
        return total

    def value_and_gradient(self, z: Array, y: Array, x: Array) -> tuple[Array, list[Array]]:
        """The field and its derivatives along (z, y, x), per voxel."""
        shape = np.broadcast_shapes(z.shape, y.shape, x.shape)
        total, slopes = np.zeros(shape), [np.zeros(shape) for _ in range(3)]
        for wave in self.terms:
            a = wave.k[0] * z + wave.k[1] * y + wave.phase
            b = wave.k[2] * x
            cos_a, sin_a, cos_b, sin_b = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
            total += wave.height * (cos_a * cos_b - sin_a * sin_b)
            falling = -wave.height * (sin_a * cos_b + cos_a * sin_b)
            for slope, k in zip(slopes, wave.k, strict=True):
                slope += k * falling
        return total, slopes


@dataclass(frozen=True)
class Ball:
    """A round piece of a scattered field; `draws` are three more random numbers for its user."""

    centre: Point
    radius: float
    draws: tuple[float, float, float]

    def reach(self) -> Box:
        """The voxels that may lie inside."""
        start = [int(np.floor(c - self.radius)) for c in self.centre]
        end = [int(np.ceil(c + self.radius)) + 1 for c in self.centre]
        return Box.between(start, end)


@dataclass(frozen=True)
class Scatter:
    """Balls strewn over space: at most one for each cell of a cubic lattice."""

    seed: int
    cell: int
    chance: float
    radii: tuple[float, float]

    def balls_near(self, box: Box) -> Iterator[Ball]:
        """The balls that may reach into a box, in an order that does not depend on the box."""
        reach = int(np.ceil(self.radii[1])) + 1
        wide = box.grow((reach, reach, reach))
        spans = [
            range(o // self.cell, (e - 1) // self.cell + 1)
            for o, e in zip(wide.origin, wide.end, strict=True)
        ]
        for z, y, x in product(*spans):
            if draw(self.seed, z, y, x, 0) < self.chance:
                u = [draw(self.seed, z, y, x, n) for n in range(1, 8)]
                centre = ((z + u[0]) * self.cell, (y + u[1]) * self.cell, (x + u[2]) * self.cell)
                radius = self.radii[0] + (self.radii[1] - self.radii[0]) * u[3]
                yield Ball(centre, radius, (u[4], u[5], u[6]))

    def paint(
        self, box: Box, add: Callable[[tuple[slice, ...], Array, list[Array], Ball], None]
    ) -> None:
        """Visit each ball's voxels in the box.

        Args:
            box: where.
            add: called with the slices of the touched part of the box, the squared distance from
                the centre over the radius, the offsets from the centre (z, y, x), and the ball.
        """
        for ball in self.balls_near(box):
            part = ball.reach().intersect(box)
            if not part.voxels:
                continue
            offsets = [p - c for p, c in zip(positions(part), ball.centre, strict=True)]
            square = (offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2) / ball.radius**2
            add(part.slices(box), square, offsets, ball)


def _mix(state: Array) -> Array:
    """The output function of SplitMix64."""
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mix_int(state: int) -> int:
    """The same for one number, much faster than an array of length 1."""
    state = (state + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
