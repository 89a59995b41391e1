"""How a fault of the task file is worded: dotted key, what was found, what to do."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vcmodels.config.values import (
    AXES_PATTERN,
    AXES_RULE,
    DEVICE_PATTERN,
    DEVICE_RULE,
    NAME_RULE,
)
from vcmodels.errors import FaultError, TaskError
from vcmodels.reporting import list_some

Block = dict[str, Any]
"""An object of a task file, as it is parsed."""
KeyPath = tuple[str | int, ...]
"""Keys and list indices that lead to a value of the task."""
Schema = Mapping[str, Any]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$\-]+")
_MAX_TEXT = 60
_MAX_OTHERS = 5


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong."""

    path: KeyPath
    found: str
    remedy: str
    meant: str | None = None
    """The key that an unknown one was probably meant to be."""


def fault_at(path: KeyPath, error: ValueError, remedy: str) -> Fault:
    """What a check raised, as the fault of the value at `path`.

    Args:
        path: of the value.
        error: as raised.
        remedy: for an error that has none of its own.
    """
    if isinstance(error, FaultError):
        return Fault(path, error.found, error.remedy)
    return Fault(path, str(error), remedy)


def task_error(faults: Sequence[Fault]) -> TaskError:
    """One error, on one line, for all faults: the first in full, the keys of the others."""
    first, *others = faults
    remedy = first.remedy
    if others:
        keys = list(dict.fromkeys(dotted(fault.path) for fault in others))
        listed = ", ".join(keys[:_MAX_OTHERS]) + (", ..." if len(keys) > _MAX_OTHERS else "")
        remedy += f" (and {len(others)} more: {listed})"
    return TaskError(dotted(first.path), first.found, remedy)


def dotted(path: KeyPath) -> str:
    """`dataset_config.volume_paths.0.input`; a key that would be misread is quoted."""
    parts = (
        str(part) if isinstance(part, int) or _PLAIN_KEY.fullmatch(part) else shown(part)
        for part in path
    )
    return ".".join(parts) or "the task"


def shown(value: object) -> str:
    """A value as it stands in the file, shortened, on one line and in ASCII."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        text = json.dumps(value, default=str)
        return text if len(text) <= _MAX_TEXT else f"a list of {len(cast(list[object], value))}"
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 4]}...{text[-1]}"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was most likely meant to be, None if nothing is close."""
    by_lower = {choice.lower().replace("-", "_"): choice for choice in choices}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def listed(choices: Iterable[object]) -> str:
    """`"a", "b", "c"`, shortened when there are many."""
    return list_some(map(shown, choices), 24)


def as_object(value: object) -> Block | None:
    """The value if it is an object with keys, else None."""
    return cast(Block, value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """The value if it is a list, else None."""
    return cast(list[object], value) if isinstance(value, list) else None


def value_at(path: KeyPath, data: object) -> object:
    """The value at `path`, None where there is none."""
    for part in path:
        if isinstance(part, int):
            items = as_list(data) or []
            data = items[part] if part < len(items) else None
        else:
            data = (as_object(data) or {}).get(part)
    return data


def section_keys(schema: Schema) -> dict[str, set[str]]:
    """The keys of the task and of its sections, by the section's name ("" for the task)."""
    keys = {"": set(schema["properties"])}
    for section in (
        "tr_params",
        "inference_params",
        "model_config",
        "dataset_config",
        "evaluation",
    ):
        for branch in branches(schema["properties"][section], schema):
            keys.setdefault(section, set()).update(branch.get("properties", ()))
    return keys


def branches(schema: Schema, root: Schema, value: object = None) -> list[Schema]:
    """The alternatives of a schema with references followed; `value` picks one by its tag."""
    if "$ref" in schema:
        return branches(root["$defs"][schema["$ref"].rpartition("/")[2]], root, value)
    block = as_object(value)
    if "discriminator" in schema and block is not None:
        tags = schema["discriminator"]
        tag = block.get(tags["propertyName"])
        if isinstance(tag, str) and tag in tags["mapping"]:
            return branches({"$ref": tags["mapping"][tag]}, root, value)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return [leaf for option in schema[union] for leaf in branches(option, root, value)]
    return [schema]


def schema_at(path: KeyPath, root: Schema, data: object) -> Schema:
    """The schema of the value at `path`; an empty one where the task has no such key."""
    schema: Schema = root
    for part in path:
        options = branches(schema, root, data)
        inner = [found for option in options if (found := _child(option, part)) is not None]
        if not inner:
            return {}
        schema = inner[0] if len(inner) == 1 else {"anyOf": inner}
        data = value_at((part,), data)
    return schema


def _child(schema: Schema, part: str | int) -> Schema | None:
    if isinstance(part, int):
        items = schema.get("prefixItems", ())
        return items[part] if part < len(items) else schema.get("items")
    if part in schema.get("properties", {}):
        return schema["properties"][part]
    return as_object(schema.get("additionalProperties"))


def wanted(schema: Schema, root: Schema) -> str:
    """What a key takes, in words: `an integer from 1 to 4096, or null`."""
    options = branches(schema, root)
    choices = [o["const"] for o in options if "const" in o]
    choices += [choice for o in options for choice in o.get("enum", ())]
    choices = list(dict.fromkeys(choices))  # a key may be that of several blocks
    phrases = [_phrase(o, root) for o in options if "const" not in o and "enum" not in o]
    if choices:
        phrases.insert(0, f"one of {listed(choices)}" if len(choices) > 1 else shown(choices[0]))
    phrases = [phrase for phrase in dict.fromkeys(phrases) if phrase]
    if "null" in phrases:  # the least interesting last
        phrases.append(phrases.pop(phrases.index("null")))
    return ", or ".join(phrases)


def _phrase(schema: Schema, root: Schema) -> str:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        noun = "an integer" if kind == "integer" else "a number"
        return noun + _range(schema)
    if kind == "string" and "pattern" in schema:
        rules = {DEVICE_PATTERN: DEVICE_RULE, AXES_PATTERN: AXES_RULE}
        return rules.get(schema["pattern"], f"a name of {NAME_RULE}")
    if kind == "string":
        return "a text" if schema.get("maxLength", 1) else '""'
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return _array_phrase(schema, root)
    if kind == "object":
        required = schema.get("required", ())
        return "an object" + (f" with {listed(required)}" if required else "")
    return str(kind or "")


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and "exclusiveMaximum" in schema:
        return f" from {_number(low)} to below {_number(schema['exclusiveMaximum'])}"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    lower = f"at least {_number(low)}" if low is not None else ""
    lower = f"above {_number(above)}" if above is not None else lower
    upper = f"at most {_number(high)}" if high is not None else ""
    upper = f"below {_number(below)}" if below is not None else upper
    both = " and ".join(part for part in (lower, upper) if part)
    return f" {both}" if both else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.10g}"


def _array_phrase(schema: Schema, root: Schema) -> str:
    items = schema.get("prefixItems")
    if items:
        inner = wanted(items[0], root)
        return f"a list of {len(items)}: each {inner}"
    inner = wanted(schema.get("items", {}), root)
    least = schema.get("minItems")
    return (
        "a list" + (f" of at least {least}" if least else "") + (f": each {inner}" if inner else "")
    )


MISSING = "is missing"


def unknown_key(path: KeyPath, schema: Schema, valid: Sequence[str]) -> Fault:
    """The fault of a key that is not one of `valid`."""
    key = str(path[-1])
    homes = [home for home, keys in section_keys(schema).items() if key in keys]
    homes = [home for home in homes if (home,) != path[:-1]]  # of another network, for example
    if homes:  # before a key here that is merely spelt alike
        return Fault(path, "unknown key here", f"move it to {homes[0] or 'the top level'}")
    guess = nearest(key, valid)
    if guess is not None:
        return Fault(path, "unknown key", f'did you mean "{guess}"?', guess)
    return Fault(path, "unknown key", f"valid keys here are {listed(valid)}")


def faults_of(error: ValidationError, data: object, root: Schema) -> list[Fault]:
    """The faults that pydantic found, in the order of the file's sections, one per key.

    Args:
        error: as raised for `data`.
        data: the value that was validated, as it stands in the file.
        root: the JSON schema of the task.
    """
    found: dict[KeyPath, Fault] = {}
    for detail in error.errors(include_url=False):
        fault = _fault(detail, data, root)
        found.setdefault(fault.path, fault)
    # Alternatives of a union each complain; where one got further into the value, it was meant.
    parents = {path[:length] for path in found for length in range(len(path))}
    # A required key that is misspelt is both missing and unknown; the second says more.
    misspelt = {(*f.path[:-1], f.meant) for f in found.values() if f.meant is not None}
    return [
        fault
        for path, fault in found.items()
        if path not in parents and not (fault.found == MISSING and path in misspelt)
    ]


def unfolded(path: KeyPath) -> KeyPath:
    """A path in a task whose labels were gathered under `labels`, as it is in the file."""
    if path[:2] == ("dataset_config", "volume_paths") and path[3:4] == ("labels",):
        return (*path[:3], *path[4:])
    return path


def _fault(detail: ErrorDetails, data: object, root: Schema) -> Fault:
    kind, context = detail["type"], detail.get("ctx", {})
    inner = real_path(detail["loc"], data, detail["type"] == "missing")
    if kind == "missing" and isinstance(detail["loc"][-1], int):  # of a list of fixed length
        kind, inner = "too_short", inner[:-1]
    path = unfolded(inner)
    if kind == "extra_forbidden":
        options = branches(schema_at(path[:-1], root, data), root, value_at(inner[:-1], data))
        valid = dict.fromkeys(key for o in options for key in o.get("properties", ()))
        return unknown_key(path, root, list(valid))
    if kind.startswith("union_tag"):
        return _wrong_tag(path, str(context["discriminator"]).strip("'"), data, root)
    if kind == "value_error":
        return fault_at(path, context["error"], "correct it")
    schema = schema_at(path, root, data)
    takes = wanted(schema, root)
    if kind == "missing":
        return Fault(path, MISSING, f"give {takes or 'it'}")
    found = f"found {shown(value_at(inner, data))}"
    return Fault(path, found, f"give {takes}" if takes else detail["msg"].lower())


def _wrong_tag(path: KeyPath, tag: str, data: object, root: Schema) -> Fault:
    schema = next(o for o in _unions(schema_at(path, root, data), root) if "discriminator" in o)
    choices = list(schema["discriminator"]["mapping"])
    block = as_object(value_at(path, data))
    if block is None:
        return Fault(path, f"found {shown(value_at(path, data))}", "give an object")
    value = block.get(tag)
    if tag not in block:
        typo = nearest(tag, block)
        if typo is not None:
            return Fault((*path, typo), "unknown key", f'did you mean "{tag}"?', tag)
        beside = f" beside {listed(block)}" if block else ""
        return Fault((*path, tag), MISSING + beside, f"give one of {listed(choices)}")
    guess = nearest(str(value), choices)
    remedy = f'did you mean "{guess}"? ' if guess else ""
    return Fault((*path, tag), f"found {shown(value)}", f"{remedy}give one of {listed(choices)}")


def _unions(schema: Schema, root: Schema) -> list[Schema]:
    """A schema with its references followed, unions left together."""
    if "$ref" in schema:
        return _unions(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "discriminator" not in schema and "anyOf" in schema:
        return [found for option in schema["anyOf"] for found in _unions(option, root)]
    return [schema]


def real_path(location: Sequence[str | int], data: object, is_missing: bool) -> KeyPath:
    """The path in the file of a place that pydantic names.

    pydantic adds a part for each alternative of a union (`int`, `list[int]`, a tag) and `[key]`;
    those are no keys of the value, by which they are known.
    """
    path: list[str | int] = []
    for index, part in enumerate(location):
        is_key = part in (as_object(data) or {})
        is_index = isinstance(part, int) and as_list(data) is not None
        if is_key or is_index:
            path.append(part)
            data = value_at((part,), data)
        elif is_missing and index == len(location) - 1:
            path.append(part)
    return tuple(path)
