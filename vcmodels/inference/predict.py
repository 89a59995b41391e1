"""Prediction of one volume, from the first check to the last attribute."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.errors import OutputError, TaskError
from vcmodels.inference.cost import Estimate, Meter, estimate
from vcmodels.inference.ensemble import choose_checkpoints, load_members
from vcmodels.inference.job import Job, prepare
from vcmodels.inference.journal import Journal
from vcmodels.inference.locks import Hold, setting_up, working_on
from vcmodels.inference.output import State, claim, find_intact
from vcmodels.inference.pyramid import build_pyramid
from vcmodels.inference.stream import predict_units
from vcmodels.inference.units import WHOLE, Part
from vcmodels.inference.writing import Failures, Output
from vcmodels.reporting import Reporter, Silent
from vcmodels.volumes import Place


@dataclass(frozen=True)
class InferenceReport:
    """What a run did."""

    root: Place
    """The output group."""
    outputs: dict[str, Place] = field(default_factory=dict)
    """The OME-Zarr group of each target."""
    patches: int = 0
    """Predicted by this run."""
    seconds: float = 0.0
    is_through: bool = True
    """Whether this worker's part is done; false after a stop: the same command continues."""
    is_complete: bool = True
    """Whether the whole result is: no other part has anything left."""
    was_complete: bool = False
    """There was nothing left to do."""
    estimate: Estimate | None = None
    """With `dry_run`: what would be done."""


def run_inference(
    task: Task,
    *,
    checkpoint: str | Sequence[str] | None = None,
    part: Part = WHOLE,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> InferenceReport:
    """Predict `inference_params.input_path` with a checkpoint, or continue doing so.

    Args:
        task: the task; its `inference_params` say what and how.
        checkpoint: a file, or several, to use instead of `checkpoint_path`; by default the run's
            best.
        part: which of several workers this is; they write to one output, at once or one by one.
        overwrite: delete an earlier result of vcmodels at the output first.
        verify: read all that is stored, and predict what is damaged or missing.
        dry_run: only say what would be done; nothing is written.
        reporter: told lines and progress.
        should_stop: asked after every batch; once it says yes, what is finished is written, and
            the report says that the run is not complete.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a failure on the way; the same command continues. Places that cannot be predicted
            are left out and named at the end, when all others are.
    """
    return predict(
        task,
        load_predictor(task, checkpoint),
        part=part,
        overwrite=overwrite,
        verify=verify,
        dry_run=dry_run,
        reporter=reporter,
        should_stop=should_stop,
    )


def load_predictor(task: Task, checkpoint: str | Sequence[str] | None = None) -> Predictor:
    """The networks of the checkpoints given, else of the task's, else of the run's best.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    return load_members(choose_checkpoints(task, checkpoint))


def predict(
    task: Task,
    predictor: Predictor,
    *,
    part: Part = WHOLE,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> InferenceReport:
    """As `run_inference`, with a network that is in memory."""
    reporter = reporter or Silent()
    if (overwrite or verify) and part != WHOLE:
        option = "--overwrite" if overwrite else "--verify"
        remedy = f"run once with {option} alone, then start the parts"
        raise TaskError(option, f"is for the whole, part {part} would spoil the others", remedy)
    job = prepare(task, predictor, reporter.say, part)
    if dry_run:
        return InferenceReport(job.root, is_complete=False, estimate=estimate(job))
    begun = time.monotonic()
    places = {name: job.root / name for name in job.targets}
    with working_on(job.root, alone=part == WHOLE, say=reporter.say) as hold:
        outputs = begin(job, hold, overwrite=overwrite, verify=verify, say=reporter.say)
        if outputs is None:
            return InferenceReport(job.root, places, was_complete=True)
        journal = Journal(job.root, hold.check)
        job = warm_up(job, journal, alone=part == WHOLE)
        failures = Failures(reporter.say)
        worker = None if part == WHOLE else f"part {part}"
        count, is_through = _predict(job, outputs, journal, failures, reporter, should_stop, worker)
        is_complete = is_through and complete(job, hold, reporter, should_stop)
        is_through = is_complete or (is_through and not should_stop())
    if is_through and (error := failures.error(job.root)):
        raise error
    seconds = time.monotonic() - begun
    return InferenceReport(job.root, places, count, seconds, is_through, is_complete)


def claim_for_parts(job: Job, *, overwrite: bool, say: Callable[[str], None]) -> State:
    """Find out what stands at the output before parts are started; `overwrite` deletes it.

    Raises:
        OutputError: it is in use, another run's result, or not ours.
    """
    with working_on(job.root, alone=True, say=say), setting_up(job.root, say):
        return claim(job.root, job.manifest, overwrite=overwrite)


def begin(
    job: Job, hold: Hold, *, overwrite: bool, verify: bool, say: Callable[[str], None]
) -> dict[str, Output] | None:
    """Take possession of the output and open its arrays; None if the result is complete."""
    with setting_up(job.root, say):
        state = claim(job.root, job.manifest, overwrite=overwrite, verify=verify)
        if state == "complete":
            say(f"{job.root}: already complete")
            return None
        if state == "new":
            Journal(job.root).begin(job.manifest)
        if hold.is_sole():
            job.layout.note(job.manifest, is_complete=False)
            job.layout.clean(job.targets)
        outputs = job.layout.open_arrays(job.targets, job.provenance)
        if verify:
            intact = find_intact(job.layout, outputs, say)
            journal = Journal(job.root)
            journal.begin(job.manifest)
            for array, blocks in intact.items():
                journal.mark(*blocks, array=array)
            say(f"{job.root}: {len(intact[''])} blocks are intact")
        return {name: replace(output, check=hold.check) for name, output in outputs.items()}


def _predict(
    job: Job,
    outputs: dict[str, Output],
    journal: Journal,
    failures: Failures,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    worker: str | None,
) -> tuple[int, bool]:
    """Predict what is left of this worker's units; returns how many patches, and if it got through."""
    done = journal.done()
    if done:
        reporter.say(f"{job.root}: continuing after {len(done)} finished layers")
    units = list(job.division.units(done))
    total = sum(unit.count_patches(job.division.grid) for unit in units)
    reporter.say(describe(job, len(units), total))
    with reporter.bar("predict", total) as advance:
        meter = Meter(advance, reporter.record, worker)
        return predict_units(job, units, outputs, journal.mark, failures, meter, should_stop)


def warm_up(job: Job, journal: Journal, *, alone: bool) -> Job:
    """Compile the network, if it is to be; where that fails, the run is one without.

    Raises:
        OutputError: others have computed, or may now, with a compiled network.
    """
    channels = sum(volume.channels for volume in job.inputs)
    if not job.forward.is_compiled or job.forward.warm_up(channels, job.division.grid.patch):
        return job
    if not alone or journal.done():
        found = "was begun with a compiled network, and compiling fails here"
        remedy = 'continue where it was begun, or use "compile": false and --overwrite'
        raise OutputError(str(job.root), found, remedy)
    job = replace(
        job,
        manifest=job.manifest | {"compiled": False},
        provenance=job.provenance | {"compiled": False},
    )
    journal.begin(job.manifest)
    return job


def complete(
    job: Job,
    hold: Hold,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Do what is done last, if no worker has anything left; whether it was done.

    A worker that is not the last gives its hold back at once: of two that end together, each would
    else leave it to the other.
    """
    reporter, journal = reporter or Silent(), Journal(job.root, hold.check)
    with setting_up(job.root, reporter.say):
        if not hold.is_sole() or next(job.whole.units(journal.done()), None) is not None:
            hold.release()
            return False
    if not build_pyramid(job.layout, job.targets, journal, job.threads, reporter, should_stop):
        return False
    with setting_up(job.root, reporter.say):
        if not hold.is_sole():  # another worker came meanwhile, and completes it when it ends
            hold.release()
            return False
        job.layout.clean(job.targets)
        for name, target in job.targets.items():
            job.layout.describe(name, target, job.provenance, is_complete=True)
        job.layout.note(job.manifest, is_complete=True)
        journal.remove()
    return True


def describe(job: Job, units: int, patches: int) -> str:
    """One line on what is to be done."""
    count = job.division.skipped_patches()
    skipped = f", {count} skipped" if count else ""
    missing = sum(volume.missing_blocks() for volume in job.inputs)
    absent = f"; {missing} input blocks are not stored" if missing else ""
    return f"{patches} patches in {units} units{skipped}{absent}"
