"""Prediction of one volume, from the first check to the last attribute."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from vcmodels.checkpoint import Predictor, build_predictor, load_checkpoint
from vcmodels.config import Task
from vcmodels.errors import CheckpointError
from vcmodels.geometry.blocks import Index
from vcmodels.inference.blend import Blender
from vcmodels.inference.estimate import Estimate, estimate
from vcmodels.inference.forward import channel_sums
from vcmodels.inference.job import Job, prepare
from vcmodels.inference.journal import Journal, hold
from vcmodels.inference.outputs import claim
from vcmodels.inference.reading import PatchReader
from vcmodels.inference.units import WAITING_ROWS, Unit
from vcmodels.inference.writing import Background, Check, Output, UnitOutput
from vcmodels.reporting import Reporter, Silent
from vcmodels.volumes import expand_location


@dataclass(frozen=True)
class InferenceReport:
    """What a run did."""

    root: Path
    """The output group."""
    outputs: dict[str, Path] = field(default_factory=dict)
    """The OME-Zarr group of each target."""
    patches: int = 0
    """Predicted by this run."""
    seconds: float = 0.0
    is_complete: bool = True
    """False after a stop; the same command continues."""
    was_complete: bool = False
    """There was nothing left to do."""
    estimate: Estimate | None = None
    """With `dry_run`: what would be done."""


def run_inference(
    task: Task,
    *,
    checkpoint: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> InferenceReport:
    """Predict `inference_params.input_path` with a checkpoint, or continue doing so.

    Args:
        task: the task; its `inference_params` say what and how.
        checkpoint: a file to use instead of `checkpoint_path`; by default the run's best.
        overwrite: delete an earlier result of vcmodels at the output first.
        dry_run: only say what would be done; nothing is written.
        reporter: told lines and progress.
        should_stop: asked after every batch; once it says yes, what is finished is written, and
            the report says that the run is not complete.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a failure on the way; the same command continues.
    """
    path = checkpoint or task.inference_params.checkpoint_path
    best = task.run_dir / f"{task.tr_params.model_name}_best.pth"
    if not path and not best.exists():
        found = f"holds no {best.name}"
        raise CheckpointError(str(task.run_dir), found, "train first, or give a checkpoint_path")
    predictor = build_predictor(load_checkpoint(Path(expand_location(path)) if path else best))
    return predict(
        task,
        predictor,
        overwrite=overwrite,
        dry_run=dry_run,
        reporter=reporter,
        should_stop=should_stop,
    )


def predict(
    task: Task,
    predictor: Predictor,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> InferenceReport:
    """As `run_inference`, with a network that is in memory."""
    reporter = reporter or Silent()
    job = prepare(task, predictor, reporter.say)
    if dry_run:
        return InferenceReport(job.root, is_complete=False, estimate=estimate(job))
    begun = time.monotonic()
    places = {name: job.root / name for name in job.targets}
    with hold(job.root):
        state = claim(job.root, job.manifest, overwrite=overwrite)
        if state == "complete":
            reporter.say(f"{job.root}: already complete")
            return InferenceReport(job.root, places, was_complete=True)
        journal = Journal(job.root)
        if state == "new":
            journal.begin(job.manifest)
        outputs = _open_outputs(job)
        done = journal.done()
        if done:
            reporter.say(f"{job.root}: continuing after {len(done)} finished slabs")
        count, is_complete = _predict_units(
            job, list(job.division.units(done)), outputs, journal, reporter, should_stop
        )
        if is_complete:
            _complete(job, journal)
    return InferenceReport(job.root, places, count, time.monotonic() - begun, is_complete)


def _open_outputs(job: Job) -> dict[str, Output]:
    job.layout.note(job.manifest, is_complete=False)
    return job.layout.open_arrays(job.targets, job.provenance)


def _complete(job: Job, journal: Journal) -> None:
    for name, target in job.targets.items():
        job.layout.describe(name, target, job.provenance, is_complete=True)
    job.layout.note(job.manifest, is_complete=True)
    journal.remove()


def _predict_units(
    job: Job,
    units: list[Unit],
    outputs: dict[str, Output],
    journal: Journal,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[int, bool]:
    """Predict all units; returns how many patches, and whether all is done."""
    counts = [unit.count_patches(job.division.grid) for unit in units]
    reporter.say(describe(job, units, sum(counts)))
    predicted = 0
    with (
        _reading_threads(job.threads) as pool,
        Background(WAITING_ROWS - 1) as writer,
        reporter.bar("predict", sum(counts)) as advance,
    ):
        for unit in units:
            output = UnitOutput(unit, outputs, job.division.block[0], journal.mark)
            for patches in _predict_unit(job, unit, output, pool, writer):
                predicted += patches
                advance(patches, "")
                if should_stop():
                    writer.wait()
                    return predicted, False
        writer.wait()
    return predicted, True


def describe(job: Job, units: list[Unit], patches: int) -> str:
    """One line on what is to be done."""
    count = job.division.skipped_patches()
    skipped = f", {count} skipped (no input stored)" if count else ""
    missing = sum(volume.missing_blocks() for volume in job.inputs)
    absent = f"; {missing} input blocks are not stored" if missing else ""
    return f"{patches} patches in {len(units)} units{skipped}{absent}"


def _predict_unit(
    job: Job,
    unit: Unit,
    output: UnitOutput,
    pool: ThreadPoolExecutor | None,
    writer: Background,
) -> Iterator[int]:
    """Predict one unit; yields the number of patches after each batch.

    A pure function of the job and the unit: what it writes does not depend on other units.
    """
    grid, forward = job.division.grid, job.forward
    ahead = 2 * forward.batch + job.threads
    reader = PatchReader(job.inputs, grid.hull(unit.core), grid.patch, job.normalize, pool, ahead)
    channels = sum(target.blend_channels for target in job.targets.values())
    blender = Blender(grid, unit.core, channels, forward.device)
    indices = unit.patches(grid)
    patches = reader.read([grid.origin(index) for index in indices])
    checks: list[Check] = []
    for batch in _batched(indices, forward.batch):
        values = forward(np.stack(list(islice(patches, len(batch)))))
        origins = tuple(map(grid.origin, batch))
        checks.append(Check(origins, channel_sums(values)))
        for position, index in enumerate(batch):
            patch: dict[str, Tensor] = {name: v[position] for name, v in values.items()}
            for box, blended in blender.add(index, patch):
                writer.submit(partial(output.take, box, blended, checks))
                checks = []
        yield len(batch)
    for box, blended in blender.finish():
        writer.submit(partial(output.take, box, blended, checks))
        checks = []


def _batched(indices: list[Index], size: int) -> Iterator[list[Index]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


@contextmanager
def _reading_threads(count: int) -> Iterator[ThreadPoolExecutor | None]:
    if count == 0:
        yield None
        return
    with ThreadPoolExecutor(count, thread_name_prefix="reader") as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
