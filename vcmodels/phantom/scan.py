"""How the phantom looks in a CT scanner."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d

from vcmodels.geometry.boxes import Box
from vcmodels.phantom.scroll import (
    Array,
    Ball,
    Scatter,
    Scroll,
    Surface,
    Waves,
    draw,
    positions,
    white_noise,
)

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
