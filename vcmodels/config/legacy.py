"""Spellings of the original's task files, brought to today's form with a note for each.

The original read its sections into namespaces and ignored what it did not know (its tasks folder,
bruniss/multi-task-3d-resencoder-unet, shows what was written). Every function here takes the file
as parsed, changes what it recognises and leaves the rest to the validation.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vcmodels.config.messages import Block, Fault, as_object, dotted, shown, task_error
from vcmodels.config.values import INSIDE_DATASET
from vcmodels.errors import TaskError
from vcmodels.targets import KINDS

Note = Callable[[str], None]

_MOVED = ("min_labeled_ratio", "min_bbox_percent")
_DROPPED = {"inference_params": ("load_all",), "model_config": ("basic_module",)}
LEGACY_LOSSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "BCEDiceLoss": ("binary", {"alpha": "bce", "beta": "soft_dice"}),
    "BCEWithLogitsLoss": ("binary", {}),
    "MaskedCosineLoss": ("normals", {}),
}
"""By `loss_fn`: the kind, and which `loss_kwargs` are the weights of which of our losses."""


def lift(document: Block) -> None:
    """Put `volume_paths` and `targets` that stand at the top level into `dataset_config`."""
    for key in INSIDE_DATASET:
        if key in document:
            _move(document, key, (), ("dataset_config",), lambda _line: None)


def modernise(document: Block) -> list[str]:
    """Bring old spellings to today's form, in place.

    Returns:
        One line for each spelling that was changed.

    Raises:
        TaskError: an old and a new spelling contradict each other.
    """
    notes: list[str] = []
    note = notes.append
    for key in _MOVED:
        if key in _block(document, "tr_params"):
            _move(document, key, ("tr_params",), ("dataset_config",), note)
    _rename(_block(document, "model_config"), "n_levels", "num_levels", ("model_config",), note)
    _rename_inference_keys(_block(document, "inference_params"), note)
    for section, keys in _DROPPED.items():
        for key in keys:
            if _block(document, section).pop(key, None) is not None:
                note(f"{section}.{key} has no meaning here and is ignored")
    _name_scheme(_block(document, "dataset_config"), note)
    _move_inference_targets(document, note)
    _complete_targets(_block(document, "dataset_config", "targets"), note)
    if _block(document, "inference_params").get("output_targets") == ["all"]:
        document["inference_params"]["output_targets"] = "all"
    return notes


def _block(document: Block, *path: str) -> Block:
    """The object at `path`; an empty one, not part of the file, where there is none."""
    block = document
    for part in path:
        block = as_object(block.get(part)) or {}
    return block


def _move(
    document: Block, key: str, old: tuple[str, ...], new: tuple[str, ...], note: Note
) -> None:
    source, home = _block(document, *old), as_object(document.setdefault(new[0], {}))
    if home is None:
        return
    if key in home and home[key] != source[key]:
        found = f"is also given as {dotted((*old, key))}, with another value"
        raise task_error([Fault((*new, key), found, "keep one of them")])
    home[key] = source.pop(key)
    note(f"{dotted((*old, key))} is read as {dotted((*new, key))}")


def _rename(block: Block, old: str, new: str, path: tuple[str, ...], note: Note) -> None:
    """Read the key `old` of the block at `path` as `new`."""
    if old not in block:
        return
    value = block.pop(old)
    if block.get(new, value) != value:
        found = f"is {shown(value)}, and {new} is {shown(block[new])}"
        raise task_error([Fault((*path, old), found, f"keep {new}")])
    block[new] = value
    note(f"{dotted((*path, old))} is read as {new}")


def _rename_inference_keys(inference: Block, note: Note) -> None:
    """Keys of our own first versions, which checkpoints of that time hold."""
    _rename(inference, "memory_gb", "memory", ("inference_params",), note)
    if "skip_empty" in inference and as_object(inference.setdefault("skip", {})) is not None:
        fill = {"fill": inference.pop("skip_empty")}
        if inference["skip"].get("fill", fill["fill"]) != fill["fill"]:
            found = f"is {shown(fill['fill'])}, and skip.fill is not"
            raise task_error([Fault(("inference_params", "skip_empty"), found, "keep skip.fill")])
        inference["skip"] |= fill
        note("inference_params.skip_empty is read as skip.fill")


def _name_scheme(dataset: Block, note: Note) -> None:
    """Write a normalisation given by name as an object."""
    scheme = dataset.get("normalization")
    if isinstance(scheme, str):
        dataset["normalization"] = {"scheme": scheme}
    block = _block(dataset, "normalization")
    if block.get("scheme") == "ct_normalization":
        block["scheme"] = "ct"
        note("dataset_config.normalization: ct_normalization is read as ct")


def _move_inference_targets(document: Block, note: Note) -> None:
    """`inference_params.targets`: an activation given there is the one of the output."""
    inference = _block(document, "inference_params")
    overriding = as_object(inference.get("targets"))
    if overriding is None:
        return
    targets, path = _block(document, "dataset_config", "targets"), ("inference_params", "targets")
    for name in overriding:
        target, keys = as_object(targets.get(name)), as_object(overriding[name])
        if target is None or keys is None:
            found = "is no object" if keys is None else "is no target of dataset_config.targets"
            raise task_error([Fault((*path, name), found, "correct or remove it")])
        _override(target, keys, (*path, name), note)
    del inference["targets"]


def _override(target: Block, keys: Block, path: tuple[str, ...], note: Note) -> None:
    for key, value in keys.items():
        if key == "activation":
            if value != target.get(key):
                note(f"{dotted((*path, key))} is read as dataset_config.targets.{path[-1]}.{key}")
            target[key] = value
        elif key == "weight":  # has no meaning for an inference
            continue
        elif value != target.get(key, 1 if key == "channels" else None):
            found = f"is {shown(value)}, and {shown(target.get(key))} in dataset_config.targets"
            raise task_error([Fault((*path, key), found, "only activation may differ there")])


def _complete_targets(targets: Block, note: Note) -> None:
    """Give every target its kind, and its loss by today's name."""
    for name in targets:
        block = as_object(targets[name])
        if block is not None:
            _check_legacy_types(name, block)
            targets[name], notes = infer_kind(name, block)
            for line in notes:
                note(line)


def _check_legacy_types(name: str, block: Block) -> None:
    """These two keys are gone before the validation sees the types."""
    for key, kind, wanted in (("loss_fn", str, "a text"), ("loss_kwargs", dict, "an object")):
        value = block.get(key)
        if value is not None and not isinstance(value, kind):
            path = ("dataset_config", "targets", name, key)
            raise task_error([Fault(path, f"found {shown(value)}", f"give {wanted}")])


def infer_kind(name: str, block: Mapping[str, Any]) -> tuple[Block, list[str]]:
    """Add `kind` to the block of a target, and replace `loss_fn` and `loss_kwargs` by `loss`.

    A `kind` that is there is kept. Otherwise the first of these that is there decides: `loss_fn`,
    the names in `loss`, `activation`, the target's name ("normals" with 3 channels), one channel
    (a mask, as in the original). With `derive` only the target's name decides: it is the name of a kind.

    Args:
        name: of the target.
        block: as in the task file; it is not changed.

    Returns:
        The block for `AnyTarget`, and a line for the user for each thing that was read otherwise
        than it was written.

    Raises:
        TaskError: the kind is not clear, or a `loss_fn` or one of its arguments is not known.
    """
    key = f"dataset_config.targets.{name}"
    result = dict(block)
    notes: list[str] = []
    legacy_kind = _replace_legacy_loss(key, result, notes)
    if "kind" in result:
        if legacy_kind not in (None, result["kind"]):
            raise TaskError(
                f"{key}.loss_fn",
                f'"{block["loss_fn"]}" trains kind "{legacy_kind}", not "{result["kind"]}"',
                'leave it out and use "loss"',
            )
        return result, notes
    activation = result.get("activation")
    if isinstance(activation, str) and activation != activation.lower():
        activation = result["activation"] = activation.lower()
        notes.append(f'{key}.activation: read as "{activation}"')
    if isinstance(result.get("derive"), str):
        return {"kind": _derived_kind(key, name, legacy_kind), **result}, notes
    kind = legacy_kind or _kind_of_loss(result) or _kind_of_head(name, result)
    if kind is None:
        raise TaskError(
            key,
            f'{result.get("channels", 1)} channels with activation "{activation or "none"}" may be '
            "several kinds of target",
            f'add "kind": one of {", ".join(KINDS)}',
        )
    if kind == "binary" and activation == "none":
        result["activation"] = "sigmoid"
        notes.append(
            f'{key}.activation: "none" is read as "sigmoid", predictions are probabilities'
        )
    return {"kind": kind, **result}, notes


def _derived_kind(key: str, name: str, legacy_kind: str | None) -> str:
    """The derivable kind that a target is named after.

    Raises:
        TaskError: there is none.
    """
    derivable = [kind for kind, target in KINDS.items() if target.is_derivable]
    named = legacy_kind or {"normal": "normals"}.get(name.lower(), name.lower())
    if named in derivable:
        return named
    remedy = f'add "kind": one of {", ".join(derivable)}'
    raise TaskError(key, "what is derived may be several kinds of target", remedy)


def _replace_legacy_loss(key: str, block: Block, notes: list[str]) -> str | None:
    """Put `loss` in the place of `loss_fn` and `loss_kwargs`; the kind they stand for."""
    arguments: Block = block.pop("loss_kwargs", None) or {}
    if "loss_fn" not in block:
        if arguments:
            raise TaskError(f"{key}.loss_kwargs", "there is no loss_fn", 'use "loss"')
        return None
    loss_fn = block.pop("loss_fn")
    if loss_fn not in LEGACY_LOSSES:
        known = ", ".join(LEGACY_LOSSES)
        raise TaskError(f"{key}.loss_fn", f'"{loss_fn}" is not one of {known}', 'use "loss"')
    if "loss" in block:
        raise TaskError(f"{key}.loss_fn", 'given beside "loss"', "keep one of the two")
    kind, weights = LEGACY_LOSSES[loss_fn]
    if arguments and set(arguments) != set(weights):
        raise TaskError(
            f"{key}.loss_kwargs",
            f"{loss_fn} is read with {' and '.join(weights) or 'none'}, got {', '.join(arguments)}",
            "leave them out" if not weights else 'or use "loss"',
        )
    if arguments:
        block["loss"] = {loss: arguments[name] for name, loss in weights.items()}
    elif loss_fn == "BCEWithLogitsLoss":
        block["loss"] = "bce"
    trained = block.get("loss", KINDS[kind].default_loss)
    notes.append(f'{key}.loss_fn: "{loss_fn}" is read as kind "{kind}" with loss {trained}')
    return kind


def _kind_of_loss(block: Mapping[str, Any]) -> str | None:
    """The first kind that is trained with the losses that the block names."""
    loss = block.get("loss")
    losses = [loss] if isinstance(loss, str) else as_object(loss)
    if not losses:
        return None
    names = set(losses)
    channels = block.get("channels", 1)
    for kind, target in KINDS.items():
        if names <= target.allowed_losses() and not (kind == "binary" and channels != 1):
            return kind
    return None


def _kind_of_head(name: str, block: Mapping[str, Any]) -> str | None:
    """The kind that activation, name and channels stand for, as the original read them."""
    is_normals = name.lower() in ("normal", "normals")
    channels = block.get("channels", 3 if is_normals else 1)
    activation = block.get("activation")
    if activation == "softmax":
        return "multiclass"
    if is_normals and channels == 3:
        return "normals"
    return "binary" if channels == 1 else None
