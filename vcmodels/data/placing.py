"""Labels that lie elsewhere than their image, by the affines of both: placed in whole voxels, or refused.

A label may be stored along other axes than its image, mirrored, or cut out of it, as a NIfTI label of
a DICOM series often is. Its voxels then are copied to the image's grid once, into the cache.
"""

from collections.abc import Sequence

from vcmodels.errors import VolumeError
from vcmodels.geometry.alignment import TOLERANCE, Alignment, align
from vcmodels.geometry.gridmap import GridMap
from vcmodels.prepare.contents import Classes
from vcmodels.prepare.derived import DerivedVolume, kept
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume
from vcmodels.volumes.world import world_affine


def placed_label(label: Volume, image: Volume, reporter: Reporter) -> Volume:
    """The label on the grid of its image; itself where it lies there, or where one has no affine.

    What of the image the label does not cover is 0.

    Raises:
        VolumeError: it lies between the voxels of the image, shares none with it, or holds vectors
            and its axes are others.
        OutputError: the cache folder cannot be written to.
    """
    found = _alignment(image, label)
    if found is None:
        return label
    _require_aligned(found, label, image)
    grid_map = found.grid_map
    if grid_map.is_identity:
        return label
    _require_placeable(label, grid_map)
    text = _told(label, image, grid_map)
    reporter.say(f"note: {label.shown} {text}: it is placed there, with 0 around it")
    return kept(DerivedVolume.of(label, grid_map, Classes()), {}, reporter)


def require_one_place(volumes: Sequence[Volume]) -> None:
    """Refuse inputs of which affines say that their voxels are not those of the first.

    Raises:
        VolumeError: naming the first that lies elsewhere, and how far.
    """
    first = volumes[0]
    for volume in volumes[1:]:
        found = _alignment(first, volume)
        if found is None:
            continue
        _require_aligned(found, volume, first)
        if not found.grid_map.is_identity:
            text = _told(volume, first, found.grid_map)
            remedy = "write it on the grid of the first, or leave it out"
            raise VolumeError(volume.key, f"{volume.shown} {text}", remedy)


def _alignment(image: Volume, other: Volume) -> Alignment | None:
    """How the voxels of an image lie among those of another volume; None where one says no place."""
    here, there = world_affine(image), world_affine(other)
    if here is None or there is None:
        return None
    return align(here, image.extent, there, other.extent)


def _require_aligned(found: Alignment, volume: Volume, image: Volume) -> None:
    remedy = "correct its header, or resample it to the grid of the image"
    if found.voxels > TOLERANCE:
        text = (
            f"{volume.shown} lies up to {found.voxels:.3g} voxels ({found.millimeters:.3g} mm) off the "
            f"voxels of {image.shown}"
        )
        raise VolumeError(volume.key, text, remedy)
    if not found.touches:
        raise VolumeError(volume.key, f"{volume.shown} lies outside of {image.shown}", remedy)


def _require_placeable(label: Volume, grid_map: GridMap) -> None:
    if type(label) is not Volume:
        found = f"{label.shown} is a prediction on another grid"
        raise VolumeError(label.key, found, "predict this image")
    if label.channels > 1 and not grid_map.symmetry.is_identity:
        found = f"{label.shown} has {label.channels} channels along other axes than its image"
        raise VolumeError(label.key, found, "write it along the axes of the image")


def _told(volume: Volume, image: Volume, grid_map: GridMap) -> str:
    """How a volume lies otherwise than its image, in words that follow its name."""
    turn, covered = grid_map.symmetry, grid_map.holding(volume.box)
    words = [] if turn.is_identity else [f"has its axes otherwise than {image.shown} ({turn})"]
    if covered.shape != grid_map.shape:
        part = covered.pairs
        words.append(f"covers {part} of {image.shown} only")
    return " and ".join(words) or f"reaches past {image.shown}"
