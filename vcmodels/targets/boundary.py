"""Boundaries of instances: the voxels within a width of where one ends."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled, voxels_within
from vcmodels.fields.instances import instance_boundaries
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.targets.binary import MaskTarget


class BoundaryTarget(MaskTarget):
    """A mask of boundaries, as it is stored or derived from ids."""

    kind: Literal["boundary"] = "boundary"
    """Where instances end: a mask of one channel."""
    channels: Annotated[int, Field(ge=1, le=1)] = 1
    """Channels of the head."""
    width: Annotated[float, Field(ge=0.5, le=8)] = 1.0
    """With `derive`: thickness on each side of a surface, counted in the shortest side of a voxel; a
    voxel is within when its centre is."""
    between: Literal["all", "instances"] = "all"
    """With `derive`: whether an instance ends where the background begins (`all`), or only next to
    another one (`instances`)."""

    is_derivable: ClassVar[bool] = True
    excluded_metrics: ClassVar[frozenset[str]] = frozenset({"sheets"})
    """The ids are of what lies between boundaries."""

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        if self.derive is None and (self.width, self.between) != (1.0, "all"):
            raise FaultError("width and between are of use with derive only", "leave them out")
        if self.derive is not None and self.dilate_label:
            raise FaultError('a derived boundary is grown by "width"', "leave out dilate_label")
        return self

    def source_margin(self, spacing: Spacing) -> Shape:
        return voxels_within(self.width * min(spacing), spacing)

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """1 within `width` of another id; see `fields.instances.instance_boundaries`."""
        width, with_background = self.width * min(spacing), self.between == "all"
        return instance_boundaries(source, valid, width, spacing, with_background=with_background)
