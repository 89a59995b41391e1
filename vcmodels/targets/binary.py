"""Binary masks: any stored value above 0 (1 or 255 alike) is foreground, 0 is background."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vcmodels.fields.distance import inner
from vcmodels.geometry.boxes import Shape
from vcmodels.targets.base import Spacing
from vcmodels.targets.dilation import dilate
from vcmodels.targets.masks import MaskTarget


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

    def derive_label(
        self, source: Tensor, valid: Tensor, spacing: Spacing
    ) -> tuple[Tensor, Tensor]:
        """1 where there is an instance, grown by `dilate_label`."""
        margin = self.source_margin(spacing)
        mask, counts = (source != 0) & valid, inner(valid, margin)
        if self.label_margin:
            grown = dilate(mask[0].cpu().numpy(), self.label_margin)
            mask = torch.from_numpy(grown)[None].to(source.device)
        return (inner(mask, margin) & counts).float(), counts
