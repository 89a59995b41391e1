"""Writing the phantom, box by box, in memory that does not grow with the volume."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.grid import tiles
from vcmodels.phantom.scan import MARGIN, Scan
from vcmodels.phantom.scroll import LOOSE, PressedWinding, Scroll, Winding
from vcmodels.volumes import (
    Grid,
    Storage,
    WritableArray,
    create_array,
    open_volume,
    set_group_attributes,
    whole_folder,
)
from vcmodels.volumes.backend import ZarrFormat
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.places import refuse_in_store

SPACING_UM = 7.91
UNLABELLED = 2
"""Value of `sheet` where nobody has labelled; name it as `ignore_label` in the task."""
NO_WRAP = 65535
"""Value of `wraps` where nobody has labelled."""
_WORK = 64  # voxels along each axis that are computed at once


class Phantom(NamedTuple):
    """The arrays of the phantom in a box."""

    ct: np.ndarray
    """(1, Z, Y, X) uint8."""
    sheet: np.ndarray
    """(1, Z, Y, X) uint8: 0 background, 1 sheet, 2 unlabelled."""
    normals: np.ndarray
    """(3, Z, Y, X) uint16, (x, y, z): component = v / 32767.5 - 1; 0, 0, 0 is unlabelled."""
    wraps: np.ndarray
    """(1, Z, Y, X) uint16: the number of the wrap on the sheet, 0 background, 65535 unlabelled."""


def make_phantom(
    shape: Sequence[int], box: Box, seed: int = 0, winding: Winding = LOOSE
) -> Phantom:
    """The phantom's arrays in a box: a function only of shape, seed, winding and position."""
    scroll = Scroll(_shape(shape), seed, winding)
    wide = box.grow((MARGIN, MARGIN, MARGIN))
    surface = scroll.surface(wide)
    ct = np.clip(np.rint(Scan(scroll).image(box, surface)), 0, 255).astype(np.uint8)
    surface = surface.crop(box.slices(wide))
    sheet = np.where(surface.labelled, surface.mask, UNLABELLED).astype(np.uint8)
    normals = np.rint((surface.normals[::-1] + 1) * 32767.5).astype(np.uint16)
    normals[:, ~(surface.has_normal & surface.labelled)] = 0
    wraps = np.where(surface.mask, surface.wrap, 0)
    wraps = np.where(surface.labelled, wraps, NO_WRAP).astype(np.uint16)
    return Phantom(ct[None], sheet[None], normals, wraps[None])


def write_phantom(
    path: str,
    *,
    shape: Sequence[int] = (160, 224, 224),
    seed: int = 0,
    spacing: tuple[float, float] | None = None,
    chunks: Sequence[int] = (64, 64, 64),
    zarr_format: ZarrFormat = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a CT-like volume of a scroll with its sheet and normals, for demos, tests, benchmarks.

    The store gets four arrays: `ct` (uint8), `sheet` (uint8: 0 background, 1 sheet, 2 unlabelled),
    `normals` ((3, Z, Y, X) uint16: unit normals that point outward, in the order x, y, z, as
    v / 32767.5 - 1, with 0, 0, 0 where there is none) and `wraps` (uint16: the number of the wrap,
    counted from the axis, 0 background, 65535 unlabelled). The sheet goes on from each wrap to the
    next one: their numbers change at the half-plane from the axis to low x. The voxels depend on
    shape, seed and spacing, not on the chunks. Nothing appears at `path` until all is written.

    Args:
        path: the store to make, a local folder that does not exist.
        shape: (z, y, x) voxels; the axis of the scroll is along z.
        seed: of everything random.
        spacing: voxels between the middles of neighbouring wraps, lowest and highest, as in (2, 6)
            for pressed ones, which touch in places; about 8 to 17 when None.
        chunks: (z, y, x) of the stored chunks.
        zarr_format: 2 or 3.
        progress: called with the voxels that are done and their total, after each piece.

    Raises:
        OutputError: `path` exists, or lies in another store.
        ValueError: shape or chunks are not three positive numbers.
        FaultError: spacing is none that `PressedWinding.between` takes.
    """
    size, unit = _shape(shape), _shape(chunks)
    winding = LOOSE if spacing is None else PressedWinding.between(*spacing)
    refuse_in_store("the phantom", path)
    with whole_folder(Path(path)) as folder:
        arrays = _create(str(folder), size, unit, seed, zarr_format, spacing)
        done, total = 0, prod(size)
        for piece in _pieces(size, unit):
            _write_piece(arrays, size, piece, seed, winding)
            done += piece.voxels
            if progress:
                progress(done, total)


def _create(
    root: str,
    shape: Shape,
    chunks: Shape,
    seed: int,
    zarr_format: ZarrFormat,
    spacing: tuple[float, float] | None,
) -> tuple[WritableArray, ...]:
    """The empty arrays, in the order of `Phantom`."""
    set_group_attributes(root, _about(seed, spacing), zarr_format=zarr_format)

    def array(name: str, channels: int, dtype: str, attributes: dict[str, object]) -> WritableArray:
        lead = (channels,) if channels > 1 else ()
        return create_array(
            root,
            name,
            shape=(*lead, *shape),
            chunks=(*lead, *chunks),
            dtype=dtype,
            grid=Grid((SPACING_UM, SPACING_UM, SPACING_UM), unit="micrometer"),
            attributes=attributes,
            storage=Storage(zarr_format),
        )

    code = {"scale": 2 / 65535, "offset": -1.0, "zero_code": 0}
    return (
        array("ct", 1, "uint8", {}),
        array(
            "sheet", 1, "uint8", {"labels": {"0": "background", "1": "sheet", "2": "unlabelled"}}
        ),
        array("normals", 3, "uint16", {"vector_order": "xyz", "orientation": "oriented", **code}),
        array("wraps", 1, "uint16", {"labels": {"0": "background", str(NO_WRAP): "unlabelled"}}),
    )


def _about(seed: int, spacing: tuple[float, float] | None) -> dict[str, object]:
    """What the group says of the phantom."""
    about: dict[str, object] = {"phantom": "rolled sheet", "seed": seed}
    return about if spacing is None else {**about, "spacing": list(spacing)}


def require_phantom(
    path: str, *, shape: Sequence[int], seed: int, spacing: tuple[float, float] | None
) -> None:
    """Refuse what is at a path unless it is the phantom of this shape, seed and spacing.

    Raises:
        OutputError: it is another one, or no phantom.
        VolumeError: it is damaged.
    """
    node, remedy = read_node(path, path), "remove it, or name another store"
    if node is None or "phantom" not in node.attributes:
        raise OutputError(path, "is there already and is no phantom", remedy)
    there = {**node.attributes, "shape": list(open_volume(f"{path}/ct", key=path).extent)}
    wanted = {**_about(seed, spacing), "shape": list(shape)}
    for name in ("shape", "seed", "spacing"):
        before, now = (one.get(name, "loose") for one in (there, wanted))
        if before != now:
            raise OutputError(path, f"is a phantom of {name} {before}, not {now}", remedy)


def _write_piece(
    arrays: Sequence[WritableArray], shape: Shape, piece: Box, seed: int, winding: Winding
) -> None:
    """Compute a piece in small boxes and write it once."""
    whole = Phantom(
        np.empty((1, *piece.shape), np.uint8),
        np.empty((1, *piece.shape), np.uint8),
        np.empty((3, *piece.shape), np.uint16),
        np.empty((1, *piece.shape), np.uint16),
    )
    for box in tiles(piece, (_WORK, _WORK, _WORK)):
        for out, part in zip(whole, make_phantom(shape, box, seed, winding), strict=True):
            out[(slice(None), *box.slices(piece))] = part
    for array, data in zip(arrays, whole, strict=True):
        array.write(piece, data)


def _pieces(shape: Shape, chunks: Shape) -> Iterator[Box]:
    """Boxes of whole chunks that cover the volume, each about as large as what is computed."""
    return tiles(Box((0, 0, 0), shape), triple(-(-_WORK // c) * c for c in chunks))


def _shape(values: Sequence[int]) -> Shape:
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"expected three positive numbers (z, y, x), got {tuple(values)}")
    return triple(int(v) for v in values)
