"""`--set dotted.key=value`: change a key of the task from the command line."""

from collections.abc import Sequence
from typing import Any

from vcmodels.config.json_text import parse_value
from vcmodels.config.messages import dotted, shown
from vcmodels.config.plain import as_list, as_object, checked
from vcmodels.errors import TaskError

_INSIDE_DATASET = ("volume_paths", "targets")


def apply_overrides(task: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the keys in place and record the lines in the task under `overrides`.

    Raises:
        TaskError: a line is no `key=value`, or its key leads through something that has no keys.
    """
    for line in overrides:
        key, equals, text = line.partition("=")
        if not equals or not key.strip():
            raise TaskError("--set", f"found {shown(line)}", "give it as dotted.key=value")
        parts = key.strip().split(".")
        if parts[0] in _INSIDE_DATASET:
            parts.insert(0, "dataset_config")
        _set(task, parts, checked(parse_value(text), tuple(parts)), line)
    if overrides:
        # JSON may have been given on several lines; the record is one of texts without any.
        given = [" ".join(line.splitlines()) for line in overrides]
        task["overrides"] = [*(as_list(task.get("overrides")) or []), *given]


def _set(task: dict[str, Any], parts: Sequence[str], value: object, line: str) -> None:
    place: object = task
    rest = list(parts)
    while rest:
        block, items = as_object(place), as_list(place)
        if block is not None:
            key, rest = rest[0], rest[1:]
            if not rest:
                block[key] = value
                return
            if block.get(key) is None:
                block[key] = {}
            place = block[key]
        elif items is not None and _is_index(rest[0], items):
            index, rest = int(rest[0]), rest[1:]
            if not rest:
                items[index] = value
                return
            place = items[index]
        else:
            _refuse(parts, rest, place, line)


def _is_index(part: str, items: list[object]) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(items)


def _refuse(parts: Sequence[str], rest: Sequence[str], place: object, line: str) -> None:
    found = f"--set {line}: {shown(rest[0])} leads into {shown(place)}"
    remedy = "give the number of an entry, from 0" if isinstance(place, list) else "shorten the key"
    raise TaskError(dotted(tuple(parts)), found, remedy)
