"""What a `prepare` block makes of one volume: its grid, its curves, its arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcmodels.errors import FaultError, TaskError, VolumeError
from vcmodels.geometry.affine import axis_codes
from vcmodels.geometry.boxes import Box, Spacing, triple
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.prepare.contents import Image
from vcmodels.prepare.curves import Curve, curves_of, foreground_box
from vcmodels.prepare.derived import DerivedVolume, affine_of
from vcmodels.prepare.section import AXIS_PAIRS, Prepare
from vcmodels.volumes import Volume
from vcmodels.volumes.spacing import in_unit

KEY = "dataset_config.prepare"
_SAME = 1e-4
"""Part by which a voxel size may differ from the wanted one and is not changed."""


@dataclass(frozen=True)
class Plan:
    """What is done to one volume."""

    prepare: Prepare
    grid: GridMap
    """From the prepared grid to that of the inputs as they are stored."""
    curves: tuple[Curve | None, ...]
    """What is done to the values of each channel."""

    def images(
        self, inputs: Sequence[Volume], within: Volume | None = None, outside: float = 0.0
    ) -> tuple[DerivedVolume, ...]:
        """The inputs as they are prepared.

        Args:
            inputs: stacked as channels.
            within: a mask on their grid; where it is 0 stands `outside`, as does past their ends.
            outside: the value.
        """
        found, first = list[DerivedVolume](), 0
        for volume in inputs:
            curves = self.curves[first : first + volume.channels]
            first += volume.channels
            content = Image(self.prepare.order.image, curves, outside)
            found.append(DerivedVolume.of(volume, self.grid, content, within))
        return tuple(found)


def plan_of(
    prepare: Prepare, inputs: Sequence[Volume], unit: str | None, crop: Box | None = None
) -> Plan:
    """What is done to a volume; voxels are read where `crop` or `standardize` depend on them.

    Args:
        prepare: settled.
        inputs: stacked as channels, of one extent.
        unit: that `spacing` is in; that of the inputs when it is not known.
        crop: the part that is kept, in their voxels, instead of what `crop` says.

    Raises:
        VolumeError: an input says no orientation or voxel size and one is asked for, or its values
            leave nothing to go by.
        TaskError: the block does not fit the inputs.
    """
    first = inputs[0]
    box = crop or _crop(prepare, first, unit)
    grid = grid_of(prepare, first, unit, box)
    try:
        standards = prepare.standards(sum(volume.channels for volume in inputs))
    except FaultError as error:
        raise TaskError(f"{KEY}.standardize", error.found, error.remedy) from error
    inside = box.intersect(first.box)
    return Plan(prepare, grid, curves_of(standards, inputs, inside, f"{KEY}.standardize"))


def grid_of(prepare: Prepare, image: Volume, unit: str | None, crop: Box) -> GridMap:
    """The prepared grid of a part of a volume: cut, then turned, then resampled.

    Args:
        prepare: settled.
        image: the first input.
        unit: that `spacing` is in.
        crop: the part, in its voxels; what of it lies outside is padded.

    Raises:
        VolumeError: it says no orientation, or no voxel size, and one is asked for.
    """
    grid = GridMap.identity(image.extent).cropped(crop)
    if prepare.codes is not None:
        grid = grid.turned(turn_to(prepare.codes, image))
    if (sides := prepare.sides) is not None:
        grid = grid.resampled(_factors(sides, grid, image, unit))
    return grid


def turn_to(codes: str, image: Volume) -> Symmetry:
    """The symmetry after which the axes (x, y, z) of an image point as `codes` say.

    Raises:
        VolumeError: it does not say how it lies in the world.
    """
    affine = affine_of(image)
    if affine is None:
        found = f"{image.location} does not say how it lies (it has no vcmodels.geometry.affine)"
        remedy = f"give the file it came from, such as a NIfTI, or leave {KEY}.orientation out"
        raise VolumeError(image.key, found, remedy)
    pairs = {letter: pair for pair in AXIS_PAIRS for letter in pair}
    now = axis_codes(affine)[::-1]  # of (z, y, x)
    wanted = codes[::-1]
    sources = [next(n for n in range(3) if pairs[now[n]] == pairs[w]) for w in wanted]
    flips = [now[n] != w for n, w in zip(sources, wanted, strict=True)]
    return Symmetry(triple(sources), triple(flips))


def _factors(sides: Spacing, grid: GridMap, image: Volume, unit: str | None) -> Spacing:
    if not image.has_spacing:
        found = f"the voxel size of {image.location} is unknown, and {KEY}.spacing asks for one"
        raise VolumeError(image.key, found, 'give "spacing"')
    now = grid.spacing(in_unit(image.spacing, image.unit, unit or image.unit))
    ratios = [side / size for side, size in zip(sides, now, strict=True)]
    return triple(1.0 if abs(ratio - 1) <= _SAME else ratio for ratio in ratios)


def _crop(prepare: Prepare, image: Volume, unit: str | None) -> Box:
    """The part that `crop` keeps of a volume."""
    if prepare.crop is None:
        return image.box
    if (given := prepare.crop.given) is not None:
        inside = given.intersect(image.box)
        if not inside.voxels:
            found = f"lies outside of {image.location}, shape {image.extent}"
            raise TaskError(f"{KEY}.crop.box", found, "give a box that all volumes reach into")
        return inside
    shown = prepare.crop.foreground
    assert shown is not None, "one of the two is given"
    box = foreground_box(image, shown.above, f"{KEY}.crop.foreground")
    spacing = in_unit(image.spacing, image.unit, unit or image.unit)
    margin = [round(shown.margin / side) for side in spacing]
    return box.grow(margin).intersect(image.box)


def notes_of(prepare: Prepare) -> Mapping[str, Any]:
    """What a prepared image says of how it was made."""
    return {"prepare": prepare.model_dump(mode="json", by_alias=True)}
