"""Augment patches with image, label and normals, next to batchgeneratorsv2 and MONAI.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/augmentation.py --peers-python PATH \
        [--patch 96] [--rounds 20]

`PATH` is the Python of an environment with nnunetv2 and monai; each of them runs in a process of
its own, and all take turns. CPU milliseconds a patch; prints one JSON line. `--profile` times each
transform of the default list instead, switched on, and times its probability.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from math import pi
from typing import Any

import numpy as np

Draw = Callable[[int], float]
"""Augments the patch of a seed; CPU seconds."""

ROTATION_DEGREES = 30.0
ROTATION_P, SCALING_P = 0.2, 0.2
"""nnU-Net draws the two apart; a resampling happens when any of them does."""
RESAMPLING_P = 1 - (1 - ROTATION_P) * (1 - SCALING_P)
SCALING = (0.7, 1.4)


def main() -> None:
    """Measure, or serve as one of the peers."""
    parser = argparse.ArgumentParser(description="Augmentation beside its peers.")
    parser.add_argument("--peers-python", help="Python of the peers' environment")
    parser.add_argument("--patch", type=int, default=96, help="side of the patch")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each")
    parser.add_argument("--draws", type=int, default=10, help="patches in a turn")
    parser.add_argument("--cases", nargs="+", default=["list", "default", "warp"])
    parser.add_argument("--profile", action="store_true", help="each transform on its own")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if arguments.serve:
        name, case = arguments.serve
        serve(name, case, arguments.patch)
        return
    if arguments.profile:
        report = profile(arguments.patch)
    else:
        report = {
            case: compare(case, arguments.peers_python, arguments) for case in arguments.cases
        }
    sys.stdout.write(json.dumps({"patch": arguments.patch, **report}) + "\n")


def compare(case: str, peers_python: str | None, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean CPU milliseconds of each, their standard errors, and the ratios to ours.

    `list`: nnU-Net's transforms at its probabilities. `default`: the same for the peers, our own
    default list for us (turns, elastic and all). `warp`: one affine and elastic resampling.
    """
    makers = {"vcmodels": sys.executable}
    if peers_python:
        makers |= {"batchgeneratorsv2": peers_python, "monai": peers_python}
    servers = {name: start(python, name, case, arguments.patch) for name, python in makers.items()}
    milliseconds: dict[str, list[float]] = {name: [] for name in makers}
    draws = arguments.draws if case != "warp" else max(1, arguments.draws // 5)
    for turn in range(-1, arguments.rounds):
        for name, server in servers.items():
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(f"{turn * draws + draws} {draws}\n")
            server.stdin.flush()
            taken = json.loads(server.stdout.readline())
            if turn >= 0:  # the first turn warms up
                milliseconds[name].append(taken)
    for server in servers.values():
        server.communicate("")
    means = {name: statistics.mean(taken) for name, taken in milliseconds.items()}
    ratios = {f"{n}_ratio": round(means[n] / means["vcmodels"], 2) for n in list(means)[1:]}
    errors = {
        f"{name}_error": round(statistics.stdev(taken) / len(taken) ** 0.5, 1)
        for name, taken in milliseconds.items()
    }
    return {name: round(mean, 1) for name, mean in means.items()} | errors | ratios


def start(python: str, name: str, case: str, patch: int) -> "subprocess.Popen[str]":
    """A process that augments on demand."""
    command = [python, __file__, "--serve", name, case, "--patch", str(patch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_results": "/nonexistent"}
    environment |= {"nnUNet_raw": "/nonexistent", "nnUNet_preprocessed": "/nonexistent"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def serve(name: str, case: str, patch: int) -> None:
    """For each line "seed count", augment that many patches and answer mean CPU milliseconds."""
    makers = {"vcmodels": ours, "batchgeneratorsv2": batchgenerators, "monai": monai}
    draw = makers[name](case, patch)
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for line in sys.stdin:
        first, count = map(int, line.split())
        seconds = [draw(first + offset) for offset in range(count)]
        answers.write(json.dumps(1e3 * statistics.mean(seconds)) + "\n")
        answers.flush()


def sample(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and label (1, n, n, n), radial unit normals (3, n, n, n), all float32."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, side, side, side), dtype=np.float32)
    offsets = np.indices((side,) * 3, dtype=np.float32) - (side - 1) / 2
    radius = np.linalg.norm(offsets, axis=0)
    label = (np.abs(radius % 16 - 8) < 1.5)[None].astype(np.float32)
    return image, label, (offsets / np.maximum(radius, 1e-6)).astype(np.float32)


def cpu_seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def our_list(case: str) -> list:
    """The augmentations of a case."""
    from vcmodels.augment import DEFAULT_AUGMENTATIONS
    from vcmodels.augment.geometric import Affine, Elastic, Flip
    from vcmodels.augment.values import Blur, Brightness, Contrast, Gamma, LowResolution, Noise

    if case == "default":
        return list(DEFAULT_AUGMENTATIONS)
    turned = Affine(
        p=1 if case == "warp" else RESAMPLING_P, rotation_degrees=ROTATION_DEGREES, scaling=SCALING
    )
    if case == "warp":
        return [turned, Elastic(p=1)]
    return [
        turned,
        Noise(p=0.1),
        Blur(p=0.1),
        Brightness(p=0.15),
        Contrast(p=0.15),
        LowResolution(p=0.125),
        Gamma(p=0.1, invert=1),
        Gamma(p=0.3, invert=0),
        Flip(p=0.5),
    ]


def ours(case: str, patch: int, augmentations: list | None = None) -> Draw:
    """As `vcmodels.samples.dataset.finish_sample`; reading the crop is not timed, as for peers."""
    import torch

    from vcmodels.augment import LabelCrop, apply_intensity, apply_spatial, sample_spatial
    from vcmodels.targets.binary import BinaryTarget
    from vcmodels.targets.normals import NormalsTarget

    blocks = our_list(case) if augmentations is None else augmentations
    shape, spacing = (patch, patch, patch), (1.0, 1.0, 1.0)
    image, label, normals = sample(int(2.5 * patch))
    targets = (BinaryTarget(), NormalsTarget())

    def draw(seed: int) -> float:
        rng = np.random.default_rng(seed)
        crop = sample_spatial(blocks, rng, shape, spacing).input_shape(shape, spacing)
        inner = (slice(None), *(slice(n) for n in crop))
        read = torch.from_numpy(np.ascontiguousarray(image[inner]))
        values = [torch.from_numpy(np.ascontiguousarray(a[inner])) for a in (label, normals)]
        valid = torch.ones(1, *crop, dtype=torch.bool)
        pairs = zip(values, targets, strict=True)
        labels = {t.kind: LabelCrop(value, valid.clone(), t) for value, t in pairs}

        def augment() -> None:
            rng = np.random.default_rng(seed)
            transform = sample_spatial(blocks, rng, shape, spacing)
            transform.input_shape(shape, spacing)
            moved = read
            if not transform.is_identity:
                moved, _ = apply_spatial(transform, read, labels, shape, spacing)
            apply_intensity(blocks, moved, rng)

        return cpu_seconds(augment)

    return draw


def profile(patch: int) -> dict[str, dict[str, float]]:
    """Of each default transform: CPU milliseconds when it happens, and times its probability."""
    from vcmodels.augment import DEFAULT_AUGMENTATIONS

    report = {}
    for block in DEFAULT_AUGMENTATIONS:
        draw = ours("default", patch, [block.model_copy(update={"p": 1.0})])
        mean = 1e3 * statistics.mean([draw(seed) for seed in range(16)][1:])
        share = 1 - (1 - block.p) ** 3 if block.name == "flip" else block.p
        report[block.name] = {"ms": round(mean, 1), "times_p": round(mean * share, 1)}
    return report


def batchgenerators(case: str, patch: int) -> Draw:
    """nnU-Net's own training transforms, on the crop that its loader takes for them."""
    import torch

    spatial: Any = import_module("batchgeneratorsv2.transforms.spatial.spatial")
    crops: Any = import_module("nnunetv2.training.data_augmentation.compute_initial_patch_size")
    trainers: Any = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    shape, angle = (patch,) * 3, ROTATION_DEGREES / 180 * pi
    limits = (-angle, angle)
    if case == "warp":
        pipeline = spatial.SpatialTransform(
            shape,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=1,
            elastic_deform_scale=(0, 0.25),
            elastic_deform_magnitude=(0, 10),
            p_rotation=1,
            rotation=limits,
            p_scaling=1,
            scaling=SCALING,
        )
    else:
        make = trainers.nnUNetTrainer.get_training_transforms
        pipeline = make(shape, limits, None, (0, 1, 2), False)
    crop = crops.get_patch_size(list(shape), limits, limits, limits, (0.85, 1.25))
    image, label, normals = sample(int(crop[0]))
    arrays = {"image": image, "segmentation": label.astype(np.int16), "regression_target": normals}

    def draw(seed: int) -> float:
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return cpu_seconds(lambda: pipeline(**tensors))

    return draw


def monai(case: str, patch: int) -> Draw:
    """The same list, made of MONAI's dictionary transforms."""
    import torch

    T: Any = import_module("monai.transforms")  # noqa: N806  as its users write it
    keys, modes = ["image", "label", "normals"], ["bilinear", "nearest", "bilinear"]
    shape, angle = (patch,) * 3, ROTATION_DEGREES / 180 * pi
    space = {"mode": modes, "padding_mode": "zeros", "spatial_size": shape}
    map_to = {"rotate_range": (angle,) * 3, "scale_range": (0.3,) * 3, **space}
    if case == "warp":
        pipeline = T.Compose([T.Rand3DElasticd(keys, (5, 8), (50, 150), prob=1, **map_to)])
    else:
        pipeline = T.Compose(
            [
                T.RandAffined(keys, prob=RESAMPLING_P, cache_grid=True, **map_to),
                T.RandGaussianNoised(["image"], prob=0.1, std=0.3),
                T.RandGaussianSmoothd(["image"], (0.5, 1), (0.5, 1), (0.5, 1), prob=0.1),
                T.RandScaleIntensityd(["image"], 0.25, prob=0.15),
                T.RandScaleIntensityFixedMeand(["image"], 0.25, preserve_range=True, prob=0.15),
                T.RandSimulateLowResolutiond(["image"], prob=0.125, zoom_range=(0.5, 1.0)),
                T.RandAdjustContrastd(
                    ["image"], 0.1, (0.7, 1.5), invert_image=True, retain_stats=True
                ),
                T.RandAdjustContrastd(["image"], 0.3, (0.7, 1.5), retain_stats=True),
                *(T.RandFlipd(keys, 0.5, axis) for axis in range(3)),
            ]
        )
    arrays = dict(zip(keys, sample(patch), strict=True))

    def draw(seed: int) -> float:
        pipeline.set_random_state(seed)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return cpu_seconds(lambda: pipeline(tensors))

    return draw


if __name__ == "__main__":
    main()
