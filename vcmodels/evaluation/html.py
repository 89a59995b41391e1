"""What pages of HTML share: their templates, numbers, pictures, and how they are written."""

import base64
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import vcmodels
from vcmodels.errors import OutputError
from vcmodels.runs.run import leaves
from vcmodels.volumes.places import refuse_in_store, write_atomic

EMPTY_RULE = (
    "Where neither prediction nor label has anything there is nothing to measure: the figure is "
    "unknown (–) and no mean counts it. Where only one of them has something, a figure that has a "
    "worst value gets it (Dice 0); one that has none, as a distance, is unknown."
)
MARK = '<meta name="generator" content="vcmodels'
"""By it a page of ours is known before it is replaced."""


def render(template: str, **values: object) -> str:
    """The text of a template with these values, which are escaped."""
    environment = Environment(
        loader=PackageLoader("vcmodels.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    shared = {"version": vcmodels.__version__, "empty_rule": EMPTY_RULE}
    return environment.get_template(template).render({**shared, **values})


def require_free(path: Path) -> None:
    """Refuse a place where a page would replace what is none of ours.

    Raises:
        OutputError: another file is in the way, or the path is in a store.
    """
    refuse_in_store("the page", path)
    if path.exists():
        is_ours = False
        if path.is_file():
            with path.open("rb") as file:
                is_ours = MARK.encode() in file.read(2000)
        if not is_ours:
            raise OutputError(str(path), "is there, and is no page of vcmodels", "name another")


def write_html(path: Path, text: str) -> None:
    """Write a page; one of ours that is there is replaced.

    Raises:
        OutputError: as from `require_free`.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def number(value: float) -> str:
    """A figure as people read it; a dash where it is unknown."""
    if not isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}"
    else:
        text = f"{value:.4f}" if abs(value) < 10 else f"{value:.6g}"
    return text.replace("-", "−", 1) if value < 0 else text


def data_url(picture: bytes) -> str:
    """A WebP in a URL."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def lines_of(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """JSON values as (dotted key, text), for a table."""
    texts = (
        (key, value if isinstance(value, str) else _text(value)) for key, value in leaves(values)
    )
    return list(texts)


def settings_lines(settings: Mapping[str, Any], key: str = "") -> list[tuple[str, str]]:
    """The settings of a report, as from `lines_of`; metrics without options share a line.

    Args:
        settings: as JSON values; their `metrics` hold the options of each by target and name.
        key: before the names of all.
    """
    lines = lines_of({key + name: value for name, value in settings.items() if name != "metrics"})
    for target, metrics in settings.get("metrics", {}).items():
        if not isinstance(metrics, Mapping):
            lines += lines_of({f"{key}metrics.{target}": metrics})
            continue
        plain = [name for name, options in metrics.items() if not options]
        rest = {name: options for name, options in metrics.items() if options}
        whole = f"{key}metrics.{target}"
        lines += [(whole, ", ".join(plain))] if plain else []
        lines += lines_of({whole: rest}) if rest else []
    return lines


def _text(value: object) -> str:
    is_empty = value is None or value in ({}, [], ())
    return "none" if is_empty else json.dumps(value, ensure_ascii=False)
