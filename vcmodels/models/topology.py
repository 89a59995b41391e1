"""The plan of a U-shaped network, in closed form from the patch size and the voxel spacing.

The rule is that of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, and
`experiment_planning/experiment_planners/network_topology.py` there):

- between two levels an axis is halved when at least `MIN_EDGE` voxels are left after it, and its
  spacing is less than twice the finest spacing among the axes that can still be halved;
- a kernel is 3 along an axis once that axis has come within 2x of the finest, and 1 before;
- features double from level to level up to a cap.

So a thin or coarsely sampled z is neither pooled nor mixed until the other axes have caught up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod

from vcmodels.geometry.boxes import Shape

AXES = ("z", "y", "x")
MIN_EDGE = 4
"""Voxels that halving must leave along an axis."""
MIN_EDGE_ASKED = 2
"""The same where `num_levels` asks for more levels than `MIN_EDGE` allows."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the network."""

    features: int
    stride: Shape
    """Reduction from the level above; (1, 1, 1) at the first."""
    kernel: Shape
    """Edges of the convolutions, 1 or 3 per axis."""
    shape: Shape
    """Length along (z, y, x) of the planned patch at this level."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The levels of a network, full resolution first."""

    levels: tuple[Level, ...]

    @property
    def divisor(self) -> Shape:
        """What the length of an input along (z, y, x) must be a multiple of."""
        return total_stride([level.stride for level in self.levels])


def plan_topology(
    patch: Shape,
    spacing: Spacing,
    *,
    num_levels: int | None = None,
    features: Sequence[int] | None = None,
    base_features: int = 32,
    max_features: int = 320,
) -> Topology:
    """Plan the levels for one patch size.

    Args:
        patch: length along (z, y, x), in voxels.
        spacing: voxel size along (z, y, x), in any one unit.
        num_levels: how many levels, at least 2; as many as the rule allows when None.
        features: features per level, one number per level.
        base_features: features of the first level where `features` is None.
        max_features: cap of the doubling where `features` is None.

    Raises:
        ValueError: the patch is too small, too small for that many levels, or not a multiple of
            what the pooling needs; the message names the axis and the nearest good lengths.
    """
    if not all(isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be positive, found {spacing}")
    if num_levels is None and features is not None:
        num_levels = len(features)
    strides = plan_strides(patch, spacing, num_levels)
    check_divisible(patch, total_stride(strides))
    if features is None:
        features = [min(base_features * 2**i, max_features) for i in range(len(strides))]
    kernels = plan_kernels(strides, spacing)
    shapes = [divide(patch, total_stride(strides[: i + 1])) for i in range(len(strides))]
    parts = zip(features, strides, kernels, shapes, strict=True)
    return Topology(tuple(Level(*part) for part in parts))


def plan_strides(patch: Shape, spacing: Spacing, num_levels: int | None) -> list[Shape]:
    """The stride into every level; the first is (1, 1, 1)."""
    strides: list[Shape] = [(1, 1, 1)]
    while num_levels is None or len(strides) < num_levels:
        pooled = total_stride(strides)
        stride = next_stride(patch, spacing, pooled, MIN_EDGE)
        if stride == (1, 1, 1) and num_levels is not None:
            stride = next_stride(patch, spacing, pooled, MIN_EDGE_ASKED)
        if stride == (1, 1, 1):
            break
        strides.append(stride)
    if num_levels is not None and len(strides) < num_levels:
        raise ValueError(
            f"patch_size {list(patch)} is too small for num_levels {num_levels}: "
            f"it allows at most {len(strides)}, because every halving must leave "
            f"{MIN_EDGE_ASKED} voxels along an axis"
        )
    if len(strides) < 2:
        raise ValueError(
            f"patch_size {list(patch)} is too small to be pooled even once: "
            f"one axis must be at least {2 * MIN_EDGE} voxels long"
        )
    return strides


def next_stride(patch: Shape, spacing: Spacing, pooled: Shape, min_edge: int) -> Shape:
    """The axes to halve after `pooled`: those long enough and within 2x of the finest of them."""
    long_enough = [n >= 2 * min_edge * p for n, p in zip(patch, pooled, strict=True)]
    coarse = [s * p for s, p in zip(spacing, pooled, strict=True)]
    finest = min((s for s, ok in zip(coarse, long_enough, strict=True) if ok), default=0.0)
    z, y, x = (2 if ok and s < 2 * finest else 1 for s, ok in zip(coarse, long_enough, strict=True))
    return z, y, x


def plan_kernels(strides: Sequence[Shape], spacing: Spacing) -> list[Shape]:
    """The kernel of every level: 3 along an axis from the level where it is within 2x of the finest."""
    kernels: list[Shape] = []
    z = y = x = 1
    for i in range(len(strides)):
        pooled = total_stride(strides[: i + 1])
        coarse = [s * p for s, p in zip(spacing, pooled, strict=True)]
        near = [3 if s < 2 * min(coarse) else 1 for s in coarse]
        z, y, x = max(z, near[0]), max(y, near[1]), max(x, near[2])
        kernels.append((z, y, x))
    return kernels


def check_divisible(patch: Shape, divisor: Shape) -> None:
    """Refuse a patch that the pooling does not divide, or reduces to a single voxel.

    Raises:
        ValueError: naming every axis that does not fit, its length and the nearest good ones.
    """
    if patch == divisor:
        raise ValueError(
            f"patch_size {list(patch)} leaves the deepest level one voxel, which an instance norm "
            f"cannot take. Use twice that along an axis"
        )
    faults = [
        f"{n} along {axis} is not a multiple of {d} (nearest: {', '.join(map(str, multiples_around(n, d)))})"
        for axis, n, d in zip(AXES, patch, divisor, strict=True)
        if n % d
    ]
    if faults:
        good = [max(d, (n + d // 2) // d * d) for n, d in zip(patch, divisor, strict=True)]
        raise ValueError(
            f"patch_size {list(patch)} does not fit the network: {'; '.join(faults)}. "
            f"Use {good}, or fewer levels with model_config.num_levels"
        )


def multiples_around(n: int, divisor: int) -> list[int]:
    """The multiples just below and above `n`, without 0."""
    below = n // divisor * divisor
    return [m for m in (below, below + divisor) if m]


def total_stride(strides: Sequence[Shape]) -> Shape:
    """The product of strides along (z, y, x)."""
    z, y, x = (prod(stride[axis] for stride in strides) for axis in range(3))
    return z, y, x


def divide(shape: Shape, divisor: Shape) -> Shape:
    """`shape // divisor` along (z, y, x)."""
    z, y, x = (n // d for n, d in zip(shape, divisor, strict=True))
    return z, y, x
