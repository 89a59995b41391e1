"""What a task would do: its volumes, patches, network and memory, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from rich.table import Table

from vcmodels.audit import cheap_findings
from vcmodels.cli.console import Console, narrow_table, write_table
from vcmodels.config import Task
from vcmodels.config.load import fill_sizes
from vcmodels.data.normalization import fit_normalization, other_choice
from vcmodels.data.record import identity_of, record_of
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes, report_missing, spacing_text, trained_on
from vcmodels.errors import RefusedError
from vcmodels.patches.cache import UnusableListError, fingerprint, read_list
from vcmodels.patches.find import PatchCriteria, PatchList, are_few, choose_patches, survey
from vcmodels.patches.folds import all_folds
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.misfits import report_misfits, report_unlearnt
from vcmodels.patches.resolve import gigabytes, plan_sizes, resolve
from vcmodels.patches.split import refuse_shared, refuse_tested, require_room, split_patches
from vcmodels.reporting import Silent
from vcmodels.results import device_note, foreseen, needs_import, open_inputs
from vcmodels.runs.run import Run
from vcmodels.scratch import scratch_folder
from vcmodels.symmetry.findings import stored_findings
from vcmodels.symmetry.follow import is_about, refuse_turned_pairs
from vcmodels.targets import AnyTarget
from vcmodels.training.curve_values import refuse_unlabelled
from vcmodels.training.run_folder import RunFolder
from vcmodels.training.start import StartingPoint, check_start, unkept
from vcmodels.volumes import Volume

MOST_VOLUMES = 20
MOST_TRIED = 4
MOST_MEASURED = 64
"""Volumes that `check` reads for the choice of their normalisation."""


def report_sizes(task: Task, console: Console) -> None:
    """Print the patch and batch size for a task, and why; what it gives is kept.

    Raises:
        RefusedError: the volumes do not fit the task, or nothing fits the memory.
    """
    volumes = trained_on(open_volumes(task, console))
    refuse_tested(volumes, ())
    axis = task.dataset_config.slice_axis
    plan = plan_sizes(task.tr_params, task.model, task.heads, volumes, slice_axis=axis)
    if plan.tried:
        table = narrow_table("patch", "step", "")
        for tried in plan.tried[-MOST_TRIED:]:
            verdict = "planned" if tried.patch == plan.patch else "too large"
            table.add_row(_times(tried.patch), gigabytes(tried.step_bytes), verdict)
        write_table(table, console)
    for reason in plan.reasons:
        console.say(reason)
    full = fill_sizes(task, plan.patch, plan.batch)
    _report_network(full, volumes, console)
    console.say(f'"patch_size": {list(plan.patch)}, "batch_size": {plan.batch}')


def report_plan(task: Task, console: Console) -> None:
    """Open the volumes and print what the task would do.

    Raises:
        RefusedError: the volumes do not fit the task, or the network not the patch and spacing.
    """
    resolved = resolve(task, console, reads_labels=False)
    task, volumes = resolved.task, resolved.volumes
    run = RunFolder(task.run_dir, task.tr_params.model_name)
    origin = StartingPoint.of(task, run, restart=False)
    task = origin.with_normalization(task, volumes[0])
    check_start(task, volumes[0], origin)
    refuse_turned_pairs(task, volumes)
    if task.tr_params.split_mode != "random":
        refuse_shared(volumes)
    shown = [*volumes, *resolved.tested]
    write_table(_volume_table(shown, task.dataset_config.targets), console)
    if len(shown) > MOST_VOLUMES:
        console.say(f"... and {len(shown) - MOST_VOLUMES} more volumes")
    report_missing(shown, console)
    is_new = origin.resumed is None
    refuse_unlabelled(task, volumes, console, is_new=is_new)
    for line in _normalization(task, volumes):
        console.say(line)
    if task.tr_params.folds is None:
        require_room(task.tr_params, volumes, task.tr_params.patch_size)
    with scratch_folder() as folder:  # nothing is left
        indexer = Indexer(folder, console)
        report_misfits(
            task, volumes, console, indexer=indexer, reads_reference=False, is_begun=not is_new
        )
        _report_patches(task, volumes, indexer, console)
        for finding in cheap_findings(task, volumes, indexer):
            if finding.severity != "note":
                console.say(f"note: {finding.subject}: {finding.found}; {finding.remedy}")
    _report_network(task, volumes, console)
    for line in _symmetry(task, volumes):
        console.say(line)
    console.say(_run_folders(task))
    for note in (
        *device_note(task.tr_params.device, "tr_params.device"),
        *unkept(task),
        *foreseen(task, volumes[0].stored_channels),
    ):
        console.say(note)


def _symmetry(task: Task, volumes: Sequence[TaskVolume]) -> Iterator[str]:
    """What a run has found about the symmetry of its data, if it keeps that."""
    found = stored_findings(Run(task.run_dir).symmetry)
    if found is None:
        return
    yield f"symmetry: {found.summary}"
    if not is_about(found, task, identity_of(record_of(volumes))):
        yield (
            "note: symmetry: found of other data, targets or patches than these; "
            "vcmodels symmetry looks again"
        )


def _normalization(task: Task, volumes: Sequence[TaskVolume]) -> Iterator[str]:
    """What `auto` chooses for the training volumes, and would with the input of the inference."""
    wanted, params = task.dataset_config.normalization, task.inference_params
    trained = [volume for volume in volumes if volume.split != "val"]
    if wanted.per != "auto" or wanted.scheme == "none":
        return
    if not 0 < len(trained) <= MOST_MEASURED:
        yield f"normalization: {wanted.scheme}, per what the training volumes show when it starts"
        return
    lines = Silent()
    fitted = fit_normalization(wanted, trained, [v.region for v in trained], lines)
    yield from lines.lines
    inputs = ()
    if params.input_path and not params.is_many:
        with suppress(RefusedError):  # a prediction may be made elsewhere, or later
            if not needs_import(params):
                inputs = open_inputs(params.input_path, params)
    fits = sum(volume.channels for volume in inputs) == volumes[0].stored_channels
    if fits and (line := other_choice(fitted, inputs)):
        yield line


def _volume_table(volumes: Sequence[TaskVolume], targets: Mapping[str, AnyTarget]) -> Table:
    table = narrow_table("volume", "array", "shape", "dtype", "chunks", "spacing", "used")
    for volume in volumes[:MOST_VOLUMES]:
        used = "all" if volume.region == volume.inputs[0].box else _span(volume)
        used += f", {volume.split}" if volume.split else ""
        spacing = spacing_text(volume)
        for number, image in enumerate(volume.inputs):
            name = "input" if len(volume.inputs) == 1 else f"input {number}"
            cells = (*_array_cells(image), spacing, used)
            table.add_row("" if number else volume.name, name, *cells)
        for name, label in volume.labels.items():
            table.add_row("", name + _marks(name, volume), *_array_cells(label), "", "")
        for name, target in targets.items():
            if target.derive in volume.labels:
                row = f"{name}{_marks(name, volume)}"
                table.add_row("", row, f"from {target.derive}", "", "", "", "")
    return table


def _marks(name: str, volume: TaskVolume) -> str:
    marks = ["ref"] if name in volume.labels and volume.labels[name] is volume.ref else []
    if name in volume.pseudo:
        marks.append(f"pseudo {volume.pseudo[name]:g}")
    return f" ({', '.join(marks)})" if marks else ""


def _span(volume: TaskVolume) -> str:
    return " ".join(f"{start}:{end}" for start, end in volume.region.pairs)


def _array_cells(volume: Volume) -> tuple[str, str, str]:
    channels = f"{volume.channels} of " if volume.has_channel_axis else ""
    shards = f" in {_times(volume.shards)}" if volume.shards else ""
    return channels + _times(volume.extent), str(volume.dtype), _times(volume.chunks) + shards


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))


def _report_patches(
    task: Task, volumes: Sequence[TaskVolume], indexer: Indexer, console: Console
) -> None:
    """Say how many patches there are and how they are divided, as far as it is known or soon found.

    Raises:
        TaskError: not one qualifies, or they cannot be divided.
    """
    settings, criteria = task.tr_params, PatchCriteria.of(task)
    if settings.folds is not None:
        if are_few(volumes):
            all_folds(settings, volumes, criteria, indexer)
        console.say("patches: those of a fold are found by vcmodels patches --fold I")
        return
    patches, found = _cached_patches(task, volumes)
    if patches is None and are_few(volumes):
        patches = choose_patches(survey(volumes, criteria, indexer), criteria, indexer)
        found = f"{found}: {len(patches.rows)} qualify"
    console.say(f"patches: {found}")
    if patches is not None and Run(task.run_dir).splits() is None:
        split = split_patches(settings, volumes, patches, console)
        console.say(f"{len(split.train)} training and {len(split.val)} validation patches")
        if are_few(volumes):
            report_unlearnt(task, volumes, split.train, console, indexer)


def _cached_patches(task: Task, volumes: Sequence[TaskVolume]) -> tuple[PatchList | None, str]:
    """The patch list, if it is there and up to date, and what to say of it."""
    path, criteria = task.cache_file, PatchCriteria.of(task)
    if not task.dataset_config.use_cache:
        return None, "found anew by every run (use_cache is false)"
    if not path.exists():
        return None, f"not found yet (no {path})"
    try:
        patches, note = read_list(path, fingerprint(criteria, volumes), criteria.patch, volumes)
    except UnusableListError as reason:
        return None, f"will be found anew, {reason}"
    return patches, f"{len(patches.rows)} in {path}{note}"


def _run_folders(task: Task) -> str:
    """Where the run, or the run of each fold, writes."""
    folds = task.tr_params.folds
    if folds is None or folds.index is not None:
        return f"run folder {task.run_dir}"
    last = task.fold(folds.count - 1).run_dir
    return f"run folders {task.fold(0).run_dir} to {last}, one for each of {folds.count} folds"


def _report_network(task: Task, volumes: Sequence[TaskVolume], console: Console) -> None:
    settings = task.tr_params
    heads, first = task.heads, volumes[0]
    summary = task.model.describe(first.channels, heads, settings.patch_size, first.spacing)
    table = narrow_table("level", "features", "stride", "kernel", "shape", "parameters")
    for row in summary.rows:
        sizes = (_times(size) if size else "" for size in (row.stride, row.kernel, row.shape))
        table.add_row(row.name, str(row.features or ""), *sizes, f"{row.parameters:,}")
    write_table(table, console)
    listed = ", ".join(f"{name} ({channels})" for name, channels in heads.items())
    console.say(
        f"{task.model.name}: {summary.memory.parameters:,} parameters, input channels {first.channels}, "
        f"heads {listed}"
    )
    low, high = (summary.memory.step_bytes(settings.batch_size, size) / 1e9 for size in (2, 4))
    console.say(
        f"memory for training: about {high:.2f} GB in float32, {low:.2f} GB in bf16 or fp16, "
        f"{settings.batch_size} patches of {_times(settings.patch_size)} a step"
    )
