"""One whole number for each voxel of a source: 1 in a mask, the class, or the id; 0 is background.

It is seen block by block, each with the layer of voxels that follows it along each axis, as
`fields.components` joins blocks by what lies in these layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, MASK_FORM, TRUE, Form
from vcmodels.postprocess.site import Source

CLASSES = "multiclass"
SPLIT = 0.5
"""What is stored of a mask is true from here on: a probability, or 1 or 255."""

Field = Callable[[Box], np.ndarray]
"""A block -> (Z + 1, Y + 1, X + 1) integers of the block and the layer that follows it, 0 beyond
the volume; picklable, and the same whenever it is called."""


@dataclass(frozen=True)
class MaskRule:
    """Which values belong to a mask; NaN never does."""

    threshold: float = SPLIT
    below: bool = False
    """Those less than the threshold, in place of those from it on."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """Bool, of the same shape."""
        threshold = np.float32(self.threshold)  # a float would make float64 of codes
        return values < threshold if self.below else values >= threshold


@dataclass(frozen=True)
class Marks:
    """What each voxel of a source is, as a `Field`."""

    source: Source
    within: Box
    cut: MaskRule | None
    """What makes a mask of values; None: of classes and ids."""
    is_mask: bool = False
    """Of classes and ids: whether they are one mask."""

    def __call__(self, block: Box) -> np.ndarray:
        around = block.with_layer()
        if self.source.is_empty(around) and not (void := self._void()).any():
            return np.zeros(around.shape, void.dtype)
        inside = around.intersect(self.within)
        values = self.of(self.source.read(inside, self.within))
        if inside == around:
            return values
        marks = np.zeros(around.shape, values.dtype)
        marks[inside.slices(around)] = values
        return marks

    def of(self, values: np.ndarray) -> np.ndarray:
        """(P, Z, Y, X) as read -> (Z, Y, X)."""
        if self.source.kind == CLASSES:
            values = classes_of(values, self.source)
        else:
            values = values[0]
        if self.cut is not None:
            return self.cut.of(values).view(np.uint8)
        return (values != 0).view(np.uint8) if self.is_mask else values

    def _void(self) -> np.ndarray:
        """(1, 1, 1): what a voxel is that is not stored."""
        volume = self.source.volume
        void = np.full((volume.channels, 1, 1, 1), volume.fill_value, volume.dtype)
        return self.of(self.source.decode(void))


def marked(source: Source) -> Source:
    """A source of masks, classes or ids that reads as (1, Z, Y, X) marks: 0 or 1, classes, ids."""
    return replace(source, decode=_MarkDecode(source))


@dataclass(frozen=True)
class _MarkDecode:
    source: Source

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        cut = None if self.source.kind in (CLASSES, IDS) else MaskRule()
        return Marks(self.source, self.source.volume.box, cut).of(self.source.decode(stored))[None]


def only_within(values: np.ndarray, box: Box, within: Box) -> np.ndarray:
    """The values (Z, Y, X) of a box, 0 outside of `within`."""
    if within.contains(box):
        return values
    inside = box.intersect(within).slices(box)
    kept = np.zeros_like(values)
    kept[inside] = values[inside]
    return kept


def classes_of(values: np.ndarray, source: Source) -> np.ndarray:
    """(P, Z, Y, X) classes, or the probability of each -> (Z, Y, X) values of classes."""
    if len(values) == 1:
        return values[0]
    return np.array(class_values(source))[values.argmax(axis=0)]


def class_values(source: Source) -> list[int]:
    """What the classes of a source are stored as, the background first."""
    listed = source.encoding.get("label_values")
    return list(range(max(source.volume.channels, 2))) if listed is None else list(listed)


def class_form(source: Source) -> Form:
    """Of one class a voxel, where the source has classes or the probability of each."""
    if source.volume.channels == 1:
        return Form(CLASSES, source.volume.dtype, source.encoding)
    values = class_values(source)
    dtype = np.result_type(*(np.min_scalar_type(value) for value in values))
    return Form(CLASSES, dtype, {"kind": CLASSES, "quantity": "class", "label_values": values})


def same_form(source: Source) -> Form:
    """Of a mask, of classes, or of ids, as the source is."""
    if source.kind == CLASSES:
        return class_form(source)
    return IDS_FORM if source.kind == IDS else MASK_FORM


@dataclass(frozen=True)
class FieldFill:
    """Writes what a field is, masks as they are stored."""

    field: Field
    form: Form

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        return stored(self.field(box)[:-1, :-1, :-1], self.form), {}


def stored(values: np.ndarray, form: Form) -> np.ndarray:
    """Marks as a form stores them: a mask as 0 and 255, classes and ids as they are."""
    if form.kind == MASK_FORM.kind:
        return np.where(values != 0, np.uint8(TRUE), np.uint8(0))
    return values.astype(form.dtype, copy=False)
