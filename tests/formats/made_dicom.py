"""Made DICOM series: any grid, any files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498."
SERIES, STUDY, FRAME_OF_REFERENCE = f"{ROOT}1.7", f"{ROOT}2", f"{ROOT}3"
ALONG_X, ALONG_Y = (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)
"""Sagittal, so that no axis is where one may expect it."""
PATIENT = "Secret^Name"


def slice_of(
    values: np.ndarray,
    position: Sequence[float],
    *,
    uid: str,
    series: str = SERIES,
    slope: float | None = 2,
    intercept: float | None = -1024,
    spacing: tuple[float, float] = (0.5, 0.75),
    along: tuple[Sequence[float], Sequence[float]] = (ALONG_X, ALONG_Y),
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
) -> Dataset:
    """A CT slice of (Y, X) whole numbers at a place, LPS+ mm."""
    made = _image(values, uid, series, CTImageStorage)
    made.ImageType = list(image_type)
    made.PixelSpacing = list(spacing)
    made.ImagePositionPatient = [f"{n:.6f}" for n in position]
    made.ImageOrientationPatient = [*along[0], *along[1]]
    made.SliceThickness = 9
    if slope is not None:
        made.RescaleSlope, made.RescaleIntercept = slope, intercept
    return made


def _image(values: np.ndarray, uid: str, series: str, kind: UID) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = kind
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid
    made.SeriesInstanceUID, made.StudyInstanceUID = series, STUDY
    made.FrameOfReferenceUID = FRAME_OF_REFERENCE
    made.Modality, made.PatientName, made.PatientID = "CT", PATIENT, "X"
    made.PatientBirthDate = made.PatientSex = made.StudyDate = made.StudyTime = ""
    made.StudyID = made.AccessionNumber = made.ReferringPhysicianName = ""
    made.SeriesNumber, made.InstanceNumber, made.Manufacturer = 1, 1, "made"
    made.PositionReferenceIndicator = ""
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = values.shape[-2:]
    made.BitsAllocated = values.dtype.itemsize * 8
    made.BitsStored, made.HighBit = made.BitsAllocated, made.BitsAllocated - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = np.ascontiguousarray(values).tobytes()
    return made


def normal_of(along: tuple[Sequence[float], Sequence[float]] = (ALONG_X, ALONG_Y)) -> np.ndarray:
    return np.cross(*along)


def positions(count: int, step: float = 1.25, start: Sequence[float] = (-40.0, 12.5, 30.0)):
    """Places of slices, in the order of z."""
    return [np.array(start) + n * step * normal_of() for n in range(count)]


def series_of(values: np.ndarray, **kept: object) -> list[Dataset]:
    """(Z, Y, X) as one slice each, in the order of z."""
    places = positions(len(values))
    return [
        slice_of(one, place, uid=f"{kept.get('series', SERIES)}.{n + 1}", **kept)
        for n, (one, place) in enumerate(zip(values, places, strict=True))
    ]


def save(datasets: Sequence[Dataset], folder: Path, names: Sequence[str] | None = None) -> Path:
    """Write files; their names say nothing of their order when none are given."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, one in enumerate(datasets):
        name = names[n] if names else f"{(n * 37 + 11) % 101:03d}-{n}.dcm"
        one.save_as(folder / name, enforce_file_format=True)
    return folder


def enhanced(values: np.ndarray, order: Sequence[int]) -> Dataset:
    """(Z, Y, X) as one file of many frames, stored in an order."""
    made = _image(values[list(order)], f"{SERIES}.99", SERIES, EnhancedCTImageStorage)
    made.NumberOfFrames, made.ImageType = len(values), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 9
    plane.ImageOrientationPatient = [*ALONG_X, *ALONG_Y]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        Items([measures]),
        Items([plane]),
    )
    made.SharedFunctionalGroupsSequence = Items([shared])
    places, groups = positions(len(values)), []
    for n in order:
        own, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{c:.6f}" for c in places[n]]
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = n + 1, -5, "HU"
        own.PlanePositionSequence = Items([place])
        own.PixelValueTransformationSequence = Items([scale])
        groups.append(own)
    made.PerFrameFunctionalGroupsSequence = Items(groups)
    return made


def numbers(shape: tuple[int, int, int], dtype: str = "int16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(dtype)


def read_back(path: Path) -> Dataset:
    return pydicom.dcmread(path)
