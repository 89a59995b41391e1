"""How a fault of the task file is worded: dotted key, what was found, what to do."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vcmodels.errors import TaskError

KeyPath = tuple[str | int, ...]
"""Keys and list indices that lead to a value of the task."""

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
    texts = [shown(choice) for choice in choices]
    return ", ".join(texts[:24]) + (", ..." if len(texts) > 24 else "")
