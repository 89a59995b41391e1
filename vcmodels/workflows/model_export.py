"""From a checkpoint to a model in the form of another program, with what is known of its quality."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vcmodels.errors import OutputError
from vcmodels.evaluation.report import REPORT, Report
from vcmodels.exchange import (
    Exported,
    form_named,
    load_state,
    require_name,
    tensors_file,
    write_model,
)
from vcmodels.exchange.base import MOST_ERROR
from vcmodels.inference.ensemble import find_checkpoints
from vcmodels.reporting import Reporter
from vcmodels.runs.run import read_log

MOST_FIGURES = 12
"""Of one target in a card; a report has them all."""


def export_model(
    source: Path, to: str, output: Path, licence: str | None, reporter: Reporter
) -> None:
    """Write a model, run it, and report how far it is from the network.

    Args:
        source: a checkpoint, or the folder of one run.
        to: the name of the form.
        output: the file or folder.
        licence: of the weights, such as CC-BY-4.0.
        reporter: told the largest error of each target.

    Raises:
        OutputError: the form is unknown, something is at the output, or the model gives other values.
        CheckpointError: the checkpoint cannot be used.
        RefusedError: a library is missing.
    """
    form = form_named(to)
    require_name(form, output)
    path = _only_checkpoint(source)
    model = Exported.of(load_state(path), licence)
    model = replace(model, scores=scores_of(path.parent, model.checkpoint.state.get("epoch")))
    for name, error in write_model(model, form, output).items():
        reporter.say(f"{name}: largest error {error:.1e}, of at most {MOST_ERROR:g}")
    more = "" if form.is_package else f", and test tensors {tensors_file(output)}"
    reporter.say(f"wrote {output}{more}")


def _only_checkpoint(source: Path) -> Path:
    found = find_checkpoints(source)
    if len(found) > 1:
        remedy = f"name one, as {found[0]}"
        raise OutputError(str(source), f"holds {len(found)} checkpoints", remedy)
    return found[0]


def scores_of(folder: Path, epoch: int | None) -> str:
    """What a run folder knows of its network after an epoch, as Markdown; "" if that is nothing."""
    return "\n".join([*_report_lines(folder / "evaluation" / REPORT), *_log_lines(folder, epoch)])


def _report_lines(path: Path) -> Iterator[str]:
    """The means of an evaluation."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        report = Report.from_json(json.loads(path.read_text(encoding="utf-8")))
        splits = sorted({str(volume.split) for volume in report.volumes if volume.split})
        of = f" ({', '.join(splits)})" if splits else ""
        yield from (f"Means over {len(report.volumes)} volumes of the evaluation{of}:", "")
        yield from ("| target | figure | value |", "| --- | --- | --- |")
        for target in report.targets:
            for name, value in [*report.means(target).items()][:MOST_FIGURES]:
                yield f"| {target} | {name} | {value:.4g} |"
        yield ""


def _log_lines(folder: Path, epoch: int | None) -> Iterator[str]:
    """The validation of the training after an epoch."""
    rows = [row for row in read_log(folder) if row.get("epoch") == epoch]
    figures = rows[-1] if rows else {}
    if found := {key: value for key, value in figures.items() if key.startswith("val/")}:
        yield from (f"Validation of the training, epoch {epoch}:", "")
        yield from ("| figure | value |", "| --- | --- |")
        for key, value in found.items():
            yield f"| {key.removeprefix('val/')} | {value:.4g} |"
        yield ""
