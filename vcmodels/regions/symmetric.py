"""What is alike from both sides in every slice: a heuristic for a cord in its canal.

For every place of a slice, how well a round window about it agrees with itself turned by half a
turn: their correlation. Bright or dark does not matter, as contrasts differ. The path through all
slices that has the largest sum, with a price for steps aside, is found by dynamic programming
(Bellman 1957), as a seam is.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

_PRICE = 0.15
"""Of a step aside that is as long as the step along, in correlations."""
_REACH = 2
"""Voxels that the path may step aside from one slice to the next."""


def symmetry_scores(image: NDArray[np.floating], radii: tuple[float, float]) -> NDArray[np.float32]:
    """(N, H, W): correlation, -1 to 1, of the window about each voxel and itself turned half round.

    0 where the window does not lie in the image, or holds less than a tenth of the image's contrast.

    Args:
        image: (N, H, W): slices.
        radii: of the window along H and W, in voxels; 1 at least.
    """
    radii = max(radii[0], 1.0), max(radii[1], 1.0)
    height, width = (int(r) for r in radii)
    values = image.astype(np.float32) - np.float32(image.mean())
    padded = np.pad(values, ((0, 0), (height, height), (width, width)))
    mean, square, product_ = (np.zeros_like(values) for _ in range(3))
    count = 0
    for dy, dx in product(range(-height, height + 1), range(-width, width + 1)):
        if (dy / radii[0]) ** 2 + (dx / radii[1]) ** 2 <= 1:
            here, there = _moved(padded, dy, dx, radii), _moved(padded, -dy, -dx, radii)
            mean += here
            square += here * here
            product_ += here * there
            count += 1
    mean, square, product_ = mean / count, square / count, product_ / count
    variance = square - mean * mean
    is_plain = variance < 0.01 * values.var()
    scores = np.where(
        is_plain,
        0,
        (product_ - mean * mean) / np.where(is_plain, 1, variance + 0.25 * values.var()),
    )
    scores[:, :height] = scores[:, -height:] = 0
    scores[:, :, :width] = scores[:, :, -width:] = 0
    return scores.astype(np.float32)


def _moved(
    padded: NDArray[np.float32], dy: int, dx: int, radii: tuple[float, float]
) -> NDArray[np.float32]:
    height, width = (int(r) for r in radii)
    _, rows, columns = padded.shape
    return padded[:, height + dy : rows - height + dy, width + dx : columns - width + dx]


def best_path(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, 2): row and column in each slice, of the path of the largest sum.

    Args:
        scores: (N, H, W).
    """
    from scipy.ndimage import grey_dilation

    steps = np.mgrid[-_REACH : _REACH + 1, -_REACH : _REACH + 1]
    price = -_PRICE * (steps**2).sum(axis=0).astype(np.float32)
    sums = [scores[0]]
    for layer in scores[1:]:
        sums.append(layer + grey_dilation(sums[-1], structure=price, mode="constant", cval=-1e9))
    at = np.array(np.unravel_index(int(sums[-1].argmax()), scores.shape[1:]))
    path = [at]
    for layer in sums[-2::-1]:
        low = np.maximum(at - _REACH, 0)
        window = layer[low[0] : at[0] + _REACH + 1, low[1] : at[1] + _REACH + 1]
        first = low - at + _REACH
        cost = price[first[0] : first[0] + window.shape[0], first[1] : first[1] + window.shape[1]]
        at = low + np.unravel_index(int((window + cost).argmax()), window.shape)
        path.append(at)
    return np.array(path[::-1])
