"""TIFF, OME-TIFF, ImageJ stacks, and folders of slices, read by tifffile, one plane at a time."""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.arrays import array_pieces, settled_axes, shape_of, told_grid
from vcmodels.formats.base import (
    ForeignImage,
    Format,
    Header,
    Piece,
    library,
    refuse_inside,
    stored_type,
)
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import list_some
from vcmodels.volumes import Grid
from vcmodels.volumes.location import split_inside
from vcmodels.volumes.spacing import in_unit, is_length, unit_name

_MOST_LISTED = 8
_DAMAGE = (
    *(OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error, zlib.error),
    ElementTree.ParseError,
)
"""What tifffile, its codecs and the XML of OME raise for files that are cut or damaged, besides its own error."""
_COLOURS = "its samples of colour are read as channels"


class Tiff(Format):
    name = "tiff"
    endings = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".btf")

    def recognises(self, location: str) -> bool:
        """A file by its name, or a folder with such files."""
        folder = Path(location)
        return bool(slices_in(folder)) if folder.is_dir() else super().recognises(location)

    def open(self, location: str, key: str) -> ForeignImage:
        """A series of a file (`file.tif#1` chooses it), or a folder of slices in natural order."""
        folder = Path(split_inside(location)[0])
        if not folder.is_dir():
            return TiffSeries(location, key)
        refuse_inside(location, key)
        return TiffSlices(folder, key)


class TiffSeries(ForeignImage):
    """One series of a file: in OME-TIFF it may be spread over several files."""

    def __init__(self, location: str, key: str) -> None:
        self._tifffile = library("tifffile", location, key)
        self._location, self._key = location, key
        self._file, inside = split_inside(location)
        with self._opened() as tif:
            self._number = self._chosen(tif, inside)
            series = tif.series[self._number]
            self._files = _files_of(series, self._file)
            self._header = self._described(tif, series)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return self._files

    def pieces(self) -> Iterator[Piece]:
        """Planes in the order of z; what is stored in one run through a memory map."""
        dtype = self._header.dtype
        with self._opened() as tif:
            series = tif.series[self._number]
            if series.dataoffset is not None and len(self._files) == 1:
                stored = self._tifffile.memmap(self._file, series=self._number, mode="r")
                yield from array_pieces(stored, self._letters, dtype)
                return
            depth, height, width = self._header.shape[-3:]
            for z in range(depth):
                plane = _planes(series, self._letters, z)[:, None]
                box = Box((z, 0, 0), (1, height, width))
                yield box, plane.astype(dtype, copy=False)

    def _chosen(self, tif: Any, inside: str) -> int:  # noqa: ANN401 - of tifffile
        listed = list_some(
            (f"{self._file}#{n} {one.shape} {one.axes}" for n, one in enumerate(tif.series)),
            _MOST_LISTED,
        )
        if inside:
            if inside.isdecimal() and int(inside) < len(tif.series):
                return int(inside)
            raise VolumeError(self._key, f"{self._location} is no series", f"give one of {listed}")
        if len(tif.series) != 1:
            found = f"{self._file} holds {len(tif.series)} series"
            raise VolumeError(self._key, found, f"give one of {listed}")
        return 0

    def _described(self, tif: Any, series: Any) -> Header:  # noqa: ANN401
        letters, notes = _letters(series.axes, series.shape)
        self._letters = settled_axes(letters, series.shape, self._location, self._key)
        require_codec(self._tifffile, series.keyframe, self._location, self._key)
        shape = shape_of(dict(zip(self._letters, series.shape, strict=True)))
        grid, channels = _metadata(tif, self._number, shape[-3])
        dtype = stored_type(series.dtype, self._location, self._key)
        return Header(shape, dtype, grid, channels=channels, notes=(*notes, *grid.notes))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with (
            reading(self._tifffile, self._file, self._key),
            self._tifffile.TiffFile(self._file) as tif,
        ):
            yield tif


class TiffSlices(ForeignImage):
    """A folder of TIFFs of one plane and one shape: z is their order, numbers in names as numbers."""

    def __init__(self, folder: Path, key: str) -> None:
        self._tifffile, self._key = library("tifffile", str(folder), key), key
        self._files = slices_in(folder)
        first = self._look(self._files[0])
        for path in self._files[1:]:
            if (other := self._look(path)) != first:
                found = f"{path} holds {other[0]} {other[1]}, {self._files[0].name} {first[0]} {first[1]}"
                raise VolumeError(key, found, "give a folder of slices of one shape and type")
        shape, dtype, letters = first
        notes = [_COLOURS] if "s" in letters else []
        self._letters = settled_axes(letters.replace("s", "c"), shape, str(folder), key)
        height, width = (shape[self._letters.index(a)] for a in "yx")
        lead = [shape[self._letters.index("c")]] if "c" in self._letters else []
        self._header = Header(
            shape=(*lead, len(self._files), height, width),
            dtype=stored_type(dtype, str(folder), key),
            grid=Grid(),
            notes=(*notes, *_gaps(self._files)),
        )

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return self._files

    def pieces(self) -> Iterator[Piece]:
        """One slice after the other."""
        kept = [a for a in self._letters if a != "-"]
        order = [kept.index(a) for a in "cyx" if a in kept]
        for z, path in enumerate(self._files):
            with reading(self._tifffile, str(path), self._key):
                stored = self._tifffile.imread(path)
            where = tuple(0 if a == "-" else slice(None) for a in self._letters)
            plane = stored[where].transpose(order).reshape(-1, 1, *self._header.shape[-2:])
            yield (
                Box((z, 0, 0), (1, *plane.shape[-2:])),
                plane.astype(self._header.dtype, copy=False),
            )

    def _look(self, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], str]:
        """Shape, type and axes of a slice; its voxels are not read."""
        tifffile = self._tifffile
        with reading(tifffile, str(path), self._key), tifffile.TiffFile(path) as tif:
            if len(tif.pages) != 1:
                remedy = "give one stack, or a pattern such as 'stacks/*.tif'"
                raise VolumeError(self._key, f"{path} holds {len(tif.pages)} planes", remedy)
            page = tif.pages[0]
            require_codec(tifffile, page, str(path), self._key)
            return page.shape, page.dtype, page.axes.lower()


def slices_in(folder: Path) -> list[Path]:
    """The visible TIFFs of a folder, 10 behind 9."""
    found = [p for p in folder.iterdir() if p.name.lower().endswith(Tiff.endings)]
    return sorted((p for p in found if not p.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _gaps(files: Sequence[Path]) -> Iterator[str]:
    """A note where the last numbers of the names do not go on evenly."""
    numbers = [re.findall(r"\d+", path.stem) for path in files]
    if len(files) < 3 or not all(numbers):
        return
    steps = [int(b[-1]) - int(a[-1]) for a, b in pairwise(numbers)]
    usual = sorted(steps)[len(steps) // 2]
    odd = [n for n, step in enumerate(steps) if step != usual]
    if odd:
        first, second = files[odd[0]].name, files[odd[0] + 1].name
        yield f"slices follow each other unevenly in {len(odd)} places, first {first}, {second}"


def require_codec(tifffile: Any, page: Any, location: str, key: str) -> None:  # noqa: ANN401
    """Refuse a compression that needs a package which is not there.

    Raises:
        VolumeError: naming the package.
    """
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        name = getattr(page.compression, "name", page.compression)
        found = f"{location} is compressed as {name}, which tifffile reads with imagecodecs only"
        raise VolumeError(key, found, "pip install imagecodecs") from error


@contextmanager
def reading(tifffile: Any, place: str, key: str) -> Iterator[None]:  # noqa: ANN401
    """Say in one line that a file is damaged."""
    try:
        yield
    except (tifffile.TiffFileError, *_DAMAGE) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise VolumeError(
            key, f"{place} cannot be read ({said})", "it is cut or damaged: restore it"
        ) from error


def _letters(axes: str, shape: Sequence[int]) -> tuple[str, list[str]]:
    """The axes of a series by our letters, and what may surprise in that.

    TIFF does not name the axis of its pages: tifffile calls it I or Q then, and many stacks call z
    a time.
    """
    long = [a for a, n in zip(axes, shape, strict=True) if n > 1]
    letters, notes = axes, []
    if "Z" not in long:
        other = next((a for a in "IQT" if a in long), None)
        if other is not None:
            letters = letters.replace("Z", "_").replace(other, "Z")
            if other == "T":
                notes.append("its axis of times is read as z")
    if "C" not in long and "S" in long:
        letters = letters.replace("C", "_").replace("S", "C")
        notes.append(_COLOURS)
    elif "C" not in long and "T" in long and "T" in letters:
        letters = letters.replace("C", "_").replace("T", "C")
        notes.append("its axis of times is read as channels")
    return letters.lower(), notes


def _planes(series: Any, letters: str, z: int) -> np.ndarray:  # noqa: ANN401 - of tifffile
    """(C, Y, X) at a z; each page that holds a part of it is decoded once."""
    inside = letters[len(letters) - len(series.keyframe.shape) :]
    lead = series.shape[: len(letters) - len(inside)]
    sizes = dict(zip(letters, series.shape, strict=True))
    decoded: dict[int, np.ndarray] = {}
    found = []
    for channel in range(sizes.get("c", 1)):
        at = {"z": z, "c": channel}
        number = 0
        for letter, length in zip(letters, lead, strict=False):
            number = number * length + at.get(letter, 0)
        if number not in decoded:
            page = series.pages[number]
            empty = np.zeros(series.keyframe.shape, series.dtype)
            decoded[number] = empty if page is None else page.asarray()
        where = tuple(slice(None) if a in "yx" else at.get(a, 0) for a in inside)
        found.append(decoded[number][where])
    return np.stack(found)


def _files_of(series: Any, file: str) -> list[Path]:  # noqa: ANN401
    """The files of a series: OME-TIFF may name others."""
    pages = series.pages if series.is_multifile else ()
    paths = {Path(page.parent.filehandle.path) for page in pages if page is not None}
    return [Path(file), *sorted(paths - {Path(file)})]


def _metadata(tif: Any, number: int, depth: int) -> tuple[Grid, tuple[str, ...]]:  # noqa: ANN401
    """Voxel size and names of channels, as OME or ImageJ say them.

    The resolution of a plain TIFF is that of a screen or a printer, and not asked.
    """
    if tif.is_ome:
        return _ome(tif.ome_metadata, number, depth)
    if tif.is_imagej:
        return _imagej(tif.imagej_metadata, tif.pages[0].tags, depth), ()
    return Grid(), ()


def _ome(text: str, number: int, depth: int) -> tuple[Grid, tuple[str, ...]]:
    """Of the image of this number in OME-XML (schema 2016-06)."""
    root = ElementTree.fromstring(text)
    pixels = root.findall(".//{*}Image/{*}Pixels")
    if number >= len(pixels):
        return Grid(), ()
    one = pixels[number]
    names = tuple(c.get("Name", "") for c in one.findall("{*}Channel"))
    sizes = {a: one.get(f"PhysicalSize{a.upper()}") for a in "zyx"}
    units = {a: one.get(f"PhysicalSize{a.upper()}Unit", "µm") for a in "zyx"}
    grid = _grid_of({a: float(n) for a, n in sizes.items() if n}, units, depth)
    return grid, names if any(names) else ()


def _imagej(told: Mapping[str, Any], tags: Any, depth: int) -> Grid:  # noqa: ANN401
    """The unit and the distance of slices from ImageJ's text, pixels from the tags of resolution."""
    unit = str(told.get("unit", "")).replace("\\u00B5", "µ")
    sizes = {"z": float(told["spacing"])} if "spacing" in told else {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        count, units = tags[tag].value if tag in tags else (0, 1)
        if count:
            sizes[axis] = units / count
    return _grid_of(sizes, dict.fromkeys("zyx", unit), depth) if unit_name(unit) else Grid()


def _grid_of(sizes: Mapping[str, float], units: Mapping[str, str], depth: int) -> Grid:
    """The grid of lengths by letter, in the unit of x; of one plane, z is as long as y."""
    if depth == 1 and "y" in sizes:
        sizes, units = {"z": sizes["y"], **sizes}, {**units, "z": units.get("z") or units["y"]}
    if len(sizes) < 3:
        told = ", ".join(f"{a} {n:g}" for a, n in sizes.items())
        notes = (f'it says a voxel size along {told} only; give "spacing"',) if sizes else ()
        return Grid(notes=notes)
    names = {a: unit_name(units[a]) for a in "zyx"}
    lengths = [sizes[a] for a in "zyx"]
    if len({*names.values()}) > 1 and all(map(is_length, names.values())):
        lengths = [
            in_unit((n, n, n), names[a], names["x"])[0] for n, a in zip(lengths, "zyx", strict=True)
        ]
    return told_grid("its metadata", lengths, None, names["x"])
