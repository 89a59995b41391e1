"""Walking the JSON Schema of the task: what may stand at a path, and that in words."""

from collections.abc import Mapping
from typing import Any

from vcmodels.config.messages import KeyPath, listed, shown
from vcmodels.config.plain import as_list, as_object
from vcmodels.config.values import DEVICE_PATTERN, DEVICE_RULE, NAME_RULE

Schema = Mapping[str, Any]


def section_keys(schema: Schema) -> dict[str, set[str]]:
    """The keys of the task and of its sections, by the section's name ("" for the task)."""
    keys = {"": set(schema["properties"])}
    for section in ("tr_params", "inference_params", "model_config", "dataset_config"):
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


def value_at(path: KeyPath, data: object) -> object:
    """The value at `path`, None where there is none."""
    for part in path:
        if isinstance(part, int):
            items = as_list(data) or []
            data = items[part] if part < len(items) else None
        else:
            data = (as_object(data) or {}).get(part)
    return data


def wanted(schema: Schema, root: Schema) -> str:
    """What a key takes, in words: `an integer from 1 to 4096, or null`."""
    options = branches(schema, root)
    choices = [o["const"] for o in options if "const" in o]
    choices += [choice for o in options for choice in o.get("enum", ())]
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
        return DEVICE_RULE if schema["pattern"] == DEVICE_PATTERN else f"a name of {NAME_RULE}"
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
