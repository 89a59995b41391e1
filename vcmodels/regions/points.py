"""Points along an object, as a person set them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcmodels.errors import VolumeError
from vcmodels.geometry.affine import flipped_world
from vcmodels.geometry.boxes import Spacing
from vcmodels.volumes import Volume
from vcmodels.volumes.world import world_affine

_FORM = "give [[z, y, x], ...] in voxels, or a curve of 3D Slicer (.mrk.json)"


def read_points(path: Path, image: Volume, spacing: Spacing) -> NDArray[np.float64]:
    """(n, 3): the points of a file along (z, y, x), in mm from the centre of the first voxel.

    Args:
        path: JSON: a list of (z, y, x) in voxels of the image, or what 3D Slicer saves of a curve,
            whose positions are in the world (LPS+ unless it says RAS).
        image: in which they lie; it says its affine if they are in the world.
        spacing: of its voxels, in mm.

    Raises:
        VolumeError: it cannot be read, holds no points, or they are in the world and the image does
            not say where it lies.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VolumeError(str(path), f"cannot be read as JSON ({error})", _FORM) from error
    if isinstance(stored, dict) and "markups" in stored:
        return _of_slicer(stored, path, image) * spacing
    return _numbers(stored, path) * spacing


def _numbers(stored: object, path: Path) -> NDArray[np.float64]:
    try:
        points = np.asarray(stored, np.float64)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        raise VolumeError(str(path), "holds no list of points", _FORM) from error
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise VolumeError(str(path), f"holds numbers of shape {points.shape}", _FORM)
    return points


def _of_slicer(stored: dict[str, Any], path: Path, image: Volume) -> NDArray[np.float64]:
    """Points of the world, in voxels (z, y, x)."""
    affine = world_affine(image)
    if affine is None:
        found = f"has points in the world, and {image.shown} does not say where it lies"
        raise VolumeError(str(path), found, "give points in voxels, [[z, y, x], ...]")
    try:
        curve = stored["markups"][0]
        points = [point["position"] for point in curve["controlPoints"]]
        system = str(curve.get("coordinateSystem", "LPS")).upper()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise VolumeError(str(path), "is no curve of 3D Slicer", _FORM) from error
    world = affine if system in ("RAS", "0") else flipped_world(affine)
    homogeneous = np.c_[_numbers(points, path), np.ones(len(points))]
    return (homogeneous @ np.linalg.inv(world).T)[:, 2::-1]
