"""Which mirrors and turns leave the images and labels of a data set alike.

The symmetry of a data set is a fact of the data: a mirror holds when no test tells a mirrored window
from an original (`trial`). Labels are asked first, each target on its own and next to the image, then
the image alone. Too few windows refute nothing: what holds for most volumes is then taken to hold. Of what is not refuted the largest group is kept that is found when mirrors are
added first, then quarter turns, then what was told apart least: products of what holds must hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.resample import turn_tensor
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.symmetries import (
    CUBE_SYMMETRIES,
    IDENTITY,
    Symmetry,
    generated_group,
    mirror,
    quarter_turn,
)
from vcmodels.symmetry.features import (
    LabelFeatures,
    WindowFeatures,
    read_features,
    turned_label_leans,
    turned_leans,
    turned_values,
    without_trend,
)
from vcmodels.symmetry.findings import (
    AXES,
    PLANES,
    SignVerdict,
    SymmetryFindings,
    SymmetryVerdict,
)
from vcmodels.symmetry.signs import Directions, share_along
from vcmodels.symmetry.trial import FEWEST, LEAST_SHARE, PairTrial, tell_apart
from vcmodels.symmetry.windows import ENOUGH_WINDOWS, choose_windows
from vcmodels.targets import AnyTarget

MOST_UNEVEN = 3.0
"""Axes along one of which edges are so many times as strong (in squares) are not exchanged.

Fibres of a specimen that run along one axis make 1.5 of it; a blurred axis, or sheets that all lie
one way, make more.
"""
UNTOLD_SHARE = 0.65
"""A sign that the image tells in fewer windows is one that a network hardly learns."""


@dataclass(frozen=True)
class Evidence:
    """One thing that was measured of many windows, and what a symmetry makes of it."""

    name: str
    values: Tensor
    """(n, ...) float32."""
    groups: np.ndarray
    """(n,) int: windows of one group are left out together."""
    turned: Callable[[Tensor, Symmetry], Tensor]

    def trial(self, symmetry: Symmetry) -> PairTrial:
        """Try to tell the windows from what the symmetry makes of them."""
        less = (self.values - self.turned(self.values, symmetry)).flatten(1)
        return tell_apart(less.numpy().astype(np.float64), self.groups)


@dataclass(frozen=True)
class Looked:
    """All windows that were looked at, in order."""

    features: Sequence[WindowFeatures]
    groups: np.ndarray
    """(n,) int, as of `Evidence`."""
    targets: Mapping[str, AnyTarget]
    spacings: Sequence[Spacing]
    """Of the volumes that the windows are in."""

    @property
    def are_few(self) -> bool:
        """Whether the windows are of so few volumes that what all have in common may be theirs alone."""
        return len(self.spacings) < FEWEST

    def labels(self, name: str) -> dict[int, LabelFeatures]:
        """What the windows show of the label of a target, by their number."""
        return {n: f.labels[name] for n, f in enumerate(self.features) if name in f.labels}

    def directions(self, name: str) -> dict[int, Directions]:
        """The vectors that windows show of a target, by their number; {} of one without vectors."""
        labels = self.labels(name).items()
        return {n: one.directions for n, one in labels if one.directions is not None}


def find_symmetries(
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    regions: Sequence[Box | None],
    targets: Mapping[str, AnyTarget],
    patch: Shape,
    seed: int,
) -> SymmetryFindings:
    """Look at some seconds' worth of training windows, the same for one seed.

    Args:
        volumes: of the task.
        rows: (n, 4) training patches: volume number, z, y, x.
        regions: per volume, what may be read.
        targets: what is learnt, by name.
        patch: shape of a patch, (z, y, x) in voxels.
        seed: of the windows.

    Raises:
        RunError: a label holds a value that its kind cannot have.
    """
    places = choose_windows(volumes, rows, regions, patch, seed)
    looked = look(volumes, regions, places, targets, seed)
    verdicts = judge(looked)
    largest = max((box for _, box in places), key=lambda box: box.voxels, default=None)
    held = [s for s in CUBE_SYMMETRIES if s == IDENTITY or verdicts[s].holds]
    return SymmetryFindings(
        {str(symmetry): verdict for symmetry, verdict in verdicts.items()},
        dict(judge_signs(looked, held)),
        len(places),
        largest.shape if largest else (0, 0, 0),
        len({number for number, _ in places}),
    )


def look(
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    places: Sequence[tuple[int, Box]],
    targets: Mapping[str, AnyTarget],
    seed: int,
) -> Looked:
    """Read the windows and measure them."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 4]))
    features: list[WindowFeatures] = []
    for number, window in places:
        region = regions[number]
        assert region is not None, "a window in a volume that does not train"
        features.append(read_features(volumes[number], region, window, targets, rng))
    numbers = np.array([number for number, _ in places], np.int64)
    used = np.unique(numbers)
    groups = numbers if len(used) >= FEWEST else np.arange(len(places))
    return Looked(features, groups, targets, [volumes[n].spacing for n in used])


def judge(looked: Looked) -> dict[Symmetry, SymmetryVerdict]:
    """The verdict on each symmetry but the identity."""
    evidence = list(evidence_of(looked))
    others = [one for one in CUBE_SYMMETRIES if one != IDENTITY]
    verdicts = {one: _judge_one(looked, evidence, one) for one in others}
    group = closed_group(verdicts)
    return {
        one: SymmetryVerdict(
            verdict.holds and one in group, _closed(verdict, one, group), verdict.share
        )
        for one, verdict in verdicts.items()
    }


def _closed(verdict: SymmetryVerdict, one: Symmetry, group: set[Symmetry]) -> str:
    """The reason of a verdict, when only a group of symmetries holds."""
    if not verdict.holds or one in group:
        return verdict.reason
    return "left out: together with what holds it makes what does not"


def _judge_one(looked: Looked, evidence: Sequence[Evidence], one: Symmetry) -> SymmetryVerdict:
    """The verdict on one symmetry by itself: what refutes it first."""
    if reason := _unlawful(looked, one):
        return SymmetryVerdict(False, reason)
    if (count := len(np.unique(looked.groups))) < FEWEST:  # no trial of so few refutes anything
        return SymmetryVerdict(True, f"taken to hold: {count} windows are too few to refute it")
    best, best_name = PairTrial(0, 0), ""
    for measured in evidence:
        trial = measured.trial(one)
        if trial.refutes:
            return SymmetryVerdict(False, f"{measured.name}: {trial}", trial.share)
        if not best_name or trial.share > best.share:
            best, best_name = trial, measured.name
    return SymmetryVerdict(True, f"not refuted ({best_name}: {best} at most)", best.share)


def _unlawful(looked: Looked, one: Symmetry) -> str:
    """In words, why a symmetry cannot hold whatever the windows show; "" where it can."""
    moved = [axis for axis in range(3) if one.permutation[axis] != axis]
    if not moved:
        return ""
    axes = ", ".join(AXES[axis] for axis in moved)
    for spacing in looked.spacings:
        if not one.is_lawful(spacing):
            sizes = ", ".join(f"{spacing[axis]:g}" for axis in moved)
            return f"voxels are {sizes} long along {axes}"
    for name, target in looked.targets.items():
        for axis in moved:
            if axis in target.paired_axes:
                return f"{name} has mirror_pairs along {AXES[axis]}, which is exchanged"
    return _uneven(looked, one)


def _uneven(looked: Looked, one: Symmetry) -> str:
    """In words, which exchanged axes differ in sharpness by more than a specimen does."""
    if len(looked.features) < FEWEST:
        return ""
    strengths = torch.stack([f.sharpness for f in looked.features])
    kept = (strengths > 0).all(1)
    if not bool(kept.any()):
        return ""
    mean = strengths[kept].log().mean(0).exp()
    for output, source in enumerate(one.permutation):
        ratio = float(mean[source] / mean[output])
        if ratio > MOST_UNEVEN:
            sharp, dull = AXES[source], AXES[output]
            return f"edges are {ratio**0.5:.1f} times as strong along {sharp} as along {dull}"
    return ""


def evidence_of(looked: Looked) -> Iterator[Evidence]:
    """All that is compared, in the order in which it has a say.

    Vectors lie one way in a specimen or a part of it. Where these are few, and the image shows the
    sign whichever way they lie, that way has none; nor has the way in which the brightness drifts.
    """
    for name, target in looked.targets.items():
        labels, spacing = looked.labels(name), looked.spacings[:1]
        signs = sign_trial(looked, name) if looked.are_few else None
        if labels and not (signs and signs.refutes):
            groups = looked.groups[list(labels)]
            layouts = torch.stack([label.layout for label in labels.values()])
            turned = partial(turned_values, target, spacing[0])
            yield Evidence(f"label {name}", layouts, groups, turned)
            leans = torch.stack([label.lean for label in labels.values()])
            turned = partial(turned_label_leans, target, spacing[0])
            yield Evidence(f"image around {name}", leans, groups, turned)
    if looked.features:
        layouts = torch.stack([f.layout for f in looked.features])
        if looked.are_few:
            layouts = without_trend(layouts.flatten(0, 1)).reshape(layouts.shape)
        yield Evidence("image", layouts, looked.groups, lambda v, one: turn_tensor(one, v))
        leans = torch.stack([f.lean for f in looked.features])
        yield Evidence("edges of the image", leans, looked.groups, turned_leans)


def closed_group(verdicts: Mapping[Symmetry, SymmetryVerdict]) -> set[Symmetry]:
    """A group of symmetries of which none is refuted by itself, as large as it gets this way."""
    allowed = {IDENTITY, *(one for one, verdict in verdicts.items() if verdict.holds)}
    first = [*map(mirror, range(3)), *(quarter_turn(a, b) for a, b in PLANES)]
    rest = sorted(allowed - {IDENTITY, *first}, key=lambda one: (verdicts[one].share, str(one)))
    group, generators = {IDENTITY}, list[Symmetry]()
    for one in [*first, *rest]:
        if one in allowed and one not in group:
            larger = set(generated_group([*generators, one]))
            if larger <= allowed:
                group, generators = larger, [*generators, one]
    return group


def judge_signs(looked: Looked, held: Sequence[Symmetry]) -> Iterator[tuple[str, SignVerdict]]:
    """For each target with vectors: how their sign may be learnt, where windows show any."""
    for name, target in looked.targets.items():
        if (trial := sign_trial(looked, name)) is None:
            continue
        vectors = torch.cat([one.vectors for one in looked.directions(name).values()])
        along, untouched = (share_along(vectors, group) for group in (held, [IDENTITY]))
        is_known = trial.windows >= ENOUGH_WINDOWS and trial.share < UNTOLD_SHARE
        lies_one_way = along >= LEAST_SHARE
        mean = triple(float(component) for component in vectors.mean(0))
        yield (
            name,
            SignVerdict(
                trial.share,
                trial.windows,
                along,
                untouched,
                mean,
                sign_remedy(target) if is_known and (looked.are_few or not lies_one_way) else "",
                is_known and lies_one_way,
            ),
        )


def sign_trial(looked: Looked, name: str) -> PairTrial | None:
    """Try to tell the vectors of a target from their opposites by the image; None without vectors."""
    found = looked.directions(name)
    if not found:
        return None
    sides = np.stack([2 * one.sides.numpy().astype(np.float64) for one in found.values()])
    return tell_apart(sides, looked.groups[list(found)])


def sign_remedy(target: AnyTarget) -> str:
    """What to do about vectors whose sign nothing tells."""
    if target.kind == "normals":
        return 'take "orientation": "axial", for which n and -n are the same'
    return 'take kind "normals" with "orientation": "axial", or a label that has no sign'
