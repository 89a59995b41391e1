"""One volume on several devices of a machine: a process for each, and this one watching."""

import os
import pickle
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue

import torch

from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.errors import RunError, VcmodelsError
from vcmodels.inference.job import auto_memory, prepare
from vcmodels.inference.run import InferenceReport, claim_for_parts, predict
from vcmodels.inference.sharing import Part
from vcmodels.reporting import Advance, Reporter, Silent
from vcmodels.stopping import StopSignals

POLL_S = 0.2


@dataclass(frozen=True)
class Message:
    """What a worker tells: work done, its report, or the error that ended it."""

    worker: int
    content: float | InferenceReport | VcmodelsError


def predict_on(
    task: Task,
    predictor: Predictor,
    devices: Sequence[str | int],
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> InferenceReport:
    """As `predict`, shared by one process on each device; the same voxels come out.

    A worker that fails does not stop the others: what they finish is kept.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a worker failed, or was killed; the same command continues.
    """
    reporter = reporter or Silent()
    network = pickle.dumps(predictor)  # by value, before `prepare` moves it to a device
    tasks = _tasks(task, devices)
    job = prepare(tasks[0], predictor, reporter.say)
    places = {name: job.root / name for name in job.targets}
    if claim_for_parts(job, overwrite=overwrite) == "complete":
        reporter.say(f"{job.root}: already complete")
        return InferenceReport(job.root, places, was_complete=True)
    reporter.say(f"{job.patches} patches on {len(tasks)} devices")
    messages: Queue[Message] = get_context("spawn").Queue()
    with (
        _workers(tasks, network, messages) as workers,
        reporter.bar("predict", job.patches) as advance,
    ):
        ends = _watch(workers, messages, advance, should_stop)
    reports = [end for end in ends if isinstance(end, InferenceReport)]
    errors = [
        end
        or RunError(
            f"worker {number} on device {devices[number]}",
            f"ended with code {workers[number].exitcode}",
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
        places,
        patches=sum(report.patches for report in reports),
        seconds=max(report.seconds for report in reports),
        is_through=all(report.is_through for report in reports),
        is_complete=any(report.is_complete for report in reports),
    )


def _tasks(task: Task, devices: Sequence[str | int]) -> list[Task]:
    """The task for each device; cores and memory are divided."""
    params = task.inference_params
    shared = {
        "threads": params.threads or max(1, torch.get_num_threads() // len(devices)),
        "memory": auto_memory(len(devices)) / 1e9 if params.memory == "auto" else params.memory,
    }
    return [
        task.model_copy(
            update={"inference_params": params.model_copy(update={**shared, "device": device})}
        )
        for device in devices
    ]


@contextmanager
def _workers(
    tasks: list[Task], network: bytes, messages: "Queue[Message]"
) -> Iterator[list[SpawnProcess]]:
    context = get_context("spawn")
    workers = [
        context.Process(
            target=_work, args=(one, network, Part(n, len(tasks)), messages, os.getpid())
        )
        for n, one in enumerate(tasks)
    ]
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()  # SIGTERM: it writes what is finished
        for worker in workers:
            worker.join()


def _watch(
    workers: list[SpawnProcess],
    messages: "Queue[Message]",
    advance: Advance,
    should_stop: Callable[[], bool],
) -> list[InferenceReport | VcmodelsError | None]:
    """Pass progress on until every worker has ended; what each ended with, None if silently."""
    ends: list[InferenceReport | VcmodelsError | None] = [None] * len(workers)
    has_told = False
    while True:
        is_over = not any(worker.is_alive() for worker in workers)
        if should_stop() and not has_told:
            has_told = True
            for worker in workers:
                worker.terminate()
        try:
            message: Message = messages.get(timeout=0 if is_over else POLL_S)
        except queue.Empty:
            if is_over:
                return ends
            continue
        if isinstance(message.content, int | float):
            advance(message.content, "")
        else:
            ends[message.worker] = message.content


class _Told:
    """The reporter of a worker: progress goes to the process that watches."""

    def __init__(self, worker: int, messages: "Queue[Message]") -> None:
        self.worker, self.messages = worker, messages

    def say(self, line: str) -> None:
        """Nothing: the process that watches speaks."""

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        del total

        def advance(amount: float, _text: str) -> None:
            if name == "predict":  # blocks of a pyramid are no patches
                self.messages.put(Message(self.worker, float(amount)))

        yield advance


def _work(task: Task, network: bytes, part: Part, messages: "Queue[Message]", parent: int) -> None:
    """The main function of a worker; it ends when the process that watches is gone."""
    with StopSignals() as stop:

        def should_stop() -> bool:
            stop.defer()
            return stop.is_stopped() or os.getppid() != parent

        try:
            report = predict(
                task,
                pickle.loads(network),
                part=part,
                reporter=_Told(part.index, messages),
                should_stop=should_stop,
            )
            messages.put(Message(part.index, report))
        except VcmodelsError as error:
            messages.put(Message(part.index, error))
