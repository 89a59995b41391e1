"""One volume on several devices of a machine: a process for each, and this one watching."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.errors import RunError, VcmodelsError
from vcmodels.inference.job import auto_memory, prepare
from vcmodels.inference.predict import InferenceReport, claim_for_parts, predict
from vcmodels.inference.units import Part
from vcmodels.reporting import Advance, Record, Reporter, Silent, StopSignals

POLL_S = 0.2


# What a worker tells: patches done and how fast, figures of a unit, its report, or the error that
# ended it.
Message = tuple[float, str] | Record | InferenceReport | VcmodelsError


@dataclass(frozen=True)
class Worker:
    """A process and the end of the pipe that it talks into.

    Each has a pipe of its own: a queue of all has one lock, and a worker that is killed while it
    holds that silences the others for ever.
    """

    process: SpawnProcess
    messages: Connection


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
    if claim_for_parts(job, overwrite=overwrite, say=reporter.say) == "complete":
        reporter.say(f"{job.root}: already complete")
        return InferenceReport(job.root, places, was_complete=True)
    reporter.say(f"{job.patches} patches on {len(tasks)} devices")
    with _workers(tasks, network) as workers, reporter.bar("predict", job.patches) as advance:
        ends = _watch(workers, advance, reporter.record, should_stop)
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
def _workers(tasks: list[Task], network: bytes) -> Iterator[list[Worker]]:
    context = get_context("spawn")
    workers: list[Worker] = []
    try:
        for number, task in enumerate(tasks):
            reader, writer = context.Pipe(duplex=False)
            part = Part(number, len(tasks))
            process = context.Process(target=_work, args=(task, network, part, writer, os.getpid()))
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
    has_told = False
    while talking:
        if should_stop() and not has_told:
            has_told = True
            for worker in workers:
                worker.process.terminate()
        for messages in wait(list(talking), POLL_S):
            assert isinstance(messages, Connection)
            try:
                message: Message = messages.recv()
            except (EOFError, OSError):  # it has ended, perhaps in the middle of a message
                del talking[messages]
                continue
            number = talking[messages]
            if isinstance(message, tuple):
                amount, text = message
                advance(amount, f"worker {number}: {text}")
            elif isinstance(message, dict):
                record(message)
            else:
                ends[number] = message
    for worker in workers:
        worker.process.join()  # its exit code is known then
    return ends


class _Told:
    """The reporter of a worker: progress goes to the process that watches."""

    def __init__(self, messages: Connection, worker: str) -> None:
        self.messages, self.worker = messages, worker

    def say(self, line: str) -> None:
        """Nothing: the process that watches speaks."""

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        del total

        def advance(amount: float, text: str) -> None:
            if name == "predict":  # blocks of a pyramid are no patches
                _tell(self.messages, (amount, text))

        yield advance

    def record(self, values: Record) -> None:
        """To be kept by the process that watches."""
        _tell(self.messages, {**values, "worker": self.worker})


def _tell(messages: Connection, message: Message) -> None:
    """Send it, unless nobody listens: the work goes on to its next stop, which is then near."""
    with suppress(BrokenPipeError):
        messages.send(message)


def _work(task: Task, network: bytes, part: Part, messages: Connection, parent: int) -> None:
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
                reporter=_Told(messages, f"{part.index} on {task.inference_params.device}"),
                should_stop=should_stop,
            )
            _tell(messages, report)
        except VcmodelsError as error:
            _tell(messages, error)
