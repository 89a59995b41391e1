"""The figures of others on the same pairs: nnU-Net's evaluator, medpy, MONAI, surface-distance.

    python benchmarks/evaluation_peers.py PYTHON    # an interpreter with nnunetv2 and medpy
    PYTHON benchmarks/evaluation_peers.py --score FOLDER

The first form makes pairs of classes, scores them here and by the others, and prints each figure with
the largest difference over all pairs. nnU-Net and medpy score in the second form, which needs
nothing of vcmodels; MONAI and surface-distance are dependencies of the tests.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from scipy import ndimage

PAIRS = 10
SHAPE = (30, 40, 50)
SPACING = (2.0, 1.0, 0.8)
Figures = dict[str, float]


def main() -> None:
    """Make pairs, score them, print the differences; or score a folder of them."""
    parser = argparse.ArgumentParser(description="The figures of others.")
    parser.add_argument("python", nargs="?", help="an interpreter with nnunetv2 and medpy")
    parser.add_argument("--score", type=Path, help="a folder of pairs")
    arguments = parser.parse_args()
    if arguments.score:
        write_by_others(arguments.score)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [made_pair(seed) for seed in range(PAIRS)]
        for number, (prediction, label) in enumerate(pairs):
            np.savez(folder / f"{number}.npz", prediction=prediction, label=label)
        command = [arguments.python, __file__, "--score", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        theirs = json.loads((folder / "figures.json").read_text())
    for pair, found in zip(pairs, theirs, strict=True):
        found |= by_monai(*pair) | by_surface_distance(*pair)
    compare([ours(*pair) for pair in pairs], theirs)


def made_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A label with two classes of blobs, and a prediction that is shifted and frayed: uint8."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *SHAPE)), (0, 3, 4, 5))
    label = np.where(fields[0] > 0.01, 1 + (fields[1] > 0), 0).astype(np.uint8)
    moved = ndimage.shift(fields, (0, *rng.uniform(-2, 2, 3)), order=1, mode="nearest")
    moved += ndimage.gaussian_filter(rng.normal(size=moved.shape), (0, 1, 1, 1)) * 0.01
    return np.where(moved[0] > 0.012, 1 + (moved[1] > 0), 0).astype(np.uint8), label


def ours(prediction: np.ndarray, label: np.ndarray) -> Figures:
    """By `surface` with voxels and with surfels, and the sums."""
    import torch

    from vcmodels.data.labels import Label, StoredLabel
    from vcmodels.evaluation.evaluate import pair_of
    from vcmodels.metrics.registry import measure, summarise
    from vcmodels.metrics.surface import SurfaceMetric
    from vcmodels.targets import MulticlassTarget
    from vcmodels.volumes import ArrayVolume

    target, names = MulticlassTarget(channels=3), ("1", "2")
    found, truth = (ArrayVolume.of(a, SPACING, "array") for a in (prediction, label))
    pair = pair_of(Label(target, StoredLabel("label", truth, truth.box), SPACING), found, truth.box)
    tensors = (torch.from_numpy(array)[None] for array in pair.load(pair.box))
    sums = measure(target.metrics, *tensors)
    figures = summarise(target.metrics, sums, names)
    for elements in ("voxels", "surfels"):
        metric = SurfaceMetric(compares="classes", tolerances=(2.0,), elements=elements)
        joined = metric.join([(pair.box, metric.measure(pair, pair.box))])
        for figure, values in metric.figures(joined).items():
            each = values if isinstance(values, Sequence) else [values]
            for name, value in zip(names, each, strict=True):
                figures[f"{figure} by {elements}_{name}"] = float(value)
    return {name: figure for name, figure in figures.items() if name[-2:] in ("_1", "_2")}


def by_monai(prediction: np.ndarray, label: np.ndarray) -> Figures:
    """Of each class: `assd`, `hd95`, `hd` by voxels."""
    import torch

    metrics = import_module("monai.metrics")
    hot = [
        torch.from_numpy(np.stack([array == c for c in range(3)]))[None]
        for array in (prediction, label)
    ]
    found = {
        "assd": metrics.compute_average_surface_distance(*hot, symmetric=True, spacing=SPACING),
        "hd95": metrics.compute_hausdorff_distance(*hot, percentile=95, spacing=SPACING),
        "hd": metrics.compute_hausdorff_distance(*hot, spacing=SPACING),
    }
    return {
        f"MONAI: {name} by voxels_{c}": float(values[0, c - 1])
        for name, values in found.items()
        for c in (1, 2)
    }


def by_surface_distance(prediction: np.ndarray, label: np.ndarray) -> Figures:
    """Of each class: `hd95` and `surface_dice` by surfels."""
    package = import_module("surface_distance")
    figures: Figures = {}
    for c in (1, 2):
        found = package.compute_surface_distances(label == c, prediction == c, SPACING)
        dice = package.compute_surface_dice_at_tolerance(found, 2.0)
        figures[f"surface-distance: surface_dice by surfels_{c}"] = float(dice)
        far = package.compute_robust_hausdorff(found, 95)
        figures[f"surface-distance: hd95 by surfels_{c}"] = float(far)
    return figures


def write_by_others(folder: Path) -> None:
    """Score the pairs of a folder by nnU-Net and medpy, into `figures.json`."""
    nnunet = import_module("nnunetv2.evaluation.evaluate_predictions")
    reader = import_module("nnunetv2.imageio.simpleitk_reader_writer").SimpleITKIO()
    binary = import_module("medpy.metric.binary")
    itk = import_module("SimpleITK")
    every: list[Figures] = []
    for number in range(len(list(folder.glob("*.npz")))):
        with np.load(folder / f"{number}.npz") as pair:
            arrays = {name: pair[name] for name in ("label", "prediction")}
        files = {name: str(folder / f"{name}.nii.gz") for name in arrays}
        for name, array in arrays.items():
            itk.WriteImage(itk.GetImageFromArray(array), files[name])
        found = nnunet.compute_metrics(files["label"], files["prediction"], reader, [1, 2])
        figures: Figures = {}
        for c, scores in found["metrics"].items():
            figures |= {f"nnU-Net: dice_{c}": scores["Dice"], f"nnU-Net: iou_{c}": scores["IoU"]}
            masks = [arrays[name] == int(c) for name in ("prediction", "label")]
            figures[f"medpy: assd by voxels_{c}"] = binary.assd(*masks, SPACING)
            figures[f"medpy: hd95 by voxels_{c}"] = binary.hd95(*masks, SPACING)
            figures[f"medpy: hd by voxels_{c}"] = binary.hd(*masks, SPACING)
        every.append({name: float(value) for name, value in figures.items()})
    (folder / "figures.json").write_text(json.dumps(every))


def compare(own: list[Figures], theirs: list[Mapping[str, float]]) -> None:
    """Print the largest relative difference of each figure, both classes together."""
    largest: dict[str, float] = {}
    for mine, found in zip(own, theirs, strict=True):
        for name, value in found.items():
            figure = name.partition(": ")[2]
            off = abs(mine[figure] - value) / max(abs(value), 1e-12)
            key = name.rpartition("_")[0]
            largest[key] = max(largest.get(key, 0.0), off)
    for name, off in sorted(largest.items()):
        sys.stdout.write(f"{name}: within {off:.1e} of theirs\n")


if __name__ == "__main__":
    main()
