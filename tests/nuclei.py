"""What a network might say of a phantom of touching nuclei."""

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter


def boundaries(ids):
    """(Z, Y, X) bool: voxels next to another id."""
    found = np.zeros(ids.shape, bool)
    for axis in range(ids.ndim):
        along = np.moveaxis(ids, axis, 0)
        differs = along[1:] != along[:-1]
        into = np.moveaxis(found, axis, 0)
        into[1:] |= differs
        into[:-1] |= differs
    return found


def predicted_boundary(ids, noise, seed):
    """(Z, Y, X) float32 from 0 to 1: blurred boundaries with noise that is smooth and rough."""
    return _noisy(gaussian_filter(boundaries(ids).astype(np.float32), 0.7) * 1.3, noise, seed)


def predicted_mask(ids, noise, seed):
    """(Z, Y, X) float32 from 0 to 1."""
    return _noisy(gaussian_filter((ids > 0).astype(np.float32), 0.7), noise, seed)


def predicted_distance(ids, noise, seed):
    """(Z, Y, X) float32 in voxels, positive inside, from -8 to 8."""
    inside = distance_transform_edt(~boundaries(ids) & (ids > 0))
    signed = np.where(ids > 0, inside, -distance_transform_edt(ids == 0))
    rng = np.random.default_rng(seed)
    return np.clip(signed + rng.normal(0, 8 * noise, ids.shape), -8, 8).astype(np.float32)


def _noisy(values, noise, seed):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=values.shape), 2)
    rough = rng.normal(size=values.shape)
    return np.clip(values + noise * (rough + smooth / smooth.std()), 0, 1).astype(np.float32)


def average_precision(found, ids, least=0.5):
    """Of objects that overlap by at least `least`: true / (true + false + missed)."""
    pairs, counts = np.unique(
        np.stack([found.reshape(-1), ids.reshape(-1)]), axis=1, return_counts=True
    )
    a, b = (dict(zip(*np.unique(x, return_counts=True), strict=True)) for x in (found, ids))
    true = sum(
        n / (a[u] + b[v] - n) >= least
        for (u, v), n in zip(pairs.T.tolist(), counts.tolist(), strict=True)
        if u and v
    )
    objects, truths = len(a) - (0 in a), len(b) - (0 in b)
    return true / (objects + truths - true)
