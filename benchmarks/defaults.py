"""Our defaults on small data sets that are unlike each other, next to a plain network after the same time.

    VCMODELS_DATA=<folder> python benchmarks/defaults.py [walls cord ...] [--minutes 4] [--seeds 1]
        [--set KEY=VALUE ...] [--name NAME] [--list]

Each set has scans to train on and others to score. Ours is what a newcomer does: `vcmodels init` on the first scan,
the other scans added to the file, `train.py`, and the best checkpoint predicts; the scans that are scored are in no
task. The plain network is that of `plain_unet.py`. Both get as many minutes, their compilation included, and the Dice of
all classes but the background counts, the mean over scans. Data and results lie under --work, so that the command may be
stopped, and given again with other sets or seeds; `--set` is a run of its own, under its `--name`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from held_out import ROOT, case_arrays, hippocampus_cases, train, write_json
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

import vcmodels
from vcmodels.checkpoint import load_checkpoint
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.phantom.magnet import CONTRASTS, Slices, scan
from vcmodels.phantom.neck import Neck
from vcmodels.phantom.nuclei import RADII, stained, touching_ellipsoids
from vcmodels.phantom.write import UNLABELLED, make_phantom
from vcmodels.volumes import Description, Grid, Pyramid, Storage, expand_location
from vcmodels.volumes.multiscale import write_image

DEFAULTS, PLAIN = "defaults", "plain"
Scan = tuple[np.ndarray, np.ndarray]
"""Image and label, (Z, Y, X)."""


@dataclass(frozen=True)
class Made:
    """The scans of a set."""

    train: list[Scan]
    test: list[Scan]
    spacing: Spacing = (1.0, 1.0, 1.0)
    classes: int = 2
    """The background is one."""
    ignored: int | None = None
    """The value of a label that does not count."""


def main() -> None:
    """Run what is missing, print the table after each run."""
    parser = argparse.ArgumentParser(description="Defaults next to a plain network.")
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", help="of the runs with --set")
    parser.add_argument("--only", choices=["plain", "ours"], help="train no other")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--list", action="store_true", help="print the table alone")
    given = parser.parse_args()
    if unknown := set(given.sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    if given.set and not given.name:
        parser.error("--set needs the --name of its runs")
    sets, name = given.sets or list(SETS), given.name or DEFAULTS
    arms = {"plain": [PLAIN], "ours": [name]}.get(given.only, [PLAIN, name])
    data, results = given.work.resolve() / "data", given.work.resolve() / f"{given.minutes:g}min"
    if not given.list:
        for seed in range(given.seeds):
            for one in sets:
                make(one, data / one)
                for arm in arms:
                    if run(data / one, results / one / arm, arm, given.minutes, seed, given.set):
                        sys.stdout.write(table(sets, results))
                        sys.stdout.flush()
    sys.stdout.write(table(sets, results))


def make(name: str, folder: Path) -> None:
    """Write the scans of a set, as Zarr for ours and as arrays for the plain network."""
    if (folder / "about.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    made = SETS[name]()
    for part in ("train", "test"):
        for number, pair in enumerate(getattr(made, part)):
            for what, voxels in zip(("raw", "label"), pair, strict=True):
                place = folder / f"{part}{number}.zarr" / what
                place.mkdir(parents=True)
                write_image(
                    place,
                    voxels,
                    grid=Grid(made.spacing, unit="micrometer"),
                    chunks=(64, 64, 64),
                    storage=Storage(2),
                    pyramid=Pyramid(levels=0),
                    description=Description(what),
                )
                np.save(folder / f"{part}{number}_{what}.npy", voxels)
    about = {"classes": made.classes, "ignored": made.ignored, "spacing": made.spacing}
    write_json(folder / "about.json", about)


def run(
    data: Path, folder: Path, arm: str, minutes: float, seed: int, settings: Sequence[str]
) -> bool:
    """One training and its score, unless the result is there; whether it was not."""
    done, place = folder / f"seed{seed}.json", folder / f"seed{seed}"
    if done.exists():
        return False
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    begun = time.monotonic()
    # Of its own: a newcomer's first training finds nothing compiled, either.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "compiled")
    figures = (
        plain(data, place, minutes, seed)
        if arm == PLAIN
        else ours(data, place, minutes, seed, settings)
    )
    scores = [
        dice(np.load(predicted), np.load(data / f"{predicted.stem}_label.npy"), data)
        for predicted in sorted(place.glob("test*.npy"))
    ]
    result = {"dice": statistics.mean(scores), "seconds": time.monotonic() - begun, **figures}
    write_json(done, result | {"of_scans": scores, "set": list(settings) if arm != PLAIN else []})
    shutil.rmtree(place)
    return True


def plain(data: Path, place: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Figures of the plain network, whose predictions lie in `place` afterwards."""
    script = ROOT / "benchmarks" / "plain_unet.py"
    subprocess.run([sys.executable, script, data, str(minutes), str(seed), place], check=True)
    return json.loads((place / "figures.json").read_text())


def ours(
    data: Path, place: Path, minutes: float, seed: int, settings: Sequence[str]
) -> dict[str, Any]:
    """Figures of a newcomer's task, whose predictions lie in `place` afterwards."""
    task = place / "task.json"
    write_task(data, task)
    train(task, [f"tr_params.max_minutes={minutes}", f"tr_params.seed={seed}", *settings])
    (best,), (last,) = (place.glob(f"run/*_{which}.pth") for which in ("best", "last"))
    predictor, about = vcmodels.load_predictor(best), json.loads((data / "about.json").read_text())
    for file in sorted(data.glob("test*_raw.npy")):
        predicted = predictor.predict(np.load(file), spacing=tuple(about["spacing"]))["label"]
        if about["classes"] == 2:
            predicted = predicted > 0.5
        elif predicted.ndim == 4:
            predicted = predicted.argmax(0)
        np.save(place / file.name.replace("_raw", ""), predicted.astype(np.uint8))
    state, chosen = load_checkpoint(last).state, load_checkpoint(best).state
    return {"steps": state["step"], "best_step": chosen["step"], "patch": state["patch_size"]}


def write_task(data: Path, task: Path) -> None:
    """What a newcomer writes: `vcmodels init` on a scan, the others added, and what does not count."""
    scans = sorted(data.glob("train*.zarr"))
    command = [sys.executable, "-m", "vcmodels", "init", scans[0] / "raw"]
    subprocess.run([*command, f"label={scans[0] / 'label'}", "-o", task], check=True)
    about, record = json.loads((data / "about.json").read_text()), json.loads(task.read_text())
    config = record["dataset_config"]
    first = config["volume_paths"][0]
    config["volume_paths"] = [
        first | {"input": str(one / "raw"), "label": str(one / "label")} for one in scans
    ]
    if about["ignored"] is not None:
        config["targets"] = {"label": {"kind": "binary", "ignore_label": about["ignored"]}}
    record["tr_params"]["ckpt_out_base"] = str(task.parent / "run")
    record["inference_params"]["output_dir"] = str(task.parent / "predictions")
    write_json(task, record)


def dice(predicted: np.ndarray, label: np.ndarray, data: Path) -> float:
    """The mean over classes, without the background; a class that is nowhere is left out."""
    about = json.loads((data / "about.json").read_text())
    counts = np.ones(label.shape, bool) if about["ignored"] is None else label != about["ignored"]
    found: list[float] = []
    for number in range(1, about["classes"]):
        ours, wanted = predicted[counts] == number, label[counts] == number
        if wanted.any():
            found.append(float(2 * (ours & wanted).sum() / (ours.sum() + wanted.sum())))
    return statistics.mean(found)


def table(sets: Sequence[str], results: Path) -> str:
    """A Markdown table: the mean of each arm, and its difference to the plain network, seed by seed."""
    arms = sorted({p.name for one in sets for p in (results / one).glob("*") if p.is_dir()})
    arms = [
        *(a for a in (PLAIN, DEFAULTS) if a in arms),
        *(a for a in arms if a not in (PLAIN, DEFAULTS)),
    ]
    lines = ["\n| set | " + " | ".join(arms) + " |", "| --- " * (len(arms) + 1) + "|"]
    gains: dict[str, list[float]] = {arm: [] for arm in arms}
    for one in sets:
        cells = [one]
        base = scores(results / one / PLAIN)
        for arm in arms:
            found = scores(results / one / arm)
            paired = [found[seed] - base[seed] for seed in found if seed in base]
            cells.append(f"{statistics.mean(found.values()):.4f}" if found else "")
            if paired and arm != PLAIN:
                gains[arm].append(statistics.mean(paired))
                cells[-1] += f" ({gains[arm][-1]:+.4f}, {len(paired)})"
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{statistics.mean(g):+.4f} of {len(g)}" if g else "" for g in gains.values()]
    return "\n".join([*lines, "| mean | " + " | ".join(means) + " |"]) + "\n"


def scores(folder: Path) -> dict[str, float]:
    """What was measured of an arm, by seed."""
    return {f.stem: json.loads(f.read_text())["dice"] for f in sorted(folder.glob("seed*.json"))}


def scroll() -> Made:
    """Sheets of a rolled scroll, of which parts are not labelled."""

    def one(shape: tuple[int, int, int], seed: int) -> Scan:
        phantom = make_phantom(shape, Box((0, 0, 0), shape), seed)
        return phantom.ct[0], phantom.sheet[0]

    return Made([one((64, 160, 160), 1)], [one((48, 128, 128), 2)], ignored=UNLABELLED)


def nuclei() -> Made:
    """Nuclei that touch, and what is between them, in two embryos."""

    def one(shape: tuple[int, int, int], count: int, seed: int) -> Scan:
        ids = touching_ellipsoids(shape, count, RADII, seed)
        return stained(ids, seed), (ids > 0).astype(np.uint8)

    return Made([one((64, 128, 128), 25, 1)], [one((64, 96, 96), 14, 2)])


WALL_SPACING = (4.0, 1.0, 1.0)


def walls() -> Made:
    """Walls between cells in a stack of 20 slices, four times as far apart as voxels in a slice."""
    return Made([_walls((20, 224, 224), 1)], [_walls((20, 160, 160), 2)], WALL_SPACING)


def _walls(shape: tuple[int, int, int], seed: int) -> Scan:
    """Borders of a Voronoi diagram, bright by places, blurred by optics and with noise."""
    rng = np.random.default_rng(seed)
    size = np.array(shape) * WALL_SPACING
    centres = rng.uniform(-20, size + 20, (int(np.prod(size + 40) / 24.0**3), 3))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * WALL_SPACING
    # How far it is to the plane between the two nearest centres.
    near, of = map(np.asarray, KDTree(centres).query(grid, k=2))
    apart = np.linalg.norm(centres[of[..., 0]] - centres[of[..., 1]], axis=-1)
    distance = (near[..., 1] ** 2 - near[..., 0] ** 2) / (2 * apart)
    label = distance < 1.5
    stain = 1 + 0.6 * _smooth(rng, shape, (2, 8, 8))
    clumps = np.clip(
        _smooth(rng, shape, (0.7, 2, 2)) - 1.3, 0, None
    )  # bright specks inside of cells
    signal = gaussian_filter(label * np.clip(stain, 0.1, None), (0.5, 1.2, 1.2)) + 0.5 * clumps
    light = 1 + 0.25 * _smooth(rng, shape, (8, 50, 50))
    image = 30 + 110 * signal * light + rng.normal(0, 14, shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label.astype(np.uint8)


def _smooth(
    rng: np.random.Generator, shape: tuple[int, int, int], sigma: tuple[float, float, float]
) -> np.ndarray:
    """A random field of mean 0 and deviation 1."""
    field = gaussian_filter(rng.normal(size=shape), sigma, mode="nearest")
    return (field - field.mean()) / field.std()


def cord() -> Made:
    """The cord in necks of four subjects for training and of three others, of one contrast."""

    def one(subject: int) -> Scan:
        neck, contrast = Neck(subject, (72.0, 60.0, 48.0)), CONTRASTS[0]
        scanned = scan(neck, contrast, Slices.of(contrast, neck.size, 3), subject)
        return scanned.image, scanned.cord

    contrast = CONTRASTS[0]
    steps = Slices.of(contrast, (72.0, 60.0, 48.0), 3).affine[:3, 2::-1]
    z, y, x = (float(n) for n in np.linalg.norm(steps, axis=0))
    return Made([one(n) for n in range(1, 5)], [one(n) for n in range(11, 14)], (z, y, x))


def flyem() -> Made:
    """Membranes of neurons in 20 slices of FIB-SEM, and in 20 others."""
    store = zarr.open_group(expand_location("$VCMODELS_DATA/flyem_medulla_fibsem.zarr"), mode="r")
    raw, label = (np.asarray(store[f"z000_160/{n}"]) for n in ("raw", "labels/membrane"))
    return Made([(raw[:20], label[:20])], [(raw[130:150, :, :192], label[130:150, :, :192])])


def hippocampus() -> Made:
    """Two parts of the hippocampus in 8 cases, and in 8 others."""
    parts = [hippocampus_cases(split)[:8] for split in ("train", "val")]
    seen, others = ([case_arrays(case) for case in cases] for cases in parts)
    return Made(seen, others, classes=3)


def tissue() -> Made:
    """Grey and white matter and fluid in one half of a brain, and in a part of the other."""
    store = zarr.open_group(expand_location("$VCMODELS_DATA/mni152_tissue.zarr"), mode="r")
    raw, label = (np.asarray(store[f"mni_icbm152/{n}"]) for n in ("raw", "labels/tissue"))
    ours, others = np.s_[40:140, 20:220, 0:98], np.s_[70:110, 40:200, 114:190]
    return Made([(raw[ours], label[ours])], [(raw[others], label[others])], classes=4)


SETS: dict[str, Callable[[], Made]] = {
    "walls": walls,
    "flyem": flyem,
    "hippocampus": hippocampus,
    "nuclei": nuclei,
    "scroll": scroll,
    "cord": cord,
    "tissue": tissue,
}

if __name__ == "__main__":
    main()
