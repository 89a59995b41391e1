"""Outlines that a person drew on slices, as a mask: polygons in JSON, and the text of Jim."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import tiles
from vcmodels.section import Section

SliceAxis = Literal["z", "y", "x"]
Corner = tuple[float, float]
_SHAPES = "Marker Text Line CurvedLine OpenSpline Rectangular Elliptical Spline Hollow Irregular"
_FORM = 'give {"polygons": [{"slice": 3, "points": [[y, x], ...]}, ...]}, or a .roi of Jim'


class Outline(Section):
    """A closed line on a slice."""

    slice: Annotated[int, Field(ge=0)]
    """Number of the slice, from 0 on."""
    points: Annotated[list[Corner], Field(min_length=3)]
    """Its corners, along the two other axes in the order z, y, x; the last joins the first."""
    value: Annotated[int, Field(ge=1, le=255)] = 1
    """What stands inside."""


class Outlines(Section):
    """A file of outlines; one inside of another of the same value is a hole."""

    polygons: Annotated[list[Outline], Field(min_length=1)]
    """In the order in which they are drawn: a later value lies over an earlier one."""
    axis: SliceAxis = "z"
    """Across which the slices lie."""
    unit: Literal["voxel", "mm"] = "voxel"
    """Of the points: voxels, or mm, from the centre of the first voxel."""


def read_outlines(
    path: Path, extent: Shape, spacing: Spacing, axis: SliceAxis = "z", mirrored: str = ""
) -> Outlines:
    """The outlines of a file, their points in voxels.

    Args:
        path: JSON, as `Outlines`; or what Jim saves (Xinapse Systems, "Region of Interest File
            Format"): slices from 1 on, points in mm from the middle of the slice.
        extent: of the image on which they were drawn.
        spacing: of its voxels, in mm.
        axis: of the slices of Jim, whose file does not say it.
        mirrored: "x", "y" or both, as a viewer of Jim's points sees them: axes of a slice, its rows
            and its columns, along which they run the other way.

    Raises:
        VolumeError: the file is damaged, holds no outline, or one does not lie in the image.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise VolumeError(str(path), f"cannot be read ({error.strerror})", "check it") from error
    is_jim = re.match(rf"\s*Begin\s+({_SHAPES.replace(' ', '|')})\s+ROI\b", text)
    if is_jim:
        found = Outlines(polygons=list(_of_jim(text, path)), axis=axis, unit="mm")
    else:
        found = _of_json(text, path)
    across = [n for n in range(3) if "zyx"[n] != found.axis]
    lengths = np.array([spacing[n] for n in across])
    middle = (np.array([extent[n] for n in across]) - 1) / 2
    signs = np.array([-1 if letter in mirrored else 1 for letter in "yx"])
    polygons: list[Outline] = []
    for one in found.polygons:
        points = np.array(one.points)
        if is_jim:
            points = middle + signs * points / lengths
        elif found.unit == "mm":
            points = points / lengths
        corners: list[Corner] = [(float(a), float(b)) for a, b in points]
        polygons.append(one.changed(points=corners))
        _require_inside(polygons[-1], extent, "zyx".index(found.axis), across, path)
    return found.changed(polygons=polygons, unit="voxel")


def _of_json(text: str, path: Path) -> Outlines:
    try:
        return Outlines.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise VolumeError(str(path), f"{where}: {first['msg'].lower()}", _FORM) from error


def _of_jim(text: str, path: Path) -> Iterator[Outline]:
    """What Jim calls irregular; points as (y, x) in mm from the middle of the slice."""
    pattern = r"Begin\s+(\w+)\s+ROI\b(.*?)End\s+\1\s+ROI\b"
    found = list(re.finditer(pattern, text, re.DOTALL))
    if len(found) != len(re.findall(r"Begin\s+\w+\s+ROI\b", text)):
        raise VolumeError(str(path), "an ROI has no end: the file is cut", "save it again")
    for match in found:
        kind, body = match[1], match[2]
        if re.search(r"^\s*Deleted\b", body, re.MULTILINE):
            continue
        if kind != "Irregular":
            remedy = "change it to an irregular ROI in Jim, or remove it"
            raise VolumeError(
                str(path), f"holds an ROI of kind {kind}, which is no polygon", remedy
            )
        number, points = re.search(r"\bSlice=(\d+)", body), re.search(r"\bPoints=(\d+)", body)
        corners = re.findall(r"X=([-+\d.eE]+);\s*Y=([-+\d.eE]+)", body)
        if not number or not points or int(number[1]) < 1 or len(corners) != int(points[1]):
            raise VolumeError(
                str(path), f"an ROI is damaged: {body.strip()[:60]!r}", "save it again"
            )
        yield Outline(slice=int(number[1]) - 1, points=[(float(y), float(x)) for x, y in corners])


def _require_inside(
    one: Outline, extent: Shape, axis: int, across: Sequence[int], path: Path
) -> None:
    """Refuse an outline beyond the image; by up to a voxel it may reach out.

    Raises:
        VolumeError: naming it.
    """
    ends = np.array([extent[n] for n in across])
    points = np.array(one.points)
    if one.slice >= extent[axis]:
        found = f"an outline is on slice {one.slice} of {extent[axis]} along {'zyx'[axis]}"
        raise VolumeError(str(path), found, "name the image that it was drawn on, or its --axis")
    if (points < -1).any() or (points > ends).any():
        found = (
            f"an outline on slice {one.slice} reaches from {points.min(axis=0).round(1).tolist()} "
            f"to {points.max(axis=0).round(1).tolist()}, the slice has {ends.tolist()} voxels"
        )
        raise VolumeError(str(path), found, "name the image that it was drawn on, or its --axis")


@dataclass(frozen=True)
class PaintedSlices:
    """Slices of a mask on which something is drawn."""

    extent: Shape
    axis: int
    planes: dict[int, NDArray[np.uint8]]
    """By the number of the slice, along the two other axes."""

    @classmethod
    def of(cls, outlines: Outlines, extent: Shape) -> "PaintedSlices":
        """Fill outlines: a voxel is inside where its centre is, by the rule of even and odd."""
        from skimage.draw import polygon2mask

        axis = "zyx".index(outlines.axis)
        shape = tuple(n for number, n in enumerate(extent) if number != axis)
        by_slice: dict[int, dict[int, NDArray[np.bool_]]] = defaultdict(dict)
        for one in outlines.polygons:
            masks = by_slice[one.slice]
            inside = polygon2mask(shape, np.array(one.points))
            masks[one.value] = masks.get(one.value, np.zeros(shape, bool)) ^ inside
        planes = {number: np.zeros(shape, np.uint8) for number in by_slice}
        for number, masks in by_slice.items():
            for value, mask in masks.items():
                planes[number][mask] = value
        return cls(extent, axis, planes)

    def pieces(self, size: Shape) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        """The mask in boxes of up to this size; those without a drawing are left out."""
        for box in tiles(Box((0, 0, 0), self.extent), size):
            here = range(box.origin[self.axis], box.end[self.axis])
            drawn = [number for number in self.planes if number in here]
            if drawn:
                block = np.zeros(box.shape, np.uint8)
                cut = tuple(s for n, s in enumerate(box.slices()) if n != self.axis)
                for number in drawn:
                    at = number - box.origin[self.axis]
                    np.moveaxis(block, self.axis, 0)[at] = self.planes[number][cut]
                yield box, block[None]
