"""A finished result made again from what its attributes say, and compared with it voxel by voxel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import parse_task
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.inference.job import prepare
from vcmodels.inference.journal import Manifest, differences, of_today
from vcmodels.inference.own_grid import ON_PREPARED_GRID
from vcmodels.inference.predict import own_grid_of, predict_request
from vcmodels.inference.predictor import load_predictor
from vcmodels.inference.request import Request, RunOptions, prepare_of, with_section
from vcmodels.reporting import Reporter, Silent, list_some
from vcmodels.results import VERIFY, is_complete, open_inputs, our_attributes, result_root
from vcmodels.volumes import Place, Volume, open_volume, place_at

VERSIONS = ("torch", "vcmodels")
_AMP = {"float32": "off", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Comparison:
    """What two results have in common."""

    is_whole: bool
    """Whether there was a second result to compare; false after a stop."""
    lines: list[str]
    """One for each array that differs; none when all voxels are identical."""


def reproduce(
    output: str | Path,
    folder: str | Path,
    *,
    checkpoint: str | None = None,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Make a result again from its own attributes, and compare all levels of all targets.

    Args:
        output: the group that `infer` wrote, by its full path or URL.
        folder: where the second one goes, or is continued.
        checkpoint: where the checkpoint is now, if it was moved.
        reporter: told other versions, and progress.
        should_stop: as in `RunOptions`.

    Raises:
        OutputError: `output` is not finished, or the input or the checkpoint are not what they were.
        RefusedError: as for `run_inference`.
    """
    old = place_at(str(output))
    manifest, provenance = _read(old)
    moved = [checkpoint] if checkpoint else _paths(provenance["checkpoint"])
    request = _request(manifest, provenance, load_predictor(*moved).networks, str(folder))
    now = _manifest_of(request)
    for line in differences({k: manifest.get(k) for k in VERSIONS}, {k: now[k] for k in VERSIONS}):
        reporter.say(f"note: {line}")
    changed = differences(manifest, now | {k: manifest.get(k) for k in VERSIONS})
    if changed:
        found = f"cannot be made again: {list_some(changed, 6, between='; ')}"
        raise OutputError(str(output), found, "restore what it was made from")
    options = RunOptions(reporter=reporter, should_stop=should_stop)
    report = predict_request(request, options)
    if not report.is_complete:
        return Comparison(False, [])
    arrays = [
        f"{name}/{level}"
        for name in manifest["targets"]
        for level in range(manifest["pyramid"] + 1)
    ]
    compared = [_compare(old / array, report.root / array) for array in arrays]
    return Comparison(True, [line for line in compared if line])


def _manifest_of(request: Request) -> Manifest:
    """What would determine the voxels."""
    if request.prepare is not None or request.region is not None:
        return own_grid_of(request, RunOptions(), predict_request).manifest
    return prepare(request, Silent()).manifest


def _read(output: Place) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and the provenance of a finished result.

    Raises:
        OutputError: it is none.
    """
    if not output.names():
        raise OutputError(str(output), "is no zarr group", "name what infer wrote")
    noted = our_attributes(output)
    if not is_complete(noted):
        remedy = "finish it, or name another"
        raise OutputError(str(output), "is no finished result of infer", remedy)
    manifest = of_today(noted["manifest"])
    if "provenance" in noted:
        return manifest, noted["provenance"]
    # Older results have it at each target.
    return manifest, our_attributes(output / next(iter(manifest["targets"])))["provenance"]


def _request(
    manifest: Manifest,
    provenance: Mapping[str, Any],
    networks: tuple[TrainedNetwork, ...],
    folder: str,
) -> Request:
    """What a result was asked for, with what `auto` stood for, and the inputs by their full paths."""
    made, _ = parse_task(provenance["task"], "the attributes", is_record=True)
    params = made.inference_params
    manner = provenance.get(ON_PREPARED_GRID, manifest)
    changes = {
        "input_path": manifest["input"],
        "level": 0,  # the path names the array itself
        "output_dir": folder,
        "skip": params.skip.changed(mask=manifest["skip"]["mask"]),
        "pyramid": manifest["pyramid"],
        "patch_size": tuple(manifest["patch_size"]),
        "amp": _AMP[manner["precision"]],
        "compile": manner["compiled"],
        "threads": manner.get("threads", params.threads),
    }
    if manner["device"] == "cpu":
        changes["device"] = "cpu"
    exact = params.changed(**changes)
    return Request(
        networks=networks,
        inputs=open_inputs(manifest["input"], exact),
        output=result_root(folder, made.tr_params.model_name),
        params=exact,
        targets=made.dataset_config.targets,
        record=with_section(made.to_json(), exact),
        prepare=prepare_of(networks) if "prepare" in manifest else None,
        region=made.dataset_config.region if "region" in manifest else None,
    )


def _paths(checkpoint: str | list[str]) -> list[str]:
    return [checkpoint] if isinstance(checkpoint, str) else checkpoint


def _compare(old: Place, new: Place) -> str:
    """One line on how two arrays differ; empty when they do not."""
    before, now = (
        open_volume(str(place), key="output", channels="any", on_damage=VERIFY)
        for place in (old, new)
    )
    blocks = sorted({*before.stored_blocks(), *now.stored_blocks()})
    unequal, largest = 0, 0.0
    first: Box | None = None
    for block in blocks:
        difference = _largest_difference(before, now, block)
        if difference:
            unequal, largest, first = unequal + 1, max(largest, difference), first or block
    if first is None:
        return ""
    return (
        f"{old}: {unequal} of {len(blocks)} stored chunks differ, by {largest:g} at most, "
        f"the first at (z, y, x) = {first.origin}"
    )


def _largest_difference(before: Volume, now: Volume, block: Box) -> float:
    a, b = before.read(block).astype(np.float64), now.read(block).astype(np.float64)
    return float(np.abs(a - b).max())
