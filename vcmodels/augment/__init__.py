"""Augmentation: what may change about a sample while its labels stay right."""

from typing import Annotated

from pydantic import Field

from vcmodels.augment.albumentation import Albumentation
from vcmodels.augment.apply import (
    LabelCrop,
    apply_intensity,
    apply_spatial,
    exact_moves,
    sample_spatial,
)
from vcmodels.augment.artefacts import (
    BiasField,
    BlankBoxes,
    BlurredSlices,
    MissingSlices,
    Rings,
    ShiftedSlices,
)
from vcmodels.augment.base import Augmentation
from vcmodels.augment.geometric import Affine, Compress, Elastic, Flip, QuarterTurn, Shear
from vcmodels.augment.transform import ImageInterpolation, SpatialTransform
from vcmodels.augment.values import (
    Blur,
    Brightness,
    Contrast,
    Gamma,
    HistogramShift,
    LowResolution,
    Noise,
    Sharpen,
    ShotNoise,
    Speckle,
)

AnyAugmentation = Annotated[
    Flip
    | QuarterTurn
    | Affine
    | Shear
    | Elastic
    | Compress
    | Noise
    | ShotNoise
    | Speckle
    | Blur
    | Sharpen
    | LowResolution
    | Brightness
    | Contrast
    | Gamma
    | HistogramShift
    | BiasField
    | BlankBoxes
    | Rings
    | MissingSlices
    | ShiftedSlices
    | BlurredSlices
    | Albumentation,
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
(a patient has a left and a right), a training leaves out the mirrors and turns that the data refute,
see `vcmodels.symmetry`.
"""

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "AnyAugmentation",
    "Augmentation",
    "ImageInterpolation",
    "LabelCrop",
    "SpatialTransform",
    "apply_intensity",
    "apply_spatial",
    "exact_moves",
    "sample_spatial",
]
