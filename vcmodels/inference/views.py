"""Which views of each patch `tta` asks for, and what the data of the training say about them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from vcmodels.augment.base import Axis
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config.inference_params import Tta
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import (
    AXES,
    IDENTITY,
    Symmetry,
    generated_group,
    have_equal_spacing,
    mirror,
    quarter_turn,
)
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget


def wanted_tta(
    tta: Tta | Literal["auto"] | None, networks: Sequence[TrainedNetwork], reporter: Reporter
) -> Tta | None:
    """What `tta` asks for; `auto` is every mirror that holds in the data of all networks.

    Raises:
        TaskError: it is `auto`, and a checkpoint does not say what holds.
    """
    if tta != "auto":
        return tta
    every: tuple[Axis, ...] = ("z", "y", "x")
    flips = set[str](every)
    for network in networks:
        if network.symmetry is None:
            found = f'is "auto", and {network.path} does not say which mirrors hold'
            raise TaskError("inference_params.tta", found, 'name them, as in {"flips": ["y", "x"]}')
        flips &= set(network.symmetry.mirrors)
    if not flips:
        reporter.say("tta: no mirror holds in the data of the training: each patch is seen once")
        return None
    return Tta(flips=tuple(axis for axis in every if axis in flips))


def report_refuted(
    views: Iterable[Symmetry], networks: Sequence[TrainedNetwork], reporter: Reporter
) -> None:
    """Report in a line that a view goes against the data of a training."""
    for network in networks:
        refuted = network.symmetry.refuted(list(views)) if network.symmetry else []
        if network.symmetry and refuted:
            more = f", and {len(refuted) - 1} more" if len(refuted) > 1 else ""
            reporter.say(
                "note: inference_params.tta: has views that the data of the training refute: "
                f"{network.symmetry.why_not(refuted[0])}{more}; leave them out"
            )
            return


def choose_views(
    tta: Tta | None,
    patch: Shape,
    spacings: Sequence[Spacing],
    reporter: Reporter,
    targets: Mapping[str, AnyTarget] | None = None,
) -> tuple[Symmetry, ...]:
    """Every product of the mirrors and turns that are asked for, the patch as it is first.

    All of them keep the shape of the patch: the network sees none that it was not trained with, and
    is compiled once. Slices are mirrored and turned in their plane. A plane is turned by 180 degrees only where its axes differ in length of the
    patch, or in the voxel size of the volume or of the training, or where a target has `mirror_pairs`
    along one of them.

    Args:
        tta: what is asked for; None: nothing.
        patch: shape of a patch, (z, y, x).
        spacings: length of a voxel along (z, y, x), for each volume that counts.
        reporter: told which planes are not turned by 90 degrees.
        targets: those to predict.
    """
    if tta is None:
        return (IDENTITY,)
    thick = [axis for axis, length in zip(AXES, patch, strict=True) if length > 1]
    generators = [mirror(AXES.index(axis)) for axis in tta.flips if axis in thick]
    every = tuple(combinations(thick, 2))
    paired = {axis for target in (targets or {}).values() for axis in target.paired_axes}
    planes = tta.quarter_turns if isinstance(tta.quarter_turns, tuple) else every
    for first, second in (p for p in planes if tta.quarter_turns and {*p} <= {*thick}):
        a, b = AXES.index(first), AXES.index(second)
        turn = quarter_turn(a, b)
        why = _obstacle(a, b, patch, spacings, paired)
        if why is not None:
            reporter.say(f"tta: {first} and {second} differ in {why}, turned by 180 degrees only")
        generators.append(turn if why is None else turn @ turn)
    return generated_group(generators)


def _obstacle(
    a: int, b: int, patch: Shape, spacings: Sequence[Spacing], paired: set[int]
) -> str | None:
    """In what two axes differ that are to be exchanged, None where in nothing."""
    if not all(have_equal_spacing(spacing, a, b) for spacing in spacings):
        return "voxel size"
    if patch[a] != patch[b]:
        return "patch length"
    return "mirror_pairs" if {a, b} & paired else None
