"""Labels that lie beside the edges of their image: found by correlating the edges of both.

In windows that hold borders of the label, the gradient magnitude of the image is averaged over the
border, for every shift of the border by whole voxels. A shift is claimed only where all of this
holds, else nothing is said:

1. at least `FEWEST` windows have enough border;
2. the average over all windows is largest at the shift, inside of what is searched, and not at 0;
3. the halves of the windows, even and odd ones, both have their maximum within one voxel of it;
4. in `SURE` of the windows the image is steeper under the shifted border than under the one as it is;
5. of the rise above the mean over all shifts, no more than `LEFT` is there at 0, and the rise stands
   out by `APART` deviations of the averages over all shifts.

Where the borders of a label are no edges of the image, the maxima of the halves lie anywhere and (3)
fails. A label that follows one of two edges has its largest average at 0, or as much of it (5).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vcmodels.audit.base import AuditScene, Check, Finding
from vcmodels.data.normalization import CUBE, cubes
from vcmodels.data.opening import reader_of
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.targets.base import Target
from vcmodels.targets.stored import known
from vcmodels.volumes import Volume

REACH = 8
"""Voxels that are searched along each axis and direction."""
SIDE, SMALL_SIDE = 32, 16
"""Voxels along a window; the smaller one for volumes of few windows."""
WINDOWS, FEWEST = 24, 6
TRIES = 256
LEAST_BORDER = 64
"""Voxels of border in a window that counts."""
SIGMA = 1.0
"""Voxels by which the image is smoothed for its gradient."""
SURE, LEFT, APART = 0.9, 0.9, 4.0
KINDS = frozenset({"binary", "multiclass"})
"""Whose stored labels have borders; and all that others are derived from."""


@dataclass(frozen=True)
class Shift:
    """How far the image lies from the label."""

    voxels: Shape
    """What has to be added to the coordinates of the label, (z, y, x)."""
    windows: int
    agreeing: float
    """Share of the windows in which the image is steeper under the shifted border."""
    left: float
    """The rise of the average at 0, divided by that at the shift."""
    apart: float
    """The rise at the shift, in deviations over all shifts."""


def find_shift(image: Volume, label: Volume, region: Box, rule: Target) -> Shift | None:
    """The shift between a label and its image, None where there is none or no evidence of one.

    Args:
        image: its first channel counts.
        label: (1, Z, Y, X) of whole numbers.
        region: the part that is looked at.
        rule: says which stored values are ignored, and which are foreground.
    """
    maps = []
    for window in _windows(label, region, rule):
        found = _average(image, label, window, region, rule)
        if found is not None:
            maps.append(found)
    return judge(np.stack(maps)) if len(maps) >= FEWEST else None


def judge(maps: np.ndarray) -> Shift | None:
    """What the averages of some windows prove.

    Args:
        maps: (n, 2 r + 1, 2 r + 1, 2 r + 1) averages of the gradient by shift, 0 in the middle.
    """
    middle = triple(n // 2 for n in maps.shape[1:])
    whole, halves = maps.mean(0), (maps[::2].mean(0), maps[1::2].mean(0))
    peak = _peak(whole)
    if peak == middle or any(p in (0, n - 1) for p, n in zip(peak, whole.shape, strict=True)):
        return None
    if any(np.abs(np.subtract(_peak(half), peak)).max() > 1 for half in halves):
        return None
    agreeing = float((maps[:, *peak] > maps[:, *middle]).mean())
    base, spread = float(whole.mean()), float(whole.std())
    rise = float(whole[peak]) - base
    left, apart = (float(whole[middle]) - base) / rise, rise / spread
    if agreeing < SURE or left > LEFT or apart < APART:
        return None
    voxels = triple(p - m for p, m in zip(peak, middle, strict=True))
    return Shift(voxels, len(maps), agreeing, left, apart)


def _peak(values: np.ndarray) -> Shape:
    return triple(int(n) for n in np.unravel_index(np.argmax(values), values.shape))


def _windows(label: Volume, region: Box, rule: Target) -> Iterator[Box]:
    """Windows that hold borders, the same ones every time."""
    side = SIDE if min(region.shape) >= 4 * SIDE or region.voxels > CUBE**3 else SMALL_SIDE

    def read(box: Box) -> np.ndarray | None:
        try:
            return _values(label, box, rule)[0][None]
        except RunError:  # another check reports it
            return None

    found = 0
    for box, values in cubes(label, region, read, WINDOWS, TRIES, side):
        if values is not None and found < WINDOWS and _border_of(values[0]).sum() >= LEAST_BORDER:
            found += 1
            yield box


def _values(label: Volume, box: Box, rule: Target) -> tuple[np.ndarray, np.ndarray]:
    """(Z, Y, X) of the label as it counts, and which voxels are known."""
    stored = label.read(box)
    valid = known(stored, rule.ignored)[0]
    comparison = rule.comparison
    values = stored[0] if comparison is None else comparison.of(stored)[0].astype(np.uint8)
    return values, valid


def _border_of(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Where a value differs from a neighbour's, on both sides of the border; (Z, Y, X) bool."""
    border = np.zeros(values.shape, bool)
    for axis in range(3):
        one, other = (
            tuple(slice(*ends) if a == axis else slice(None) for a in range(3))
            for ends in ((None, -1), (1, None))
        )
        differs = values[one] != values[other]
        if valid is not None:
            differs &= valid[one] & valid[other]
        border[one] |= differs
        border[other] |= differs
    return border


def _average(
    image: Volume, label: Volume, window: Box, region: Box, rule: Target
) -> np.ndarray | None:
    """(2 r + 1, ...) averages of the gradient over the border, by shift; None if it is flat."""
    from scipy.ndimage import gaussian_gradient_magnitude  # late: `check` needs none of it

    around = window.grow((REACH + 2,) * 3)
    try:
        values = image.read(around, pad="edge")[0].astype(np.float64)
        border = _border_of(*_values(label, window, rule)).astype(np.float64)
    except RunError:
        return None
    if not np.isfinite(values).all() or values.min() == values.max():
        return None
    # Steep edges of few voxels would outweigh all others.
    steep = np.sqrt(gaussian_gradient_magnitude(values, SIGMA))[2:-2, 2:-2, 2:-2]
    if not border.sum() or not (spread := float(steep.std())):
        return None
    return _correlated((steep - steep.mean()) / spread, border) / border.sum()


def _correlated(image: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Sums of the image under the border, for all places where it fits in."""
    shape = image.shape
    one, other = (np.fft.rfftn(values, shape, axes=(0, 1, 2)) for values in (image, border))
    sums = np.fft.irfftn(one * other.conj(), shape, axes=(0, 1, 2))
    return sums[: 2 * REACH + 1, : 2 * REACH + 1, : 2 * REACH + 1]


def _find(scene: AuditScene) -> Iterator[Finding]:
    targets = scene.task.dataset_config.targets
    sources = {target.derive for target in targets.values()}
    for volume in scene.volumes:
        for name, label in volume.labels.items():
            reader = reader_of(name, targets)
            is_mask = name in sources or getattr(reader, "kind", "") in KINDS
            if is_mask and label.channels == 1 and label.dtype.kind in "biu":
                shift = find_shift(volume.inputs[0], label, volume.region, reader)
                if shift is not None:
                    yield _claimed(volume, name, shift)


def _claimed(volume: TaskVolume, name: str, shift: Shift) -> Finding:
    unit = volume.unit or "units"
    lengths = [round(n * s, 6) for n, s in zip(shift.voxels, volume.spacing, strict=True)]
    there = f" = {tuple(lengths)} {unit}" if volume.has_spacing else ""
    found = (
        f"{volume.name}: the label {name} lies beside the edges of the image: they fit when it is "
        f"moved by {shift.voxels} voxels (z, y, x){there}, in {shift.agreeing:.0%} of "
        f"{shift.windows} windows"
    )
    remedy = "look at it with vcmodels preview; correct the offset, crop or level of one of them"
    figures = {
        "shift_voxels": list(shift.voxels), "shift": lengths, "windows": shift.windows,
        "agreeing": shift.agreeing, "left_at_0": round(shift.left, 4), "deviations": round(shift.apart, 3),
    }  # fmt: skip
    return Finding("warning", f"{volume.key}.{name}", found, remedy, figures)


CHECK = Check("shift", "Labels against the edges of the image", _find)
