"""Arithmetic on fields of 3-vectors and axes; the component axis is the fourth from the end.

Shapes are (..., 3, Z, Y, X). A vector of length 0 means "no direction" and stays one.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.geometry.boxes import Spacing

SHORTEST = 1e-6
"""Vectors below this length have no direction."""
VectorOrder = Literal["xyz", "zyx"]


def reordered(vectors: np.ndarray, order: VectorOrder) -> np.ndarray:
    """(3, Z, Y, X) between a stored order and (z, y, x), without a copy; its own inverse."""
    return vectors[::-1] if order == "xyz" else vectors


def longest_of(vectors: np.ndarray) -> float:
    """The greatest length among (3, ...) vectors; what is not finite, or above 1e15, is left out."""
    countable = np.abs(vectors) <= 1e15  # whose square is finite
    kept = np.where(countable.all(0), vectors, 0)
    return float(np.linalg.norm(kept.astype(np.float32), axis=0).max(initial=0.0))


def unit(vectors: Tensor, shortest: float = SHORTEST) -> Tensor:
    """Vectors of length 1 in the same direction; 0 for those up to `shortest` or not finite."""
    # A short one divided by infinity is 0; what is not finite gives NaN in some component or all.
    # Comparisons and a choice between two tensors would take three times as long.
    return (vectors / divisors(vectors, shortest)).nan_to_num_(nan=0.0)


def divisors(vectors: Tensor, shortest: float = SHORTEST) -> Tensor:
    """(..., 1, Z, Y, X): lengths; infinity or NaN for those up to `shortest` or not finite."""
    length = vectors.square().sum(-4, keepdim=True).sqrt()
    return F.threshold(length, shortest, math.inf)


def pull_back(vectors: Tensor, jacobian: Tensor) -> Tensor:
    """J^T n: how the normals of a surface change when its volume is resampled.

    With f'(q) = f(p(q)) the gradient is J^T grad f, so no matrix is inverted and a sheared or
    locally stretched surface is right too. For a signed permutation (flip, quarter turn, transpose)
    components are only moved and negated: exact to the bit.

    Args:
        vectors: (3, Z, Y, X), components (z, y, x).
        jacobian: (3, 3) or (3, 3, Z, Y, X), of the sampling map p (output -> input), J[i, j] =
            d p_i / d q_j.

    Returns:
        (3, Z, Y, X); unit vectors, except for a signed permutation, which keeps the lengths.
    """
    turned, is_exact = apply_matrix(vectors, jacobian.transpose(0, 1))
    return turned if is_exact else unit(turned)


def push_forward(vectors: Tensor, jacobian: Tensor) -> Tensor:
    """J^-1 v: how displacements change when their volume is resampled.

    Both ends of a displacement are read at p(q), so that v = p(q + v') - p(q) = J v' to first order.
    Arguments as for `pull_back`; lengths are kept as they come out.

    Returns:
        (3, Z, Y, X); not finite where the sampling map folds (J has no inverse).
    """
    if jacobian.ndim == 2:
        # For a signed permutation this is the transpose to the bit.
        inverse = torch.linalg.inv(jacobian.cpu().double()).to(vectors)
        return apply_matrix(vectors, inverse)[0]
    (a, b, c), (d, e, f), (g, h, i) = jacobian.to(vectors)
    # The adjugate written out: for 96^3 voxels 19 ms on one core, `torch.linalg.solve_ex` 81.
    adjugate = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * adjugate[0][0] + b * adjugate[1][0] + c * adjugate[2][0]
    z, y, x = vectors
    return torch.stack([p * z + q * y + r * x for p, q, r in adjugate]) / determinant


def voxel_jacobian(jacobian: Tensor, spacing: Spacing) -> Tensor:
    """The Jacobian between voxel positions, D^-1 J D for the diagonal D of the spacing.

    A signed permutation stays one: it moves voxels onto voxels, of nearly equal length or not.
    """
    if jacobian.ndim == 2 and signed_permutation(jacobian) is not None:
        return jacobian
    side = torch.tensor(spacing, dtype=jacobian.dtype, device=jacobian.device)
    ratio = side / side[:, None]
    return jacobian * ratio.view(3, 3, *[1] * (jacobian.ndim - 2))


def apply_matrix(vectors: Tensor, matrix: Tensor) -> tuple[Tensor, bool]:
    """M v, and whether M is a signed permutation, for which components are only moved and negated.

    Args:
        vectors: (3, Z, Y, X).
        matrix: (3, 3) or (3, 3, Z, Y, X).
    """
    if matrix.ndim == 2 and (moves := signed_permutation(matrix.T)) is not None:
        return torch.stack([vectors[i] if sign > 0 else -vectors[i] for i, sign in moves]), True
    columns = matrix.transpose(0, 1).to(vectors)
    if columns.ndim == 2:
        columns = columns[..., None, None, None]
    # Written out: a matrix product may be rounded to bfloat16 or TF32 by autocast or the device.
    product = columns[0] * vectors[0]
    return product.addcmul_(columns[1], vectors[1]).addcmul_(columns[2], vectors[2]), False


def signed_permutation(matrix: Tensor) -> list[tuple[int, float]] | None:
    """For each column the row and sign of its only entry; None for any other matrix."""
    columns = matrix.T.tolist()
    entries = [[(i, v) for i, v in enumerate(column) if v != 0] for column in columns]
    moves = [column[0] for column in entries if len(column) == 1 and abs(column[0][1]) == 1]
    return moves if {i for i, _ in moves} == {0, 1, 2} else None


def outer_products(vectors: Tensor) -> Tensor:
    """The 6 different entries zz, yy, xx, zy, zx, yx of n n^T: (..., 3, Z, Y, X) -> (..., 6, ...).

    They are the same for n and -n, so that averages over axes of any sign mean something.
    """
    z, y, x = vectors.unbind(-4)
    return torch.stack([z * z, y * y, x * x, z * y, z * x, y * x], dim=-4)


def principal_axes(moments: Tensor) -> Tensor:
    """Unit eigenvectors of the largest eigenvalue of symmetric 3x3 matrices, in closed form.

    The eigenvector is a column of the adjugate of A - l1 I; one product with A - l3 I then removes
    what rounding left of the smallest eigenvalue's direction. Where the two largest eigenvalues are
    equal, or in float32 less than 1e-4 of their sum apart, the result is some vector of their plane.
    80 ns a voxel on one core, where `torch.linalg.eigh` takes 3000.

    Args:
        moments: (..., 6, Z, Y, X), ordered as by `outer_products`, positive semi-definite.

    Returns:
        (..., 3, Z, Y, X); the sign is arbitrary; 0 where the matrix is 0, not finite or prefers no
        axis at all.
    """
    trace = moments.narrow(-4, 0, 3).sum(-4, keepdim=True)
    zz, yy, xx, zy, zx, yx = (moments / trace.clamp(min=SHORTEST)).unbind(-4)
    largest, smallest = outer_eigenvalues(zz, yy, xx, zy, zx, yx)
    a, b, c = zz - largest, yy - largest, xx - largest
    adjugate = (
        b * c - yx * yx,
        a * c - zx * zx,
        a * b - zy * zy,
        zx * yx - zy * c,
        zy * yx - zx * b,
        zy * zx - a * yx,
    )
    a, b, c = zz - smallest, yy - smallest, xx - smallest
    column, fallback = _main_column(*adjugate), _main_column(a, b, c, zy, zx, yx)
    tied = column.abs().amax(-4, keepdim=True) < SHORTEST
    z, y, x = unit(torch.where(tied, fallback, column), shortest=0.0).unbind(-4)
    return unit(
        torch.stack([a * z + zy * y + zx * x, zy * z + b * y + yx * x, zx * z + yx * y + c * x], -4)
    )


def outer_eigenvalues(
    zz: Tensor, yy: Tensor, xx: Tensor, zy: Tensor, zx: Tensor, yx: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest and the smallest, by the trigonometric formula (Smith 1961, CACM 4(4))."""
    mean = (zz + yy + xx) / 3
    a, b, c = zz - mean, yy - mean, xx - mean
    off = zy * zy + zx * zx + yx * yx
    spread = ((a * a + b * b + c * c + 2 * off) / 6).sqrt()
    determinant = a * (b * c - yx * yx) - zy * (zy * c - yx * zx) + zx * (zy * yx - b * zx)
    cosine = (determinant / (2 * spread**3).clamp(min=1e-30)).clamp(-1, 1)
    angle = torch.acos(cosine) / 3
    return (
        mean + 2 * spread * torch.cos(angle),
        mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3),
    )


def _main_column(zz: Tensor, yy: Tensor, xx: Tensor, zy: Tensor, zx: Tensor, yx: Tensor) -> Tensor:
    """The column through the largest diagonal entry: of a semi-definite matrix 0 only if all of it is."""
    first, second = (zz >= yy) & (zz >= xx), yy >= xx
    return torch.stack(
        [
            torch.where(first, zz, torch.where(second, zy, zx)),
            torch.where(first, zy, torch.where(second, yy, yx)),
            torch.where(first, zx, torch.where(second, yx, xx)),
        ],
        dim=-4,
    )
