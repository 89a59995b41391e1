"""A task file as plain values: read, refused where it is ambiguous, changed by `--set`.

The standard reader keeps the last of two equal keys, takes NaN, and gives up on deep nesting with a
RecursionError; a task file must do none of that quietly.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# PyYAML has hardly any types.
# pyright: standard
import yaml

from vcmodels.config.messages import Block, KeyPath, as_list, as_object, dotted, shown
from vcmodels.config.values import INSIDE_DATASET
from vcmodels.errors import TaskError, VolumeError
from vcmodels.volumes.location import is_remote, refuse_secrets

MAX_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**20  # PyYAML reads a few hundred kB a second
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_DIGITS = 20  # of the largest uint64, which some ids take for "ignored"; no key takes more


def read_task_file(path: Path) -> Block:
    """The object in a JSON file, or in a YAML one if its name ends in `.yaml` or `.yml`.

    Raises:
        TaskError: the file cannot be read or is no such object; the message has line and column.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = read_text(path, MAX_YAML_BYTES if is_yaml else MAX_BYTES)
    if not text.strip():
        raise TaskError(str(path), "the file is empty", "write a task into it")
    value = parse_yaml(text, str(path)) if is_yaml else parse_json(text, str(path))
    if not isinstance(value, dict):
        raise TaskError(
            str(path), "this is no object", "put the sections of the task between { and }"
        )
    return cast(Block, value)


def read_text(path: Path, most: int) -> str:
    """A text file of so many bytes at most.

    Raises:
        TaskError: it cannot be read, is larger, or is not UTF-8.
    """
    return _decode(_read_bytes(path, most), path)


def _read_bytes(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise TaskError(str(path), "no such file", "check the path of the task file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise TaskError(str(path), f"cannot be read ({reason})", "check its permissions") from error
    if len(content) > most:
        raise TaskError(
            str(path), f"is larger than {most // 2**20} MiB", "name a task file, not a data file"
        )
    return content


def _decode(content: bytes, path: Path) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:64]:
        raise TaskError(str(path), "is not UTF-8 (it looks like UTF-16)", "save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8"
        raise TaskError(str(path), found, "save the file as UTF-8") from error


@dataclass(frozen=True)
class BadNumber:
    """A number that the file spells but no key can take: NaN, infinite, or of very many digits."""

    text: str


def integer(text: str) -> int | BadNumber:
    """The integer that a text spells, unless it is absurdly long."""
    return int(text) if len(text) <= MAX_DIGITS else BadNumber(text)


def real(text: str) -> float | BadNumber:
    """The number that a text spells, unless it overflows."""
    value = float(text)
    return value if math.isfinite(value) else BadNumber(text)


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]', re.DOTALL)
_COLON = re.compile(r"\s*:")
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
        raise TaskError(
            source, f"{place}: {error.msg[0].lower()}{error.msg[1:]}", _hint(text, error.pos)
        ) from error


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
        elif token[0] == '"' and (keys := seen[-1]) is not None and _COLON.match(text, match.end()):
            key, line = json.loads(token), text.count("\n", 0, match.start()) + 1
            path[-1] = key
            if key in keys:
                return repeated(tuple(path), keys[key], line)
            keys[key] = line
    raise AssertionError(f"{source}: no key is repeated")


def repeated(path: KeyPath, first: int, second: int) -> TaskError:
    """The error of a key that stands twice in one object."""
    lines = f"line {first}" if first == second else f"lines {first} and {second}"
    return TaskError(dotted(path), f"stands twice, in {lines}", "keep one of them")


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SCALARS = (
    ("null", r"null|~|", "n~"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)
"""Tag, pattern and first characters of the scalars that are not text."""


class _Composer(yaml.SafeLoader):
    """Tells scalars apart as JSON does: `1e-3` is a number, `off` and dates are text.

    YAML 1.1, which PyYAML follows, reads `1e-3` as text and `off` as false.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- that is how PyYAML keeps them


for _tag, _pattern, _first in _SCALARS:
    # "" is where PyYAML looks for the resolvers of an empty scalar.
    _Composer.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""]
    )


def parse_yaml(text: str, source: str) -> object:
    """Parse one YAML document under the same rules as `parse_json`; tags run no code.

    Raises:
        TaskError: it is not YAML, nested too deeply, or a key stands twice in one mapping.
    """
    try:
        node = yaml.compose(text, _Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise TaskError(source, f"{place}{error.problem}", "correct the YAML there") from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise TaskError(source, f"not YAML: {reason}", "correct the YAML there") from error
    except RecursionError as error:
        raise TaskError(source, "nested too deeply", "no key of a task needs that") from error
    return None if node is None else _Plain(source).value(node, ())


class _Plain:
    """Turns the nodes of a document into plain values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> object:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self.seen:  # each may hold others: ten lines can spell billions of values
            raise self._error(node, "an alias (*name) for a list or an object", "write it out")
        self.seen.add(id(node))
        if len(path) > MAX_DEPTH:
            raise self._error(
                node, f"nested deeper than {MAX_DEPTH}", "no key of a task needs that"
            )
        self._check_tag(node, ("map", "seq"))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise self._error(key_node, "a key that is not text", "put it in quotes")
            if key in lines:
                raise repeated((*path, key), lines[key], line)
            lines[key] = line
            result[key] = self.value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> object:
        self._check_tag(node, ("str", "null", "bool", "int", "float"))
        tag, text = node.tag.rpartition(":")[2], str(node.value)
        if tag == "int":
            return integer(text) if re.fullmatch(r"[-+]?\d+", text) else BadNumber(text)
        if tag == "float":
            return real(text) if re.fullmatch(_NUMBER, text) else BadNumber(text)
        return {"str": text, "null": None, "bool": text == "true"}[tag]

    def _check_tag(self, node: yaml.Node, known: tuple[str, ...]) -> None:
        if node.tag not in [f"tag:yaml.org,2002:{tag}" for tag in known]:
            raise self._error(node, f"the tag {node.tag} is not taken", "remove it")

    def _error(self, node: yaml.Node, found: str, remedy: str) -> TaskError:
        return TaskError(self.source, f"line {node.start_mark.line + 1}: {found}", remedy)


def checked(value: object, path: KeyPath = ()) -> Any:  # noqa: ANN401 -- any JSON value
    """A copy of a parsed value without comments, after refusing what no key can take.

    Keys that start with `_comment` are left out at any depth, and `$schema` at the top.

    Raises:
        TaskError: an impossible number, a control character or half a surrogate pair in a text,
            a URL that holds a password or a key (tasks are copied into runs and results), or too
            many values (aliases in YAML can spell billions in a few lines).
    """
    return _Checker().copy(value, path)


class _Checker:
    def __init__(self) -> None:
        self.values = 0

    def copy(self, value: object, path: KeyPath) -> object:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise TaskError(dotted(path[:4]), "too many values", "list volumes with a * instead")
        if isinstance(value, dict):
            return {
                self._text(key, (*path, key)): self.copy(inner, (*path, key))
                for key, inner in cast(dict[str, object], value).items()
                if not (key.startswith("_comment") or (key == "$schema" and not path))
            }
        if isinstance(value, list):
            items = cast(list[object], value)
            return [self.copy(inner, (*path, index)) for index, inner in enumerate(items)]
        return self._leaf(value, path)

    def _leaf(self, value: object, path: KeyPath) -> object:
        if isinstance(value, str):
            _refuse_secrets(value, path)
            return self._text(value, path)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise TaskError(dotted(path), f"found {_spelling(value)}", "give a finite number")

    def _text(self, text: str, path: KeyPath) -> str:
        for character in text:
            if ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 or ord(character) == 127:
                raise TaskError(
                    dotted(path), f"holds the character U+{ord(character):04X}", "remove it"
                )
        return text


def _refuse_secrets(text: str, path: KeyPath) -> None:
    if is_remote(text):
        try:
            refuse_secrets(text)
        except VolumeError as error:
            raise TaskError(dotted(path), error.found, error.remedy) from error


def _spelling(value: object) -> str:
    text = value.text if isinstance(value, BadNumber) else str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


def apply_overrides(document: Block, overrides: Sequence[str]) -> None:
    """Set the keys in place and record the lines under `overrides`.

    Raises:
        TaskError: a line is no `key=value`, or its key leads through something that has no keys.
    """
    for line in overrides:
        key, equals, text = line.partition("=")
        if not equals or not key.strip():
            raise TaskError("--set", f"found {shown(line)}", "give it as dotted.key=value")
        parts = key.strip().split(".")
        if parts[0] in INSIDE_DATASET:
            parts.insert(0, "dataset_config")
        _set(document, parts, checked(parse_value(text), tuple(parts)), line)
    if overrides:
        # JSON may have been given on several lines; the record is one of texts without any.
        given = [" ".join(line.splitlines()) for line in overrides]
        document["overrides"] = [*(as_list(document.get("overrides")) or []), *given]


def parse_value(text: str) -> object:
    """The value of `--set key=value`: JSON where it is JSON, else the text itself."""
    try:
        return parse_json(text, "--set")
    except TaskError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return text
        raise


def _set(document: Block, parts: Sequence[str], value: object, line: str) -> None:
    place: object = document
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
            found = f"--set {line}: {shown(rest[0])} leads into {shown(place)}"
            is_list = items is not None
            remedy = "give the number of an entry, from 0" if is_list else "shorten the key"
            raise TaskError(dotted(tuple(parts)), found, remedy)


def _is_index(part: str, items: list[object]) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(items)
