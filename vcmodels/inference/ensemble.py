"""The networks of one prediction: which checkpoints, and what they must have in common."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams, Task
from vcmodels.data.normalization import Normalization
from vcmodels.data.oddities import odd_statistics, say_some
from vcmodels.data.statistics import VolumeStatistics
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.exchange import form_of, is_nnunet, load_network, models_at
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.symmetries import SPACING_TOLERANCE, Symmetry
from vcmodels.inference.journal import Manifest
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import Run
from vcmodels.targets.differences import trained_differences
from vcmodels.volumes import Volume, expand_location


def choose_checkpoints(
    task: Task,
    named: str | Sequence[str] | None = None,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Those given, else the task's, else the best of the run or of all its folds.

    Args:
        task: for the run folder, and the checkpoints that its `inference_params` name.
        named: checkpoints to use instead.
        folds: use the best of these folds, whatever the task names.
        reporter: told which folds are taken, and which have no checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if not named and folds is None:
        named = task.inference_params.checkpoint_path
    if named:
        paths = [named] if isinstance(named, str) else named
        return [one for path in paths for one in models_at(Path(expand_location(path)))]
    run = Run(task.run_dir, task.tr_params.model_name)
    begun, has_best = run.folds(), run.best.exists()
    # Only the command line may have said that it is a cross-validation.
    if folds is not None or task.is_cross_validation or (begun and not has_best):
        planned = task.tr_params.folds.count if task.tr_params.folds else 0
        every = range(max([planned, *(index + 1 for index in begun)]))
        wanted = every if folds is None or folds == "all" else sorted(set(folds))
        return best_of_folds(run, wanted, is_strict=wanted is not every, reporter=reporter)
    return [_best_of(run, reporter or Silent())]


def _best_of(run: Run, reporter: Reporter) -> Path:
    """The best checkpoint of a run: by a watcher, where one has scored it, else by the training.

    Raises:
        CheckpointError: there is none.
    """
    watched = run.watched_best()
    if watched is None:
        return run.require_best()
    reporter.say(f"predicting with the best by the watcher of {run.folder}, {watched}")
    return watched.path


def best_of_folds(
    run: Run, wanted: Sequence[int], *, is_strict: bool = False, reporter: Reporter | None = None
) -> list[Path]:
    """The best checkpoint of each fold.

    Args:
        run: the cross-validation.
        wanted: the folds to take.
        is_strict: refuse a fold that has none; else it is left out.
        reporter: told which are taken, and which have none.

    Raises:
        CheckpointError: none has one, or one that is wanted has not.
    """
    reporter = reporter or Silent()
    watched = {index: run.fold(index).watched_best() for index in wanted}
    paths = {i: found.path if found else run.fold(i).best for i, found in watched.items()}
    lacking = [index for index, path in paths.items() if not path.exists()]
    if len(lacking) == len(paths) or (lacking and is_strict):
        subject = str(paths[lacking[0]] if lacking else run.folder)
        raise CheckpointError(subject, "there is no such fold to predict with", "train it first")
    for index in lacking:
        reporter.say(f"fold {index} has no {run.best.name} yet: it is left out")
    taken = [index for index in paths if index not in lacking]
    reporter.say(f"predicting with the best of folds {', '.join(map(str, taken))} in {run.folder}")
    for index, found in watched.items():
        if found:
            reporter.say(f"fold {index}: the best by its watcher, {found}")
    return [paths[index] for index in taken]


def find_checkpoints(source: str | Path) -> list[Path]:
    """The checkpoint, or the exported model, at a path; of a run folder the best one.

    Of a cross-validation, and of a result folder of nnU-Net, it is one for each fold.

    Raises:
        CheckpointError: the folder holds none, or several runs.
    """
    path = Path(expand_location(str(source)))
    if not path.is_dir() or form_of(path) or is_nnunet(path):
        return models_at(path)
    best = _best_in(path) or [
        b for fold in Run(path).folds().values() for b in _best_in(fold.folder)
    ]
    if not best and (run := Run(path)).name:
        run.require_best()
    if not best:
        raise CheckpointError(str(path), f"holds no {_BEST}", "train first, or name a checkpoint")
    return best


_BEST = "*_best.pth"


def _best_in(folder: Path) -> list[Path]:
    """The best checkpoint of the one run in a folder, by a watcher or the training; [] without one.

    Raises:
        CheckpointError: several runs have one there.
    """
    if watched := Run(folder).watched_best():
        return [watched.path]
    found = sorted(folder.glob(_BEST))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(str(folder), f"holds several runs: {names}", "name one of the files")
    return found


def load_networks(paths: Iterable[Path], *, trust: bool = False) -> tuple[TrainedNetwork, ...]:
    """The networks of some checkpoints, or of models in other forms.

    Args:
        paths: their files or folders.
        trust: let code in packages of others run.

    Raises:
        CheckpointError: one cannot be used.
    """
    return tuple(load_network(path, trust=trust) for path in paths)


def check_networks(
    networks: Sequence[TrainedNetwork], targets: Iterable[str], given_patch: Shape | None
) -> None:
    """Refuse networks of which no mean can be taken.

    They may differ in their weights, architecture and normalisation.

    Args:
        networks: the first of them was checked against the task.
        targets: names of those to write.
        given_patch: the patch size of the inference, if it is given.

    Raises:
        CheckpointError: naming what differs.
    """
    first, *others = networks
    known = {first.sha256: first.path}
    for other in others:
        if other.sha256 in known:
            found = f"holds the same weights as {known[other.sha256]}"
            raise CheckpointError(str(other.path), found, "name each checkpoint once")
        known[other.sha256] = other.path
        differing = next(_differences(first, other, targets, given_patch), None)
        if differing:
            raise CheckpointError(
                str(other.path), f"{differing} ({first.path})", "use checkpoints that agree"
            )


def _differences(
    first: TrainedNetwork, other: TrainedNetwork, targets: Iterable[str], given_patch: Shape | None
) -> Iterator[str]:
    if other.in_channels != first.in_channels:
        yield f"takes {other.in_channels} channels, the first checkpoint {first.in_channels}"
    if other.task.dataset_config.stack != first.task.dataset_config.stack:
        yield "sees other slices as channels than the first"
    if other.task.dataset_config.coordinates != first.task.dataset_config.coordinates:
        yield "sees other channels than the first: one has dataset_config.coordinates"
    pairs = zip(other.spacing, first.spacing, strict=True)
    if any(abs(a - b) > SPACING_TOLERANCE * max(a, b) for a, b in pairs):
        yield f"was trained on voxels of {other.spacing}, the first on {first.spacing}"
    for name in targets:
        if name not in other.targets:
            yield f'has no target "{name}", which the first has'
            continue
        for key, was, now in trained_differences(first.targets[name], other.targets[name]):
            yield f'target "{name}" has {key}={now!r}, that of the first {was!r}'
    if given_patch is None and other.patch != first.patch:
        yield f"was trained with patches of {other.patch}, the first with {first.patch}"
    elif given_patch is not None:
        try:
            other.check_patch(given_patch)
        except ValueError as error:
            yield f"cannot take patch_size {list(given_patch)}: {error}; the first can"


@dataclass(frozen=True)
class WeightedNetwork:
    """A network and how much it counts."""

    network: TrainedNetwork
    weight: float


def weigh(
    networks: Sequence[TrainedNetwork], params: InferenceParams, views: int
) -> list[WeightedNetwork]:
    """Each network with its weight, 1 in sum, sorted so that the order in the task means nothing.

    Args:
        networks: in the order of `ensemble.weights`.
        params: for `ensemble` and `uncertainty`.
        views: of each patch.

    Raises:
        TaskError: what is asked for needs more networks, views or weights than there are.
    """
    count, key = len(networks), "inference_params.ensemble"
    if params.ensemble.by == "variance" and (count < 2 or views < 2):
        found = f'is by "variance", with checkpoints: {count}, views of each patch: {views}'
        remedy = "give several of both (checkpoint_path, tta): their views tell how sure they are"
        raise TaskError(key, found, remedy)
    if params.uncertainty and count * views < 2:
        found = "is on, and each patch is predicted once"
        raise TaskError("inference_params.uncertainty", found, "give tta, or several checkpoints")
    weights = params.ensemble.weights or [1.0] * count
    if len(weights) != count:
        found = f"{len(weights)} weights for {count} checkpoints"
        raise TaskError(f"{key}.weights", found, "give one for each, in their order")
    pairs = zip(networks, weights, strict=True)
    weighted = [WeightedNetwork(network, weight / sum(weights)) for network, weight in pairs]
    return sorted(weighted, key=lambda one: one.network.sha256)


def averaging_manifest(
    weighted: Sequence[WeightedNetwork], params: InferenceParams, views: Sequence[Symmetry]
) -> Manifest:
    """What of it determines the voxels; None for what is not used, as for older results."""
    weights = [one.weight for one in weighted]
    sha256 = [one.network.sha256 for one in weighted]
    is_ensemble = len(weighted) > 1
    return {
        "checkpoint_sha256": sha256 if is_ensemble else sha256[0],
        "ensemble": {"by": params.ensemble.by, "weights": weights} if is_ensemble else None,
        "tta": [str(view) for view in views] if len(views) > 1 else None,
        "uncertainty": params.uncertainty or None,
    }


class Normalizer:
    """The images that the networks take, each of another normalisation, stacked as channels."""

    def __init__(
        self, networks: Sequence[TrainedNetwork], inputs: tuple[Volume, ...], reporter: Reporter
    ) -> None:
        every = [replace(one.normalization, volumes={}, choice=None) for one in networks]
        different = [way for number, way in enumerate(every) if way not in every[:number]]
        self.image = [different.index(way) for way in every]
        """Which of the images each network takes."""
        self.measured = tuple(_measured(way, inputs, reporter) for way in different)
        """With `per: volume` the statistics of the inputs, for each of the images."""
        self._apply = [
            partial(way.apply, volume_stats=found)
            for way, found in zip(different, self.measured, strict=True)
        ]

    def __call__(self, patch: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) as stored -> (images x C, Z, Y, X) float32."""
        if len(self._apply) == 1:
            return self._apply[0](patch)
        return np.concatenate([apply(patch) for apply in self._apply])


def _measured(
    normalization: Normalization, inputs: tuple[Volume, ...], reporter: Reporter
) -> VolumeStatistics | None:
    """What `per: volume` takes of the new volume, all of it; None for what the checkpoint has."""
    if normalization.per != "volume" or normalization.scheme == "none":
        return None
    found = normalization.of_volume(inputs, inputs[0].box)
    say_some(odd_statistics(normalization.scheme, found, inputs[0].shown), reporter)
    return found
