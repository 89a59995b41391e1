"""What kinds have in common that are derived from the connected pieces of instance ids."""

from typing import ClassVar, Self

from pydantic import model_validator

from vcmodels.geometry.boxes import Shape
from vcmodels.section import Extent, PatchShape
from vcmodels.targets.base import Target


class PieceTarget(Target):
    """A label that may follow from where instances have their centres."""

    max_extent: Extent | PatchShape | None = None
    """With `derive`: length of the longest instance in voxels, for all axes or (z, y, x). Longer
    ones do not count: they have no centre that a patch could tell."""
    keep_cut: bool = False
    """With `derive`: count instances that end at the border of the volume or at ignored voxels, as
    if what is seen were all of them."""

    is_derivable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_extent(self) -> Self:
        if self.derive is not None and self.max_extent is None:
            raise ValueError(
                'derive needs to know how long an instance may be; give "max_extent" in voxels'
            )
        if self.derive is None and (self.max_extent is not None or self.keep_cut):
            raise ValueError("max_extent and keep_cut are of use with derive only; leave them out")
        return self

    @property
    def longest(self) -> Shape:
        """`max_extent` along (z, y, x); 0 when nothing is derived."""
        extent = self.max_extent or 0
        return (extent, extent, extent) if isinstance(extent, int) else extent
