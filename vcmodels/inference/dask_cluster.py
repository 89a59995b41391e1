"""One volume on a Dask cluster: boxes of it are tasks, and this process hands them out.

A worker gets the network once, as a plugin, and makes a job of it at its first box. It predicts a
box as a part is predicted (`units`): it holds the output with the others and keeps a journal, so
that a box which is handed out again, after its worker was lost, continues.
"""

import pickle
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from distributed import Worker, WorkerPlugin, get_worker, wait
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoWorkerError

from vcmodels.blockwise import Part
from vcmodels.devices import CONNECT_S
from vcmodels.errors import RefusedError, RunError, VcmodelsError
from vcmodels.geometry.boxes import Box
from vcmodels.inference.cost import Meter
from vcmodels.inference.devices import Progress, RemoteReporter
from vcmodels.inference.job import Job, auto_memory, prepare
from vcmodels.inference.journal import Journal, Manifest
from vcmodels.inference.locks import working_on
from vcmodels.inference.predict import (
    InferenceReport,
    begin,
    claim_for_parts,
    finish,
    on_own_grid,
    warm_up,
)
from vcmodels.inference.preview import previewing, require_places
from vcmodels.inference.request import Request, RunOptions
from vcmodels.inference.stream import predict_units
from vcmodels.inference.units import share
from vcmodels.inference.writing import Failures, PlaceError
from vcmodels.reporting import Advance, Record, Reporter, Silent

BOXES_PER_WORKER = 4
"""So that those that end early have something left to do."""
POLL_S = 0.2
REPORT_S = 1.0
MOST_WITHOUT_S = 10.0
"""Without a worker, before that is reported."""


@dataclass(frozen=True)
class Outcome:
    """What became of a box."""

    patches: int
    failures: Failures


class Predicting(WorkerPlugin):
    """What a worker needs to predict any box; it does one at a time.

    Args:
        request: for the workers; threads are set, as the bits depend on them.
        neighbours: workers that share a machine and its memory.
    """

    def __init__(self, request: Request, neighbours: int) -> None:
        self.name = f"vcmodels-{uuid.uuid4().hex}"
        # By value: the caller moves its own networks to a device.
        self.request, self.neighbours = pickle.dumps(request), neighbours

    def setup(self, worker: Worker) -> None:
        """Called on each worker, those that come later included."""
        self._worker = worker
        self._busy = Lock()
        self._job: Job | None = None

    def job(self) -> Job:
        """Made once."""
        if self._job is None:
            job = prepare(self._my_request(), Silent())
            self._job = warm_up(job, Journal(job.root), alone=False)
        return self._job

    def predict(self, box: Box) -> Outcome:
        """Predict what is left of a box, until nobody waits for it any more."""
        key, name = self._worker.get_current_task(), str(self._worker.name)
        failures = Failures(Silent())
        reporter = RemoteReporter(self._send, f"worker {name}", name, every_s=REPORT_S)
        with self._busy:
            job = _part_of(self.job(), box)
            with working_on(job.root, alone=False, reporter=reporter) as hold:
                outputs = begin(job, hold, RunOptions())
                if outputs is None:
                    return Outcome(0, failures)
                journal = job.journal(hold.check)
                units = list(job.pipeline.mine.units(journal.done()))
                meter = Meter(reporter.advance, reporter.record)
                count, _ = predict_units(
                    job.pipeline, units, outputs, journal.mark, failures, meter,
                    lambda: self._is_dropped(key),
                )  # fmt: skip
        return Outcome(count, failures)

    def _send(self, message: Progress | Record) -> None:
        """In a list: the scheduler adds a key of its own to a dict."""
        values = list(message) if isinstance(message, tuple) else [message]
        self._worker.log_event(self.name, values)

    def _is_dropped(self, key: Any) -> bool:  # noqa: ANN401
        """Whether the box was cancelled, or the process that asked for it is gone."""
        state = self._worker.state.tasks.get(key)
        return state is None or state.state == "cancelled"

    def _my_request(self) -> Request:
        """The request with this worker's device and share of memory."""
        request: Request = pickle.loads(self.request)
        params, changes = request.params, dict[str, Any]()
        if params.memory == "auto":
            changes["memory"] = auto_memory(self.neighbours) / 1e9
        devices = torch.cuda.device_count()
        if params.device in ("auto", "cuda") and devices > 1 and isinstance(self._worker.name, int):
            changes["device"] = f"cuda:{self._worker.name % devices}"
        return request.with_params(**changes)


def predict_on_cluster(
    request: Request,
    client: Any,  # noqa: ANN401 -- distributed has no types
    options: RunOptions | None = None,
) -> InferenceReport:
    """As `predict_request`, by the workers of a Dask cluster, which see the same files.

    The same voxels come out.

    Args:
        request: what is predicted.
        client: a connected `distributed.Client`.
        options: `should_stop` is asked a few times a second.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: the cluster is gone, or places could not be predicted; the same command continues.
    """
    predict = partial(_predict_by, client)
    return on_own_grid(request, options or RunOptions(), predict)


def _predict_by(client: Any, request: Request, options: RunOptions) -> InferenceReport:  # noqa: ANN401
    require_places(request, options)
    reporter, begun = options.reporter, time.monotonic()
    workers = _again(lambda: _workers(client), reporter)
    fewest = min(worker["nthreads"] for worker in workers.values())
    request = request.with_params(threads=request.params.threads or fewest)
    neighbours = max(Counter(worker["host"] for worker in workers.values()).values())
    plugin = Predicting(request, neighbours)
    job = prepare(request.with_params(device="cpu"), reporter)
    _again(lambda: client.register_plugin(plugin), reporter)
    try:
        made = _again(lambda: _asked_for_manifest(client, plugin.name), reporter)
        job = replace(job, manifest=made)
        if claim_for_parts(job, options) == "complete":
            return InferenceReport(job.root, job.places, was_complete=True)
        with working_on(job.root, alone=False, reporter=reporter) as hold:
            begin(job, hold, RunOptions(reporter=reporter))
            boxes = BoxScheduler(job, client, plugin.name, Failures(reporter))
            with previewing(job, request, options) as draw_all:
                is_through = boxes.run(len(workers), options)
                report = finish(job, hold, options, boxes.failures, boxes.patches, is_through)
                if report.is_complete:
                    draw_all()
    finally:
        client.unregister_worker_plugin(plugin.name)
    return replace(report, seconds=time.monotonic() - begun)


class BoxScheduler:
    """Boxes on their way to the workers: as many at a time as there are workers."""

    def __init__(self, job: Job, client: Any, name: str, failures: Failures) -> None:  # noqa: ANN401
        self.job, self.client, self.name, self.failures = job, client, name, failures
        self.patches = 0
        self._boxes: deque[Box] = deque()
        self._running: dict[Any, Box] = {}

    def run(self, workers: int, options: RunOptions) -> bool:
        """Hand out the whole; whether it came to the end.

        Raises:
            VcmodelsError: what a worker raised that is no matter of a place.
        """
        reporter, patches = options.reporter, self.job.pipeline.patches
        boxes = self._cut(self.job.pipeline.whole.region, BOXES_PER_WORKER * workers)
        # The largest first (Graham 1969, doi 10.1137/0117039): the last one keeps all waiting.
        self._boxes.extend(sorted(boxes, key=self._patches, reverse=True))
        watch = WorkerWatch(reporter)
        reporter.say(f"{patches} patches in {len(self._boxes)} boxes on {workers} workers")
        with reporter.bar("predict", patches) as advance:
            self._listen(advance, reporter.record)
            try:
                while self._boxes or self._running:
                    count = len(self.client.scheduler_info(n_workers=-1)["workers"])
                    watch.note(count)
                    self._submit(max(1, count))
                    self._collect()
                    if options.should_stop():
                        return False
            except (OSError, CancelledError) as error:
                found = f"the Dask cluster is gone ({type(error).__name__})"
                raise RunError("--dask", found, "the same command continues") from error
            finally:
                self.client.cancel(list(self._running))
        return True

    def _listen(self, advance: Advance, record: Callable[[Record], None]) -> None:
        def hear(event: tuple[float, list[Any]]) -> None:
            _, sent = event
            record(*sent) if len(sent) == 1 else advance(*sent)

        self.client.subscribe_topic(self.name, hear)

    def _submit(self, most: int) -> None:
        while self._boxes and len(self._running) < most:
            box = self._boxes.popleft()
            future = self.client.submit(_predict_box, self.name, box, pure=False, retries=1)
            self._running[future] = box

    def _collect(self) -> None:
        """Take in what has ended; a box that failed twice is halved until a block is named."""
        try:
            ended: Any = wait(list(self._running), POLL_S, "FIRST_COMPLETED")
        except TimeoutError:
            return
        for future in ended.done:
            box = self._running.pop(future)
            if future.status == "finished":
                outcome: Outcome = future.result()
                self.patches += outcome.patches
                self.failures.merge(outcome.failures)
                continue
            error = future.exception()
            if isinstance(error, NoWorkerError):
                found = "no worker came for as long as no-workers-timeout says"
                raise RunError("--dask", found, "start some; the same command continues")
            if isinstance(error, VcmodelsError | OSError | CancelledError):
                raise error
            halves = self._cut(box, 2)
            if halves != [box]:
                self._boxes.extend(halves)
            elif halves:
                found = (
                    f"failed twice ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                )
                self.failures.add(PlaceError(f"output at {box.origin}, {box.shape}", found), [box])

    def _patches(self, box: Box) -> int:
        """How many patches a box takes, if nothing of it is done yet."""
        return _part_of(self.job, box).pipeline.patches

    def _cut(self, region: Box, count: int) -> list[Box]:
        """Boxes of about equal work that have something left to do."""
        whole = self.job.pipeline.whole
        boxes = [
            share(region, whole.wanted, whole.block, whole.grid.extent, Part(n, count))
            for n in range(count)
        ]
        done = Journal(self.job.root).done()
        return [b for b in boxes if any(_part_of(self.job, b).pipeline.mine.units(done))]


class WorkerWatch:
    """Reports once that all workers are gone, and when some are back: until then everything waits."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._last_seen = time.monotonic()
        self._has_said = False

    def note(self, workers: int) -> None:
        now = time.monotonic()
        if workers:
            if self._has_said:
                self.reporter.say(f"workers are back: {workers}; continuing")
            self._last_seen, self._has_said = now, False
        elif now - self._last_seen > MOST_WITHOUT_S and not self._has_said:
            seconds = now - self._last_seen
            self.reporter.say(
                f"the cluster has had no worker for {seconds:.0f} s; waiting until some come"
            )
            self._has_said = True


def _part_of(job: Job, box: Box) -> Job:
    """The same job for a box of it."""
    whole = job.pipeline.whole
    wanted = whole.wanted.within(box) if box.voxels else whole.wanted
    mine = replace(whole, region=box, wanted=wanted)
    return replace(job, pipeline=replace(job.pipeline, mine=mine))


def _workers(client: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """What the scheduler knows of its workers.

    Raises:
        RefusedError: there is none.
        _LostError: the last one has just gone.
    """
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise RefusedError("--dask", "the cluster has no worker", "start some") from error
    found = client.scheduler_info(n_workers=-1)["workers"]
    if not found:
        raise _LostError("no worker is left")
    return found


TRIES = 5
"""To start with workers some of which are lost on the way; a lost one is replaced in a second or two."""


class _LostError(Exception):
    """A worker was lost while it was asked for something."""


def _again(ask: Callable[[], Any], reporter: Reporter) -> Any:  # noqa: ANN401
    """What the cluster answers; asked again when a worker is lost meanwhile.

    Raises:
        RunError: it was lost each time.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return ask()
        except (CommClosedError, KilledWorker, TimeoutError, _LostError) as error:
            if tries == TRIES:
                found = f"workers were lost {TRIES} times at the start ({type(error).__name__})"
                remedy = "see their logs; the same command starts again"
                raise RunError("--dask", found, remedy) from error
        if tries == 1:
            reporter.say("a Dask worker was lost at the start; trying again")
        time.sleep(tries)


def _asked_for_manifest(client: Any, name: str) -> Manifest:  # noqa: ANN401
    return client.submit(_manifest, name, pure=False).result()


def _predicting(name: str) -> Predicting:
    return get_worker().plugins[name]  # pyright: ignore[reportReturnType]


def _manifest(name: str) -> Manifest:
    return _predicting(name).job().manifest


def _predict_box(name: str, box: Box) -> Outcome:
    return _predicting(name).predict(box)
