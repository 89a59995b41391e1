"""Affinities: whether a voxel and a partner, some offset away, belong to one instance.

A channel for each offset, as it is stored or derived from ids (the background is no instance).
Paper: Turaga et al. 2010, "Convolutional networks can learn to generate affinity graphs" (Neural
Computation 22(2)); long offsets: Lee et al. 2017 (arXiv:1706.00120).
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled
from vcmodels.fields.instances import Offset, affinities, longest_offset
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses.registry import LossBlock
from vcmodels.targets.binary import MaskTarget
from vcmodels.targets.vector_math import signed_permutation

NEIGHBOURS: tuple[Offset, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


class AffinitiesTarget(MaskTarget):
    """The probability that two partners are of one instance."""

    kind: Literal["affinities"] = "affinities"
    """Whether a voxel and its partner belong to one instance, for each of several offsets."""
    channels: Annotated[int, Field(ge=1, le=256)] = len(NEIGHBOURS)
    """Channels of the head: as many as there are offsets, also when left out."""
    offsets: Annotated[
        tuple[Annotated[Offset, Field(strict=False)], ...],
        Field(min_length=1, max_length=256, strict=False),
    ] = NEIGHBOURS
    """(z, y, x) in voxels from a voxel to its partner, one for each channel."""

    drawn_as: ClassVar[Literal["colours", "outlines"]] = "colours"
    default_loss: ClassVar[LossBlock] = {"bce": 1.0}
    # A channel is of pairs of voxels, most of them joined: it has neither a shape nor a rare class,
    # and the hardest voxels of all channels would be those of the longest offset.
    excluded_losses: ClassVar[frozenset[str]] = frozenset(
        {"topk_ce", "generalised_dice", "cldice", "skeleton_recall", "boundary", "gap"}
    )
    excluded_metrics: ClassVar[frozenset[str]] = frozenset({"sheets"})
    label_keys: ClassVar[frozenset[str]] = frozenset(
        {"loss_only_on_label", "label_smoothing", "foreground"}
    )
    is_derivable: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _count_offsets(cls, block: Any) -> Any:  # noqa: ANN401 (whatever the task file holds)
        if not isinstance(block, dict) or "channels" in block:
            return block
        offsets = block.get("offsets", NEIGHBOURS)
        return {**block, "channels": len(offsets)} if isinstance(offsets, list | tuple) else block

    @model_validator(mode="after")
    def _check_offsets(self) -> Self:
        pairs = {max(offset, _negated(offset)) for offset in self.offsets}
        if (0, 0, 0) in pairs or len(pairs) < len(self.offsets):
            raise ValueError(
                "offsets must differ from each other, in more than direction, and from (0, 0, 0)"
            )
        if self.channels != len(self.offsets):
            found = f"{len(self.offsets)} offsets make as many channels"
            raise FaultError(f"{found}, got channels={self.channels}", "leave it out")
        return self

    @property
    def turns_freely(self) -> bool:
        """Stored affinities are of pairs of voxels, which rotations and warps tear apart."""
        return self.derive is not None

    @property
    def sided(self) -> Literal["values", "vectors"] | None:
        """Nothing: what looks like a side is which of two partners the pair is named by."""
        return None

    @property
    def stored_channels(self) -> int | None:
        return self.channels

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 where `foreground` holds, else above 0; each channel is ignored or unknown on its own."""
        read = [super(AffinitiesTarget, self).read_label(channel[None]) for channel in stored]
        label, valid = zip(*read, strict=True)
        return np.concatenate(label), np.concatenate(valid)

    def source_margin(self, spacing: Spacing) -> Shape:
        del spacing
        return longest_offset(self.offsets)

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """1 where both partners have one id that is not 0; valid where both are known."""
        del spacing
        return affinities(source, valid, self.offsets)

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """Each channel takes the one whose offset was turned into its own, or into the opposite.

        In the latter case the pair is now named by its other voxel: values shift by the offset.
        Where that one is outside of the patch, and where no channel was turned into this one,
        nothing is known.

        Raises:
            ValueError: the map is no signed permutation of the axes.
        """
        del spacing
        moves = signed_permutation(jacobian) if jacobian.ndim == 2 else None
        if moves is None:
            raise ValueError('stored affinities cannot be rotated or warped; use "derive"')
        valid = valid.expand(len(label), -1, -1, -1)
        turned, counts = torch.zeros_like(label), torch.zeros_like(valid)
        for channel, offset in enumerate(self.offsets):
            before = [0, 0, 0]
            for axis, (source, sign) in enumerate(moves):
                before[source] = offset[axis] if sign > 0 else -offset[axis]
            was = (before[0], before[1], before[2])
            if was in self.offsets:
                source = self.offsets.index(was)
                turned[channel], counts[channel] = label[source], valid[source]
            elif _negated(was) in self.offsets:
                source = self.offsets.index(_negated(was))
                to, taken = _shifted(offset, label.shape[1:])
                turned[(channel, *to)] = label[(source, *taken)]
                counts[(channel, *to)] = valid[(source, *taken)]
        return torch.where(counts, turned, 0.0), counts

    def dispersion(self, mean: Tensor, variance: Tensor) -> Tensor:
        """In the mean over the offsets, each of which is a prediction of its own."""
        del mean
        return variance.mean(1, keepdim=True)

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        return {**super().encoding(dtype), "offsets": [list(offset) for offset in self.offsets]}

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """The first three channels as red, green and blue; white is the inside of an instance."""
        shown = super().picture  # one channel as grey
        greys = [shown(prediction[c : c + 1])[..., 0] for c in range(min(3, len(prediction)))]
        return np.stack([greys[min(c, len(greys) - 1)] for c in range(3)], axis=-1)


def _negated(offset: Offset) -> Offset:
    z, y, x = offset
    return -z, -y, -x


def _shifted(offset: Offset, shape: torch.Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where values go that are read `offset` away, and where they come from."""
    to = tuple(slice(max(-o, 0), max(min(n, n - o), 0)) for o, n in zip(offset, shape, strict=True))
    taken = tuple(slice(s.start + o, s.stop + o) for s, o in zip(to, offset, strict=True))
    empty = any(s.start >= s.stop for s in to)
    nowhere = (slice(0, 0),) * 3
    return (nowhere, nowhere) if empty else (to, taken)
