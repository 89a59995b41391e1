"""The kind of a target block that does not state one, and the original's names for losses."""

from collections.abc import Mapping
from typing import Any

from vcmodels.errors import TaskError
from vcmodels.targets.union import KINDS

LEGACY_LOSSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "BCEDiceLoss": ("binary", {"alpha": "bce", "beta": "soft_dice"}),
    "BCEWithLogitsLoss": ("binary", {}),
    "MaskedCosineLoss": ("normals", {}),
}
"""By `loss_fn`: the kind, and which `loss_kwargs` are the weights of which of our losses."""


def infer_kind(name: str, block: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Add `kind` to the block of a target, and replace `loss_fn` and `loss_kwargs` by `loss`.

    A `kind` that is there is kept. Otherwise the first of these that speaks decides: `loss_fn`,
    the names in `loss`, `activation`, the target's name ("normals" with 3 channels), one channel
    (a mask, as in the original). With `derive` only the target's name speaks: it is that of a kind.

    Args:
        name: of the target.
        block: as in the task file; it is not changed.

    Returns:
        The block for `AnyTarget`, and a line for the user for each thing that was read otherwise
        than it was written.

    Raises:
        TaskError: the kind cannot be told, or a `loss_fn` or one of its arguments is not known.
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


def _replace_legacy_loss(key: str, block: dict[str, Any], notes: list[str]) -> str | None:
    """Put `loss` in the place of `loss_fn` and `loss_kwargs`; the kind they stand for."""
    arguments = block.pop("loss_kwargs", None) or {}
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
    if not loss or not isinstance(loss, str | dict):
        return None
    names = {loss} if isinstance(loss, str) else set(loss)
    channels = block.get("channels", 1)
    for kind, target in KINDS.items():
        if names <= target.allowed_losses and not (kind == "binary" and channels != 1):
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
