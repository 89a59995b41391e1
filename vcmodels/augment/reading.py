"""Reading a crop between its voxels: nearest, linear or cubic. Outside of it, its border is read.

On the CPU the weighted sums are bags of `embedding_bag`: the channels of a voxel are one row of a
table, and a sample is a weighted sum of rows. Rows are read with vector instructions, all channels
at the price of one, where `grid_sample` for volumes reads number by number.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.augment.transform import ImageInterpolation

BLOCK = 32
"""Side of the blocks that are read one by one: all that one of them needs stays in the cache."""


def read_nearest(array: Tensor, position: Tensor) -> Tensor:
    """The values of the nearest voxels.

    Args:
        array: (C, Z, Y, X), any dtype.
        position: (3, z, y, x) float32, in voxels of the array.

    Returns:
        (C, z, y, x), dtype of the array.
    """
    index = torch.zeros(position.shape[1:], dtype=torch.int32, device=position.device)
    for place, extent in zip(position, array.shape[1:], strict=True):
        index.mul_(extent).add_(place.round().clamp_(0, extent - 1).int())
    rows = [channel.reshape(-1).index_select(0, index.view(-1)) for channel in array]
    return torch.stack(rows).view(len(array), *index.shape)


def read_smooth(
    arrays: Sequence[Tensor], position: Tensor, interpolation: ImageInterpolation = "linear"
) -> list[Tensor]:
    """The values between voxels.

    `cubic` is the kernel with a = -1/2 of Keys (1981, IEEE TASSP 29(6)): at a voxel its own value,
    and every quadratic polynomial exactly.

    Args:
        arrays: each (C, Z, Y, X) float32, C its own, the rest the same.
        position: (3, z, y, x) float32, in voxels of the arrays.
        interpolation: from 2 or 4 voxels along each axis.

    Returns:
        Per array (C, z, y, x) float32.
    """
    if not arrays:
        return []
    counts = [len(array) for array in arrays]
    if position.is_cuda:
        read = _grid_sampled if interpolation == "linear" else _summed
        return list(read(torch.cat(list(arrays)), position).split(counts))
    channels = [channel.numpy() for array in arrays for channel in array]
    result = torch.empty(len(channels), *position.shape[1:])
    for block in _blocks(position.shape[1:]):
        here = position[:, *block]
        bags = _bags(channels, here.flatten(1), interpolation)
        result.numpy()[:, *block] = bags.numpy().T.reshape(-1, *here.shape[1:])
    return list(result.split(counts))


def _blocks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    starts = product(*(range(0, n, BLOCK) for n in shape))
    return (tuple(slice(start, start + BLOCK) for start in corner) for corner in starts)


def _bags(
    channels: Sequence[np.ndarray], position: Tensor, interpolation: ImageInterpolation
) -> Tensor:
    """Interpolated values (n, channels) at the places (3, n), on the CPU."""
    near, weights = _taps(position, channels[0].shape, interpolation)
    first, last = near[0].amin(1).tolist(), near[-1].amax(1).tolist()
    box = tuple(slice(low, high + 1) for low, high in zip(first, last, strict=True))
    table = np.stack([channel[box] for channel in channels], axis=-1)
    _, height, width, _ = table.shape
    corner, steps = torch.tensor([first, [height * width, width, 1]], dtype=torch.int32)
    rows = [((n - corner[:, None]) * steps[:, None]).numpy() for n in near]
    shares = [weight.numpy() for weight in weights]
    index = np.empty((position.shape[1], len(near) ** 3), np.int32)
    share = np.empty(index.shape, np.float32)
    taps, column = range(len(near)), 0
    for z, y in product(taps, taps):
        row, of = rows[z][0] + rows[y][1], shares[z][0] * shares[y][1]
        for x in taps:
            np.add(row, rows[x][2], out=index[:, column])
            np.multiply(of, shares[x][2], out=share[:, column])
            column += 1
    return F.embedding_bag(
        torch.from_numpy(index),
        torch.from_numpy(table).flatten(0, 2),
        mode="sum",
        per_sample_weights=torch.from_numpy(share),
    )


def _taps(
    position: Tensor, extents: Sequence[int], interpolation: ImageInterpolation
) -> tuple[list[Tensor], list[Tensor]]:
    """Per tap, from low to high, the voxel along each axis (3, ...) int32 and its weight float32.

    Places and voxels outside of the extents are moved to the border. Weights sum to 1.
    """
    shape = (3, *(1 for _ in position.shape[1:]))
    border = torch.tensor(extents, dtype=torch.int32, device=position.device).view(shape) - 1
    inside = position.clamp(min=0).minimum(border)
    low = inside.floor()
    t, low = inside - low, low.int()
    s = 1 - t
    if interpolation == "linear":
        return [low, (low + 1).minimum(border)], [s, t]
    near = [(low + step).clamp_(min=0).minimum(border) for step in (-1, 0, 1, 2)]
    outer = t * s / -2
    middle = (1 + x * x * (1.5 * x - 2.5) for x in (t, s))
    return near, [outer * s, *middle, outer * t]


def _summed(array: Tensor, position: Tensor) -> Tensor:
    """Cubic values (C, ...) at the places (3, ...), tap by tap, on any device."""
    near, weights = _taps(position, array.shape[1:], "cubic")
    taps = range(len(near))
    result = array.new_zeros(len(array), *position.shape[1:])
    for z, y, x in product(taps, taps, taps):
        weight = weights[z][0] * weights[y][1] * weights[x][2]
        result.addcmul_(array[:, near[z][0], near[y][1], near[x][2]], weight)
    return result


def _grid_sampled(array: Tensor, position: Tensor) -> Tensor:
    """Linear values (C, ...) at the places (3, ...), by the library's kernel, on any device."""
    extents = array.shape[1:]
    scaled = [p * (2 / max(n - 1, 1)) - 1 for p, n in zip(position, extents, strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)[None]
    return F.grid_sample(array[None], grid, padding_mode="border", align_corners=True)[0]
