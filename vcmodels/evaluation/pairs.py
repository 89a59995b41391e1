"""A prediction and its label over one volume, as metrics read them: in boxes of any size.

A volume is read in cells, aligned to the stored chunks; the cells that were read last are kept within
a budget, so that a metric that looks around a block reads little twice. Where the label counts
nowhere the prediction is not read, and where neither array has a stored chunk no more than one voxel.
"""

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import lcm, prod
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch

from vcmodels.comparison import Compared
from vcmodels.data.labels import Label, StoredLabel, id_dtype
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple, unit_box, units_touching
from vcmodels.metrics.base import Pair
from vcmodels.metrics.joint import slice_counts
from vcmodels.metrics.overlap import regions as regions_of
from vcmodels.targets.stored import LabelError
from vcmodels.volumes import ArrayVolume, Volume
from vcmodels.volumes.content import content_of

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Prediction (C, Z, Y, X), label (L, Z, Y, X) and valid (V, Z, Y, X) bool."""
Decode = Callable[[np.ndarray], np.ndarray]
"""Stored predictions as the kind compares them: (S, Z, Y, X) -> (P, Z, Y, X) float32."""


@dataclass(frozen=True)
class Counted:
    """The n different pairs of a stored prediction and label in a box, as metrics compare them."""

    keys: tuple[tuple[int, int], ...]
    """What is stored of each."""
    prediction: np.ndarray
    """(C, n, 1, 1)."""
    label: np.ndarray
    """(L, n, 1, 1)."""
    valid: np.ndarray
    """(1, n, 1, 1) bool."""
    counts: np.ndarray
    """(Z, n) int64: how many voxels of each slice are such."""


CELL_EDGE, LONG_EDGE = 128, 512
CELL_VALUES = 1 << 23
"""Of a cell, in all channels together: 32 MiB as float32; 128^3 voxels of a mask and its label fit."""
KEPT_BYTES = 128 << 20
"""Of the cells of one volume that each process keeps, half of it as read, half as packed regions."""


class ScoredPair(Pair, Protocol):
    """A pair with what makes measuring it quick and repeatable."""

    @property
    def cell(self) -> Shape:
        """In what the volume is best read; multiples of it start at voxel 0."""
        ...

    def load(self, box: Box) -> Triple:
        """As `read`, of a box inside `self.box`, and nothing is kept."""
        ...

    def counted(self, box: Box) -> Counted | None:
        """The voxels of a box by what is stored of them, counted; None where that is no way."""
        ...

    def is_constant(self, box: Box) -> bool:
        """Whether every voxel of a box inside `self.box` is known, unread, to be like the first."""
        ...

    def contents(self) -> Mapping[str, Any]:
        """JSON values that change when what is read does."""
        ...


def cell_shape(extent: Shape, chunks: Shape, channels: int) -> Shape:
    """In what a volume is read: whole chunks, up to about `CELL_EDGE` voxels and `CELL_VALUES`.

    Of longer chunks up to `LONG_EDGE` voxels, in fewer slices: each cell decodes all chunks that it
    touches. Whole slices of 1024^2 are so decoded 4 times, not 16 times. Fewer still would cost more
    than they save where a metric looks around its block.

    Args:
        extent: of the volume.
        chunks: of the array that is most expensive to read.
        channels: of everything that is held of a voxel.
    """
    units = [max(min(n, c, LONG_EDGE), 1) for n, c in zip(extent, chunks, strict=True)]
    edges = [
        max(min(n, unit * max(CELL_EDGE // unit, 1)), 1)
        for n, unit in zip(extent, units, strict=True)
    ]
    while prod(edges) * channels > CELL_VALUES and max(edges) > 1:
        counts = [-(-edge // unit) for edge, unit in zip(edges, units, strict=True)]
        most = max(range(3), key=lambda axis: (counts[axis], edges[axis]))
        whole = units[most] if counts[most] > 1 else 1
        edges[most] = whole * -(-edges[most] // (2 * whole))
    return triple(edges)


def common_chunks(*volumes: Volume) -> Shape:
    """Chunks that hold whole ones of all volumes, along the axes where such are short enough."""
    both = (lcm(*axis) for axis in zip(*(v.chunks for v in volumes), strict=True))
    largest = (max(axis) for axis in zip(*(v.chunks for v in volumes), strict=True))
    return triple(b if b <= CELL_EDGE else n for b, n in zip(both, largest, strict=True))


class RecentArrays:
    """What was used last, within a budget of bytes; threads may share it."""

    def __init__(self, budget: int) -> None:
        self._budget, self._bytes = budget, 0
        self._kept: OrderedDict[Hashable, tuple[np.ndarray, ...]] = OrderedDict()
        self._lock = Lock()

    def get(
        self, key: Hashable, make: Callable[[], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """What is kept under a key, or is made and kept from now on."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # not under the lock: two threads may make the same, which does no harm
        size = _bytes(made)
        with self._lock:
            if key not in self._kept and size <= self._budget:
                self._kept[key] = made
                self._bytes += size
                while self._bytes > self._budget:
                    self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made


def _bytes(arrays: tuple[np.ndarray, ...]) -> int:
    return sum(array.nbytes for array in arrays)


class CellPair(ABC):
    """A pair that is read cell by cell."""

    form: Compared
    box: Box
    spacing: Spacing
    cell: Shape

    @property
    @abstractmethod
    def classes(self) -> int:
        """As for `Pair`."""

    @abstractmethod
    def load(self, box: Box) -> Triple:
        """Read a box inside `self.box`; it may be empty."""

    def counted(self, box: Box) -> Counted | None:
        """As for `ScoredPair`."""
        del box
        return None

    @abstractmethod
    def is_constant(self, box: Box) -> bool:
        """As for `ScoredPair`."""

    @abstractmethod
    def labelled_ids(self, box: Box) -> np.ndarray:
        """`ids` of a box inside `self.box`; it may be empty."""

    @abstractmethod
    def contents(self) -> Mapping[str, Any]:
        """As for `ScoredPair`."""

    def read(self, box: Box) -> Triple:
        """As for `Pair`.

        Raises:
            RunError: a value that the kind cannot have, or a damaged chunk.
        """
        cells = list(self._cells(box))
        if cells == [box]:
            return self._values(box)
        found = [
            np.zeros((len(one), *box.shape), one.dtype)
            for one in (self._values(cells[0]) if cells else self._nothing)
        ]
        for cell in cells:
            part = cell.intersect(box)
            for whole, one in zip(found, self._values(cell), strict=True):
                whole[:, *part.slices(within=box)] = one[:, *part.slices(within=cell)]
        prediction, label, valid = found
        return prediction, label, valid

    def regions(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As for `Pair`; values, vectors and directions have none (K is 0).

        Raises:
            RunError: as `read`.
        """
        count = self.region_count
        found = np.zeros((2, count, *box.shape), bool)
        for cell in self._cells(box) if count else ():
            part = cell.intersect(box)
            region = self._region(cell)
            found[:, :, *part.slices(within=box)] = region[:, :, *part.slices(within=cell)]
        return found[0], found[1]

    def ids(self, box: Box) -> np.ndarray:
        """As for `Pair`.

        Raises:
            RunError: a label that holds no ids, or a damaged chunk.
        """
        inside = box.intersect(self.box)
        found = self.labelled_ids(inside)
        whole = np.zeros((1, *box.shape), found.dtype)
        whole[:, *inside.slices(within=box)] = found
        return whole

    @property
    def region_count(self) -> int:
        """K: how many regions there are."""
        if self.form == "classes":
            return self.classes - 1
        return self.classes if self.form in ("masks", "instances") else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what was kept of what was read."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_recent", "_packed")}

    @cached_property
    def _recent(self) -> RecentArrays:
        return RecentArrays(KEPT_BYTES // 2)

    @cached_property
    def _packed(self) -> RecentArrays:
        return RecentArrays(KEPT_BYTES // 2)

    @cached_property
    def _nothing(self) -> Triple:
        return self.load(Box(self.box.origin, (0, 0, 0)))

    def _cells(self, box: Box) -> Iterator[Box]:
        """The cells that a box touches, cut at the border of what is scored."""
        inside = box.intersect(self.box)
        if inside.voxels:
            for index in product(*units_touching(inside, self.cell)):
                yield unit_box(index, self.cell).intersect(self.box)

    def _values(self, cell: Box) -> Triple:
        if self.is_constant(cell):
            first = self.load(Box(cell.origin, (1, 1, 1)))
            p, t, v = (np.broadcast_to(a, (len(a), *cell.shape)).copy() for a in first)
            return p, t, v
        p, t, v = self._recent.get(cell, lambda: self.load(cell))
        return p, t, v

    def _region(self, cell: Box) -> np.ndarray:
        """Both regions of a cell: (2, K, Z, Y, X) bool, not to be written into."""
        shape = (2, self.region_count, *cell.shape)
        (bits,) = self._packed.get(cell, lambda: (self._pack(cell),))
        if bits.ndim > 1:
            return np.broadcast_to(bits, shape)
        return np.unpackbits(bits, count=prod(shape)).view(bool).reshape(shape)

    def _pack(self, cell: Box) -> np.ndarray:
        """The regions as bits, or as one voxel for all where they are the same everywhere."""
        is_constant = self.is_constant(cell)
        read = self.load(Box(cell.origin, (1, 1, 1))) if is_constant else self._values(cell)
        found = self._make_regions(*read)
        if is_constant or not found.any():
            return found[:, :, :1, :1, :1].copy()
        return np.packbits(found)

    def _make_regions(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        if self.form == "instances":
            return np.stack([(prediction != 0) & valid, (label != 0) & valid])
        pairs = list(regions_of(prediction, label, valid))
        return np.stack([np.stack(side) for side in zip(*pairs, strict=True)])


@dataclass(frozen=True)
class TargetPair(CellPair):
    """A stored prediction of a target, against its label."""

    label: Label
    prediction: Volume
    """As inference writes it for this target, of the extent of the label's array."""
    box: Box
    cell: Shape = (0, 0, 0)
    """By the chunks when left out; it decides nothing but the order in which floats are added."""
    form: Compared = field(init=False)
    spacing: Spacing = field(init=False)
    decode: Decode | None = None
    """How stored predictions are read; as the target says when None."""
    mask: Volume | None = None
    """Where it is 0 or NaN nothing counts."""

    def __post_init__(self) -> None:
        """Take over what the label says, and choose the cells."""
        object.__setattr__(self, "form", self.label.target.predicts)
        object.__setattr__(self, "spacing", self.label.spacing)
        if not all(self.cell):
            object.__setattr__(self, "cell", self._best_cell())

    @property
    def classes(self) -> int:
        if self.form in ("masks", "classes"):
            return len(self._nothing[0])
        return 1

    def load(self, box: Box) -> Triple:
        """As for `ScoredPair`.

        Raises:
            RunError: a label that cannot be, or a prediction that is no number where it counts.
        """
        truth, valid = self.label.read(box)
        if self.mask is not None and box.voxels:
            valid = valid & _inside(self.mask, box)
        if valid.any():
            stored = self.prediction.read(box)
            if stored.dtype.kind == "f":
                _require_numbers(np.isnan(stored), valid, self.prediction, box)
            return *self._comparable(stored, truth), valid
        # Nothing counts here, so that the prediction need not be read.
        stored = np.zeros((self.prediction.channels, 0, 0, 0), self.prediction.dtype)
        empty = self._comparable(stored, truth[:, :0, :0, :0])
        prediction, label = (np.zeros((len(a), *box.shape), a.dtype) for a in empty)
        return prediction, label, valid

    def is_constant(self, box: Box) -> bool:
        target, stored = self.label.target, self.label.stored
        if target.derive is not None or self.prediction.is_stored(box):
            return False
        around = box.grow((target.label_margin,) * 3).intersect(stored.region)
        if not stored.region.contains(box) or stored.array.is_stored(around):
            return False
        return self.mask is None or not self.mask.is_stored(box)

    def labelled_ids(self, box: Box) -> np.ndarray:
        assert self.form == "masks", "no other label is made of ids"
        ids = self.label.ids(box)
        if self.mask is None or not box.voxels:
            return ids
        return np.where(_inside(self.mask, box), ids, np.zeros((), ids.dtype))

    def counted(self, box: Box) -> Counted | None:
        """The pairs of codes of 8 bits and labels; each is decoded once.

        None where a voxel depends on others, or on several channels, or has too many labels.
        """
        target, stored = self.label.target, self.label.stored
        depends = target.derive is not None or target.label_margin or stored.array.channels > 1
        if depends or self.prediction.channels > 1 or self.prediction.dtype != np.uint8:
            return None
        if not stored.region.contains(box):
            return None
        labels = stored.array.read(box)[0]
        mask = None if self.mask is None else _inside(self.mask, box)[0]
        try:
            first = labels[:1, :1, :1]
            if not target.read_label(first[None])[1].any() and (labels == first).all():
                nothing = np.zeros((len(labels), 0), np.int64)
                return self._counted(np.zeros(0, np.uint8), labels.ravel()[:0], nothing)
            joint = slice_counts(self.prediction.read(box)[0], labels, mask)
            return None if joint is None else self._counted(*joint)
        except LabelError:  # the other way raises it too, with its place
            return None

    def contents(self) -> Mapping[str, Any]:
        target = self.label.target
        return {
            "prediction": _content(self.prediction),
            "label": _content(self.label.stored.array),
            "mask": None if self.mask is None else _content(self.mask),
            "target": target.model_dump(mode="json", exclude={"loss", "weight"}),
            "decode": repr(self.decode),
            "part": [*self.label.stored.region.origin, *self.label.stored.region.shape],
            **_place(self),
        }

    def _counted(self, codes: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> Counted:
        truth, valid = self.label.target.read_label(labels.reshape(1, -1, 1, 1))
        prediction, label = self._comparable(codes.reshape(1, -1, 1, 1), truth)
        keys = tuple(zip(codes.tolist(), labels.tolist(), strict=True))
        return Counted(keys, prediction, label, valid, counts)

    def _comparable(self, stored: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = self.label.target
        values = (self.decode or target.decode)(stored)
        pair = (torch.from_numpy(np.ascontiguousarray(a))[None] for a in (values, truth))
        prediction, label = (tensor[0].numpy() for tensor in target.comparable(*pair))
        return prediction, label

    def _best_cell(self) -> Shape:
        arrays = (self.prediction, self.label.stored.array)
        channels = sum(map(len, self._nothing))
        return cell_shape(self.prediction.extent, common_chunks(*arrays), channels)


@dataclass(frozen=True)
class InstancePair(CellPair):
    """Predicted ids against labelled ones: whole numbers, 0 for the background."""

    prediction: Volume
    label: Volume
    """Of the same extent."""
    box: Box
    spacing: Spacing
    ignored: tuple[int, ...] = ()
    """Labelled values that do not count; NaN does not, either."""
    mask: Volume | None = None
    """Where it is 0 or NaN nothing counts."""
    cell: Shape = (0, 0, 0)
    """As for `TargetPair`."""
    form: Compared = field(default="instances", init=False)

    def __post_init__(self) -> None:
        """Choose the cells."""
        if not all(self.cell):
            chunks = common_chunks(self.prediction, self.label)
            object.__setattr__(self, "cell", cell_shape(self.prediction.extent, chunks, 2))

    @property
    def classes(self) -> int:
        return 1

    def load(self, box: Box) -> Triple:
        if not box.voxels:
            nothing = np.zeros((1, *box.shape), bool)
            prediction, label = (
                nothing.astype(id_dtype(v.dtype)) for v in (self.prediction, self.label)
            )
            return prediction, label, nothing
        label, valid = self._stored("label", self.label).exact_ids(box, self.ignored)
        if self.mask is not None:
            valid = valid & _inside(self.mask, box)
        if not valid.any():
            return np.zeros(label.shape, id_dtype(self.prediction.dtype)), label, valid
        prediction, known = self._stored("prediction", self.prediction).exact_ids(box, ())
        _require_numbers(~known, valid, self.prediction, box)
        return prediction, label, valid

    def is_constant(self, box: Box) -> bool:
        arrays = (self.prediction, self.label, *((self.mask,) if self.mask is not None else ()))
        return not any(array.is_stored(box) for array in arrays)

    def labelled_ids(self, box: Box) -> np.ndarray:
        _, label, valid = self.load(box)
        return np.where(valid, label, np.zeros((), label.dtype))

    def contents(self) -> Mapping[str, Any]:
        return {
            "prediction": _content(self.prediction),
            "label": _content(self.label),
            "mask": None if self.mask is None else _content(self.mask),
            "ignored": [*self.ignored],
            **_place(self),
        }

    @staticmethod
    def _stored(name: str, array: Volume) -> StoredLabel:
        return StoredLabel(name, array, array.box)


def _require_numbers(is_nan: np.ndarray, valid: np.ndarray, prediction: Volume, box: Box) -> None:
    """Refuse NaN that counts: it would pass for background, or make a figure unknown.

    Args:
        is_nan: (S, Z, Y, X) bool: where a prediction is NaN.
        valid: (V, Z, Y, X) bool: where the label counts.
        prediction: whose values they are.
        box: where they lie.

    Raises:
        RunError: there is one; names the first.
    """
    if not is_nan.any():
        return
    places = np.argwhere(np.any(is_nan, axis=0) & np.any(valid, axis=0))
    if len(places):
        place = tuple(o + int(i) for o, i in zip(box.origin, places[0], strict=True))
        found = f"{prediction.location} holds NaN at (z, y, x) = {place}, where the label counts"
        raise RunError(prediction.key, found, "predict it, or give a mask that is 0 there")


def _inside(mask: Volume, box: Box) -> np.ndarray:
    """Where a mask lets voxels count: not where it is 0 or NaN. (1, Z, Y, X) bool."""
    stored = mask.read(box)[:1]
    return (stored != 0) & (stored == stored)


def _place(pair: ScoredPair) -> dict[str, Any]:
    box = pair.box
    return {
        "box": [*box.origin, *box.shape],
        "spacing": [*pair.spacing],
        "cell": [*pair.cell],
    }


def _content(volume: Volume) -> Mapping[str, Any]:
    if isinstance(volume, ArrayVolume):
        return {"location": volume.location, "values": volume.fingerprint()}
    # Through JSON, as it comes back from there.
    found = json.loads(json.dumps(content_of(volume)))
    return {**found, "read": volume.read_rules.hex()}
