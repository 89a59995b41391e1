"""Made-up microscopy of touching nuclei, with an id for each: made in memory and written at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.phantom.kept import require_about
from vcmodels.volumes import Description, Grid, Pyramid, Storage, set_group_attributes, whole_folder
from vcmodels.volumes.backend import ZarrFormat
from vcmodels.volumes.multiscale import write_image
from vcmodels.volumes.places import refuse_in_store

_KIND = "touching nuclei"
_CHUNKS = (64, 64, 64)
LONGEST = 512
"""Voxels along an axis: all of it is made in memory."""
MOST_OBJECTS = 65_535
RADII = (9.0, 17.0)
"""Shortest and longest half axis of a nucleus, in voxels."""
SPACING_UM = 0.5
_TRIES = 2_000
"""Places that are tried for a nucleus before a volume is held to be full."""


@dataclass(frozen=True)
class NucleiScan:
    """Which scan is made."""

    shape: Shape
    objects: int
    seed: int

    def about(self) -> dict[str, Any]:
        """What the store says of itself."""
        return {
            "phantom": _KIND,
            "shape": list(self.shape),
            "objects": self.objects,
            "seed": self.seed,
        }


def touching_ellipsoids(
    shape: Shape, count: int, radii: tuple[float, float], seed: int
) -> np.ndarray:
    """(Z, Y, X) uint16: ids from 1 of ellipsoids that touch, 0 between them.

    Each one is placed next to one before, so that most touch another; those that would overlap by
    more than a tenth of the way between their centres are drawn again. A voxel of two belongs to the
    one whose centre is nearer, by its radius.

    Args:
        shape: of the volume.
        count: how many.
        radii: shortest and longest half axis, in voxels.
        seed: of everything random.

    Raises:
        FaultError: they do not fit into the volume.
    """
    rng = np.random.default_rng(seed)
    ids, nearest = np.zeros(shape, np.uint16), np.ones(shape, np.float32)
    centres, axes, tries = list[np.ndarray](), list[np.ndarray](), 0
    while len(centres) < count:
        if (tries := tries + 1) > _TRIES:
            found = f"{count} do not fit into {shape} voxels, {len(centres)} were placed"
            raise FaultError(found, "ask for fewer, or for a larger shape")
        size = rng.uniform(*radii, 3)
        centre = np.array(shape) / 2
        if centres:
            at = rng.integers(len(centres))
            way = rng.normal(size=3)
            way /= np.linalg.norm(way)
            reach = 1 / np.linalg.norm(way / axes[at]) + 1 / np.linalg.norm(way / size)
            centre = centres[at] + 0.95 * reach * way
        is_inside = bool((centre >= 3).all() and (centre <= np.array(shape) - 4).all())
        if is_inside and _nearest(centre, size, centres, axes) >= 0.9:
            centres.append(centre)
            axes.append(size)
            tries = 0
            _paint(ids, nearest, centre, size, len(centres))
    return ids


def _nearest(
    centre: np.ndarray, size: np.ndarray, centres: list[np.ndarray], axes: list[np.ndarray]
) -> float:
    """How far the nearest of other ellipsoids is: 1 where they touch along an axis; inf for none."""
    if not centres:
        return float("inf")
    ways = (centre - np.stack(centres)) / (size + np.stack(axes))
    return float(np.linalg.norm(ways, axis=1).min())


def _paint(
    ids: np.ndarray, nearest: np.ndarray, centre: np.ndarray, size: np.ndarray, number: int
) -> None:
    """Put one ellipsoid into a volume, where it is nearer than those before."""
    low, high = np.floor(centre - size).astype(int), np.ceil(centre + size).astype(int) + 1
    box = Box.between(low.tolist(), high.tolist()).intersect(Box((0, 0, 0), ids.shape[:3]))
    along = [np.arange(a, b, dtype=np.float32) for a, b in box.pairs]
    grid = np.stack(np.meshgrid(*along, indexing="ij"), -1)
    far = np.sqrt((((grid - centre) / size) ** 2).sum(-1)).astype(np.float32)
    mine, before = ids[box.slices()], nearest[box.slices()]
    closer = far < before
    mine[closer], before[closer] = number, far[closer]


def stained(ids: np.ndarray, seed: int) -> np.ndarray:
    """(Z, Y, X) uint8: what a microscope might show of nuclei.

    Each is as bright as it took up stain, with clumps inside and a dim rim; light is uneven, blur is
    that of optics, and there is noise.

    Args:
        ids: (Z, Y, X), 0 between nuclei.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    uptake = np.concatenate([[0.0], rng.uniform(0.45, 1.0, int(ids.max()))])
    depth = np.asarray(distance_transform_edt(_without_borders(ids)), np.float64)
    clumps = gaussian_filter(rng.normal(size=ids.shape), 2.5)
    inside = uptake[ids] * (1 - 0.5 * np.exp(-depth / 1.5)) * (1 + 0.25 * clumps / clumps.std())
    light = gaussian_filter(rng.normal(size=ids.shape), [n / 4 for n in ids.shape], mode="nearest")
    light = 1 + 0.2 * light / max(float(np.abs(light).max()), 1e-9)
    shown = 18 + 170 * gaussian_filter(np.where(ids > 0, inside, 0.0), 1.2) * light
    return np.clip(np.rint(shown + rng.normal(0, 9, ids.shape)), 0, 255).astype(np.uint8)


def _without_borders(ids: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bool: inside of a nucleus, and next to no other one."""
    found = ids > 0
    for axis in range(3):
        along, into = np.moveaxis(ids, axis, 0), np.moveaxis(found, axis, 0)
        differs = along[1:] != along[:-1]
        into[1:] &= ~differs
        into[:-1] &= ~differs
    return found


def write_nuclei(path: str, scan: NucleiScan, *, zarr_format: ZarrFormat = 2) -> None:
    """Write an image of touching nuclei with their ids, for demos, tests and benchmarks.

    The store gets the OME-Zarr images `raw` (uint8) and `ids` (uint16: 0 between nuclei). Nothing
    appears at `path` until all is written.

    Args:
        path: the store to make, a local folder that does not exist.
        scan: which one.
        zarr_format: 2 or 3.

    Raises:
        OutputError: `path` exists, or lies in another store.
        FaultError: the nuclei do not fit into the shape.
    """
    refuse_in_store("the phantom", path)
    ids = touching_ellipsoids(scan.shape, scan.objects, RADII, scan.seed)
    with whole_folder(Path(path)) as folder:
        set_group_attributes(str(folder), scan.about(), zarr_format=zarr_format)
        for name, voxels in (("raw", stained(ids, scan.seed)), ("ids", ids)):
            write_image(
                folder / name,
                voxels,
                grid=Grid((SPACING_UM, SPACING_UM, SPACING_UM), unit="micrometer"),
                chunks=_CHUNKS,
                storage=Storage(zarr_format),
                pyramid=Pyramid(levels=0),
                description=Description(name),
            )


def require_nuclei(path: str, scan: NucleiScan) -> None:
    """Refuse what is at a path unless it is this scan.

    Raises:
        OutputError: it is another one, or none.
    """
    require_about(path, scan.about(), "nuclei")
