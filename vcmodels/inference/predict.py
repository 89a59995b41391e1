"""Prediction of one volume, from the first check to the last attribute."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from vcmodels.blockwise import WHOLE
from vcmodels.config import InferenceParams
from vcmodels.errors import OutputError, TaskError
from vcmodels.inference.claim import (
    OutputState,
    claim,
    drop_lost,
    find_intact,
    noted_before,
    restore_metadata,
)
from vcmodels.inference.cost import Estimate, Meter, estimate
from vcmodels.inference.job import Job, prepare
from vcmodels.inference.journal import Journal
from vcmodels.inference.locks import Hold, setting_up, working_on
from vcmodels.inference.own_grid import OwnGrid
from vcmodels.inference.predictor import Predictor
from vcmodels.inference.preview import previewing, require_places
from vcmodels.inference.pyramid import build_pyramid
from vcmodels.inference.repair import InputRecord, lets_continue
from vcmodels.inference.request import Request, RunOptions, require_same_inputs, with_section
from vcmodels.inference.segment import Segmenter
from vcmodels.inference.stream import predict_units
from vcmodels.inference.writing import Failures, Output
from vcmodels.prepare.plan import KEY as PREPARE
from vcmodels.regions.find import KEY as REGION
from vcmodels.regions.find import NotFoundYetError
from vcmodels.reporting import Notes, Reporter
from vcmodels.results import group_place, open_inputs
from vcmodels.volumes import Place, Volume


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


def predict_volume(
    predictor: Predictor,
    inputs: str | Path | Volume | Sequence[str | Path | Volume],
    output: str | Path,
    params: InferenceParams | None = None,
    options: RunOptions | None = None,
) -> InferenceReport:
    """Predict a volume of any size into a group of OME-Zarr arrays, or continue doing so.

    Args:
        predictor: the networks.
        inputs: an array or an OME-Zarr group, by path or URL or opened; several are stacked as
            channels.
        output: the group that is written, by path or URL.
        params: how; its own paths are not read. By default as the checkpoint's task says.
        options: how the run is done; by default notes are warnings.

    Raises:
        RefusedError, RunError: as for `predict_request`.
    """
    params, options = params or predictor.params, options or RunOptions(reporter=Notes())
    opened = open_inputs(inputs, params, options.reporter)
    config = predictor.networks[0].task.dataset_config
    made = params.changed(input_path=[volume.shown for volume in opened])
    request = Request(
        networks=predictor.networks,
        inputs=opened,
        output=group_place(str(output)),
        params=params,
        targets=predictor.targets,
        record=with_section(predictor.networks[0].task.to_json(), made),
        prepare=require_same_inputs(config, predictor.networks),
        region=config.region,
    )
    return predict_request(request, options)


def predict_request(request: Request, options: RunOptions | None = None) -> InferenceReport:
    """Predict what a request asks for, in this process, or continue doing so.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a failure on the way; the same command continues. Places that cannot be predicted
            are left out and named at the end, when all others are.
    """
    return on_own_grid(request, options or RunOptions(), _predict_as_is)


def on_own_grid(
    request: Request,
    options: RunOptions,
    predict: Callable[[Request, RunOptions], InferenceReport],
) -> InferenceReport:
    """Predict a request of a region, or of inputs to prepare, by whoever predicts those of neither.

    Args:
        request: what is predicted.
        options: how.
        predict: makes a result on the grid of its inputs, or continues it.

    Raises:
        RefusedError, RunError: as for `predict_request`.
    """
    options.require_whole()
    if request.prepare is None and request.region is None:
        return predict(request, options)
    if options.verify:
        key = PREPARE if request.prepare is not None else REGION
        raise TaskError("--verify", f"goes with no {key}", "use --overwrite, which starts again")
    own = own_grid_of(request, options, predict)
    if options.dry_run:
        return predict(own.inner, options)
    if own.find_complete(options):
        return InferenceReport(own.root, own.places, was_complete=True)
    report = predict(own.inner, options)
    is_through = report.is_complete and own.write(options)
    return replace(
        report,
        root=own.root,
        outputs=own.places,
        is_through=is_through if report.is_complete else report.is_through,
        is_complete=is_through,
        was_complete=False,
    )


def own_grid_of(
    request: Request,
    options: RunOptions,
    predict: Callable[[Request, RunOptions], InferenceReport],
) -> OwnGrid:
    """What is made of a request of a region, or of inputs to prepare; args as of `on_own_grid`.

    A dry run takes the region that a network found before, and runs none.

    Raises:
        RefusedError: as from `OwnGrid.of`.
    """

    def find(inner: Request, how: RunOptions) -> InferenceReport:
        return on_own_grid(inner, how, predict)

    carriers = [network.path for network in request.networks]
    segment = Segmenter(carriers, request.params.device, find, options)
    try:
        return OwnGrid.of(request, options.reporter, None if options.dry_run else segment)
    except NotFoundYetError as error:
        remedy = "leave --dry-run out once: what is found is kept"
        raise NotFoundYetError(error.subject, error.found, remedy) from error


def _predict_as_is(request: Request, options: RunOptions) -> InferenceReport:
    require_places(request, options)
    reporter, is_alone = options.reporter, options.part == WHOLE
    job = prepare(request, reporter, options.part)
    if options.dry_run:
        job.report_values(reporter)
        return InferenceReport(job.root, is_complete=False, estimate=estimate(job))
    begun = time.monotonic()
    with working_on(job.root, alone=is_alone, reporter=reporter) as hold:
        outputs = begin(job, hold, options)
        with previewing(job, request, options) as draw_all:
            if outputs is None:
                draw_all()
                return InferenceReport(job.root, job.places, was_complete=True)
            journal = job.journal(hold.check)
            job = warm_up(job, journal, alone=is_alone)
            failures = Failures(reporter)
            count, is_through = _predict(job, outputs, journal, failures, options)
            report = finish(job, hold, options, failures, count, is_through)
            if report.is_complete:
                draw_all()
    return replace(report, seconds=time.monotonic() - begun)


def finish(
    job: Job, hold: Hold, options: RunOptions, failures: Failures, patches: int, is_through: bool
) -> InferenceReport:
    """Complete the result if nobody has anything left, and report, without the time.

    Raises:
        RunError: all was tried, and some places could not be predicted.
    """
    is_complete = is_through and complete(job, hold, options)
    is_through = is_complete or (is_through and not options.should_stop())
    if is_through and (error := failures.error(job.root)):
        raise error
    return InferenceReport(job.root, job.places, patches, 0.0, is_through, is_complete)


def claim_for_parts(job: Job, options: RunOptions) -> OutputState:
    """Find out what stands at the output before parts are started; `overwrite` deletes it.

    Raises:
        OutputError: it is in use, another run's result, or not ours.
    """
    reporter = options.reporter
    with (
        working_on(job.root, alone=True, reporter=reporter) as hold,
        setting_up(job.root, reporter),
    ):
        state = claim(
            job.layout,
            job.pipeline.specs,
            job.manifest,
            overwrite=options.overwrite,
            is_repaired=partial(_accept_repair, job, hold, options),
        )
    if state == "complete":
        reporter.say(f"{job.root}: already complete")
    return state


def begin(job: Job, hold: Hold, options: RunOptions) -> dict[str, Output] | None:
    """Take possession of the output and open its arrays; None if the result is complete."""
    reporter, specs = options.reporter, job.pipeline.specs
    with setting_up(job.root, reporter):
        state = claim(
            job.layout,
            specs,
            job.manifest,
            overwrite=options.overwrite,
            verify=options.verify,
            is_repaired=partial(_accept_repair, job, hold, options),
        )
        if state == "complete":
            reporter.say(f"{job.root}: already complete")
            return None
        if state == "new":
            _begin_journal(job)
        looks, noted = options.verify and state == "resume", dict[str, Any]()
        if looks:
            noted = noted_before(job.root)
            restore_metadata(job.layout, specs, reporter)
        elif hold.is_sole():
            job.layout.note(specs, job.manifest, job.provenance, is_complete=False)
        if hold.is_sole():
            job.layout.clean(specs)
        outputs = job.layout.open_arrays(specs, job.manifest)
        if looks:
            _mark_intact(job, outputs, noted, reporter)
            # Not before: a kill leaves what the group says of its chunks, to compare them with.
            job.layout.note(specs, job.manifest, job.provenance, is_complete=False)
        elif state == "resume" and hold.is_sole():
            drop_lost(job.layout, job.journal(), specs, reporter)
    if state == "new":  # said once, by whoever begins the result
        job.report_values(reporter)
    return {name: replace(output, check=hold.check) for name, output in outputs.items()}


def _begin_journal(job: Job) -> Journal:
    journal, record = job.journal(), InputRecord.of(job.pipeline)
    journal.begin(job.manifest, record and record.to_bytes())
    return journal


def _accept_repair(job: Job, hold: Hold, options: RunOptions, journal: Journal) -> bool:
    """Whether what is finished holds for the input as it is now; the journal says so then.

    Not while others work, who may have read what was there before.
    """
    noted = journal.inputs()
    if noted is None or not hold.is_sole():
        return False
    try:
        before = InputRecord.from_bytes(noted)
    except (ValueError, KeyError, OSError, EOFError, BadZipFile):
        return False
    now, pipeline = InputRecord.of(job.pipeline, before), job.pipeline
    # All that is stored counts as finished where it is looked at anew.
    done = [pipeline.whole.region] if options.verify else journal.done()
    if now is None or not lets_continue(pipeline, before, now, done):
        return False
    journal.amend(job.manifest, now.to_bytes())
    changed = sum(map(len, before.changed(now)))
    told = f"chunks of the input that changed: {changed}; what is finished does not depend on them"
    options.reporter.say(f"{job.root}: {told}")
    return True


def _mark_intact(
    job: Job, outputs: dict[str, Output], noted: dict[str, Any], reporter: Reporter
) -> None:
    """Start a journal that has what is stored and whole as done, and nothing else."""
    intact = find_intact(job.layout, outputs, noted, reporter)
    journal = _begin_journal(job)
    for array, blocks in intact.items():
        journal.mark(*blocks, array=array)
    reporter.say(f"{job.root}: {len(intact[''])} blocks are intact")


def _predict(
    job: Job, outputs: dict[str, Output], journal: Journal, failures: Failures, options: RunOptions
) -> tuple[int, bool]:
    """Predict what is left of this worker's units; returns how many patches, and if it got through."""
    reporter, plan = options.reporter, job.pipeline.mine
    done = journal.done()
    if done:
        reporter.say(f"{job.root}: continuing after {len(done)} finished layers")
    units = list(plan.units(done))
    total = sum(unit.count_patches(plan.grid) for unit in units)
    reporter.say(describe(job, len(units), total))
    worker = None if options.part == WHOLE else f"part {options.part}"
    with reporter.bar("predict", total) as advance:
        meter = Meter(advance, reporter.record, worker)
        return predict_units(
            job.pipeline, units, outputs, journal.mark, failures, meter, options.should_stop
        )


def warm_up(job: Job, journal: Journal, *, alone: bool) -> Job:
    """Compile the network, if it is to be; where that fails, the run is one without.

    Raises:
        OutputError: others have computed, or may now, with a compiled network.
    """
    if job.pipeline.warm_up():
        return job
    if not alone or journal.done():
        found = "was begun with a compiled network, and compiling fails here"
        remedy = 'continue where it was begun, or use "compile": false and --overwrite'
        raise OutputError(str(job.root), found, remedy)
    job = replace(job, manifest=job.manifest | {"compiled": False})
    journal.begin(job.manifest, journal.inputs())
    return job


def complete(job: Job, hold: Hold, options: RunOptions) -> bool:
    """Do what is done last, if no worker has anything left; whether it was done.

    A worker that is not the last gives its hold back at once: of two that end together, each would
    else leave it to the other.
    """
    reporter, pipeline = options.reporter, job.pipeline
    journal = job.journal(hold.check)
    with setting_up(job.root, reporter):
        if not hold.is_sole() or next(pipeline.whole.units(journal.done()), None) is not None:
            hold.release()
            return False
    if not build_pyramid(
        job.layout, pipeline.specs, journal, pipeline.threads, reporter, options.should_stop
    ):
        return False
    with setting_up(job.root, reporter):
        if not hold.is_sole():  # another worker came meanwhile, and completes it when it ends
            hold.release()
            return False
        job.layout.clean(pipeline.specs)
        for name, spec in pipeline.specs.items():
            job.layout.describe(name, spec, job.manifest, is_complete=True)
        job.layout.note(pipeline.specs, job.manifest, job.provenance, is_complete=True)
        journal.remove()
    return True


def describe(job: Job, units: int, patches: int) -> str:
    """One line on what is to be done."""
    count = job.pipeline.mine.skipped_patches()
    skipped = f", {count} skipped" if count else ""
    missing = sum(volume.missing_blocks() for volume in job.pipeline.inputs)
    absent = f"; {missing} input blocks are not stored" if missing else ""
    return f"{patches} patches in {units} units{skipped}{absent}"
