"""A mask that somebody predicted, against the image that it was predicted from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

import vcmodels
from vcmodels.audit.audit import Audit
from vcmodels.audit.base import Finding
from vcmodels.audit.support import (
    OFFSETS,
    STEEPEST,
    Support,
    gradient_of,
    support_of,
)
from vcmodels.data.normalization import CUBE, cubes
from vcmodels.errors import RefusedError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.grid import tiles
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import KEY
from vcmodels.targets.census import FEW
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import Blocks, Description, Grid, Pyramid, Storage, Volume, write_volume

RADII = (1.0, 2.0, 4.0)
"""In voxels of the shortest axis."""
LEAST_BLOCK = 128
MOST_CUBES = 64
"""In which borders are compared with edges; spread evenly over those that hold some foreground."""
LEAST_FOREGROUND = 64
"""Voxels of a cube that is compared."""
CLOSE = 2
"""Of the radii, which decide: two scans of one sort have much in common within more voxels."""
SAMPLED = 16
FLAT_SHARE = 0.01
"""Of the voxels looked at, which the most frequent cubes of one value fill at least to be void."""
VOID_SIDE = 3
"""Voxels along the cubes that are void: noise makes single voxels of the value."""
MUCH_EMPTY, LITTLE_EXCESS = 0.01, 0.1
FEWEST_POINTS = 1000
"""Of the border, from which on little excess is worth a warning."""
TITLES = {"empty": "Foreground where the image is empty", "support": "Borders against edges"}


@dataclass(frozen=True)
class Emptiness:
    """Where an image counts as empty."""

    rule: ForegroundRule | None
    """Which values are; None: `void`, where cubes of it fit in."""
    void: float | None = None

    def __str__(self) -> str:
        if self.rule is not None:
            return f"is {self.rule}"
        side = f"{VOID_SIDE} x {VOID_SIDE} x {VOID_SIDE}"
        return f"is {self.void:g} in cubes of {side} voxels"

    def of(self, image: Volume, box: Box) -> np.ndarray:
        """(Z, Y, X) bool: which voxels of a box are empty; it does not depend on the box."""
        if self.rule is not None:
            return self.rule.of(image.read(box))[0]
        from scipy.ndimage import binary_opening  # late: `check` needs none of it

        margin = VOID_SIDE - 1
        # Outside of the image nothing is known: its end does not stand in the way of a cube.
        values = image.read(box.grow((margin,) * 3), pad="edge")[0]
        opened = binary_opening(values == self.void, np.ones((VOID_SIDE,) * 3, bool))
        return opened[margin:-margin, margin:-margin, margin:-margin]


@dataclass
class _Counts:
    """What a pass over the prediction found."""

    foreground: int = 0
    empty: int = 0
    cubes: list[Box] = field(default_factory=list)
    """That hold foreground."""


def audit_prediction(
    prediction: Volume,
    image: Volume,
    *,
    foreground: ForegroundRule | None = None,
    empty: ForegroundRule | None = None,
    mask: str | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """Count the foreground where the image is empty, and compare its border with edges.

    All of the prediction is read once, block by block; edges are looked at in `MOST_CUBES` cubes.

    Args:
        prediction: one channel.
        image: of the same extent; one channel.
        foreground: which values of the prediction are; every value above 0 when None.
        empty: which values of the image are empty; when None the value of cubes that hold one value,
            if they fill 1 % of the voxels that are looked at.
        mask: a folder that does not exist, which gets the prediction with 0 where the image is empty.
        reporter: shows how far it is.

    Raises:
        VolumeError: the extents differ.
        RefusedError: the prediction holds many values, and nothing says which are foreground; a mask
            is asked for, and nothing is empty.
        OutputError: the mask cannot be written.
        ChunkError: a chunk cannot be read.
    """
    reporter = reporter or Silent()
    if prediction.extent != image.extent:
        found = f"has shape {prediction.extent}, and the image {image.extent}"
        raise VolumeError(
            prediction.key, found, "name the level and the crop of the image that fit"
        )
    rule = foreground or _above_zero(prediction)
    samples = _samples(image)
    emptiness = Emptiness(empty, None if empty else _void(samples))
    if emptiness.void is None and empty is None:
        if mask is not None:
            found = "no value of the image stands for void"
            raise RefusedError("--mask", found, 'give --empty, such as "<= 12"')
        emptiness = None
    counts = _Counts()
    with reporter.bar("prediction", prediction.box.voxels) as advance:
        pieces = _pass(prediction, image, rule, emptiness, counts, lambda n: advance(n, ""))
        if mask is not None:
            assert emptiness is not None
            _write(mask, prediction, image, emptiness, pieces)
        else:
            for _ in pieces:
                pass
    findings = {"empty": [_of_empty(prediction, counts, emptiness)]}
    findings["support"] = list(_supported(prediction, image, rule, counts, samples, reporter))
    return Audit(prediction.shown, 1, findings, TITLES)


def _above_zero(prediction: Volume) -> ForegroundRule:
    """Every value above 0, of a prediction that holds few."""
    found: set[float] = set()
    for box, values in cubes(prediction, prediction.box, prediction.read, SAMPLED, 256, CUBE):
        del box
        if values is not None:
            found |= set(np.unique(values)[: FEW + 2].tolist())
    if len(found) > FEW or any(not float(value).is_integer() for value in found):
        shown = f"holds many values, such as {', '.join(f'{v:g}' for v in sorted(found)[:4])}"
        remedy = 'give --foreground, such as ">= 0.5" or ">= 128", or "> 0" if they are ids'
        raise RefusedError("--foreground", f"{prediction.shown} {shown}", remedy)
    return ForegroundRule.parse("> 0")


def _samples(image: Volume) -> list[np.ndarray]:
    """(Z, Y, X) cubes, with those that are not stored, so of every part of the image alike."""
    found = cubes(image, image.box, image.read, SAMPLED, 4 * SAMPLED, CUBE)
    fill = np.full((1, 8, 8, 8), image.fill_value, image.dtype)
    return [(fill if values is None else values)[0] for _, values in found]


def _void(samples: Sequence[np.ndarray]) -> float | None:
    """The value that most cubes of 8 voxels with one value hold, if they are some."""
    side, held, total = 8, dict[float, int](), 0
    for values in samples:
        z, y, x = (n // side for n in values.shape)
        cut = values[: z * side, : y * side, : x * side].reshape(z, side, y, side, x, side)
        low, high = cut.min((1, 3, 5)), cut.max((1, 3, 5))
        total += low.size
        for value in low[low == high].tolist():
            held[float(value)] = held.get(float(value), 0) + 1
    most = max(held, key=lambda value: held[value], default=None)
    return most if most is not None and held[most] >= FLAT_SHARE * total else None


def _block(chunks: Shape) -> Shape:
    """Whole chunks, so that each is read and written once, and `LEAST_BLOCK` or more."""
    return triple(-(-LEAST_BLOCK // n) * n for n in chunks)


def _pass(
    prediction: Volume,
    image: Volume,
    rule: ForegroundRule,
    emptiness: Emptiness | None,
    counts: _Counts,
    advance: Callable[[int], None],
) -> Iterator[tuple[Box, np.ndarray]]:
    """Count block by block; gives those that are stored, with 0 where the image is empty."""
    for box in tiles(prediction.box, _block(prediction.storage_unit)):
        advance(box.voxels)
        if not prediction.is_stored(box) and prediction.fill_value == 0:
            continue
        values = prediction.read(box)
        chosen = rule.of(values)[0]
        counts.foreground += int(chosen.sum())
        for cube in tiles(box, (CUBE, CUBE, CUBE)) if chosen.any() else ():
            if chosen[cube.slices(within=box)].sum() >= LEAST_FOREGROUND:
                counts.cubes.append(cube)
        if emptiness is not None:
            void = emptiness.of(image, box)
            counts.empty += int((chosen & void).sum())
            values = np.where(void, np.zeros((), values.dtype), values)
        yield box, values


def _write(
    mask: str,
    prediction: Volume,
    image: Volume,
    emptiness: Emptiness,
    pieces: Iterator[tuple[Box, np.ndarray]],
) -> None:
    """Write the masked prediction; what is not stored stays so."""
    notes = {
        "masked": prediction.shown.split("?")[0],  # a URL's query may hold a key to it
        "image": image.shown.split("?")[0],
        "empty_where_image": str(emptiness),
        "source_content": prediction.fingerprint(),
        "vcmodels": vcmodels.__version__,
    }
    write_volume(
        mask,
        Blocks(prediction.extent, prediction.dtype, pieces),
        grid=Grid(prediction.spacing, prediction.offset, prediction.unit),
        chunks=prediction.chunks,
        storage=Storage(3, shards=prediction.shards),
        pyramid=Pyramid(levels=0),
        description=Description(Path(mask).name.split(".")[0], {KEY: notes}),
    )


def _of_empty(prediction: Volume, counts: _Counts, emptiness: Emptiness | None) -> Finding:
    total = counts.foreground
    if not total:
        return Finding(
            "error", prediction.key, "there is no foreground", "check the path and --foreground"
        )
    if emptiness is None:
        found = f"{total:,} voxels of foreground; no value of the image stands for void"
        remedy = 'give --empty, such as "<= 12", to count the foreground there'
        return Finding("note", prediction.key, found, remedy, {"foreground": total})
    share = counts.empty / total
    found = (
        f"{share:.2%} of the foreground ({counts.empty:,} of {total:,} voxels) lie where the image "
        f"{emptiness}"
    )
    figures = {"foreground": total, "empty": counts.empty, "share": share}
    much = share >= MUCH_EMPTY
    remedy = "write a masked copy with --mask OUT" if much else ""
    return Finding("warning" if much else "note", prediction.key, found, remedy, figures)


def _supported(
    prediction: Volume,
    image: Volume,
    rule: ForegroundRule,
    counts: _Counts,
    samples: Sequence[np.ndarray],
    reporter: Reporter,
) -> Iterator[Finding]:
    """How near to edges the border is, in some of the cubes that hold foreground."""
    if not counts.cubes:
        return
    places = np.linspace(0, len(counts.cubes) - 1, min(MOST_CUBES, len(counts.cubes)))
    chosen = [counts.cubes[round(place)] for place in places.tolist()]
    spacing = image.spacing
    radii = [radius * min(spacing) for radius in RADII]
    steep = [np.linalg.norm(gradient_of(s), axis=0).reshape(-1) for s in samples if np.ptp(s)]
    if not steep:
        return
    threshold = float(np.percentile(np.concatenate(steep), STEEPEST))
    parts: list[Support] = []
    with reporter.bar("edges", len(chosen)) as advance:
        for cube in chosen:
            mask = rule.of(prediction.read(cube.grow((1, 1, 1)), pad="edge"))[0]
            parts.append(support_of(image, mask, cube, threshold, radii, spacing))
            advance(1, "")
    yield _judged(prediction, reduce(add, parts), radii, image.unit, len(chosen), len(counts.cubes))


def _judged(
    prediction: Volume,
    support: Support,
    radii: Sequence[float],
    unit: str | None,
    looked: int,
    of: int,
) -> Finding:
    shares, null, excess = support.shares[0], support.null, support.excess
    rows = [
        {"radius": r, "share": float(s), "null": float(n), "excess": float(e)}
        for r, s, n, e in zip(radii, shares, null, excess, strict=True)
    ]
    text = "; ".join(
        f"within {row['radius']:.4g} {unit or 'voxels'} {row['share']:.1%}, moved away "
        f"{row['null']:.1%}, excess {row['excess']:.2f}"
        for row in rows
    )
    found = f"border voxels near an edge of the image, in {looked} of {of} cubes: {text}"
    figures = {"radii": rows, "points": int(support.points[0]), "offsets": len(OFFSETS)}
    if max(excess[:CLOSE]) >= LITTLE_EXCESS or support.points[0] < FEWEST_POINTS:
        return Finding("note", prediction.key, found, "", figures)
    remedy = "it follows the edges no more than by chance: check that it is of this image and level"
    return Finding("warning", prediction.key, found, remedy, figures)
