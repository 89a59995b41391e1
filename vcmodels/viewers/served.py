"""The layers as OME-Zarr groups that exist only while they are asked for, file by file.

Each group is version 3 of Zarr without compression, with the metadata of OME-NGFF 0.5. A request
names a layer, a level and a chunk by numbers: nothing else of the machine can be asked for.
"""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape, triple, unit_box
from vcmodels.reporting import Reporter
from vcmodels.viewers.looks import Ids
from vcmodels.viewers.scene import Layer, Scene
from vcmodels.volumes.chunk_cache import CachedVolume, ChunkCache
from vcmodels.volumes.levels import StoredLevel
from vcmodels.volumes.reader import Volume

LARGEST_CHUNK = 1 << 22
"""Bytes of a chunk that is served; stored ones that are larger are cut into whole fractions."""
CACHE_BYTES = 1 << 29
"""For stored chunks of which pieces are served."""
CHANNEL_AXIS = "c^"
"""What neuroglancer calls an axis whose values a shader sees together."""
METERS = {"kilometer": 1e3, "meter": 1.0, "centimeter": 1e-2, "millimeter": 1e-3,
          "micrometer": 1e-6, "nanometer": 1e-9, "picometer": 1e-12, "angstrom": 1e-10}  # fmt: skip
"""The units that viewers understand; lengths in others are shown without a unit."""
_IMAGES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
_IDS = ("uint8", "uint16", "uint32", "uint64")
_PATH = re.compile(r"(\d{1,4})/(?:zarr\.json|(\d{1,2})/(?:zarr\.json|c((?:/\d{1,18}){3,4})))", re.A)
_MESH = re.compile(
    r"(\d{1,4})/(?:(meshes)/(info|segment_properties/info|\d{1,20}(?::0|\.mesh))"
    r"|(skeletons)/(info|segment_properties/info|\d{1,20}))",
    re.A,
)

Reply = tuple[bytes, str]
"""A body, and its type."""
JSON, BYTES = "application/json", "application/octet-stream"


class MissingFileError(Exception):
    """There is no such file."""


@dataclass(frozen=True)
class ServedLevel:
    """One level of a layer, in chunks that a viewer can hold."""

    volume: Volume
    chunk: Shape
    dtype: np.dtype
    has_channels: bool

    @classmethod
    def of(cls, layer: Layer, level: StoredLevel, cache: ChunkCache) -> "ServedLevel":
        """The level, with stored chunks kept where they are served in pieces."""
        volume, dtype = level.volume, served_dtype(layer)
        chunk = served_chunk(volume, dtype)
        if chunk != volume.chunks and type(volume) is Volume:
            volume = CachedVolume.of(volume, cache)
        return cls(volume, chunk, dtype, layer.channels > 1)

    def metadata(self) -> dict[str, Any]:
        """Its `zarr.json`."""
        lead = [self.volume.channels] if self.has_channels else []
        chunks = {"chunk_shape": [*lead, *self.chunk]}
        keys = {"separator": "/"}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [*lead, *self.volume.extent],
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": chunks},
            "chunk_key_encoding": {"name": "default", "configuration": keys},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "fill_value": 0,
            "dimension_names": [*([CHANNEL_AXIS] if self.has_channels else []), *"zyx"],
            "attributes": {},
        }

    def read(self, index: Sequence[int]) -> bytes:
        """The bytes of a chunk, padded at the end of the volume.

        Args:
            index: the number of the chunk along each axis, that of the channels first.

        Raises:
            MissingFileError: there is no such chunk.
            RunError: it cannot be read.
        """
        lead, place = index[:-3], index[-3:]
        if list(lead) != [0] * self.has_channels:
            raise MissingFileError(f"chunk {index}")
        box = unit_box(place, self.chunk)
        inside = box.intersect(self.volume.box)
        if not inside.voxels:
            raise MissingFileError(f"chunk {index}")
        values = as_served(self.volume.read(inside), self.dtype)
        whole = np.zeros((len(values), *self.chunk), self.dtype.newbyteorder("<"))
        whole[(slice(None), *inside.slices(within=box))] = values
        return whole.tobytes()


@dataclass
class ServedScene:
    """The groups of all layers of a scene, by the number of the layer."""

    scene: Scene
    cache: ChunkCache = field(default_factory=lambda: ChunkCache(CACHE_BYTES))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.levels: Sequence[Sequence[ServedLevel]] = [
            [ServedLevel.of(layer, level, self.cache) for level in layer.levels]
            for layer in self.scene.layers
        ]

        self._failed: set[int] = set()

    def report_once(self, path: str, error: RunError, reporter: Reporter) -> None:
        """Report the first file of a layer that cannot be read."""
        number = int(path.partition("/")[0])
        if number not in self._failed:
            self._failed.add(number)
            reporter.say(f"{self.scene.layers[number].name}: {error}")

    def answer(self, path: str) -> Reply:
        """A file by its path, such as `0/zarr.json`, `0/2/c/3/0/1` or `0/meshes/info`.

        Raises:
            MissingFileError: there is no such file.
            RunError: a chunk is damaged, or cannot be read.
        """
        if mesh := _MESH.fullmatch(path):
            return self._mesh_file(int(mesh[1]), mesh[2] or mesh[4], mesh[3] or mesh[5])
        match = _PATH.fullmatch(path)
        number = int(match[1]) if match else len(self.levels)
        if match is None or number >= len(self.levels):
            raise MissingFileError(path)
        if match[2] is None:
            return _json(group_metadata(self.scene, number))
        if int(match[2]) >= len(self.levels[number]):
            raise MissingFileError(path)
        level = self.levels[number][int(match[2])]
        if match[3] is None:
            return _json(level.metadata())
        index = [int(part) for part in match[3].split("/")[1:]]
        if isinstance(level.volume, CachedVolume):
            with self._lock:  # the cache is of one thread at a time
                return level.read(index), BYTES
        return level.read(index), BYTES

    def _mesh_file(self, number: int, what: str, name: str) -> Reply:
        """A file of the meshes or skeletons of a layer; names are numbers and nothing else."""
        layers = self.scene.layers
        folder = None
        if number < len(layers):
            folder = layers[number].meshes if what == "meshes" else layers[number].skeletons
        if folder is None or not (folder.path / name).is_file():
            raise MissingFileError(name)
        is_json = name.endswith("info") or ":" in name
        return (folder.path / name).read_bytes(), JSON if is_json else BYTES


def _json(document: dict[str, Any]) -> Reply:
    return json.dumps(document).encode(), JSON


def group_metadata(scene: Scene, number: int) -> dict[str, Any]:
    """The `zarr.json` of a layer: its levels, as OME-NGFF 0.5 has them.

    The positions of the format are those of centres, and neuroglancer shows voxel 0 from 0 to 1:
    what is written lies half a voxel of the first layer further, so that positions in the viewer are
    numbers of voxels, and everything else stays in its place next to it.
    """
    layer = scene.layers[number]
    names = [*([CHANNEL_AXIS] if layer.channels > 1 else []), *"zyx"]
    datasets = []
    for path, level in enumerate(layer.levels):
        scale, position = layer.frame.of_level(level)
        shifted = [p + s / 2 for p, s in zip(position, scene.frame.spacing, strict=True)]
        lead = [1.0] * (len(names) - 3)
        datasets.append(
            {
                "path": str(path),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*lead, *scale]},
                    {"type": "translation", "translation": [*(0.0 for _ in lead), *shifted]},
                ],
            }
        )
    axes = [axis_of(name, layer.frame.unit) for name in names]
    image = {"name": layer.name, "axes": axes, "datasets": datasets}
    ome = {"version": "0.5", "multiscales": [image]}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}


def axis_of(name: str, unit: str | None) -> dict[str, str]:
    """One of the `axes`."""
    if name == CHANNEL_AXIS:
        return {"name": name}
    return {"name": name, "type": "space"} | ({"unit": unit} if unit in METERS and unit else {})


def served_dtype(layer: Layer) -> np.dtype:
    """The type in which a layer is served: as it is stored, if viewers know that."""
    stored = layer.levels[0].volume.dtype
    if isinstance(layer.look, Ids):
        wide = "uint64" if stored.itemsize == 8 else "uint32"
        return np.dtype(stored.name if stored.name in _IDS else wide)
    if stored.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(stored.name if stored.name in _IMAGES else "float32")


def as_served(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Stored values in the type that is served; ids below 0 wrap, and NaN is no id."""
    if values.dtype == dtype or dtype.kind == "f":
        return values.astype(dtype, copy=False)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values).round().astype(np.int64)
    return values.astype(dtype, copy=False)


def served_chunk(volume: Volume, dtype: np.dtype) -> Shape:
    """The stored chunk, or a whole fraction of it that is not too large."""
    chunk: Shape = triple(min(c, n) for c, n in zip(volume.chunks, volume.extent, strict=True))
    while volume.channels * Box((0, 0, 0), chunk).voxels * dtype.itemsize > LARGEST_CHUNK:
        longest = max(range(3), key=lambda axis: chunk[axis])
        if chunk[longest] == 1:
            break
        chunk = triple(-(-n // 2) if axis == longest else n for axis, n in enumerate(chunk))
    return chunk
