"""The forms of exported models by name; each is imported when it is used."""

import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vcmodels.errors import OutputError

if TYPE_CHECKING:
    from vcmodels.checkpoint import TrainedNetwork
    from vcmodels.exchange.base import Errors, Exported


@dataclass(frozen=True)
class Form:
    """One form, by the name that `--to` gives it."""

    name: str
    endings: tuple[str, ...]
    """Of its files; of one that is written as a folder, "" is one of them."""
    mark: str = ""
    """The file by which a folder is known to be of this form."""
    other_marks: tuple[str, ...] = ()
    """What that file is also called in packages of others."""
    is_foreign: bool = False
    """Whether `load(path, trust)` also reads packages of other programs."""

    @property
    def is_package(self) -> bool:
        """Whether it is many files."""
        return bool(self.mark)

    @property
    def write(self) -> "Callable[[Exported, Path], Errors]":
        """Writes a model to a file, or into a folder that is there and empty."""
        return import_module(f"vcmodels.exchange.{self.name}").write

    @property
    def load(self) -> "Callable[..., TrainedNetwork]":
        """Reads the model at a path; where `is_foreign`, with a `Trust` after the path."""
        return import_module(f"vcmodels.exchange.{self.name}").load


FORMS = {
    form.name: form
    for form in (
        Form("safetensors", (".safetensors",)),
        Form("onnx", (".onnx",)),
        Form("torch_export", (".pt2",)),
        Form("bioimageio", ("", ".zip"), "rdf.yaml", ("bioimageio.yaml",), is_foreign=True),
        Form("monai_bundle", ("",), "configs/metadata.json", is_foreign=True),
    )
}
SUBJECT = "--to"


def form_named(name: str) -> Form:
    """The form of this name.

    Raises:
        OutputError: there is none.
    """
    if name not in FORMS:
        raise OutputError(SUBJECT, f'found "{name}"', f"choose from {', '.join(FORMS)}")
    return FORMS[name]


def form_of(path: Path) -> Form | None:
    """The form that a file or folder is of, by its name and what is in it; None of anything else."""
    for form in FORMS.values():
        if form.is_package:
            is_one = mark_of(path, form) is not None
        else:
            is_one = path.suffix in form.endings and path.is_file()
        if is_one:
            return form
    return None


def mark_of(path: Path, form: Form) -> str | None:
    """The file that shows that a folder or .zip is of a form; None where it is not."""
    marks = (form.mark, *form.other_marks)
    return next((m for m in marks if (path / m).is_file() or _is_archive_with(path, m)), None)


def _is_archive_with(path: Path, mark: str) -> bool:
    """Whether a path names a .zip that holds a file, at its top or in the one folder there."""
    if path.suffix != ".zip" or not path.is_file():
        return False
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        tops = {name.partition("/")[0] for name in names}
        return mark in names or (len(tops) == 1 and f"{next(iter(tops))}/{mark}" in names)
    return False
