"""What follows from the symmetry of a data set: for the default augmentation, and for a given one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np

from vcmodels.augment import AnyAugmentation, exact_moves
from vcmodels.augment.geometric import Flip, QuarterTurn
from vcmodels.config import Task
from vcmodels.config.load import fill_augment, has_own_augment
from vcmodels.data.record import identity_of, record_of
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.geometry.symmetries import Symmetry, have_equal_spacing, mirror, quarter_turn
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.resolve import Resolved
from vcmodels.reporting import Reporter, list_some
from vcmodels.runs.run import Run
from vcmodels.symmetry.find import UNTOLD_SHARE, find_symmetries, sign_remedy
from vcmodels.symmetry.findings import (
    AXES,
    SignVerdict,
    SymmetryFindings,
    in_words,
    stored_findings,
)

LEAST_DIRECTION = 0.1
"""Length of what is left of a mean unit vector, below which it tells no sign."""


def findings_of(
    resolved: Resolved,
    rows: np.ndarray,
    regions: Sequence[Box | None],
    *,
    reads_stored: bool = True,
    data_sha256: str | None = None,
) -> SymmetryFindings:
    """The symmetry of the volumes of a task: as its run keeps it, if that is of these, or found now.

    Args:
        resolved: the task and its volumes.
        rows: (n, 4) training patches.
        regions: per volume, what may be read.
        reads_stored: take what the run folder keeps.
        data_sha256: of what the volumes hold, if that is known.

    Raises:
        RunError: a label holds a value that its kind cannot have.
    """
    task, volumes = resolved.task, resolved.volumes
    identity = data_sha256 or identity_of(record_of(volumes))
    stored = stored_findings(Run(task.run_dir).symmetry) if reads_stored else None
    if stored is not None and is_about(stored, task, identity):
        return stored
    settings, targets = task.tr_params, task.dataset_config.targets
    found = find_symmetries(volumes, rows, regions, targets, settings.patch_size, settings.seed)
    return replace(found, data_sha256=identity, task_sha256=question_of(task))


def is_about(findings: SymmetryFindings, task: Task, data_sha256: str) -> bool:
    """Whether findings are of these data, looked at as the task does."""
    return (findings.data_sha256, findings.task_sha256) == (data_sha256, question_of(task))


def question_of(task: Task) -> str:
    """A sha256 of all in a resolved task that decides what findings are of, but what volumes hold.

    These are the targets, the patches, and how these are divided; all folds of a cross-validation
    have the same, for they share what the first one finds.
    """
    settings, config = task.tr_params, task.dataset_config
    divided = {"seed", "split_mode", "split_guard", "tr_val_split"}
    entries = {"bbox", "split", "group", "ref_label"}
    asked = {
        "targets": {name: one.model_dump(mode="json") for name, one in config.targets.items()},
        "patches": asdict(PatchCriteria.of(task)),
        "settings": settings.model_dump(mode="json", include=divided),
        "folds": settings.folds and settings.folds.model_dump(mode="json", exclude={"index"}),
        "volumes": [v.model_dump(mode="json", include=entries) for v in config.volume_paths],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def followed(
    task: Task, findings: SymmetryFindings, volumes: Sequence[TaskVolume], reporter: Reporter
) -> Task:
    """The task with a default `augment` that mirrors and turns by what holds; a given one stays.

    Args:
        task: the resolved task.
        findings: of its volumes.
        volumes: for their voxel sizes.
        reporter: told what the default leaves out, and where a given list goes against the data.
    """
    spacings = [volume.spacing for volume in volumes]
    for note in notes(task, findings, spacings):
        reporter.say(note)
    return fill_augment(task, suited(task.augmentations, findings.group, spacings))


def suited(
    augmentations: Sequence[AnyAugmentation],
    group: Sequence[Symmetry],
    spacings: Sequence[Spacing],
) -> list[AnyAugmentation]:
    """The list with only those mirrors and turns that are in a group of symmetries."""
    held, kept = set(group), list[AnyAugmentation]()
    for one in augmentations:
        if isinstance(one, Flip):
            axes = tuple(axis for axis in one.axes if mirror(AXES.index(axis)) in held)
            kept += [one.changed(axes=axes)] if axes else []
        elif isinstance(one, QuarterTurn):
            planes = tuple(p for p in one.planes if _turns(p, spacings) <= held)
            kept += [one.changed(planes=planes)] if planes else []
        else:
            kept.append(one)
    return kept


def _turns(plane: tuple[str, str], spacings: Sequence[Spacing]) -> set[Symmetry]:
    """What a quarter turn of a plane is in each of the volumes."""
    a, b = (AXES.index(axis) for axis in plane)
    turn = quarter_turn(a, b)
    return {turn if have_equal_spacing(one, a, b) else turn @ turn for one in spacings}


def notes(
    task: Task,
    findings: SymmetryFindings,
    spacings: Sequence[Spacing],
    remedy: str = "leave it out, or leave augment out, which then follows the data",
) -> Iterator[str]:
    """What a person should know before the training, a line each.

    Args:
        task: the resolved task.
        findings: of its volumes.
        spacings: of these.
        remedy: for an `augment` of its own that does what the data refute.
    """
    moves = {move for one in {*spacings} for move in exact_moves(task.augmentations, one)}
    refuted = findings.refuted(moves)
    is_own = has_own_augment(task)
    if refuted and is_own:
        more = f", and {len(refuted) - 1} more" if len(refuted) > 1 else ""
        yield (
            f"note: augment: does what the data refute: {findings.why_not(refuted[0])}{more}; "
            f"{remedy}"
        )
    elif refuted:
        yield f"symmetry: {findings.summary}; the default augment follows"
    for name, sign in findings.signs.items():
        subject = f"note: dataset_config.targets.{name}: nothing tells the sign of its vectors"
        if sign.remedy and not sign.by_direction:
            yield f"{subject} ({sign.found}): {sign.remedy}"
        elif is_own and refuted and _loses_sign(sign, list(moves)):
            axial = sign_remedy(task.dataset_config.targets[name])
            listed = list_some(map(in_words, refuted), 3)
            yield f"{subject} once augment turns them about: leave out {listed}, or {axial}"
        elif sign.remedy:
            yield (
                f"note: dataset_config.targets.{name}: the sign of its vectors is known by direction "
                f"alone ({sign.found}), in volumes that lie as these do; for others {sign.remedy}"
            )


def _loses_sign(sign: SignVerdict, moves: Sequence[Symmetry]) -> bool:
    """Whether vectors have a sign by their common direction alone, which a group of moves takes away."""
    mean = np.asarray(sign.mean)
    left = np.mean([mean @ move.matrix for move in moves], axis=0)
    is_lost = np.linalg.norm(left) < LEAST_DIRECTION <= np.linalg.norm(mean)
    return bool(is_lost) and sign.windows > 0 and sign.by_image < UNTOLD_SHARE


def refuse_turned_pairs(task: Task, volumes: Sequence[TaskVolume]) -> None:
    """Refuse quarter turns of an axis whose mirror exchanges classes: a side has no name after one.

    Raises:
        TaskError: `augment` is given, and has some.
    """
    if not has_own_augment(task):
        return
    spacings = {volume.spacing for volume in volumes}
    moves = {move for one in spacings for move in exact_moves(task.augmentations, one)}
    for name, target in task.dataset_config.targets.items():
        for axis in sorted(target.paired_axes):
            if any(move.permutation[axis] != axis for move in moves):
                found = f"has quarter turns of {AXES[axis]}, along which {name} has mirror_pairs"
                remedy = f"leave {AXES[axis]} out of its planes, or leave augment out"
                raise TaskError("augment", found, remedy)
