"""What a `prepare` block makes of one volume: its grid, its curves, its arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vcmodels.errors import FaultError, TaskError, VolumeError
from vcmodels.geometry.affine import axis_codes
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.prepare.contents import Classes, ImageContent
from vcmodels.prepare.curves import (
    ValueCurve,
    channels_of,
    curves_of,
    foreground_box,
    landmarks_of,
    learnt_landmarks,
    spreads_of,
)
from vcmodels.prepare.derived import DerivedVolume, affine_of, remembered
from vcmodels.prepare.kernels import Order, Orders
from vcmodels.prepare.section import AXIS_PAIRS, Above, NyulStandard, Prepare, Standard
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume
from vcmodels.volumes.spacing import in_unit

KEY = "dataset_config.prepare"
_SAME = 1e-4
"""Part by which a voxel size may differ from the wanted one and is not changed."""


@dataclass(frozen=True)
class VolumePlan:
    """What is done to one volume."""

    prepare: Prepare
    grid: GridMap
    """From the prepared grid to that of the inputs as they are stored."""
    curves: tuple[ValueCurve | None, ...]
    """What is done to the values of each channel."""
    filled: "Filled | None" = None
    """How the prepared grid is made, where zeros stand around what is cropped."""

    @property
    def back(self) -> GridMap:
        """From the grid of the inputs to the prepared one, or to its `core`."""
        return (self.grid if self.filled is None else self.filled.core_grid).inverse()

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
            curves = self.curves[first : first + volume.channels]  # none where there are none
            first += volume.channels
            order, is_first = self.orders(volume), self.prepare.standardize_first
            content = ImageContent(order, curves, outside, is_first)
            if self.filled is None:
                found.append(DerivedVolume.of(volume, self.grid, content, within))
            else:
                found.append(self.filled.image(volume, content, within))
        return tuple(found)

    def orders(self, image: Volume) -> Order | Orders:
        """How values of an input are found along each axis of the prepared grid."""
        order, (here, there) = self.prepare.order.image, self._sides(image)
        return _with_thick(order, self.prepare.order.thick, here, there)

    def orders_back(self, image: Volume) -> Order | Orders:
        """How what is predicted is found along each axis of an input."""
        if self.prepare.order.image != "spline":
            return "linear"
        here, there = self._sides(image)
        found = _with_thick("between", self.prepare.order.thick, there, here)
        if isinstance(found, str):
            return found
        sources = [axis for axis, _, _ in self.grid.axes]
        z, y, x = (sources.index(axis) for axis in range(3))
        return found[z], found[y], found[x]

    def _sides(self, image: Volume) -> tuple[Spacing, Spacing]:
        """The sides of a voxel, as it is and as it is prepared, along the axes of the prepared grid."""
        turned = triple(image.spacing[axis] for axis, _, _ in self.grid.axes)
        return turned, self.grid.spacing(image.spacing)


def _with_thick(order: Order, thick: float | None, *sides: Spacing) -> Order | Orders:
    """An order, and `nearest` along the axis of thick voxels: of the first sides that have one.

    nnU-Net's rule (`preprocessing/resampling/default_resampling.py`): two thick axes are none.
    """
    for each in sides:
        if thick is not None and max(each) / min(each) > thick:
            if each.count(max(each)) > 1:
                return order
            found: list[Order] = ["nearest" if side == max(each) else order for side in each]
            return found[0], found[1], found[2]
    return order


@dataclass(frozen=True)
class Filled:
    """A prepared grid in three steps, as in nnU-Net: what is next to the crop has no say in it."""

    crop: Box
    """The part of the volume that there is, in its voxels."""
    cut: GridMap
    """From the crop to the volume."""
    made: GridMap
    """From what is turned and resampled to the crop."""
    core: Box
    """Where that lies in the prepared grid."""
    shape: Shape
    """Of the prepared grid."""

    @classmethod
    def of(cls, crop: Box, grid: GridMap, least: Shape) -> "Filled":
        """With as many zeros before as after, or one less, around what `grid` makes of a crop."""
        cut = GridMap.identity(grid.source).cropped(crop)
        made = cut.inverse().then(grid)
        lacking = [max(n - m, 0) for n, m in zip(least, made.shape, strict=True)]
        shape = triple(n + m for n, m in zip(made.shape, lacking, strict=True))
        return cls(crop, cut, made, Box(triple(n // 2 for n in lacking), made.shape), shape)

    @property
    def core_grid(self) -> GridMap:
        """From the core to the volume."""
        return self.cut.then(self.made)

    @property
    def fill(self) -> GridMap:
        """From the prepared grid to the core."""
        start = triple(-n for n in self.core.origin)
        return GridMap.identity(self.core.shape).cropped(Box(start, self.shape))

    def image(self, volume: Volume, content: ImageContent, within: Volume | None) -> DerivedVolume:
        """An input as it is prepared; args as of `VolumePlan.images`."""
        mask = within and DerivedVolume.of(within, self.cut, Classes())
        part = DerivedVolume.of(volume, self.cut, ImageContent())
        made = DerivedVolume.of(part, self.made, content, mask)
        return DerivedVolume.of(made, self.fill, ImageContent(outside=content.outside))


def plan_of(
    prepare: Prepare, inputs: Sequence[Volume], unit: str | None, crop: Box | None = None
) -> VolumePlan:
    """What is done to a volume; voxels are read where `crop` or `standardize` depend on them.

    Args:
        prepare: settled.
        inputs: stacked as channels, of one extent.
        unit: that `spacing` is in; that of the inputs when it is not known.
        crop: a part, in their voxels: no more than that of what `crop` says is kept. How values are
            made comparable does not depend on it.

    Raises:
        VolumeError: an input says no orientation or voxel size and one is asked for, or its values
            leave nothing to go by.
        TaskError: the block does not fit the inputs.
    """
    first, standards = inputs[0], _standards(prepare, inputs)
    part = remembered_crop(prepare, first, unit)
    box = crop or part
    if crop is not None and prepare.crop is not None:
        box = crop.intersect(part)
    if not box.voxels:
        found = f"leaves nothing of the region of {first.shown}"
        raise TaskError(f"{KEY}.crop", found, "leave one of them out")
    grid, filled = grid_of(prepare, first, unit, box), None
    if prepare.least is not None:
        filled = Filled.of(box, grid, prepare.least)
        grid = grid.then(filled.fill)
    if all(one is None for one in standards):
        return VolumePlan(prepare, grid, (), filled)
    inside = part.intersect(first.box)

    def curves() -> list[object]:
        found = curves_of(standards, inputs, inside, f"{KEY}.standardize")
        return [curve and curve.to_json() for curve in found]

    asked = [one and one.model_dump(mode="json") for one in standards]
    question = ["curves", asked, _contents(inputs), inside.origin, inside.shape]
    found = remembered(question, curves)
    curved = tuple(one and ValueCurve.from_json(one) for one in found)
    return VolumePlan(prepare, grid, curved, filled)


def _standards(prepare: Prepare, inputs: Sequence[Volume]) -> list[Standard | None]:
    """What is done to each channel of inputs.

    Raises:
        TaskError: the list is for another number of channels.
    """
    try:
        return prepare.standards(sum(volume.channels for volume in inputs))
    except FaultError as error:
        found = f"{error.found} in {inputs[0].shown}"
        raise TaskError(f"{KEY}.standardize", found, error.remedy) from error


def settled(
    prepare: Prepare, trained: Sequence[Sequence[Volume]], unit: str | None, reporter: Reporter
) -> Prepare:
    """The block with the numbers that training volumes tell: the median voxel size, and landmarks.

    Args:
        prepare: as it was given.
        trained: the inputs of each volume that is trained on.
        unit: of the voxel size.
        reporter: told what was found.

    Raises:
        VolumeError: a volume does not say what is needed, or has no values to go by; or it has
            another number of channels than the first.
        TaskError: the list of `standardize` does not fit the channels of a volume.
    """
    if prepare.is_settled:
        return prepare
    if prepare.spacing == "median":
        only_turned = prepare.changed(spacing=None)
        sizes = [_turned_size(only_turned, inputs[0], unit) for inputs in trained]
        middle = triple(float(f"{n:.6g}") for n in np.median(sizes, axis=0))
        reporter.say(f"{KEY}.spacing: the median of {len(sizes)} volumes is {list(middle)}")
        prepare = prepare.changed(spacing=middle)
    standards = _standards(prepare, trained[0])
    for inputs in trained[1:]:
        if len(_standards(prepare, inputs)) != len(standards):
            found = f"{inputs[0].shown} has another number of channels than {trained[0][0].shown}"
            raise VolumeError(inputs[0].key, found, "give all volumes the same channels")
    above: dict[int, Above | None] = {
        channel: one.above
        for channel, one in enumerate(standards)
        if isinstance(one, NyulStandard) and one.landmarks is None
    }
    learnt = _learnt(prepare, above, trained, unit) if above else {}
    found = [
        one.changed(landmarks=learnt[channel]) if one and channel in learnt else one
        for channel, one in enumerate(standards)
    ]
    return prepare if found == standards else prepare.changed(standardize=found)


def _turned_size(prepare: Prepare, image: Volume, unit: str | None) -> Spacing:
    """The voxel size of a volume once it is turned.

    Raises:
        VolumeError: it does not say one.
    """
    _require_size(image)
    grid = grid_of(prepare, image, unit, image.box)
    return grid.spacing(in_unit(image.spacing, image.unit, unit or image.unit))


def _learnt(
    prepare: Prepare,
    above: Mapping[int, Above | None],
    trained: Sequence[Sequence[Volume]],
    unit: str | None,
) -> dict[int, list[float]]:
    """Where the landmarks of channels lie in the mean of the training volumes.

    Args:
        prepare: for the crop.
        above: by the number of a channel, which voxels of it count.
        trained: the inputs of each volume that is trained on.
        unit: of the voxel size.
    """
    key = f"{KEY}.standardize"

    def marks(inputs: Sequence[Volume], box: Box) -> list[list[float]]:
        places, spreads = list(channels_of(inputs)), spreads_of(inputs, above, box, key)
        return [landmarks_of(spreads[n], places[n][0].shown, key) for n in above]

    every: list[list[list[float]]] = []
    for inputs in trained:
        box = remembered_crop(prepare, inputs[0], unit)
        asked = ["landmarks", [*above.items()], _contents(inputs), box.origin, box.shape]
        every.append(remembered(asked, partial(marks, inputs, box)))
    by_channel = zip(above, zip(*every, strict=True), strict=True)
    return {channel: learnt_landmarks(found) for channel, found in by_channel}


def _contents(inputs: Sequence[Volume]) -> list[str]:
    return [volume.fingerprint() for volume in inputs]


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
        factors = _factors(sides, grid, image, unit)
        is_stretched = prepare.order.image == "spline"
        grid = grid.resampled(_stretched(factors, grid.shape) if is_stretched else factors)
    return grid


def turn_to(codes: str, image: Volume) -> Symmetry:
    """The symmetry after which the axes (x, y, z) of an image point as `codes` say.

    Raises:
        VolumeError: it does not say how it lies in the world.
    """
    affine = affine_of(image)
    if affine is None:
        found = f"{image.shown} does not say how it lies (it has no vcmodels.geometry.affine)"
        remedy = f"give the file it came from, such as a NIfTI, or leave {KEY}.orientation out"
        raise VolumeError(image.key, found, remedy)
    pairs = {letter: pair for pair in AXIS_PAIRS for letter in pair}
    now = axis_codes(affine)[::-1]  # of (z, y, x)
    wanted = codes[::-1]
    sources = [next(n for n in range(3) if pairs[now[n]] == pairs[w]) for w in wanted]
    flips = [now[n] != w for n, w in zip(sources, wanted, strict=True)]
    return Symmetry(triple(sources), triple(flips))


def _factors(
    sides: Sequence[float | None], grid: GridMap, image: Volume, unit: str | None
) -> Spacing:
    """How many times longer voxels get along each axis; 1 where no size is wanted."""
    _require_size(image)
    now = grid.spacing(in_unit(image.spacing, image.unit, unit or image.unit))
    ratios = [side / size if side else 1.0 for side, size in zip(sides, now, strict=True)]
    return triple(1.0 if abs(ratio - 1) <= _SAME else ratio for ratio in ratios)


def _stretched(factors: Spacing, shape: Shape) -> Spacing:
    """Factors by which a grid ends where its source does, as `resize` of scikit-image has it."""
    pairs = zip(factors, shape, strict=True)
    return triple(n / max(1, round(n / factor)) for factor, n in pairs)


def _require_size(image: Volume) -> None:
    if not image.has_spacing:
        found = f"the voxel size of {image.shown} is unknown, and {KEY}.spacing asks for one"
        raise VolumeError(image.key, found, 'give "spacing"')


def remembered_crop(prepare: Prepare, image: Volume, unit: str | None) -> Box:
    """The part that `crop` keeps of a volume, which is read once if that depends on its values."""
    if prepare.crop is None or prepare.crop.foreground is None:
        return _crop(prepare, image, unit)

    def find() -> list[Shape]:
        box = _crop(prepare, image, unit)
        return [box.origin, box.shape]

    asked = prepare.crop.model_dump(mode="json")
    sizes = [image.spacing, image.unit, unit]
    origin, shape = remembered(["crop", asked, image.fingerprint(), sizes], find)
    return Box(triple(origin), triple(shape))


def _crop(prepare: Prepare, image: Volume, unit: str | None) -> Box:
    """The part that `crop` keeps of a volume."""
    if prepare.crop is None:
        return image.box
    if (given := prepare.crop.given) is not None:
        inside = given.intersect(image.box)
        if not inside.voxels:
            found = f"lies outside of {image.shown}, shape {image.extent}"
            raise TaskError(f"{KEY}.crop.box", found, "give a box that all volumes reach into")
        return inside
    shown = prepare.crop.foreground
    assert shown is not None, "one of the two is given"
    box = foreground_box(image, shown.above, f"{KEY}.crop.foreground")
    spacing = in_unit(image.spacing, image.unit, unit or image.unit)
    margin = [round(shown.margin / side) for side in spacing]
    return box.grow(margin).intersect(image.box)


def notes_of(prepare: Prepare) -> Mapping[str, Any]:
    """What a prepared image says of how it was made; keys that came later only where they are used."""
    said = prepare.model_dump(mode="json", by_alias=True)
    for block in (said, said["order"], *_blocks(said["standardize"])):
        for key in _LATER & block.keys():
            if not block[key]:
                del block[key]
    return {"prepare": said}


_LATER = {"standardize_first", "least", "thick", "keep_zero"}
"""Results of before, which are continued and compared, have none of them."""


def _blocks(standardize: object) -> list[dict[str, Any]]:
    """The blocks of `standardize` in JSON, one or a list with gaps."""
    every = standardize if isinstance(standardize, list) else [standardize]
    return [one for one in every if isinstance(one, dict)]
