"""A task with nothing left out: volumes opened, patch and batch size planned, one fold chosen."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from statistics import median_high
from typing import Literal

from vcmodels.config import Task, TrainingParams, parse_task
from vcmodels.config.checks import check_task
from vcmodels.config.load import fill_prepare, fill_sizes
from vcmodels.config.messages import task_error
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import check_patch, open_volumes, trained_on, with_copies
from vcmodels.devices import choose_amp, choose_device, memory_bytes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.geometry.symmetries import AXES
from vcmodels.models import AnyModel
from vcmodels.models.plan import (
    BATCH_SHARE,
    BATCH_SIZE,
    LONGEST,
    MIN_EDGE,
    PatchTrial,
    StepMemory,
    length_at_least,
    length_at_most,
    plan_batch,
    plan_patch,
)
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.folds import all_folds, how_divided
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.split import WHOLE_VOLUMES_FROM, refuse_tested
from vcmodels.reporting import Reporter, Silent, list_some
from vcmodels.runs.run import Run

MACHINE_SHARE = 0.25
"""Of a machine's memory that a step on its CPU may take: readers and other programs live there too."""
DEVICE_SHARE = 0.9
"""Of a CUDA device's: its context, convolution workspace and lost space are not in the estimate."""

MOST_NAMED = 4

StepEstimate = Callable[[Shape], StepMemory]
"""What a step with patches of a shape needs; raises ValueError if the network cannot take them."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a step may take, how many one value of a convolution has, and why, in words."""

    step_bytes: int
    value_bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Sizes for a task, and how they came about."""

    patch: Shape
    batch: int
    tried: list[PatchTrial]
    """Patches from the largest to the planned one; [] for one that was given."""
    reasons: list[str]
    """A line for each decision."""


def plan_sizes(
    settings: TrainingParams,
    network: AnyModel,
    heads: Mapping[str, int],
    volumes: Sequence[TaskVolume],
    sharing: int = 1,
    slice_axis: str | None = None,
) -> Plan:
    """Patch and batch size by what the network estimates for a step; what the settings give is kept.

    Args:
        settings: the sizes, the memory, and what else limits a patch.
        network: whose steps are planned.
        heads: channels of the logits, by target.
        volumes: all volumes of the task.
        sharing: how many trainings are to divide the memory of the device.
        slice_axis: along which a patch is one voxel thick.

    Raises:
        TaskError: the network takes none of the patches, or a step with none of them fits.
    """
    budget = _budget(settings, network.memory_target_gb, sharing)
    first = volumes[0]

    def estimate(patch: Shape) -> StepMemory:
        return network.estimate(first.channels, heads, patch, first.spacing)

    reasons = [f"memory {gigabytes(budget.step_bytes)}: {budget.reason}"]
    least, tried = settings.given_batch_size or BATCH_SIZE, list[PatchTrial]()
    patch = settings.given_patch_size
    if patch is None:
        longest, room = _longest(settings, volumes, slice_axis)
        tried = _try_patches(estimate, first.spacing, longest, budget, least)
        patch = tried[-1].patch
        largest = f"{list(longest)}, which {room}"
        why = room if len(tried) == 1 else f"the largest that fits, cut down from {largest}"
        reasons.append(f"patch_size {list(patch)}: {why}")
    memory, value = estimate(patch), budget.value_bytes
    fixed = memory.step_bytes(0, value)
    each = memory.step_bytes(1, value) - fixed
    batch, why = settings.given_batch_size, "as given"
    if batch is None:
        batch, why = BATCH_SIZE, "memory goes to the patch"
        if len(tried) == 1:
            voxels = sum(volume.region.voxels for volume in volumes)
            most = int(BATCH_SHARE * voxels / prod(patch))
            batch = plan_batch(fixed, each, budget.step_bytes, most)
            why = f"patches cannot grow; {BATCH_SHARE:.0%} of all voxels at most, {BATCH_SIZE} at least"
    needed = gigabytes(memory.step_bytes(batch, value))
    reasons.append(f"batch_size {batch}: {why}; a step takes about {needed}")
    return Plan(patch, batch, tried, [*reasons, _reading(first, patch)])


def _budget(settings: TrainingParams, target_gb: float, sharing: int) -> Budget:
    """What `memory_gb` says, or what there is up to the memory that the network is meant for."""
    device = choose_device(settings.device, "tr_params.device")
    value = 4 if choose_amp(settings.amp, device) is None else 2
    precision = "float32" if value == 4 else "16-bit convolutions"
    if settings.memory_gb != "auto":
        given = int(settings.memory_gb * 1e9)
        return Budget(given, value, f"tr_params.memory_gb, {precision}")
    there, target = memory_bytes(device), int(target_gb * 1e9)
    share = DEVICE_SHARE if device.type == "cuda" else MACHINE_SHARE
    shared = int(share * there / sharing)
    of = f"{share:.0%} of {gigabytes(there)} ({device.type})"
    reason = of if shared < target else f"what the network is meant for; {of} would be there"
    return Budget(min(shared, target), value, f"{reason}, {precision}")


def _longest(
    settings: TrainingParams, volumes: Sequence[TaskVolume], slice_axis: str | None
) -> tuple[Shape, str]:
    """The lengths that a patch may have at most, and what sets them, in words."""
    extent = [median_high(volume.region.shape[axis] for volume in volumes) for axis in range(3)]
    longest, why = [length_at_least(n) for n in extent], f"covers {tuple(extent)} voxels"
    if slice_axis is not None:  # a volume is cut between slices: there is room
        longest[AXES.index(slice_axis)] = 1
        return triple(longest), f"covers a slice across {slice_axis} of {tuple(extent)} voxels"
    axis = extent.index(max(extent))
    room = length_at_most(_room(settings, volumes, extent[axis]))
    if MIN_EDGE <= room < longest[axis]:
        longest[axis] = room
        why += f", but leaves room for a training and a validation side along {AXES[axis]}"
    return triple(longest), why


def _room(settings: TrainingParams, volumes: Sequence[TaskVolume], extent: int) -> int:
    """How long a patch may be for a volume to be cut in two across its longest axis, or into slabs."""
    undecided = [v for v in volumes if v.split is None]
    if settings.folds is not None:
        # The shorter of the parts before and behind a slab still holds a patch and the guard band.
        is_cut = undecided and how_divided(settings.folds, undecided) == "slab"
        return extent // (2 * settings.folds.count) if is_cut else LONGEST
    has_val = any(volume.split == "val" for volume in volumes)
    has_groups = any(volume.group is not None for volume in undecided)
    stays_whole = has_val or has_groups or not 0 < len(undecided) < WHOLE_VOLUMES_FROM
    if stays_whole or settings.split_mode == "random" or settings.tr_val_split == 1:
        return LONGEST
    guard = settings.split_guard
    if guard is None:  # as wide as a patch, where that leaves one of some length
        return extent // 3 if extent // 3 >= MIN_EDGE else extent // 2
    return (extent - guard) // 2


def _try_patches(
    estimate: StepEstimate, spacing: Spacing, longest: Shape, budget: Budget, batch: int
) -> list[PatchTrial]:
    """As `plan_patch`, for a network."""
    refused: list[ValueError] = []

    def needed(patch: Shape) -> int | None:
        try:
            return estimate(patch).step_bytes(batch, budget.value_bytes)
        except ValueError as error:
            refused.append(error)
            return None

    tried = plan_patch(longest, spacing, budget.step_bytes, needed)
    if not tried:
        found = f"left out, and the network takes none of the patches inside {list(longest)}"
        first = refused[0]
        raise TaskError("tr_params.patch_size", f"{found}: {first}", "give one") from first
    last = tried[-1]
    if last.step_bytes > budget.step_bytes:
        found = (
            f"{gigabytes(budget.step_bytes)} ({budget.reason}), but {batch} of the smallest patches "
            f"{list(last.patch)} need {gigabytes(last.step_bytes)}"
        )
        remedy = "raise it, or make the network smaller, as with decoder: shared"
        raise TaskError("tr_params.memory_gb", found, remedy)
    return tried


def _reading(volume: TaskVolume, patch: Shape) -> str:
    chunks = volume.inputs[0].chunks
    factor = prod((p + c - 1) / p for p, c in zip(patch, chunks, strict=True))
    size = " x ".join(map(str, chunks))
    return f"reading: a patch anywhere decodes {factor:.1f} times its voxels, in chunks of {size}"


def gigabytes(count: int) -> str:
    """As `memory_gb` counts, in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e9:.2g} GB"


@dataclass(frozen=True)
class Resolved:
    """A task as training takes it."""

    task: Task
    """With its patch and batch size."""
    volumes: Sequence[TaskVolume]
    """All that train or validate, or those of the fold that the task is, each with its `split`."""
    folds: Sequence[Sequence[TaskVolume]] = ()
    """In a cross-validation, the volumes of every fold."""
    tested: Sequence[TaskVolume] = ()
    """Volumes of the split `test`, which no training sees."""


def resolve(
    task: Task,
    reporter: Reporter | None = None,
    *,
    recorded: Task | Literal["run"] | None = "run",
    reads_labels: bool = True,
    sharing: int = 1,
) -> Resolved:
    """Open the volumes of a task, and fill in what it leaves to them.

    Args:
        task: as it was loaded.
        reporter: shows what `open_volumes` finds odd, and sizes that are filled in.
        recorded: a task with sizes, which are taken where this one leaves them out, as is what was
            found for `prepare`; "run" is the one that the run folder holds, if it does; None plans them.
        reads_labels: divide the volumes into `folds`, by their labels; all volumes are given else.
        sharing: how many trainings are to divide the memory of the device, if sizes are planned.

    Raises:
        VolumeError, TaskError: as `open_volumes` and `all_folds`.
        TaskError: nothing fits the memory, or a planned size does not fit another key; a volume of
            `test` shows voxels of another, or there is no other.
    """
    reporter = reporter or Silent()
    if recorded == "run" and _leaves_open(task):
        recorded = recorded_task(Run(task.run_dir))
    if isinstance(recorded, Task):
        task = fill_prepare(task, recorded.dataset_config.prepare)
    every = with_copies(open_volumes(task, reporter))
    volumes, tested = trained_on(every), [v for v in every if v.split == "test"]
    refuse_tested(volumes, tested)
    if tested:
        reporter.say(f"kept for testing, in no training: {_counted(tested)}")
    if task.tr_params.given_patch_size is None:
        assert recorded != "run", "it was read above"
        task = _with_sizes(task, volumes, recorded, sharing, reporter)
    task = _with_prepare(task, every)
    folds = task.tr_params.folds
    if folds is None or not reads_labels:
        return Resolved(task, volumes, tested=tested)
    indexer = Indexer.of(task, reporter)
    divided = all_folds(task.tr_params, volumes, PatchCriteria.of(task), indexer)
    chosen = volumes if folds.index is None else divided[folds.index]
    return Resolved(task, chosen, divided, tested)


def _leaves_open(task: Task) -> bool:
    """Whether a run may have found what the task leaves out."""
    prepare = task.dataset_config.prepare
    has_open = prepare is not None and not prepare.is_settled
    return has_open or task.tr_params.given_patch_size is None


def _with_prepare(task: Task, volumes: Sequence[TaskVolume]) -> Task:
    """The task with what the volumes told of `prepare`."""
    done = volumes[0].preparation
    if done is None or task.dataset_config.prepare is None:  # only a region was taken
        return task
    return task.with_values(dataset_config={"prepare": done.prepare})


def _counted(volumes: Sequence[TaskVolume]) -> str:
    """How many volumes, and the first of them, in words."""
    count = f"{len(volumes)} volume{'s' if len(volumes) > 1 else ''}"
    return f"{count} ({list_some((volume.name for volume in volumes), MOST_NAMED)})"


def recorded_task(run: Run) -> Task | None:
    """The task of a run that has its sizes; None if none has begun, or it cannot be read."""
    with suppress(TaskError):
        found = parse_task(run.task(), str(run.task_file), is_record=True)[0]
        return found if found.tr_params.given_patch_size is not None else None
    return None


def _with_sizes(
    task: Task,
    volumes: Sequence[TaskVolume],
    recorded: Task | None,
    sharing: int,
    reporter: Reporter,
) -> Task:
    """The task with a recorded patch and batch size, or planned ones, which are reported."""
    if recorded is not None:
        sizes, origin = recorded.tr_params, "as the run has them"
        full = fill_sizes(task, sizes.given_patch_size, sizes.given_batch_size)
    else:
        axis = task.dataset_config.slice_axis
        plan = plan_sizes(task.tr_params, task.model, task.heads, volumes, sharing, axis)
        origin = "planned, `vcmodels plan` says why"
        full = fill_sizes(task, plan.patch, plan.batch)
    patch, batch = full.tr_params.patch_size, full.tr_params.batch_size
    reporter.say(f"patch_size {list(patch)}, batch_size {batch}: {origin}")
    if faults := check_task(full):
        raise task_error(faults)
    check_patch(patch, full.model, full.dataset_config.targets, volumes, reporter)
    return full
