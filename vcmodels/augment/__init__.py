"""Augmentation: what may change about a sample while its labels stay right."""

from typing import Annotated

from pydantic import Field

from vcmodels.augment.artefacts import BiasField, BlankBoxes, Rings
from vcmodels.augment.base import Augmentation
from vcmodels.augment.contrast import Brightness, Contrast, Gamma, HistogramShift
from vcmodels.augment.crops import LabelCrop
from vcmodels.augment.exact import Flip, QuarterTurn
from vcmodels.augment.free import Affine, Elastic, Shear
from vcmodels.augment.intensity import apply_intensity
from vcmodels.augment.noise import Noise, ShotNoise, Speckle
from vcmodels.augment.resolution import Blur, LowResolution, Sharpen
from vcmodels.augment.slices import BlurredSlices, MissingSlices, ShiftedSlices
from vcmodels.augment.spatial import apply_spatial, sample_spatial
from vcmodels.augment.transform import ImageInterpolation, SpatialTransform

AnyAugmentation = Annotated[
    Flip
    | QuarterTurn
    | Affine
    | Shear
    | Elastic
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
    | BlurredSlices,
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
    "ImageInterpolation",
    "LabelCrop",
    "SpatialTransform",
    "apply_intensity",
    "apply_spatial",
    "sample_spatial",
]
