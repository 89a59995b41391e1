"""Labels in DICOM: SEG, whose voxels lie on a grid of their own, and RTSTRUCT, contours on an image.

Each segment, or region, has its number as its value. Where two overlap, one of them is chosen by
`#` and its number or name, and is a mask of 0 and 1 then. DICOM PS3.3 C.8.20 (SEG), C.8.8.6
(contours).
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from skimage.draw import polygon2mask

from vcmodels.errors import VolumeError
from vcmodels.formats.base import ForeignImage, Header, Piece
from vcmodels.formats.dicom_frames import FAULTY, read_facts
from vcmodels.formats.dicom_series import DicomImage, series_in
from vcmodels.formats.nifti import grid_of
from vcmodels.geometry.affine import Affine, flipped_world
from vcmodels.geometry.boxes import Box

_SLAB = 16
"""Slices that are read together."""
_OFF = 0.1
"""Part of the distance of slices by which a contour may lie off one."""
_DEPTH = 2
"""Folders below that of an RTSTRUCT, or the one above, in which its image is looked for."""
_MOST = np.iinfo(np.uint16).max


def open_labels(place: Path, choice: str, key: str) -> ForeignImage | None:
    """The labels in a file; None of a folder, and of a file that holds an image.

    Args:
        place: a file or a folder.
        choice: number or name of one segment; "" for all.
        key: for messages.

    Raises:
        VolumeError: there is no such segment, it holds fractions, or the image that contours lie on
            is not there.
    """
    facts = read_facts(place, ("Modality",)) if place.is_file() else None
    kind = {"SEG": SegLabels, "RTSTRUCT": ContourLabels}.get(
        facts.get("Modality", "") if facts else ""
    )
    return kind(place, choice, key) if kind else None


class _Labels(ForeignImage):
    """What both have: numbered and named segments, of which all or one is read."""

    def __init__(self, place: Path, choice: str, key: str) -> None:
        self._place, self._key = place, key
        with self._reading():
            self._load()
            self._names = dict(self._named())
        self._chosen = self._choose(choice)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FAULTY as error:
            found = f"{self._place} cannot be read ({type(error).__name__})"
            raise VolumeError(self._key, found, "copy the file again") from error

    @abstractmethod
    def _load(self) -> None:
        """Read the file."""

    @abstractmethod
    def _named(self) -> Iterator[tuple[int, str]]:
        """The number and name of each segment."""

    @abstractmethod
    def _grid(self) -> tuple[tuple[int, int, int], Affine]:
        """Shape (Z, Y, X) and affine, RAS+."""

    @abstractmethod
    def _notes(self) -> Iterator[str]:
        """What else a person should know."""

    @property
    def header(self) -> Header:
        shape, affine = self._grid()
        listed = ", ".join(f"{number} {name}" for number, name in self._names.items())
        chosen = "" if self._chosen is None else f"; {self._chosen} is read, as 1"
        return Header(
            shape=shape,
            dtype=self._dtype,
            grid=grid_of(affine),
            affine=affine,
            is_label=True,
            original={"segments": {str(number): name for number, name in self._names.items()}},
            notes=(f"segments: {listed}{chosen}", *self._notes()),
        )

    @property
    def _dtype(self) -> np.dtype[Any]:
        largest = max(self._names) if self._chosen is None else 1
        return np.min_scalar_type(largest)

    def _choose(self, choice: str) -> int | None:
        """The number of the segment that is meant; None for all."""
        if not self._names or max(self._names) > _MOST or min(self._names) < 1:
            found = f"{self._place} has segments numbered {sorted(self._names)}"
            raise VolumeError(self._key, found, f"number them from 1 to {_MOST}")
        if not choice:
            return None
        same = [n for n, name in self._names.items() if name.lower() == choice.lower()]
        meant = [n for n in self._names if str(n) == choice] or same
        if len(meant) == 1:
            return meant[0]
        listed = ", ".join(f"{n} {name}" for n, name in self._names.items())
        found = f'"{choice}" is no segment, or not one, of {listed}'
        raise VolumeError(self._key, found, f"name one, as {self._place}#{next(iter(self._names))}")

    def _overlapping(self, numbers: Sequence[int]) -> VolumeError:
        listed = " and ".join(f"{n} {self._names[n]}" for n in numbers) or "segments"
        found = f"in {self._place} {listed} overlap, and a voxel can have one value only"
        return VolumeError(
            self._key, found, f"read one alone, as {self._place}#{max(numbers or [1])}"
        )


class SegLabels(_Labels):
    """A SEG: voxels. Slices without any are often left out of the file, and are 0."""

    @property
    def files(self) -> Sequence[Path]:
        return [self._place]

    def _load(self) -> None:
        self._seg = self._read()
        if self._seg.segmentation_type.value == "FRACTIONAL":
            found = f"{self._place} holds fractions of voxels"
            raise VolumeError(self._key, found, "convert it to a BINARY SEG")

        self._geometry = self._placed()

    def _read(self) -> Any:  # noqa: ANN401 - of highdicom
        from highdicom.seg import segread  # late: takes a second, and an image does not need it

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote names
            return segread(self._place)

    def _named(self) -> Iterator[tuple[int, str]]:
        for one in self._seg.SegmentSequence:
            yield int(one.SegmentNumber), str(one.SegmentLabel)

    def _placed(self) -> tuple[tuple[int, int, int], Affine, bool]:
        """Shape, affine (RAS+), and whether highdicom counts the slices from the other end."""
        found = self._seg.get_volume_geometry(allow_missing_positions=True)
        if found is None:
            text = f"the slices of {self._place} are no even grid"
            raise VolumeError(self._key, text, "convert it to NIfTI or NRRD")
        depth, height, width = found.spatial_shape
        affine = np.asarray(found.affine)[:, [2, 1, 0, 3]]  # of (slice, row, column)
        is_turned = np.linalg.det(affine[:3, :3]) < 0  # images are sorted along the other normal
        if is_turned:
            affine[:, 3] += (depth - 1) * affine[:, 2]
            affine[:, 2] *= -1
        return (depth, height, width), flipped_world(affine), bool(is_turned)

    def _grid(self) -> tuple[tuple[int, int, int], Affine]:
        shape, affine, _ = self._geometry
        return shape, affine

    def _notes(self) -> Iterator[str]:
        return iter(())

    def pieces(self) -> Iterator[Piece]:
        (depth, height, width), _, is_turned = self._geometry
        seg = self._read()  # again: what highdicom has open belongs to one thread
        for start in range(0, depth, _SLAB):
            end = min(start + _SLAB, depth)
            values = self._slices(seg, start, end)
            low = depth - end if is_turned else start
            values = values[::-1] if is_turned else values
            yield Box((low, 0, 0), (end - start, height, width)), values[None]

    def _slices(self, seg: Any, start: int, end: int) -> np.ndarray[Any, Any]:  # noqa: ANN401
        numbers = [*self._names] if self._chosen is None else [self._chosen]
        try:
            found = seg.get_volume(
                slice_start=start,
                slice_end=end,
                as_indices=True,
                segment_numbers=numbers,
                combine_segments=True,
                relabel=self._chosen is not None,
                allow_missing_positions=True,
                dtype=self._dtype,
            )
        except RuntimeError as error:
            if "overlap" in str(error):
                raise self._overlapping(()) from error
            raise VolumeError(self._key, f"{self._place}: {error}", "convert it to NRRD") from error
        return np.asarray(found.array)


class ContourLabels(_Labels):
    """An RTSTRUCT: closed contours in the slices of an image, which lies in the same folder or above.

    A voxel belongs to a region if its centre lies in an odd number of its contours, so that a
    contour in another one is a hole.
    """

    @property
    def files(self) -> Sequence[Path]:
        return [self._place, *self._image.files]

    def _load(self) -> None:
        self._facts = pydicom.dcmread(self._place)
        self._skipped = 0
        self._image = self._referenced()

    def _named(self) -> Iterator[tuple[int, str]]:
        for one in self._facts.StructureSetROISequence:
            yield int(one.ROINumber), str(one.ROIName)

    def _grid(self) -> tuple[tuple[int, int, int], Affine]:
        return self._image.stack.shape, self._image.stack.affine

    def _notes(self) -> Iterator[str]:
        list(self._polygons)
        if self._skipped:
            yield f"contours that are points or open lines, left out: {self._skipped}"

    def _referenced(self) -> DicomImage:
        """The image whose slices the contours were drawn in."""
        uids = {
            str(series.SeriesInstanceUID)
            for frame in self._facts.get("ReferencedFrameOfReferenceSequence", ())
            for study in frame.get("RTReferencedStudySequence", ())
            for series in study.get("RTReferencedSeriesSequence", ())
        }
        for folder in self._place.absolute().parents[:2]:
            found = [one for one in series_in(folder, _DEPTH) if one.uid in uids]
            if len(found) == 1:
                return DicomImage(found[0], self._key)
        text = f"the image that {self._place} was drawn on is neither next to it nor in the folder above"
        raise VolumeError(self._key, text, "put the files of that series there")

    @cached_property
    def _polygons(self) -> Mapping[int, Mapping[int, list[np.ndarray[Any, Any]]]]:
        """(n, 2) corners (y, x) in voxels, by slice and by number of the regions that are read."""
        with self._reading():
            return self._drawn()

    def _drawn(self) -> Mapping[int, Mapping[int, list[np.ndarray[Any, Any]]]]:
        found: dict[int, dict[int, list[np.ndarray[Any, Any]]]] = {}
        to_index = np.asarray(np.linalg.inv(flipped_world(self._image.stack.affine)), np.float64)
        for region in self._facts.ROIContourSequence:
            number = int(region.ReferencedROINumber)
            if self._chosen not in (None, number):
                continue
            if number not in self._names:
                text = f"{self._place} has contours of a region {number}, which it does not name"
                raise VolumeError(self._key, text, "export it again")
            for contour in region.get("ContourSequence") or ():
                corners = self._corners(contour, to_index)
                if corners is None:
                    self._skipped += 1
                    continue
                z = self._slice_of(corners, number)
                found.setdefault(z, {}).setdefault(number, []).append(corners[:, 1::-1])
        return found

    def _corners(self, contour: Dataset, to_index: Affine) -> np.ndarray[Any, Any] | None:
        """(n, 3) x, y, z in voxels; None of what encloses nothing."""
        corners = np.array(contour.ContourData, np.float64).reshape(-1, 3)
        if not str(contour.ContourGeometricType).startswith("CLOSED") or len(corners) < 3:
            return None
        return corners @ to_index[:3, :3].T + to_index[:3, 3]

    def _slice_of(self, corners: np.ndarray[Any, Any], number: int) -> int:
        """The slice that a contour lies in."""
        z = round(float(corners[:, 2].mean()))
        off = float(np.abs(corners[:, 2] - z).max())
        if off <= _OFF and 0 <= z < self._image.stack.shape[0]:
            return z
        found = f"a contour of {number} {self._names[number]} lies {off:.2g} slices off slice {z} of the image"
        raise VolumeError(self._key, found, "export it drawn on the slices of this image")

    def pieces(self) -> Iterator[Piece]:
        _, height, width = self._image.stack.shape
        for z in range(self._image.stack.shape[0]):
            values = self._painted(self._polygons.get(z, {}), (height, width))
            yield Box((z, 0, 0), (1, height, width)), values[None, None]

    def _painted(
        self, regions: Mapping[int, Sequence[np.ndarray[Any, Any]]], shape: tuple[int, int]
    ) -> np.ndarray[Any, Any]:
        """The regions of a slice: (Y, X)."""
        values = np.zeros(shape, self._dtype)
        for number, polygons in regions.items():
            mask = np.logical_xor.reduce([polygon2mask(shape, one) for one in polygons])
            if values[mask].any():
                raise self._overlapping((int(values[mask].max()), number))
            values[mask] = number if self._chosen is None else 1
        return values
