"""Scores of whole volumes, block by block, against the same in memory.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--only surfaces surface-agreement surface-memory]

Prints a line for each measure. What is compared is measured in one run, in turns; seconds are those
of the process's CPU, so that other work on the machine does not count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy import ndimage, spatial
from voxel_scores import voxels

from vcmodels.comparison import Compared
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics import METRICS
from vcmodels.metrics.base import BlockMetric, BlockPart, FigureValues, Pair
from vcmodels.metrics.instances import Instances
from vcmodels.metrics.surface import SurfaceMetric

SIDE = 256
BLOCKS = (64, 128, 256)
SPACING: Spacing = (2.0, 1.0, 1.0)
SURFACE = SurfaceMetric(compares="masks", tolerances=(2.0,))
INSTANCES = Instances(compares="instances")
SMALL, SMALL_BLOCKS = (40, 52, 60), (7, 16, 33, 64)
MEMORY_SIDES = (512, 1024)
PERIOD = 96
"""Of the pattern that stands for a large volume."""


def main() -> None:
    """Run what is named, or all."""
    parser = argparse.ArgumentParser(description="Scores of whole volumes.")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--side", type=int, default=1024, help="of the volume of `voxels`")
    parser.add_argument("--peak", type=int, metavar="SIDE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        sys.stdout.write(f"{peak_of_surfaces(arguments.peak):.1f}\n")
        return
    for name in arguments.only:
        measure = MEASURES[name]
        measure() if name != "voxels" else voxels(arguments.side)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def cpu_seconds(function: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """What a function returns, and the CPU seconds that it took."""
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


@dataclass(eq=False)
class RegionPair:
    """A predicted and a labelled mask, (Z, Y, X) bool, repeated over a volume of any extent."""

    predicted: np.ndarray
    labelled: np.ndarray
    extent: Shape
    spacing: Spacing = SPACING
    form: Compared = "masks"
    classes: int = 1

    @property
    def box(self) -> Box:
        """All of the volume."""
        return Box((0, 0, 0), self.extent)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As for `Pair`; all counts."""
        predicted, labelled = self.regions(box)
        return predicted, labelled, np.ones_like(labelled)

    def regions(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As for `Pair`."""
        part = box.intersect(self.box)
        return self._cut(self.predicted, part, box), self._cut(self.labelled, part, box)

    def ids(self, box: Box) -> np.ndarray:
        """As for `Pair`: the labelled region is one object."""
        return self.regions(box)[1].astype(np.uint8)

    def _cut(self, mask: np.ndarray, part: Box, box: Box) -> np.ndarray:
        found = np.zeros((1, *box.shape), bool)
        axes = zip(part.origin, part.end, mask.shape, strict=True)
        index = np.ix_(*(np.arange(start, end) % length for start, end, length in axes))
        found[(0, *part.slices(box))] = mask[index]
        return found


def in_blocks(pair: Pair, side: int) -> dict[str, float]:
    """The surface figures, measured block by block."""
    boxes = blocks_of(pair.box, (side, side, side))
    joined = SURFACE.join((box, SURFACE.measure(pair, box)) for box in boxes)
    return {name: first(values) for name, values in SURFACE.figures(joined).items()}


def first(values: FigureValues) -> float:
    """The figure of the only mask."""
    return float(values) if isinstance(values, int | float) else values[0]


def by_scipy(
    predicted: np.ndarray, labelled: np.ndarray, spacing: Spacing = SPACING
) -> dict[str, float]:
    """The same figures by exact distance transforms of the whole volume."""
    one, other = (mask ^ np.asarray(ndimage.binary_erosion(mask)) for mask in (predicted, labelled))
    there = np.asarray(ndimage.distance_transform_edt(~other, spacing))[one]
    back = np.asarray(ndimage.distance_transform_edt(~one, spacing))[other]
    both = np.concatenate([there, back])
    return {
        "assd": float(both.mean()),
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "hd": float(both.max()),
        "surface_dice": float((both <= SURFACE.tolerances[0] * (1 + 1e-7)).mean()),
    }


def by_monai(predicted: np.ndarray, labelled: np.ndarray) -> dict[str, float]:
    """The same figures by MONAI."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    one, other = (torch.from_numpy(mask)[None, None].float() for mask in (predicted, labelled))
    average = compute_average_surface_distance(one, other, True, symmetric=True, spacing=SPACING)
    hausdorff = partial(compute_hausdorff_distance, one, other, True, spacing=SPACING)
    tolerances = [*SURFACE.tolerances]
    return {
        "assd": float(average),
        "hd95": float(hausdorff(percentile=95)),
        "hd": float(hausdorff()),
        "surface_dice": float(compute_surface_dice(one, other, tolerances, True, spacing=SPACING)),
    }


def blobs(seed: int = 0) -> np.ndarray:
    """A mask of smooth blobs that fill half of the volume."""
    field = np.random.default_rng(seed).standard_normal((SIDE, SIDE, SIDE), np.float32)
    return np.asarray(ndimage.gaussian_filter(field, 4)) > 0


def surface_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Masks that are near, that are noise, and that are far from each other."""
    mask, rng = blobs(), np.random.default_rng(1)
    noise = rng.random((2, SIDE, SIDE, SIDE), np.float32) > 0.5
    sparse, corner = blobs(2) & (np.indices(mask.shape).sum(0) % 97 < 20), np.zeros_like(mask)
    corner[:5, :7, : SIDE // 2] = True
    return {
        "blobs, moved by (1, 2, 0)": (mask, np.roll(mask, (1, 2), (0, 1))),
        "noise": (noise[0], noise[1]),
        "slabs, and a bar in a corner": (sparse, corner),
    }


def surfaces() -> None:
    """Time and agreement of the surface figures at 256^3."""
    for name, (predicted, labelled) in surface_cases().items():
        wanted, whole = cpu_seconds(lambda p=predicted, t=labelled: by_scipy(p, t))
        theirs, monai = cpu_seconds(lambda p=predicted, t=labelled: by_monai(p, t))
        say(f"{name}: SciPy in memory {whole:.1f} s, MONAI {monai:.1f} s ({off(theirs, wanted)})")
        for side in BLOCKS:
            pair = RegionPair(predicted, labelled, (SIDE, SIDE, SIDE))
            found, seconds = cpu_seconds(lambda p=pair, s=side: in_blocks(p, s))
            ratio = f"{seconds / whole:.2f} of SciPy, {seconds / monai:.2f} of MONAI"
            say(f"  blocks of {side}: {seconds:.2f} s, {ratio} ({off(found, wanted)})")


def surface_agreement() -> None:
    """The largest difference from SciPy over 30 random volumes and the sizes of blocks."""
    largest = dict.fromkeys(SMALL_BLOCKS, 0.0)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        field = ndimage.gaussian_filter(rng.standard_normal(SMALL), rng.uniform(0, 4))
        field /= np.std(field)
        mask, moved = field > 0.5, np.roll(field, tuple(rng.integers(-3, 4, 3)), (0, 1, 2))
        other = moved + 0.3 * rng.standard_normal(SMALL) > rng.uniform(0, 2)
        z, y, x = rng.uniform(0.2, 5, 3).tolist()
        wanted = by_scipy(mask, other, (z, y, x))
        for side in SMALL_BLOCKS:
            found = in_blocks(RegionPair(mask, other, SMALL, (z, y, x)), side)
            apart = max(abs(found[name] - wanted[name]) for name in wanted)
            largest[side] = max(largest[side], apart)
    for side, apart in largest.items():
        say(f"30 volumes of {SMALL} in blocks of {side}: largest difference {apart:.1e}")


def off(found: dict[str, float], wanted: dict[str, float]) -> str:
    """The largest difference of any figure."""
    return f"largest difference {max(abs(found[n] - wanted[n]) for n in wanted):.1e}"


def peak_of_surfaces(side: int) -> float:
    """MiB by which the peak of the process grows when a volume of this side is measured.

    Balls, predicted and labelled a voxel apart; in the upper half nothing is labelled.
    """
    z, y, x = np.indices((PERIOD, PERIOD, PERIOD)) - PERIOD // 2
    away = np.sqrt(z**2 + y**2 + x**2)
    pair = HalfPair(away < 21, away < 20, (side, side, side))
    assert spatial.KDTree  # Its code is no part of what grows.
    before = peak_mib(reset=True)
    in_blocks(pair, 128)
    return peak_mib() - before


class HalfPair(RegionPair):
    """Nothing is labelled in the upper half."""

    def regions(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As for `Pair`."""
        predicted, labelled = super().regions(box)
        labelled[:, max(self.extent[0] // 2 - box.origin[0], 0) :] = False
        return predicted, labelled


def peak_mib(*, reset: bool = False) -> float:
    """The most memory that this process had, once the mark of that is set to what it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def surface_memory() -> None:
    """Peak memory of the surface figures of two volumes, each in a process of its own."""
    grown: list[float] = []
    for side in MEMORY_SIDES:
        start = time.monotonic()
        command = [sys.executable, __file__, "--peak", str(side)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        grown.append(float(answer.stdout))
        say(f"surfaces of {side}^3: {grown[-1]:.0f} MiB, {time.monotonic() - start:.0f} s")
    say(f"  ratio {grown[1] / grown[0]:.2f}")


@dataclass(eq=False)
class IdPair:
    """Predicted and labelled ids, (Z, Y, X) of any integers or Zarr arrays of them."""

    predicted: np.ndarray | zarr.Array
    labelled: np.ndarray | zarr.Array
    form: Compared = "instances"
    classes: int = 1
    spacing: Spacing = (1.0, 1.0, 1.0)

    @property
    def box(self) -> Box:
        """All of the volume."""
        return Box((0, 0, 0), triple(self.predicted.shape))

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As for `Pair`; all counts."""
        found = [np.asarray(ids[box.slices()])[None] for ids in (self.predicted, self.labelled)]
        return found[0], found[1], np.ones(found[0].shape, bool)

    def ids(self, box: Box) -> np.ndarray:
        """As for `Pair`."""
        return self.read(box)[1]

    def regions(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As for `Pair`; ids have none."""
        raise NotImplementedError(box)


def segments(count: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Ids, up to 2^62, of the nearest of some points; a tenth of the objects are background."""
    rng = np.random.default_rng(seed)
    far, points = np.ones((side, side, side), bool), rng.integers(0, side, (count, 3))
    far[tuple(points.T)] = False
    nearest = ndimage.distance_transform_edt(far, return_distances=False, return_indices=True)
    ids = np.zeros(far.shape, np.uint64)
    ids[tuple(points.T)] = rng.integers(1, 1 << 62, count) * (rng.random(count) > 0.1)
    return ids[tuple(np.asarray(nearest))]


def objects() -> None:
    """Time of the table of two arrays of ids over that of reading them."""
    arrays = [segments(count, seed) for seed, count in enumerate((2000, 1500))]
    with tempfile.TemporaryDirectory() as folder:
        predicted, labelled = (
            zarr.create_array(f"{folder}/{n}", data=ids, chunks=(128, 128, 128))
            for n, ids in enumerate(arrays)
        )
        pair = IdPair(predicted, labelled)
        for side in (128, SIDE):
            boxes = list(blocks_of(pair.box, (side, side, side)))
            INSTANCES.measure(pair, boxes[0])
            _, reading = cpu_seconds(
                lambda b=boxes: {str(box): float(len(pair.read(box))) for box in b}
            )
            found, both = cpu_seconds(lambda b=boxes: instance_figures(pair, b))
            scores = both - reading
            times = f"read {reading:.2f} s, scores {scores:.2f} s, {scores / reading:.2f} of that"
            say(f"ids of {SIDE}^3, blocks of {side}: {times}")
            if side == SIDE:
                wanted, whole = cpu_seconds(lambda: by_skimage(*arrays))
                say(f"  scikit-image in memory {whole:.1f} s ({off(found, wanted)})")


def instance_figures(pair: IdPair, boxes: Sequence[Box]) -> dict[str, float]:
    """The figures of ids, block by block."""
    joined = INSTANCES.join((box, INSTANCES.measure(pair, box)) for box in boxes)
    return {name: first(value) for name, value in INSTANCES.figures(joined).items()}


def by_skimage(predicted: np.ndarray, labelled: np.ndarray) -> dict[str, float]:
    """VOI and Rand by scikit-image, which wants ids without gaps."""
    from skimage.metrics import adapted_rand_error, variation_of_information

    p, t = (
        np.unique(ids, return_inverse=True)[1].reshape(ids.shape) for ids in (predicted, labelled)
    )
    split, merge = variation_of_information(t, p, ignore_labels=(0,))
    error, of_labels, of_predictions = adapted_rand_error(t, p)
    return {
        "voi_split": float(split),
        "voi_merge": float(merge),
        "rand_error": float(error),
        "rand_recall": float(of_labels),
        "rand_precision": float(of_predictions),
    }


def object_agreement() -> None:
    """The largest difference from scikit-image over 30 random volumes and the sizes of blocks."""
    largest = dict.fromkeys(SMALL_BLOCKS, 0.0)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(20, 60, 3))
        places = np.indices(shape).reshape(3, -1).T
        predicted, labelled = (
            np.asarray(spatial.KDTree(rng.random((30, 3)) * shape).query(places)[1]).reshape(shape)
            for _ in range(2)
        )
        wanted, pair = by_skimage(predicted, labelled), IdPair(predicted, labelled)
        for side in SMALL_BLOCKS:
            found = instance_figures(pair, list(blocks_of(pair.box, (side, side, side))))
            apart = max(abs(found[name] - wanted[name]) for name in wanted)
            largest[side] = max(largest[side], apart)
    for side, apart in largest.items():
        say(f"VOI and Rand of 30 volumes in blocks of {side}: largest difference {apart:.1e}")


def components() -> None:
    """Time of what is measured of components, a block of 128^3 at a time, and the size of a part."""
    mask = blobs()
    pair = RegionPair(mask, np.roll(mask, (1, 2), (0, 1)), (SIDE, SIDE, SIDE), (1.0, 1.0, 1.0))
    boxes = list(blocks_of(pair.box, (128, 128, 128)))
    for name in ("components", "topology", "surface_score"):
        metric = METRICS[name]
        assert isinstance(metric, BlockMetric)
        parts: list[tuple[Box, BlockPart]] = []
        _, measured = cpu_seconds(
            lambda m=metric, p=parts: p.extend((box, m.measure(pair, box)) for box in boxes) or {}
        )
        _, joined = cpu_seconds(
            lambda m=metric, p=parts: {n: first(v) for n, v in m.figures(m.join(iter(p))).items()}
        )
        size = sum(array.nbytes for _, part in parts for array in part.values()) / len(parts)
        say(
            f"{name}: {measured / len(boxes):.2f} s a block, {joined:.2f} s to join {len(boxes)}, "
            f"{size / 1024:.0f} KiB a part"
        )


MEASURES: dict[str, Callable[..., None]] = {
    "voxels": voxels,
    "objects": objects,
    "object-agreement": object_agreement,
    "components": components,
    "surfaces": surfaces,
    "surface-agreement": surface_agreement,
    "surface-memory": surface_memory,
}

if __name__ == "__main__":
    main()
