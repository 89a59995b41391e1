"""Labels on their way from the volume to the patch, and their resampling beside the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vcmodels.augment.reading import read_nearest, read_smooth
from vcmodels.augment.transform import ImageInterpolation, Spacing
from vcmodels.geometry.boxes import Shape
from vcmodels.targets.base import Target


@dataclass(frozen=True)
class LabelCrop:
    """A label on its way from the volume to the patch.

    Attributes:
        values: (L, *crop) float32, 0 where not valid; crop is `SpatialTransform.input_shape` of the
            patch and its margin.
        valid: (V, *crop) bool, V being 1 or L.
        target: whose rules the values follow; None for ids, which are moved as they are.
        margin: voxels around the patch, on each side, that are wanted too.
    """

    values: Tensor
    valid: Tensor
    target: Target | None
    margin: Shape = (0, 0, 0)


def changed(label: LabelCrop, jacobian: Tensor, spacing: Spacing) -> LabelCrop:
    """A label whose voxels have been moved, with its values turned."""
    if label.target is None:
        return label
    values, valid = label.target.turn(label.values, label.valid, jacobian, spacing)
    return replace(label, values=values, valid=valid)


def resample(
    images: Sequence[Tensor],
    labels: Mapping[str, LabelCrop],
    position: Tensor,
    interpolation: ImageInterpolation,
) -> tuple[list[Tensor], dict[str, LabelCrop]]:
    """Read images smoothly and labels as their targets say, all at one set of positions.

    Args:
        images: each (C, *crop) float32.
        labels: by name, of the same crop.
        position: (3, Z, Y, X) float32, in voxels of the crop.
        interpolation: of the images.

    Returns:
        Images and labels of shape (Z, Y, X); the labels' values have not been turned yet.
    """
    spread = {
        n: c.target.spread(c.values) for n, c in labels.items() if c.target and _is_averaged(c)
    }
    # Most masks are true everywhere: reading them would cost as much as a label.
    holed = {n: c.valid for n, c in labels.items() if not c.valid.view(torch.uint8).amin()}
    weights = {n: holed[n].all(0, keepdim=True).float() for n in spread if n in holed}
    linear = [*spread.values(), *weights.values()]
    if interpolation == "linear":
        read = read_smooth([*images, *linear], position)
    else:
        read = read_smooth(images, position, interpolation) + read_smooth(linear, position)
    first, last = len(images), len(images) + len(spread)
    images, means = read[:first], dict(zip(spread, read[first:last], strict=True))
    shares = dict(zip(weights, read[last:], strict=True))
    whole = torch.ones((1, *position.shape[1:]), dtype=torch.bool, device=position.device)
    moved: dict[str, LabelCrop] = {}
    for name, label in labels.items():
        valid = whole.expand(len(label.valid), -1, -1, -1)
        if name in holed:
            valid = read_nearest(label.valid, position)
        if name not in means:
            values = read_nearest(label.values, position)
        else:
            values = _settled(label, means[name], shares.get(name), valid)
        moved[name] = replace(label, values=values, valid=valid)
    return images, moved


def _is_averaged(label: LabelCrop) -> bool:
    return label.target is not None and label.target.interpolation == "linear"


def _settled(label: LabelCrop, mean: Tensor, share: Tensor | None, valid: Tensor) -> Tensor:
    """A label from its averages; `share` is how much of each average was valid, None for all."""
    assert label.target is not None
    if share is None:
        return label.target.settle(mean)
    # The nearest of eight neighbours weighs at least 1/8.
    return torch.where(valid, label.target.settle(mean / share.clamp_min(1 / 16)), 0.0)
