"""What a run folder says of its run in small files, and whether a file of it is whole."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from vcmodels.volumes.places import read_json, write_json

TASK, LOG, LOCK = "task.json", "log.jsonl", ".lock"
ENVIRONMENT = "environment.json"
SPLITS, PATCHES = "splits.json", "patches.json"
SCHEMA = 1

JsonObject = dict[str, Any]


def now() -> str:
    """The time, as text that sorts and that any program reads."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_run(folder: Path) -> bool:
    """Whether a training has begun in the folder; a task file of the same name is not enough."""
    return (folder / TASK).is_file() and any(
        (folder / name).is_file() for name in (ENVIRONMENT, SPLITS)
    )


def read_task(folder: Path) -> JsonObject:
    """The resolved task; {} when it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        document = cast(object, read_json(folder / TASK))
        if isinstance(document, dict):
            return cast(JsonObject, document)
    return {}


def model_name(document: Mapping[str, Any]) -> str:
    """The `model_name` of a task, with which the names of its checkpoints begin; "" without one.

    Args:
        document: the task as JSON values.
    """
    settings = cast(object, document.get("tr_params"))
    name = cast(JsonObject, settings).get("model_name") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else ""


def read_starts(folder: Path) -> list[JsonObject]:
    """The records, oldest first; [] when there are none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        document = cast(object, read_json(folder / ENVIRONMENT))
        if isinstance(document, dict):
            starts = cast(dict[str, object], document).get("starts")
            if isinstance(starts, list):
                return [
                    cast(JsonObject, one)
                    for one in cast(list[object], starts)
                    if isinstance(one, dict)
                ]
    return []


def add_start(folder: Path, record: JsonObject) -> None:
    """Append a record, of a training that starts now in the working directory.

    Raises:
        OSError: the file cannot be written.
    """
    start: JsonObject = {"started": now(), "working_directory": str(Path.cwd()), **record}
    _write(folder, [*read_starts(folder), start])


def end_start(folder: Path, outcome: str) -> None:
    """Say in the last record when and how the training ended; a killed one never does.

    Raises:
        OSError: the file cannot be written.
    """
    starts = read_starts(folder)
    if starts:
        starts[-1] |= {"ended": now(), "outcome": outcome}
        _write(folder, starts)


def read_log(folder: Path) -> list[JsonObject]:
    """The lines of `log.jsonl`, one an epoch; one that a kill cut short is left out."""
    lines: list[JsonObject] = []
    with suppress(OSError, UnicodeDecodeError), (folder / LOG).open(encoding="utf-8") as log:
        for line in log:
            with suppress(ValueError, RecursionError):
                values = cast(object, json.loads(line))
                if isinstance(values, dict):
                    lines.append(cast(JsonObject, values))
    return lines


def starting_folder(folder: Path) -> Path | None:
    """Where the training was started last: what relative paths in its task count from."""
    starts = read_starts(folder)
    place = starts[-1].get("working_directory") if starts else None
    return Path(place) if isinstance(place, str) and os.path.isabs(place) else None  # noqa: PTH117


def _write(folder: Path, starts: list[JsonObject]) -> None:
    write_json(folder / ENVIRONMENT, {"schema": SCHEMA, "starts": starts})


ABSENT = None
"""What a key that is not there counts as: most keys mean by null that they are left out."""


def differing_keys(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """The values of every dotted key that is not the same in all tasks, in the order of the first.

    Args:
        tasks: JSON values. Lists of blocks are compared block by block, other lists as a whole.
    """
    flat = [dict(leaves(task)) for task in tasks]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def shown(value: object) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}..."


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all that is in a JSON value; lists of blocks are gone through."""
    named: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        named = list(cast(Mapping[object, object], value).items())
    elif isinstance(value, list) and any(isinstance(i, Mapping) for i in cast(list[object], value)):
        named = list(enumerate(cast(list[object], value)))
    if not named:
        yield key, value
    for name, inner in named:
        yield from leaves(inner, f"{key}.{name}" if key else str(name))


TRAILER = b"vcmodels-sha256:"
"""Followed by the sha256 of all that stands before."""
TRAILER_LENGTH = len(TRAILER) + 32


def is_sealed(path: Path) -> bool:
    """Whether a file ends as a checkpoint does; one that was cut does not, a flipped bit may.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < TRAILER_LENGTH:
            return False
        file.seek(-TRAILER_LENGTH, os.SEEK_END)
        return file.read(len(TRAILER)) == TRAILER
