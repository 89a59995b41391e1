"""Writing scans of made-up necks as a cohort: several subjects, each with two contrasts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.geometry.affine import axis_codes, offset_of, spacing_of
from vcmodels.geometry.boxes import Spacing
from vcmodels.phantom.kept import require_about
from vcmodels.phantom.magnet import CONTRASTS, MrContrast, Slices, scan
from vcmodels.phantom.neck import Neck
from vcmodels.volumes import (
    Description,
    Grid,
    Pyramid,
    Storage,
    set_group_attributes,
    whole_folder,
)
from vcmodels.volumes.backend import ZarrFormat
from vcmodels.volumes.multiscale import write_image
from vcmodels.volumes.places import refuse_in_store
from vcmodels.volumes.world import GEOMETRY, OURS, geometry_note

_KIND = "cord cohort"
_CHUNKS = (64, 64, 64)
LEAST_MM, MOST_MM = 48.0, 320.0
"""Between these the field of view may be, along each axis: one scan is made in memory."""


@dataclass(frozen=True)
class NeckScans:
    """Which scans are made."""

    subjects: int
    seed: int
    size: Spacing
    """Of the field of view along (top, front, right), in mm."""

    def scans(self) -> Iterator[tuple[str, int, MrContrast]]:
        """Name, subject and contrast of each scan, in order."""
        for subject in range(self.subjects):
            for n in range(2):
                contrast = CONTRASTS[(subject + n) % len(CONTRASTS)]
                yield f"sub-{subject + 1:02d}_{contrast.name}", subject, contrast

    def about(self) -> dict[str, Any]:
        """What the store says of itself."""
        return {
            "phantom": _KIND,
            **{k: getattr(self, k) for k in ("subjects", "seed")},
            "size_mm": list(self.size),
        }


def write_cohort(
    path: str,
    cohort: NeckScans,
    *,
    zarr_format: ZarrFormat = 2,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Write scans of necks with exact labels of the cord and its lesions, for demos and tests.

    The store gets a group for each scan, such as `sub-01_T2`, with the OME-Zarr images `image`
    (int16), `cord` and `lesion` (uint8: 0 and 1). Each says by `vcmodels.geometry.affine` where it
    lies: the axes of a scan run in an order and directions of its own, and are turned by up to 8
    degrees about right, and then by up to 8 degrees about front. The group says `subject`,
    `contrast`, `lesions` (how many were made), and `split`: the last fifth of the subjects is for
    validation. Nothing appears at `path` until all is written.

    Args:
        path: the store to make, a local folder that does not exist.
        cohort: which scans.
        zarr_format: 2 or 3.
        advance: called with 1 after each scan.

    Raises:
        OutputError: `path` exists, or lies in another store.
    """
    refuse_in_store("the phantom", path)
    held_out = cohort.subjects - max(cohort.subjects // 5, 1)
    with whole_folder(Path(path)) as folder:
        set_group_attributes(str(folder), cohort.about(), zarr_format=zarr_format)
        for name, subject, contrast in cohort.scans():
            neck = Neck(cohort.seed * 1000 + subject, cohort.size)
            about = {
                "subject": f"sub-{subject + 1:02d}",
                "contrast": contrast.name,
                "lesions": len(neck.lesions),
                "split": "val" if 0 < held_out <= subject else "train",
            }
            seed = cohort.seed * 10_000 + 100 * subject + CONTRASTS.index(contrast)
            _write_scan(folder / name, neck, contrast, seed, about, zarr_format)
            advance(1)


def _write_scan(
    folder: Path,
    neck: Neck,
    contrast: MrContrast,
    seed: int,
    about: Mapping[str, Any],
    zarr_format: ZarrFormat,
) -> None:
    slices = Slices.of(contrast, neck.size, seed)
    found = scan(neck, contrast, slices, seed)
    place = {OURS: {GEOMETRY: geometry_note(slices.affine)}}
    axes = {"axes_point_to": axis_codes(slices.affine)}
    set_group_attributes(str(folder), {**about, **axes}, zarr_format=zarr_format)
    for name, voxels in vars(found).items():
        _write(folder / name, voxels, slices, place, zarr_format)


def _write(
    folder: Path,
    voxels: np.ndarray,
    slices: Slices,
    attributes: Mapping[str, Any],
    zarr_format: ZarrFormat,
) -> None:
    write_image(
        folder,
        voxels,
        grid=Grid(spacing_of(slices.affine), offset_of(slices.affine), "millimeter"),
        chunks=_CHUNKS,
        storage=Storage(zarr_format),
        pyramid=Pyramid(levels=0),
        description=Description(folder.name, attributes),
    )


def require_cohort(path: str, cohort: NeckScans) -> None:
    """Refuse what is at a path unless it is this cohort.

    Raises:
        OutputError: it is another one, or none.
    """
    require_about(path, cohort.about(), "cords")
