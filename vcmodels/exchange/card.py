"""The model card: what a model was trained on, how well it does, how it was made, and how to use it."""

from collections.abc import Iterator, Mapping
from typing import Any

from vcmodels.exchange.base import MOST_ERROR, Errors, Exported
from vcmodels.exchange.record import without_folders

MOST_VOLUMES = 30
SCORES = "No scores are known: the model was exported without the folder of its run."


def card(model: Exported, errors: Errors, file: str) -> str:
    """The README of a package, in Markdown.

    Args:
        model: what is exported.
        errors: from comparing the file with the network.
        file: the weights, in the package.
    """
    sections = {
        "Outputs": _outputs(model),
        "Use": _use(model, file),
        "Data": _data(model),
        "Split": _split(model),
        "Validation": [model.scores or SCORES],
        "How it was made": _making(model, errors),
        "Licence": [
            f"{model.licence}." if model.licence else "Not stated: ask who made the model."
        ],
    }
    parts = [f"# {model.network.task.tr_params.model_name}", *_section_texts(sections)]
    return "\n\n".join(parts).rstrip() + "\n"


def _section_texts(sections: Mapping[str, Any]) -> Iterator[str]:
    for title, lines in sections.items():
        yield f"## {title}"
        yield "\n".join(lines)


def _outputs(model: Exported) -> Iterator[str]:
    yield "| output | kind | channels | activation | classes |"
    yield "| --- | --- | --- | --- | --- |"
    for name, one in model.record["use"]["outputs"].items():
        classes = ", ".join(one["class_names"]) or "-"
        yield f"| {name} | {one['kind']} | {one['channels']} | {one['activation']} | {classes} |"


def _use(model: Exported, file: str) -> Iterator[str]:
    network, tiling = model.network, model.record["use"]["tiling"]
    unit = network.unit or "of unknown unit"
    yield f"    vcmodels infer {file} INPUT -o OUTPUT.zarr"
    yield ""
    yield f"- input: {network.in_channels} channels, axes (z, y, x), voxels of {list(network.spacing)} {unit}"
    yield f"- normalisation: {network.normalization.scheme}, per {network.normalization.per}"
    yield f"- patch: {tiling['patch']}, overlap {tiling['overlap']}, window: {tiling['window']}"


def _data(model: Exported) -> Iterator[str]:
    volumes = model.checkpoint.state.get("data", [])
    if not volumes:
        yield "Not recorded in the checkpoint."
        return
    yield f"Volumes: {len(volumes)}."
    yield ""
    yield "| volume | shape (z, y, x) | voxel size | type |"
    yield "| --- | --- | --- | --- |"
    for volume in volumes[:MOST_VOLUMES]:
        image = volume["arrays"].get("input", {})
        shape, dtype = image.get("extent", "-"), image.get("dtype", "-")
        name = without_folders(volume["name"])
        yield f"| {name} | {shape} | {volume.get('spacing', '-')} | {dtype} |"


def _split(model: Exported) -> Iterator[str]:
    split = model.checkpoint.state.get("split", {})
    if not split:
        yield "Not recorded in the checkpoint."
        return
    mode, share = split.get("split_mode", "-"), split.get("tr_val_split", "-")
    yield f"Divided by `{mode}` with `tr_val_split` {share}, seed {split.get('seed', '-')}."
    for name, role in zip(split.get("volumes", []), split.get("split", []), strict=False):
        if role is not None:
            yield f"- {without_folders(name)}: {role}"


def _making(model: Exported, errors: Errors) -> Iterator[str]:
    state, made = model.checkpoint.state, model.record["made_from"]
    config, params = model.network.task.model, model.network.task.tr_params
    yield f"- network: `{config.name}`, {_millions(model)} weights"
    yield f"- training: epoch {state.get('epoch', '-')}, step {state.get('step', '-')}, batch {params.batch_size}"
    yield f"- checkpoint: `{made['file']}`, sha256 `{made['sha256']}`"
    versions = ", ".join(f"{n} {v}" for n, v in state.get("versions", {}).items())
    yield f"- trained with: {versions or '-'}; exported by {model.record['made_by']}"
    for name, error in errors.items():
        yield f"- {name}: largest error of this file against the network {error:.1e} (limit {MOST_ERROR:g})"
    yield "- the whole task is in the metadata of the weights, under `vcmodels`"


def _millions(model: Exported) -> str:
    count = sum(one.numel() for one in model.network.module.parameters())
    return f"{count / 1e6:.2f} million"
