"""The coarser levels that a store keeps of a volume, and how they lie on its grid."""

from dataclasses import dataclass, replace

from vcmodels.geometry.boxes import Spacing, triple
from vcmodels.volumes.axes import Reading
from vcmodels.volumes.location import join, parent
from vcmodels.volumes.ngff import read_multiscale
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.reader import Volume, open_volume

_GROUPS_ABOVE = 3
"""How far above an array the group of its levels is looked for."""


@dataclass(frozen=True)
class StoredLevel:
    """One level of a pyramid, as it lies on the grid of the level that others are compared with."""

    volume: Volume
    factor: Spacing = (1.0, 1.0, 1.0)
    """Length of its voxels along (z, y, x), in voxels of that level."""
    shift: Spacing = (0.0, 0.0, 0.0)
    """Where the centre of its voxel 0 is from that of that level's, in voxels of it."""


def stored_levels(volume: Volume) -> tuple[StoredLevel, ...]:
    """The volume, and after it the coarser levels of the OME-Zarr group that it is a level of.

    All are read with the axes and the channels of the volume. Only metadata is read.

    Raises:
        VolumeError: a level is missing or damaged.
    """
    group, paths = _levels_of(volume.location, volume.key)
    own = volume.location[len(group) + 1 :]
    if own not in paths:
        return (StoredLevel(volume),)
    finest = _open(volume, volume.location)
    coarser = [_open(volume, join(group, path)) for path in paths[paths.index(own) + 1 :]]
    return (StoredLevel(volume), *(_placed(one, finest) for one in coarser))


def _levels_of(location: str, key: str) -> tuple[str, list[str]]:
    """The group of the levels of an array, and their paths; none when it belongs to none."""
    group = parent(location)
    for _ in range(_GROUPS_ABOVE):
        if group is None:
            break
        node = read_node(group, key)
        image = read_multiscale(node.attributes) if node and node.kind == "group" else None
        if image is not None:
            return group, [path.strip("/") for path, _ in image.levels]
        group = parent(group)
    return "", []


def _open(like: Volume, location: str) -> Volume:
    """An array of the axes of another one, and with the channels that are read of that."""
    axes = like.axes
    opened = open_volume(location, key=like.key, channels="any", reading=Reading(axes.letters))
    array = opened.handle.array()
    shards = axes.of([int(n) for n in array.shards]) if array.shards else None
    return replace(
        opened,
        axes=axes,
        extent=axes.of([int(n) for n in array.shape]),
        channels=axes.count([int(n) for n in array.shape]),
        chunks=axes.of([int(n) for n in array.chunks]),
        shards=shards,
    )


def _placed(coarse: Volume, fine: Volume) -> StoredLevel:
    """A coarser level on the grid of a finer one, by what the store says of both, or by their extents."""
    if coarse.has_spacing and fine.has_spacing:
        factor = triple(a / b for a, b in zip(coarse.spacing, fine.spacing, strict=True))
        apart = zip(coarse.offset, fine.offset, fine.spacing, strict=True)
        return StoredLevel(coarse, factor, triple((a - b) / s for a, b, s in apart))
    factor = triple(float(round(a / b)) for a, b in zip(fine.extent, coarse.extent, strict=True))
    return StoredLevel(coarse, factor, triple((f - 1) / 2 for f in factor))
