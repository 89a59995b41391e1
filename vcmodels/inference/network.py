"""The networks as inference runs them: patches in, averageable values out, and their spread."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.resample import turn_tensor
from vcmodels.augment.views import turned_back
from vcmodels.devices import CompiledOrEager, autocast, is_out_of_memory
from vcmodels.errors import RunError, TaskError
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import (
    OUTPUT_DTYPES,
    check_dtype,
    decode_range,
    encode_range,
    range_attributes,
)


class Forward:
    """Runs batches of patches through a network, only for the chosen targets.

    On the CPU a batch is one patch: the fused blocks take no more, without them more were slower (64^3,
    2 heads, one core, per patch in batches of 1 and 4: 563 and 790 ms in float32), and oneDNN picks
    another algorithm for another batch size, so that float32 logits differ by 3e-7 (torch 2.13).

    Args:
        network: (B, C, Z, Y, X) -> logits of every target, full resolution first; on the device.
        targets: those to predict, by name.
        device: where it runs.
        amp: the autocast dtype; None computes in float32.
        batch: patches at a time on a GPU.
        temperatures: by which the logits of some targets are divided.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Mapping[str, Sequence[Tensor]]],
        targets: Mapping[str, AnyTarget],
        device: torch.device,
        amp: torch.dtype | None,
        batch: int,
        temperatures: Mapping[str, float] | None = None,
    ) -> None:
        self.images = self.passes = 1
        """How often a patch is normalised, and predicted: more than once only by `Averaged`."""
        self.network, self.targets = network, targets
        self.device, self.amp, self.temperatures = device, amp, temperatures or {}
        self.batch = 1 if device.type == "cpu" else batch
        is_plain = amp is None and device.type != "cpu"
        self._layout = torch.contiguous_format if is_plain else torch.channels_last_3d

    @property
    def is_compiled(self) -> bool:
        """Whether the network is to be compiled."""
        return isinstance(self.network, CompiledOrEager)

    def warm_up(self, channels: int, patch: Shape) -> bool:
        """Run a patch of zeros, which compiles the network; whether that worked."""
        self(np.zeros((1, channels, *patch), np.float32))
        return not isinstance(self.network, CompiledOrEager) or self.network.is_proven

    def run_eagerly(self) -> None:
        """Compile no more."""
        if isinstance(self.network, CompiledOrEager):
            self.network.compiled = None

    def __call__(self, patches: np.ndarray) -> dict[str, Tensor]:
        """(B, C, Z, Y, X) float32, 1 <= B <= `batch` -> (B, A, Z, Y, X) float32 by target."""
        with torch.inference_mode():
            logits = self.logits(self.place(patches))
            return {
                name: target.blendable(self.head(logits, name, len(patches)))
                for name, target in self.targets.items()
            }

    def head(self, logits: Mapping[str, Sequence[Tensor]], name: str, count: int) -> Tensor:
        """(count, C, Z, Y, X) float32: the logits of a target, over its temperature if it has one."""
        found, temperature = in_full(logits[name][0][:count]), self.temperatures.get(name)
        return found if temperature is None else found / temperature

    def place(self, patches: np.ndarray) -> Tensor:
        """The batch on the device.

        A short one is filled up with its last patch: another size would make a GPU choose, or
        compile, other kernels.
        """
        missing = self.batch - len(patches)
        if missing > 0:
            patches = np.concatenate([patches, *[patches[-1:]] * missing])
        image = torch.from_numpy(patches)
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        return image

    def logits(self, image: Tensor) -> Mapping[str, Sequence[Tensor]]:
        """(B, C, Z, Y, X) on the device -> what the network gives, in inference mode.

        Raises:
            RunError: the device's memory is too small.
        """
        with torch.inference_mode(), autocast(self.device, self.amp):
            try:
                return self.network(image.contiguous(memory_format=self._layout))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise RunError(
                    "inference_params.batch_size",
                    f"out of memory with patches of shape {tuple(image.shape)}",
                    "make batch_size or patch_size smaller; the same command continues",
                ) from error


def in_full(logits: Tensor) -> Tensor:
    """float32, channel by channel: what follows takes twice as long in channels-last order."""
    return logits.to(torch.float32, memory_format=torch.contiguous_format)


def channel_sums(values: Mapping[str, Tensor]) -> Tensor:
    """(targets, B): the sum over each patch, which is not finite if any of its values is not."""
    return torch.stack([v.sum(dim=(1, 2, 3, 4)) for v in values.values()])


class Moments:
    """The weighted mean and variance of what was added so far (West 1979, CACM 22(9)).

    A value equal to the mean changes nothing, not by a bit.
    """

    def __init__(self, *, with_variance: bool) -> None:
        self.with_variance = with_variance
        self.weight: float | Tensor = 0.0
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """(B, A, Z, Y, X) float32."""
        assert self._mean is not None, "nothing was added"
        return self._mean

    @property
    def variance(self) -> Tensor:
        """(B, A, Z, Y, X): the mean squared distance from the mean; 0 of a single value."""
        assert self._variance is not None, "nothing was added, or only the mean was wanted"
        return self._variance

    def add(
        self, values: Tensor, weight: float | Tensor = 1.0, variance: Tensor | None = None
    ) -> None:
        """Add a value, or the mean of several.

        Args:
            values: (B, A, Z, Y, X) float32, not changed.
            weight: how much it counts, a number or for each voxel, 0 or more; the first weight
                must be above 0.
            variance: of the several.
        """
        if self._mean is None:
            self.weight, self._mean = weight, values
            if self.with_variance:
                self._variance = torch.zeros_like(values) if variance is None else variance
            return
        self.weight = self.weight + weight
        share = weight / self.weight
        change = values - self._mean
        self._mean = self._mean + share * change
        if self._variance is not None:
            other = 0.0 if variance is None else share * variance
            self._variance = (1 - share) * (self._variance + share * change.square()) + other


@dataclass(frozen=True)
class Member:
    """One network of an ensemble."""

    forward: Forward
    weight: float
    image: int
    """Which of the normalised images, stacked as channels, is its own."""


class Averaged:
    """As `Forward`, with the mean over views and networks, and perhaps its uncertainty.

    Each network's views are averaged first, then the networks: one after another, so that hardly
    more memory is needed than for one. Only `by="variance"` keeps one patch of each network.

    Args:
        members: the networks, all on one device; the order of the sums.
        views: the identity first.
        spacing: length of a voxel of the volume along (z, y, x).
        by: `mean` by the weights of the members. `variance`: a voxel's weight is 1 / (1 + d r), r
            being the dispersion of the network's own views over its mean over the networks, and d
            one less than the number of views. That is the inverse of the variance when the mean one
            counts as one more view of each (moderated as by Smyth 2004, doi 10.2202/1544-6115.1027),
            so that views which agree by chance do not silence the other networks.
        with_uncertainty: also give each target's dispersion over all views of all networks.
    """

    def __init__(
        self,
        members: Sequence[Member],
        views: tuple[Symmetry, ...],
        spacing: Spacing,
        *,
        by: Literal["mean", "variance"] = "mean",
        with_uncertainty: bool = False,
    ) -> None:
        self.members, self.views, self.spacing = members, views, spacing
        self.by, self.with_uncertainty = by, with_uncertainty
        first = members[0].forward
        self.targets: Mapping[str, AnyTarget] = first.targets
        self.device, self.batch = first.device, first.batch
        self.passes = len(members) * len(views)
        self.images = 1 + max(member.image for member in members)

    @property
    def is_compiled(self) -> bool:
        """Whether the networks are to be compiled."""
        return self.members[0].forward.is_compiled

    def warm_up(self, channels: int, patch: Shape) -> bool:
        """As of `Forward`; either all networks are compiled or none."""
        worked = [member.forward.warm_up(channels, patch) for member in self.members]
        if not all(worked):
            for member in self.members:
                member.forward.run_eagerly()
        return all(worked)

    def __call__(self, patches: np.ndarray) -> dict[str, Tensor]:
        """(B, images x C, Z, Y, X) float32 -> (B, A, Z, Y, X) by target, uncertainties after them."""
        count = len(patches)
        with torch.inference_mode():
            image = self.members[0].forward.place(patches)
            own = image.chunk(self.images, dim=1)
            merged = self._merge(
                (member, self._over_views(member.forward, own[member.image], count))
                for member in self.members
            )
            values = {name: moments.mean for name, moments in merged.items()}
            if self.with_uncertainty:
                for name, moments in merged.items():
                    spread = self.targets[name].dispersion(moments.mean, moments.variance)
                    values[uncertainty_name(name)] = spread
            return values

    def _over_views(self, forward: Forward, image: Tensor, count: int) -> dict[str, Moments]:
        """The mean over the views of the first `count` patches, by target."""
        with_variance = self.with_uncertainty or self.by == "variance"
        found = {name: Moments(with_variance=with_variance) for name in self.targets}
        for view in self.views:
            logits = forward.logits(image if view.is_identity else turn_tensor(view, image))
            for name, target in self.targets.items():
                mine = forward.head(logits, name, count)
                values, known = turned_back(target, mine, view, self.spacing)
                weight = 1.0 if known is None else known.float()
                found[name].add(target.blendable(values), weight)
        return found

    def _merge(self, members: Iterable[tuple[Member, dict[str, Moments]]]) -> dict[str, Moments]:
        """The mean over the networks, by target."""
        if len(self.members) == 1:
            ((_, only),) = members
            return only
        if self.by == "variance":
            kept = [own for _, own in members]
            return {n: self._by_variance(n, [own[n] for own in kept]) for n in self.targets}
        merged = {name: Moments(with_variance=self.with_uncertainty) for name in self.targets}
        for member, own in members:
            for name, moments in own.items():
                variance = moments.variance if self.with_uncertainty else None
                merged[name].add(moments.mean, member.weight, variance)
        return merged

    def _by_variance(self, name: str, members: list[Moments]) -> Moments:
        """The mean of the networks for one target, each voxel by how well their views agree."""
        spread = [self.targets[name].dispersion(own.mean, own.variance) for own in members]
        typical = torch.stack(spread).mean(0)
        merged = Moments(with_variance=self.with_uncertainty)
        for own, mine in zip(members, spread, strict=True):
            ratio = torch.where(typical > 0, mine / typical, 1.0)
            weight = 1 / (1 + (len(self.views) - 1) * ratio)
            merged.add(own.mean, weight, own.variance if self.with_uncertainty else None)
        return merged


def uncertainty_name(target: str) -> str:
    """Name of the array with the uncertainty of a target."""
    return f"{target}_uncertainty"


class OutputSpec(Protocol):
    """What the writer asks of a target, or of the uncertainty of one; see `Target`."""

    @property
    def kind(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def blend_channels(self) -> int: ...
    @property
    def is_categorical(self) -> bool: ...
    def averageable(self, prediction: Tensor) -> Tensor: ...
    def unblend(self, blended: Tensor) -> Tensor: ...
    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray: ...
    def encoding(self, dtype: np.dtype) -> dict[str, Any]: ...
    def decode(self, stored: np.ndarray) -> np.ndarray: ...
    def output_channels(self, dtype: np.dtype) -> int | None: ...


class Uncertainty:
    """The root of `Target.dispersion`, averaged over patches as a square."""

    kind = "uncertainty"
    channels = blend_channels = 1
    is_categorical = False

    def __init__(self, target: AnyTarget) -> None:
        self.largest, self.unit = target.deviation_scale
        self.of = target.kind

    def averageable(self, prediction: Tensor) -> Tensor:
        """(1, Z, Y, X): the square."""
        return prediction.square()

    def unblend(self, blended: Tensor) -> Tensor:
        """(1, Z, Y, X): the root."""
        return blended.sqrt()

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """[0, largest] on 0..max in integers, the value in floats."""
        return encode_range(prediction, 0.0, self.largest, dtype)

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        """`scale` and `offset` of value = stored * scale + offset, and the unit of the value."""
        quantity = {"quantity": "standard deviation", "of": self.of, "unit": self.unit}
        return {"kind": self.kind, **quantity, **range_attributes(0.0, self.largest, dtype)}

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return decode_range(stored, 0.0, self.largest)

    def output_channels(self, dtype: np.dtype) -> int | None:
        """None: (Z, Y, X).

        Raises:
            ValueError: no such dtype is written.
        """
        check_dtype(dtype, OUTPUT_DTYPES)
        return None


def uncertainties(targets: Mapping[str, AnyTarget]) -> dict[str, Uncertainty]:
    """The uncertainty of each target, under its own name.

    Raises:
        TaskError: a target has that name.
    """
    for name in targets:
        if uncertainty_name(name) in targets:
            found = (
                f'"{uncertainty_name(name)}" would be the uncertainty of "{name}", and is a target'
            )
            raise TaskError("inference_params.uncertainty", found, "leave one out")
    return {uncertainty_name(name): Uncertainty(target) for name, target in targets.items()}
