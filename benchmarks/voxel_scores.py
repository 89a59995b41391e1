"""The part of `evaluation.py` that times figures made of sums over voxels."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scipy import ndimage

from vcmodels.data.labels import Label, StoredLabel
from vcmodels.evaluation.evaluate import pair_of
from vcmodels.evaluation.scoring import BlockWork
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import Metric
from vcmodels.targets.binary import BinaryTarget
from vcmodels.volumes import Volume, create_array, open_volume

BLOCK = (128, 128, 128)
PERIOD = 256
"""Of the pattern that stands for a large volume."""
TURNS = 5


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def cpu_seconds(function: Callable[[], object]) -> float:
    """The CPU seconds that a function takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def voxels(side: int) -> None:
    """All figures of masks by sums, on a stored pair of uint8, next to decoding both once.

    The floor decodes every chunk of both and drops it; the measure decodes it too, and has the first
    figure of each slice as well.
    """
    target = BinaryTarget()
    metrics = {n: one for n, one in target.stored_metrics.items() if isinstance(one, Metric)}
    with tempfile.TemporaryDirectory() as folder:
        prediction, label = stored_pair(folder, side)
        read = Label(target, StoredLabel("label", label, label.box), label.spacing)
        work = BlockWork(pair_of(read, prediction, label.box, BLOCK), metrics)
        blocks = list(blocks_of(label.box, BLOCK))
        floors: list[float] = []
        measured: list[float] = []
        for _ in range(TURNS):
            floors.append(
                cpu_seconds(lambda: [(prediction.read(b), label.read(b)) for b in blocks])
            )
            measured.append(cpu_seconds(lambda: [work(block) for block in blocks]))
    ratios = sorted(b / a for a, b in zip(floors, measured, strict=True))
    say(
        f"{side}^3: decoding both {min(floors):.2f} s, with {len(metrics)} figures {min(measured):.2f} s"
    )
    say(f"  {', '.join(metrics)}")
    say(f"ratio {median(ratios):.2f} (of each turn {', '.join(f'{r:.2f}' for r in ratios)})")


def stored_pair(folder: str, side: int) -> tuple[Volume, Volume]:
    """A blobby mask and a smooth, mostly sure probability of it, in zstd and chunks of 128^3.

    60 % of the codes are 0, and the compressed prediction takes 0.35 bytes for each voxel.
    """
    rng = np.random.default_rng(0)
    coarse, fine = (smooth_noise(rng, sigma) for sigma in (6, 2))
    probability = 1 / (1 + np.exp(-8 * (coarse - 1) - fine))
    patterns = {"prediction": np.rint(255 * probability), "label": coarse > 1}
    volumes: list[Volume] = []
    extent: Shape = (side, side, side)
    for name, pattern in patterns.items():
        array = create_array(folder, name, shape=extent, chunks=BLOCK, dtype="uint8")
        codes = pattern.astype(np.uint8)
        for block in blocks_of(Box((0, 0, 0), extent), BLOCK):
            axes = zip(block.origin, block.end, strict=True)
            index = np.ix_(*(np.arange(start, end) % PERIOD for start, end in axes))
            array.write(block, codes[index][None])
        volumes.append(open_volume(str(Path(folder) / name)))
    return volumes[0], volumes[1]


def smooth_noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """(PERIOD, PERIOD, PERIOD) float32 of deviation 1 that can be repeated without a seam."""
    noise = rng.normal(size=(PERIOD,) * 3).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return smooth / smooth.std()
