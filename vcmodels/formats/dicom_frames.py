"""What DICOM files say of the images in them, and their voxels, through pydicom.

Only tags that place and scale an image are read: never a name, a number or a date of a patient.
DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups of multi-frame images), C.11.1
(rescaling).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from vcmodels.errors import VolumeError

TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
FAULTY = (
    *(ValueError, RuntimeError, NotImplementedError),
    *(AttributeError, KeyError, IndexError, TypeError, EOFError, OSError),
)
"""What pydicom 3, its decoders and highdicom raise for a file that is cut or damaged."""
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class DicomSlice:
    """One slice: a file, or a frame of a file of several."""

    path: Path
    index: int | None
    """Of the frame; None of a file that holds one."""
    uid: str
    """Of the instance."""
    position: Vector
    """Of the centre of the first voxel, mm, LPS+."""
    along_x: Vector
    """Direction in which the column number grows, of length 1."""
    along_y: Vector
    """Direction in which the row number grows."""
    shape: tuple[int, int]
    """(Y, X)."""
    spacing: tuple[float, float]
    """Along (y, x), mm."""
    thickness: float | None
    """What the file says of the distance of slices: used where there is one slice only."""
    slope: float
    intercept: float
    stored: np.dtype[Any]
    """Of the values before rescaling."""
    bits: int

    @property
    def limits(self) -> tuple[float, float]:
        """Between which the rescaled values lie, by the number of stored bits."""
        signed = self.stored.kind == "i"
        low = -(2 ** (self.bits - 1)) if signed else 0
        high = 2 ** (self.bits - signed) - 1
        ends = sorted(self.slope * n + self.intercept for n in (low, high))
        return ends[0], ends[1]

    @property
    def is_rescaled(self) -> bool:
        """Whether what is stored is not what it means."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def read(self, key: str) -> np.ndarray[Any, Any]:
        """(Y, X): the stored values, or rescaled ones in float64.

        Raises:
            VolumeError: the file is cut or damaged.
        """
        try:
            stored = pixel_array(self.path, index=self.index, raw=True)
        except FAULTY as error:
            found = f"a slice at {shown(self.position)} cannot be decoded ({type(error).__name__})"
            raise VolumeError(key, found, "copy the files again") from error
        return stored * self.slope + self.intercept if self.is_rescaled else stored


def read_facts(path: Path, tags: Sequence[str] = TAGS) -> Dataset | None:
    """Some tags of a file; None of one that is no DICOM, or damaged before the voxels."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except (InvalidDicomError, *FAULTY):
        return None


def is_localizer(facts: Dataset) -> bool:
    """Whether it is an overview that the scan was planned on."""
    return "LOCALIZER" in (facts.get("ImageType") or ())


def frames_of(path: Path, facts: Dataset, key: str) -> Iterator[DicomSlice]:
    """The slices of a file.

    Raises:
        VolumeError: it is in colour, of a kind that is not read, says no place, or is compressed in
            a way for which a package is missing.
    """
    _require_grey(facts, key)
    _require_decoder(facts, key)
    count = int(facts.get("NumberOfFrames") or 1)
    per_frame = facts.get("PerFrameFunctionalGroupsSequence")
    if count > 1 and (per_frame is None or len(per_frame) != count):
        found = f"a file of {count} frames does not say where each of them lies"
        raise VolumeError(key, found, "convert it to NIfTI or TIFF")
    if per_frame is None:
        yield _frame(path, None, facts, (facts,), key)
        return
    shared = facts.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for n, own in enumerate(per_frame):
        yield _frame(path, n, facts, (own, shared[0]), key)


_NEEDED = ("PixelRepresentation", "BitsAllocated", "Rows", "Columns")
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}


def _said(name: str, places: Sequence[Dataset]) -> Any:  # noqa: ANN401 - as the tag has it
    """A tag of a slice: its own, or in the functional group for it; None where it is empty."""
    for place in places:
        for where in (place, *(place.get(_GROUPS[name]) or ())):
            value = where.get(name)
            if value is not None and value != "":
                return value
    return None


def _frame(
    path: Path, index: int | None, facts: Dataset, places: Sequence[Dataset], key: str
) -> DicomSlice:
    position = _numbers("ImagePositionPatient", 3, places, key)
    axes = _numbers("ImageOrientationPatient", 6, places, key)
    spacing = _numbers("PixelSpacing", 2, places, key)
    if min(spacing) <= 0:
        raise VolumeError(key, f"PixelSpacing is {shown(spacing)}", "correct the files")
    thickness = _said("SpacingBetweenSlices", places) or _said("SliceThickness", places)
    slope, intercept = _said("RescaleSlope", places), _said("RescaleIntercept", places)
    kind, bits = "ui"[int(facts.PixelRepresentation)], int(facts.BitsAllocated)
    return DicomSlice(
        path=path,
        index=index,
        uid=str(facts.get("SOPInstanceUID", "")),
        position=(position[0], position[1], position[2]),
        along_x=(axes[0], axes[1], axes[2]),
        along_y=(axes[3], axes[4], axes[5]),
        shape=(int(facts.Rows), int(facts.Columns)),
        spacing=(spacing[0], spacing[1]),
        thickness=float(thickness) if thickness else None,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        stored=np.dtype(f"{kind}{max(bits // 8, 1)}"),
        bits=int(facts.get("BitsStored") or bits),
    )


def _numbers(name: str, count: int, places: Sequence[Dataset], key: str) -> list[float]:
    value = _said(name, places)
    found = [] if value is None else [float(n) for n in value]
    if len(found) != count or not np.isfinite(found).all():
        text = f"an image has no {name}, so where its voxels lie is not known"
        raise VolumeError(key, text, "convert it to NIfTI or TIFF, or choose another series")
    return found


def _require_grey(facts: Dataset, key: str) -> None:
    """Refuse colours, mosaics, tables of values, and what are no whole numbers."""
    problem = ""
    if int(facts.get("SamplesPerPixel") or 1) != 1 or "PALETTE" in str(
        facts.get("PhotometricInterpretation")
    ):
        problem = f"the image is in colour ({facts.get('PhotometricInterpretation')})"
    elif "MOSAIC" in (facts.get("ImageType") or ()):
        problem = "the slices are put next to each other in one picture (MOSAIC)"
    elif facts.get("ModalityLUTSequence"):
        problem = "the values go through a table (ModalityLUTSequence)"
    elif any(facts.get(name) is None for name in _NEEDED):
        problem = f"a file of modality {facts.get('Modality')} holds no whole numbers as voxels"
    if problem:
        raise VolumeError(key, problem, "convert it to NIfTI, as with dcm2niix")


def _require_decoder(facts: Dataset, key: str) -> None:
    """Refuse a compression that no installed package can undo, and name one that can."""
    syntax = facts.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or not syntax.is_encapsulated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        found = f"the images are compressed as {syntax.name}, which pydicom cannot undo"
        raise VolumeError(key, found, "decompress them, as with gdcmconv --raw") from error
    if not decoder.is_available:
        found = f"the images are compressed as {syntax.name}, for which a package is missing"
        wanted = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or python-gdcm"
        raise VolumeError(key, found, wanted)


def shown(values: Sequence[float]) -> str:
    """Numbers in a message."""
    return f"({', '.join(f'{n:g}' for n in values)})"
