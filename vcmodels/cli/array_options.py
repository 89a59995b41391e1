"""The options of `evaluate` for two arrays, from their texts to values."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, VcmodelsError

if TYPE_CHECKING:
    from vcmodels.geometry.boxes import Box


def image_location(text: str, console: Console) -> str:
    """Where an image for the pictures is, or the import of a file.

    Raises:
        VolumeError: it is missing or damaged.
    """
    from vcmodels.formats.imported import open_located
    from vcmodels.volumes import expand_location

    place = expand_location(text)
    return open_located(place, key="--image", channels="any", reporter=console).location


@contextmanager
def in_options() -> "Iterator[None]":
    """Name the options of this command in errors that name keys of a task."""
    try:
        yield
    except VcmodelsError as error:
        remedy = error.remedy
        for key, option in (
            ('name it in "ignore_label"', "name it with --ignore"),
            ('"channel_axis": "first" or "last"', "--set channel_axis=first, or last"),
            ('correct "channels", "label_values" or "remap"', "name it with --classes"),
        ):
            remedy = remedy.replace(key, option)
        if remedy == error.remedy:
            raise
        raise type(error)(error.subject, error.found, remedy) from error


def reading_keys(lines: Sequence[str], level: int | None, spacing: str | None) -> dict[str, object]:
    """How two arrays are read, as keys of a volume entry.

    Raises:
        RefusedError: a line names another key, or one that has an option of its own.
    """
    from vcmodels.config.read import apply_overrides

    keys: dict[str, Any] = {}
    apply_overrides(keys, lines)
    keys.pop("overrides", None)
    for key in keys:
        if key not in ("channel_axis", "axes", "channels", "index"):
            remedy = "give channel_axis, axes, channels or index; --level and --spacing are options"
            raise RefusedError("--set", f"{key} says nothing of how arrays are read", remedy)
    if level is not None:
        keys["level"] = level
    if spacing is not None:
        keys["spacing"] = lengths = numbers("--spacing", spacing)
        if len(lengths) != 3:
            raise RefusedError("--spacing", f'found "{spacing}"', "give three, as in 4,1,1")
    return keys


def array_kind(text: str | None) -> str | None:
    from vcmodels.evaluation.meaning import ARRAY_KINDS

    if text is not None and text not in ARRAY_KINDS:
        raise RefusedError("--kind", f'found "{text}"', f"choose from {', '.join(ARRAY_KINDS)}")
    return text


def classes_of(text: str | None) -> tuple[tuple[int, str], ...]:
    """Value and name of each class, from `0,1=cord,7`.

    Raises:
        RefusedError: a value is no whole number, or two classes have one value or one name.
    """
    found: list[tuple[int, str]] = []
    for word in words(text):
        value, _, name = word.partition("=")
        if not re.fullmatch(r"-?\d{1,9}", value) or (not name and "=" in word):
            raise RefusedError("--classes", f'found "{word}"', "write VALUE or VALUE=NAME")
        found.append((int(value), name or value))
    for each in zip(*found, strict=True):
        if len({*each}) < len(each):
            raise RefusedError("--classes", f'"{text}" names one twice', "name each class once")
    if len(found) == 1:
        raise RefusedError("--classes", f'"{text}" is one class', "name the background too")
    return tuple(found)


def words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def integers(option: str, text: str | None) -> list[int]:
    for word in words(text):
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise RefusedError(option, f'found "{word}"', "give whole numbers, as in 255 or -1,255")
    return [int(word) for word in words(text)]


def numbers(option: str, text: str | None, *, may_be_zero: bool = False) -> list[float]:
    """Numbers above 0, or from 0 on.

    Raises:
        RefusedError: one is none.
    """
    found: list[float] = []
    for word in words(text):
        with suppress(ValueError):
            found.append(float(word))
    is_whole = len(found) == len(words(text))
    if not is_whole or not all(0 <= n < math.inf and (n or may_be_zero) for n in found):
        wanted = "numbers from 0 on" if may_be_zero else "numbers above 0"
        raise RefusedError(option, f'found "{text}"', f"give {wanted}, as in 1,0.5")
    return found


def box_of(pairs: Sequence[tuple[int, int]]) -> "Box":
    from vcmodels.geometry.boxes import Box

    return Box.between([start for start, _ in pairs], [end for _, end in pairs])
