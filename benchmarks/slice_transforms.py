"""What each transform of albumentations does to a patch: a table, a picture.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/slice_transforms.py --table
    python benchmarks/slice_transforms.py --picture docs/albumentations.png

The table goes to standard output: CPU milliseconds for a patch of 96^3 voxels, the least of three.
The picture is one slice of the phantom before and after some of the transforms.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue, ValidationError

from vcmodels.augment.albumentation import (
    Albumentation,
    build_transform,
    library,
    transform_classes,
    transform_picture,
)
from vcmodels.geometry.boxes import Box
from vcmodels.phantom import write_phantom
from vcmodels.volumes import open_volume

SIDE = 96
OURS = {
    "AdditiveNoise": "noise",
    "Blur": "blur",
    "Downscale": "low_resolution",
    "GaussNoise": "noise",
    "GaussianBlur": "blur",
    "Illumination": "bias_field",
    "MultiplicativeNoise": "speckle",
    "RandomBrightnessContrast": "brightness, contrast",
    "RandomGamma": "gamma",
    "RandomToneCurve": "histogram_shift",
    "Sharpen": "sharpen",
    "ShotNoise": "shot_noise",
    "UnsharpMask": "sharpen",
}
"""The augmentations of this package that do much the same, in three dimensions."""
SHOWN: tuple[tuple[str, dict[str, JsonValue]], ...] = (
    ("MotionBlur", {"blur_limit": [9, 9], "direction_range": [0, 0]}),
    ("Defocus", {"radius": [3, 3]}),
    ("GlassBlur", {"max_delta": 2, "iterations": 1}),
    ("CLAHE", {"clip_limit": [4, 4]}),
    ("RingingOvershoot", {"blur_limit": [15, 15], "cutoff": [1.2, 1.2]}),
    ("ImageCompression", {"quality_range": [10, 10]}),
    ("Downscale", {"scale_range": [0.33, 0.33]}),
    ("PlasmaShadow", {"shadow_intensity_range": [0.6, 0.6]}),
    ("Illumination", {"intensity_range": [0.2, 0.2]}),
    ("PlasmaBrightnessContrast", {"contrast_range": [0.5, 0.5]}),
    ("Emboss", {"alpha": [0.7, 0.7]}),
)


def main() -> None:
    """Write the table, or draw the picture."""
    parser = argparse.ArgumentParser(description="Transforms of albumentations on a patch.")
    parser.add_argument("--table", action="store_true", help="print it as Markdown")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw it into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        sys.stdout.writelines(f"{line}\n" for line in table())
    if arguments.picture:
        draw(arguments.picture)


def table() -> list[str]:
    """One row for each transform that a task may name."""
    rows = ["| class | like our | values | draws | ms |", "| --- | --- | --- | --- | --- |"]
    for name in transform_classes():
        try:
            block = Albumentation(p=1.0, transform=name)
        except ValidationError:
            continue
        like = ", ".join(f"`{ours}`" for ours in OURS.get(name, "").split(", ") if ours)
        drawn = [
            transform_picture(build_transform(name, {}), noise_picture(), seed) for seed in range(4)
        ]
        values = "8 bit" if all(map(is_eight_bit, drawn)) else "float"
        draws = any(not np.array_equal(drawn[0], other) for other in drawn)
        rows.append(
            f"| `{name}` | {like} | {values} | {'yes' if draws else 'no'} | {cost(block):.0f} |"
        )
    rows.append(f"\nalbumentations {library().__version__}")
    return rows


def noise_picture() -> np.ndarray:
    """(SIDE, SIDE) float32 in 0..1, of thousands of values."""
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(SIDE, SIDE)), axis=1)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def is_eight_bit(picture: np.ndarray) -> bool:
    """Whether all values are whole 255ths."""
    return bool(np.allclose(picture * 255, np.rint(picture * 255), atol=1e-3))


def cost(block: Albumentation) -> float:
    """Least CPU milliseconds of three patches."""
    picture = torch.from_numpy(noise_picture())
    image = picture.expand(1, SIDE, SIDE, SIDE).contiguous()
    taken = []
    for seed in range(3):
        begin = time.process_time()
        block.change(image, np.random.default_rng(seed))
        taken.append(1e3 * (time.process_time() - begin))
    return min(taken)


def draw(path: Path) -> None:
    """A grid of one slice: as it is, and after each of `SHOWN`."""
    from matplotlib.figure import Figure
    from PIL import Image

    image = phantom_patch()
    panels = [("before", "", image)]
    for name, options in SHOWN:
        block = Albumentation(p=1.0, transform=name, options=options)
        text = "\n".join(f"{key} {value}" for key, value in options.items())
        panels.append((name, text, block.change(image, np.random.default_rng(1))))
    figure = Figure(figsize=(10, 9))
    figure.set_layout_engine("constrained", h_pad=0.12)
    low, high = np.percentile(image, [1, 99.5])
    for axes, (name, text, shown) in zip(figure.subplots(3, 4).flat, panels, strict=True):
        axes.imshow(shown[0, shown.shape[1] // 2], cmap="gray", vmin=low, vmax=high)
        axes.set_title(name, fontsize=11, fontweight="bold")
        axes.set_xlabel(text, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path, dpi=100)
    with Image.open(path) as drawn:
        drawn.convert("L").save(path, optimize=True)


def phantom_patch() -> torch.Tensor:
    """A patch of the phantom's image, normalised: (1, 3, SIDE, SIDE) float32."""
    with tempfile.TemporaryDirectory() as folder:
        store = os.fspath(Path(folder) / "scroll.zarr")
        write_phantom(store, shape=(24, 208, 208), seed=0)
        part = open_volume(f"{store}/ct", key="input").read(Box((10, 20, 100), (3, SIDE, SIDE)))
    image = torch.from_numpy(part.astype(np.float32))
    return (image - image.mean()) / image.std()


if __name__ == "__main__":
    main()
