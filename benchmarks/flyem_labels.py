"""Labels derived from the FlyEM membrane mask: distance to it, and its normals."""

import shutil
from pathlib import Path

import numpy as np
from scipy import ndimage

from vcmodels.volumes import create_array, open_volume

DISTANCE_LIMIT = 10.0
"""Voxels; farther away the distance is clipped, since context ends there."""
TRAINING_END = 120
"""Labels below this z are derived from voxels below it alone: nothing of the rest leaks in."""


def clipped_distance(membrane: np.ndarray) -> np.ndarray:
    """Distance in voxels to the nearest membrane voxel, 0 on it, at most `DISTANCE_LIMIT`."""
    distance = np.asarray(ndimage.distance_transform_edt(~membrane))
    return np.minimum(distance, DISTANCE_LIMIT).astype(np.float32)


def membrane_normals(membrane: np.ndarray, sigma: float = 1.5, window: float = 2.0) -> np.ndarray:
    """Unit normals (3, Z, Y, X), components z, y, x, on the membrane; zero elsewhere.

    A membrane has no inside, so the sign means nothing: the normal is the axis along which the
    smoothed mask changes most, the first eigenvector of its structure tensor (Bigun & Granlund
    1987). Both scales are in voxels.
    """
    smooth = ndimage.gaussian_filter(membrane.astype(np.float32), sigma)
    gradient = np.gradient(smooth)
    tensor = np.zeros((int(membrane.sum()), 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            product = ndimage.gaussian_filter(gradient[i] * gradient[j], window)
            tensor[:, i, j] = tensor[:, j, i] = product[membrane]
    _, vectors = np.linalg.eigh(tensor)
    normals = np.zeros((3, *membrane.shape), np.float32)
    normals[:, membrane] = vectors[:, :, 2].T
    return normals


def write_flyem_labels(source: str, folder: Path) -> Path:
    """Write `distance` and `normals` beside nothing else into `<folder>/flyem_labels.zarr`."""
    root = folder / "flyem_labels.zarr"
    if (root / "done").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    volume = open_volume(f"{source}/labels/membrane", key="membrane")
    membrane = volume.read(volume.box)[0] > 0
    distance, normals = clipped_distance(membrane), membrane_normals(membrane)
    distance[:TRAINING_END] = clipped_distance(membrane[:TRAINING_END])
    normals[:, :TRAINING_END] = membrane_normals(membrane[:TRAINING_END])
    chunks, shape = (64, 64, 64), membrane.shape
    create_array(str(root), "distance", shape=shape, chunks=chunks, dtype="float16").write(
        volume.box, distance[None].astype(np.float16)
    )
    create_array(str(root), "normals", shape=(3, *shape), chunks=(3, *chunks), dtype="int8").write(
        volume.box, np.round(normals * 127).astype(np.int8)
    )
    (root / "done").touch()
    return root
