"""Packages of optional extras: imported, or looked for, where they are needed; a missing one is named."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vcmodels.errors import RefusedError, VcmodelsError

Refusal = Callable[[str, str, str], VcmodelsError]
"""An error of a subject, what was found and a remedy."""


def load_extra(
    module: str, extra: str, subject: str, who: str = "", error: Refusal = RefusedError
) -> Any:  # noqa: ANN401 - a module
    """A module of an extra, imported.

    Args:
        module: its name.
        extra: in whose list of packages it is.
        subject: of the message.
        who: needs it, in words.
        error: what is raised, made of subject, found and remedy.

    Raises:
        VcmodelsError: of the kind of `error`: it, or a package that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise _missing(missing.name or module, extra, subject, who, error) from missing


def require_extra(*packages: str, extra: str, subject: str, who: str = "") -> None:
    """Refuse to go on without packages of an extra, none of which is imported.

    Args:
        packages: their names, as they are imported.
        extra: in whose list they are.
        subject: of the message.
        who: needs them, in words.

    Raises:
        RefusedError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise _missing(package, extra, subject, who, RefusedError)


def _missing(name: str, extra: str, subject: str, who: str, error: Refusal) -> VcmodelsError:
    found = f"{who} needs the package {name.partition('.')[0]}, which is not installed".strip()
    return error(subject, found, f'pip install "vcmodels[{extra}]"')
