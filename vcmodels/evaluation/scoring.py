"""Figures of whole volumes, measured block by block: out of core, in parallel, continued after a kill.

Each block gives one part: the sums of all metrics that are made of sums, those of the first one slice
by slice, and what each `BlockMetric` keeps. Parts wait in a record on disk, one for each target of a
volume, and are joined as a stream in the order of the blocks. So no more is in memory than the blocks
that are being worked on, and a figure does not depend on who worked on them, or on how often.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from math import nan, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcmodels.blockwise import BlockRecord, Engine, map_blocks
from vcmodels.blockwise.engines import ShouldStop
from vcmodels.evaluation.pairs import Counted, ScoredPair
from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.evaluation.shares import PairShares
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import (
    AnyMetric,
    BlockMetric,
    BlockPart,
    Curve,
    Metric,
    Metrics,
    Sense,
    Sums,
    VolumeMetric,
)
from vcmodels.metrics.choice import default_metrics as default_metrics
from vcmodels.metrics.registry import (
    add_sums,
    curves,
    is_countable,
    measure,
    measure_volume,
    named_figures,
    summarise,
    volume_senses,
)
from vcmodels.reporting import Reporter, Silent
from vcmodels.scratch import scratch_folder

MOST_WHOLE = 512**3
"""Values, of prediction and label together, that a metric of a whole volume may hold in memory."""
_SUMS, _SLICES = "sums:", "slices:"
_SUFFIX = ".parts"


@dataclass(frozen=True)
class ScoredTarget:
    """One prediction and its label in a volume, and what is measured."""

    name: str
    pair: ScoredPair
    metrics: Metrics
    """Those that fit the form of the pair."""
    class_names: tuple[str, ...] = ()
    """Of all classes but the background; none for masks, values and vectors."""
    label_location: str = ""


@dataclass(frozen=True)
class ScoredVolume:
    """What is scored of one volume."""

    name: str
    """Unique among those of a report."""
    prediction: str
    """Where it lies, as it was given."""
    targets: tuple[ScoredTarget, ...]
    """One or more."""
    image: tuple[str, ...] = ()
    unit: str = ""
    """Of the spacing; empty when unknown."""
    group: str | None = None
    split: str | None = None


def score_volumes(
    volumes: Sequence[ScoredVolume],
    *,
    record: Path | None = None,
    engine: Engine | None = None,
    provenance: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    should_stop: ShouldStop = lambda: False,
) -> Report | None:
    """Measure volumes, or continue doing so; None after a stop.

    Args:
        volumes: what is scored.
        record: folder for what is measured meanwhile; the same call with the same folder continues,
            and measures again what has changed. Delete it with `remove_records` once the report is
            kept. In a temporary folder when None.
        engine: who works on the blocks; the threads of this process when None.
        provenance: JSON values for the report.
        reporter: gets a bar for each target, and what is measured again.
        should_stop: asked several times a second; what was measured by then is recorded.

    Raises:
        RunError: a label holds what its kind cannot have, or a chunk is damaged.
        OutputError: another process works in the folder.
    """
    reporter = reporter or Silent()
    scored: list[VolumeScores] = []
    pooled: dict[str, _Pool] = {}
    with ExitStack() as stack:
        folder = record or stack.enter_context(scratch_folder())
        for volume in volumes:
            begun, found = time.monotonic(), dict[str, TargetScores]()
            for target in volume.targets:
                measured = _measure_target(
                    volume.name, target, folder, engine, reporter, should_stop
                )
                if measured is None:
                    return None
                found[target.name], sums = measured
                pooled.setdefault(target.name, _Pool(target)).add(target, sums)
            scored.append(_volume_scores(volume, found, time.monotonic() - begun))
    settings = {"volumes": len(volumes), "metrics": _settings(volumes)}
    every = {name: pool.scores() for name, pool in pooled.items() if pool.sums}
    return Report(tuple(scored), every, settings, dict(provenance or {}))


def remove_records(folder: Path, volumes: Iterable[ScoredVolume]) -> None:
    """Delete what `score_volumes` recorded of some volumes, and the folder if nothing else is in it."""
    for volume in volumes:
        for target in volume.targets:
            _record_path(folder, volume.name, target.name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@dataclass(frozen=True)
class BlockWork:
    """What is measured of a block."""

    pair: ScoredPair
    metrics: Metrics

    def __call__(self, block: Box) -> BlockPart:
        """The part of a block: arrays named `sums:...`, `slices:...` and `<metric>:...`."""
        sums, slices = self._sums(block)
        part = {f"{_SUMS}{key}": value.numpy() for key, value in sums.items()}
        part |= {f"{_SLICES}{key}": value.numpy() for key, value in slices.items()}
        for name, metric in _block_metrics(self.metrics).items():
            kept = metric.measure(self.pair, block)
            part |= {f"{name}:{key}": np.asarray(value) for key, value in kept.items()}
        return part

    def _sums(self, block: Box) -> tuple[Sums, Sums]:
        """Sums over a block; and over each of its slices, of the metrics that share those of the first.

        No slices where nothing counts.
        """
        shared, others = _divided(self.metrics)
        if not shared:
            return {}, {}
        if self.pair.is_constant(block):
            one = _tensors(*self.pair.load(Box(block.origin, (1, 1, 1))))
            slices = _times(measure(shared, *one), prod(block.shape[1:]))
            every = {k: v.expand(block.shape[0], *v.shape) for k, v in slices.items()}
            sums = _times(measure({**shared, **others}, *one), block.voxels)
            return sums, every if one[2].any() else {}
        if is_countable(self.metrics) and (counted := self.pair.counted(block)) is not None:
            return self._sums_of_counted(counted, shared, others)
        whole = _tensors(*self.pair.read(block))
        if not whole[2].any():  # Nothing counts here, but sums have a shape.
            return measure({**shared, **others}, *(t[..., :0, :0, :0] for t in whole)), {}
        cut = [[t[:, :, z : z + 1] for t in whole] for z in range(block.shape[0])]
        found = [measure(shared, *one) for one in cut]
        every = {key: torch.stack([one[key] for one in found]) for key in found[0]}
        return _added_up(every) | measure(others, *whole), every

    def _sums_of_counted(
        self, counted: Counted, shared: Metrics, others: Metrics
    ) -> tuple[Sums, Sums]:
        found, wanted, valid = _tensors(counted.prediction, counted.label, counted.valid)
        counts = torch.from_numpy(counted.counts)
        weights = counts.sum(0).view(1, 1, -1, 1, 1) * valid
        if not weights.any():
            return measure({**shared, **others}, found, wanted, weights), {}
        every = self._shares.sums(
            counted.keys,
            counts,
            lambda n: measure(shared, *(t[:, :, n : n + 1] for t in (found, wanted, valid))),
        )
        return _added_up(every) | measure(others, found, wanted, weights), every

    @cached_property
    def _shares(self) -> PairShares:
        return PairShares()


def _added_up(slices: Sums) -> Sums:
    return {key: values.sum(0) for key, values in slices.items()}


def _divided(metrics: Metrics) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """The metrics made of sums: those that share the sums of the first one, and the others."""
    summed = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
    first = next((metric.measure for metric in summed.values()), None)
    shared = {name: metric for name, metric in summed.items() if metric.measure is first}
    return shared, {name: metric for name, metric in summed.items() if name not in shared}


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array)[None] for array in arrays]


def _times(sums: Sums, count: int) -> Sums:
    return {key: value * count for key, value in sums.items()}


def _block_metrics(metrics: Metrics) -> dict[str, BlockMetric]:
    return {name: metric for name, metric in metrics.items() if isinstance(metric, BlockMetric)}


def _measure_target(
    volume: str,
    target: ScoredTarget,
    folder: Path,
    engine: Engine | None,
    reporter: Reporter,
    should_stop: ShouldStop,
) -> tuple[TargetScores, Sums] | None:
    """The scores of a target in a volume, and the sums behind them; None after a stop."""
    pair, blocks = target.pair, list(blocks_of(target.pair.box, target.pair.cell))
    work = BlockWork(pair, target.metrics)
    with BlockRecord(_record_path(folder, volume, target.name), _identity(target)) as kept:
        if kept.changed:
            reporter.say(f"{volume}: {target.name} is measured again: {kept.changed} changed")
        is_whole = map_blocks(
            work,
            blocks,
            kept,
            engine=engine,
            reporter=reporter,
            should_stop=should_stop,
            name=f"score {target.name}",
        )
        return _joined(target, kept, blocks) if is_whole else None


def _record_path(folder: Path, volume: str, target: str) -> Path:
    name = hashlib.sha256(f"{volume}\0{target}".encode()).hexdigest()[:20]
    return folder / f"{name}{_SUFFIX}"


def _identity(target: ScoredTarget) -> dict[str, Any]:
    """All that determines what is recorded, by what a person would call it."""
    import vcmodels  # late: the package imports this module

    contents = target.pair.contents()
    return {
        **contents,
        "metrics": {name: _described(metric) for name, metric in target.metrics.items()},
        "versions": [vcmodels.__version__, np.__version__, torch.__version__],
    }


def _described(metric: AnyMetric) -> dict[str, Any]:
    """What is measured, as JSON values: the options of a `BlockMetric`, else the function."""
    if isinstance(metric, BlockMetric):
        return {"options": repr(metric)}
    function = metric.measure if isinstance(metric, Metric) else metric.function
    return {"function": getattr(function, "__qualname__", repr(function))}


def _joined(
    target: ScoredTarget, kept: BlockRecord, blocks: Sequence[Box]
) -> tuple[TargetScores, Sums]:
    """The scores of one target from all of its parts."""
    metrics, names = target.metrics, target.class_names
    sums, slices = _joined_sums(kept.parts(blocks))
    figures = summarise(metrics, sums, names) if sums else {}
    lines: dict[str, Curve] = curves(metrics, sums, names) if sums else {}
    for name, metric in _block_metrics(metrics).items():
        joined = metric.join(kept.parts(blocks, f"{name}:"))
        for figure, value in metric.figures(joined).items():
            figures |= named_figures(figure, value, names)
        lines |= metric.curves(joined)
    whole, notes = _whole_figures(target)
    figures |= whole
    scores = TargetScores(
        form=target.pair.form,
        figures=figures,
        better=better_of(metrics, figures, names),
        classes=names,
        curves=lines,
        slices=_slice_figures(metrics, slices, names),
        notes=notes,
    )
    return scores, sums


def _joined_sums(parts: Iterable[tuple[Box, BlockPart]]) -> tuple[Sums, dict[int, Sums]]:
    """The sums over all blocks, and those of each z slice; added in the order of the blocks."""
    sums: Sums = {}
    layers: dict[int, Sums] = {}
    for box, part in parts:
        sums = add_sums(sums, _with_prefix(part, _SUMS))
        # Of all slices of a layer of blocks at once: one by one they took as long as decoding.
        layers[box.origin[0]] = add_sums(layers.get(box.origin[0], {}), _with_prefix(part, _SLICES))
    slices: dict[int, Sums] = {}
    for start, rows in layers.items():
        for at in range(len(next(iter(rows.values()), ()))):
            slices[start + at] = {key: values[at] for key, values in rows.items()}
    return sums, slices


def _with_prefix(part: BlockPart, prefix: str) -> Sums:
    found = {k.removeprefix(prefix): v for k, v in part.items() if k.startswith(prefix)}
    return {key: torch.from_numpy(np.asarray(value)) for key, value in found.items()}


def _slice_figures(
    metrics: Metrics, slices: Mapping[int, Sums], names: Sequence[str]
) -> dict[int, float]:
    """The first figure of each slice that has one, by z."""
    shared, _ = _divided(metrics)
    first = dict(list(shared.items())[:1])
    found: dict[int, float] = {}
    for z, sums in sorted(slices.items()):
        value = next(iter(summarise(first, sums, names).values()))
        if value == value:
            found[z] = value
    return found


def _whole_figures(target: ScoredTarget) -> tuple[dict[str, float], tuple[str, ...]]:
    """The figures of metrics that see a volume whole, and why they are missing where it is large."""
    whole = {n: m for n, m in target.metrics.items() if isinstance(m, VolumeMetric)}
    if not whole:
        return {}, ()
    pair = target.pair
    prediction, label, _ = pair.load(Box(pair.box.origin, (1, 1, 1)))
    values = pair.box.voxels * (len(prediction) + len(label))
    if values <= MOST_WHOLE:
        read = pair.load(pair.box)
        return measure_volume(whole, *read, pair.spacing, target.class_names), ()
    figures = {figure: nan for metric in whole.values() for figure in metric.better}
    note = f"{values:,} values are more than fit in memory at once ({MOST_WHOLE:,})"
    return figures, (f"{', '.join(whole)}: not measured: {note}",)


def better_of(
    metrics: Metrics, figures: Iterable[str], classes: Sequence[str] = ()
) -> dict[str, Sense]:
    """Whether less or more of each figure is better.

    Args:
        metrics: of which the figures are.
        figures: their names, those of classes as `<figure>_<class>`.
        classes: names of the classes but the background.
    """
    known = volume_senses(metrics, classes)
    return {figure: known[figure] for figure in figures if figure in known}


class _Pool:
    """The sums of a target over several volumes."""

    def __init__(self, target: ScoredTarget) -> None:
        self.target, self.sums = target, Sums()
        self._is_alike = True

    def add(self, target: ScoredTarget, sums: Sums) -> None:
        """Add the sums of a volume, unless its metrics or classes are others."""
        mine = (self.target.metrics, self.target.class_names, self.target.pair.form)
        self._is_alike &= (target.metrics, target.class_names, target.pair.form) == mine
        self.sums = add_sums(self.sums, sums) if self._is_alike else {}

    def scores(self) -> TargetScores:
        metrics, names = self.target.metrics, self.target.class_names
        figures = summarise(metrics, self.sums, names)
        return TargetScores(
            form=self.target.pair.form,
            figures=figures,
            better=better_of(metrics, figures, names),
            classes=names,
            curves=curves(metrics, self.sums, names),
        )


def _volume_scores(
    volume: ScoredVolume, found: Mapping[str, TargetScores], seconds: float
) -> VolumeScores:
    return VolumeScores(
        name=volume.name,
        prediction=volume.prediction,
        labels={target.name: target.label_location for target in volume.targets},
        boxes=tuple(dict.fromkeys(target.pair.box for target in volume.targets)),
        spacing=volume.targets[0].pair.spacing,
        unit=volume.unit,
        targets=found,
        image=volume.image,
        group=volume.group,
        split=volume.split,
        seconds=seconds,
    )


def _settings(volumes: Iterable[ScoredVolume]) -> dict[str, Any]:
    """The metrics and their options, by target."""
    found: dict[str, Any] = {}
    for target in (target for volume in volumes for target in volume.targets):
        found.setdefault(target.name, {n: _options(m) for n, m in target.metrics.items()})
    return found


def _options(metric: AnyMetric) -> dict[str, Any]:
    if not isinstance(metric, BlockMetric):
        return {}
    left_out = ("compares", "is_default")
    return {f.name: getattr(metric, f.name) for f in fields(metric) if f.name not in left_out}
