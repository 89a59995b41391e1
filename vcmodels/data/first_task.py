"""A first task for a volume and its labels: the kind of each target is guessed from stored values."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from vcmodels.config import VolumeEntry, parse_task
from vcmodels.config.messages import Block
from vcmodels.config.reading import (
    INPUT,
    keys_of_input,
    open_array,
    require_one_order,
    require_used,
)
from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing, cut_block, triple
from vcmodels.models.plan import candidates, length_at_most
from vcmodels.reporting import Reporter
from vcmodels.targets.normals import LINEAR_CODES
from vcmodels.volumes import Volume, expand_location
from vcmodels.volumes.axes import Channels

MOST_VOXELS = 2**26
"""Read of each label; a larger one is looked at in places that are spread over it."""
MOST_PLACES = 2**14
MOST_CLASSES = 32
"""More values than these are ids of instances."""
MOST_VALUES = 2**16
"""Counted; that there are more changes nothing."""
LEAST_EQUAL = 0.5
"""Share of labelled neighbours with equal values, from which on values are ids."""
LENGTH_TOLERANCE = 0.05
"""How far the lengths of unit vectors lie from 1 in the mean: codes of 8 bits are off by 0.01."""
FIRST_MINUTES = 8
"""How long a first training lasts."""
SHORT_RATE = 2e-3
"""Twice the default, for a network of half its width and some hundred steps."""
SMALL_NETWORK = {"base_features": 16, "max_features": 128, "decoder": "shared"}
SMALL_VOXELS = 2**17
"""Of a patch at most, with which a step of two takes half a second on two cores of AVX2."""
SMALL_LENGTH = 48
"""A patch may be as long, however short the longest axis is, which is cut in two for validation."""


@dataclass(frozen=True)
class Guess:
    """What a label is taken for."""

    targets: dict[str, Block]
    """Blocks for `dataset_config.targets`, by name."""
    reason: str
    """What was found, in words."""
    hints: list[str] = field(default_factory=list)
    """What to change where the guess is wrong; a line each."""
    is_everywhere: bool = False
    """Whether 0 is the background, and not what nobody has labelled: patches of it are learnt, too."""


READING_KEYS = ("level", "channel_axis", "axes", "channels", "index", "spacing")
"""Keys of a volume that say how its arrays are read."""


@dataclass(frozen=True)
class FirstVolume:
    """The volume of a first task: where it is, and how it is read."""

    image: str
    labels: Mapping[str, str]
    """Location of each label, by the name that the volume entry gives it."""
    keys: Block = field(default_factory=dict[str, Any])
    """Of `READING_KEYS`, as in a task."""

    @cached_property
    def entry(self) -> VolumeEntry:
        """The validated entry of a task.

        Raises:
            TaskError: a key has a value that it cannot take.
        """
        config = {
            "volume_paths": [self.block],
            "targets": {name: {"kind": "binary"} for name in self.labels},
        }
        record = {"tr_params": {"model_name": "first"}, "dataset_config": config}
        return parse_task(record, "the volume")[0].dataset_config.volume_paths[0]

    @property
    def block(self) -> Block:
        """The entry as JSON values."""
        return {"input": self.image, **self.labels, **copy.deepcopy(self.keys)}

    def open(self, reporter: Reporter | None = None) -> tuple[Volume, list[Volume]]:
        """The image and the labels, of which each has its name as key.

        Args:
            reporter: told when a file is imported.

        Raises:
            VolumeError: one cannot be opened, or their extents differ.
            TaskError: a key has a value that it cannot take, or that fits no array.
        """
        entry = self.entry
        opened = partial(open_array, keys=entry, reporter=reporter)
        place = expand_location(self.image)
        image = opened(place, name=INPUT, channels="any", key="VOLUME")
        labels = [
            opened(expand_location(at), name=name, channels=self._channels(name), key=name)
            for name, at in self.labels.items()
        ]
        arrays = {INPUT: image} | {label.key: label for label in labels}
        require_used(entry, arrays, "VOLUME")
        require_one_order(arrays)
        for label in labels:
            if label.extent != image.extent:
                found = f"{label.shown} has extent {label.extent}, the image {image.extent}"
                raise VolumeError(label.key, found, "give a label on the voxels of the image")
        return image, labels

    def _channels(self, label: str) -> Channels:
        """What is expected of a label: vectors have channels, unless one is chosen."""
        chosen = self.entry.index.get("c")
        is_chosen = chosen is not None and (isinstance(chosen, int) or label in chosen)
        return None if is_chosen else "any"

    def input_keys(self, image: Volume) -> Block:
        """The keys that `inference_params` needs to read the image so."""
        found = keys_of_input(self.entry, image)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def first_task(
    name: str,
    volume: FirstVolume,
    guesses: Sequence[Guess],
    *,
    patch: Shape | None,
    input_keys: Mapping[str, Any] = MappingProxyType({}),
) -> Block:
    """The task as JSON values, with no keys but those that a beginner needs.

    Args:
        name: of the model; its run goes to `runs/<name>`, its predictions to `predictions/<name>`.
        volume: the input and its labels.
        guesses: what the labels are taken for, in their order.
        patch: for a machine without a GPU, as `small_patch`, with a network that learns something in
            minutes; None leaves both to the plan.
        input_keys: those with which the inference reads the input.
    """
    sparse = [k for k, guess in zip(volume.labels, guesses, strict=True) if not guess.is_everywhere]
    thresholds = {"min_bbox_percent": 0.1, "min_labeled_ratio": 0.01} if sparse else {}
    entry = {**volume.block, **({"ref_label": sparse[0]} if sparse else {})}
    task: Block = {
        "tr_params": {
            "model_name": name,
            "ckpt_out_base": f"runs/{name}",
            "max_minutes": FIRST_MINUTES,
            "max_steps_per_epoch": 50,
        },
        "inference_params": {
            "input_path": volume.image,
            **input_keys,
            "output_dir": f"predictions/{name}",
        },
        "dataset_config": {
            **thresholds,
            "volume_paths": [entry],
            "targets": {k: block for guess in guesses for k, block in guess.targets.items()},
        },
    }
    if patch is not None:
        task["tr_params"] |= {"patch_size": list(patch), "initial_lr": SHORT_RATE}
        task["model_config"] = SMALL_NETWORK
    return task


def small_patch(extent: Shape, spacing: Spacing) -> Shape:
    """The largest patch of `SMALL_VOXELS` inside of a volume, physically about a cube.

    A patch that is longer than its volume is padded, and what is padded teaches nothing: cubes of 48
    voxels are padded by more than half in a stack of 20 slices.

    Args:
        extent: voxels of the volume along (z, y, x).
        spacing: voxel size along (z, y, x).
    """
    most = max(max(extent) // 4, SMALL_LENGTH)  # a validation side needs the length of a patch
    longest = [length_at_most(min(n, most)) for n in extent]
    fitting = (p for p in candidates(triple(longest), spacing) if prod(p) <= SMALL_VOXELS)
    return next(fitting)


def guess_targets(name: str, label: Volume) -> Guess:
    """What a label can be learnt as, from its channels and the values that are stored.

    Raises:
        VolumeError: nothing is labelled, or its values fit no kind.
        ChunkError: a chunk cannot be read.
    """
    boxes, is_all = _places(label)
    if label.channels == 1:
        return _guess_values(name, label, boxes, is_all)
    if label.channels == 3:
        return _guess_vectors(name, label, boxes)
    found = f"{label.shown} has {label.channels} channels"
    raise VolumeError(name, found, "give labels of one channel, or vectors of three")


def _places(label: Volume) -> tuple[list[Box], bool]:
    """Boxes to read, in order, at most `MOST_VOXELS` of them together; and whether they are all."""
    stored = islice(label.stored_blocks(), MOST_PLACES + 1)
    boxes = [part for block in stored for part in cut_block(block, label.chunks, MOST_VOXELS)]
    most = max(1, MOST_VOXELS // max((box.voxels for box in boxes), default=1))
    if len(boxes) <= most:
        return boxes, True
    chosen = np.linspace(0, len(boxes) - 1, most).astype(int)
    return [boxes[number] for number in np.unique(chosen)], False


def _guess_values(name: str, label: Volume, boxes: Sequence[Box], is_all: bool) -> Guess:
    """A mask, classes, instances or numbers, by how many values there are and how they lie."""
    values = StoredValues(np.zeros(0, label.dtype))
    for box in boxes:
        values.add(label.read(box))
    if not np.any(values.distinct):
        found = f"{label.shown} holds no labelled voxel in what was read"
        raise VolumeError(name, found, "check the path: 0 is the background")
    is_many = len(values.distinct) > MOST_CLASSES
    if not values.are_whole or (is_many and values.equal_share < LEAST_EQUAL):
        return _numbers(name, values)
    where = "" if is_all else f" in {len(boxes)} places that were read"
    if is_many:
        return _instances(name, values, where)
    return _classes(name, values, where)


@dataclass
class StoredValues:
    """Which values a label holds, and how often neighbours hold the same: ids do, intensities not."""

    distinct: np.ndarray
    """Ascending, in the label's dtype; no more are added from `MOST_VALUES` on."""
    low: float = np.inf
    high: float = -np.inf
    are_whole: bool = True
    pairs: int = 0
    """Labelled voxels that touch along x."""
    equal: int = 0
    """Of these, the pairs with one value."""

    def add(self, block: np.ndarray) -> None:
        """Take in (C, Z, Y, X); what is not finite does not count."""
        found = np.unique(block[np.isfinite(block)])
        if not found.size:
            return
        self.low, self.high = min(self.low, float(found[0])), max(self.high, float(found[-1]))
        self.are_whole &= bool((found == np.floor(found)).all())
        if len(self.distinct) < MOST_VALUES:
            self.distinct = np.union1d(self.distinct, found)
        left, right = block[..., :-1], block[..., 1:]
        is_labelled = (left != 0) & (right != 0)
        self.pairs += int(is_labelled.sum())
        self.equal += int((is_labelled & (left == right)).sum())

    @property
    def equal_share(self) -> float:
        return self.equal / max(1, self.pairs)


def _classes(name: str, stored: StoredValues, where: str) -> Guess:
    """A mask or classes; negative values are what does not count."""
    values = [int(value) for value in stored.distinct]
    ignored = [value for value in values if value < 0]
    classes = sorted({0, *values} - {*ignored})
    block: Block = {"kind": "binary"}
    hints: list[str] = []
    if len(classes) > 2:
        block = {"kind": "multiclass", "channels": len(classes)}
        if classes != list(range(len(classes))):
            block["label_values"] = classes
        hints = [f'where {classes[-1]} means "does not count", give "ignore_label": {classes[-1]}']
    if ignored:
        block["ignore_label"] = ignored if len(ignored) > 1 else ignored[0]
        hints += [f'"ignore_label": {block["ignore_label"]}: negative values do not count']
    shown = ", ".join(map(str, values))
    return Guess({name: block}, f"its values are {shown}{where}", hints)


def _instances(name: str, stored: StoredValues, where: str) -> Guess:
    """Objects, and what finds them with no more keys."""
    block = {"kind": "instances", "recipe": "boundary"}
    reason = f"it holds {len(stored.distinct)} ids or more, up to {stored.high:.0f}{where}"
    hints = [
        'for thin and branched ones, such as neurons, give "recipe": "affinities"',
        f'where 0 means "nobody has looked", give the volume "ref_label": "{name}"',
    ]
    return Guess({name: block}, reason, hints, is_everywhere=True)


def _numbers(name: str, stored: StoredValues) -> Guess:
    """Continuous values; 0 to 255 are probabilities, as image programs store them."""
    low, high = (float(f"{value:.4g}") for value in (stored.low, stored.high))
    reason = f"its values are numbers from {low:g} to {high:g}"
    block: Block = {"kind": "regression", "output_range": [low, high]}
    hints = ["output_range is what was found; values outside of it are cut in integer outputs"]
    if stored.distinct.dtype == np.uint8 and (low, high) == (0, 255):
        block = {"kind": "regression", "encoding": {"scale": 1 / 255}, "activation": "sigmoid"}
        hints = ["0 to 255 are read as 0 to 1"]
    return Guess({name: block}, reason, hints)


def _guess_vectors(name: str, label: Volume, boxes: Sequence[Box]) -> Guess:
    """Unit vectors, as floats or in the usual codes of their dtype."""
    lengths = np.concatenate([np.zeros(0), *(_lengths(label, box) for box in boxes)])
    if not lengths.size:
        found = f"{label.shown} holds no vector in what was read"
        raise VolumeError(name, found, "check the path: zero vectors are not labelled")
    error = float(np.abs(lengths - 1).mean())
    if error > LENGTH_TOLERANCE:
        found = f"{label.location} holds vectors of length {np.median(lengths):.3g}, not of 1"
        remedy = 'write the task by hand, with kind "vector" or "regression" and its keys'
        raise VolumeError(name, found, remedy)
    hints = ['where n and -n mean the same, as for thin sheets, give "orientation": "axial"']
    reason = "its three channels are vectors of length 1"
    return Guess({name: {"kind": "normals", "channels": 3}}, reason, hints)


def _lengths(label: Volume, box: Box) -> np.ndarray:
    """Lengths of the vectors that are stored in a box; those that are unlabelled are left out."""
    stored = label.read(box)
    scale, offset = LINEAR_CODES.get(label.dtype.name, (1.0, 0.0))
    vectors = stored.astype(np.float32) * scale + offset
    lengths = np.sqrt(np.square(vectors).sum(0))
    return lengths[(stored != 0).any(0) & np.isfinite(lengths)].astype(np.float64)
