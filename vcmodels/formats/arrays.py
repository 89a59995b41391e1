"""Arrays that can be read anywhere, of which the axes are in any order: their shape here, their pieces."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.base import Piece
from vcmodels.geometry.boxes import Box, Shape, cut_block
from vcmodels.volumes import Grid
from vcmodels.volumes.axes import AxisMap
from vcmodels.volumes.spacing import AxisLengths

_PIECE_BYTES = 1 << 24
FEW = 4
"""Lengths up to this are of channels, in arrays that do not name their axes."""
ZYX = AxisMap(("z", "y", "x"), (0, 1, 2), None)


class Stored(Protocol):
    """What is used of an array of any library."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, where: Any, /) -> Any: ...  # noqa: ANN401


def shape_of(sizes: Mapping[str, int]) -> tuple[int, ...]:
    """(Z, Y, X), or (C, Z, Y, X), of what has these lengths by letter; z may be missing."""
    channels = [sizes["c"]] if "c" in sizes else []
    return (*channels, sizes.get("z", 1), sizes["y"], sizes["x"])


def settled_axes(letters: str, shape: Sequence[int], location: str, key: str) -> str:
    """The letters with "-" for axes of length 1 that are none of c, z, y, x.

    Raises:
        VolumeError: another axis is longer, y or x is missing, or there are no voxels.
    """
    _refuse_empty(shape, location, key)
    settled = "".join(a if a in "czyx" else "-" for a in letters)
    others = [
        f"{a} ({n})" for a, n in zip(letters, shape, strict=True) if a not in "czyx" and n > 1
    ]
    named = [a for a in settled if a != "-"]
    if others or not {"y", "x"} <= {*named} or len({*named}) < len(named):
        found = f"{location} has the axes {', '.join(letters)} of lengths {tuple(shape)}"
        raise VolumeError(key, found, "give a file with z, y, x, and channels c at most")
    return settled


def guessed_axes(shape: Sequence[int], location: str, key: str) -> tuple[str, tuple[str, ...]]:
    """The letters of an array that does not name its axes, and a note if they are not plain.

    Raises:
        VolumeError: it has 4 axes of which not one end alone is short, or more, or no voxels.
    """
    _refuse_empty(shape, location, key)
    ones = next((n for n, length in enumerate(shape) if length != 1), len(shape))
    lead = "-" * min(ones, max(len(shape) - 3, 0))
    rest = tuple(shape[len(lead) :])
    if len(rest) in (2, 3):
        return lead + "zyx"[-len(rest) :], ()
    if len(rest) == 4 and (rest[0] <= FEW) != (rest[3] <= FEW):
        letters = "czyx" if rest[0] <= FEW else "zyxc"
        return lead + letters, (f"its axes {tuple(shape)} are read as {', '.join(letters)}",)
    found = f"{location} has the shape {tuple(shape)} and does not name its axes"
    raise VolumeError(key, found, "write (z, y, x), a file for each channel")


def _refuse_empty(shape: Sequence[int], location: str, key: str) -> None:
    if 0 in shape:
        found = f"{location} has the shape {tuple(shape)}, and so no voxels"
        raise VolumeError(key, found, "choose another one")


def array_pieces(
    stored: Stored, letters: str, dtype: np.dtype[Any], chunks: Shape = (1, 1, 1)
) -> Iterator[Piece]:
    """All voxels of an array, in the order of z, as many whole chunks at once as are not much.

    Args:
        stored: with one axis for each letter.
        letters: as from `settled_axes`; of "-" only the first position is read.
        dtype: of the pieces.
        chunks: of the array, along (z, y, x).
    """
    sizes = dict(zip(letters, stored.shape, strict=True))
    shape = shape_of(sizes)
    depth, height, width = shape[-3:]
    bytes_each = prod(shape[:-3]) * dtype.itemsize
    kept = [a for a in letters if a != "-"]
    order = [kept.index(a) for a in "czyx" if a in kept]
    for box in cut_block(
        Box((0, 0, 0), (depth, height, width)), chunks, _PIECE_BYTES // bytes_each
    ):
        spans = dict(zip("zyx", box.slices(), strict=True)) | {"c": slice(None)}
        values = np.asarray(stored[tuple(spans.get(a, 0) for a in letters)])
        voxels = values.transpose(order).reshape(-1, *box.shape)
        yield box, voxels.astype(dtype, copy=False)


def told_grid(place: str, scale: object, shift: object, unit: object) -> Grid:
    """The grid that lengths along (z, y, x) make; without `scale` it is not known."""
    return AxisLengths(place, scale, shift, unit, ("z", "y", "x")).grid(ZYX)
