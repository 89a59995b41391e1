"""The contract of a target kind: everything the rest of the code asks of one.

A kind is one file: what its head predicts, how stored labels become tensors, how its values change
under a geometric transform, and its encoding on disk. It must say

- `predicts`, `default_loss`, `metric`: what is compared, with what, and which figure counts;
- `read_label`: stored labels as tensors, and the voxels that count;
- `blendable`: what of its logits overlapping patches average;
- `meaning`: what stored predictions are, for whoever reads them;
- `picture`: how people see them.

The rest has defaults, right for scalars in [0, 1] that no transform changes.

Shapes: S channels stored on disk, L in the label tensor, M where it is resampled, C logits, A
blended, P predicted. `valid` has V channels: 1, or L where each channel may be unknown on its own.

A label comes from a stored array (`read_label`), or it is derived from the array of another label
(`derive`): that one is read and moved as ids, with a margin, and `derive_label` computes from them
after the geometric augmentation, so that the label is right for any transform.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses.agreement import class_divergence, mask_divergence, value_distance
from vcmodels.losses.masked import keep_valid
from vcmodels.losses.registry import LOSSES, LossBlock, LossTerm, parse_loss
from vcmodels.metrics.base import Curve, Metrics, Sense, Sums
from vcmodels.metrics.registry import (
    curves,
    fitting_metrics,
    measure,
    senses,
    summarise,
)
from vcmodels.section import Fraction, Section
from vcmodels.targets.census import (
    Census,
    Misfit,
    isolated,
    mask_misfits,
    mask_suspects,
    unstorable,
)
from vcmodels.targets.stored import ForegroundRule, StoredTarget

Interpolation = Literal["nearest", "linear"]


class Scoring(Section):
    """The part of a target that compares predictions with labels.

    A kind says what it `predicts` and which `metric` counts; the rest has defaults.
    """

    predicts: ClassVar[Compared]
    """What losses and metrics must compare; all that do are allowed, but for the excluded ones."""
    metric: ClassVar[str]
    """The figure that shows best how good a prediction is."""
    excluded_metrics: ClassVar[frozenset[str]] = frozenset()
    """Metrics that compare what the kind predicts and say little about it."""

    def comparable(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction and label in the form that metrics compare: see `Compared`.

        Args:
            prediction: (B, P, Z, Y, X) float32, as from `unblend` or `decode`.
            label: (B, L, Z, Y, X) float32.
        """
        return prediction, label

    @property
    def class_names(self) -> tuple[str, ...]:
        """What figures of single classes are named after: all classes but the background."""
        return ()

    @property
    def metrics(self) -> Metrics:
        """The metrics of this target, by name."""
        fitting = fitting_metrics(self.predicts)
        return {name: m for name, m in fitting.items() if name not in self.excluded_metrics}

    @property
    def figures(self) -> dict[str, Sense]:
        """The figures that `summarise` returns, and whether less or more of each is better."""
        return senses(self.metrics, self.class_names)

    def measure(self, prediction: Tensor, label: Tensor, valid: Tensor) -> Sums:
        """Sums over the valid voxels from which `summarise` computes the figures.

        Args:
            prediction: (B, P, Z, Y, X) float32, as from `unblend` or `decode`.
            label: (B, L, Z, Y, X) float32.
            valid: (B, V, Z, Y, X) bool.
        """
        return measure(self.metrics, *self.comparable(prediction, label), valid)

    def curves(self, sums: Sums) -> dict[str, Curve]:
        """Lines of all that was measured, by title, for people."""
        return curves(self.metrics, sums, self.class_names)

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Figures of all that was measured; NaN where nothing was valid."""
        return summarise(self.metrics, sums, self.class_names)


class Target(Scoring, StoredTarget):
    """Keys that every kind shares. `tr_params` fills the ones that are left out."""

    model_config = ConfigDict(serialize_by_alias=True)  # `label_encoding` is "encoding" in JSON

    channels: Annotated[int, Field(ge=1, le=4096)] = 1
    """Channels of the head."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of this target's loss in the sum over targets."""
    loss: LossBlock | None = None
    """A loss, or several as {name: weight} or {name: {"weight": ..., option: ...}}; the kind's own
    when left out."""
    derive: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Name of the label that this one is computed from (a mask or instance ids): a target, or a
    key of the volumes that is none."""
    label_interpolation: Interpolation | None = None
    """How a rotation or warp resamples the label: `nearest` or `linear` (classes and masks by their
    shares, axes as tensors); the kind's own way when null."""
    ignore_label: int | list[int] | None = None
    """Stored value(s) that mean "do not count": no gradient and no metric weight there."""
    foreground: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Which stored values are foreground, as ">= 0.5" or "== 1, 3" (also >, <=, <, !=), for masks and
    for a mask that others are derived from; every value above 0 when null."""
    loss_only_on_label: bool | None = None
    """Count only voxels where this target's stored label is not zero."""
    label_smoothing: Fraction | None = None
    """Pull hard labels this far towards uniform in the training loss; kinds with hard labels."""
    dilate_label: Annotated[int, Field(ge=0, le=64)] | bool | None = None
    """Grow a mask by a ball of this radius in voxels (true is 1) when it is read; kind `binary`."""

    default_loss: ClassVar[LossBlock]
    excluded_losses: ClassVar[frozenset[str]] = frozenset()
    """Losses that compare what the kind predicts and still do not suit it."""
    default_interpolation: ClassVar[Interpolation] = "nearest"
    is_derivable: ClassVar[bool] = False
    """Whether `derive` is understood."""
    label_keys: ClassVar[frozenset[str]] = frozenset({"loss_only_on_label"})
    """Of `loss_only_on_label`, `label_smoothing`, `dilate_label` and, for a label that is stored,
    `foreground` those that change something."""
    may_mean_suspects: ClassVar[bool] = True
    """Whether a value among the `suspects` may be a label after all."""
    drawn_as: ClassVar[Literal["colours", "outlines"]] = "colours"
    """How people see it best: a field of colours, or regions outlined on the image."""

    @classmethod
    def allowed_losses(cls) -> frozenset[str]:
        """Names of the losses that the kind may be trained with."""
        fitting = {name for name, loss in LOSSES.items() if loss.fits(cls.predicts)}
        return frozenset(fitting - cls.excluded_losses)

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: LossBlock | None) -> LossBlock | None:
        names = [loss] if isinstance(loss, str) else loss or ()
        for name in names:
            if name not in cls.allowed_losses():
                allowed = ", ".join(sorted(cls.allowed_losses()))
                raise FaultError(f'no loss "{name}" for this kind', f"choose from {allowed}")
        if loss is not None:
            parse_loss(loss)
        return loss

    @field_validator("foreground")
    @classmethod
    def _check_foreground(cls, text: str | None) -> str | None:
        if text is not None:
            ForegroundRule.parse(text)
        return text

    @field_validator("loss_only_on_label", "label_smoothing", "dilate_label")
    @classmethod
    def _check_label_key(cls, value: float | bool | None, info: ValidationInfo) -> object:
        if value and info.field_name not in cls.label_keys:
            kind = cls.model_fields["kind"].default
            raise FaultError(f'kind "{kind}" has no use for {info.field_name}', "leave it out")
        return value

    @model_validator(mode="after")
    def _check_derive(self) -> Self:
        if self.derive is not None and not self.is_derivable:
            raise FaultError("this kind cannot be derived from another label", "leave out derive")
        if self.foreground is not None and not (self.derive or "foreground" in self.label_keys):
            kind = type(self).model_fields["kind"].default
            raise FaultError(f'a stored label of kind "{kind}" is no mask', "leave out foreground")
        return self

    # --- the label: from the disk, or from another label, through a geometric transform

    @property
    def ignored(self) -> tuple[int, ...]:
        """The values of `ignore_label`."""
        values = self.ignore_label
        return tuple(values) if isinstance(values, list) else () if values is None else (values,)

    @property
    def comparison(self) -> ForegroundRule | None:
        """What `foreground` states."""
        return None if self.foreground is None else ForegroundRule.parse(self.foreground)

    @property
    def annotated(self) -> ForegroundRule | None:
        """Which stored values mark what patches are chosen for; None: all but 0 and the ignored.

        That is the foreground, unless 0 is part of it, or is ignored: then every other value is an
        annotation, of the background too.
        """
        found = self.comparison
        return None if found is None or 0 in self.ignored or found.meets(0) else found

    @property
    def label_margin(self) -> int:
        """Voxels around a patch that `read_label` needs to be right up to the border."""
        return 0

    @abstractmethod
    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn stored values into what the loss takes.

        Args:
            stored: (S, Z, Y, X), the dtype on disk; S is 1 without a channel axis.

        Returns:
            label: (L, Z, Y, X) float32, finite everywhere, 0 where not valid.
            valid: (V, Z, Y, X) bool; false on the ignore label, on NaN, and where the kind's own
                code for "unlabelled" stands. `loss_only_on_label` is honoured here.

        Raises:
            ValueError: a value that the kind cannot have; the message names it and its (z, y, x).
        """

    def source_margin(self, spacing: Spacing) -> Shape:
        """Voxels around a patch, on each side, that `derive_label` needs of its source."""
        del spacing
        return (0, 0, 0)

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """Compute the label of a patch from another label around it.

        The result is the crop of what the whole volume would give: nothing outside the margin may
        change it.

        Args:
            source: (1, Z + 2m, Y + 2m, X + 2m) float32, m being `source_margin`: whole numbers, 0
                for the background, any other for an instance (1 for a mask).
            valid: (1, ...) bool of the same shape; false where the source is ignored, and outside
                of the volume.
            spacing: length of a voxel along (z, y, x).

        Returns:
            label (L, Z, Y, X) float32, 0 where not valid, and valid (V, Z, Y, X), as from
            `read_label`.
        """
        raise NotImplementedError(f"{type(self).__name__} is not derivable")

    def idle_keys(self) -> Mapping[str, str]:
        if self.derive is None:
            return {}
        return {"label_interpolation": "the label is derived after what rotates and warps"}

    @property
    def interpolation(self) -> Interpolation:
        """How the label is resampled by a free rotation or an elastic warp."""
        return self.label_interpolation or self.default_interpolation

    @property
    def turns_freely(self) -> bool:
        """Whether a label may be rotated, scaled and warped; otherwise only mirrored and turned."""
        return True

    @property
    def follows_warps(self) -> bool:
        """Whether `turn` changes values under a rotation or a warp, and needs its Jacobians."""
        return type(self).turn is not Target.turn

    @property
    def sided(self) -> Literal["values", "vectors"] | None:
        """What of a label, after `spread`, may tell a volume from its mirror image.

        `values` move with their voxels, `vectors` (z, y, x) turn as well. None: nothing does, as of
        axes, whose two ends are alike.
        """
        return "values"

    @property
    def paired_axes(self) -> frozenset[int]:
        """Axes (0, 1, 2 for z, y, x) under whose mirror `turn` exchanges classes."""
        return frozenset()

    def spread(self, label: Tensor) -> Tensor:
        """What of a label may be averaged: (L, Z, Y, X) -> (M, Z, Y, X), for `linear` resampling."""
        return label

    def settle(self, spread: Tensor) -> Tensor:
        """Undo `spread` after averaging: (M, Z, Y, X) -> (L, Z, Y, X), a label again."""
        return spread

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """Change the *values* of a label, or of logits, whose voxels have already been moved.

        Args:
            label: (L or C, Z, Y, X) float32.
            valid: (V, Z, Y, X) bool.
            jacobian: (3, 3), or (3, 3, Z, Y, X), of the sampling map (output position -> input
                position) in physical units, axes (z, y, x).
            spacing: length of a voxel along (z, y, x), in the same unit.

        Returns:
            label and valid in the turned frame. Scalars do not change; vectors override this.
        """
        del jacobian, spacing
        return label, valid

    # --- what a stored label holds, before it is learnt

    def misfits(self, census: Census) -> Iterator[Misfit]:
        """What a label holds that cannot be, or is hardly meant; its own, or the one of `derive`."""
        if self.derive is None:
            yield from self._code_misfits(census, self.unlabelled_codes, self.suspects(census))
            yield from self.stored_misfits(census)
            return
        rules = census, self.ignored, self.foreground
        yield from self._code_misfits(census, self.ignored, mask_suspects(*rules))
        yield from mask_misfits(*rules)

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """What the kind's own stored label holds that this kind cannot mean."""
        del census
        yield from ()

    def suspects(self, census: Census) -> Mapping[float, int]:
        """Voxels by value, of values that may mean "unlabelled" and are read as something else."""
        return isolated(census, self.ignored)

    @property
    def unlabelled_codes(self) -> tuple[int, ...]:
        """Stored values of which the task says that they do not count."""
        return self.ignored

    def classes_of(self, census: Census) -> dict[str, int] | None:
        """How many voxels that count are of which class; None if the kind has none, or unknown."""
        del census
        return None

    def class_of(self, value: int) -> str | None:
        """The class of a stored value, named as in `classes_of`; None for those that none is missed."""
        del value
        return None

    def class_misfits(
        self, voxels: Mapping[str, int], censuses: Sequence[Census]
    ) -> Iterator[Misfit]:
        """What is wrong with the classes of all volumes together.

        Args:
            voxels: as from `classes_of`, summed.
            censuses: of the volumes.
        """
        del voxels, censuses
        yield from ()

    def _code_misfits(
        self, census: Census, codes: Sequence[int], suspects: Mapping[float, int]
    ) -> Iterator[Misfit]:
        """Codes for "unlabelled" that no voxel has, and values that look like such a code."""
        lost = unstorable(codes, census.dtype)
        suspects = {value: n for value, n in suspects.items() if float(value).is_integer()}
        held = {**census.counts, **(census.figures.constants or {})}
        absent = [code for code in codes if not held.get(code)]
        shown = ", ".join(map(str, absent))
        if absent and suspects:
            likely = next((lost[c] for c in absent if lost.get(c) in suspects), None)
            value = max(suspects, key=lambda v: suspects[v]) if likely is None else likely
            why = f", which {census.dtype} cannot store" if set(absent) & lost.keys() else ""
            found = (
                f"holds {value:g} in {census.share(suspects[value])}, but not the ignored {shown}"
            )
            remedy = f'give "ignore_label": {value:g}{self._or_keep}'
            yield Misfit(found + why, remedy, value=value)
            return
        for value, count in suspects.items():
            found = f"holds {value:g} in {census.share(count)}, read as a label"
            remedy = f'if it means "not annotated", give "ignore_label": {value:g}{self._or_keep}'
            yield Misfit(found, remedy, is_fatal=not self.may_mean_suspects, value=value)
        if lost and len(absent) == len(codes):
            found = f"is of {census.dtype}, which cannot store the ignored {shown}"
            yield Misfit(found, "correct ignore_label, or leave it out", is_fatal=False)

    @property
    def _or_keep(self) -> str:
        """How a suspect is kept as a label, for a message."""
        is_mask = self.derive is not None or "foreground" in self.label_keys
        return ', or "foreground": "> 0" to keep it' if is_mask else ""

    # --- the loss

    @property
    def losses(self) -> tuple[LossTerm, ...]:
        """The losses with their weights and options."""
        return parse_loss(self.default_loss if self.loss is None else self.loss)

    def loss_input(self, loss: str, logits: Tensor) -> Tensor:
        """What the loss of this name takes: the logits, or their activation. Same shape."""
        del loss
        return logits

    def compute_loss(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        weight: Tensor | None = None,
        *,
        is_part: bool = False,
    ) -> Tensor:
        """The weighted sum of this target's losses over the valid voxels.

        Args:
            logits: (B, C, Z, Y, X) float32.
            label: (B, L, Z, Y, X) float32, as from `read_label`.
            valid: (B, V, Z, Y, X) bool.
            weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X) float32, 0 or more: how much samples or
                voxels count; all alike when None.
            is_part: whether this is one of several patches whose losses, each times its valid
                voxels, are added up: then class weights are not divided by their sum over it.

        Returns:
            Scalar float32; 0 with zero gradient when no voxel is valid.
        """
        # Before an activation: the gradient of a sigmoid at NaN is NaN, and 0 times that too.
        logits = keep_valid(logits, valid)
        smoothing = self.label_smoothing or 0.0
        terms = [
            term(
                self.loss_input(term.name, logits), label, valid, weight, smoothing, is_part=is_part
            )
            for term in self.losses
        ]
        return torch.stack(terms).sum()

    # --- the prediction: of overlapping patches, of several views, at coarser levels

    @abstractmethod
    def blendable(self, logits: Tensor) -> Tensor:
        """What overlapping patches may average: (B, C, Z, Y, X) logits -> (B, A, Z, Y, X) float32."""

    @property
    def blend_channels(self) -> int:
        """A: how many channels `blendable` returns."""
        return self.channels

    def unblend(self, blended: Tensor) -> Tensor:
        """The prediction, (A, Z, Y, X) or (B, A, Z, Y, X) averages -> the same with P channels."""
        return blended

    def dispersion(self, mean: Tensor, variance: Tensor) -> Tensor:
        """How far predictions of one voxel lie apart, squared: their uncertainty.

        Args:
            mean: (B, A, Z, Y, X), of the `blendable` values of all predictions.
            variance: (B, A, Z, Y, X), of the same.

        Returns:
            (B, 1, Z, Y, X) float32, 0 or more, in the unit of `deviation_scale` squared. Here the
            mean squared distance from the mean of all channels together.
        """
        del mean
        return variance.sum(1, keepdim=True)

    # --- what another network says of the same voxels

    def disagreement(self, logits: Tensor, blended: Tensor) -> Tensor:
        """How far logits are from another network's predictions: see `losses.agreement`.

        Args:
            logits: (B, C, Z, Y, X), of the one that learns.
            blended: (B, A, Z, Y, X) float32: the mean `blendable` of one or several others, which
                get no gradient.

        Returns:
            (B, V, Z, Y, X) float32, 0 where they agree; V is 1, or C where each channel is a
            prediction of its own.
        """
        if self.predicts == "masks":
            return mask_divergence(logits, blended)
        if self.predicts == "classes":
            return class_divergence(logits, blended)
        return value_distance(self.blendable(logits), blended)

    def certainty(self, blended: Tensor) -> Tensor:
        """How sure predictions are, in [0, 1]; 0 says that there is none.

        Of masks the probability of the likelier side, of classes that of the likeliest; 1 for what
        says nothing of it.

        Args:
            blended: as for `disagreement`.

        Returns:
            (B, V, Z, Y, X) float32.
        """
        if self.predicts == "masks":
            return torch.maximum(blended, 1 - blended)
        if self.predicts == "classes":
            return blended.amax(1, keepdim=True)
        return torch.ones_like(blended[:, :1])

    @property
    def deviation_scale(self) -> tuple[float, str]:
        """What the largest code of an integer stands for in a stored root of `dispersion`; its unit."""
        return 0.5, "probability"

    @property
    def is_categorical(self) -> bool:
        """Whether stored predictions are ids, of which a coarser level keeps the most frequent."""
        return False

    def averageable(self, prediction: Tensor) -> Tensor:
        """What of decoded predictions a coarser level averages, for `unblend` to turn back.

        (P, Z, Y, X) float32 -> (A, Z, Y, X) float32.
        """
        return prediction

    # --- a prediction of ours, as a label

    @property
    def kind_name(self) -> str:
        """The name of the kind."""
        return type(self).model_fields["kind"].default

    @property
    def least_confidence(self) -> float | None:
        """How sure stored predictions are at least; None where they do not say: see `confidence`."""
        return None

    def confidence(self, prediction: np.ndarray) -> np.ndarray:
        """How sure predictions are, up to 1: (P, Z, Y, X) -> (1 or P, Z, Y, X) float32."""
        raise NotImplementedError(f"{type(self).__name__} predicts no confidence")

    def unreadable(self, writer: "Target") -> str | None:
        """Why a stored prediction of another target is no label of this one; None where it is one."""
        if writer.kind_name != self.kind_name:
            return f'no label of kind "{self.kind_name}"'
        if writer.channels != self.channels:
            return f"it has {writer.channels} channels, the target {self.channels}"
        mine, meant = self.meaning, writer.meaning
        for key in mine.keys() - {"vector_order"}:
            if meant.get(key) != mine[key]:
                return f"its {key} is {meant.get(key)}, that of the target {mine[key]}"
        return None

    @property
    def stored_metrics(self) -> Metrics:
        """Those of `metrics` that mean something of stored predictions: classes have no probability."""
        return {
            name: metric
            for name, metric in self.metrics.items()
            if not (self.is_categorical and getattr(metric, "needs_probabilities", False))
        }

    def plain_label(self, prediction: np.ndarray, writer: "Target") -> np.ndarray:
        """A prediction as a stored label of this target: (P, Z, Y, X) -> (S, Z, Y, X) float32.

        NaN where nothing is predicted. `read_label` then applies the target's own encoding, so that
        is undone here.
        """
        del writer
        code = getattr(self, "label_encoding", None)
        return prediction if code is None else (prediction - code.offset) / (code.scale or 1)

    # --- what people see

    def as_prediction(self, label: Tensor) -> Tensor:
        """The label as a perfect prediction would be: (B, L, Z, Y, X) -> (B, P, Z, Y, X)."""
        return label

    @property
    def glyph(self) -> Literal["arrow", "line"] | None:
        """How a person sees the label's vectors: by arrows, or by lines where the sign means nothing.

        None for labels that are no vectors; the others have the components (z, y, x).
        """
        return None

    @property
    def has_scale(self) -> bool:
        """Whether a value has the same colour in every picture; else `on_scale_of` makes it so."""
        return True

    def on_scale_of(self, values: np.ndarray) -> Self:
        """The target that draws pictures on one scale, which spans some values.

        Its `value_range` is that scale. It is for pictures only: codes of others mean something else.

        Args:
            values: (P, ...) float32, as predicted.
        """
        del values
        return self

    @abstractmethod
    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """A slice as colours for people: (P, H, W) float32 -> (H, W, 3) float32 in [0, 1]."""
