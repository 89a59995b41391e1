"""Labels on any box of a volume: as they are stored, or derived from another that is.

Training, evaluation and `vcmodels derive` all read through this module. Nothing outside of a
region is read; what lies there is not valid.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcmodels.errors import RunError
from vcmodels.fields.distance import Labelled, inner
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.stored import ForegroundRule, LabelError, known, refuse_first
from vcmodels.volumes import Volume

Arrays = tuple[np.ndarray, np.ndarray]
"""A label (L, Z, Y, X) float32, 0 where not valid, and valid (V, Z, Y, X) bool, V being 1 or L."""

EXACT = 1 << 24
"""Whole numbers up to this one are exact in float32."""


@dataclass(frozen=True)
class StoredLabel:
    """A label array of a volume, and the part of it that may be read."""

    volume: str
    """Its name, for messages."""
    array: Volume
    region: Box

    def values(self, target: Target, box: Box) -> Arrays:
        """The label of a target whose own array this is, on a box that may reach out of the region.

        What the target needs from around the box is read too, as far as the region goes.

        Raises:
            RunError: a value that the kind cannot have; names volume and place.
        """
        inside = box.intersect(self.region)
        if not inside.voxels:
            return empty_crop(target, box.shape)
        margin = (target.label_margin,) * 3
        read = inside.grow(margin).intersect(self.region)
        label, valid = self._checked(read, target.read_label)
        at = (slice(None), *inside.slices(within=read))
        return _framed(label[at], inside, box), _framed(valid[at], inside, box)

    def ids(self, target: Target, box: Box) -> Arrays:
        """What a label is derived from: (1, Z, Y, X) whole numbers, 0 for the background.

        Ids that float32 cannot hold are numbered again from 1, so that only `equal` and `0` mean something.

        Args:
            target: says which stored values say nothing, and which are foreground.
            box: it may reach out of the region.

        Raises:
            RunError: a value that is no mask and no id; names volume and place.
        """
        inside = box.intersect(self.region)
        if not inside.voxels:
            return np.zeros((1, *box.shape), np.float32), np.zeros((1, *box.shape), bool)
        rules = target.ignored, target.comparison
        ids, valid = self._checked(inside, lambda stored: read_ids(stored, *rules))
        return _framed(ids, inside, box), _framed(valid, inside, box)

    def exact_ids(self, box: Box, ignored: Sequence[int]) -> Arrays:
        """Ids as they are stored, as from `whole_ids`, on a box inside the region.

        Raises:
            RunError: a value that is no id; names volume and place.
        """
        return self._checked(box, lambda stored: whole_ids(stored, ignored))

    def _checked(self, box: Box, read: Callable[[np.ndarray], Arrays]) -> Arrays:
        """Read a box inside the region; what is wrong with a value is reported with its place."""
        stored = self.array.read(box)
        try:
            return read(stored)
        except LabelError as error:
            place = tuple(o + i for o, i in zip(box.origin, error.place, strict=True))
            found = f"volume {self.volume} holds {error.value} at (z, y, x) = {place}"
            raise RunError(self.array.key, found, error.remedy) from error
        except ValueError as error:
            found = f"volume {self.volume}, in the box at {box.origin}: {error}"
            raise RunError(self.array.key, found) from error


@dataclass(frozen=True)
class Label:
    """The label of one target in one volume, whichever way it comes about."""

    target: AnyTarget
    stored: StoredLabel
    """Its own array, or the one that it is derived from."""
    spacing: Spacing
    """Length of a voxel along (z, y, x)."""

    def read(self, box: Box) -> Arrays:
        """Label and valid voxels of a box; they do not depend on how a volume is cut into boxes.

        Raises:
            RunError: a value that cannot be; names volume and place.
        """
        if self.target.derive is None:
            return self.stored.values(self.target, box)
        if not box.voxels:  # kinds are not asked for less than a voxel
            label, valid = self.read(Box(box.origin, (1, 1, 1)))
            nothing = np.zeros((1, *box.shape), bool)
            return np.repeat(nothing, len(label), 0).astype(np.float32), np.repeat(
                nothing, len(valid), 0
            )
        margin = self.target.source_margin(self.spacing)
        ids, valid = self.stored.ids(self.target, box.grow(margin))
        tensors = torch.from_numpy(ids), torch.from_numpy(valid)
        label, counts = derived(self.target, *tensors, margin, self.spacing)
        return label.numpy(), counts.numpy()

    def ids(self, box: Box) -> np.ndarray:
        """The values that are stored where the label, or its source, is foreground: (1, Z, Y, X).

        Of an integer dtype; 0 elsewhere, where it is ignored and out of the region.

        Raises:
            RunError: a value that is no mask and no id; names volume and place.
        """
        inside = box.intersect(self.stored.region)
        if not inside.voxels:
            return np.zeros((1, *box.shape), id_dtype(self.stored.array.dtype))
        ids, valid = self.stored.exact_ids(inside, self.target.ignored)
        if self.target.comparison is not None:
            valid = valid & self.target.comparison.of(ids)
        return _framed(np.where(valid, ids, np.zeros((), ids.dtype)), inside, box)


@torch.no_grad()
def derived(
    target: Target, ids: Tensor, valid: Tensor, margin: Shape, spacing: Spacing
) -> Labelled:
    """The label of a patch that is derived from the ids in and around it.

    Args:
        target: with `derive`.
        ids: (1, *grown) float32, grown being the patch and its margin.
        valid: (1, *grown) bool.
        margin: voxels around the patch, on each side; the target may need fewer.
        spacing: length of a voxel along (z, y, x).
    """
    wanted = target.source_margin(spacing)
    spare = margin[0] - wanted[0], margin[1] - wanted[1], margin[2] - wanted[2]
    ids, valid = inner(ids, spare), inner(valid, spare)
    label, counts = target.derive_label(ids, valid, spacing)
    if target.loss_only_on_label:
        counts = counts & (inner(ids, wanted) != 0)
        label = torch.where(counts, label, 0.0)
    return label, counts


def empty_crop(target: Target, shape: Shape) -> Arrays:
    """What a label is made from where a volume has none: as many channels as ever, nothing valid."""
    label, valid = np.zeros((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), bool)
    if target.derive is None:
        stored = np.zeros((target.stored_channels or 1, 1, 1, 1), np.uint8)
        label, valid = target.read_label(stored)
    return np.zeros((len(label), *shape), np.float32), np.zeros((len(valid), *shape), bool)


def shared_labels(targets: Mapping[str, Target]) -> dict[str, tuple[Target, ...]]:
    """What a sample holds once: a stored label each, and ids by all the targets that share them."""
    shared: dict[str, tuple[Target, ...]] = {}
    for name, target in targets.items():
        key = sample_key(name, target)
        shared[key] = (*shared.get(key, ()), target)
    return shared


def sample_key(name: str, target: Target) -> str:
    """Under which key a sample holds what the label of a target is made from.

    No name of a target holds a blank, so a target's own label and the ids of it stay apart.
    """
    if target.derive is None:
        return name
    ignored = f" but {', '.join(map(str, target.ignored))}" if target.ignored else ""
    mask = f" where {target.foreground}" if target.foreground else ""
    return f"ids of {target.derive}{ignored}{mask}"


def widest_margin(targets: Iterable[Target], spacing: Spacing) -> Shape:
    """The largest source margin of some targets along each axis; none for stored labels."""
    margins = [t.source_margin(spacing) for t in targets if t.derive is not None]
    return triple(max(axis) for axis in zip((0, 0, 0), *margins, strict=True))


def read_ids(
    stored: np.ndarray, ignored: Sequence[int], foreground: ForegroundRule | None = None
) -> Arrays:
    """A mask or instance ids as whole numbers that are exact in float32, 0 where not valid.

    Args:
        stored: (1, Z, Y, X), any integer dtype, bool, or floats that hold whole numbers.
        ignored: stored values that say nothing; NaN and infinity do neither.
        foreground: makes a mask of 0 and 1 of any values; ids as they are when None.

    Raises:
        LabelError: a negative value or a fraction.
    """
    if foreground is not None:
        valid = known(stored, ignored)
        return (foreground.of(stored) & valid).astype(np.float32), valid
    ids, valid = _known_ids(stored, ignored)
    if ids.dtype.itemsize > 2 and ids.max() > EXACT:
        return _numbered_anew(ids), valid
    return ids.astype(np.float32), valid


def whole_ids(stored: np.ndarray, ignored: Sequence[int]) -> Arrays:
    """Ids in an integer dtype that holds them exactly, 0 where not valid; and where they are.

    Args:
        stored: (1, Z, Y, X), any integer dtype, bool, or floats that hold whole numbers.
        ignored: stored values that say nothing; NaN and infinity do neither.

    Raises:
        LabelError: a negative value, a fraction, or a float of 2^63 or more.
    """
    ids, valid = _known_ids(stored, ignored)
    if ids.dtype.kind == "f" and (large := ids >= 2.0**63).any():
        refuse_first(large, ids, NO_IDS)
    return ids.astype(id_dtype(ids.dtype), copy=False), valid


def id_dtype(stored: np.dtype) -> np.dtype:
    """In which integer dtype `whole_ids` gives ids of a stored one."""
    return np.dtype({"f": np.int64, "b": np.uint8}.get(stored.kind, stored))


def _known_ids(stored: np.ndarray, ignored: Sequence[int]) -> Arrays:
    valid = known(stored, ignored)
    ids = stored if valid.all() else np.where(valid, stored, np.zeros((), stored.dtype))
    _refuse_strange(ids)
    return ids, valid


NO_IDS = 'a mask or ids are whole numbers, 0 or more; name it in "ignore_label" to skip it'


def _refuse_strange(ids: np.ndarray) -> None:
    remedy = NO_IDS
    if ids.dtype.kind in "if" and ids.min() < 0:
        refuse_first(ids < 0, ids, remedy)
    if ids.dtype.kind == "f" and (strange := np.trunc(ids) != ids).any():
        refuse_first(strange, ids, remedy)


def _numbered_anew(ids: np.ndarray) -> np.ndarray:
    """Ids as 1, 2, 3... in ascending order, 0 staying 0: same shape, float32.

    Only the first voxel of each run along x is sorted: 20 times as fast as `np.unique` of all.
    """
    flat = ids.reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    values, numbers = np.unique(flat[starts], return_inverse=True)
    numbers = numbers.astype(np.float32) + np.float32(values[0] != 0)
    return np.repeat(numbers, np.diff(starts, append=len(flat))).reshape(ids.shape)


def _framed(part: np.ndarray, inside: Box, box: Box) -> np.ndarray:
    """What was read of `inside`, with zeros around it to fill `box`."""
    if inside == box:
        return np.ascontiguousarray(part)
    whole = np.zeros((len(part), *box.shape), part.dtype)
    whole[(slice(None), *inside.slices(within=box))] = part
    return whole
