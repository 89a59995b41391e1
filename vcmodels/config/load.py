"""From a task file to a `Task`: read, override, bring to today's form, validate, cross-check."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vcmodels.config.anchoring import read_run
from vcmodels.config.checks import check_task, output_notes
from vcmodels.config.compat import lift, modernise
from vcmodels.config.explain import faults_of
from vcmodels.config.fill import fill_in
from vcmodels.config.messages import task_error
from vcmodels.config.overrides import apply_overrides
from vcmodels.config.plain import as_object, checked
from vcmodels.config.reading import read_task_file
from vcmodels.config.schema import task_schema
from vcmodels.config.task import Task
from vcmodels.config.volumes import fold_labels
from vcmodels.errors import TaskError


@dataclass(frozen=True)
class LoadedTask:
    """A valid task, what a person should know of how it was read, and the file it came from."""

    task: Task
    notes: list[str]
    path: Path


def load_task(path: str | Path, overrides: Sequence[str] = ()) -> LoadedTask:
    """Read and validate a task file; no volume is opened.

    Args:
        path: a JSON file, or YAML when it ends in `.yaml` or `.yml`; or the folder of a run, for
            the task that it was trained with.
        overrides: `dotted.key=value` lines; the value is JSON, or a bare text.

    Raises:
        TaskError: the file or a key in it is not valid; one line that says where and what to do.
    """
    path, said = Path(path), list[str]()
    if path.is_dir():
        data, said = read_run(path)
    else:
        data = read_task_file(path)
    task, notes = _parse(data, str(path), overrides)
    return LoadedTask(task, said + notes, path)


def parse_task(data: dict[str, Any], source: str) -> tuple[Task, list[str]]:
    """Validate a task that is in memory; `source` is what messages call it.

    Raises:
        TaskError: as `load_task`.
    """
    return _parse(data, source, ())


def _parse(data: object, source: str, overrides: Sequence[str]) -> tuple[Task, list[str]]:
    raw = as_object(checked(data))
    if raw is None:
        raise TaskError(source, "this is no object", "give the sections of a task")
    lift(raw)
    apply_overrides(raw, overrides)
    notes = modernise(raw)
    raw.setdefault("dataset_config", {})
    model = as_object(raw.setdefault("model_config", {}))
    if model is not None:
        model.setdefault("name", "residual_unet")
    schema = task_schema()
    faults = fold_labels(raw, schema)
    if faults:
        raise task_error(faults)
    try:
        task = Task.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise task_error(faults_of(error, raw, schema)) from error
    task = fill_in(task)
    faults = check_task(task)
    if faults:
        raise task_error(faults)
    return task, notes + output_notes(task)
