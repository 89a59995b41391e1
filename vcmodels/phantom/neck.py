"""The shape of a made-up neck: a bent cord in its fluid, with lesions, bones and what looks alike.

Positions are (right, front, top) in mm, RAS+, with 0 in the middle of the body; arrays of them
broadcast against each other. Each number follows from a seed by a hash, as those of the scroll do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vcmodels.geometry.boxes import Spacing
from vcmodels.phantom.scroll import Array, Waves, draw

AIR, MUSCLE, FAT, BONE, DISC, CYST, FLUID, CORD, GREY, LESION = range(10)
"""What is at a place. A cyst looks like a lesion, and lies outside of the cord."""

_WIDTH, _DEPTH = 6.4, 4.4  # half axes of the cord, mm
_FLUID = (3.2, 2.6)  # thickness of the fluid around it
_VERTEBRA = 17.0  # from one to the next
_SKIN = 4.0


Placing = Callable[[float, float, float], tuple[float, float, float]]
"""A height, and two numbers in [0, 1) -> a position."""


@dataclass(frozen=True)
class Spot:
    """An ellipsoid whose long axis is upright."""

    centre: tuple[float, float, float]
    """(right, front, top)."""
    radius: float
    height: float
    """Half of its length."""

    def holds(self, right: Array, front: Array, top: Array) -> Array:
        """Whether positions lie inside."""
        r, f, t = self.centre
        across = ((right - r) ** 2 + (front - f) ** 2) / self.radius**2
        return across + (top - t) ** 2 / self.height**2 < 1


@dataclass(frozen=True)
class Neck:
    """A subject; everything about it follows from the seed."""

    seed: int
    size: Spacing
    """Of the field of view along (top, front, right), in mm."""

    def _draw(self, *which: int) -> float:
        return draw(self.seed * 64 + 1, *which)

    def middle(self, top: Array) -> tuple[Array, Array]:
        """Where the cord's centreline is at a height: (right, front)."""
        phase = [2 * np.pi * self._draw(0, n) for n in range(3)]
        bend = np.cos(np.pi * top / self.size[0])
        right = 2.5 * np.sin(2 * np.pi * top / 110 + phase[0])
        front = (4 + 6 * self._draw(0, 3)) * bend + 1.5 * np.sin(2 * np.pi * top / 60 + phase[1])
        return right, front - 6

    def half_axes(self, top: Array) -> tuple[Array, Array]:
        """How far the cord reaches at a height, to the sides and to front and back."""
        swell = 1 + 0.12 * np.sin(2 * np.pi * top / 90 + 2 * np.pi * self._draw(0, 4))
        return _WIDTH * swell, _DEPTH * (1 + 0.5 * (swell - 1))

    @cached_property
    def lesions(self) -> tuple[Spot, ...]:
        """One to four, in the cord; what reaches out of it is cut off."""
        return tuple(self._spots(1, 1 + int(4 * self._draw(1)), self._in_cord))

    @cached_property
    def cysts(self) -> tuple[Spot, ...]:
        """Four to nine, around the spine."""
        return tuple(self._spots(2, 4 + int(6 * self._draw(2)), self._beside))

    def _spots(self, kind: int, count: int, place: Placing) -> Iterator[Spot]:
        for n in range(count):
            u = [self._draw(kind, n, k) for k in range(5)]
            top = 0.8 * (u[0] - 0.5) * self.size[0]
            yield Spot(place(top, u[1], u[2]), 1.7 + 1.1 * u[3], 3 + 5 * u[4])

    def _in_cord(self, top: float, turn: float, away: float) -> tuple[float, float, float]:
        right, front = self.middle(np.array(top))
        width, depth = self.half_axes(np.array(top))
        angle, share = 2 * np.pi * turn, 0.7 * np.sqrt(away)
        return (
            float(right + share * width * np.cos(angle)),
            float(front + share * depth * np.sin(angle)),
            top,
        )

    def _beside(self, top: float, turn: float, away: float) -> tuple[float, float, float]:
        right, front = self.middle(np.array(top))
        angle, reach = 2 * np.pi * turn, 15 + 9 * away
        return float(right + reach * np.cos(angle)), float(front + reach * np.sin(angle)), top

    def tissue(self, right: Array, front: Array, top: Array) -> Array:
        """What is at each position, uint8."""
        shape = np.broadcast_shapes(right.shape, front.shape, top.shape)
        found = np.zeros(shape, np.uint8)
        for kind, inside in self._layers(right, front, top):
            found[np.broadcast_to(inside, shape)] = kind
        return found

    def _layers(self, right: Array, front: Array, top: Array) -> Iterator[tuple[int, Array]]:
        """Each kind and where it is; a later one lies over those before it."""
        middle, (width, depth) = self.middle(top), self.half_axes(top)
        r, f = right - middle[0], front - middle[1]
        yield from self._body(right, front)
        yield from self._bones(r, f, depth, top)
        for spot in self.cysts:
            yield CYST, spot.holds(right, front, top)
        yield FLUID, (r / (width + _FLUID[0])) ** 2 + (f / (depth + _FLUID[1])) ** 2 < 1
        cord = (r / width) ** 2 + (f / depth) ** 2 < 1
        yield CORD, cord
        yield GREY, (r / (0.5 * width)) ** 2 + (f / (0.3 * depth)) ** 2 < 1
        for spot in self.lesions:
            yield LESION, spot.holds(right, front, top) & cord

    def _body(self, right: Array, front: Array) -> Iterator[tuple[int, Array]]:
        _, depth, width = self.size
        for kind, skin in ((FAT, 0.0), (MUSCLE, _SKIN)):
            r, f = right / (0.47 * width - skin), front / (0.47 * depth - skin)
            yield kind, r**2 + f**2 < 1

    def _bones(
        self, right: Array, front: Array, depth: Array, top: Array
    ) -> Iterator[tuple[int, Array]]:
        at = top / _VERTEBRA + self._draw(0, 5)
        share, ahead = at - np.floor(at), depth + _FLUID[1]
        body = (np.abs(right) < 11) & (front > ahead + 1) & (front < ahead + 16)
        yield DISC, body
        yield BONE, body & (share > 0.25)
        spine = (np.abs(right) < 3) & (front < -ahead - 1) & (front > -ahead - 15)
        yield BONE, spine & (np.abs(share - 0.5) < 0.3)

    @cached_property
    def texture(self) -> Waves:
        """Of all tissue, as a share of its brightness; per mm along (top, front, right)."""
        return Waves.random(self.seed * 64 + 3, 12, (5.0, 25.0), 0.06)

    @cached_property
    def shading(self) -> Waves:
        """Of the coil, likewise."""
        return Waves.random(self.seed * 64 + 4, 3, (120.0, 240.0), 0.15)
