"""From what pydantic reports to faults in the words of the task file."""

from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vcmodels.config.messages import Fault, KeyPath, listed, nearest, shown
from vcmodels.config.plain import as_list, as_object
from vcmodels.config.schema_walk import (
    Schema,
    branches,
    schema_at,
    section_keys,
    value_at,
    wanted,
)

MISSING = "is missing"


def unknown_key(path: KeyPath, schema: Schema, valid: Sequence[str]) -> Fault:
    """The fault of a key that is not one of `valid`."""
    key = str(path[-1])
    homes = [home for home, keys in section_keys(schema).items() if key in keys]
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
    # A required key that is misspelt is both missing and unknown; the second tells more.
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
        found, _, remedy = str(context["error"]).partition("; ")
        return Fault(path, found, remedy or "correct it")
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
    those are no keys of the value, which is how they are told apart.
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
