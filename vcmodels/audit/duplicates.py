"""Scans that train and validate under two names: other intensities, mirrored, or moved a little.

Exact copies are found when the volumes are opened, and kept on one side. Here every two volumes that
may come on different sides are compared in two steps:

1. thumbnails of 12 cells along each axis, of ranks instead of values, in all 8 mirrored forms: other
   scans of the same anatomy may pass, too;
2. the fine structure, an image less its average over `FINE` voxels, correlated at all shifts up to
   `REACH` voxels. Noise and texture of two scans have nothing in common: what was measured between
   different cases of one set is in `docs/audit.md`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product

import numpy as np

from vcmodels.audit.base import AuditScene, Check, Finding
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import triple

CELLS = 12
ALIKE, SAME = 0.85, 0.65
"""Least correlation of thumbnails, and of fine structure."""
FINE = 5
REACH = 8
MOST_VOXELS = 1 << 24
"""Of a volume that is compared; larger ones would have to be read whole."""
MOST_VOLUMES = 400
MOST_TRIED = 100_000
"""Pairs of which it is asked whether any may come on different sides; 100,000 volumes have 5 * 10^9."""
MOST_PAIRS = 200
"""Of which the fine structure is compared."""
FLIPS = tuple(triple(steps) for steps in product((1, -1), repeat=3))


def _find(scene: AuditScene) -> Iterator[Finding]:
    few = [v for v in scene.volumes if v.region.voxels <= MOST_VOXELS][:MOST_VOLUMES]
    pairs = [(a, b) for a, b in combinations(few, 2) if _may_part(a, b)]
    left = len(scene.volumes) - len(few)
    if left and any(
        _may_part(*pair) for pair in islice(combinations(scene.volumes, 2), MOST_TRIED)
    ):
        found = f"{left} volumes are too large, or too many, to be compared with the others"
        remedy = 'give volumes of one scan a common "group"'
        yield Finding("note", "dataset_config.volume_paths", found, remedy, {"volumes": left})
    thumbnails = {v.name: _thumbnail(v) for v in {v.name: v for p in pairs for v in p}.values()}
    likely = sorted(_likely(pairs, thumbnails), key=lambda row: -row[0])
    for _, one, other, flip in likely[:MOST_PAIRS]:
        same = fine_correlation(_image(one), _image(other), flip)
        if same >= SAME:
            yield _claimed(one, other, flip, same)


def _may_part(one: TaskVolume, other: TaskVolume) -> bool:
    """Whether one may train and the other validate, and nothing keeps them together yet."""
    is_fixed = one.split is not None and one.split == other.split
    has_group = one.group is not None and one.group == other.group
    return not is_fixed and not has_group and not one.scan == other.scan >= 0


def _image(volume: TaskVolume) -> np.ndarray:
    """(Z, Y, X) float32 of the first channel, NaN and infinity as 0; empty where it is damaged."""
    try:
        values = volume.inputs[0].read(volume.region)[0].astype(np.float32)
    except RunError:  # the check of the images reports it
        return np.zeros((0, 0, 0), np.float32)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _thumbnail(volume: TaskVolume) -> np.ndarray | None:
    return thumbnail(_image(volume))


def thumbnail(image: np.ndarray) -> np.ndarray | None:
    """(CELLS, CELLS, CELLS) ranks of cell means, with mean 0 and length 1; None of a flat image."""
    from scipy.stats import rankdata  # late: `check` needs none of it

    if min(image.shape) < CELLS:
        return None
    for axis in range(3):
        edges = np.linspace(0, image.shape[axis], CELLS + 1).astype(int)
        sums = np.add.reduceat(image, edges[:-1], axis=axis, dtype=np.float64)
        sizes = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(3)])
        image = sums / sizes
    ranks = rankdata(image).reshape(image.shape)
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else None


VolumePair = tuple[TaskVolume, TaskVolume]
AxisFlips = tuple[int, int, int]


def _likely(
    pairs: Sequence[VolumePair], thumbnails: Mapping[str, np.ndarray | None]
) -> Iterator[tuple[float, TaskVolume, TaskVolume, AxisFlips]]:
    """Pairs of which the thumbnails are alike, in the form in which they are most alike."""
    for one, other in pairs:
        a, b = thumbnails[one.name], thumbnails[other.name]
        if a is not None and b is not None:
            scores = {flip: float((a * mirrored(b, flip)).sum()) for flip in FLIPS}
            flip = max(scores, key=lambda form: abs(scores[form]))
            if abs(scores[flip]) >= ALIKE:
                yield abs(scores[flip]), one, other, flip


def mirrored(image: np.ndarray, flip: AxisFlips) -> np.ndarray:
    """The image turned over along the axes where `flip` is -1."""
    return image[tuple(slice(None, None, step) for step in flip)]


def fine_correlation(one: np.ndarray, other: np.ndarray, flip: AxisFlips) -> float:
    """The largest correlation, by amount, of the fine structure over shifts up to `REACH` voxels.

    Args:
        one: (Z, Y, X).
        other: of any shape; both are compared from their first voxel.
        flip: how the other one is mirrored first.
    """
    parts = [_fine(one), _fine(mirrored(other, flip))]
    if any(part is None for part in parts):
        return 0.0
    a, b = (part for part in parts if part is not None)
    # Multiples of 16 have small factors, which the transform needs to be fast.
    shape = [-(-(max(n, m) + REACH) // 16) * 16 for n, m in zip(a.shape, b.shape, strict=True)]
    first, second = (np.fft.rfftn(part, shape, axes=(0, 1, 2)) for part in (a, b))
    sums = np.fft.irfftn(first * second.conj(), shape, axes=(0, 1, 2))
    near = [np.r_[0 : REACH + 1, -REACH:0]] * 3
    found = np.abs(sums[np.ix_(*near)]).max()
    return float(found / (np.linalg.norm(a) * np.linalg.norm(b)))


def _fine(image: np.ndarray) -> np.ndarray | None:
    """Ranks of the image less its average around each voxel; None of a flat one."""
    from scipy.ndimage import uniform_filter
    from scipy.stats import rankdata

    if not image.size:
        return None
    fine = image - uniform_filter(image, FINE)
    # One bright edge would stand for all of the image.
    ranks = rankdata(np.round(fine, 4)).reshape(fine.shape)
    ranks = (ranks - ranks.mean()).astype(np.float32)
    return ranks if ranks.any() else None


def _claimed(one: TaskVolume, other: TaskVolume, flip: AxisFlips, same: float) -> Finding:
    turned = [axis for axis, step in zip("zyx", flip, strict=True) if step < 0]
    how = f", mirrored along {', '.join(turned)}" if turned else ""
    found = (
        f"{one.name} and {other.name} look like one scan{how} (their fine structure correlates by "
        f"{same:.2f}), and may train and validate"
    )
    remedy = 'give both the same "group", or remove one'
    figures = {"volumes": [one.name, other.name], "mirrored": turned, "correlation": round(same, 4)}
    return Finding("warning", other.key, found, remedy, figures)


CHECK = Check("duplicates", "The same scan in training and validation", _find)
