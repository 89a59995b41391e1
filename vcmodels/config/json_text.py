"""JSON under strict rules: no duplicate keys, no impossible numbers, no deep nesting."""

import json
import re

from vcmodels.config.messages import KeyPath, dotted
from vcmodels.config.plain import MAX_DEPTH, BadNumber, integer, real
from vcmodels.errors import TaskError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]', re.DOTALL)
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class _DuplicateKeyError(Exception):
    pass


def parse_json(text: str, source: str) -> object:
    """Parse JSON; duplicate keys are refused and impossible numbers come back as `BadNumber`.

    Raises:
        TaskError: it is not JSON, nested too deeply, or a key stands twice in one object.
    """
    _check_depth(text, source)
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_of,
            parse_constant=BadNumber,
            parse_int=integer,
            parse_float=real,
        )
    except _DuplicateKeyError as error:
        raise _duplicate_error(text, source) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise TaskError(source, f"{place}: {_reason(error)}", _hint(text, error.pos)) from error


def parse_value(text: str) -> object:
    """The value of `--set key=value`: JSON where it is JSON, else the text itself."""
    try:
        return parse_json(text, "--set")
    except TaskError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return text
        raise


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _DuplicateKeyError
    return result


def _check_depth(text: str, source: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, match.start()) + 1
            raise TaskError(
                source,
                f"line {line}: nested deeper than {MAX_DEPTH}",
                "no key of a task needs that",
            )


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg[0].lower() + error.msg[1:]


def _hint(text: str, position: int) -> str:
    """What most likely went wrong at a syntax error."""
    before, here = text[:position].rstrip(), text[position : position + 1]
    if not text[position:].strip():
        return "the file ends too early; is a closing } missing?"
    if here == "'":
        return 'use double quotes "'
    if here in ("/", "#"):
        return 'JSON has no comments; put the text under a key "_comment"'
    if here in ("}", "]") and before.endswith(","):
        return "remove the comma before the closing bracket"
    if here == "," or before.endswith(","):
        return "is there a comma too many?"
    if here == '"':
        return "is a comma missing before it?"
    return "correct the JSON there"


def _duplicate_error(text: str, source: str) -> TaskError:
    """Find which key stands twice: the parser knows the pairs of an object, not their places."""
    # One frame for each open bracket: first line of every key (None in a list), current key.
    seen: list[dict[str, int] | None] = []
    path: list[str | int] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            seen.append({} if token == "{" else None)
            path.append("" if token == "{" else 0)
        elif token in "}]":
            seen.pop()
            path.pop()
        elif token == "," and isinstance(path[-1], int):
            path[-1] += 1
        elif token[0] == '"' and (keys := seen[-1]) is not None and _is_key(text, match.end()):
            key, line = json.loads(token), text.count("\n", 0, match.start()) + 1
            path[-1] = key
            if key in keys:
                return repeated(tuple(path), keys[key], line)
            keys[key] = line
    raise AssertionError(f"{source}: no key is repeated")


def _is_key(text: str, end: int) -> bool:
    return text[end : end + 64].lstrip()[:1] == ":" or text[end:].lstrip()[:1] == ":"


def repeated(path: KeyPath, first: int, second: int) -> TaskError:
    """The error of a key that stands twice in one object."""
    lines = f"line {first}" if first == second else f"lines {first} and {second}"
    return TaskError(dotted(path), f"stands twice, in {lines}", "keep one of them")
