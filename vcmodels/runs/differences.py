"""In which keys two resolved tasks differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

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
