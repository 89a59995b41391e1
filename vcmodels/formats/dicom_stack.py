"""The slices of a DICOM series as one grid: sorted by place, complete, even and straight, or refused."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.dicom_frames import DicomSlice, shown
from vcmodels.geometry.affine import Affine, flipped_world, is_square

_UNEVEN = 0.1
"""Part of the distance of slices by which one may lie off its place: positions are rounded texts."""
_GAP = 1.5
_SAME = 1e-3
"""Part of a length, or of a direction of length 1, by which what is written twice may differ."""
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Stack:
    """The slices in the order of z, and where their voxels lie."""

    frames: tuple[DicomSlice, ...]
    affine: Affine
    """RAS+."""
    copies: int
    """Slices that were there twice, and are left out."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        return (len(self.frames), *self.frames[0].shape)


def stack_frames(frames: Sequence[DicomSlice], key: str) -> Stack:
    """Sort slices along their normal, as their positions say; file names do not count.

    Args:
        frames: of one series, in any order.
        key: for messages.

    Raises:
        VolumeError: slices of several shapes or directions, two different ones at one place, one
            missing, uneven distances, or a stack that leans (a tilted gantry).
    """
    for one in _ALIKE:
        _require_alike(frames, one, key)
    first = frames[0]
    normal = np.cross(first.along_x, first.along_y)
    ordered = sorted(frames, key=lambda frame: float(np.dot(frame.position, normal)))
    kept = list(_without_copies(ordered, normal, key))
    places = np.array([frame.position for frame in kept])
    _require_even(places @ normal, key)
    affine = _affine(kept[0], _step(kept, places, normal, key))
    return Stack(tuple(kept), flipped_world(affine), len(frames) - len(kept))


@dataclass(frozen=True)
class _Alike:
    """What all slices of a stack must have in common."""

    name: str
    of: Callable[[DicomSlice], tuple[float, ...]]
    part: float = 0
    """By which it may differ."""
    slack: float = 0
    """By which it may differ, whatever its size."""


_ALIKE = (
    _Alike("shapes (rows, columns)", lambda frame: frame.shape),
    _Alike("directions", lambda frame: (*frame.along_x, *frame.along_y), slack=_SAME),
    _Alike("pixel spacings", lambda frame: frame.spacing, part=_SAME),
)


def _require_alike(frames: Sequence[DicomSlice], wanted: _Alike, key: str) -> None:
    values = [wanted.of(frame) for frame in frames]
    if all(np.allclose(one, values[0], rtol=wanted.part, atol=wanted.slack) for one in values):
        return
    found = Counter(map(shown, values)).most_common(_MOST_SHOWN)
    listed = ", ".join(f"{n} of {text}" for text, n in found)
    remedy = "keep those of one kind in a folder of their own"
    raise VolumeError(key, f"the slices have several {wanted.name}: {listed}", remedy)


def _without_copies(
    ordered: Sequence[DicomSlice], normal: np.ndarray[Any, Any], key: str
) -> Iterator[DicomSlice]:
    """Each place once: of equal slices the first."""
    for place, found in groupby(
        ordered, lambda frame: round(float(np.dot(frame.position, normal)), 3)
    ):
        same = list(found)
        yield same[0]
        if all(_is_copy(same[0], other, key) for other in same[1:]):
            continue
        text = f"{len(same)} different slices lie at {place:g} mm (echoes, phases or times)"
        remedy = "keep one image of each place, those of one echo or time, in a folder of their own"
        raise VolumeError(key, text, remedy)


def _is_copy(one: DicomSlice, other: DicomSlice, key: str) -> bool:
    if one.index is None and other.index is None and one.uid and one.uid == other.uid:
        return True
    return np.array_equal(one.read(key), other.read(key))


def _require_even(places: np.ndarray[Any, Any], key: str) -> None:
    """Refuse slices that are missing, or that do not lie at even distances along the normal (mm)."""
    if len(places) < 2:
        return
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    wide = [(a, b) for a, b in pairwise(places.tolist()) if b - a > _GAP * usual]
    even = np.linspace(places[0], places[-1], len(places))
    if not wide and np.abs(places - even).max() <= _UNEVEN * usual:
        return
    remedy = "add the missing files, or make them even, as with dcm2niix"
    if wide and np.allclose(gaps / usual, np.round(gaps / usual), atol=_UNEVEN):
        listed = _listed([f"{a:g} and {b:g}" for a, b in wide])
        count = round(float((gaps / usual).sum())) - len(gaps)
        found = f"slices are missing: {count}, {usual:g} mm apart, between {listed} mm"
        raise VolumeError(key, found, remedy)
    off = [f"{n:g}" for n, m in zip(places, even, strict=True) if abs(n - m) > _UNEVEN * usual]
    found = f"slices are {gaps.min():g} to {gaps.max():g} mm apart, as at {_listed(off)} mm"
    raise VolumeError(key, found, remedy)


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _MOST_SHOWN
    return ", ".join(words[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _step(
    kept: Sequence[DicomSlice],
    places: np.ndarray[Any, Any],
    normal: np.ndarray[Any, Any],
    key: str,
) -> np.ndarray[Any, Any]:
    """From one slice to the next, mm: by their places, as SliceThickness is often another length."""
    if len(kept) == 1:
        return normal * (kept[0].thickness or 1.0)
    step = (places[-1] - places[0]) / (len(kept) - 1)
    straight = normal * float(step @ normal)
    slack = _UNEVEN * min(kept[0].spacing)
    _require_aligned(places, step, slack, key)
    if (len(kept) - 1) * np.linalg.norm(step - straight) <= slack:
        return np.round(straight, 9)  # the last digits of texts
    if not is_square(_affine(kept[0], step)):
        _refuse_tilt(step, normal, key)
    return np.round(step, 9)


def _require_aligned(
    places: np.ndarray[Any, Any], step: np.ndarray[Any, Any], slack: float, key: str
) -> None:
    """Refuse slices that are shifted against each other within their planes, by more than `slack` mm."""
    line = places[0] + np.arange(len(places))[:, None] * step
    off = places - line
    along = step / np.linalg.norm(step)
    within = np.linalg.norm(off - np.outer(off @ along, along), axis=1)
    if within.max() > slack:
        worst = int(within.argmax())
        found = f"the slice at {shown(places[worst])} is shifted sideways by {within[worst]:.3g} mm"
        remedy = "keep slices of one field of view in a folder of their own"
        raise VolumeError(key, found, remedy)


def _affine(first: DicomSlice, step: np.ndarray[Any, Any]) -> Affine:
    """LPS+."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.along_x) * first.spacing[1]
    affine[:3, 1] = np.array(first.along_y) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return affine


def _refuse_tilt(step: np.ndarray[Any, Any], normal: np.ndarray[Any, Any], key: str) -> None:
    cosine = float(np.dot(step, normal) / np.linalg.norm(step))
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    found = f"the slices lean by {angle:.2f} degrees (a tilted gantry), which no even grid has"
    remedy = "straighten them first, as with dcm2niix (it writes a file _Tilt_1), and read that"
    raise VolumeError(key, found, remedy)
