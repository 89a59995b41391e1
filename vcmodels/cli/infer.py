"""The commands `infer` and `reproduce`."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, Quiet, command_line, load, one_fold
from vcmodels.cli.console import Console, JsonLines
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.blockwise import Crew
    from vcmodels.checkpoint import TrainedNetwork
    from vcmodels.config import Task
    from vcmodels.inference import InferenceReport, Part, Request, RunOptions
    from vcmodels.reporting import StopSignals

    Networks = tuple[TrainedNetwork, ...]
    Read = Callable[[], tuple[Task, Networks]]
    """Reads the task and its networks."""

    class Predict(Protocol):
        """Predicts one volume; of many it is given the name of each."""

        def __call__(self, request: Request, name: str | None = None) -> InferenceReport: ...


def infer(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TASK|CHECKPOINT",
            help="A task file, a run folder, or a checkpoint or exported model, which needs nothing else.",
        ),
    ],
    volume: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="As --input.", show_default=False),
    ] = None,
    set_: Overrides = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="PATH", help="Predict this volume; several are stacked as channels."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the result, the result itself (.zarr), or a file of it, as seg.nii.gz.",
        ),
    ] = None,
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
        bool, typer.Option("--verify", help="Read the result, and fix what is damaged or missing.")
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
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Let code that a package of another program holds run."),
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Dask cluster: tcp://HOST:PORT, or local:N."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG|DIR", help="Draw three slices while they are predicted, into this PNG."
        ),
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
    from vcmodels.volumes.places import refuse_in_store

    engine = InferOptions(overwrite, verify, dry_run, part, devices, dask, preview)
    engine.require_one()
    inputs = _inputs(volume, input_)
    if inputs and VOLUMES in _given(set_ or ()):
        raise RefusedError(VOLUMES, f"is set, and {inputs[0]} is named", "leave one out")
    if log_json is not None:
        refuse_in_store("--log-json", log_json)
    import_module("vcmodels.inference")  # the seconds of importing belong to the start
    context.obj.begin()
    console = Console(has_records=True, is_quiet=quiet)
    lines = [*(set_ or ()), *_place_overrides(inputs, output)]
    task = None
    if _is_checkpoint(source) or (inputs and source.is_dir()):
        _refuse_options_of_tasks(checkpoint=checkpoint, folds=folds, fold=fold)
        read = _of_checkpoint(source, lines, trust=trust)
    else:
        task = one_fold(load(source, lines, console), fold)
        read = _of_task(task, checkpoint, folds, console, trust=trust)
    with ExitStack() as stack:
        if log_json and not dry_run:
            console.log = stack.enter_context(JsonLines(log_json))
        stop = stack.enter_context(StopSignals(lambda: console.say(UNPREDICTED)))
        predict = stack.enter_context(engine.predicting(console, stop))
        report = _predict(read, predict, output, console, stop, overwrite=overwrite)
    code = _end(report, stop.exit_code, console)
    if report.is_complete and task is not None and _is_scorable(task) and not (inputs or output):
        scoring = command_line("evaluate", source, set_, fold)
        console.say(f"next: {scoring} --overlay {task.tr_params.model_name}.png")
    return code


UNPREDICTED = (
    "stopped before the first patch: nothing was predicted that was not there before; "
    "the same command starts again"
)


def _is_scorable(task: "Task") -> bool:
    """Whether the task has labels on what it predicts."""
    predicted = task.inference_params.input_path
    return task.inference_params.volumes is not None or any(
        volume.input == predicted for volume in task.dataset_config.volume_paths
    )


@dataclass(frozen=True)
class InferOptions:
    """The options that say how and by whom a run is done, as they were written."""

    overwrite: bool
    verify: bool
    dry_run: bool
    part: str | None
    devices: str | None
    dask: str | None
    preview: Path | None

    def require_one(self) -> None:
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

    @contextmanager
    def predicting(self, console: Console, stop: "StopSignals") -> Iterator["Predict"]:
        """What predicts a request with the engine that was asked for, while the context lasts.

        Raises:
            RefusedError: the options make no sense, or no cluster answers.
        """
        from vcmodels import inference
        from vcmodels.blockwise import Crew
        from vcmodels.blockwise.engines import DaskWorkers
        from vcmodels.devices import dask_client

        part = read_part(self.part) if self.part else inference.WHOLE
        options, steps = partial(self._options, part, console, stop), partial(_with_steps, self)
        threads = Crew(part=part, reporter=console, should_stop=stop.should_stop)
        if self.devices:
            devices = _devices(self.devices)
            yield steps(threads, lambda of, name: inference.predict_on(of, devices, options(name)))
        elif not self.dask:
            yield steps(threads, lambda of, name: inference.predict_request(of, options(name)))
        else:
            from vcmodels.inference.dask_cluster import predict_on_cluster  # late: it imports dask

            with dask_client(self.dask) as client:
                crew = replace(threads, engine=DaskWorkers(client))
                yield steps(crew, lambda of, name: predict_on_cluster(of, client, options(name)))

    def _options(
        self, part: "Part", console: Console, stop: "StopSignals", name: str | None
    ) -> "RunOptions":
        """The options of the run of one volume, which is named where there are many."""
        from vcmodels import inference
        from vcmodels.inference.preview import preview_path

        return inference.RunOptions(
            part=part,
            overwrite=self.overwrite,
            verify=self.verify,
            dry_run=self.dry_run,
            preview=None if self.preview is None else preview_path(self.preview, name),
            reporter=console,
            # Asked after each batch: before the first, nothing waits to be written.
            should_stop=stop.should_stop,
        )


def _with_steps(
    options: InferOptions, crew: "Crew", predict: "Callable[[Request, str | None], InferenceReport]"
) -> "Predict":
    """What predicts a request, then does the steps of the task and writes the files it asks for."""

    def predict_and_do(request: "Request", name: str | None = None) -> "InferenceReport":
        from vcmodels.workflows.ground import ground_of_request
        from vcmodels.workflows.postprocess import finish_request, require_steps
        from vcmodels.workflows.result_files import export_result, require_result_files

        require_result_files(request, overwrite=options.overwrite)
        if request.steps:
            require_steps(request.steps, ground_of_request(request))
        report = predict(request, name)
        if not report.is_complete:
            return report
        if request.steps:
            done = finish_request(request, crew, overwrite=options.overwrite)
            if not done.is_complete:
                return replace(report, is_through=False, is_complete=False)
        export_result(request, crew.reporter)
        return report

    return predict_and_do


MOST_LISTED = 8
INPUT_PATH, OUTPUT_DIR = "inference_params.input_path", "inference_params.output_dir"
VOLUMES = "inference_params.volumes"


def _inputs(positional: Sequence[str] | None, option: Sequence[str] | None) -> list[str]:
    """The volumes that are named, in either way.

    Raises:
        RefusedError: both ways are used, or a checkpoint stands where a volume should.
    """
    if positional and option:
        raise RefusedError("--input", f"is given, and so is {positional[0]}", "leave one out")
    inputs = [*(positional or ()), *(option or ())]
    for name in inputs:
        if _is_checkpoint(Path(name)):
            remedy = "give checkpoints first, or with --checkpoint next to a task file"
            raise RefusedError("--input", f"{name} is a checkpoint", remedy)
    return inputs


def _given(lines: Sequence[str]) -> set[str]:
    """The keys that `--set` lines give a value."""
    pairs = [line.partition("=") for line in lines]
    return {key.strip() for key, _, value in pairs if value.strip() != "null"}


def _place_overrides(inputs: Sequence[str], output: str | None) -> Iterator[str]:
    """What input and output are as `--set` lines, which the result keeps."""
    if inputs:
        yield f"{INPUT_PATH}={json.dumps(inputs if len(inputs) > 1 else inputs[0])}"
        yield f"{VOLUMES}=null"
    if output:
        folder = _group(output).rpartition("/")[0] or "." if _is_one(output) else output
        yield f"{OUTPUT_DIR}={json.dumps(folder)}"


def _is_one(output: str) -> bool:
    """Whether an output is named as the result itself, or as a file of it, not as the folder for it."""
    return output.rstrip("/").endswith(".zarr") or _is_file(output)


def _is_file(output: str) -> bool:
    """Whether an output is a file of another format."""
    from vcmodels.formats.exporters import written_stem

    return bool(written_stem(output))


def _group(output: str) -> str:
    """The group of a result that is named itself; next to a file, that of its name."""
    from vcmodels.formats.exporters import written_stem

    stem = written_stem(output)
    return f"{stem}.zarr" if stem else output.rstrip("/")


def _placed(request: "Request", output: str | None) -> "Request":
    """The request with the result itself at the output, if that is named so."""
    from vcmodels.results import group_place

    if output is None or not _is_one(output):
        return request
    return replace(request, output=group_place(_group(output)))


def _predict_one(
    request: "Request", predict: "Predict", output: str | None, console: Console, *, overwrite: bool
) -> "InferenceReport":
    """Predict a request, and write the file that its output is named as.

    Raises:
        RefusedError, RunError: as from `_predict`.
    """
    from vcmodels.workflows.result_files import export_output, require_output_file

    request = _placed(request, output)
    if output is None or not _is_file(output):
        return predict(request)
    path = Path(output).expanduser()
    require_output_file(request, path, overwrite=overwrite)
    report = predict(request)
    if report.is_complete:
        export_output(request, path, console, overwrite=overwrite)
    return report


def _is_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint, or a model that was exported of one."""
    from vcmodels.exchange.forms import form_of
    from vcmodels.exchange.nnunet_folder import is_nnunet
    from vcmodels.runs.run import is_sealed

    with suppress(OSError):
        return path.suffix == ".pth" or bool(form_of(path)) or is_nnunet(path) or is_sealed(path)
    return False


def _refuse_options_of_tasks(**given: object) -> None:
    """Refuse options that choose among the checkpoints of a task.

    Raises:
        RefusedError: one is given next to a checkpoint, or to a run folder with an input.
    """
    for name, value in given.items():
        if value not in (None, []):
            remedy = "leave it out, or name a task file instead of the checkpoint"
            raise RefusedError(f"--{name}", "goes with a task file", remedy)


def _of_checkpoint(source: Path, lines: Sequence[str], *, trust: bool) -> "Read":
    """What reads task and networks from a checkpoint, or the best one of a run folder, alone.

    Raises:
        RefusedError: no input, or volumes of its training, or no output is named.
    """
    from vcmodels import inference

    given = _given(lines)
    for keys, option, what in (
        ({INPUT_PATH, VOLUMES}, "--input", "volume to predict"),
        ({OUTPUT_DIR}, "--output", "folder for the result"),
    ):
        if not keys & given:
            remedy = f"name the {what}: vcmodels infer {source} INPUT -o OUTPUT"
            raise RefusedError(option, "is missing", remedy)

    def read() -> "tuple[Task, Networks]":
        predictor = inference.load_predictor(source, trust=trust)
        return predictor.task_with(lines), predictor.networks

    return read


def _of_task(
    task: "Task",
    checkpoint: Sequence[str] | None,
    folds: str | None,
    console: Console,
    *,
    trust: bool,
) -> "Read":
    """What reads the networks of a task.

    Raises:
        RefusedError: the options do not fit it.
    """
    from vcmodels import inference
    from vcmodels.inference.ensemble import choose_checkpoints

    if checkpoint and folds:
        raise RefusedError("--folds", "goes with no --checkpoint", "leave one out")
    wanted = None if folds is None else _folds(folds)

    def read() -> "tuple[Task, Networks]":
        paths = choose_checkpoints(task, checkpoint, folds=wanted, reporter=console)
        return task, inference.load_predictor(*paths, trust=trust).networks

    return read


def _predict(
    read: "Read",
    predict: "Predict",
    output: str | None,
    console: Console,
    stop: "StopSignals",
    *,
    overwrite: bool,
) -> "InferenceReport":
    """Predict the one volume of a task, or each of many.

    Raises:
        RefusedError: whatever a user can fix; nothing was written.
        RunError: a failure on the way; the same command continues.
    """
    from vcmodels import inference
    from vcmodels.inference.many import NamedInput, named_inputs, predict_each

    task, networks = read()
    for note in (note for network in networks for note in network.notes):
        console.say(note)
    if not task.inference_params.is_many:
        request = inference.request_of(task, networks, reporter=console)
        return _predict_one(request, predict, output, console, overwrite=overwrite)
    if output is not None and _is_one(output):
        found = f"{output} is one result, and there are those of many volumes"
        raise RefusedError("--output", found, "name a folder for them")
    inputs = named_inputs(task)

    def predict_one(one: NamedInput) -> "InferenceReport":
        return predict(one.request(task, networks, console), one.name)

    every = predict_each(task, inputs, predict_one, console, stop.is_stopped)
    every.require_all()
    return every.combined()


def _folds(text: str) -> list[int] | Literal["all"]:
    """The folds in a list, or all of them.

    Raises:
        RefusedError: the text names none.
    """
    if text == "all":
        return "all"
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"\d{1,2}", part) for part in parts):
        raise RefusedError("--folds", f'found "{text}"', 'give "all", or a list as in 0,2')
    return [int(part) for part in parts]


def _end(report: "InferenceReport", stopped: int, console: Console) -> int:
    """Say what was done; returns the exit code."""
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
    for name, place in [*report.outputs.items()][:MOST_LISTED]:
        console.say(f"{name}: {place}")
    if (more := len(report.outputs) - MOST_LISTED) > 0:
        console.say(f"... and {more} more in {report.root}")
    console.say("each is an OME-Zarr image: napari (with napari-ome-zarr) and neuroglancer open it")
    return 0


def read_part(text: str) -> "Part":
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
    from vcmodels.scratch import scratch_folder
    from vcmodels.volumes import expand_location
    from vcmodels.volumes.places import refuse_in_store

    console = Console()
    context.obj.begin()
    if into is not None and "://" not in into:
        refuse_in_store("--output", expand_location(into))
    with StopSignals() as stop, scratch_folder() as scratch:
        comparison = inference.reproduce(
            expand_location(output),
            expand_location(into or str(scratch)),
            checkpoint=checkpoint,
            reporter=console,
            should_stop=stop.should_stop,
        )
    if not comparison.is_whole:
        console.say("stopped")
        return stop.exit_code
    for line in comparison.lines or [f"{output}: identical"]:
        console.say(line)
    return 1 if comparison.lines else 0
