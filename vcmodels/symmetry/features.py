"""What is compared of a window and its mirror image: layouts, and how the image leans.

A layout is the window at `CELLS` cells a side. A lean is odd in one direction: it is a vector
(z, y, x) for each lag, whose component changes its sign where the axis runs backwards. That of an
image alone, less its linear trend, is the skewness of its differences,

    E[(I(p + k) - I(p - k))^3] / E[(I(p + k) - I(p - k))^2]^1.5,

which is not 0 where things fade on one side and end sharply on the other; that of a label L next to
an image is E[L(p) (I(p + k) - I(p - k))], over the deviations of both.

Which way fibres or layers run is left out on purpose, and so is a brightness that drifts: in data of
one specimen these are the specimen's own, and no new volume has to follow them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from vcmodels.augment.resample import turn_tensor
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.symmetry.signs import Directions, directions
from vcmodels.targets import AnyTarget

CELLS = 4
LAGS = (1, 2, 4)
"""Distances of a difference, in voxels."""
MOST_LEANING = 8
"""Classes up to which each is compared with the image around it."""
MOST_VALUES = 1 << 26
"""Channels of a label times voxels, up to which it is compared: a quarter of a GB. The image decides
beyond."""


@dataclass(frozen=True)
class LabelFeatures:
    """Of the label of one target in a window."""

    layout: Tensor
    """(M, cells, cells, cells) float32, of the values after `spread`; valid voxels alone count."""
    lean: Tensor
    """(M, C, lags, 3) float32 with the image; M is 0 for vectors, and for many classes."""
    directions: Directions | None
    """Of vectors."""


@dataclass(frozen=True)
class WindowFeatures:
    """Of one window."""

    layout: Tensor
    """(C, cells, cells, cells) float32, of the image with mean 0 and deviation 1."""
    lean: Tensor
    """(C, lags, 3) float32."""
    sharpness: Tensor
    """(3,) float32: mean squared difference of neighbours along each axis."""
    labels: Mapping[str, LabelFeatures]
    """By target; those that have a label here which can tell sides and is no network's."""


def read_features(
    volume: TaskVolume,
    region: Box,
    window: Box,
    targets: Mapping[str, AnyTarget],
    rng: np.random.Generator,
) -> WindowFeatures:
    """Read a window and measure it.

    Args:
        volume: that it is in.
        region: of the volume, what may be read.
        window: inside the region.
        targets: whose labels are looked at; pseudo-labels are not.
        rng: chooses the voxels at which vectors are looked at.

    Raises:
        RunError: a label holds a value that the kind cannot have; names volume and place.
    """
    parts = [torch.from_numpy(np.asarray(v.read(window), np.float32)) for v in volume.inputs]
    image = standardised(torch.cat(parts))
    flat = without_trend(image)
    labels: dict[str, LabelFeatures] = {}
    for name, target in targets.items():
        label = (
            volume.label(name, target, region) if _tells(name, target, volume, targets) else None
        )
        if label is None:
            continue
        read, valid = map(torch.from_numpy, label.read(window))
        if bool(valid.any()) and target.channels * window.voxels <= MOST_VALUES:
            labels[name] = label_features(target, read, valid, flat, volume.spacing, rng)
    squares = [difference(flat, axis, 1).square().mean() for axis in range(3)]
    return WindowFeatures(pooled(image), skewness(flat), torch.stack(squares), labels)


def _tells(
    name: str, target: AnyTarget, volume: TaskVolume, targets: Mapping[str, AnyTarget]
) -> bool:
    """Whether the label of a target is to be looked at: values follow from what they derive from."""
    if target.sided == "values" and target.derive in targets:
        return False
    return target.sided is not None and name not in volume.pseudo


def label_features(
    target: AnyTarget,
    label: Tensor,
    valid: Tensor,
    image: Tensor,
    spacing: Spacing,
    rng: np.random.Generator,
) -> LabelFeatures:
    """Of a label (L, Z, Y, X) float32, valid (V, Z, Y, X) bool, and the image (C, Z, Y, X)."""
    is_vector = target.sided == "vectors"
    values = label if is_vector else target.spread(label)
    counts = valid.all(0, keepdim=True).float()
    layout = pooled(values * counts, counts)
    leaning = values * counts if not is_vector and len(values) <= MOST_LEANING else values[:0]
    found = directions(image, label, counts[0] > 0, spacing, rng) if is_vector else None
    return LabelFeatures(layout, lean(leaning, image), found)


def standardised(image: Tensor) -> Tensor:
    """(C, Z, Y, X) float32 with mean 0 and deviation 1 in each channel; what is not finite is 0."""
    known = image.isfinite()
    image = torch.where(known, image, 0.0)
    share = known.float().mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
    centred = torch.where(known, image - image.mean((1, 2, 3), keepdim=True) / share, 0.0)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    # Rounding is no structure: a constant channel stays 0.
    return torch.where(deviation > 1e-6 * image.abs().amax(), centred / deviation, 0.0)


def without_trend(values: Tensor) -> Tensor:
    """(M, Z, Y, X) float32 less the mean and the linear trend of each along every axis."""
    rest = values - values.mean((1, 2, 3), keepdim=True)
    for axis in range(1, 4):
        # Places about the middle of one axis say nothing of the others: each is fitted by itself.
        count = values.shape[axis]
        place = torch.arange(count, dtype=values.dtype) - (count - 1) / 2
        shape = [-1 if axis == other else 1 for other in range(4)]
        place = (place / place.square().mean().sqrt().clamp_min(1e-6)).view(shape)
        rest = rest - place * (rest * place).mean((1, 2, 3), keepdim=True)
    return rest


def pooled(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Means over `CELLS` cells a side: (M, Z, Y, X) -> (M, cells, cells, cells).

    With `counts` (1, Z, Y, X), over the voxels that count; a cell without one has the mean of all.
    """
    sides = (CELLS, CELLS, CELLS)
    sums = adaptive_avg_pool3d(values, sides)
    if counts is None:
        return sums
    shares = adaptive_avg_pool3d(counts, sides)
    mean = values.mean((1, 2, 3), keepdim=True) / counts.mean().clamp_min(1e-12)
    return torch.where(shares > 0, sums / shares.clamp_min(1e-12), mean)


def difference(image: Tensor, axis: int, lag: int) -> Tensor:
    """I(p + lag) - I(p - lag) along an axis, 0 where one of them lies outside; same shape."""
    found, length = torch.zeros_like(image), image.shape[1 + axis]
    if length > 2 * lag:
        ahead = image.narrow(1 + axis, 2 * lag, length - 2 * lag)
        behind = image.narrow(1 + axis, 0, length - 2 * lag)
        found.narrow(1 + axis, lag, length - 2 * lag).copy_(ahead - behind)
    return found


def skewness(image: Tensor) -> Tensor:
    """(C, Z, Y, X) -> (C, lags, 3): of the differences; 0 where there are none."""
    found = image.new_zeros(len(image), len(LAGS), 3)
    for n, lag in enumerate(LAGS):
        for axis in range(3):
            steps = difference(image, axis, lag)
            square = steps.square()
            scale = square.mean((1, 2, 3)).clamp_min(1e-12) ** 1.5
            found[:, n, axis] = (square * steps).mean((1, 2, 3)) / scale
    return found


def lean(values: Tensor, image: Tensor) -> Tensor:
    """(M, Z, Y, X) next to (C, Z, Y, X) -> (M, C, lags, 3)."""
    found = image.new_zeros(len(values), len(image), len(LAGS), 3)
    if not len(values):
        return found
    size = values.square().mean((1, 2, 3)).sqrt()[:, None]
    for n, lag in enumerate(LAGS):
        for axis in range(3):
            steps = difference(image, axis, lag)
            both = values.flatten(1) @ steps.flatten(1).T / steps[0].numel()
            scale = size * steps.square().mean((1, 2, 3)).sqrt()[None]
            found[:, :, n, axis] = both / scale.clamp_min(1e-12)
    return found


def turned_values(
    target: AnyTarget, spacing: Spacing, layouts: Tensor, symmetry: Symmetry
) -> Tensor:
    """Layouts of labels (n, M, z, y, x) after a symmetry: cells moved, values as the target turns them."""
    moved = turn_tensor(symmetry, layouts).transpose(0, 1)
    # All windows as one label: what a symmetry does to values is the same everywhere.
    flat = moved.flatten(1, 2)
    everywhere = torch.ones((1, *flat.shape[1:]), dtype=torch.bool)
    jacobian = torch.as_tensor(symmetry.matrix, dtype=torch.float32)
    return target.turn(flat, everywhere, jacobian, spacing)[0].reshape(moved.shape).transpose(0, 1)


def turned_leans(vectors: Tensor, symmetry: Symmetry) -> Tensor:
    """Leans (..., 3) after a symmetry: components (z, y, x) exchanged, and signed."""
    return vectors @ torch.as_tensor(symmetry.matrix, dtype=torch.float32)


def turned_label_leans(
    target: AnyTarget, spacing: Spacing, leans: Tensor, symmetry: Symmetry
) -> Tensor:
    """Leans (n, M, C, lags, 3) of labels: those of each value, where the target puts the value."""
    count = leans.shape[1]
    numbers = torch.arange(count, dtype=torch.float32).view(1, count, 1, 1, 1)
    order = turned_values(target, spacing, numbers, symmetry).flatten().long() if count else []
    return turned_leans(leans, symmetry)[:, order]
