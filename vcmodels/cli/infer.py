"""The commands `infer` and `reproduce`."""

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, Quiet, TaskFile, load, one_fold
from vcmodels.cli.console import Console, JsonLines
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.config import Task
    from vcmodels.inference import InferenceReport, Part
    from vcmodels.reporting import StopSignals


def infer(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Use this checkpoint, or several; else that of the task or the run."),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(metavar="all|I,J,...", help="Use the best checkpoints of these folds."),
    ] = None,
    fold: FoldIndex = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier result at the output first.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the result, and mend what is damaged or missing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; write nothing.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Predict part I (from 0) of N; the last one completes."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="One process on each device, as in 0,1 or cpu,cpu."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Dask cluster: tcp://HOST:PORT, or local:N."),
    ] = None,
    log_json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append a line of figures for each unit of work."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Predict a volume, or continue doing so."""
    from vcmodels.reporting import StopSignals

    context.obj.begin()
    asked = _Asked(checkpoint, overwrite, verify, dry_run, part, devices, dask)
    asked.require_one_engine()
    console = Console(has_records=True, is_quiet=quiet)
    loaded = one_fold(load(task, set_, console), fold)
    if not checkpoint:
        checkpoint = _of_folds(loaded, folds, console)
    elif folds:
        raise RefusedError("--folds", "goes with no --checkpoint", "leave one out")
    asked = replace(asked, checkpoint=checkpoint)
    with ExitStack() as stack:
        if log_json and not dry_run:
            console.log = stack.enter_context(JsonLines(log_json))
        stop = stack.enter_context(StopSignals())
        report = _run(loaded, asked, console, stop)
    return _tell(report, stop.exit_code, console)


@dataclass(frozen=True)
class _Asked:
    """The options, as they were written."""

    checkpoint: Sequence[str] | None
    overwrite: bool
    verify: bool
    dry_run: bool
    part: str | None
    devices: str | None
    dask: str | None

    def require_one_engine(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            RefusedError: naming the first of them.
        """
        others = self.dry_run or self.verify
        for option, given, excluded in (
            ("--dask", self.dask, self.devices or self.part),
            ("--devices", self.devices, self.part),
        ):
            if given and (excluded or others):
                more = "--devices, --part" if option == "--dask" else "--part"
                found = f"goes with none of {more}, --dry-run and --verify"
                raise RefusedError(option, found, "leave one out")


def _run(task: "Task", asked: _Asked, console: Console, stop: "StopSignals") -> "InferenceReport":
    """Predict with the engine that was asked for."""
    from vcmodels import inference

    def should_stop() -> bool:
        stop.defer()  # asked after each batch: before the first, nothing waits to be written
        return stop.is_stopped()

    if not asked.dask and not asked.devices:
        return inference.run_inference(
            task,
            checkpoint=asked.checkpoint,
            part=_part(asked.part) if asked.part else inference.WHOLE,
            overwrite=asked.overwrite,
            verify=asked.verify,
            dry_run=asked.dry_run,
            reporter=console,
            should_stop=should_stop,
        )
    if asked.devices:
        devices = _devices(asked.devices)
        predictor = inference.load_predictor(task, asked.checkpoint)
        return inference.predict_on(
            task, predictor, devices,
            overwrite=asked.overwrite, reporter=console, should_stop=should_stop,
        )  # fmt: skip
    from vcmodels.devices import dask_client
    from vcmodels.inference.dask_cluster import predict_on_cluster  # late: it imports dask

    assert asked.dask
    with dask_client(asked.dask) as client:
        predictor = inference.load_predictor(task, asked.checkpoint)
        return predict_on_cluster(
            task, predictor, client,
            overwrite=asked.overwrite, reporter=console, should_stop=should_stop,
        )  # fmt: skip


def _of_folds(task: "Task", folds: str | None, console: Console) -> list[str] | None:
    """The checkpoints of folds, when those are asked for or are what was trained.

    Raises:
        RefusedError: the list names no folds, or one that has no checkpoint.
    """
    from vcmodels.inference.ensemble import best_of_folds, is_trained_in_folds

    wanted: list[int] | None = None
    if folds is not None and folds != "all":
        parts = folds.replace(" ", "").split(",")
        if not all(re.fullmatch(r"\d{1,2}", part) for part in parts):
            raise RefusedError("--folds", f'found "{folds}"', 'give "all", or a list as in 0,2')
        wanted = [int(part) for part in parts]
    elif folds is None and (task.inference_params.checkpoint_path or not is_trained_in_folds(task)):
        return None
    return [str(path) for path in best_of_folds(task, wanted, console.say)]


def _tell(report: "InferenceReport", stopped: int, console: Console) -> int:
    """Say what was done; the exit code."""
    if report.estimate is not None:
        for line in report.estimate.lines():
            console.say(line)
        return stopped
    if not report.is_through:
        console.say("stopped; the same command continues")
        return stopped
    if not report.was_complete:
        console.say(f"predicted {report.patches} patches in {report.seconds:.1f} s")
    if not report.is_complete:
        console.say("this part is done; the last one to end completes the result")
        return 0
    for name, place in report.outputs.items():
        console.say(f"{name}: {place}")
    return 0


def _part(text: str) -> "Part":
    """The part that `i/n` names.

    Raises:
        RefusedError: it names none.
    """
    from vcmodels.inference import Part

    found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
    if found and int(found[1]) < int(found[2]):
        return Part(int(found[1]), int(found[2]))
    raise RefusedError("--part", f'found "{text}"', "give I/N with I from 0 to N-1, as in 0/4")


def _devices(text: str) -> list[str | int]:
    """The devices in a list: numbers, `cpu`, `cuda:0`.

    Raises:
        RefusedError: one is none.
    """
    names = text.replace(" ", "").split(",")
    for name in names:
        if not re.fullmatch(r"\d{1,4}|cpu|cuda(:\d{1,4})?", name):
            raise RefusedError("--devices", f'found "{name}"', "give a list as in 0,1 or cpu,cpu")
    return [int(name) if name.isdecimal() else name for name in names]


def reproduce(
    context: typer.Context,
    output: Annotated[str, typer.Argument(metavar="OUTPUT.zarr", help="What infer wrote.")],
    into: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="Keep the second result in this folder."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the checkpoint is now, if it was moved.")
    ] = None,
    debug: Debug = False,
) -> int:
    """Make a result again from its own attributes, and say whether it is identical; 1 if not."""
    from vcmodels import inference
    from vcmodels.reporting import StopSignals
    from vcmodels.volumes import expand_location

    console = Console()
    context.obj.begin()
    with StopSignals() as stop, tempfile.TemporaryDirectory(prefix="vcmodels-") as scratch:

        def should_stop() -> bool:
            stop.defer()
            return stop.is_stopped()

        comparison = inference.reproduce(
            expand_location(output),
            expand_location(into or scratch),
            checkpoint=checkpoint,
            reporter=console,
            should_stop=should_stop,
        )
    if not comparison.is_whole:
        console.say("stopped")
        return stop.exit_code
    for line in comparison.lines or [f"{output}: identical"]:
        console.say(line)
    return 1 if comparison.lines else 0
