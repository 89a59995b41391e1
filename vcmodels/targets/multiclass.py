"""Classes: a stored value is the index of its class, or one of `label_values` where there are gaps.

A value is never scaled. Predicted classes are written back with the original values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled
from vcmodels.geometry.boxes import Spacing
from vcmodels.losses import LossBlock
from vcmodels.metrics.overlap import likeliest_class
from vcmodels.reporting import list_some
from vcmodels.targets.base import Target
from vcmodels.targets.census import Census, Misfit
from vcmodels.targets.stored import check_dtype, countable, refuse_first

Averaged = Literal["probabilities", "logits"]
TINY = 1e-30
"""The least probability that has a logarithm here."""
WEIGHT_RANGE = (0.1, 10.0)
"""Least and largest class weight that counting gives: a class of a few voxels must not outweigh all
others."""
CLASS_DTYPES = ("uint8", "uint16", "int8", "int16", "int32", "float16", "float32")
# Okabe & Ito's palette (distinct for the colour-blind), class 0 black; it repeats after 8.
COLOURS = np.array(
    [
        (0.00, 0.00, 0.00),
        (0.90, 0.62, 0.00),
        (0.34, 0.71, 0.91),
        (0.00, 0.62, 0.45),
        (0.94, 0.89, 0.26),
        (0.00, 0.45, 0.70),
        (0.84, 0.37, 0.00),
        (0.80, 0.47, 0.65),
        (0.75, 0.75, 0.75),
    ],
    np.float32,
)


ClassPair = Annotated[tuple[int, int], Field(strict=False)]
"""The values of two classes."""


class MulticlassTarget(Target):
    """Mutually exclusive classes; the prediction is one probability per class."""

    kind: Literal["multiclass"] = "multiclass"
    """Mutually exclusive classes, class 0 being the background."""
    channels: Annotated[int, Field(ge=2, le=4096)] = 2
    """How many classes there are, background included."""
    activation: Literal["softmax"] = "softmax"
    """Applied to the output."""
    label_values: list[int] | None = None
    """The stored value of each class, background first; 0, 1, 2... when left out."""
    remap: dict[int, int] | None = None
    """{stored value: value of a class}: read as another class, to merge classes or to rename them,
    all at once; what is not named stays as it is. Outputs hold the new values."""
    mirror_pairs: dict[Literal["z", "y", "x"], list[ClassPair]] = Field(default_factory=dict)
    """By axis, the classes (their values) that are exchanged by a mirror along it, such as a left
    and a right one: {"x": [[1, 2]]}; in augmentation, and back in views of `tta`."""
    output: Literal["classes", "probabilities"] = "classes"
    """What inference writes: the value of the likeliest class, or one channel per class."""
    averages: Averaged = "probabilities"
    """What patches, views and checkpoints are averaged in, and voxels interpolated; nnU-Net has `logits`."""

    drawn_as: ClassVar[Literal["colours", "outlines"]] = "outlines"
    metric: ClassVar[str] = "dice"
    default_loss: ClassVar[LossBlock] = {"ce": 1.0, "soft_dice": 1.0}
    predicts: ClassVar[Compared] = "classes"
    label_keys: ClassVar[frozenset[str]] = frozenset({"loss_only_on_label", "label_smoothing"})

    @model_validator(mode="after")
    def _check_label_values(self) -> Self:
        values = self.label_values
        if values is not None and (len(values) != self.channels or len(set(values)) != len(values)):
            raise ValueError(
                f"label_values must name {self.channels} different values, one per channel, "
                f"got {values}"
            )
        return self

    @model_validator(mode="after")
    def _check_remap(self) -> Self:
        for stored, value in (self.remap or {}).items():
            if value not in self.values:
                found = f"remap reads {stored} as {value}, which is no class"
                raise FaultError(found, self._listed_classes)
        return self

    @model_validator(mode="after")
    def _check_mirror_pairs(self) -> Self:
        for axis, pairs in self.mirror_pairs.items():
            named = [value for pair in pairs for value in pair]
            for value in named:
                where = f"mirror_pairs.{axis} names {value}"
                if value not in self.values:
                    raise FaultError(f"{where}, which is no class", self._listed_classes)
                if value == self.values[0]:
                    raise FaultError(f"{where}, the background", "it has no other side")
                if named.count(value) > 1:
                    raise FaultError(f"{where} twice", "give each class one partner")
        return self

    @model_validator(mode="after")
    def _check_class_weights(self) -> Self:
        for term in self.losses:
            weights = term.options.get("class_weights")
            if isinstance(weights, list) and len(weights) != self.channels:
                raise ValueError(
                    f"class_weights must hold {self.channels} numbers, one per channel, "
                    f"got {len(weights)}"
                )
        return self

    @property
    def _listed_classes(self) -> str:
        return f"the classes are {_shorten(self.values)}"

    @property
    def values(self) -> list[int]:
        """The stored value of each class."""
        return list(range(self.channels)) if self.label_values is None else self.label_values

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The index of each voxel's class, as float32; 0 where not valid."""
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        index = self._classes_of(stored)
        unknown = (index < 0) & valid
        if unknown.any():
            refuse_first(unknown, stored, self._remedy)
        return np.where(valid, index, 0).astype(np.float32), valid

    @property
    def _remedy(self) -> str:
        return (
            f"{self._listed_classes}; "
            'correct "channels", "label_values" or "remap", or name it in "ignore_label"'
        )

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Values that are no class."""
        low, high = census.range(self.ignored)
        if census.figures.fractions:
            found = f"holds fractions, from {low:.4g} to {high:.4g}"
            yield Misfit(found, "classes are whole numbers; give a label that holds such")
            return
        skipped = {*self.ignored, *((0,) if self.loss_only_on_label else ())}
        counts = {float(v): n for v, n in census.counts.items() if n and v not in skipped}
        if census.together:
            seen = {low: 0, high: 0, **(census.figures.constants or {})}
            counts |= {v: n for v, n in seen.items() if v and v not in counts and v not in skipped}
        stored = np.array(sorted(counts), np.float64)
        unknown = stored[self._classes_of(stored) < 0].tolist()
        unknown.sort(key=lambda value: (value == 0, -counts[value]))
        shown = [
            f"{v:g}" + (f" in {census.share(counts[v])}" if counts[v] else "") for v in unknown
        ]
        if unknown:
            yield Misfit(f"holds {list_some(shown, 3)}", self._remedy, value=unknown[0])

    def classes_of(self, census: Census) -> dict[str, int] | None:
        """Voxels by the value of the class."""
        if census.together:
            return None
        skipped = {*self.ignored, *((0,) if self.loss_only_on_label else ())}
        found = dict.fromkeys(map(str, self.values), 0)
        for value, count in census.counts.items():
            index = int(self._classes_of(np.array([value]))[0])
            if value not in skipped and index >= 0:
                found[str(self.values[index])] += count
        return found

    def class_of(self, value: int) -> str | None:
        """The value of the class."""
        index = int(self._classes_of(np.array([value]))[0])
        return None if value in self.ignored or index < 0 else str(self.values[index])

    def class_misfits(
        self, voxels: Mapping[str, int], censuses: Sequence[Census]
    ) -> Iterator[Misfit]:
        """Classes without a voxel; all but one are too many."""
        del censuses
        absent = [int(name) for name, count in voxels.items() if not count]
        if len(absent) >= len(voxels) - 1:
            held = next((name for name, count in voxels.items() if count), None)
            found = (
                "no voxel counts" if held is None else f"all voxels that count are of class {held}"
            )
            remedy = 'check its path, bbox, "label_values" and "ignore_label"'
            yield Misfit(f"{found}: there is nothing to tell apart", remedy)
        elif absent:
            found = f"no voxel is of class {_shorten(absent)}, which is not learnt"
            yield Misfit(found, 'correct "channels" or "label_values"', is_fatal=False)

    def suspects(self, census: Census) -> Mapping[float, int]:
        """None: each value is a class, or refused."""
        del census
        return {}

    def _classes_of(self, stored: np.ndarray) -> np.ndarray:
        """The index of the class of each stored value, `remap` applied; -1 where it is none."""
        if not self.remap:
            return _positions(stored, self.values)
        classes = {value: index for index, value in enumerate(self.values)}
        read_as = classes | {old: classes[new] for old, new in self.remap.items()}
        indices = np.array([*read_as.values(), -1], np.int32)
        return indices[_positions(stored, list(read_as))]

    def spread(self, label: Tensor) -> Tensor:
        """One-hot without the background: voxels that do not count (0 everywhere) stay nothing."""
        classes = torch.arange(1, self.channels, device=label.device).view(-1, 1, 1, 1)
        return (label == classes).float()

    def settle(self, spread: Tensor) -> Tensor:
        """The class with the largest share; the background has what the others leave."""
        background = 1 - spread.sum(-4, keepdim=True)
        return likeliest_class(torch.cat([background, spread], dim=-4)).float()

    @property
    def follows_warps(self) -> bool:
        """No: a rotation below 90 degrees and a warp make no mirror image."""
        return False

    @property
    def paired_axes(self) -> frozenset[int]:
        return frozenset("zyx".index(axis) for axis, pairs in self.mirror_pairs.items() if pairs)

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """Exchange the `mirror_pairs` of each axis that runs backwards.

        Args:
            label: (1, Z, Y, X) indices of classes, or a channel for each class: all, as of logits,
                or all but the background, as from `spread`.
            valid: (V, Z, Y, X) bool.
            jacobian: of a mirror or turn; one that varies from voxel to voxel mirrors nothing.
            spacing: has no say.
        """
        del spacing
        order = self._mirrored_classes(jacobian)
        if order == list(range(self.channels)):
            return label, valid
        if len(label) == 1:
            return label.new_tensor(order)[label.long()], valid
        with_background = len(label) == self.channels
        return label[order if with_background else [n - 1 for n in order[1:]]], valid

    def _mirrored_classes(self, jacobian: Tensor) -> list[int]:
        """For each class the one in whose place it is: its partner, or its own."""
        order = list(range(self.channels))
        for axis, pairs in self.mirror_pairs.items():
            place = "zyx".index(axis)
            if jacobian.ndim == 2 and float(jacobian[place, place]) < 0:
                for pair in pairs:
                    one, other = map(self.values.index, pair)
                    order[one], order[other] = order[other], order[one]
        return order

    @property
    def needs_counts(self) -> bool:
        """Whether `class_weights` waits for the voxels of each class to be counted."""
        return any(term.options.get("class_weights") == "counted" for term in self.losses)

    @property
    def weighs_classes(self) -> bool:
        """Whether a loss has `class_weights`."""
        return any(term.options.get("class_weights") for term in self.losses)

    def with_counts(self, counts: np.ndarray) -> "MulticlassTarget":
        """The same with class weights in the place of "counted": median frequency balancing.

        The weight of a class is the median over all classes that occur of the number of their
        voxels, divided by its own (Eigen & Fergus 2015, arXiv:1411.4734, section 6.3.2; with the
        training data as one image), within `WEIGHT_RANGE`; 1 for a class that does not occur.

        Args:
            counts: (C,) labelled voxels of each class.

        Raises:
            ValueError: there is not one count for each class, or all are 0.
        """
        counts = np.asarray(counts, np.float64)
        if counts.shape != (self.channels,) or not counts.any():
            raise ValueError(f"needs {self.channels} counts, not all 0, got {counts}")
        occurs = counts > 0
        weights = np.ones(self.channels)
        weights[occurs] = (np.median(counts[occurs]) / counts[occurs]).clip(*WEIGHT_RANGE)
        found = weights.round(4).tolist()
        return self._with_class_weights(lambda given: found if given == "counted" else given)

    def scaled_to(self, counts: np.ndarray) -> "MulticlassTarget":
        """The same with class weights whose mean over the training voxels is 1.

        A common factor of all weights then has no effect, and the loss stays as large as without
        them, though a patch of one class alone keeps its weight.

        Args:
            counts: (C,) labelled voxels of each class; when all are 0, nothing changes.
        """

        def scaled(weights: list[float]) -> list[float]:
            mean = np.dot(weights, counts) / max(counts.sum(), 1)
            return [weight / mean for weight in weights] if mean > 0 else weights

        return self._with_class_weights(scaled)

    def _with_class_weights(self, change: Callable[[Any], Any]) -> "MulticlassTarget":
        """The same with other `class_weights` in each loss that has them."""
        assert isinstance(self.loss, dict), "options are given in a dictionary only"
        loss = {
            name: options | {"class_weights": change(options["class_weights"])}
            if isinstance(options, dict) and options.get("class_weights")
            else options
            for name, options in self.loss.items()
        }
        return self.model_copy(update={"loss": loss})

    @property
    def is_categorical(self) -> bool:
        return self.output == "classes"

    def blendable(self, logits: Tensor) -> Tensor:
        """Probabilities, or logits."""
        return logits.float() if self.averages == "logits" else logits.float().softmax(1)

    def unblend(self, blended: Tensor) -> Tensor:
        """Probabilities."""
        return blended.softmax(-4) if self.averages == "logits" else blended

    def averageable(self, prediction: Tensor) -> Tensor:
        """Probabilities, or their logarithms: logits but for what all classes have in common."""
        return prediction.clamp_min(TINY).log() if self.averages == "logits" else prediction

    @property
    def deviation_scale(self) -> tuple[float, str]:
        """Views that are each sure of another class are nearly 1 from their mean."""
        return 1.0, "probability"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The stored values."""
        return tuple(str(value) for value in self.values[1:])

    @property
    def meaning(self) -> dict[str, Any]:
        quantity = "class" if self.output == "classes" else "probability"
        return {"quantity": quantity, "label_values": self.values}

    def output_channels(self, dtype: np.dtype) -> int | None:
        if self.output == "probabilities":
            super().output_channels(dtype)
            return self.channels
        fits = [name for name in CLASS_DTYPES if _holds(np.dtype(name), self.values)]
        check_dtype(dtype, tuple(fits), f"label values are {_shorten(self.values)}")
        return None

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """The likeliest class's value, or round(max * p) per class; NaN is never the likeliest."""
        if self.output == "probabilities":
            return super().encode(prediction, dtype)
        self.output_channels(dtype)
        return np.asarray(self.values).astype(dtype)[likeliest_class(prediction).cpu().numpy()]

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        if self.output == "probabilities":
            return super().encoding(dtype)
        return {"kind": self.kind, **self.meaning}

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Probabilities; from stored classes, 1 for the class and 0 for the others."""
        if self.output == "probabilities":
            return super().decode(stored)
        index = _positions(stored, self.values)
        return (index == np.arange(self.channels).reshape(-1, 1, 1, 1)).astype(np.float32)

    def as_prediction(self, label: Tensor) -> Tensor:
        """Probability 1 for the labelled class."""
        classes = torch.arange(self.channels, device=label.device).view(-1, 1, 1, 1)
        return (label == classes).float()

    @property
    def least_confidence(self) -> float | None:
        return 1 / self.channels if self.output == "probabilities" else None

    def confidence(self, prediction: np.ndarray) -> np.ndarray:
        """The probability of the likeliest class."""
        return prediction.max(axis=0, keepdims=True)

    def unreadable(self, writer: Target) -> str | None:
        """Any classes are: their values are read as stored ones."""
        is_other = writer.kind_name != self.kind_name
        return f'no label of kind "{self.kind_name}"' if is_other else None

    def plain_label(self, prediction: np.ndarray, writer: Target) -> np.ndarray:
        """The value of the likeliest class; NaN where none has a share."""
        assert isinstance(writer, MulticlassTarget)
        values = np.array(writer.values, np.float32)
        likeliest = values[prediction.argmax(axis=0)][None]
        return np.where(prediction.max(axis=0, keepdims=True) > 0, likeliest, np.float32(np.nan))

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """One fixed colour per class, class 0 black."""
        index = prediction.argmax(0)
        return COLOURS[np.where(index == 0, 0, (index - 1) % (len(COLOURS) - 1) + 1)]


def _positions(stored: np.ndarray, values: list[int]) -> np.ndarray:
    """The position in `values` of each stored value, int32; -1 where it is none of them."""
    wanted = np.asarray(values)
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        # A table of every code: 20 times faster than a search.
        limits = np.iinfo(stored.dtype)
        table = np.full(limits.max - limits.min + 1, -1, np.int32)
        inside = (wanted >= limits.min) & (wanted <= limits.max)
        table[wanted[inside]] = np.flatnonzero(inside)  # A negative value counts from the end...
        return table[stored]  # ...and so does a negative code.
    order = np.argsort(wanted)
    place = np.searchsorted(wanted[order], stored).clip(max=len(wanted) - 1)
    return np.where(wanted[order][place] == stored, order[place], -1).astype(np.int32)


def _holds(dtype: np.dtype, values: list[int]) -> bool:
    """Whether `dtype` stores every value exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((np.asarray(values).astype(dtype).astype(np.float64) == values).all())


def _shorten(values: list[int]) -> str:
    """The values as text, the middle left out when there are many."""
    if len(values) <= 10:
        return ", ".join(map(str, values))
    return f"{values[0]}, {values[1]}, ... {values[-1]} ({len(values)} values)"
