"""The command `evaluate`: of a task, or of any two arrays."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vcmodels
from vcmodels.cli.arguments import (
    Debug,
    FoldIndex,
    load,
    one_fold,
    refuse_all_folds,
    spans,
)
from vcmodels.cli.array_options import (
    array_kind,
    box_of,
    classes_of,
    image_location,
    in_options,
    integers,
    numbers,
    reading_keys,
    words,
)
from vcmodels.cli.console import Console, Errors, narrow_table, number, write_table
from vcmodels.cli.watch import watch_run
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.blockwise import Engine
    from vcmodels.config import Task
    from vcmodels.evaluation.arrays import ArrayRequest
    from vcmodels.evaluation.limits import Limit
    from vcmodels.evaluation.report import Report

MOST_COLUMNS = 6
"""Classes in a table on the terminal; the files hold all."""


def evaluate(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TASK|PREDICTION",
            help="A task file or a run folder; or an array, or OME-Zarr group, next to its label.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Argument(
            metavar="[LABEL]", help="What the prediction should be.", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the task; of two arrays, how they are read: channel_axis, axes, "
            "channels or index, such as index.t=5.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for report.html, report.json and scores.csv; the same command continues "
            "there. Of a task RUN/evaluation when left out.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What two arrays hold: binary, multiclass, instances, regression, normals, vector.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="V[=NAME],...", help="Stored values of the classes, background first."
        ),
    ] = None,
    foreground: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help='Which values of the label are foreground, as "== 1, 3".'
        ),
    ] = None,
    predicted_foreground: Annotated[
        str | None,
        typer.Option(metavar="RULE", help='The same of the prediction, as ">= 0.5": it is a mask.'),
    ] = None,
    axial: Annotated[
        bool, typer.Option("--axial", help="Normals of opposite sign are the same.")
    ] = False,
    ignore: Annotated[
        str | None, typer.Option(metavar="V,...", help="Values of the label that do not count.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="ARRAY", help="Nothing counts where it is 0.")
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, help="Which level of OME-Zarr groups.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Voxel size, whatever the arrays say of it."),
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="Z:Z,Y:Y,X:X", help="Score this part, start:end, instead.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Measure these only.")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="D,...", help="Tolerances of surfaces, in the unit of the spacing."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="[TARGET.]FIGURE=VALUE",
            help="Exit with 1 if a figure is worse; may be repeated.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, for programs.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads; else one a core.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Dask cluster: tcp://HOST:PORT, or local:N."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Shown under two arrays in the pictures of the page."),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Draw slices of the scored part of a task into this PNG.")
    ] = None,
    volumes: Annotated[
        str | None,
        typer.Option(
            metavar="val|test|all|A,B,...", help="Of a task: score these of its volumes instead."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Follow a run: score each new checkpoint, and keep the best."),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(metavar="TARGET.FIGURE", help="With --watch: by what the best are chosen."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, max=1000, help="With --watch: keep N of them, else 3.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With --watch: where to predict, such as cpu or cuda:1.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(min=0.1, max=86400, help="With --watch: seconds between looks, else 30."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="With --watch: score what is there, and end.")
    ] = False,
    fold: FoldIndex = None,
    debug: Debug = False,
) -> int:
    """Score a prediction: of a task, on what was held out of training, or of any two arrays."""
    only_watched = {
        "--metric": metric, "--keep": keep, "--device": device, "--interval": interval,
        "--once": once,
    }  # fmt: skip
    if not watch:
        _refuse_given(only_watched, "goes with --watch", "add it, or leave this out")
    else:
        others = {
            "LABEL": label, "--output": output, "--bbox": bbox, "--metrics": metrics,
            "--fail-under": fail_under, "--json": as_json, "--workers": workers, "--dask": dask,
            "--overlay": overlay,
        }  # fmt: skip
        _refuse_given(others, "does not go with --watch", "leave it out")
        console = Console()
        context.obj.begin()
        task = _task(Path(source), set_, volumes, None, None, fold, console)
        return watch_run(task, metric, keep, device, interval, console, once=once)
    if label is None:
        _refuse_of_arrays(
            {
                "--kind": kind, "--classes": classes, "--foreground": foreground,
                "--predicted-foreground": predicted_foreground, "--axial": axial, "--ignore": ignore,
                "--mask": mask, "--level": level, "--spacing": spacing, "--metrics": metrics,
                "--tolerance": tolerance, "--image": image,
            }
        )  # fmt: skip
        console = Errors() if as_json else Console()
        context.obj.begin()
        task = _task(Path(source), set_, volumes, bbox, overlay, fold, console)
        with block_engine(workers, dask) as engine:
            return _evaluate_task(
                task, bbox, overlay, output, fail_under or (), engine, console, as_json
            )
    for option, given in (("--overlay", overlay), ("--fold", fold), ("--volumes", volumes)):
        if given is not None:
            raise RefusedError(option, "goes with a task", "leave it out of two arrays")
    from vcmodels.evaluation.arrays import ArrayRequest
    from vcmodels.evaluation.meaning import ArrayOptions
    from vcmodels.formats import location_name

    console = Errors() if as_json else Console()
    context.obj.begin()
    request = ArrayRequest(
        source,
        label,
        mask,
        reading_keys(set_ or (), level, spacing),
        ArrayOptions(
            array_kind(kind),
            classes_of(classes),
            foreground,
            predicted_foreground,
            tuple(integers("--ignore", ignore)),
            axial,
        ),
        None if bbox is None else box_of(spans("--bbox", bbox)),
        tuple(words(metrics)),
        tuple(numbers("--tolerance", tolerance, may_be_zero=True)),
        location_name(label),
    )
    under = () if image is None else (image_location(image, console),)
    return _score_arrays(request, under, output, fail_under or (), workers, dask, console, as_json)


def _task(
    source: Path,
    overrides: list[str] | None,
    volumes: str | None,
    bbox: str | None,
    overlay: Path | None,
    fold: int | None,
    console: Console,
) -> "Task":
    """The task that is evaluated, of a cross-validation one fold.

    Raises:
        RefusedError: the options do not fit it.
    """
    if overlay is not None and overlay.suffix.lower() != ".png":
        raise RefusedError("--overlay", f'found "{overlay}"', "name a PNG, as in overlay.png")
    lines = [*(overrides or ())]
    if volumes is not None:
        choice = volumes if volumes in ("val", "test", "all") else words(volumes)
        lines.append(f"evaluation.volumes={json.dumps(choice)}")
    task = one_fold(load(source, lines, console), fold)
    choice = task.evaluation.volumes or task.inference_params.volumes
    if bbox is None and choice in (None, "val"):
        refuse_all_folds(task)
    return task


def _evaluate_task(
    task: "Task",
    bbox: str | None,
    overlay: Path | None,
    output: Path | None,
    limits: Sequence[str],
    engine: "Engine",
    console: Console,
    as_json: bool,
) -> int:
    """Score what infer wrote against the labels, and keep a report; returns the exit code."""
    from vcmodels import evaluation

    scores = evaluation.evaluate(
        task,
        bbox=None if bbox is None else spans("--bbox", bbox),
        overlay=overlay,
        output=output or task.run_dir / "evaluation",
        fail_under=limits,
        engine=engine,
        reporter=console,
    )
    if as_json:
        Console().write(scores.report.to_text())
    for failure in scores.failures:
        console.say(f"failed: {failure}")
    return 1 if scores.failures else 0


def _refuse_of_arrays(given: dict[str, object]) -> None:
    """Refuse options that are for two arrays.

    Raises:
        RefusedError: naming the first.
    """
    remedy = "give the label too: vcmodels evaluate PREDICTION LABEL"
    _refuse_given(given, "goes with two arrays", remedy)


def _refuse_given(given: dict[str, object], found: str, remedy: str) -> None:
    """Refuse options, if any of them is given.

    Raises:
        RefusedError: naming the first.
    """
    for option, value in given.items():
        if value not in (None, False, []):
            raise RefusedError(option, found, remedy)


def _score_arrays(
    request: "ArrayRequest",
    image: tuple[str, ...],
    output: Path | None,
    limits: Sequence[str],
    workers: int | None,
    dask: str | None,
    console: Console,
    as_json: bool,
) -> int:
    """Score two arrays, and show and write what was found; returns the exit code."""
    from vcmodels.evaluation.arrays import scored_volume
    from vcmodels.evaluation.limits import known_figures, parse_limits
    from vcmodels.evaluation.scoring import remove_records, score_volumes
    from vcmodels.evaluation.written import RECORD, require_folder, write_report
    from vcmodels.reporting import StopSignals

    if output is not None:
        require_folder("--output", output)
    with in_options():
        volume = replace(scored_volume(request, console), image=image)
        bounds = parse_limits(limits, known_figures(volume.targets))
        with block_engine(workers, dask) as engine, StopSignals() as stop:
            report = score_volumes(
                [volume],
                record=None if output is None else output / RECORD,
                engine=engine,
                provenance=_provenance(),
                reporter=console,
                should_stop=stop.should_stop,
            )
    if report is None:
        more = "" if output else "; with --output the same command would continue"
        console.say(f"stopped{more or '; the same command continues'}")
        return stop.exit_code
    if output is not None:
        write_report(report, output, [volume], console)
        remove_records(output / RECORD, [volume])
    if as_json:
        Console().write(report.to_text())
    else:
        write_scores(report, console)
    return _check(bounds, report, console)


def write_scores(report: "Report", console: Console) -> None:
    """Write the figures of each volume and target as a table: a line each, a column for each class."""
    from vcmodels.evaluation.report import TABLE
    from vcmodels.evaluation.table import class_rows

    for volume in report.volumes:
        for name, scores in volume.targets.items():
            rows = class_rows(scores)
            shown = rows[: 1 + MOST_COLUMNS]
            headers = [row.name or ("all" if len(rows) > 1 else "") for row in shown]
            table = narrow_table(name, *headers)
            for column in table.columns[1:]:
                column.justify = "right"
            for figure in dict.fromkeys(key for row in shown for key in row.figures):
                cells = (row.figures.get(figure) for row in shown)
                table.add_row(figure, *(_cell(cell) for cell in cells))
            write_table(table, console)
            if len(rows) > len(shown):
                console.say(f"{len(rows) - len(shown)} more classes: with --output in {TABLE}")
            for note in scores.notes:
                console.say(f"note: {note}")


def _cell(value: float | None) -> str:
    return "" if value is None else "-" if value != value else number(value)


def _check(limits: "Sequence[Limit]", report: "Report", console: Console) -> int:
    """Say which figures are worse than was asked for; 1 if any is."""
    failures = [failure for limit in limits if (failure := limit.failure(report))]
    for failure in failures:
        console.say(f"failed: {failure}")
    return 1 if failures else 0


@contextmanager
def block_engine(workers: int | None, dask: str | None) -> "Iterator[Engine]":
    """Who works on the blocks.

    Raises:
        RefusedError: both are given, or no scheduler answers.
    """
    from vcmodels.blockwise import Threads

    if dask is None:
        yield Threads(workers)
        return
    if workers is not None:
        raise RefusedError("--workers", "goes with no --dask", "give local:N, or leave one out")
    from vcmodels.blockwise.engines import DaskWorkers
    from vcmodels.devices import dask_client

    with dask_client(dask) as client:
        yield DaskWorkers(client)


def _provenance() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    command = shlex.join(["vcmodels", *sys.argv[1:]])
    return {"vcmodels": vcmodels.__version__, "time": now, "command": command}
