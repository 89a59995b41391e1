"""Reading a crop: turned exactly, or between its voxels, nearest, linear or cubic.

Outside of a crop, its border is read.

On the CPU the weighted sums are bags of `embedding_bag`: the channels of a voxel are one row of a
table, and a sample is a weighted sum of rows. Rows are read with vector instructions, all channels
at the price of one, where `grid_sample` for volumes reads number by number.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.augment.transform import ImageInterpolation
from vcmodels.fields.normals import gaussian as gaussian_sums
from vcmodels.fields.normals import gaussian_reach
from vcmodels.geometry.symmetries import Symmetry


def gaussian(image: Tensor, sigmas: tuple[float, float, float]) -> Tensor:
    """Blur along (z, y, x), one standard deviation in voxels for each.

    `scipy.ndimage.gaussian_filter` with mode "nearest" takes 13 ms for sigma 1 on 96^3 on one core
    where this takes 3: whole volumes are added, shifted, so that every pass streams through memory
    (a matrix product per axis takes 6, `conv3d` 11).

    Args:
        image: (C, Z, Y, X) float32. Not written to.
        sigmas: 0 leaves an axis as it is.

    Returns:
        The same shape.
    """
    z, y, x = gaussian_reach(sigmas)
    return gaussian_sums(F.pad(image, (x, x, y, y, z, z), mode="replicate"), sigmas)


SLAB = {"linear": 2**15, "cubic": 2**12}
"""About how many voxels are read at once: rows and weights of their bags stay in the cache."""


def turn_tensor(symmetry: Symmetry, tensor: Tensor) -> Tensor:
    """The symmetry on the last three axes (z, y, x) of a tensor; values are not changed."""
    if tensor.device.type != "cpu":
        lead = tensor.ndim - 3
        axes = (*range(lead), *(lead + axis for axis in symmetry.permutation))
        flips = [lead + axis for axis, flip in enumerate(symmetry.flips) if flip]
        return tensor.permute(axes).flip(flips).contiguous()
    view = symmetry(tensor.numpy())
    turned = np.empty(view.shape, view.dtype)
    # Where z becomes x every number is in another page: line by line of the cache, few stay open.
    step = 16 if symmetry.permutation[2] == 0 else view.shape[-1]
    for first in range(0, view.shape[-1], step):
        turned[..., first : first + step] = view[..., first : first + step]
    return torch.from_numpy(turned)


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
    table, corner = _table(channels, position, interpolation)
    result = np.empty((len(channels), *position.shape[1:]), np.float32)
    depth = ceil(SLAB[interpolation] / position[0, 0].numel())
    for first in range(0, position.shape[1], depth):
        here = position[:, first : first + depth]
        rows = _bags(table, here.flatten(1) - corner, interpolation).numpy()
        result[:, first : first + depth] = rows.T.reshape(-1, *here.shape[1:])
    return list(torch.from_numpy(result).split(counts))


def _table(
    channels: Sequence[np.ndarray], position: Tensor, interpolation: ImageInterpolation
) -> tuple[Tensor, Tensor]:
    """The part of the channels that has a say at the places (3, ...).

    Returns:
        (z, y, x, channels) float32, and its first voxel (3, 1).
    """
    flat, reach = position.flatten(1), 1 if interpolation == "linear" else 2
    ends = zip(flat.amin(1).tolist(), flat.amax(1).tolist(), channels[0].shape, strict=True)
    # Where all places are outside, the voxels nearest to them must be within.
    box = tuple(
        slice(max(0, min(floor(low) - reach + 1, n - 1)), max(1, min(floor(high) + reach + 1, n)))
        for low, high, n in ends
    )
    table = np.stack([channel[box] for channel in channels], axis=-1)
    return torch.from_numpy(table), torch.tensor([[float(side.start)] for side in box])


def _bags(table: Tensor, position: Tensor, interpolation: ImageInterpolation) -> Tensor:
    """Interpolated values (n, channels) at the places (3, n) of the table, on the CPU."""
    extents = table.shape[:3]
    near, weights = _taps(position, extents, interpolation)
    steps = np.array([[extents[1] * extents[2]], [extents[2]], [1]], np.int32)
    rows, shares = [n.numpy() * steps for n in near], [weight.numpy() for weight in weights]
    index = np.empty((position.shape[1], len(near) ** 3), np.int32)
    share = np.empty(index.shape, np.float32)
    taps, column = range(len(near)), 0
    for z, y in product(taps, taps):
        row, of = rows[z][0] + rows[y][1], shares[z][0] * shares[y][1]
        for x in taps:
            np.add(row, rows[x][2], out=index[:, column])
            np.multiply(of, shares[x][2], out=share[:, column])
            column += 1
    bags, weights_of_rows = torch.from_numpy(index), torch.from_numpy(share)
    table = table.view(-1, table.shape[-1])
    return F.embedding_bag(bags, table, mode="sum", per_sample_weights=weights_of_rows)


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
