"""Volumes of known symmetry, in memory."""

import numpy as np
from scipy.ndimage import gaussian_filter

from vcmodels.data.task_volume import TaskVolume
from vcmodels.symmetry.find import find_symmetries
from vcmodels.targets import BinaryTarget
from vcmodels.volumes import ArrayVolume

SHAPE = (16, 18, 20)
MASK = {"mask": BinaryTarget()}


def volume_of(number, image, labels, spacing=(1.0, 1.0, 1.0)):
    """A volume of an image (Z, Y, X) and labels by name, all of which is used."""
    opened = ArrayVolume.of(image, spacing, f"image {number}")
    return TaskVolume(
        f"volume {number}", f"dataset_config.volume_paths.{number}", (opened,),
        {name: ArrayVolume.of(label, spacing, name) for name, label in labels.items()},
        None, None, opened.box, None, 1.0, spacing, None,
    )  # fmt: skip


def find(volumes, targets=MASK, patch=SHAPE, seed=0, rows=None):
    """What is found in volumes of which all patches train."""
    if rows is None:
        rows = np.array([(n, 0, 0, 0) for n in range(len(volumes))])
    return find_symmetries(volumes, rows, [v.region for v in volumes], targets, patch, seed)


def blobs(centre, count=24, spacing=(1.0, 1.0, 1.0), label=None, seed=0):
    """Volumes that hold one bright ball each, at `centre(rng)` in shares of the volume."""
    rng, volumes = np.random.default_rng(seed), []
    for number in range(count):
        middle = np.array(centre(rng)) * (np.array(SHAPE) - 1)
        place = np.indices(SHAPE) - middle[:, None, None, None]
        ball = np.linalg.norm(place, axis=0) < 3.5
        image = (100 * ball + rng.normal(0, 10, SHAPE)).astype(np.float32)
        found = ball.astype(np.uint8) if label is None else label(ball, middle)
        volumes.append(volume_of(number, image, {"mask": found}, spacing))
    return volumes


def texture(shape, seed=0, sigma=(1.5, 1.5, 1.5)):
    """A random field that has no side: mean 0, deviation 1."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma, mode="wrap")
    return (field / field.std()).astype(np.float32)


def tiles(shape, patch):
    """Rows of the patch list of one volume: all that lie side by side."""
    steps = [range(0, n - p + 1, p) for n, p in zip(shape, patch, strict=True)]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    return np.concatenate([np.zeros((len(grid), 1), np.int64), grid], axis=1)
