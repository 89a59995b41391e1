"""Objects from graphs: how fast basins are found, nuclei that touch, neurons from affinities.

    python -m benchmarks.objects_graph speed
    python -m benchmarks.objects_graph nuclei
    python -m benchmarks.objects_graph trained [FOLDER [RECIPE]]
    python -m benchmarks.objects_graph neurons RESULT LABEL

The first prints voxels per second of processor time for a block of 128^3. The second parts 40 touching
ellipsoids in 128^3 by the step `watershed` with its defaults, and by the ways of a threshold. The third
does what docs/objects.md says of nuclei: a network is trained for ten minutes on one scan of 40 nuclei, and
finds those of another. The last takes a result of inference with the heads `aff` and `boundary`, and prints VOI and adapted Rand error,
without voxels that are labelled 0, of the step `agglomerate`, and of waterz and mwatershed on the same
affinities in memory. RESULT lies in a box of LABEL, which its manifest names.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tests.nuclei import (
    average_precision,
    predicted_boundary,
    predicted_distance,
    predicted_mask,
)
from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.fields.components import label_components
from vcmodels.fields.forest import RegionEdges
from vcmodels.fields.watershed import BlockBasins
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.instances import Overlaps, adapted_rand, variation_of_information
from vcmodels.phantom.nuclei import touching_ellipsoids
from vcmodels.postprocess import AgglomerateStep, Source, Step, WatershedStep
from vcmodels.postprocess.landscape import Boundaries
from vcmodels.volumes import open_volume, place_at
from vcmodels.workflows.ground import ground_of_result

SIDE = 128
SPACING = (1.0, 1.0, 1.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="Objects from graphs.")
    parser.add_argument("what", choices=["speed", "nuclei", "trained", "neurons"])
    parser.add_argument("places", nargs="*", help="a result and a label, or a folder and a recipe")
    arguments = parser.parse_args()
    if arguments.what == "neurons":
        print_neurons(*arguments.places)
    elif arguments.what == "trained":
        print_trained(*arguments.places)
    else:
        {"speed": print_speed, "nuclei": print_nuclei}[arguments.what]()


def print_speed() -> None:
    """Processor time of the parts of a watershed, for smooth noise."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(0).normal(size=(SIDE + 2,) * 3), 2)
    heights = 1 + np.rint(8192 * (field - field.min()) / np.ptp(field)).astype(np.int32)
    found = BlockBasins.of(heights)
    regions = np.pad(found.pieces.astype(np.int64), ((0, 1),) * 3)
    places = np.arange(SIDE**3).reshape((SIDE,) * 3)
    landscape = Boundaries(_noise, 0.5, 1, 8.0, SPACING)
    rows: dict[str, Callable[[], object]] = {
        "heights": lambda: landscape(Box((0, 0, 0), (SIDE, SIDE, SIDE))),
        f"{len(found.lowest)} basins": lambda: BlockBasins.of(heights),
        "edges": lambda: RegionEdges.between(regions, heights[1:, 1:, 1:], places),
    }
    for name, work in rows.items():
        seconds = min(_processor_time(work) for _ in range(3))
        print(f"{name:16} {SIDE**3 / seconds / 1e6:6.1f} million voxels/s")  # noqa: T201


def _noise(box: Box) -> np.ndarray:
    return np.random.default_rng(0).random(box.shape, np.float32)


def _processor_time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def print_nuclei() -> None:
    """AP at an overlap of 0.5 of touching ellipsoids, by noise."""
    ids = touching_ellipsoids((SIDE, SIDE, SIDE), 40, (9, 17), 0)
    for noise in (0.05, 0.1, 0.15):
        for name, found in _nuclei(ids, noise):
            print(f"noise {noise:4} {name:26} AP {average_precision(found, ids):.3f}")  # noqa: T201


def _nuclei(ids: np.ndarray, noise: float) -> Iterator[tuple[str, np.ndarray]]:
    """Objects by several ways."""
    boundary, mask = predicted_boundary(ids, noise, 1), predicted_mask(ids, noise, 2)
    sources = {"boundary": source_of(boundary, "boundary"), "mask": source_of(mask, "binary")}
    yield "watershed, boundary", made(WatershedStep, sources, min_size=50)
    distance = source_of(predicted_distance(ids, noise, 3), "distance")
    yield "watershed, distance", made(WatershedStep, {"boundary": distance}, min_size=50)
    yield "components of a threshold", label_components((mask >= 0.5) & (boundary < 0.5), 6)[0]
    yield "scikit-image", _by_scikit_image(mask >= 0.5)


def _by_scikit_image(mask: np.ndarray) -> np.ndarray:
    """As its example has it: seeds at the maxima of the distance."""
    from scipy.ndimage import distance_transform_edt
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    distance = np.asarray(distance_transform_edt(mask))
    seeds = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(distance, footprint=np.ones((7, 7, 7)), labels=mask.astype(int))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-distance, seeds, mask=mask)


def print_trained(folder: str = "runs/nuclei", recipe: str = "boundary") -> None:
    """AP at an overlap of 0.5 on a scan that was not trained on, and that of scikit-image."""
    from skimage.filters import threshold_otsu

    work = Path(folder)
    for seed, part in enumerate(("train", "test")):
        _vcmodels(
            "phantom", "--kind", "nuclei", f"{work}/{part}.zarr", "--seed", str(seed), "--keep"
        )
    volume = {"input": f"{work}/train.zarr/raw", "cells": f"{work}/train.zarr/ids"}
    task = {
        "tr_params": {
            "model_name": "nuclei",
            "patch_size": [48, 48, 48],
            "max_steps_per_epoch": 50,
            "max_minutes": 10,
            "ckpt_out_base": f"{work}/{recipe}",
        },
        "model_config": {"f_maps": [16, 32, 64], "decoder": "shared"},
        "volume_paths": [volume],
        "targets": {"cells": {"kind": "instances", "recipe": recipe}},
        "inference_params": {
            "input_path": f"{work}/test.zarr/raw",
            "output_dir": f"{work}/{recipe}/predictions",
        },
    }
    place = work / f"{recipe}.json"
    place.write_text(json.dumps(task, indent=1))
    begun = time.monotonic()
    _vcmodels("train", str(place))
    _vcmodels("infer", str(place), "--overwrite")
    minutes = (time.monotonic() - begun) / 60
    ids, raw, found = (
        volume.read(volume.box)[0]
        for volume in (
            open_volume(place, key="place")
            for place in (
                f"{work}/test.zarr/ids",
                f"{work}/test.zarr/raw",
                f"{work}/{recipe}/predictions/nuclei.zarr/cells",
            )
        )
    )
    print(f"{recipe}, {minutes:.1f} minutes  AP {average_precision(found, ids):.3f}")  # noqa: T201
    other = _by_scikit_image(raw > threshold_otsu(raw))
    print(f"Otsu and scikit-image  AP {average_precision(other, ids):.3f}")  # noqa: T201


def _vcmodels(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vcmodels", *words], check=True)


def made(kind: type[Step], sources: Mapping[str, Source], **keys: object) -> np.ndarray:
    """What a step writes of sources in memory."""
    step = step_of(kind, {role: role for role in sources}, **keys)
    with tempfile.TemporaryDirectory() as name:
        return run_step(step, sources, Path(name), (SIDE,) * 3)


def print_neurons(result: str, label: str) -> None:
    """VOI and adapted Rand error of ours and of two libraries."""
    ground = ground_of_result(place_at(result))
    labels = open_volume(label, key="label").read(ground.box)[0]
    values = {
        name: ground.sources[name].read(ground.box, ground.box) for name in ("aff", "boundary")
    }
    encoding = ground.sources["aff"].encoding
    sources = {
        "affinities": source_of(values["aff"], "affinities", encoding=encoding),
        "boundary": source_of(values["boundary"], "boundary"),
    }
    offsets = [tuple(offset) for offset in encoding["offsets"]]
    for name, found in _neurons(sources, values["aff"], offsets):
        split, merge, rand = scores(found, labels)
        text = f"VOI {split:.3f} + {merge:.3f} = {split + merge:.3f}, Rand error {rand:.4f}"
        print(f"{name:32} {text}", flush=True)  # noqa: T201


def _neurons(
    sources: Mapping[str, Source], affinities: np.ndarray, offsets: list[tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Objects by several ways and thresholds."""
    import mwatershed
    import waterz

    for value in THRESHOLDS:
        yield f"mean, threshold {value}", made(AgglomerateStep, sources, threshold=value)
    for value in (0.9, 1.1, 1.3):
        yield f"mutex, bias {value}", made(AgglomerateStep, sources, by="mutex", bias=value)
    near = np.ascontiguousarray(affinities[:3])
    scores_at = [1 - value for value in THRESHOLDS[::-1]]
    for value, found in zip(scores_at, waterz.agglomerate(near, scores_at), strict=True):
        yield f"waterz, threshold {1 - value:.1f}", np.array(found)
    strides = [(1, 1, 1)] * 3 + [(2, 2, 2)] * (len(offsets) - 3)
    for value in THRESHOLDS:
        weights = affinities.astype(np.float64) - value
        yield f"mwatershed, bias {value}", mwatershed.agglom(weights, offsets, strides=strides)


def scores(found: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """VOI split and merge, and the adapted Rand error, without voxels that are labelled 0."""
    counts = np.ones(labels.shape, bool)
    table = Overlaps.of(found.astype(np.uint64), labels.astype(np.uint64), counts)
    table = table.without_background()
    return *variation_of_information(table), adapted_rand(table)[0]


if __name__ == "__main__":
    main()
