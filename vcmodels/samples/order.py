"""Which patch is drawn when: functions of (seed, draw number) only.

Counter-based generators (Philox; Salmon et al. 2011, SC) need no state: draw k is the same in every
process, with any number of workers, and after any resume.

Where patches with a high loss are preferred: losses change from step to step, and a resumed run must
draw as if it had never stopped. So the order of an epoch is a function only of (seed, draw number,
losses known at its start); what is measured on the way waits for the next epoch, and a checkpoint
holds both.

Where labels are preferred: a share F of the draws is made for a class c with probability q_c, and for a patch in proportion to
its n_c voxels of that class (as nnU-Net takes a voxel of a random class; Isensee et al. 2021); the
others take any patch. That is one weight for each patch,

    (1 - F) w / sum(w) + F sum_c q_c w n_c / sum(w n_c),

with w the weight of its volume, so that draws stay a function only of (seed, draw number).
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vcmodels.config import TrainingParams
from vcmodels.config.task import SamplingConfig
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.patches.density import CandidateGrid, patch_density, patch_grid
from vcmodels.patches.find import PatchCriteria, survey
from vcmodels.patches.index import LabelIndex
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.targets import AnyTarget


class Stream(IntEnum):
    """What random numbers are for; each purpose has its own."""

    ORDER = 0
    JITTER = 1
    SPACE = 2
    INTENSITY = 3


def generator(seed: int, number: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one draw (or cycle) for one purpose."""
    # The last word of the counter keeps streams 2^192 blocks apart.
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]))


class DrawOrder:
    """Which row of the patch list each draw takes; every row by its share in a cycle of draws.

    Of n rows with equal weights, a cycle of n draws is a permutation. Otherwise a row comes floor
    or ceil of its share `length` w / sum(w) times (systematic sampling), shuffled.

    Args:
        seed: of the run.
        weights: (n,) one per row, above 0 somewhere.
        length: draws in a cycle; n when None.
    """

    def __init__(self, seed: int, weights: np.ndarray, length: int | None = None) -> None:
        self.seed, self.weights, self.length = seed, weights, length or len(weights)
        # Float sums are not exact: equal weights must give each row exactly once.
        is_plain = np.ptp(weights) == 0 and self.length == len(weights)
        self._cumulative = None if is_plain else np.cumsum(weights) / weights.sum()
        self._cycle = lru_cache(maxsize=2)(self._make_cycle)

    def row(self, draw: int) -> int:
        """The row of a draw, counted from 0 without end."""
        cycle, position = divmod(draw, self.length)
        return int(self._cycle(cycle)[position])

    def _make_cycle(self, cycle: int) -> np.ndarray:
        rng = generator(self.seed, cycle, Stream.ORDER)
        if self._cumulative is None:
            return rng.permutation(self.length)
        ticks = (rng.random() + np.arange(self.length)) / self.length
        rows = np.searchsorted(self._cumulative, ticks, side="right")
        return rng.permutation(np.minimum(rows, len(self.weights) - 1))

    def __reduce__(self) -> tuple[type, tuple[int, np.ndarray, int]]:
        """Pickle what it is made from."""
        return type(self), (self.seed, self.weights, self.length)


class Jitter(Protocol):
    """A random shift of a training patch."""

    def moved(self, number: int, patch: Box, region: Box, rng: np.random.Generator) -> Box:
        """The patch elsewhere in its region.

        Args:
            number: of the volume.
            patch: as found.
            region: what may be read.
            rng: of this draw.
        """
        ...


@dataclass(frozen=True)
class FreeJitter:
    """Shifts by any number of voxels up to `reach` along each axis."""

    reach: Shape

    def moved(self, number: int, patch: Box, region: Box, rng: np.random.Generator) -> Box:
        """As `Jitter`; along an axis where the region is shorter than the patch, it stays."""
        drawn = rng.integers([-r for r in self.reach], [r + 1 for r in self.reach]).tolist()
        z, y, x = (
            o + (shift if n <= extent else 0)
            for o, shift, n, extent in zip(
                patch.origin, drawn, patch.shape, region.shape, strict=True
            )
        )
        return pushed_inside(Box((z, y, x), patch.shape), region)


def pushed_inside(box: Box, region: Box) -> Box:
    """The box moved as little as needed to lie in the region, along the axes where it fits."""
    z, y, x = (
        min(max(o, low), low + extent - n) if n <= extent else o
        for o, n, low, extent in zip(
            box.origin, box.shape, region.origin, region.shape, strict=True
        )
    )
    return Box((z, y, x), box.shape)


PRESSURE = 100.0
"""How much more often the hardest patch is drawn than the easiest, in the share of hard draws."""


def hard_share(sampling: SamplingConfig | None) -> float:
    """The share of the draws that prefers hard patches."""
    return sampling.hard if sampling is not None else 0.0


def draws_of_step(settings: TrainingParams) -> int:
    """Samples that one optimiser step takes."""
    return settings.batch_size * settings.gradient_accumulation


def draws_of_epoch(settings: TrainingParams) -> int:
    """Samples that one epoch takes."""
    return settings.max_steps_per_epoch * draws_of_step(settings)


class LossWeightedOrder:
    """A `DrawOrder` for each epoch, with weights that follow the last loss of each patch.

    Args:
        seed: of the run.
        weights: (n,) of the rows while no loss is known, above 0 somewhere.
        share: of the draws that prefers hard patches, in [0, 1].
        length: draws in an epoch.
    """

    def __init__(self, seed: int, weights: np.ndarray, share: float, length: int) -> None:
        self.seed, self.weights, self.share, self.length = seed, weights, share, length
        self.losses = np.full(len(weights), np.nan, np.float32)
        """(n,) the last of each row when this epoch began, NaN where none is known."""
        self._new: dict[int, float] = {}
        self._order = self._make_order()

    def row(self, draw: int) -> int:
        """The row of a draw of this epoch."""
        return self._order.row(draw)

    def take(self, first_draw: int, losses: Sequence[float]) -> None:
        """Note the losses of consecutive draws of this epoch; those not finite say nothing."""
        for draw, loss in enumerate(losses, first_draw):
            if np.isfinite(loss):
                self._new[self.row(draw)] = loss

    def end_epoch(self) -> None:
        """From now on draw by the losses that were noted, too."""
        self.losses[list(self._new)] = list(self._new.values())
        self._new = {}
        self._order = self._make_order()

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs: 4 bytes a row, 12 for each that this epoch has drawn."""
        return {
            "losses": torch.from_numpy(self.losses.copy()),
            "new_rows": torch.tensor(list(self._new), dtype=torch.int64),
            "new_losses": torch.tensor(list(self._new.values()), dtype=torch.float32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of an order over the same rows."""
        assert len(state["losses"]) == len(self.weights), "the losses of other rows"
        self.losses = state["losses"].numpy().copy()
        rows, losses = state["new_rows"].tolist(), state["new_losses"].tolist()
        self._new = dict(zip(rows, losses, strict=True))
        self._order = self._make_order()

    def _make_order(self) -> DrawOrder:
        factors = 1 - self.share + self.share * hardness(self.losses, self.weights)
        return DrawOrder(self.seed, self.weights * factors, self.length)


def hardness(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many times as often as by its weight each row is drawn in the share of hard draws.

    Online batch selection (Loshchilov & Hutter 2015, arXiv:1511.06343): exponential in the rank of
    the last loss, so that neither its scale nor one outlier matters. Rows without a known loss are
    drawn by their weight; so are, together, those with one.

    Args:
        losses: (n,) float32, NaN where unknown.
        weights: (n,) 0 or more.

    Returns:
        (n,) float64 above 0, of weighted mean 1.
    """
    factors = np.ones(len(losses))
    known = np.isfinite(losses) & (weights > 0)
    if known.any():
        values, ordered = losses[known], np.sort(losses[known])
        # Equal losses share the mean of their ranks.
        ranks = np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") - 1
        raised = PRESSURE ** (ranks / 2 / max(len(values) - 1, 1))
        factors[known] = raised * weights[known].sum() / (weights[known] * raised).sum()
    return factors


KEY = "dataset_config.sampling"


def volume_weights(
    volumes: Sequence[TaskVolume], rows: np.ndarray, balance: Literal["cohort", "group"] | None
) -> np.ndarray:
    """A weight for each row by its volume, (n,) float64 that sum to 1.

    Args:
        volumes: all volumes of the task.
        rows: (n, 4) patches to draw from: volume number, z, y, x.
        balance: of what all have the same sum; every volume with a row is in one.
    """
    base = np.array([volume.weight for volume in volumes])[rows[:, 0]]
    if balance is not None:
        names = [getattr(volume, balance) for volume in volumes]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        own = np.array([numbers[name] for name in names])[rows[:, 0]]
        base /= np.bincount(own, base)[own]
    return base / base.sum()


def draw_weights(
    config: SamplingConfig | None,
    base: np.ndarray,
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    targets: Mapping[str, AnyTarget],
    criteria: PatchCriteria,
    indexer: Indexer,
) -> np.ndarray:
    """A weight for each row of the patch list, (n,) float64 that sum to 1.

    Args:
        config: what is drawn more often than its volume's weight says; nothing when None.
        base: from `volume_weights`.
        volumes: all volumes of the task.
        rows: (n, 4) patches to draw from: volume number, z, y, x.
        targets: say which values of a label are ignored.
        criteria: with which the patches were found.
        indexer: gives the label indexes that say what a patch holds.

    Raises:
        TaskError: no patch holds what is to be drawn, or a label's values are not counted.
    """
    if config is None or config.foreground == 0:
        return base
    held = voxels_held(config, volumes, rows, targets, criteria, indexer)
    wanted = _class_shares(config, held)
    weights = (1 - config.foreground) * base
    for name, share in wanted.items():
        drawn = base * (held[name] > 0 if config.classes is None else held[name])
        weights += config.foreground * share * drawn / drawn.sum()
    return weights


def voxels_held(
    config: SamplingConfig,
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    targets: Mapping[str, AnyTarget],
    criteria: PatchCriteria,
    indexer: Indexer,
) -> dict[str, np.ndarray]:
    """By value as text, the voxels (n,) of it in each row; all together as "" without classes."""
    cell = criteria.cell
    names = [sampled_label(config, volume, targets) for volume in volumes]
    grids: dict[int, CandidateGrid] = {}
    labels: list[Wanted] = []
    for number, (volume, name) in enumerate(zip(volumes, names, strict=True)):
        if name is not None and name in volume.labels and (rows[:, 0] == number).any():
            box = volume.labels[name].box
            grid = patch_grid(box, volume.region, criteria.patch, criteria.stride, cell)
            about = next((t for n, t in targets.items() if (t.derive or n) == name), None)
            rules = (about.ignored, about.annotated) if about else ((), None)
            grids[number] = grid
            labels.append(Wanted(volume.labels[name], grid.frame, volume.region, cell, *rules))
    held: dict[str, np.ndarray] = {}
    with closing(indexer.indexes(labels)) as indexes:
        for (number, grid), index in zip(grids.items(), indexes, strict=True):
            mine = rows[:, 0] == number
            places = _places(grid, rows[mine, 1:], volumes[number])
            for value in _values(index, config, volumes[number]):
                density = patch_density(index, grid, None if value is None else [value])
                counts = held.setdefault("" if value is None else str(value), np.zeros(len(rows)))
                at = np.searchsorted(density.places, places)
                at = np.minimum(at, max(len(density.places) - 1, 0))
                if len(density.places):
                    counts[mine] = np.where(density.places[at] == places, density.labelled[at], 0)
    return held


def sampled_label(
    config: SamplingConfig, volume: TaskVolume, targets: Mapping[str, AnyTarget]
) -> str | None:
    """The stored label of a volume whose values `sampling` means; None if the volume lacks it.

    As `sampling.label` says, a target that is derived standing for its source; else the reference
    label; else that of the only target that has one there (the task is refused where no volume
    tells, see `vcmodels.config.checks`).
    """
    if config.label is not None:
        target = targets.get(config.label)
        return config.label if target is None else target.derive or config.label
    if volume.ref is not None:
        return next(name for name, label in volume.labels.items() if label is volume.ref)
    stored = dict.fromkeys(t.derive or name for name, t in targets.items())
    there = [name for name in stored if name in volume.labels]
    return there[0] if len(there) == 1 else None


def _values(index: LabelIndex, config: SamplingConfig, volume: TaskVolume) -> Sequence[int | None]:
    """The values to tell apart, or None for all labels together."""
    if config.classes is None:
        return [None]
    if index.values is None:
        found = f"the label of {volume.name} holds too many values, or none that are whole numbers"
        raise TaskError(f"{KEY}.classes", found, "leave it out, or name a label with few values")
    return index.values


def _class_shares(config: SamplingConfig, held: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of the foreground draws for each value; they sum to 1.

    Raises:
        TaskError: there is nothing to draw for.
    """
    present = sorted(name for name, counts in held.items() if counts.any())
    if not present:
        found = f"no training patch holds voxels of {config.label or 'the reference label'}"
        raise TaskError(f"{KEY}.foreground", found, "name another label, or set it to 0")
    wanted = config.classes
    if not isinstance(wanted, dict):
        return dict.fromkeys(present, 1 / len(present))
    lacking = [name for name, weight in wanted.items() if weight and name not in present]
    if lacking:
        found = f"no training patch holds {', '.join(lacking)}; there are {', '.join(present)}"
        raise TaskError(f"{KEY}.classes", found, "correct the values, or leave those out")
    total = sum(wanted.values())
    if not total:
        raise TaskError(f"{KEY}.classes", "all weights are 0", "give one above 0")
    return {name: weight / total for name, weight in wanted.items() if weight}


def _places(grid: CandidateGrid, origins: np.ndarray, volume: TaskVolume) -> np.ndarray:
    """Flat numbers in the grid of patches (n, 3) of the list.

    Raises:
        TaskError: one is not on the grid; such a list is not of this task's own finding.
    """
    places = grid.places(origins)
    if (places < 0).any():
        found = f"the patch list of {volume.name} was not found with this task"
        raise TaskError(KEY, found, "delete the cache_file, or leave sampling out")
    return places


def make_order(
    seed: int, weights: np.ndarray, hard: float, epoch: int
) -> DrawOrder | LossWeightedOrder:
    """The order of draws by these weights, with a share of `hard` draws among those of an epoch."""
    return LossWeightedOrder(seed, weights, hard, epoch) if hard else DrawOrder(seed, weights)


TRIES = 32
"""Shifts that are drawn before a patch stays where it is."""


class ThresholdJitter:
    """Shifts by whole cells, for which the label index says exactly what a patch holds.

    Args:
        volumes: all volumes of the task; where one has no reference label, every place qualifies.
        criteria: thresholds, and the stride of which half is the longest shift.
        indexer: gives the label indexes.
    """

    def __init__(
        self, volumes: Sequence[TaskVolume], criteria: PatchCriteria, indexer: Indexer
    ) -> None:
        self.cell = criteria.cell
        self.reach = [s // 2 // c for s, c in zip(criteria.stride, self.cell, strict=True)]
        found = survey(volumes, criteria, indexer, stride=self.cell)
        self._grids = [one.grid for one in found]
        self._places = [one.qualifying(criteria) for one in found]

    def moved(self, number: int, patch: Box, region: Box, rng: np.random.Generator) -> Box:
        """As `Jitter`: at a random qualifying place within half a stride."""
        grid, places = self._grids[number], self._places[number]
        for shift in rng.integers(
            [-r for r in self.reach], [r + 1 for r in self.reach], (TRIES, 3)
        ):
            z, y, x = (
                o + int(s) * c for o, s, c in zip(patch.origin, shift, self.cell, strict=True)
            )
            moved = Box((z, y, x), patch.shape)
            if not region.contains(moved):
                continue
            if places is None or _holds(places, grid.places(np.array([moved.origin]))[0]):
                return moved
        return patch


def _holds(ascending: np.ndarray, number: int) -> bool:
    at = int(np.searchsorted(ascending, number))
    return at < len(ascending) and int(ascending[at]) == number


def make_jitter(
    wanted: bool | Literal["qualifying"],
    volumes: Sequence[TaskVolume],
    criteria: PatchCriteria,
    indexer: Indexer,
) -> Jitter | None:
    """What `patch_jitter` asks for: shifts by up to half a stride; None when patches stay."""
    if wanted == "qualifying":
        return ThresholdJitter(volumes, criteria, indexer)
    z, y, x = (n // 2 for n in criteria.stride)
    return FreeJitter((z, y, x)) if wanted and any((z, y, x)) else None
