"""Binary masks: what `foreground` says, or any stored value above 0 (1 or 255 alike); 0 is background."""

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.fields.distance import Labelled, inner
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses import LossBlock
from vcmodels.targets.base import Target
from vcmodels.targets.census import (
    FEW,
    Census,
    Misfit,
    mask_misfits,
    mask_suspects,
    several_values,
)
from vcmodels.targets.stored import check_dtype, countable, refuse_first


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Voxels within `radius` (Euclidean, in voxels) of a true one.

    The ball is a stack of runs along x: the mask is grown along x once for each run length, then
    shifted over (z, y). At 128^3 that takes 4 ms for radius 3 and 20 ms for radius 8, where
    `scipy.ndimage.distance_transform_edt` takes 440 ms; the result is the same.

    Args:
        mask: (Z, Y, X) bool.
        radius: at least 0.

    Returns:
        (Z, Y, X) bool, a new array.
    """
    runs = [mask]
    for width in range(1, min(radius, mask.shape[2] - 1) + 1):
        grown = runs[-1].copy()
        grown[..., width:] |= mask[..., :-width]
        grown[..., :-width] |= mask[..., width:]
        runs.append(grown)
    result = np.zeros_like(mask)
    for dz in range(-radius, radius + 1):
        for dy in range(-isqrt(radius**2 - dz**2), isqrt(radius**2 - dz**2) + 1):
            width = isqrt(radius**2 - dz**2 - dy**2)
            run = runs[min(width, len(runs) - 1)]
            to_z, from_z = _overlap(dz, mask.shape[0])
            to_y, from_y = _overlap(dy, mask.shape[1])
            result[to_z, to_y] |= run[from_z, from_y]
    return result


def _overlap(shift: int, extent: int) -> tuple[slice, slice]:
    """Where voxels that move by `shift` arrive, and where they come from, inside `extent`."""
    shift = max(-extent, min(shift, extent))
    arrive = slice(max(shift, 0), extent + min(shift, 0))
    return arrive, slice(arrive.start - shift, arrive.stop - shift)


CERTAIN_LOGIT = 10.0
"""The logit that stands for a labelled voxel: probability 0.99995."""


LEAST_FOREGROUND = 0.5 + 2**-24
"""The least float32 above a half; the probability of a logit below 1e-7 is rounded to the half."""


NO_NEGATIVE = 'a mask holds 0 and positive values; name it in "ignore_label" to skip it'


class MaskTarget(Target):
    """A mask; the prediction is the probability of the foreground."""

    activation: Literal["sigmoid", "none"] = "sigmoid"
    """Applied to the output: `sigmoid` gives probabilities, `none` raw logits (float output)."""

    drawn_as: ClassVar[Literal["colours", "outlines"]] = "outlines"
    metric: ClassVar[str] = "dice"
    default_loss: ClassVar[LossBlock] = {"bce": 1.0, "soft_dice": 1.0}
    predicts: ClassVar[Compared] = "masks"

    label_keys: ClassVar[frozenset[str]] = frozenset(
        {"loss_only_on_label", "label_smoothing", "dilate_label", "foreground"}
    )

    @property
    def label_margin(self) -> int:
        """The radius of `dilate_label`."""
        return int(self.dilate_label or 0)

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 where `foreground` holds (else above 0), grown by `dilate_label`; ignored voxels stay so."""
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        if stored.dtype.kind in "if" and self.comparison is None:
            negative = (stored < 0) & valid
            if negative.any():
                refuse_first(negative, stored, NO_NEGATIVE)
        is_foreground = stored > 0 if self.comparison is None else self.comparison.of(stored)
        mask = is_foreground & valid
        if self.label_margin:
            mask = dilate(mask[0], self.label_margin)[None]
        return (mask & valid).astype(np.float32), valid

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Fractions, probabilities and negative values, where `foreground` does not say what they are.

        A word where several values are foreground.
        """
        yield from mask_misfits(census, self.ignored, self.foreground)
        if self.foreground is None and not self.suspects(census):
            yield from several_values(census, self.ignored)

    def suspects(self, census: Census) -> Mapping[float, int]:
        """Sentinels next to other foreground values; of a mask of 0 and 255 none is left out."""
        return mask_suspects(census, self.ignored, self.foreground)

    def classes_of(self, census: Census) -> dict[str, int] | None:
        """Foreground and background, of one channel; instances may fill what faces are derived from."""
        if self.derive is not None and self.kind_name != "binary":
            return None
        if census.channels > 1 or (census.together and not self._tells_sides(census)):
            return None
        ignored = {*self.ignored, *((0,) if self.loss_only_on_label else ())}
        sides = {"background": 0, "foreground": census.together}
        for value, count in census.counts.items():
            if value not in ignored:
                sides["foreground" if self._is_foreground(value) else "background"] += count
        sides["background"] += census.figures.voxels - census.together
        return sides

    def class_of(self, value: int) -> str | None:
        """The foreground."""
        is_counted = value not in self.ignored
        return "foreground" if is_counted and self._is_foreground(value) else None

    def class_misfits(
        self, voxels: Mapping[str, int], censuses: Sequence[Census]
    ) -> Iterator[Misfit]:
        """No background at all, or no foreground: the network would learn a constant."""
        if not voxels["foreground"]:
            low, high = np.array([census.range(self.ignored) for census in censuses]).T
            stored = f"values go from {low.min():g} to {high.max():g}"
            if high.max() <= 0:
                stored = "all of it is 0" if np.isfinite(high).any() else "all of it is ignored"
            remedy = "check path, bbox, ignore_label and foreground, or remove the target"
            lost = "counts" if not voxels["background"] else "is foreground"
            yield Misfit(f"no voxel {lost}; {stored}", remedy)
        elif not voxels["background"]:
            values = sorted({v for census in censuses for v in census.positive(self.ignored)})
            found = (
                f"all {voxels['foreground']:,} voxels that count are foreground, none background"
            )
            several = f'give "foreground": "== {values[0]}"' if 1 < len(values) <= FEW else ""
            unless = "remove loss_only_on_label"
            if not self.loss_only_on_label:
                wrong = "ignore_label" if self.ignored else "path, bbox and foreground"
                unless = f"correct {wrong}, or remove the target"
            yield Misfit(found, " or ".join(filter(None, (several, unless))))

    def _tells_sides(self, census: Census) -> bool:
        """Whether voxels that are counted together are known to be foreground."""
        return census.knows_foreground if self.foreground else not census.figures.fractions

    def _is_foreground(self, value: int) -> bool:
        return value > 0 if self.comparison is None else self.comparison.meets(value)

    def settle(self, spread: Tensor) -> Tensor:
        """Foreground where its share is above a half."""
        return (spread > 0.5).float()

    def blendable(self, logits: Tensor) -> Tensor:
        """Probabilities, or the logits themselves without an activation."""
        return logits.float().sigmoid() if self.activation == "sigmoid" else logits.float()

    def disagreement(self, logits: Tensor, blended: Tensor) -> Tensor:
        """Of probabilities, without an activation too."""
        return super().disagreement(logits, self._likelihood(blended))

    def certainty(self, blended: Tensor) -> Tensor:
        """The probability of the likelier side."""
        return super().certainty(self._likelihood(blended))

    def _likelihood(self, blended: Tensor) -> Tensor:
        return blended if self.activation == "sigmoid" else blended.sigmoid()

    def comparable(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities: of logits too, of which the positive ones stay above a half."""
        if self.activation == "sigmoid":
            return prediction, label
        probability = prediction.sigmoid()
        above = probability.clamp(min=LEAST_FOREGROUND)
        return torch.where(prediction > 0, above, probability), label

    @property
    def meaning(self) -> dict[str, Any]:
        return {"quantity": "probability" if self.activation == "sigmoid" else "logit"}

    @property
    def least_confidence(self) -> float | None:
        return 0.5

    def confidence(self, prediction: np.ndarray) -> np.ndarray:
        """The probability of the likelier side."""
        probability = self._probability(prediction)
        return np.maximum(probability, 1 - probability)

    def unreadable(self, writer: Target) -> str | None:
        """Masks of as many channels are, and classes for a mask of one."""
        if isinstance(writer, MaskTarget):
            same = writer.channels == self.channels
            return (
                None if same else f"it has {writer.channels} channels, the target {self.channels}"
            )
        if writer.kind_name == "multiclass" and self.channels == 1 and writer.is_categorical:
            return None
        return f'no label of kind "{self.kind_name}"'

    def plain_label(self, prediction: np.ndarray, writer: Target) -> np.ndarray:
        """0 and 1; the probability or the class itself where `foreground` is compared with it."""
        if not isinstance(writer, MaskTarget):
            return writer.plain_label(prediction, writer)
        probability = writer._probability(prediction)
        if self.foreground is not None:
            return probability
        return np.where(np.isnan(probability), np.nan, probability > 0.5)

    def _probability(self, prediction: np.ndarray) -> np.ndarray:
        """Of stored logits, too."""
        if self.activation == "sigmoid":
            return prediction
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-prediction.astype(np.float32)))

    def output_channels(self, dtype: np.dtype) -> int | None:
        if self.activation == "none":
            check_dtype(dtype, ("float16", "float32"), 'activation "none" writes raw logits')
        return super().output_channels(dtype)

    def as_prediction(self, label: Tensor) -> Tensor:
        """The label itself, or a logit of its sign without an activation."""
        return label if self.activation == "sigmoid" else CERTAIN_LOGIT * (2 * label - 1)

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """Probability as grey; logits as black and white, cut at 0."""
        grey = prediction[0] if self.activation == "sigmoid" else prediction[0] > 0
        grey = np.clip(np.nan_to_num(grey.astype(np.float32)), 0, 1)
        return np.repeat(grey[..., None], 3, axis=-1)


class BinaryTarget(MaskTarget):
    """A mask, as it is stored or of all ids that are not 0."""

    kind: Literal["binary"] = "binary"
    """A mask: one channel, foreground or background."""
    channels: Annotated[int, Field(ge=1, le=1)] = 1
    """Channels of the head."""

    is_derivable: ClassVar[bool] = True

    def source_margin(self, spacing: Spacing) -> Shape:
        del spacing
        return (self.label_margin, self.label_margin, self.label_margin)

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """1 where there is an instance, grown by `dilate_label`."""
        margin = self.source_margin(spacing)
        mask, counts = (source != 0) & valid, inner(valid, margin)
        if self.label_margin:
            grown = dilate(mask[0].cpu().numpy(), self.label_margin)
            mask = torch.from_numpy(grown)[None].to(source.device)
        return (inner(mask, margin) & counts).float(), counts
