"""Gaps in masks are closed, or thin bridges opened, by balls in space."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.postprocess.base import MASK, MASK_FORM, Form, LocalStep, Role
from vcmodels.postprocess.lengths import SLACK, require_package
from vcmodels.postprocess.radius import RadiusKeys
from vcmodels.postprocess.site import Source
from vcmodels.postprocess.voxels import MaskRule, stored


class BallStep(RadiusKeys, LocalStep):
    """What closing and opening share. A mask goes on beyond the border of the volume as it ends there."""

    roles: ClassVar[Mapping[str, Role]] = {"mask": Role(frozenset({MASK}))}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return MASK

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return MASK_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse a radius that does not fit the voxels."""
        del sources
        require_package("edt", type(self).model_fields["name"].default)
        self.check_radius(spacing, unit)

    def margin(self, spacing: Spacing) -> Shape:
        z, y, x = self.reach(spacing)
        return 2 * z, 2 * y, 2 * x


class CloseStep(BallStep):
    """Gaps that a ball of the radius does not fit into become part of the mask."""

    name: Literal["close"] = "close"
    """Gaps that no ball of the radius fits into become part of the mask."""

    def apply(self, values: Mapping[str, np.ndarray], spacing: Spacing) -> np.ndarray:
        return stored(closed(MaskRule().of(values["mask"][0]), *self.scaled(spacing)), MASK_FORM)


class OpenStep(BallStep):
    """Parts of the mask that a ball of the radius does not fit into become background."""

    name: Literal["open"] = "open"
    """Parts of the mask that no ball of the radius fits into become background."""

    def apply(self, values: Mapping[str, np.ndarray], spacing: Spacing) -> np.ndarray:
        opened = ~closed(~MaskRule().of(values["mask"][0]), *self.scaled(spacing))
        return stored(opened, MASK_FORM)


def closed(mask: np.ndarray, radius: float, spacing: Spacing) -> np.ndarray:
    """The mask dilated by a ball and eroded again (Serra 1982, "Image analysis and morphology").

    Args:
        mask: (Z, Y, X) bool; what is made within twice the radius of its ends is of no use.
        radius: of the ball, in the unit of the spacing: voxels count whose centres are within.
        spacing: length of a voxel along (z, y, x).

    Returns:
        (Z, Y, X) bool.
    """
    return ~_grown(~_grown(mask, radius, spacing), radius, spacing)


def _grown(mask: np.ndarray, radius: float, spacing: Spacing) -> np.ndarray:
    """Where a voxel of the mask is within the radius."""
    import edt  # late: an extra

    if not mask.any():
        return mask
    squared = edt.edtsq(~mask, anisotropy=spacing, parallel=1)
    return squared <= (radius * (1 + SLACK)) ** 2
