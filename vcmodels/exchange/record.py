"""The record of a model: all that its use needs besides the weights, as one JSON text.

A file of any form carries it, so that a prediction with the file is one with the checkpoint. `use` in it
is for other programs: what goes in, how it is tiled, and what each output means.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vcmodels import __version__
from vcmodels.checkpoint import SCHEMA, Checkpoint, TrainedNetwork, require_types
from vcmodels.errors import CheckpointError, OutputError
from vcmodels.targets import AnyTarget

KEY = "vcmodels"
"""What the record is called in the metadata of a file."""
KEPT = (
    "schema", "task", "heads", "in_channels", "patch_size", "spacing", "unit", "versions",
    "normalization", "intensities", "calibration", "symmetry", "tuned",
)  # fmt: skip
"""Of the state of a checkpoint."""
MOST_TEXT = 1 << 26
"""Bytes of a record that are read; statistics of ten thousand volumes are 4 MB."""
REMEDY = "use a file that vcmodels export wrote, or the checkpoint"
WINDOWS = {
    "hann": "separable; Hann without its end points; the weights of all patches over a voxel sum to 1",
    "gaussian": "separable; Gaussian, deviation 1/8 of the patch; the weights over a voxel sum to 1",
}


def record_of(
    checkpoint: Checkpoint, network: TrainedNetwork, licence: str | None
) -> dict[str, Any]:
    """The record of a checkpoint, as JSON values; folders of this machine are left out.

    Args:
        checkpoint: what is exported.
        network: what was built of it.
        licence: of the weights, as a name such as CC-BY-4.0.

    Raises:
        OutputError: it predicts in regions that another network finds.
    """
    state = checkpoint.state
    if state.get("stages"):
        found = "finds its regions with another network, which only a checkpoint carries"
        raise OutputError(str(checkpoint.path), found, "export a model of one stage")
    kept = {key: state[key] for key in KEPT if key in state}
    return {
        **without_folders(kept),
        "made_by": f"vcmodels {__version__}",
        "made_from": {"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        "licence": licence,
        "use": use_of(network),
    }


def use_of(network: TrainedNetwork) -> dict[str, Any]:
    """What a program that knows nothing of vcmodels needs to run the network."""
    params = network.task.inference_params
    return {
        "input": {
            "name": "image",
            "axes": "bczyx",
            "dtype": "float32",
            "channels": network.in_channels,
            "spacing": list(network.spacing),
            "unit": network.unit,
            "normalization": network.normalization.summary,
            **made_inputs(network),
        },
        "tiling": {
            "patch": list(network.patch),
            "overlap": list(params.overlaps),
            "window": WINDOWS[params.window],
            "border": "a volume that is smaller than a patch is reflected at its end",
        },
        "outputs": {
            name: _output(target, network, name) for name, target in network.targets.items()
        },
    }


def made_inputs(network: TrainedNetwork) -> dict[str, Any]:
    """How inputs are made of a volume besides the normalisation, by the key of `dataset_config`."""
    config = network.task.dataset_config.model_dump(mode="json", by_alias=True)
    keys = ("prepare", "region", "stack", "coordinates")
    return {key: config[key] for key in keys if config[key]}


def _output(target: AnyTarget, network: TrainedNetwork, name: str) -> dict[str, Any]:
    dtype = network.task.inference_params.dtype
    try:
        encoding = target.encoding(dtype)
    except ValueError:  # this kind is not stored so
        encoding = None
    return {
        "axes": "bczyx",
        "kind": target.kind_name,
        "channels": target.channels,
        "values": "logits",
        "activation": target.activation,
        "temperature": network.temperatures.get(name),
        "components": ["z", "y", "x"] if target.glyph else None,
        "class_names": list(target.class_names),
        "stored_as": dtype.name,
        "encoding": encoding,
    }


def without_folders(value: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """JSON values with the last two parts of every absolute path and URL: no more is of use elsewhere."""
    if isinstance(value, Mapping):
        short = {key: _without_folder(key) for key in value}
        is_clear = len(set(short.values())) == len(short)
        return {short[key] if is_clear else key: without_folders(value[key]) for key in value}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return _without_folder(value) if isinstance(value, str) else value


def _without_folder(text: str) -> str:
    if not text.startswith(("/", "~")) and "://" not in text:
        return text
    return "/".join(text.split("?")[0].rstrip("/").split("/")[-2:])


def text_of(record: Mapping[str, Any]) -> str:
    """The record as it is written, the same text for the same values."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def read_record(text: str | bytes, path: Path) -> dict[str, Any]:
    """The record in the metadata of a file, its fields of the types that they must have.

    Raises:
        CheckpointError: it is none, or of another schema.
    """
    try:
        found = json.loads(text) if len(text) <= MOST_TEXT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise CheckpointError(str(path), "holds no record of vcmodels that can be read", REMEDY)
    state = {key: found[key] for key in KEPT if key in found}
    require_types(state, path)
    return state
