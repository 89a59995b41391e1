"""Sheets become one voxel thick: what is left is where they are strongest, across them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.errors import TaskError
from vcmodels.fields.normals import gaussian_reach, gaussian_weights
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.postprocess.base import MASK, MASK_FORM, PROBABILITIES, Form, LocalStep, Role
from vcmodels.postprocess.lengths import in_micrometers, refuse_both, require_length
from vcmodels.postprocess.site import Source
from vcmodels.postprocess.sizing import PositiveNumber
from vcmodels.postprocess.voxels import stored
from vcmodels.section import Fraction
from vcmodels.volumes.reader import Pad

DEFAULT_SIGMA = 1.5
MOST_SIGMA = 16.0
NEARLY = 0.7
"""An axis counts as that of the normal when the square of its component is at least this part of
the largest. With the largest axis alone, paths by faces led through 3 of 18 noisy planes and 18 of 18
noisy spheres; with such a second axis through no plane and 3 spheres. At most 5 % of the columns of a
plane then have a second voxel."""


class ThinStep(LocalStep):
    """A sheet becomes a surface of single voxels, one for each line that crosses it.

    Along the axis nearest to the normal, a voxel is kept when its smoothed value is more than those
    of both neighbours (non-maximum suppression: Canny 1986, IEEE PAMI 8(6)). Of a plane that leaves
    one voxel in each column of that axis, the naive plane, through which no path by faces leads
    (Andres, Acharya and Sibata 1997, "Discrete analytical hyperplanes"). Steps along the normal
    itself would leave up to 1.7 in a column, and blur values between voxels.
    """

    name: Literal["thin"] = "thin"
    """Sheets become one voxel thick, where they are strongest across their normals."""
    threshold: Fraction = 0.5
    """What reaches this value, in a voxel or in a neighbour across the sheet, is a sheet."""
    sigma: Annotated[float, Field(gt=0, le=MOST_SIGMA)] | None = None
    """Width of the Gaussian that smooths the sheet and its normals, in voxels along each axis; 1.5
    when left out. About a third of the thickness of the sheets or more; less than half the distance
    of neighbouring ones."""
    sigma_um: PositiveNumber | None = None
    """The same in micrometers: fewer voxels along an axis of longer ones."""

    roles: ClassVar[Mapping[str, Role]] = {
        "mask": Role(PROBABILITIES),
        "normals": Role(frozenset({"normals"}), is_optional=True),
    }
    # Of a sheet at the border the mirror image goes on, so that its strongest voxel is inside.
    pad: ClassVar[Pad] = "reflect"

    @model_validator(mode="after")
    def _check_one_sigma(self) -> Self:
        refuse_both("sigma", self.sigma, self.sigma_um)
        return self

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return MASK

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return MASK_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse a smoothing in micrometers without a unit, or over too many voxels."""
        del sources
        if self.sigma_um is None:
            return
        require_length("sigma_um", unit)
        side = min(in_micrometers(spacing, unit))
        if self.sigma_um > MOST_SIGMA * side:
            found = f"{self.sigma_um:g} is more than {MOST_SIGMA:g} voxels of {side:g}"
            raise TaskError("sigma_um", found, f"give at most {MOST_SIGMA * side:g}")

    def margin(self, spacing: Spacing) -> Shape:
        times = 1 if "normals" in self.sources else 2
        return triple(times * reach + 1 for reach in gaussian_reach(self._widths(spacing)))

    def apply(self, values: Mapping[str, np.ndarray], spacing: Spacing) -> np.ndarray:
        sheet = np.nan_to_num(values["mask"][0].astype(np.float32, copy=False))
        if not (sheet >= self.threshold).any():
            return np.zeros(sheet.shape, np.uint8)
        widths = self._widths(spacing)
        smoothed = gaussian_mean(sheet, widths)
        across = self._across(values, smoothed, spacing)
        shares = [gaussian_mean(part * part, widths) for part in across]
        return stored(ridges(sheet >= self.threshold, smoothed, shares), MASK_FORM)

    def _across(
        self, values: Mapping[str, np.ndarray], smoothed: np.ndarray, spacing: Spacing
    ) -> list[np.ndarray]:
        """How much each axis, in voxels, goes across the sheet: three arrays (Z, Y, X)."""
        if "normals" in values:
            # In steps of voxels a normal is as much longer as they are.
            return [
                part * np.float32(side)
                for part, side in zip(values["normals"], spacing, strict=True)
            ]
        return [slope(smoothed, axis) for axis in range(3)]

    def _widths(self, spacing: Spacing) -> tuple[float, float, float]:
        """Sigma along (z, y, x), in voxels."""
        if self.sigma_um is not None:
            return triple(self.sigma_um / side for side in spacing)
        return triple([DEFAULT_SIGMA if self.sigma is None else self.sigma] * 3)


def ridges(is_sheet: np.ndarray, smoothed: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """The voxels of sheets that are strongest along the axis of the normal, or nearly its axis.

    Args:
        is_sheet: (Z, Y, X) bool.
        smoothed: (Z, Y, X) float32.
        shares: three times (Z, Y, X) float32: squared components of the normals, (z, y, x).

    Returns:
        (Z, Y, X) bool; that of the outermost voxels is of no use.
    """
    least = np.float32(NEARLY) * np.maximum.reduce(shares)
    found = np.zeros(is_sheet.shape, bool)
    for axis, share in enumerate(shares):
        found |= _peaks(smoothed, is_sheet, axis) & (share >= least)
    return found


def _peaks(smoothed: np.ndarray, is_sheet: np.ndarray, axis: int) -> np.ndarray:
    """Where a voxel is more than its neighbours along an axis, and one of the three is of a sheet."""
    values, sheet = np.moveaxis(smoothed, axis, 0), np.moveaxis(is_sheet, axis, 0)
    found = np.zeros(is_sheet.shape, bool)
    # Of two voxels that are equally strong the second one is taken.
    np.moveaxis(found, axis, 0)[1:-1] = (
        (values[1:-1] >= values[:-2])
        & (values[1:-1] > values[2:])
        & (sheet[1:-1] | sheet[:-2] | sheet[2:])
    )
    return found


def slope(values: np.ndarray, axis: int) -> np.ndarray:
    """The change over two voxels along an axis, (Z, Y, X); 0 at the ends."""
    change = np.zeros_like(values)
    along = np.moveaxis(values, axis, 0)
    np.moveaxis(change, axis, 0)[1:-1] = along[2:] - along[:-2]
    return change


def gaussian_mean(values: np.ndarray, widths: tuple[float, float, float]) -> np.ndarray:
    """The Gaussian mean around each voxel, the same to the last bit wherever a block begins.

    `fields.normals.gaussian` may round the ends of a row otherwise than its middle, where PyTorch
    works on several voxels at once.

    Args:
        values: (Z, Y, X) float32.
        widths: sigma along (z, y, x), in voxels.

    Returns:
        (Z, Y, X) float32; of no use nearer to an end than the weights reach.
    """
    from scipy.ndimage import correlate1d  # late: slow to import

    for axis, width in enumerate(widths):
        middle, *side = gaussian_weights(width)
        if side:
            values = correlate1d(values, [*reversed(side), middle, *side], axis)
    return values
