"""The shape of the phantom: one sheet rolled up.

The phase is `u = G(rho) - theta / 2 pi + squeeze`, where rho is the distance from a drifting axis plus
a smooth warp, G grows by one per wrap and `squeeze` presses wraps together in places. One turn
changes theta / 2 pi by one, so that `u` is continuous modulo 1, and the set of all points where `u` is
an integer is a single spiral sheet. Its normals are the gradient of `u`, in closed form.

Random fields are pure functions of the voxel's position, so that any box gives the same voxels. No
generator is advanced anywhere: each number is a hash of a seed and of where it stands.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Box, Shape, units_touching

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
        for z, y, x in product(*units_touching(wide, (self.cell, self.cell, self.cell))):
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


LEAST_SPACING, MOST_SPACING = 2.0, 17.0
_RIPPLE, _RIPPLE_LENGTH = 0.18, 70.0
_PRESSED_LENGTH = 48.0
_DRIFT, _DRIFT_LENGTH = 5.0, 170.0
_FIRST_WRAP = 2  # nearer the axis the phase is singular
_BAND = 1.5  # voxels beyond the sheet in which normals are stored


@dataclass(frozen=True)
class Winding:
    """How tightly the sheet is rolled; lengths in voxels, spacings from middle to middle.

    As it stands: 8 to 17 voxels between wraps, with the bending and the squeezes.
    """

    spacing: float = 11.8
    """Between wraps, on average."""
    warp: float = 4.0
    """Standard deviation of the smooth bending."""
    fill: float = 0.74
    """The largest share of the spacing that is sheet: pressed wraps give way."""
    contact: float = 0.0
    """Standard deviation of that share over space; where it comes near 1, wraps touch."""

    def count(self, rho: Array) -> tuple[Array, Array]:
        """Wraps up to a distance from the axis, and how many there are per voxel at that place."""
        wave = 2 * np.pi / _RIPPLE_LENGTH
        wraps = rho / self.spacing + _RIPPLE * np.sin(wave * rho)
        return wraps, 1 / self.spacing + _RIPPLE * wave * np.cos(wave * rho)


LOOSE = Winding()


@dataclass(frozen=True)
class PressedWinding(Winding):
    """A spacing that goes up and down with the distance from the axis, as a cosine."""

    spread: float = 0.0
    """How far it goes, as a share of the mean."""

    @classmethod
    def between(cls, low: float, high: float) -> "PressedWinding":
        """Wraps that lie `low` to `high` voxels apart, squeezes a seventh beyond, and touch in places.

        Raises:
            FaultError: `low` is below 2, the least that a grid can show apart; `high` is below
                `low`, or above 17, where nothing is pressed.
        """
        if not LEAST_SPACING <= low <= high <= MOST_SPACING:
            limits = f"from {LEAST_SPACING:g} to {MOST_SPACING:g} voxels, the lower one first"
            raise FaultError(f"found {low:g} and {high:g}", f"give two numbers {limits}")
        # Bending and squeezes have the rest of the range.
        spread = 0.9 * (high - low) / (high + low)
        return cls((low + high) / 2, warp=1.0, fill=0.62, contact=0.1, spread=spread)

    def count(self, rho: Array) -> tuple[Array, Array]:
        # The integral of 1 / (1 - e cos) is what Kepler's true anomaly is of the eccentric one.
        e = self.spread
        phi, root = 2 * np.pi / _PRESSED_LENGTH * rho, np.sqrt(1 - e * e)
        b = e / (1 + root)
        anomaly = phi + 2 * np.arctan(b * np.sin(phi) / (1 - b * np.cos(phi)))
        wraps = _PRESSED_LENGTH / (2 * np.pi) / (self.spacing * root) * anomaly
        return wraps, 1 / (self.spacing * (1 - e * np.cos(phi)))


@dataclass(frozen=True)
class Surface:
    """What the phase function says in a box; all arrays are (Z, Y, X) float64 unless noted."""

    distance: Array
    """Signed distance from the middle of the nearest wrap, in voxels, positive outward."""
    thickness: Array
    gradient: Array
    """(3, Z, Y, X): of the phase, along (z, y, x), per voxel."""
    present: Array
    """In [0, 1]: 0 in holes and where there is no wrap."""
    labelled: Array
    """bool: false in the parts that nobody has labelled."""
    wrap: Array
    """Number of the nearest wrap, counted from the axis; the next one begins after each whole turn."""

    def crop(self, part: tuple[slice, slice, slice]) -> "Surface":
        """The same for a part of the box."""
        return Surface(
            self.distance[part],
            self.thickness[part],
            self.gradient[(slice(None), *part)],
            self.present[part],
            self.labelled[part],
            self.wrap[part],
        )

    @property
    def density(self) -> Array:
        """Share of the voxel that is sheet, in [0, 1]."""
        edge = np.clip(self.thickness / 2 - np.abs(self.distance) + 0.5, 0, 1)
        return edge * self.present

    @property
    def mask(self) -> Array:
        """bool: where the sheet is."""
        return self.density >= 0.5

    @property
    def has_normal(self) -> Array:
        """bool: on the sheet and in a thin band around it."""
        near = np.abs(self.distance) <= self.thickness / 2 + _BAND
        return near & (self.present >= 0.5)

    @property
    def normals(self) -> Array:
        """(3, Z, Y, X): unit normals along (z, y, x), pointing outward, wherever defined."""
        return self.gradient / np.sqrt(np.sum(self.gradient**2, axis=0))


@dataclass(frozen=True)
class Scroll:
    """A rolled sheet in a volume of this shape; everything about it follows from the seed."""

    shape: Shape
    seed: int
    winding: Winding = LOOSE

    @property
    def centre(self) -> tuple[float, float]:
        """Where the axis is on average, (y, x)."""
        return self.shape[1] * 0.49, self.shape[2] * 0.52

    @property
    def wraps(self) -> tuple[int, int]:
        """The first and the last wrap; the outermost nearly touches the larger side."""
        radius = 0.48 * max(self.shape[1:])
        return _FIRST_WRAP, max(_FIRST_WRAP + 1, int(radius / self.winding.spacing))

    @cached_property
    def _warp(self) -> Waves:
        return Waves.random(self.seed * 64 + 1, 7, (75.0, 220.0), self.winding.warp)

    @cached_property
    def _thickness(self) -> Waves:
        return Waves.random(self.seed * 64 + 2, 4, (40.0, 120.0), 0.35)

    @cached_property
    def _contact(self) -> Waves:
        return Waves.random(self.seed * 64 + 6, 5, (30.0, 90.0), self.winding.contact)

    @property
    def _squeezes(self) -> Scatter:
        return Scatter(self.seed * 64 + 3, cell=72, chance=0.8, radii=(28.0, 40.0))

    @property
    def _holes(self) -> Scatter:
        return Scatter(self.seed * 64 + 4, cell=36, chance=0.45, radii=(4.0, 9.0))

    @property
    def _unlabelled(self) -> Scatter:
        return Scatter(self.seed * 64 + 5, cell=64, chance=0.4, radii=(11.0, 19.0))

    def phase(self, box: Box) -> tuple[Array, Array]:
        """The phase, (Z, Y, X), and its gradient along (z, y, x), (3, Z, Y, X), float64."""
        z, y, x = positions(box)
        turn = 2 * np.pi / _DRIFT_LENGTH
        dy = y - self.centre[0] - _DRIFT * np.sin(turn * z + 0.3)
        dx = x - self.centre[1] - _DRIFT * np.cos(turn * z + 1.1)
        axis_slope = (
            _DRIFT * turn * np.cos(turn * z + 0.3),
            -_DRIFT * turn * np.sin(turn * z + 1.1),
        )
        radius = np.sqrt(dy**2 + dx**2 + 1e-6)
        angle = np.arctan2(dy, dx)
        warp, warp_slopes = self._warp.value_and_gradient(z, y, x)
        rho = radius + warp
        wraps, steepness = self.winding.count(rho)
        phase = wraps - angle / (2 * np.pi)
        # d(angle) = (dx d(dy) - dy d(dx)) / radius^2
        swirl = 1 / (2 * np.pi * (dy**2 + dx**2 + 1e-6))
        along_y = steepness * dy / radius - swirl * dx
        along_x = steepness * dx / radius + swirl * dy
        along_z = -along_y * axis_slope[0] - along_x * axis_slope[1]
        gradient = np.stack(np.broadcast_arrays(along_z, along_y, along_x))
        for slope, extra in zip(gradient, warp_slopes, strict=True):
            slope += steepness * extra
        self._squeeze(box, phase, gradient)
        return phase, gradient

    def surface(self, box: Box) -> Surface:
        """The sheet in a box, which may reach beyond the volume."""
        phase, gradient = self.phase(box)
        wrap = np.round(phase)
        steepness = np.sqrt(np.sum(gradient**2, axis=0))
        thickness = 4.9 + self._thickness.value(*positions(box))
        first, last = self.wraps
        present = ((wrap >= first) & (wrap <= last)).astype(np.float64)
        self._cut_holes(box, present)
        labelled = np.ones(box.shape, dtype=bool)

        def hide(where: tuple[slice, ...], square: Array, _: list[Array], __: Ball) -> None:
            labelled[where] &= square > 1

        self._unlabelled.paint(box, hide)
        return Surface(
            distance=(phase - wrap) / steepness,
            # Pressed wraps give way, or they would fill all space between.
            thickness=np.minimum(thickness, self._fill(box) / steepness),
            gradient=gradient,
            present=present,
            labelled=labelled,
            wrap=wrap,
        )

    def _fill(self, box: Box) -> Array | float:
        """The largest share of the spacing that is sheet."""
        if not self.winding.contact:
            return self.winding.fill
        return np.clip(self.winding.fill + self._contact.value(*positions(box)), 0.45, 0.95)

    def _squeeze(self, box: Box, phase: Array, gradient: Array) -> None:
        """Press wraps together on one side of a point, and apart on the other."""

        def press(
            where: tuple[slice, ...], square: Array, offsets: list[Array], ball: Ball
        ) -> None:
            height = 0.45 + 0.45 * ball.draws[0]
            height = -height if ball.draws[1] < 0.5 else height
            inside = np.maximum(1 - square, 0)
            phase[where] += height * inside**3
            for slope, offset in zip(gradient, offsets, strict=True):
                slope[where] -= 6 * height / ball.radius**2 * offset * inside**2

        self._squeezes.paint(box, press)

    def _cut_holes(self, box: Box, present: Array) -> None:
        """Ragged holes, an edge about a voxel wide."""

        def cut(where: tuple[slice, ...], square: Array, _: list[Array], ball: Ball) -> None:
            outside = (np.sqrt(square) - 1) * ball.radius + 0.5
            present[where] = np.minimum(present[where], np.clip(outside, 0, 1))

        self._holes.paint(box, cut)
