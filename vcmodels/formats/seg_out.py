"""DICOM SEG through highdicom: classes as segments on the slices of the series that was predicted.

It names the patient as the series does. All slices are in memory, about three bytes a voxel.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes

import vcmodels
from vcmodels.errors import OutputError
from vcmodels.formats.dicom_frames import DicomSlice
from vcmodels.formats.dicom_series import DicomImage
from vcmodels.formats.outgoing import Exporter, Outgoing, refuse_channels, slabs_of
from vcmodels.reporting import Advance

_MOST = 255
_MAKER = "vcmodels"


class SegExporter(Exporter):
    """Whole numbers: each value above 0 is a segment, numbered from 1 in the order of values."""

    name = "dicom-seg"
    dtypes = ("uint8", "uint16")
    is_for_classes = True

    def check(self, image: Outgoing, key: str) -> None:
        refuse_channels(image, key, "a SEG")
        if not image.is_label:
            found = f"{image.name} holds values, and a SEG holds classes"
            raise OutputError(
                key, found, "export a mask or classes, as a step of postprocess makes"
            )
        if not isinstance(image.like, DicomImage):
            found = "a SEG lies on the slices of a DICOM series, and none is named"
            raise OutputError(key, found, "name its folder: --like FOLDER")

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        series = image.like
        assert isinstance(series, DicomImage)
        voxels = np.concatenate([slab[0] for slab in slabs_of(image, path.parent, advance)])
        values = [int(value) for value in np.unique(voxels) if value]
        if not values or len(values) > _MOST:
            found = f"{image.name} has {len(values)} values above 0, and a SEG has 1 to {_MOST}"
            raise OutputError(str(path), found, "export what is not empty, and holds classes")
        number_of = np.zeros(values[-1] + 1, np.uint8)
        number_of[values] = np.arange(1, len(values) + 1)
        numbered = number_of[voxels]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the name of the patient
            try:
                made = _segmentation(numbered, _described(image.name, values), series)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                lacking = f" {error.name}" if isinstance(error, AttributeError) else ""
                found = f"the series does not say what a SEG must ({type(error).__name__}{lacking})"
                raise OutputError(image.name, found, "export a .nii.gz") from error
            made.save_as(path)


def _segmentation(
    numbered: np.ndarray[Any, Any], described: Sequence[Any], series: DicomImage
) -> hd.seg.Segmentation:
    """(Z, Y, X) numbers of segments, on the slices of a series."""
    frames = series.stack.frames
    sources, order = _sources(frames)
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=numbered[order],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=vcmodels.__version__,
        device_serial_number="0",
    )


def _sources(frames: Sequence[DicomSlice]) -> tuple[Sequence[pydicom.Dataset], list[int]]:
    """The headers of the slices' files, each once, and the slices in the order in which they hold them."""
    order = sorted(range(len(frames)), key=lambda n: frames[n].index or 0)
    paths = dict.fromkeys(frames[n].path for n in order)
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    for one in sources:
        if not one.get("SpecificCharacterSet", "?"):
            del one.SpecificCharacterSet  # an empty one means none, which highdicom does not take
    return sources, order


def _described(name: str, values: Sequence[int]) -> list[hd.seg.SegmentDescription]:
    made_by = hd.AlgorithmIdentificationSequence(
        name=_MAKER, version=vcmodels.__version__, family=codes.DCM.ArtificialIntelligence
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name if len(values) == 1 else f"{name} {value}",
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
        )
        for number, value in enumerate(values, start=1)
    ]
