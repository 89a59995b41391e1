"""The networks of one prediction: which checkpoints, and what they must have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.checkpoint import Predictor, build_predictor, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.folds import fold_folders, fold_name, is_cross_validation
from vcmodels.data.normalization import Normalization
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.symmetries import SPACING_TOLERANCE, Symmetry
from vcmodels.inference.journal import Manifest
from vcmodels.inference.reading import Normalize
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Volume, expand_location

_TRAINING_ONLY = {
    "activation", "output", "weight", "loss", "loss_only_on_label", "label_smoothing",
    "dilate_label", "ignore_label", "encoding", "output_range", "label_interpolation", "derive",
    "surface_of", "smoothing_sigma", "width", "between", "max_extent", "keep_cut", "sigma",
    "sigma_units",
}  # fmt: skip
"""Keys of a target that may differ from those it was trained with: they do not change its logits."""


def trained_differences(trained: AnyTarget, other: AnyTarget) -> Iterator[tuple[str, Any, Any]]:
    """Keys, with both values, by which two targets differ in what their logits mean."""
    before, now = trained.model_dump(), other.model_dump()
    for key in sorted(before.keys() | now.keys()):
        if key not in _TRAINING_ONLY and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def choose_checkpoints(task: Task, named: str | Sequence[str] | None = None) -> list[Path]:
    """Those given, else the task's, else the best of the run or of all its folds.

    Raises:
        CheckpointError: there is none.
    """
    named = named or task.inference_params.checkpoint_path
    if named:
        paths = [named] if isinstance(named, str) else named
        return [Path(expand_location(path)) for path in paths]
    if is_trained_in_folds(task):
        return best_of_folds(task)
    best = task.run_dir / _best(task)
    if not best.exists():
        found = f"holds no {best.name}"
        raise CheckpointError(str(task.run_dir), found, "train first, or give a checkpoint_path")
    return [best]


def is_trained_in_folds(task: Task) -> bool:
    """Whether the run is a cross-validation, also when only the command line said so."""
    has_best = (task.run_dir / _best(task)).exists()
    return is_cross_validation(task) or (not has_best and bool(fold_folders(task.run_dir)))


def best_of_folds(
    task: Task,
    wanted: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Path]:
    """The best checkpoint of each fold.

    Args:
        task: the task of them all.
        wanted: the folds to take; all that have one when None.
        say: told which are taken, and which have none.

    Raises:
        CheckpointError: none has one, or one that is wanted has not.
    """
    folds, begun = task.tr_params.folds, fold_folders(task.run_dir)
    count = max([folds.count if folds else 0, *(index + 1 for index in begun)])
    chosen = range(count) if wanted is None else sorted(set(wanted))
    paths = {index: task.run_dir / fold_name(index) / _best(task) for index in chosen}
    lacking = [index for index, path in paths.items() if not path.exists()]
    if len(lacking) == len(paths) or (lacking and wanted is not None):
        subject = str(paths[lacking[0]] if lacking else task.run_dir)
        raise CheckpointError(subject, "there is no such fold to predict with", "train it first")
    for index in lacking:
        say(f"fold {index} has no {_best(task)} yet: it is left out")
    taken = [index for index in chosen if index not in lacking]
    say(f"predicting with the best of folds {', '.join(map(str, taken))} in {task.run_dir}")
    return [paths[index] for index in taken]


def _best(task: Task) -> str:
    return f"{task.tr_params.model_name}_best.pth"


def load_members(paths: Sequence[Path]) -> Predictor:
    """The networks of some checkpoints: the first, with the others behind it.

    Raises:
        CheckpointError: one cannot be used.
    """
    first, *others = [build_predictor(load_checkpoint(path)) for path in paths]
    return replace(first, others=tuple(others))


def check_members(
    predictor: Predictor, targets: Mapping[str, AnyTarget], given_patch: Shape | None
) -> None:
    """Refuse networks of which no mean can be taken.

    They may differ in their weights, architecture and normalisation.

    Args:
        predictor: the first, which the task was checked against, with the others behind it.
        targets: those to write.
        given_patch: the patch size of the inference, if it is given.

    Raises:
        CheckpointError: naming what differs.
    """
    known = {predictor.sha256: predictor.path}
    for other in predictor.others:
        if other.sha256 in known:
            found = f"holds the same weights as {known[other.sha256]}"
            raise CheckpointError(str(other.path), found, "name each checkpoint once")
        known[other.sha256] = other.path
        differing = next(_differences(predictor, other, targets, given_patch), None)
        if differing:
            raise CheckpointError(
                str(other.path), f"{differing} ({predictor.path})", "use checkpoints that agree"
            )


def _differences(
    first: Predictor, other: Predictor, targets: Mapping[str, AnyTarget], given_patch: Shape | None
) -> Iterator[str]:
    if other.in_channels != first.in_channels:
        yield f"takes {other.in_channels} channels, the first checkpoint {first.in_channels}"
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
    elif given_patch is not None and given_patch != other.patch:
        try:
            other.task.model.check_patch(given_patch, other.spacing, planned=other.patch)
        except ValueError as error:
            yield f"cannot take patch_size {list(given_patch)}: {error}; the first can"


@dataclass(frozen=True)
class Share:
    """A network and how much it counts."""

    predictor: Predictor
    weight: float


def share_out(task: Task, predictor: Predictor, views: int) -> list[Share]:
    """Each network with its weight, 1 in sum, sorted so that the order in the task means nothing.

    Args:
        task: for `inference_params.ensemble`.
        predictor: the first, with the others behind it.
        views: of each patch.

    Raises:
        TaskError: what is asked for needs more networks, views or weights than there are.
    """
    params = task.inference_params
    members = (predictor, *predictor.others)
    count, key = len(members), "inference_params.ensemble"
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
    shares = [Share(m, w / sum(weights)) for m, w in zip(members, weights, strict=True)]
    return sorted(shares, key=lambda share: share.predictor.sha256)


def averaging_manifest(task: Task, shares: Sequence[Share], views: Sequence[Symmetry]) -> Manifest:
    """What of it determines the voxels; None for what is not used, as for older results."""
    params = task.inference_params
    weights = [share.weight for share in shares]
    sha256 = [share.predictor.sha256 for share in shares]
    return {
        "checkpoint_sha256": sha256 if len(shares) > 1 else sha256[0],
        "ensemble": {"by": params.ensemble.by, "weights": weights} if len(shares) > 1 else None,
        "tta": [str(view) for view in views] if len(views) > 1 else None,
        "uncertainty": params.uncertainty or None,
    }


class Normalizer:
    """The images that the networks take, each of another normalisation, stacked as channels."""

    def __init__(self, members: Sequence[Predictor], inputs: tuple[Volume, ...]) -> None:
        every = [replace(member.normalization, volumes={}) for member in members]
        different = [way for number, way in enumerate(every) if way not in every[:number]]
        self.image = [different.index(way) for way in every]
        """Which of the images each network takes."""
        self._apply = [_apply(way, inputs) for way in different]

    def __call__(self, patch: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) as stored -> (images x C, Z, Y, X) float32."""
        if len(self._apply) == 1:
            return self._apply[0](patch)
        return np.concatenate([apply(patch) for apply in self._apply])


def _apply(normalization: Normalization, inputs: tuple[Volume, ...]) -> Normalize:
    """The checkpoint's normalisation; `per: volume` measures the new volume, all of it."""
    if normalization.per != "volume" or normalization.scheme == "none":
        return normalization.apply
    return partial(normalization.apply, volume_stats=normalization.of_volume(inputs, inputs[0].box))
