"""Trained models in the forms of other programs: written, checked, and read again.

A form is one file with `write(model, path) -> Errors`, and `load(path) -> TrainedNetwork` where vcmodels
predicts with it; it is named in `FORMS`. Modules of forms are imported when one is used.
"""

import zipfile
from importlib import import_module
from pathlib import Path

from vcmodels.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    build_network,
    load_checkpoint,
    state_of,
)
from vcmodels.errors import CheckpointError, OutputError
from vcmodels.exchange.base import Errors, Exported
from vcmodels.exchange.forms import FORMS, Form, form_named, form_of
from vcmodels.exchange.nnunet_folder import is_nnunet, models_at
from vcmodels.exchange.trust import Trust
from vcmodels.scratch import scratch_folder
from vcmodels.volumes.places import obstacle, refuse_in_store, whole_file, whole_folder


def load_network(path: Path, *, trust: bool = False) -> TrainedNetwork:
    """The network of a checkpoint, of an exported file, a package of others, or a fold of nnU-Net.

    Args:
        path: its file or folder.
        trust: let code of a package run; without it, none does.

    Raises:
        CheckpointError: it is missing, damaged, or needs what we do not have.
        RefusedError: a library is missing.
    """
    if is_nnunet(path):
        return import_module("vcmodels.exchange.nnunet").load(path)
    form = form_of(path)
    if form is None:
        return build_network(load_checkpoint(path))
    if form.is_foreign:
        return form.load(path, Trust(trust))
    return form.load(path)


def load_state(path: Path) -> Checkpoint:
    """What a training can start from: a checkpoint, or weights in any form.

    Raises:
        CheckpointError: as from `load_network`; or it is a graph, which cannot be trained.
        RefusedError: a library is missing.
    """
    if form_of(path) is None:
        return load_checkpoint(path)
    network = load_network(path)
    if network.is_fixed:
        remedy = "start from a checkpoint, or from a package with weights of a network of ours"
        raise CheckpointError(str(path), "is run as it is, and cannot be trained", remedy)
    return Checkpoint(path, network.sha256, state_of(network))


def write_model(model: Exported, form: Form, path: Path) -> Errors:
    """Write a model; nothing is there before it is whole and gave the values of the network.

    Args:
        model: what is written.
        form: of the file or folder.
        path: its name; next to a file the test tensors get `<name>.test.npz`.

    Returns:
        The largest error of each target.

    Raises:
        OutputError: the name does not fit the form, something is there, or the values differ.
        RefusedError: a library is missing.
    """
    require_name(form, path)
    if path.suffix == ".zip":
        with whole_file(path) as temporary, scratch_folder() as folder:
            errors = form.write(model, folder)
            _pack(folder, temporary)
        return errors
    if form.is_package:
        with whole_folder(path) as folder:
            return form.write(model, folder)
    with whole_file(path) as temporary, whole_file(tensors_file(path)) as test:
        errors = form.write(model, temporary)
        model.save_test(test)
    return errors


def tensors_file(path: Path) -> Path:
    """Where the test tensors of a file are."""
    return path.with_name(f"{path.name}.test.npz")


def _pack(folder: Path, archive: Path) -> None:
    """Put all files of a folder into an archive, as they are."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))


def require_name(form: Form, path: Path) -> None:
    """Refuse a name that a file of a form cannot have, or that is taken.

    Raises:
        OutputError: saying why.
    """
    if ":/" in path.as_posix():
        raise OutputError("-o", f"{path} is a URL", "name a local file")
    refuse_in_store("-o", path)
    if found := obstacle(path.absolute().parent):
        raise OutputError("-o", found, "choose a writable folder")
    is_folder = "" in form.endings and path.suffix != ".zip"
    if path.suffix not in form.endings and not is_folder:
        remedy = f"name it {path.stem}{form.endings[0]}"
        raise OutputError("-o", f"{path} is no name of a file of {form.name}", remedy)
    for one in (path,) if form.is_package else (path, tensors_file(path)):
        if one.exists():
            raise OutputError("-o", f"{one} is there already", "name another, or remove it")


__all__ = [
    "FORMS", "Errors", "Exported", "Form", "form_named", "form_of", "is_nnunet", "load_network",
    "load_state", "models_at", "require_name", "tensors_file", "write_model",
]  # fmt: skip
