"""The shape of the phantom, one sheet rolled up, and how it looks in a CT scanner.

The phase is `u = G(rho) - theta / 2 pi + squeeze`, where rho is the distance from a drifting axis plus
a smooth warp, G grows by one per wrap and `squeeze` presses wraps together in places. One turn
changes theta / 2 pi by one, so that `u` is continuous modulo 1, and the set of all points where `u` is
an integer is a single spiral sheet. Its normals are the gradient of `u`, in closed form.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d

from vcmodels.geometry.boxes import Box, Shape
from vcmodels.phantom.fields import Array, Ball, Scatter, Waves, draw, positions, white_noise

MEAN_SPACING = 11.8
"""Voxels between wraps, on average; about 8 to 17 with the warp and the squeezing."""
_RIPPLE, _RIPPLE_LENGTH = 0.18, 70.0
_DRIFT, _DRIFT_LENGTH = 5.0, 170.0
_FIRST_WRAP = 2  # nearer the axis the phase is singular
_BAND = 1.5  # voxels beyond the sheet in which normals are stored


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

    def crop(self, part: tuple[slice, slice, slice]) -> "Surface":
        """The same for a part of the box."""
        return Surface(
            self.distance[part],
            self.thickness[part],
            self.gradient[(slice(None), *part)],
            self.present[part],
            self.labelled[part],
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

    @property
    def centre(self) -> tuple[float, float]:
        """Where the axis is on average, (y, x)."""
        return self.shape[1] * 0.49, self.shape[2] * 0.52

    @property
    def wraps(self) -> tuple[int, int]:
        """The first and the last wrap; the outermost nearly touches the larger side."""
        radius = 0.48 * max(self.shape[1:])
        return _FIRST_WRAP, max(_FIRST_WRAP + 1, int(radius / MEAN_SPACING))

    @cached_property
    def _warp(self) -> Waves:
        return Waves.random(self.seed * 64 + 1, 7, (75.0, 220.0), 4.0)

    @cached_property
    def _thickness(self) -> Waves:
        return Waves.random(self.seed * 64 + 2, 4, (40.0, 120.0), 0.35)

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
        wave = 2 * np.pi / _RIPPLE_LENGTH
        phase = rho / MEAN_SPACING + _RIPPLE * np.sin(wave * rho) - angle / (2 * np.pi)
        steepness = 1 / MEAN_SPACING + _RIPPLE * wave * np.cos(wave * rho)
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
            thickness=np.minimum(thickness, 0.74 / steepness),
            gradient=gradient,
            present=present,
            labelled=labelled,
        )

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


BLUR = 0.9
"""Standard deviation of the scanner's point spread, in voxels."""
MARGIN = 4
"""Voxels around a box that its blurred image depends on."""
_AIR, _CONTRAST = 76.0, 70.0
_OUTER_LAYER = 0.45  # how much denser than the mean the outer face is, and the inner one thinner


@dataclass(frozen=True)
class Scan:
    """The scanner's view of a scroll, in grey values 0 to 255."""

    scroll: Scroll

    def _waves(
        self, stream: int, count: int, lengths: tuple[float, float], deviation: float
    ) -> Waves:
        return Waves.random(self.scroll.seed * 64 + stream, count, lengths, deviation)

    @cached_property
    def _brightness(self) -> Waves:
        return self._waves(11, 8, (50.0, 150.0), 19.0)

    @cached_property
    def _contrast(self) -> Waves:
        return self._waves(12, 4, (50.0, 150.0), 0.13)

    @cached_property
    def _hollow(self) -> Waves:
        return self._waves(13, 4, (30.0, 90.0), 0.22)

    @cached_property
    def _dust(self) -> Waves:
        return self._waves(14, 5, (25.0, 70.0), 0.22)

    @property
    def _debris(self) -> Scatter:
        return Scatter(self.scroll.seed * 64 + 15, cell=13, chance=0.55, radii=(1.6, 3.6))

    def image(self, box: Box, surface: Surface) -> Array:
        """The CT values of a box, (Z, Y, X) float64, not yet rounded.

        Args:
            box: what to scan.
            surface: of the box grown by `MARGIN` on all sides, which the blur reaches.
        """
        wide = box.grow((MARGIN, MARGIN, MARGIN))
        blurred = self._matter(wide, surface) + 24.0 * white_noise(wide, self.scroll.seed * 64 + 21)
        for axis in range(3):
            blurred = gaussian_filter1d(blurred, BLUR, axis=axis, radius=MARGIN)
        image = blurred[box.slices(wide)]
        image += self._rings(box)
        image += 6.5 * white_noise(box, self.scroll.seed * 64 + 22)
        return image

    def _matter(self, box: Box, surface: Surface) -> Array:
        """What the rays go through: sheet, dust and grains in air of uneven brightness."""
        where = positions(box)
        depth = np.clip(2 * surface.distance / surface.thickness, -1, 1)
        hollow = np.clip(0.2 + self._hollow.value(*where), 0, 0.45) * (1 - depth**2)
        dust = np.clip(self._dust.value(*where), 0, 0.4)
        # Papyrus has two layers. Without a denser one, only the curvature would distinguish outward
        # from inward, which a patch is too small to show.
        matter = surface.density * (1 - hollow) * (1 + _OUTER_LAYER * depth)
        matter += (1 - surface.density) * dust
        self._strew(box, matter)
        contrast = _CONTRAST * np.clip(1 + self._contrast.value(*where), 0.6, 1.4)
        return _AIR + self._brightness.value(*where) + contrast * matter

    def _strew(self, box: Box, matter: Array) -> None:
        """Grains as bright as the sheet, or brighter, mostly between the wraps."""

        def put(where: tuple[slice, ...], square: Array, _: list[Array], ball: Ball) -> None:
            inside = np.clip((1 - np.sqrt(square)) * ball.radius + 0.5, 0, 1)
            value = 0.8 + 0.9 * ball.draws[0]
            matter[where] = np.maximum(matter[where], value * inside)

        self._debris.paint(box, put)

    def _rings(self, box: Box) -> Array:
        """Rings about the scanner's own axis, from detector elements that are off."""
        shape = self.scroll.shape
        _, y, x = positions(box)
        radius = np.sqrt((y - 0.38 * shape[1]) ** 2 + (x - 0.61 * shape[2]) ** 2)[0]
        low = np.floor(radius).astype(np.int64)
        gains = np.array(
            [draw(self.scroll.seed * 64 + 31, n) - 0.5 for n in range(int(low.max()) + 2)]
        )
        share = radius - low
        return 13.0 * (gains[low] * (1 - share) + gains[low + 1] * share)[None]
