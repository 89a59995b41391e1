"""`dataset_config.region`: where it comes from, and what is made of it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vcmodels.errors import FaultError
from vcmodels.section import Fraction, Section

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Millimetres = Annotated[float, Field(ge=0, le=1e5)]
NAME = "{name}"
"""Stands in a location for the name of the volume."""


class RegionSource(Section):
    """One way to find the object: exactly one of the first four keys."""

    points: Text | None = None
    """A JSON file of points along it: [[z, y, x], ...] in voxels of the input, or a curve of 3D
    Slicer (`.mrk.json`); `{name}` stands for the name of the volume."""
    mask: Text | None = None
    """The name of a label that the volume has, or a volume that is not 0 in the object; `{name}`
    stands for the name of the volume."""
    checkpoint: Text | None = None
    """A network that finds it: a checkpoint, or a run folder for its best one. The checkpoints of
    this task then hold that network, too."""
    heuristic: Literal["symmetry", "intensity"] | None = None
    """No network: `intensity` takes the thinnest long thing of what is bright, such as the spinal
    fluid, `symmetry` what looks alike from both sides in every slice across its long axis."""
    target: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Target of the checkpoint that is the object; its only one when null."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which on a voxel is of the object."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the checkpoint; written by the training, and held against the file since."""
    width_mm: Annotated[float, Field(gt=0, le=1e5)] = 12.0
    """For a heuristic: how wide the object is, about."""

    @property
    def kind(self) -> str:
        """Which of the four keys is given."""
        return next(key for key in KINDS if getattr(self, key) is not None)

    def __str__(self) -> str:
        return f"{self.kind} {getattr(self, self.kind)}"

    @model_validator(mode="after")
    def _is_one(self) -> "RegionSource":
        given = [key for key in KINDS if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given) or 'none of them'}"
            raise FaultError(found, f"give exactly one of {', '.join(KINDS)}")
        return self

    def idle_keys(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if self.checkpoint is None:
            found |= dict.fromkeys(("target", "threshold", "sha256"), "there is no checkpoint")
        if self.heuristic is None:
            found["width_mm"] = "there is no heuristic"
        return found


KINDS = ("points", "mask", "checkpoint", "heuristic")


class RegionConfig(Section):
    """What is trained on and predicted in, of every volume: a tube or a box around an object."""

    sources: Annotated[list[RegionSource], Field(min_length=1, max_length=16, alias="from")]
    """Where the object is: the first of these that finds one which passes the checks below."""
    shape: Literal["tube", "box"] = "tube"
    """All voxels within `radius_mm` of its centreline, or the box around it."""
    radius_mm: Annotated[float, Field(gt=0, le=1e5)] = 20.0
    """Of the tube, in mm, or in the unit of the voxel size if that is no length."""
    margin_mm: Millimetres | tuple[Millimetres, Millimetres, Millimetres] = 0.0
    """Of a tube, how far it goes straight on beyond the ends of the line; of a box, how much larger
    it is on each side, for all axes or (z, y, x)."""
    axis: Literal["z", "y", "x"] | None = None
    """The long axis of the object in the stored array; that of its largest extent when null."""
    least_length_mm: Millimetres = 10.0
    """An object that is shorter along its line is none."""
    least_share: Fraction = 0.5
    """Share of what was found that must lie on one line, and of the slices that must not jump."""
    most_gap_mm: Millimetres = 30.0
    """Pieces further apart than this are not of one object."""
    fallback: Literal["error", "whole"] = "error"
    """When no source finds an object: refuse the volume, or take the whole of it."""

    @property
    def axis_number(self) -> int | None:
        """0 for z, 1 for y, 2 for x."""
        return None if self.axis is None else "zyx".index(self.axis)

    @property
    def margins(self) -> tuple[float, float, float]:
        """Of a box, along (z, y, x)."""
        given = self.margin_mm
        return given if isinstance(given, tuple) else (given, given, given)

    @model_validator(mode="after")
    def _has_one_margin(self) -> "RegionConfig":
        if self.shape == "tube" and isinstance(self.margin_mm, tuple):
            found = "a tube has one margin, along its line"
            raise FaultError(f"margin_mm has three numbers: {found}", "give one number")
        return self

    def contradiction(self, other: "RegionConfig") -> str | None:
        """The key by which the same object gets another region here; None where it gets the same."""
        keys = ("shape", "radius_mm", "margin_mm") if self.shape == "tube" else ("shape", "margins")
        found = (key for key in keys if getattr(self, key) != getattr(other, key))
        return next(("margin_mm" if key == "margins" else key for key in found), None)

    def idle_keys(self) -> Mapping[str, str]:
        return {} if self.shape == "tube" else {"radius_mm": "the region is a box"}
