"""Augmentation: what may change about a sample while its labels stay right."""

from typing import Annotated

from pydantic import Field

from vcmodels.augment.base import Augmentation
from vcmodels.augment.exact import Flip, QuarterTurn
from vcmodels.augment.free import Affine, Elastic
from vcmodels.augment.intensity import (
    BlankBoxes,
    Blur,
    Brightness,
    Contrast,
    Gamma,
    LowResolution,
    Noise,
    apply_intensity,
)
from vcmodels.augment.spatial import LabelCrop, apply_spatial, sample_spatial, turn_tensor
from vcmodels.augment.transform import SpatialTransform

AnyAugmentation = Annotated[
    Flip
    | QuarterTurn
    | Affine
    | Elastic
    | Noise
    | Blur
    | Brightness
    | Contrast
    | Gamma
    | LowResolution
    | BlankBoxes,
    Field(discriminator="name"),
]

DEFAULT_AUGMENTATIONS: tuple[AnyAugmentation, ...] = (
    Flip(),
    QuarterTurn(),
    Affine(),
    Elastic(),
    Noise(),
    Blur(),
    Brightness(),
    Contrast(),
    LowResolution(),
    Gamma(),
)
"""The list when the task has none: in the manner of nnU-Net's (Isensee et al. 2021), plus turns.

All orientations of a cube are alike to most volumes of CT, EM and light sheets. Where they are not
(a patient has a left and a right), the task names its own list.
"""

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "AnyAugmentation",
    "Augmentation",
    "LabelCrop",
    "SpatialTransform",
    "apply_intensity",
    "apply_spatial",
    "sample_spatial",
    "turn_tensor",
]
