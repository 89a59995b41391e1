"""The base of every block of the task file."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen block of the task file: unknown keys, non-finite floats and lax casts are refused.

    The string under a field is its documentation in the JSON Schema and in `docs/task-file.md`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def idle_keys(self) -> Mapping[str, str]:
        """The keys that have no effect next to the others of the block, and why in words."""
        return {}

    def changed(self, **values: object) -> Self:
        """A copy with other values, which are not validated."""
        return self.model_copy(update=values)


Fraction = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[int, Field(ge=1, le=65536)]
PatchShape = tuple[Extent, Extent, Extent]
"""Length along (z, y, x), in voxels."""
Amp = Literal["auto", "off", "bf16", "fp16"]
"""Precision of a network's convolutions."""
