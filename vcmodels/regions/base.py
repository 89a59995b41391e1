"""A region: the box of a volume that holds it, and which of its voxels are of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcmodels.fields.centreline import Centreline, Trace
from vcmodels.fields.tube import Tube
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.regions.section import RegionConfig


@dataclass(frozen=True)
class Region:
    """Part of a volume; voxels and positions are those of its own grid."""

    source: str
    """What found it, in words."""
    box: Box
    """Inside of the volume."""
    spacing: Spacing
    """Length of the voxels along (z, y, x), in mm."""
    tube: Tube | None = None
    """Which of the box's voxels are of it, in mm; all of them when None."""

    @classmethod
    def around(
        cls, found: Trace, config: RegionConfig, source: str, extent: Shape, spacing: Spacing
    ) -> "Region":
        """The tube or the box around an object.

        Args:
            found: the object, in mm.
            config: shape, radius and margins.
            source: what found it.
            extent: of the volume.
            spacing: length of its voxels, in mm.

        Raises:
            ValueError: nothing of it lies in the volume.
        """
        tube, (low, high) = None, (np.array(found.low), np.array(found.high))
        if config.shape == "tube":
            margin = config.margins[0]
            tube = Tube(found.line.extended((margin, margin)), config.radius_mm)
            low, high = tube.reach()
        else:
            low, high = low - config.margins, high + config.margins
        start = [floor(a / s + 0.5) for a, s in zip(low.tolist(), spacing, strict=True)]
        end = [ceil(a / s - 0.5) + 1 for a, s in zip(high.tolist(), spacing, strict=True)]
        box = Box.between(start, end).intersect(Box((0, 0, 0), extent))
        if not box.voxels:
            raise ValueError(f"nothing of it lies in the volume of {extent} voxels")
        return cls(source, box, spacing, tube)

    @classmethod
    def whole(cls, extent: Shape, spacing: Spacing) -> "Region":
        """All of a volume."""
        return cls("the whole volume", Box((0, 0, 0), extent), spacing)

    def mask(self, box: Box) -> NDArray[np.bool_]:
        """(Z, Y, X): which voxels of a box are of it."""
        if self.tube is not None:
            return self.tube.mask(box.origin, box.shape, self.spacing)
        inside = np.zeros(box.shape, bool)
        inside[self.box.intersect(box).slices(box)] = True
        return inside

    def borders(self, box: Box, extent: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Where it ends, but for where the volume does: each border in words, and which voxels are on it.

        Args:
            box: what is looked at.
            extent: of the volume.

        Yields:
            Words, and (Z, Y, X) of the box.
        """
        if self.tube is not None:
            yield "the wall of the tube", self._wall(box, extent)
            return
        for axis, letter in enumerate("zyx"):
            for end, at in (("low", self.box.origin[axis]), ("high", self.box.end[axis] - 1)):
                if 0 < at < extent[axis] - 1 and box.origin[axis] <= at < box.end[axis]:
                    face = self.box.cut(axis, at, at + 1).intersect(box)
                    on_it = np.zeros(box.shape, bool)
                    on_it[face.slices(box)] = True
                    yield f"the {end} {letter} face", on_it

    def _wall(self, box: Box, extent: Shape) -> NDArray[np.bool_]:
        """(Z, Y, X): its voxels that share a face with one that is not of it, in the volume."""
        # Late: slow to import.
        from scipy.ndimage import binary_erosion

        around = box.grow((1, 1, 1)).intersect(Box((0, 0, 0), extent))
        inside = self.mask(around)
        core = np.asarray(binary_erosion(inside, border_value=1), bool)
        return (inside & ~core)[box.slices(around)]

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the attributes of a result."""
        ends = [*self.box.origin, *self.box.end]
        found: dict[str, Any] = {"source": self.source, "box": ends, "spacing_mm": [*self.spacing]}
        if self.tube is not None:
            found |= {"line": _line_to_json(self.tube.line), "radius_mm": self.tube.radius}
        return found


def trace_to_json(found: Trace) -> dict[str, Any]:
    """JSON values that `trace_from_json` reads."""
    numbers = {name: getattr(found, name) for name in _NUMBERS}
    return {"line": _line_to_json(found.line), **numbers, "low": found.low, "high": found.high}


_NUMBERS = ("share", "strays")


def trace_from_json(stored: Mapping[str, Any]) -> Trace:
    """Undo `trace_to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    low, high = (triple(float(n) for n in stored[name]) for name in ("low", "high"))
    numbers = {name: float(stored[name]) for name in _NUMBERS}
    return Trace(_line_from_json(stored["line"]), **numbers, low=low, high=high)


def _line_to_json(line: Centreline) -> dict[str, Any]:
    return {"axis": line.axis, "points": line.points.tolist()}


def _line_from_json(stored: Mapping[str, Any]) -> Centreline:
    """Undo `line_to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is no line.
    """
    points = np.asarray(stored["points"], np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) < 2:
        raise ValueError(f"points of shape {points.shape} are no line")
    return Centreline(int(stored["axis"]), points)
