"""What determines a result, and all that one would want to know of how it was made."""

import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from vcmodels.checkpoint import Predictor
from vcmodels.config import Task
from vcmodels.geometry.blocks import PatchGrid
from vcmodels.inference.deviation import Written
from vcmodels.inference.journal import Manifest
from vcmodels.inference.outputs import Layout
from vcmodels.inference.skipping import Mask
from vcmodels.volumes import Volume
from vcmodels.volumes.location import is_remote


def make_manifest(
    task: Task,
    predictor: Predictor,
    inputs: tuple[Volume, ...],
    targets: Mapping[str, Written],
    grid: PatchGrid,
    layout: Layout,
    mask: Mask | None,
) -> Manifest:
    """What determines the voxels, but for the manner in which the network is run."""
    params = task.inference_params
    dtype = layout.dtype
    return {
        "schema": 1,
        "input": [redacted(volume.location) for volume in inputs],
        "input_content": [volume.fingerprint() for volume in inputs],
        "checkpoint_sha256": predictor.sha256,
        "targets": {
            name: {"channels": target.channels, **target.encoding(dtype)}
            for name, target in targets.items()
        },
        "output_type": dtype.name,
        "output_chunks": list(layout.chunks),
        "output_shards": layout.shards and list(layout.shards),
        "output_zarr_format": layout.zarr_format,
        "pyramid": len(layout.factors) - 1,
        "patch_size": list(grid.patch),
        "overlap": list(params.overlaps),
        "bbox": None if params.bbox is None else [list(pair) for pair in params.bbox],
        "skip": params.skip.model_dump() | {"mask": mask and redacted(mask.volume.location)},
        "mask_content": mask and mask.volume.fingerprint(),
        "torch": torch.__version__,
        "vcmodels": version("vcmodels"),
    }


def make_provenance(task: Task, predictor: Predictor, manifest: Manifest) -> dict[str, Any]:
    members = (predictor, *predictor.others)
    packages = ("vcmodels", "torch", "zarr", "numpy")
    return {
        **manifest,
        "task": redacted_values(task.to_json()),
        "checkpoint": _one_or_all([str(member.path) for member in members]),
        "normalization": _one_or_all([member.normalization.to_dict() for member in members]),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def _one_or_all(values: list[Any]) -> object:
    """Of an ensemble all, in the order of the task, as the weights there."""
    return values[0] if len(values) == 1 else values


def redacted(location: str) -> str:
    """A location without the secrets that a URL may hold: user, password, query."""
    if not is_remote(location):
        return location
    return re.sub(r"://[^/@]*@", "://", location).split("?")[0]


def redacted_values(value: object) -> object:
    """`redacted` for every text in a JSON value."""
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted_values(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value
