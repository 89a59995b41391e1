"""The contract of a model: a block of the task file that plans, describes and builds a network."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.models.plan import StepMemory
from vcmodels.section import Section

Outputs = dict[str, tuple[Tensor, ...]]
"""Logits by head, full resolution first; coarser ones follow only in training with supervision."""


class FeatureMix(NamedTuple):
    """Which features a network is to mix between the samples of a batch, and how much."""

    level: int
    """Of the encoder, from 0."""
    share: Tensor
    """Of each sample's own features, a scalar in [0, 1]; the rest is of the sample before it."""


def mix_samples(values: Tensor, share: Tensor | float) -> Tensor:
    """Weighted means of each sample and the one before it: (B, ...) -> (B, ...), the dtype kept.

    The first sample is mixed with the last. Patches are drawn in random order, so that these pairs
    are as random as any; unlike those of a random permutation no sample is paired with itself.
    """
    others = values.roll(1, 0)
    return others + share * (values - others)


@dataclass(frozen=True, slots=True)
class LevelSummary:
    """One row of the network table."""

    name: str
    features: int
    stride: Shape
    kernel: Shape
    shape: Shape
    """Length along (z, y, x) of one patch there."""
    parameters: int


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """What a network is and costs, without its weights."""

    rows: tuple[LevelSummary, ...]
    memory: StepMemory


class Model(Section):
    """One kind of network. It takes ints and tuples, never the task."""

    mixes_features: ClassVar[bool] = False
    """Whether the networks take `mix`, for manifold mixup."""

    @abstractmethod
    def check_patch(self, patch: Shape, spacing: Spacing, planned: Shape | None = None) -> None:
        """Refuse a patch size that the network cannot take.

        Args:
            patch: length along (z, y, x) of what the network is to see.
            spacing: voxel size along (z, y, x) that it was, or will be, planned for.
            planned: the patch size that it was planned for: a trained network keeps its levels.

        Raises:
            ValueError: naming the axis, what was found and the nearest good values.
        """

    @property
    @abstractmethod
    def memory_target_gb(self) -> float:
        """Memory that it is meant to be trained with; the planner takes no more unasked."""

    @abstractmethod
    def estimate(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> StepMemory:
        """What training needs, in closed form: no network is built.

        Raises:
            ValueError: as `check_patch`.
        """

    @abstractmethod
    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> nn.Module:
        """The network with fresh weights, drawn from torch's global generator.

        Its forward is `(image, targets: Collection[str] | None = None) -> Outputs`: the image is
        (B, C, Z, Y, X), the logits are those of all heads or of `targets` alone. Where
        `mixes_features` it also takes `mix: FeatureMix | None = None`, and `encoder_levels` is the
        number of its levels. What belongs to one target alone is named `heads.<target>` and
        `decoders.<target>`: another task may take over everything else.

        Args:
            in_channels: channels of the image.
            heads: channels of the logits, by target.
            patch: planned input length along (z, y, x); other inputs must be multiples of the same.
            spacing: voxel size along (z, y, x).

        Raises:
            ValueError: as `check_patch`.
        """

    @abstractmethod
    def describe(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> NetworkSummary:
        """The network's table, size and memory, without allocating its weights.

        Raises:
            ValueError: as `check_patch`.
        """
