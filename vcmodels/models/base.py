"""The contract of a model: a block of the task file that plans, describes and builds a network."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.models.coupling import unfit
from vcmodels.models.plan import StepMemory, counted_memory
from vcmodels.section import Section

Logits = dict[str, tuple[Tensor, ...]]
"""By head, full resolution first; coarser ones follow only in training with supervision."""


class FeatureMix(NamedTuple):
    """Which features a network mixes between the samples of a batch, and how much."""

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
    """One row of the network table; a network without levels has rows of parameters only."""

    name: str
    parameters: int
    features: int | None = None
    stride: Shape | None = None
    kernel: Shape | None = None
    shape: Shape | None = None
    """Length along (z, y, x) of one patch there."""


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """What a network is and costs, without its weights."""

    rows: tuple[LevelSummary, ...]
    memory: StepMemory


_OF_TARGETS = ("heads", "decoders")


def part_of(name: str) -> str:
    """The part of a network to which a dotted name belongs: `encoder`, `heads.sheet`.

    A part `heads.<target>` or `decoders.<target>` belongs only to that target, so another task takes
    over everything else. Freezing and weight transfer work on parts.
    """
    words = name.split(".")
    return ".".join(words[: 2 if words[0] in _OF_TARGETS else 1])


def part_names(names: Iterable[str]) -> list[str]:
    """The parts that some dotted names belong to, each once, in their order."""
    return list(dict.fromkeys(part_of(name) for name in names))


def target_of(part: str) -> str | None:
    """The target that a part belongs to; None for a part that all targets share."""
    _, _, target = part.partition(".")
    return target or None


class Model(Section):
    """One kind of network. It takes ints and tuples, never the task.

    A member has a `name` of its own and `build`. The rest has defaults, which run the network on the
    meta device, where tensors have shapes and no values.
    """

    mixes_features: ClassVar[bool] = False
    """Whether the networks take `mix`, for manifold mixup."""
    needs_coordinates: ClassVar[bool] = False
    """Whether the last three channels of the image must be `dataset_config.coordinates`."""
    stays_wide: ClassVar[str] = "its class does not say how it is made narrower"
    """Why channels cannot be taken away, of a member without `narrowed`."""

    name: str
    """Which network."""

    @abstractmethod
    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> nn.Module:
        """The network with fresh weights, drawn from torch's global generator.

        Its forward is `(image, targets: Collection[str] | None = None) -> Logits`: the image is
        (B, C, Z, Y, X), the logits are of all heads, or only of `targets`. Where
        `mixes_features` it also takes `mix: FeatureMix | None = None`, and `encoder_levels` is the
        number of its levels. `part_of` says how weights are named.

        Args:
            in_channels: channels of the image.
            heads: channels of the logits, by target.
            patch: planned input length along (z, y, x); other inputs must be multiples of the same.
            spacing: voxel size along (z, y, x).

        Raises:
            ValueError: as `check_patch`.
        """

    def check_patch(self, patch: Shape, spacing: Spacing, planned: Shape | None = None) -> None:
        """Refuse a patch size that the network cannot take: here, one with which a pass fails.

        Args:
            patch: length along (z, y, x) of what the network sees.
            spacing: voxel size along (z, y, x) that it was, or will be, planned for.
            planned: the patch size that it was planned for: a trained network keeps its levels.

        Raises:
            FaultError: with what was found and what to do.
        """
        if found := _misfit(type(self), self.model_dump_json(), patch, spacing, planned or patch):
            raise FaultError(
                f"patch_size {list(patch)} does not fit {self.name}{found}", "choose another"
            )

    def first_weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Weights that a fresh network begins with, by their names in it, from a file that the block names.

        They are read once, where a training begins: after that its checkpoints have them.

        Args:
            network: of `build` or `outline`.

        Raises:
            TaskError: the file is missing, damaged or of another network.
        """
        del network
        return {}

    def narrowed(self, share: float, patch: Shape, spacing: Spacing) -> "Model":
        """The model of the same network with about a `share` of the features: what pruning leaves.

        Its `build` gives the same weights, by name, of fewer channels. `narrower` rounds.

        Args:
            share: of the features of each level that stays, in (0, 1).
            patch: planned input length along (z, y, x).
            spacing: voxel size along (z, y, x).

        Raises:
            FaultError: there is none, and why.
        """
        raise unfit(self.stays_wide)

    @property
    def memory_target_gb(self) -> float:
        """Memory that it is meant to be trained with; the planner takes no more unasked."""
        return 8.0  # nnU-Net's, for its default plan

    def outline(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> nn.Module:
        """The network on the meta device, without values; torch's generators stay as they are.

        Raises:
            ValueError: as `check_patch`.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return self.build(in_channels, heads, patch, spacing)
            except RuntimeError as error:  # some constructors compute with values
                if "overflow" in str(error):
                    raise FaultError("a weight is larger than any memory", "use less") from error
                return self.build(in_channels, heads, patch, spacing).to("meta")

    def estimate(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> StepMemory:
        """What training needs: here, counted on a pass; a model may know it in closed form.

        Raises:
            ValueError: as `check_patch`.
        """
        return counted_memory(self.outline(in_channels, heads, patch, spacing), in_channels, patch)

    def describe(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> NetworkSummary:
        """The network's table, size and memory, without allocating its weights.

        Raises:
            ValueError: as `check_patch`.
        """
        sizes: dict[str, int] = {}
        network = self.outline(in_channels, heads, patch, spacing)
        for name, parameter in network.named_parameters():
            part = part_of(name)
            sizes[part] = sizes.get(part, 0) + parameter.numel()
        rows = tuple(LevelSummary(part, size) for part, size in sizes.items())
        return NetworkSummary(rows, self.estimate(in_channels, heads, patch, spacing))


@lru_cache(maxsize=256)
def _misfit(kind: type[Model], keys: str, patch: Shape, spacing: Spacing, planned: Shape) -> str:
    """Why a pass through a network fails, in words that follow its name; "" if it does not.

    A task is checked several times on its way, and a pass without values takes a second for some.
    """
    model, channels = kind.model_validate_json(keys), 4 if kind.needs_coordinates else 1
    network = model.outline(channels, {"any": 1}, planned, spacing)
    try:
        logits = network(torch.empty(1, channels, *patch, device="meta"))["any"][0]
    except (RuntimeError, ValueError) as error:  # of torch, about shapes that do not fit
        return f" ({str(error).splitlines()[0].rstrip('.')})"
    shape = list(logits.shape[2:])
    return "" if shape == list(patch) else f", whose logits have {shape} voxels"
