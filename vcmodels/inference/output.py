"""The output group: its arrays and their attributes.

OME-NGFF 0.4 and 0.5: `omero` (https://ngff.openmicroscopy.org/0.4/#omero-md) and `image-label`
(https://ngff.openmicroscopy.org/0.4/#label-md).
"""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, Shape, coarse_extent
from vcmodels.geometry.grid import PatchGrid
from vcmodels.inference.journal import Manifest, StoredSize, digest
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.units import Mask
from vcmodels.inference.writing import Output
from vcmodels.results import KEY, census
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.volumes import (
    OME,
    Description,
    Grid,
    ListedImage,
    Place,
    Storage,
    Volume,
    WritableArray,
    array_metadata,
    coarse_grid,
    create_array,
    image_label,
    is_array,
    open_volume,
    place_at,
    set_group_attributes,
    write_collection,
    write_multiscale_group,
)
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.location import is_remote, parent
from vcmodels.volumes.writer import Rgba

METADATA = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")
"""Files of a group."""


def level_key(name: str, level: int) -> str:
    """The path of a level's array in the output group."""
    return f"{name}/{level}"


@dataclass(frozen=True)
class Layout:
    """The arrays of an output, all of them over the whole volume."""

    root: Place
    extent: Shape
    chunks: Shape
    """Along (z, y, x)."""
    shards: Shape | None
    dtype: np.dtype
    zarr_format: Literal[2, 3]
    spacing: tuple[float, float, float]
    offset: tuple[float, float, float]
    unit: str | None
    factors: tuple[Shape, ...] = ((1, 1, 1),)
    """Voxels of level 0 in one of each level, along (z, y, x)."""
    place: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """What the input says of its place in the world, see `volumes.world`."""

    @property
    def block(self) -> Shape:
        """What one writer must own: a shard, or a chunk."""
        return self.shards or self.chunks

    def open_arrays(
        self, targets: Mapping[str, OutputSpec], manifest: Manifest
    ) -> dict[str, Output]:
        """Open the arrays; those that do not exist yet are created, with their metadata."""
        outputs: dict[str, Output] = {}
        for name, target in targets.items():
            outputs[name] = self.open_level(name, target, 0)
            self.describe(name, target, manifest, is_complete=False)
        return outputs

    def open_level(self, name: str, target: OutputSpec, level: int) -> Output:
        """Open the array of a level of a target, which is created if it does not exist yet."""
        place = self.location(name, level)
        if is_array(place):
            array = self.array(level_key(name, level))
        else:
            array = self._create(name, target, level)
        return Output(target, array, self.dtype)

    def array(self, key: str) -> WritableArray:
        """An array that is there."""
        return WritableArray(ArrayHandle(str(self.root / key), self.zarr_format, "r+"))

    def location(self, name: str, level: int) -> Place:
        """Where the array of a level is."""
        return self.root / level_key(name, level)

    def chunks_of(self, level: int) -> Shape:
        """Chunks of the array of a level: no longer than it, unless shards hold them."""
        if self.shards is not None:
            return self.chunks
        extent = coarse_extent(self.extent, self.factors[level])
        z, y, x = (min(pair) for pair in zip(self.chunks, extent, strict=True))
        return z, y, x

    def step(self, level: int) -> Shape:
        """Voxels of the level before in one of this level, 1 or 2 along (z, y, x)."""
        pairs = zip(self.factors[level], self.factors[level - 1], strict=True)
        z, y, x = (now // before for now, before in pairs)
        return z, y, x

    def measure(self, targets: Iterable[str]) -> StoredSize:
        """What says how much of a box is on the disk: of level 0 of all targets, or of one array."""
        if is_remote(str(self.root)):  # would be a request for each chunk
            return lambda _box, _array: None
        finest = [level_key(name, 0) for name in targets]
        opened: dict[str, WritableArray] = {}

        def measure(box: Box, array: str) -> tuple[int, int]:
            sizes: list[int] = []
            for key in [array] if array else finest:
                if key not in opened:
                    if not is_array(self.root / key):
                        return -1, -1  # never what was noted
                    opened[key] = self.array(key)
                sizes += opened[key].sizes(box)
            return len(sizes), sum(sizes)

        return measure

    def clean(self, names: Iterable[str]) -> None:
        """Delete what killed writes left in arrays that nobody writes to now."""
        for name in (*names, OME):
            (self.root / name).sweep()

    def _create(self, name: str, target: OutputSpec, level: int) -> WritableArray:
        key = level_key(name, level)
        return create_array(str(self.root), key, **self._array(target, level))

    def metadata(self, target: OutputSpec, level: int) -> dict[str, bytes]:
        """The files that make the array of a level, but for its chunks."""
        return array_metadata(attributes=None, **self._array(target, level))

    def _array(self, target: OutputSpec, level: int) -> dict[str, Any]:
        channels = target.output_channels(self.dtype)
        lead = () if channels is None else (channels,)
        spacing, offset = coarse_grid(self.spacing, self.offset, self.factors[level])
        shards = None if self.shards is None else (*lead, *self.shards)
        return {
            "shape": (*lead, *coarse_extent(self.extent, self.factors[level])),
            "chunks": (*lead, *self.chunks_of(level)),
            "dtype": self.dtype,
            "grid": Grid(spacing, offset, self.unit),
            "storage": Storage(self.zarr_format, shards),
        }

    def describe(
        self, name: str, target: OutputSpec, manifest: Manifest, *, is_complete: bool
    ) -> None:
        """Write the metadata of one target's group: axes, encoding, and which result it belongs to.

        Coarser levels are shown once they are complete. How it was made stands in the group above.
        """
        factors = self.factors if is_complete else self.factors[:1]
        has_channels = target.output_channels(self.dtype) is not None
        axes = ("c", "z", "y", "x") if has_channels else ("z", "y", "x")
        notes = {
            "target": name,
            "kind": target.kind,
            "encoding": target.encoding(self.dtype),
            "complete": is_complete,
            "manifest_sha256": digest(manifest),
            **self.place,
        }
        shown = display(target, self.dtype, self.extent[0], self.zarr_format)
        write_multiscale_group(
            str(self.root / name),
            Grid(self.spacing, self.offset, self.unit, axes),
            Description(name, {KEY: notes}, shown),
            levels={str(level): factor for level, factor in enumerate(factors)},
            zarr_format=self.zarr_format,
        )

    def note(
        self,
        targets: Mapping[str, OutputSpec],
        manifest: Manifest,
        provenance: Mapping[str, Any],
        *,
        is_complete: bool,
    ) -> None:
        """Write on the group what it is made of and how, and whether all of it is there."""
        value: dict[str, Any] = {
            "manifest": manifest,
            "provenance": dict(provenance),
            "complete": is_complete,
        }
        if is_complete:
            value["stored_chunks"] = {
                key: census(open_volume(str(self.root / key), key="output", channels="any"))
                for key in self.keys(targets)
            }
        if OME in targets:  # a target has the place of the list of images
            set_group_attributes(str(self.root), {KEY: value}, zarr_format=self.zarr_format)
            return
        grid = Grid(self.spacing, self.offset, self.unit)
        members = [
            ListedImage(name, self.extent, one.output_channels(self.dtype) or 1, self.dtype, grid)
            for name, one in targets.items()
        ]
        write_collection(str(self.root), members, {KEY: value}, zarr_format=self.zarr_format)

    def keys(self, targets: Iterable[str]) -> list[str]:
        """The paths of all arrays in the group."""
        levels = range(len(self.factors))
        return [level_key(name, level) for name in targets for level in levels]


def refuse_inside_input(root: Place, locations: list[str]) -> None:
    """Refuse an output that lies in an input's store, or an input that lies in the output.

    Raises:
        OutputError: naming both.
    """
    mine = _path(str(root))
    for location in locations:
        if _protocol(location) != _protocol(str(root)):
            continue
        store, array = _path(_store(location)), _path(location)
        if mine == store or store in mine.parents or mine in (array, *array.parents):
            raise OutputError(
                "inference_params.output_dir",
                f"the output {root} and the input {location} share a store",
                "choose another output_dir",
            )


def _protocol(location: str) -> str:
    return location.partition("://")[0] if is_remote(location) else ""


def _path(location: str) -> PurePath:
    """A location, without links, to be compared with others."""
    return PurePosixPath(location) if is_remote(location) else Path(location).resolve()


def _store(location: str) -> str:
    """The outermost zarr group around an array."""
    outermost, above = location, parent(location)
    while above and any(place_at(above).holds(name) for name in METADATA):
        outermost, above = above, parent(above)
    return outermost


_WHITE, _AXES = "FFFFFF", {"x": "FF0000", "y": "00FF00", "z": "0000FF"}
_CYCLE = tuple(_AXES.values())
_WIDE = np.dtype(np.uint16)


def display(
    target: OutputSpec, dtype: np.dtype, depth: int, zarr_format: Literal[2, 3]
) -> dict[str, Any]:
    """`omero` for an image, `image-label` for classes; nothing where the range of values is open.

    Args:
        target: what is stored.
        dtype: of the stored voxels.
        depth: planes of the volume; viewers open in the middle.
        zarr_format: 2 is for OME-NGFF 0.4, 3 for 0.5.
    """
    if isinstance(target, MulticlassTarget) and target.is_categorical:
        return image_label(_class_colours(target), zarr_format)
    limits = _window(target, dtype)
    if limits is None:
        return {}
    low, high = limits
    window = {"min": low, "max": high, "start": low, "end": high}
    channels = [
        {
            "label": label,
            "color": colour,
            "active": is_active,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": window,
        }
        for label, colour, is_active in _channels(target, dtype)
    ]
    model = "greyscale" if len(channels) == 1 else "color"
    return {"omero": {"channels": channels, "rdefs": {"defaultZ": depth // 2, "model": model}}}


def _window(target: OutputSpec, dtype: np.dtype) -> tuple[float, float] | None:
    """The stored values between which all lies; None where they are not known."""
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return (-limits.max if limits.min else 0, limits.max)
    try:
        target.output_channels(_WIDE)
    except ValueError:  # logits, or values without `output_range`
        return None
    code = target.encoding(_WIDE)  # integers cover the range of the values
    low = code["offset"]
    return low, low + code["scale"] * int(np.iinfo(_WIDE).max)


def _channels(target: OutputSpec, dtype: np.dtype) -> list[tuple[str, str, bool]]:
    """Name, colour, and whether it is shown at first, of each stored channel."""
    count = target.output_channels(dtype) or 1
    code = target.encoding(dtype)
    if "vector_order" in code:
        return [(axis, _AXES[axis], True) for axis in code["vector_order"]]
    if isinstance(target, MulticlassTarget):
        colours = _class_colours(target)
        return [
            (f"class {value}", "{:02X}{:02X}{:02X}".format(*rgba), number > 0)
            for number, (value, rgba) in enumerate(colours.items())
        ]
    if count == 1:
        return [(str(code.get("quantity", target.kind)), _WHITE, True)]
    names = [f"offset {offset}" for offset in code["offsets"]] if "offsets" in code else []
    return [(names[n] if names else f"channel {n}", _CYCLE[n % 3], n < 3) for n in range(count)]


def _class_colours(target: MulticlassTarget) -> dict[int, Rgba]:
    """The colours in which all pictures show the classes, by value; class 0 is transparent."""
    each = np.eye(target.channels, dtype=np.float32)[:, None]
    colours = (255 * target.picture(each)[0]).round().astype(int).tolist()
    return {
        value: (red, green, blue, 255 if number else 0)
        for number, (value, (red, green, blue)) in enumerate(
            zip(target.values, colours, strict=True)
        )
    }


def make_manifest(
    params: InferenceParams,
    network: TrainedNetwork,
    inputs: tuple[Volume, ...],
    targets: Mapping[str, OutputSpec],
    grid: PatchGrid,
    layout: Layout,
    mask: Mask | None,
) -> Manifest:
    """What determines the voxels, but for the manner in which the network is run."""
    dtype, choices = layout.dtype, [volume.axes.choice for volume in inputs]
    return {
        "schema": 1,
        "input": [redacted(volume.shown) for volume in inputs],
        "input_content": [volume.fingerprint() for volume in inputs],
        "input_choice": choices if any(choices) else None,
        "input_spacing": params.spacing and list(params.spacing),
        "checkpoint_sha256": network.sha256,
        "targets": {
            name: {"channels": target.channels, **target.encoding(dtype)}
            for name, target in targets.items()
        },
        "output_type": dtype.name,
        "output_chunks": list(layout.chunks),
        "output_shards": layout.shards and list(layout.shards),
        "output_zarr_format": layout.zarr_format,
        "pyramid": len(layout.factors) - 1,
        "patch_size": list(grid.patch),
        "overlap": list(params.overlaps),
        "window": None if grid.window == "hann" else grid.window,
        "bbox": None if params.bbox is None else [list(pair) for pair in params.bbox],
        "skip": params.skip.model_dump() | {"mask": mask and redacted(mask.volume.shown)},
        "mask_content": mask and mask.volume.fingerprint(),
        "torch": torch.__version__,
        "vcmodels": version("vcmodels"),
    }


def make_provenance(
    record: Mapping[str, Any], networks: Sequence[TrainedNetwork]
) -> dict[str, Any]:
    """What a result says of how it was made, next to its manifest; `record` is the task, as JSON."""
    packages = ("vcmodels", "torch", "zarr", "numpy")
    temperatures = [dict(network.temperatures) for network in networks]
    return {
        "task": redacted_values(dict(record)),
        "checkpoint": _one_or_all([str(network.path) for network in networks]),
        "normalization": _one_or_all([network.normalization.to_dict() for network in networks]),
        **({"temperatures": _one_or_all(temperatures)} if any(temperatures) else {}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def _one_or_all(values: list[Any]) -> object:
    """Of an ensemble all, in the order of the task, as the weights there."""
    return values[0] if len(values) == 1 else values


def redacted(location: str) -> str:
    """A location without the secrets that a URL may hold: user, password, query."""
    if not is_remote(location):
        return location
    return re.sub(r"://[^/@]*@", "://", location).split("?")[0]


def redacted_values(value: object) -> object:
    """`redacted` for every text in a JSON value."""
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted_values(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value
