"""What is shown: arrays on one grid of voxels, boxes and points."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.pictures.slices import Colour
from vcmodels.reporting import list_some
from vcmodels.viewers.looks import ArrayLook, Ids
from vcmodels.volumes import Volume
from vcmodels.volumes.levels import StoredLevel

SUGGESTED_COLOUR: Colour = (1.0, 0.55, 0.0)
MOST_BOXES = 2000
"""Of a layer; a viewer that holds all of a run's patches hardly moves."""
MOST_MESHES = 500
"""That are seen at first: a viewer loads all that it shows."""


@dataclass(frozen=True)
class Frame:
    """Voxel size and position of an array."""

    spacing: Spacing = (1.0, 1.0, 1.0)
    offset: Spacing = (0.0, 0.0, 0.0)
    """Position of the centre of voxel 0."""
    unit: str | None = None
    extent: Shape = (0, 0, 0)

    @classmethod
    def of(cls, volume: Volume) -> "Frame":
        """That of a volume, as its store or the task says."""
        return cls(volume.spacing, volume.offset, volume.unit, volume.extent)

    def of_level(self, level: StoredLevel) -> tuple[Spacing, Spacing]:
        """Length of a level's voxels, and the position of the centre of its voxel 0."""
        scale = triple(s * f for s, f in zip(self.spacing, level.factor, strict=True))
        parts = zip(self.offset, self.spacing, level.shift, strict=True)
        return scale, triple(o + s * shift for o, s, shift in parts)


@dataclass(frozen=True)
class MeshFolder:
    """Meshes or skeletons in neuroglancer's precomputed form, as vcmodels writes them."""

    path: Path
    shown: tuple[str, ...]
    """Ids of the objects that are seen at first."""


@dataclass(frozen=True)
class Layer:
    """An array and its coarser levels."""

    name: str
    levels: tuple[StoredLevel, ...]
    """The finest first."""
    look: ArrayLook
    frame: Frame
    is_visible: bool = True
    meshes: MeshFolder | None = None
    """The surfaces of ids."""
    skeletons: MeshFolder | None = None
    """The centre lines of ids."""

    @property
    def channels(self) -> int:
        """Of the array."""
        return self.levels[0].volume.channels


@dataclass(frozen=True)
class Boxes:
    """Parts of the volume."""

    name: str
    boxes: tuple[Box, ...]
    colour: Colour
    is_visible: bool = True


@dataclass(frozen=True)
class Marker:
    """A place, in voxels of the first layer: the centre of voxel 0 is 0."""

    place: Spacing
    text: str = ""


@dataclass(frozen=True)
class Scene:
    """All that is shown at once."""

    title: str
    layers: tuple[Layer, ...]
    """The first says what a voxel is."""
    boxes: tuple[Boxes, ...] = ()
    points: tuple[Marker, ...] = ()
    focus: Box | None = None
    """What is looked at first; the middle of the first layer when None."""

    @property
    def frame(self) -> Frame:
        """The grid that boxes and points are on."""
        return self.layers[0].frame

    @property
    def centre(self) -> Spacing:
        """The place that is looked at first, in voxels of the first layer."""
        if len(self.points) and self.focus is None:
            return self.points[0].place
        box = self.focus or self.layers[0].levels[0].volume.box
        return triple(o + (n - 1) / 2 for o, n in zip(box.origin, box.shape, strict=True))


def with_meshes(scene: Scene, folder: Path) -> Scene:
    """A scene whose first layer of ids has meshes; the largest `MOST_MESHES` are seen at first.

    Raises:
        RefusedError: the folder holds no meshes that neuroglancer reads, or no layer shows ids.
    """
    remedy = "give one that vcmodels mesh --form precomputed has written"
    read = _read_folder("--meshes", folder, "meshes", "neuroglancer_legacy_mesh", remedy)
    return _with(scene, "--meshes", lambda layer: replace(layer, meshes=read))


def with_skeletons(scene: Scene, folder: Path) -> Scene:
    """A scene whose first layer of ids has skeletons, as `with_meshes`.

    Raises:
        RefusedError: the folder holds no skeletons that neuroglancer reads, or no layer shows ids.
    """
    remedy = "give one that vcmodels skeleton --form precomputed has written"
    read = _read_folder("--skeletons", folder, "skeletons", "neuroglancer_skeletons", remedy)
    return _with(scene, "--skeletons", lambda layer: replace(layer, skeletons=read))


def _read_folder(option: str, folder: Path, what: str, kind: str, remedy: str) -> MeshFolder:
    try:
        info = json.loads((folder / "info").read_bytes())
        inline = json.loads((folder / info["segment_properties"] / "info").read_bytes())["inline"]
        ids, sizes, found_kind = inline["ids"], inline["properties"][0]["values"], info["@type"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        found = f"{folder} holds no {what} for neuroglancer"
        raise RefusedError(option, found, remedy) from error
    if found_kind != kind:
        raise RefusedError(option, f"{folder} holds {found_kind}", remedy)
    largest = np.argsort(sizes, kind="stable")[::-1][:MOST_MESHES]
    return MeshFolder(folder, tuple(str(ids[n]) for n in largest))


def _with(scene: Scene, option: str, change: Callable[[Layer], Layer]) -> Scene:
    """A scene with a change of its first layer of ids."""
    for number, layer in enumerate(scene.layers):
        if isinstance(layer.look, Ids):
            layers = list(scene.layers)
            layers[number] = change(layer)
            return replace(scene, layers=tuple(layers))
    raise RefusedError(option, "no layer shows ids", "name their array with --labels")


def fewer_boxes(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """At most `MOST_BOXES` of some boxes, evenly chosen."""
    if len(boxes) <= MOST_BOXES:
        return tuple(boxes)
    chosen = np.linspace(0, len(boxes) - 1, MOST_BOXES).astype(np.int64)
    return tuple(boxes[n] for n in chosen.tolist())


def read_points(path: Path) -> tuple[Marker, ...]:
    """The points of a CSV (z, y, x and perhaps a text, with or without a heading) or JSON file.

    JSON is a list of [z, y, x], [z, y, x, "text"] or {"z": ..., "y": ..., "x": ..., "text": ...}.

    Raises:
        RefusedError: it is missing or holds something else; names the line or the number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise RefusedError("--points", f"{path} cannot be read ({reason})", _REMEDY) from error
    if path.suffix.lower() == ".json":
        return _from_json(text, path)
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    columns = ["z", "y", "x", "text"]
    if rows and {"z", "y", "x"} <= {name.strip().lower() for name in rows[0][1]}:
        columns = [name.strip().lower() for name in rows.pop(0)[1]]
    return tuple(
        _point(dict(zip(columns, row, strict=False)), f"{path}, line {n}") for n, row in rows
    )


def with_boxes(scene: Scene, path: Path) -> Scene:
    """A scene with the boxes that `suggest` wrote of the volume that is shown.

    Raises:
        RefusedError: the file is missing or not of `suggest`, or has no box of this volume.
    """
    remedy = "give the boxes.json that suggest wrote"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["boxes"]
        found = [(_real(row["input"][0]), row["volume"], row["bbox"]) for row in rows]
        boxes = [(real, Box.between(*zip(*bbox, strict=True))) for real, _, bbox in found]
    except OSError as error:
        raise RefusedError(
            "--boxes", f"{path} cannot be read ({error.strerror})", remedy
        ) from error
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RefusedError("--boxes", f"{path} is no list of boxes", remedy) from error
    shown = _real(scene.layers[0].levels[0].volume.shown)
    here = tuple(box for real, box in boxes if shown == real or shown.startswith(f"{real}/"))
    if not here:
        named = list_some(sorted({name for _, name, _ in found}), 3)
        raise RefusedError("--boxes", f"no box of {path} lies in what is shown", f"show {named}")
    added = Boxes("suggested", fewer_boxes(here), SUGGESTED_COLOUR)
    return replace(scene, boxes=(*scene.boxes, added))


def _real(location: str) -> str:
    """A location by which two names of one array are equal."""
    return location.rstrip("/") if "://" in location else os.path.realpath(location)


_REMEDY = "give rows of z,y,x or z,y,x,text, in voxels"


def _from_json(text: str, path: Path) -> tuple[Marker, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("--points", f"{path} is no JSON ({error})", _REMEDY) from error
    if not isinstance(found, list):
        raise RefusedError("--points", f"{path} holds no list", _REMEDY)
    keys = ("z", "y", "x", "text")
    rows = [dict(zip(keys, r, strict=False)) if isinstance(r, list) else r for r in found]
    return tuple(_point(row, f"{path}, number {n}") for n, row in enumerate(rows))


def _point(row: object, where: str) -> Marker:
    if not isinstance(row, dict):
        raise RefusedError("--points", f"{where} is {row!r}", _REMEDY)
    try:
        place = triple(float(row[axis]) for axis in "zyx")
    except (KeyError, TypeError, ValueError) as error:
        shown = ", ".join(map(str, row.values()))
        raise RefusedError("--points", f"{where} is {shown}", _REMEDY) from error
    if not np.isfinite(place).all():
        raise RefusedError("--points", f"{where} is no place: {place}", _REMEDY)
    return Marker(place, str(row.get("text") or "").strip())
