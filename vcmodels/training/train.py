"""One training, from top to bottom."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcmodels.boards import Board, require_wandb
from vcmodels.checkpoint import Checkpoint, TrainedNetwork
from vcmodels.config import NormalizationConfig, Task
from vcmodels.config.load import fill_augment
from vcmodels.config.train_params import TrainingParams
from vcmodels.data.cases import Row, case_rows, used_sides, write_cases
from vcmodels.data.intensities import measure
from vcmodels.data.normalization import (
    Normalization,
    fit_normalization,
    measure_volumes,
    of_each_volume,
    report_lost,
)
from vcmodels.data.record import identity_of
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import report_missing
from vcmodels.devices import choose_amp, choose_device, memory_bytes, set_threads
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.cache import document, fingerprint, load_or_find_patches
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.misfits import report_misfits, report_unlearnt
from vcmodels.patches.resolve import Resolved, resolve
from vcmodels.patches.split import Split, load_or_split, require_room
from vcmodels.reporting import Reporter, StopSignals
from vcmodels.results import foreseen
from vcmodels.runs.run import Run
from vcmodels.samples.dataset import PatchDataset
from vcmodels.samples.order import draws_of_step, hard_share
from vcmodels.samples.training_set import augmented_set, plain_set
from vcmodels.symmetry.findings import SymmetryFindings, stored_findings, write_findings
from vcmodels.symmetry.follow import findings_of, followed, notes, refuse_turned_pairs
from vcmodels.training.curve_values import refuse_unlabelled, refuse_valueless
from vcmodels.training.curves import cut_json_lines, open_board, traceable
from vcmodels.training.feed import Feed, count_or_recall, weighted_targets
from vcmodels.training.learner import Learner
from vcmodels.training.loop import Loop, best_weights
from vcmodels.training.mean_teacher import Consistency, views_of
from vcmodels.training.other_folds import (
    require_alike,
    require_one_division,
    require_same_data,
    siblings,
)
from vcmodels.training.progress import Counters, smaller_steps
from vcmodels.training.run_folder import RunFolder, resolved_task
from vcmodels.training.start import (
    KnownData,
    StartingPoint,
    compare_data,
    compile_pays,
    completion,
    describe_device,
    idle_keys,
    lasting_facts,
    saved_count,
    session,
    start,
    unkept,
)
from vcmodels.training.step import require_pairs
from vcmodels.training.teachers import Lesson, check_teachers, distillation, load_teachers
from vcmodels.training.validation import (
    HeldOutVolumes,
    MakeVolumeValidation,
    VolumeValidation,
)
from vcmodels.training.world import World, local_device
from vcmodels.volumes.places import write_atomic


@dataclass(frozen=True)
class DataSummary:
    """Which patches there are, and the statistics of those to train on."""

    split: Split
    normalization: Normalization
    class_counts: dict[str, list[int]]
    """Voxels of each class, for the targets whose loss asks for them."""
    intensities: list[dict[str, Any]]
    """Of each channel, the values that are trained on, for inputs to be compared with."""
    validation_patches: int
    """How many a validation looks at, at most; of a run that goes on with other batches, as before."""

    def facts(self) -> dict[str, Any]:
        """As they go into a checkpoint."""
        return {
            "normalization": self.normalization.to_dict(),
            "split": self.split.to_dict(),
            "class_counts": self.class_counts,
            "intensities": self.intensities,
            "validation_patches": self.validation_patches,
        }


def summarise(
    run: Run,
    resolved: Resolved,
    origin: StartingPoint,
    reporter: Reporter,
    *,
    changed: bool = False,
) -> DataSummary:
    """Find and divide the patches, and measure the volumes; what a checkpoint knows is taken from it.

    The run folder keeps the patches and how they are divided; where the labels were `changed` in
    the middle of a run, the regions stay and other patches lie in them.

    Raises:
        RefusedError: no patch qualifies, the volumes cannot be divided, or labels do not fit.
    """
    task, volumes = resolved.task, resolved.volumes
    config = task.dataset_config
    patches = load_or_find_patches(task, volumes, reporter)
    if not config.use_cache or task.cache_file != run.patches:  # else the cache is kept there
        wanted = fingerprint(PatchCriteria.of(task), volumes)
        write_atomic(run.patches, document(patches, wanted, volumes))
    split = load_or_split(run, task.tr_params, volumes, patches, reporter, changed=changed)
    reporter.say(f"{len(split.train)} training and {len(split.val)} validation patches")
    if origin.resumed is None:
        report_unlearnt(task, volumes, split.train, reporter)
    regions = split.train_regions
    normalization = normalize(config.normalization, origin, volumes, regions, reporter)
    saved = {} if origin.continued is None else origin.continued.state
    known, indexer = saved.get("class_counts", {}), Indexer.of(task, reporter)
    counts = count_or_recall(config.targets, volumes, regions, known, indexer, reporter)
    intensities = saved.get("intensities")
    if intensities is None:
        pairs = zip(volumes, regions, strict=True)
        found = measure([(volume.inputs, region) for volume, region in pairs if region is not None])
        intensities = [channel.to_dict() for channel in found]
    seen = validation_patches(task.tr_params, origin.resumed)
    return DataSummary(split, normalization, counts, intensities, seen)


def validation_patches(settings: TrainingParams, resumed: Checkpoint | None) -> int:
    """How many patches a validation looks at, at most: as many as that of the run did before."""
    steps = settings.max_val_steps_per_epoch
    if resumed is None:
        return steps * settings.batch_size
    before = resolved_task(resumed)  # of older files
    size = (before and before.tr_params.given_batch_size) or settings.batch_size
    return saved_count(resumed, "validation_patches", steps * size)


def known_batch(run: RunFolder, settings: TrainingParams, resumed: Checkpoint | None) -> int:
    """How many patches at a time a validation takes: fewer where a start before had to."""
    size = settings.batch_size
    return size if resumed is None else run.validation_batch(size)


def normalize(
    wanted: NormalizationConfig,
    origin: StartingPoint,
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    reporter: Reporter,
) -> Normalization:
    """The normalisation that the run has, or its weights are used to, or a new one.

    Weights from a file that were trained with statistics of each volume get those of the volumes
    here, whatever their names.
    """
    used = origin.normalization(volumes[0], wanted)
    if used is None:
        return fit_normalization(wanted, volumes, regions, reporter)
    is_known = used.per != "volume" or all(volume.name in used.volumes for volume in volumes)
    if origin.resumed is not None and is_known:
        return used
    if origin.resumed is None:
        whose = "the teacher is" if origin.source is None else "the weights are"
        reporter.say(f"normalization: {used.scheme} per {used.per}, as {whose} used to")
    if used.scheme == "none" or used.per == "patch":
        return used
    measured, _ = measure_volumes(used, volumes, regions)
    if used.per == "volume":
        return of_each_volume(used, measured, reporter)
    remedy = "bring them to its scale, or begin with weights that are trained per volume"
    report_lost(used, measured, remedy, reporter)
    return used


def datasets(resolved: Resolved, summary: DataSummary) -> tuple[PatchDataset, PatchDataset | None]:
    """The training patches, and as many validation patches as one validation looks at."""
    split, normalization = summary.split, summary.normalization
    training = augmented_set(resolved, split.train, split.train_regions, normalization)
    if not len(split.val):
        return training, None
    wanted = min(summary.validation_patches, len(split.val))
    rows = split.val[np.linspace(0, len(split.val) - 1, wanted).astype(np.int64)]
    return training, plain_set(resolved, rows, split.val_regions, normalization)


VALIDATION = "validation"
"""The folder, in that of the run, for predictions of whole volumes while they are validated."""

ESTIMATE_SLACK = 2
"""A compiled step may keep half of what is estimated; sizes near the limit are left to try."""


def train(
    task: Task,
    *,
    reporter: Reporter,
    restart: bool = False,
    accept_changed_data: bool = False,
    whole_volumes: MakeVolumeValidation | None = None,
) -> int:
    """Train until `max_epoch`, `max_minutes` or a signal, continuing the run that the folder holds.

    Args:
        task: the resolved task.
        reporter: where lines and progress bars go.
        restart: move an earlier run aside and begin again.
        accept_changed_data: continue on inputs or labels that are other than they were.
        whole_volumes: makes what validates whole volumes, for tasks that ask for it.

    Returns:
        The exit code: 0 when finished, 128 + signal when stopped by one (the state is saved).

    Raises:
        RefusedError: the task, a volume or the run folder does not allow it; nothing was changed.
        RunError: a failure on the way; the last checkpoint is whole and the same command resumes.
    """
    deadline = time.monotonic() + 60 * (task.tr_params.max_minutes or math.inf)
    set_threads(task.tr_params.threads)
    device = choose_device(local_device(task.tr_params.device), "tr_params.device")
    _ = task.tensorboard_dir, task.cache_file  # a bad path is refused here
    require_wandb(task.tr_params.wandb)
    world, run = World.join(device), RunFolder(task.run_dir, task.tr_params.model_name)
    with (
        StopSignals(lambda: reporter.say(untrained(run))) as stop,
        ExitStack() as held,
        world.together(),
    ):
        held.callback(world.leave)
        world.once(lambda: held.enter_context(run) and None)
        origin = StartingPoint.of(task, run, restart=restart)
        for line in idle_keys(task.tr_params, origin.resumed):
            reporter.say(line)
        targets = task.dataset_config.targets
        if (ended := completion(origin.resumed, task.tr_params, targets)) is not None:
            reporter.say(f"{run.folder}: already complete ({ended})")
            return 0

        reporter.say(describe_device(device))
        open_it = partial(open_run, task, origin, device, world, reporter)
        resolved, data = world.once(lambda: open_it(accepts=accept_changed_data))
        teachers = taught_by(resolved, origin)
        document = resolved.task.to_json()
        learner = build_learner(resolved, device, world, is_fresh=origin.source is None)
        # Nearly all that may be refused is above.
        counters = start(learner, origin, document, reporter)
        if origin.resumed is not None:
            forget_lost_best(run, counters, reporter)
        world.require_same((learner.step, origin.source and origin.source.sha256), "the checkpoint")
        if world.is_first and origin.resumed is None:
            begin_anew(run, reporter, restart=restart)
        summary = world.once(
            lambda: summarise(run, resolved, origin, reporter, changed=bool(data.accepted))
        )
        settle = partial(settle_symmetry, run, resolved, data, summary.split, origin, reporter)
        settled, symmetry = world.once(settle)
        resolved, document = replace(resolved, task=settled), settled.to_json()
        learner.lessons = lessons(resolved, teachers, summary.normalization, learner)
        learner.targets |= weighted_targets(targets, summary.class_counts, reporter)
        training, validation = datasets(resolved, summary)
        if validation is not None:
            is_new = origin.resumed is None
            world.once(lambda: refuse_valueless(resolved.task, validation, reporter, is_new=is_new))
        facts = lasting_facts(resolved, learner) | summary.facts() | {"data": data.record}
        facts |= {"teachers": [one.sha256 for one in teachers]} if teachers else {}
        facts |= {"symmetry": symmetry.to_dict()} if symmetry is not None else {}
        facts |= origin.carried
        volumes = volume_validation(resolved, summary.split, run, device, whole_volumes)
        if volumes is not None:
            world.once(lambda: volumes.check({**facts, **best_weights(learner)}))
        batch = world.once(lambda: known_batch(run, learner.settings, origin.resumed))
        if world.is_first:
            fewer = batch if batch < learner.settings.batch_size else None
            used = {"normalization": summary.normalization.summary, "validation_batch": fewer}
            if symmetry is not None:
                write_findings(run.symmetry, symmetry)
            write_cases(run.cases, used_cases(resolved, summary.split))
            run.begin(session(learner) | used | data_facts(data))
            run.write_task(document)  # last: without the record it would seem to be a user's
        if compile_pays(learner):
            reporter.say("the first step compiles the network, which takes a minute or so")
            learner.compile(reporter.say)

        feed = Feed(training, validation, learner.settings, device, world, batch)
        held.callback(feed.close)
        restore_feed(feed, origin.continued, facts["split"], reporter)
        # Lines of the log are of whole epochs: one that was cut off is reported once more.
        reported = counters.epoch * learner.settings.max_steps_per_epoch
        reporter.say(f"curves: tensorboard --logdir {task.tensorboard_dir.parent}")
        with shown_on(resolved, run.log, learner, reported, reporter) as board:
            loop = Loop(
                learner, counters, feed, run, board, stop, reporter, facts, volumes, deadline
            )
            return loop.train()


def used_cases(resolved: Resolved, split: Split) -> list[Row]:
    """The volumes of a run, each with the side of the split that it is on."""
    volumes, tested = resolved.volumes, resolved.tested
    sides = used_sides(volumes, split.train_regions, split.val_regions, tested)
    return case_rows([*volumes, *tested], sides)


def volume_validation(
    resolved: Resolved,
    split: Split,
    run: Run,
    device: torch.device,
    make: MakeVolumeValidation | None,
) -> VolumeValidation | None:
    """What validates whole volumes, if the task asks for it and something is held out."""
    pairs = zip(resolved.volumes, split.val_regions, strict=True)
    parts = tuple((volume, box) for volume, box in pairs if box is not None)
    if not resolved.task.tr_params.validation.whole_volumes or not parts:
        return None
    assert make is not None, "train(whole_volumes=...) is needed for this task"
    return make(HeldOutVolumes(resolved.task, parts, run.folder / VALIDATION, device))


def forget_lost_best(run: Run, counters: Counters, reporter: Reporter) -> None:
    """Where the best checkpoint was deleted, let the next one be the best."""
    if counters.epoch and not run.best.exists():
        reporter.say(f"{run.best.name} is gone: the best from here on is kept")
        counters.best = math.inf


def restore_feed(
    feed: Feed, continued: Checkpoint | None, split: object, reporter: Reporter
) -> None:
    """Bring a feed to where its run was, and say if it validates with fewer patches at a time."""
    if continued is not None and continued.state.get("split") == split:
        feed.restore(continued.state, str(continued.path))
    if feed.validation_batch < feed.settings.batch_size:
        reporter.say(
            f"validation in batches of {feed.validation_batch} patches: one with larger "
            "ones did not come to its end"
        )


def untrained(run: Run) -> str:
    """What a stop before the first step leaves, in words."""
    kept = " and ".join(path.name for path in (run.last, run.patches) if path.exists())
    held = f", {run.folder} keeps {kept}" if kept else ""
    return (
        f"stopped before the first step: nothing was trained{held}; the same command starts again"
    )


def open_run(
    task: Task,
    origin: StartingPoint,
    device: torch.device,
    world: World,
    reporter: Reporter,
    *,
    accepts: bool = False,
) -> tuple[Resolved, KnownData]:
    """The task with its sizes filled in, and the volumes of this run: all, or those of its fold.

    Raises:
        RefusedError: a volume does not fit the task, the task not another fold or the device; or
            the data have changed, and that is not accepted.
    """
    folds = task.tr_params.folds
    others = siblings(Run(task.run_dir), folds.index if folds is not None else None)
    require_alike(task, others)
    recorded = next((other.task for other in others), None)
    if origin.source is not None:
        recorded = resolved_task(origin.source)
    resolved = resolve(task, reporter, recorded=recorded)
    filled = origin.with_normalization(resolved.task, resolved.volumes[0])
    filled = origin.with_augment(filled)
    resolved = replace(resolved, task=filled)
    refuse_turned_pairs(filled, resolved.volumes)
    require_one_division(resolved.folds, others)
    settings = resolved.task.tr_params
    require_room(settings, resolved.volumes, settings.patch_size)
    refuse_too_large(resolved, device, world, is_saved=origin.resumed is not None)
    refuse_unlabelled(resolved.task, resolved.volumes, reporter, is_new=origin.resumed is None)
    report_missing(resolved.volumes, reporter)
    is_begun = origin.resumed is not None
    report_misfits(resolved.task, resolved.volumes, reporter, is_begun=is_begun)
    for note in (
        *unkept(resolved.task),
        *foreseen(resolved.task, resolved.volumes[0].stored_channels),
    ):
        reporter.say(note)
    data = compare_data(origin, resolved.volumes, reporter, accepts=accepts)
    if not accepts:
        require_same_data(others, identity_of(data.record))
    return replace(resolved, volumes=data.volumes), data


def settle_symmetry(
    run: Run,
    resolved: Resolved,
    data: KnownData,
    split: Split,
    origin: StartingPoint,
    reporter: Reporter,
) -> tuple[Task, SymmetryFindings | None]:
    """The task with the augmentation that its data allow, and what was found about them.

    A run that goes on keeps both; the folds of a cross-validation have those of the first one, or
    look for themselves if that was begun before there were findings, and keep its augmentation.

    Raises:
        RunError: a label holds a value that its kind cannot have.
    """
    if origin.continued is not None:
        return resolved.task, origin.symmetry
    task, regions = resolved.task, split.train_regions
    folds = task.tr_params.folds
    begun = siblings(run, folds.index if folds is not None else None)
    kept = (stored_findings(Run(other.folder).symmetry) for other in begun)
    found = next((one for one in kept if one is not None), None)
    if found is None:
        known = identity_of(data.record)
        found = findings_of(resolved, split.train, regions, reads_stored=False, data_sha256=known)
    if not begun:
        return followed(task, found, resolved.volumes, reporter), found
    task = fill_augment(task, begun[0].task.augment)
    spacings = [volume.spacing for volume in resolved.volumes]
    reporter.say(f"symmetry: {found.summary}; augment is that of {begun[0].folder}")
    for note in notes(task, found, spacings, "change it in all folds, with --restart"):
        reporter.say(note)
    return task, found


def taught_by(resolved: Resolved, origin: StartingPoint) -> list[TrainedNetwork]:
    """The networks of the teachers, where the task has any.

    Raises:
        TaskError, CheckpointError: one cannot teach this student.
    """
    task, first = resolved.task, resolved.volumes[0]
    checkpoints = load_teachers(task.tr_params.distill)
    patch, targets = task.tr_params.patch_size, task.dataset_config.targets
    return check_teachers(checkpoints, targets, first, patch, origin.resumed)


def lessons(
    resolved: Resolved,
    teachers: Sequence[TrainedNetwork],
    normalization: Normalization,
    learner: Learner,
) -> list[Lesson]:
    """What is learnt besides the labels.

    Raises:
        TaskError: a teacher normalises images in a way that the student's cannot be brought to.
    """
    settings, targets = resolved.task.tr_params, resolved.task.dataset_config.targets
    found: list[Lesson] = []
    if settings.distill is not None:
        others = resolved.volumes, learner.device, settings.amp
        found.append(distillation(teachers, targets, settings.distill, normalization, *others))
    if settings.consistency is not None:
        assert learner.averaged is not None
        spacing = resolved.volumes[0].spacing
        views = views_of(resolved.task.augment, settings.patch_size, spacing)
        rule, steps = settings.consistency, learner.total_steps
        run = learner.run
        found.append(Consistency(learner.averaged, run, targets, views, spacing, rule, steps))
    return found


def data_facts(data: KnownData) -> dict[str, Any]:
    """What `environment.json` says of the data of a training that starts now."""
    facts: dict[str, Any] = {"data_sha256": identity_of(data.record)}
    return facts | ({"accepted_changes": data.accepted} if data.accepted else {})


def build_learner(
    resolved: Resolved, device: torch.device, world: World, *, is_fresh: bool = False
) -> Learner:
    """A learner with random weights, the same for one seed, and those that a fresh one begins with."""
    task, first = resolved.task, resolved.volumes[0]
    settings, config = task.tr_params, task.dataset_config
    torch.manual_seed(settings.seed)
    network = task.model.build(first.channels, task.heads, settings.patch_size, first.spacing)
    if is_fresh:
        network.load_state_dict(task.model.first_weights(network), strict=False)
    measures = hard_share(config.sampling) > 0
    return Learner(network, config.targets, settings, device, world, measures_samples=measures)


def begin_anew(run: RunFolder, reporter: Reporter, *, restart: bool) -> None:
    """Clear the folder for a new run: with `restart` of an earlier one, which is moved aside."""
    if restart and (aside := run.move_aside()) is not None:
        reporter.say(f"moved the earlier run to {aside}")
    # A split that nothing was trained with binds nobody.
    run.splits_file.unlink(missing_ok=True)


def refuse_too_large(
    resolved: Resolved, device: torch.device, world: World, *, is_saved: bool
) -> None:
    """Compare what a step is estimated to need with what the device has, before allocating it.

    Raises:
        TaskError: it cannot fit, or there are more processes than samples in a step.
    """
    task, first = resolved.task, resolved.volumes[0]
    settings, samples = task.tr_params, draws_of_step(task.tr_params)
    if samples < world.size:
        raise TaskError(
            "tr_params.batch_size",
            f"a step has {samples} samples, for {world.size} processes",
            "make batch_size or gradient_accumulation larger, or start fewer processes",
        )
    require_pairs(settings.mixup, min(settings.batch_size, samples // world.size))
    memory = task.model.estimate(first.channels, task.heads, settings.patch_size, first.spacing)
    batch = min(settings.batch_size, math.ceil(samples / world.size))
    value = 4 if choose_amp(settings.amp, device) is None else 2
    needed, there = memory.step_bytes(batch, value), memory_bytes(device)
    if needed > ESTIMATE_SLACK * there:
        raise TaskError(
            "tr_params.batch_size",
            f"a step needs about {needed / 2**30:,.0f} GiB, the {device.type} has "
            f"{there / 2**30:,.0f} GiB",
            smaller_steps(settings, is_saved=is_saved),
        )


@contextmanager
def shown_on(
    resolved: Resolved, log: Path, learner: Learner, reported: int, reporter: Reporter
) -> Iterator[Board]:
    """Where the curves go; in a world of several processes only the first has any.

    What the log holds of steps after `reported` is about to be written again, and is removed.
    """
    if not learner.world.is_first:
        yield Board([], reporter.say)
        return
    cut_json_lines(log, reported)
    task, first = resolved.task, resolved.volumes[0]
    patch, spacing = task.tr_params.patch_size, first.spacing
    network = partial(traceable, learner.network, task.model, patch, spacing, first.channels)
    with open_board(task, learner.step, reporter.say, network) as board:
        yield board
