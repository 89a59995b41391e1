"""From a result, or any volume, to a file of another format on the grid of the original."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.data.placing import TOLERANCE
from vcmodels.data.predictions import prediction_notes
from vcmodels.errors import OutputError, VolumeError
from vcmodels.formats import format_of, location_name
from vcmodels.formats.base import ForeignImage
from vcmodels.formats.exporters import exporter_of
from vcmodels.formats.imported import open_located
from vcmodels.formats.meaning import FileValues, given_values, stored_meaning
from vcmodels.formats.outgoing import Exporter, Outgoing
from vcmodels.geometry.affine import Affine
from vcmodels.geometry.alignment import align
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.reporting import Reporter
from vcmodels.results import is_complete, our_attributes
from vcmodels.volumes import Grid, Volume, expand_location, is_remote, open_volume, place_at
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.places import obstacle, refuse_in_store, whole_file
from vcmodels.volumes.world import source_note, world_affine
from vcmodels.workflows.step_work import images_in

OUTPUT, LIKE, TARGET, SOURCE = "-o", "--like", "--target", "SOURCE"
PROBABILITY = 0.5
"""From which on a voxel is of a segment, in formats that hold classes only."""


@dataclass(frozen=True)
class ExportOptions:
    """What a file shall have, besides the voxels."""

    like: str | None = None
    """The original, or another file, group or folder on the same grid."""
    dtype: np.dtype[Any] | None = None
    """Of the voxels; by the rule of `given_values` when None."""
    threshold: float | None = None
    """Write a mask of the voxels from this value on."""
    overwrite: bool = False
    """Replace a file that is there."""


def export(
    source: str, target: str | None, path: Path, wanted: ExportOptions, reporter: Reporter
) -> None:
    """Write a volume to a file of the format that its name says; nothing is there before it is whole.

    Args:
        source: a result of `infer`, or any array, OME-Zarr group or file.
        target: of a result, the prediction or the output of a step; the only one when None.
        path: the file.
        wanted: how.
        reporter: shows progress, and what one may not expect.

    Raises:
        OutputError: the file cannot be written, or not in this form.
        VolumeError: the source is missing, damaged or not finished, or the original lies elsewhere.
    """
    require_file(path, OUTPUT, overwrite=wanted.overwrite)
    exporter = exporter_of(path, OUTPUT)
    location = _located(expand_location(source), target)
    volume = open_located(location, key=SOURCE, channels="any", reporter=reporter)
    image, note = outgoing(volume, exporter, wanted)
    exporter.check(image, OUTPUT)
    if note:
        reporter.say(f"note: {path}: {note}")
    write_file(image, exporter, path, reporter)


def write_file(image: Outgoing, exporter: Exporter, path: Path, reporter: Reporter) -> None:
    """Write a file that nobody sees before it is whole, in the place of one that is there.

    Raises:
        OutputError: the format cannot hold what was read.
        OSError: the disk is full.
    """
    total = float(np.prod(image.extent))
    with whole_file(path) as temporary, reporter.bar(f"exporting {image.name}", total) as advance:
        exporter.write(image, temporary, advance)


def require_file(path: Path, key: str, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, as far as that is seen without writing.

    Raises:
        OutputError: saying what is in the way.
    """
    if ":/" in path.as_posix():
        raise OutputError(key, f"{path} is a URL", "name a local file")
    refuse_in_store(key, path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise OutputError(key, f"{path} is there already", "name another, or give --overwrite")
    if found := obstacle(path.absolute().parent):
        raise OutputError(key, found, "choose a writable folder")


def _located(location: str, target: str | None) -> str:
    """Where the array of a target is, of a result; of any other source the source itself.

    Raises:
        OutputError: a result has several and none is named, or there is no such one.
    """
    noted = {} if is_remote(location) or format_of(location) else our_attributes(place_at(location))
    if "manifest" not in noted:
        if target is not None:
            raise OutputError(TARGET, f"{location} is no result of infer", "leave it out")
        return location
    root = place_at(location)
    if not is_complete(noted):
        raise VolumeError(SOURCE, f"{location} is not finished", "run infer again")
    names = [name for name, _ in images_in(root)]
    if target is None and len(names) == 1:
        return str(root / names[0])
    if target in names:
        return str(root / str(target))
    found = f"{location} holds {', '.join(names)}" + (f", no {target}" if target else "")
    raise OutputError(TARGET, found, f"name one, as {TARGET} {names[0] if names else 'NAME'}")


def outgoing(volume: Volume, exporter: Exporter, wanted: ExportOptions) -> tuple[Outgoing, str]:
    """A volume as it is exported, and what a person may not expect of it.

    Args:
        volume: with all its channels.
        exporter: of the format.
        wanted: how.

    Raises:
        OutputError: the format cannot hold the values.
        VolumeError: the volume is not finished, or the original lies on another grid.
    """
    notes = _notes(volume)
    if notes.get("complete") is False:
        raise VolumeError(SOURCE, f"{volume.shown} is not finished", "run again what makes it")
    stored = stored_meaning(volume, notes, is_label=_says_label(volume))
    threshold, note = wanted.threshold, ""
    if exporter.is_for_classes and threshold is None and stored.is_probability:
        threshold, note = PROBABILITY, f"what is {PROBABILITY} or more is a segment"
    values = given_values(stored, exporter, wanted.dtype, threshold)
    original = (
        _Original.named(wanted.like, exporter) if wanted.like else _Original.of(volume, exporter)
    )
    original.require_grid_of(volume)
    image = Outgoing(
        name=_name(volume, notes),
        shape=(volume.channels, *volume.extent),
        dtype=values.dtype,
        read=_reader(volume, values),
        chunks=volume.chunks,
        grid=Grid(volume.spacing, volume.offset, volume.unit, is_known=volume.has_spacing),
        affine=world_affine(volume) if original.affine is None else original.affine,
        scale=values.scale,
        is_label=values.is_label,
        original=original.kept,
        like=original.image,
    )
    return image, "; ".join(filter(None, (note, values.note)))


def _reader(volume: Volume, values: FileValues) -> Callable[[Box], np.ndarray[Any, Any]]:
    def read(box: Box) -> np.ndarray[Any, Any]:
        return values.convert(volume.read(box))

    return read


def _notes(volume: Volume) -> Mapping[str, Any]:
    """What vcmodels noted of a prediction, or of the output of a step; {} of any other volume."""
    found = prediction_notes(volume)
    if found is not None:
        return found
    above = parent(volume.location)
    return our_attributes(place_at(above)) if above and not is_remote(above) else {}


def _says_label(volume: Volume) -> bool:
    """Whether the image says that its values are labels (OME-Zarr `image-label`)."""
    above = parent(volume.location)
    node = read_node(above, volume.key) if above else None
    attributes = node.attributes if node else {}
    shown = attributes.get("ome") if isinstance(attributes.get("ome"), dict) else attributes
    return isinstance(shown, dict) and "image-label" in shown


def _name(volume: Volume, notes: Mapping[str, Any]) -> str:
    return str(notes.get("target") or location_name(volume.shown))


@dataclass(frozen=True)
class _Original:
    """What is known of the file that a volume has its grid from."""

    affine: Affine | None
    kept: Mapping[str, Any]
    """What a file of the format needs, to be written like it."""
    image: ForeignImage | None = None
    shape: Shape | None = None
    """(z, y, x); None of the volume itself."""
    name: str = ""

    @classmethod
    def of(cls, volume: Volume, exporter: Exporter) -> "_Original":
        """What the volume itself says."""
        noted = source_note(volume)
        is_same = noted.get("format") == exporter.name
        return cls(world_affine(volume), noted.get("original", {}) if is_same else {})

    @classmethod
    def named(cls, like: str, exporter: Exporter) -> "_Original":
        """What a file, or a group, says.

        Raises:
            VolumeError: it cannot be opened.
        """
        location = expand_location(like)
        kind = format_of(location)
        if kind is None:
            volume = open_volume(location, key=LIKE, channels="any")
            found = cls.of(volume, exporter)
            return cls(found.affine, found.kept, None, volume.extent, like)
        image = kind.open(location, LIKE)
        header = image.header
        kept = exporter.kept_of(image) if kind.name == exporter.name else {}
        return cls(header.affine, kept, image, triple(header.shape[-3:]), like)

    def require_grid_of(self, volume: Volume) -> None:
        """Refuse another grid than that of the volume.

        Raises:
            VolumeError: the shape is another, or the place.
        """
        if self.shape is None:
            return
        remedy = "name the file that the volume was made of, or leave it out"
        if self.shape != volume.extent:
            found = f"{self.name} has shape {self.shape}, {volume.shown} {volume.extent}"
            raise VolumeError(LIKE, found, remedy)
        here = world_affine(volume)
        if here is None or self.affine is None:
            return
        found = align(here, volume.extent, self.affine, self.shape)
        if found.voxels > TOLERANCE or not found.grid_map.is_identity:
            text = f"the voxels of {self.name} lie elsewhere than those of {volume.shown}"
            raise VolumeError(LIKE, text, remedy)
