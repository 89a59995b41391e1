"""The network as inference runs it: patches in, averageable values out, from several views."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.geometric import AXES
from vcmodels.augment.resample import turn_tensor
from vcmodels.config.inference_params import Tta
from vcmodels.devices import CompiledOrEager, autocast, is_out_of_memory
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import (
    IDENTITY,
    Symmetry,
    generated_group,
    have_equal_spacing,
    mirror,
    quarter_turn,
)
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target


class Forward:
    """Runs batches of patches through a network, for the chosen targets alone.

    On the CPU a batch is one patch: the fused blocks take no more, without them more were slower (64^3,
    2 heads, one core, per patch in batches of 1 and 4: 563 and 790 ms in float32), and oneDNN picks
    another algorithm for another batch size, so that float32 logits differ by 3e-7 (torch 2.13).

    Args:
        network: (B, C, Z, Y, X) -> logits of every target, full resolution first; on the device.
        targets: those to predict, by name.
        device: where it runs.
        amp: the autocast dtype; None computes in float32.
        batch: patches at a time on a GPU.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Mapping[str, Sequence[Tensor]]],
        targets: Mapping[str, AnyTarget],
        device: torch.device,
        amp: torch.dtype | None,
        batch: int,
    ) -> None:
        self.images = self.passes = 1
        """How often a patch is normalised, and predicted: more than once by `Averaged` alone."""
        self.network, self.targets = network, targets
        self.device, self.amp = device, amp
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
                name: target.blendable(in_full(logits[name][0][: len(patches)]))
                for name, target in self.targets.items()
            }

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


def choose_views(
    tta: Tta | None, patch: Shape, spacings: Sequence[Spacing], reporter: Reporter
) -> tuple[Symmetry, ...]:
    """Every product of the mirrors and turns that are asked for, the patch as it is first.

    All of them keep the shape of the patch: the network sees none that it was not trained with, and
    is compiled once. A plane is turned by 180 degrees only where its axes differ in length of the
    patch, or in the voxel size of the volume or of the training.

    Args:
        tta: what is asked for; None: nothing.
        patch: shape of a patch, (z, y, x).
        spacings: length of a voxel along (z, y, x), for each volume that counts.
        reporter: told which planes are not turned by 90 degrees.
    """
    if tta is None:
        return (IDENTITY,)
    generators = [mirror(AXES.index(axis)) for axis in tta.flips]
    every = tuple(combinations(AXES, 2))
    planes = tta.quarter_turns if isinstance(tta.quarter_turns, tuple) else every
    for first, second in planes if tta.quarter_turns else ():
        a, b = AXES.index(first), AXES.index(second)
        turn = quarter_turn(a, b)
        is_lawful = all(have_equal_spacing(spacing, a, b) for spacing in spacings)
        if is_lawful and patch[a] == patch[b]:
            generators.append(turn)
        else:
            why = "patch length" if is_lawful else "voxel size"
            reporter.say(f"tta: {first} and {second} differ in {why}, turned by 180 degrees only")
            generators.append(turn @ turn)
    return generated_group(generators)


def turned_back(
    target: Target, logits: Tensor, view: Symmetry, spacing: Spacing
) -> tuple[Tensor, Tensor | None]:
    """The logits of a turned patch as logits of the patch: voxels moved, values turned.

    Args:
        target: whose values they are.
        logits: (B, C, Z', Y', X') float32, of the patch turned by `view`.
        view: the symmetry.
        spacing: length of a voxel along (z, y, x) of the patch.

    Returns:
        (B, C, Z, Y, X), and where the view says something, (V, Z, Y, X) bool; None: everywhere.
    """
    if view.is_identity:
        return logits, None
    back = view.inverse
    moved = turn_tensor(back, logits)
    jacobian = torch.as_tensor(back.matrix, dtype=torch.float32)
    everywhere = torch.ones((1, *moved.shape[2:]), dtype=torch.bool, device=moved.device)
    known = everywhere
    turned = []
    for sample in moved:
        values, known = target.turn(sample, everywhere, jacobian, spacing)
        turned.append(values)
    result = turned[0][None] if len(turned) == 1 else torch.stack(turned)
    return result, None if known is everywhere else known
