"""What an image that we wrote says of its place in the world, and of the file that it comes from.

Both stand in the attributes of the image's group under `vcmodels`: `geometry`, with the `affine` of
level 0 (see `geometry.affine`), and `source`, with what an export needs to write such a file again.
"""

from typing import Any, cast

import numpy as np

from vcmodels.geometry.affine import Affine
from vcmodels.geometry.gridmap import GridMap
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import Node, read_node
from vcmodels.volumes.reader import Volume

OURS = "vcmodels"
GEOMETRY, SOURCE, AFFINE, MAP = "geometry", "source", "affine", "map"


def geometry_note(affine: Affine) -> dict[str, Any]:
    """The attribute `geometry` of an image of which level 0 has this affine."""
    return {AFFINE: [[float(n) for n in row] for row in affine], "space": "RAS+ mm, of (x, y, z)"}


def derived_note(affine: Affine | None, grid: GridMap) -> dict[str, Any]:
    """The same of an image whose grid was derived: also how it lies in the one that it comes from.

    Args:
        affine: of the derived grid; None where the source has none.
        grid: its map to the source.
    """
    note = {} if affine is None else geometry_note(affine)
    return {**note, "source_shape": list(grid.source), MAP: grid.to_json()}


def grid_map(volume: Volume) -> GridMap | None:
    """How the grid of an array of level 0 lies in the one that it was derived from, if it was."""
    note = _note(volume, GEOMETRY).get(MAP)
    return None if note is None else GridMap.from_json(note)


def world_affine(volume: Volume) -> Affine | None:
    """The affine of an array of level 0, if its image says one; another level has none."""
    note = _note(volume, GEOMETRY).get(AFFINE)
    if note is None:
        return None
    affine = np.asarray(note, np.float64)
    return affine if affine.shape == (4, 4) else None


def source_note(volume: Volume) -> dict[str, Any]:
    """What the image says of the file that it comes from; {} when nothing."""
    return _note(volume, SOURCE)


def _note(volume: Volume, name: str) -> dict[str, Any]:
    group = _group(volume)
    ours = group.attributes.get(OURS) if group else None
    note = cast("dict[str, Any]", ours).get(name) if isinstance(ours, dict) else None
    return cast("dict[str, Any]", note) if isinstance(note, dict) else {}


def _group(volume: Volume) -> Node | None:
    """The group of an image, if the array is its level 0."""
    above = parent(volume.location)
    return read_node(above, volume.key) if above and volume.location.endswith("/0") else None
