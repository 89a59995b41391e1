"""One volume on several devices of a machine: a process for each, and this one watching."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from vcmodels.blockwise import Part
from vcmodels.errors import RunError, VcmodelsError
from vcmodels.inference.job import auto_memory, prepare
from vcmodels.inference.predict import (
    InferenceReport,
    claim_for_parts,
    on_own_grid,
    predict_request,
)
from vcmodels.inference.preview import previewing, require_places, without_boards
from vcmodels.inference.request import Request, RunOptions
from vcmodels.reporting import Advance, Record, StopSignals

POLL_S = 0.2

Progress = tuple[float, str]
"""Patches that were done, and how fast."""
Message = Progress | Record | InferenceReport | VcmodelsError
"""What a worker sends: progress, figures of a unit, its report, or the error that ended it."""


@dataclass(frozen=True)
class Worker:
    """A process and the end of the pipe that it talks into.

    Each has a pipe of its own: a queue of all has one lock, and a worker that is killed while it
    holds that silences the others for ever.
    """

    process: SpawnProcess
    messages: Connection


def predict_on(
    request: Request, devices: Sequence[str | int], options: RunOptions | None = None
) -> InferenceReport:
    """As `predict_request`, shared by one process on each device; the same voxels come out.

    A worker that fails does not stop the others: what they finish is kept.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a worker failed, or was killed; the same command continues.
    """
    predict = partial(_predict_divided, devices=devices)
    return on_own_grid(request, options or RunOptions(), predict)


def _predict_divided(
    request: Request, options: RunOptions, devices: Sequence[str | int]
) -> InferenceReport:
    reporter = options.reporter
    # By value, before `prepare` moves them to a device; the inputs are compared here, and only here.
    networks = pickle.dumps([replace(one, intensities=()) for one in request.networks])
    require_places(request, options)
    requests = _divided(without_boards(request), devices)
    job = prepare(requests[0], reporter)
    patches = job.pipeline.patches
    state = claim_for_parts(job, options)
    if state == "complete":
        return InferenceReport(job.root, job.places, was_complete=True)
    if state == "new":
        job.report_values(reporter)
    reporter.say(f"{patches} patches on {len(requests)} devices")
    with previewing(job, request, options) as draw_all:
        with _workers(requests, networks) as workers, reporter.bar("predict", patches) as advance:
            ends = _watch(workers, advance, reporter.record, options.should_stop)
        if any(isinstance(end, InferenceReport) and end.is_complete for end in ends):
            draw_all()
    reports = [end for end in ends if isinstance(end, InferenceReport)]
    errors = [
        end
        or RunError(
            f"worker {number} on device {devices[number]}",
            f"ended with code {workers[number].process.exitcode}",
            "the others have finished what they could; the same command continues",
        )
        for number, end in enumerate(ends)
        if not isinstance(end, InferenceReport)
    ]
    for error in errors[1:]:
        reporter.say(f"error: {error}")
    if errors:
        raise errors[0]
    return InferenceReport(
        job.root,
        job.places,
        patches=sum(report.patches for report in reports),
        seconds=max(report.seconds for report in reports),
        is_through=all(report.is_through for report in reports),
        is_complete=any(report.is_complete for report in reports),
    )


def _divided(request: Request, devices: Sequence[str | int]) -> list[Request]:
    """The request for each device; cores and memory are divided."""
    params, count = request.params, len(devices)
    threads = params.threads or max(1, torch.get_num_threads() // count)
    memory = auto_memory(count) / 1e9 if params.memory == "auto" else params.memory
    return [
        request.with_params(threads=threads, memory=memory, device=device) for device in devices
    ]


@contextmanager
def _workers(requests: list[Request], networks: bytes) -> Iterator[list[Worker]]:
    context = get_context("spawn")
    workers: list[Worker] = []
    try:
        for number, request in enumerate(requests):
            reader, writer = context.Pipe(duplex=False)
            part, bare = Part(number, len(requests)), replace(request, networks=())
            given = (bare, networks, part, writer, os.getpid())
            process = context.Process(target=_work, args=given)
            process.start()
            writer.close()  # the worker's is then the last: its end is the end of the pipe
            workers.append(Worker(process, reader))
        yield workers
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()  # SIGTERM: it writes what is finished
        for worker in workers:
            worker.messages.close()  # nobody listens: it does not wait to be heard
            worker.process.join()


def _watch(
    workers: list[Worker],
    advance: Advance,
    record: Callable[[Record], None],
    should_stop: Callable[[], bool],
) -> list[InferenceReport | VcmodelsError | None]:
    """Pass progress on until every worker has ended; what each ended with, None if silently."""
    ends: list[InferenceReport | VcmodelsError | None] = [None] * len(workers)
    talking = {worker.messages: number for number, worker in enumerate(workers)}
    has_asked = False
    while talking:
        if should_stop() and not has_asked:
            has_asked = True
            for worker in workers:
                worker.process.terminate()
        for messages in wait(list(talking), POLL_S):
            assert isinstance(messages, Connection)
            try:
                message: Message = messages.recv()
            except (EOFError, OSError):  # it has ended, perhaps in the middle of a message
                del talking[messages]
                continue
            if isinstance(message, tuple):
                advance(*message)
            elif isinstance(message, dict):
                record(message)
            else:
                ends[talking[messages]] = message
    for worker in workers:
        worker.process.join()  # its exit code is known then
    return ends


class RemoteReporter:
    """The reporter of a worker: progress and figures go to the process that watches.

    Args:
        send: given the progress, and records; it may not wait for long.
        title: the worker, next to the bar.
        worker: the worker, in its records.
        every_s: seconds from one progress to the next; what is done in between is added up.
    """

    def __init__(
        self,
        send: Callable[[Progress | Record], None],
        title: str,
        worker: str,
        every_s: float = 0.0,
    ) -> None:
        self.send, self.title, self.worker, self.every_s = send, title, worker, every_s
        self._amount, self._last = 0.0, time.monotonic()

    def say(self, line: str) -> None:
        """Nothing: the process that watches speaks."""

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        del total
        # Blocks of a pyramid are no patches.
        yield self.advance if name == "predict" else lambda _amount, _text: None

    def advance(self, amount: float, text: str) -> None:
        """Send progress, unless some was sent just now."""
        self._amount += amount
        if time.monotonic() - self._last >= self.every_s:
            self.send((self._amount, f"{self.title}: {text}"))
            self._amount, self._last = 0.0, time.monotonic()

    def record(self, values: Record) -> None:
        """To be kept by the process that watches."""
        self.send({**values, "worker": self.worker})


def _work(request: Request, networks: bytes, part: Part, messages: Connection, parent: int) -> None:
    """The main function of a worker; it ends when the process that watches is gone."""

    def send(message: Message) -> None:
        with suppress(BrokenPipeError):  # nobody listens: the next stop is near
            messages.send(message)

    with StopSignals() as stop:

        def should_stop() -> bool:
            return stop.should_stop() or os.getppid() != parent

        name = f"{part.index} on {request.params.device}"
        reporter = RemoteReporter(send, f"worker {part.index}", name)
        options = RunOptions(part=part, reporter=reporter, should_stop=should_stop)
        try:
            mine = replace(request, networks=tuple(pickle.loads(networks)))
            send(predict_request(mine, options))
        except VcmodelsError as error:
            send(error)
