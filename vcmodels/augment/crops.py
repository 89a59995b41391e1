"""Labels on their way from the volume to the patch, and their resampling beside the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

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


@dataclass(frozen=True)
class Sources:
    """What is read from one crop: images smoothly, labels as their targets say.

    Attributes:
        images: each (C, *crop) float32.
        interpolation: of the images.
        labels: by name, of the same crop.
        spread: of the labels that are averaged, what is averaged.
        holed: valid masks that are not true everywhere. Most are: reading them would cost as much
            as a label.
        weights: (1, *crop) float32, which voxels of an averaged label with holes count.
    """

    images: Sequence[Tensor]
    interpolation: ImageInterpolation
    labels: Mapping[str, LabelCrop]
    spread: dict[str, Tensor]
    holed: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def prepared(
        cls,
        images: Sequence[Tensor],
        labels: Mapping[str, LabelCrop],
        interpolation: ImageInterpolation,
    ) -> Self:
        """All that has to be done but once for a crop."""
        spread = {
            name: label.target.spread(label.values)
            for name, label in labels.items()
            if label.target is not None and label.target.interpolation == "linear"
        }
        holed = {n: c.valid for n, c in labels.items() if not c.valid.view(torch.uint8).amin()}
        weights = {n: holed[n].all(0, keepdim=True).float() for n in spread if n in holed}
        return cls(images, interpolation, labels, spread, holed, weights)

    def read(self, position: Tensor) -> tuple[list[Tensor], dict[str, LabelCrop]]:
        """Images and labels at places (3, z, y, x) of the crop; vectors have not been turned yet."""
        linear = [*self.spread.values(), *self.weights.values()]
        if self.interpolation == "linear":
            read = read_smooth([*self.images, *linear], position)
        else:
            read = read_smooth(self.images, position, "cubic") + read_smooth(linear, position)
        first, last = len(self.images), len(self.images) + len(self.spread)
        means = dict(zip(self.spread, read[first:last], strict=True))
        shares = dict(zip(self.weights, read[last:], strict=True))
        whole = torch.ones((1, *position.shape[1:]), dtype=torch.bool, device=position.device)
        moved: dict[str, LabelCrop] = {}
        for name, label in self.labels.items():
            valid = whole.expand(len(label.valid), -1, -1, -1)
            if name in self.holed:
                valid = read_nearest(label.valid, position)
            if name in means:
                values = _settled(label, means[name], shares.get(name), valid)
            else:
                values = read_nearest(label.values, position)
            moved[name] = replace(label, values=values, valid=valid)
        return read[:first], moved


def _settled(label: LabelCrop, mean: Tensor, share: Tensor | None, valid: Tensor) -> Tensor:
    """A label from its averages; `share` is how much of each average was valid, None for all."""
    assert label.target is not None
    if share is None:
        return label.target.settle(mean)
    # The nearest of eight neighbours weighs at least 1/8.
    return torch.where(valid, label.target.settle(mean / share.clamp_min(1 / 16)), 0.0)
