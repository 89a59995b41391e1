"""DICOM images: the series in a folder, and one of them as an image."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from vcmodels.errors import VolumeError
from vcmodels.formats.base import ForeignImage, Header, Piece
from vcmodels.formats.dicom_frames import (
    FAULTY,
    DicomSlice,
    frames_of,
    is_localizer,
    read_facts,
)
from vcmodels.formats.dicom_stack import Stack, stack_frames
from vcmodels.formats.nifti import grid_of
from vcmodels.geometry.boxes import Box

NO_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC", "RWV")
"""Modalities of files that are no images of a scanner."""
_WHOLE = (np.int16, np.int32)


@dataclass(frozen=True)
class Series:
    """The files of one series in a folder."""

    uid: str
    number: int
    """Its place in the list, from 1."""
    files: tuple[tuple[Path, Dataset], ...]
    localizers: int
    """Files of it that are left out."""

    @property
    def text(self) -> str:
        """In a list: nothing that people have written, which may name a patient."""
        facts = self.files[0][1]
        frames = sum(int(one.get("NumberOfFrames") or 1) for _, one in self.files)
        shape = f"{facts.get('Rows')} x {facts.get('Columns')}"
        return f"#{self.number} {facts.get('Modality')} of {frames} slices, {shape} (UID ...{self.uid[-8:]})"


class DicomImage(ForeignImage):
    """A series, opened: all its files have said where they lie."""

    def __init__(self, series: Series, key: str) -> None:
        self._series, self._key = series, key
        try:
            every = [frame for path, facts in series.files for frame in frames_of(path, facts, key)]
        except FAULTY as error:
            name, uid = type(error).__name__, series.uid[-8:]
            found = f"an image of the series (UID ...{uid}) cannot be read ({name})"
            raise VolumeError(key, found, "copy the files again, or convert them") from error
        self._stack = stack_frames(every, key)

    @property
    def stack(self) -> Stack:
        """Its slices, in the order of z."""
        return self._stack

    @property
    def files(self) -> Sequence[Path]:
        return [path for path, _ in self._series.files]

    @property
    def header(self) -> Header:
        affine = self._stack.affine
        return Header(
            shape=self._stack.shape,
            dtype=self._dtype,
            grid=grid_of(affine),
            affine=affine,
            original={"modality": str(self._series.files[0][1].get("Modality", ""))},
            notes=tuple(self._notes()),
        )

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        return _dtype_of(self._stack.frames, self._key)

    def pieces(self) -> Iterator[Piece]:
        dtype, (_, height, width) = self._dtype, self._stack.shape
        for z, frame in enumerate(self._stack.frames):
            values = frame.read(self._key)
            if values.dtype.kind == "f" and dtype.kind != "f":
                values = np.rint(values)  # slope and intercept are whole numbers
            yield Box((z, 0, 0), (1, height, width)), values.astype(dtype)[None, None]

    def full_header(self) -> dict[str, Any]:
        """All tags of the first slice but its voxels, as DICOM JSON; they name the patient."""
        first = self._stack.frames[0].path
        return pydicom.dcmread(first, stop_before_pixels=True).to_json_dict(
            suppress_invalid_tags=True
        )

    def _notes(self) -> Iterator[str]:
        frames, series = self._stack.frames, self._series
        if series.localizers:
            yield f"localizers left out: {series.localizers}"
        if self._stack.copies:
            yield f"slices that are there twice, left out: {self._stack.copies}"
        if len(frames) == 1 and frames[0].thickness is None:
            yield "one slice that says no thickness: 1 mm is taken"
        if series.files[0][1].get("PhotometricInterpretation") == "MONOCHROME1":
            yield "large values are dark (MONOCHROME1); values are kept as they are"


def find_series(place: Path, key: str) -> list[Series]:
    """The series of images in a file or a folder, in the order of their number and UID.

    Raises:
        VolumeError: there is no image.
    """
    if found := series_in(place):
        return found
    remedy = "name images of a scanner, or the very file of a SEG or RTSTRUCT"
    raise VolumeError(key, f"{place} holds no DICOM image that can be read", remedy)


def series_in(place: Path, depth: int | None = None) -> list[Series]:
    """The same, which may be none.

    Args:
        place: a file or a folder.
        depth: how many folders deep is looked; all when None.
    """
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    for path in [place] if place.is_file() else dicom_files(place, depth):
        facts = read_facts(path)
        if facts is not None and "Rows" in facts and facts.get("Modality") not in NO_IMAGES:
            found.setdefault(str(facts.get("SeriesInstanceUID", "")), []).append((path, facts))
    ordered = sorted(found.items(), key=lambda item: (_number(item[1][0][1]), item[0]))
    return [_series(uid, n, files) for n, (uid, files) in enumerate(ordered, start=1)]


def _series(uid: str, number: int, files: list[tuple[Path, Dataset]]) -> Series:
    """Without its localizers, unless it has nothing else."""
    kept = [one for one in files if not is_localizer(one[1])] or files
    return Series(uid, number, tuple(kept), len(files) - len(kept))


def _number(facts: Dataset) -> int:
    return int(facts.get("SeriesNumber") or 0)


def choose_series(series: Sequence[Series], choice: str, place: str, key: str) -> Series:
    """The one that is chosen, or the only one that is no localizer.

    Args:
        series: all of a folder.
        choice: a number of the list, or the end of a UID; "" for none.
        place: the folder, for messages.
        key: for messages.

    Raises:
        VolumeError: none, or several, are meant; all are listed.
    """
    wanted = [one for one in series if choice == str(one.number)]
    if choice and not wanted:
        wanted = [one for one in series if one.uid.endswith(choice)]
    elif not choice:
        wanted = [one for one in series if not is_localizer(one.files[0][1])] or list(series)
    if len(wanted) == 1:
        return wanted[0]
    listed = "; ".join(one.text for one in series)
    meant = f"{len(series)} series in {place}"
    found = f'"#{choice}" is none, or not one, of the {meant}' if choice else f"{meant}"
    remedy = f"choose one by its number or the end of its UID, as {place}#1"
    raise VolumeError(key, f"{found}: {listed}", remedy)


def dicom_files(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """All files in a folder and the folders in it, sorted; hidden ones and links to folders are not.

    Args:
        folder: where to look.
        depth: how many folders deep; all when None.
    """
    for place, inner, names in os.walk(folder):
        level = len(Path(place).relative_to(folder).parts)
        inner[:] = sorted(n for n in inner if n[0] != "." and (depth is None or level < depth))
        yield from (Path(place, name) for name in sorted(names) if name[0] != ".")


def _dtype_of(frames: Sequence[DicomSlice], key: str) -> np.dtype[Any]:
    """The stored type where nothing is rescaled; int16 (or int32) for whole numbers, else float32.

    Where the stored bits would allow values that int16 cannot hold, as 16 bits and an intercept of
    -1024 do, all voxels are looked at.
    """
    if not any(frame.is_rescaled for frame in frames):
        return np.result_type(*{frame.stored for frame in frames})
    scales = (n for frame in frames for n in (frame.slope, frame.intercept))
    if not all(n.is_integer() for n in scales):
        return np.dtype(np.float32)
    for dtype in _WHOLE:
        if all(_fits(frame.limits, dtype) for frame in frames):
            return np.dtype(dtype)
        if dtype is np.int16 and all(_fits(_range(frame.read(key)), dtype) for frame in frames):
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _fits(limits: tuple[float, float], dtype: type[np.int16] | type[np.int32]) -> bool:
    return np.iinfo(dtype).min <= limits[0] and limits[1] <= np.iinfo(dtype).max


def _range(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    return float(values.min()), float(values.max())
