"""Plain values: what both JSON and YAML give, and what of it no key of a task can take."""

import math
from dataclasses import dataclass
from typing import Any, cast

from vcmodels.config.messages import KeyPath, dotted
from vcmodels.errors import TaskError, VolumeError
from vcmodels.volumes.location import is_remote, refuse_secrets

MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_DIGITS = 20  # of the largest uint64, which some ids take for "ignored"; no key takes more


@dataclass(frozen=True)
class BadNumber:
    """A number that the file spells but no key can take: NaN, infinite, or of very many digits."""

    text: str


def as_object(value: object) -> dict[str, Any] | None:
    """The value as an object with its keys, None if it is no object."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """The value as a list, None if it is none."""
    return cast(list[object], value) if isinstance(value, list) else None


def integer(text: str) -> int | BadNumber:
    """The integer that a text spells, unless it is absurdly long."""
    return int(text) if len(text) <= MAX_DIGITS else BadNumber(text)


def real(text: str) -> float | BadNumber:
    """The number that a text spells, unless it overflows."""
    value = float(text)
    return value if math.isfinite(value) else BadNumber(text)


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
