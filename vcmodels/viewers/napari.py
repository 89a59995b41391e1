"""A scene in napari, which reads what is looked at from our own reader, chunk by chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import dask.array as da
import numpy as np

from vcmodels.geometry.boxes import Box, triple
from vcmodels.viewers.looks import Ids, Image, Probability, Shares, Vectors
from vcmodels.viewers.scene import Layer, Scene
from vcmodels.viewers.served import as_served, served_dtype
from vcmodels.viewers.state import is_first_shown
from vcmodels.volumes import Volume


def show(scene: Scene) -> None:
    """Open a window with a scene; returns when it is closed."""
    napari = import_module("napari")  # late: only this needs it, which few have
    viewer = napari.Viewer(title=scene.title)
    add_scene(viewer, scene)
    napari.run()


def add_scene(viewer: Any, scene: Scene) -> None:  # noqa: ANN401 - napari is not typed
    """Add the layers, boxes and points of a scene to a viewer."""
    for layer in scene.layers:
        _add_layer(viewer, layer)
    place = _place(scene)
    for boxes in scene.boxes:
        viewer.add_shapes(
            [line for box in boxes.boxes for line in edges(box)],
            shape_type="path", edge_color=boxes.colour, name=boxes.name,
            visible=boxes.is_visible, **place,
        )  # fmt: skip
    if scene.points:
        viewer.add_points(
            np.array([point.place for point in scene.points]), name="points",
            features={"text": [point.text for point in scene.points]}, text="text", **place,
        )  # fmt: skip


def _place(scene: Scene) -> dict[str, Any]:
    return {"scale": scene.frame.spacing, "translate": scene.frame.offset}


def edges(box: Box) -> list[np.ndarray]:
    """The twelve edges of a box, each from corner to corner: (2, 3) positions (z, y, x)."""
    ends = np.array([box.origin, box.end], float) - 0.5
    corners = list(product((0, 1), repeat=3))
    return [
        np.array([[ends[side][axis] for axis, side in enumerate(corner)] for corner in (a, b)])
        for a, b in product(corners, repeat=2)
        if a < b and sum(one != other for one, other in zip(a, b, strict=True)) == 1
    ]


def _add_layer(viewer: Any, layer: Layer) -> None:  # noqa: ANN401 - as above
    scale, translate = layer.frame.of_level(layer.levels[0])
    shown = {
        "name": layer.name, "scale": scale, "translate": translate, "multiscale": True,
        "visible": is_first_shown(layer),
    }  # fmt: skip
    arrays, look = levels(layer), layer.look
    if isinstance(look, Ids):
        viewer.add_labels([array[0] for array in arrays], **shown)
    elif isinstance(look, Vectors):
        viewer.add_image([rgb(array, look) for array in arrays], rgb=True, **shown)
    elif isinstance(look, Shares):
        limits = [look.code.stored(0.0), look.code.stored(1.0)]
        for number, colour in enumerate(look.colours[1:], 1):
            own = shown | {"name": f"{layer.name}: class {number}"}
            viewer.add_image(
                [array[number] for array in arrays], contrast_limits=limits,
                colormap=[(0, 0, 0), colour], blending="additive", **own,
            )  # fmt: skip
    else:
        alone = [array[0] if layer.channels == 1 else array for array in arrays]
        if layer.channels > 1:
            shown |= {"scale": (1.0, *scale), "translate": (0.0, *translate)}
        viewer.add_image(alone, **_grey(layer), **shown)


def _grey(layer: Layer) -> dict[str, Any]:
    """How an array of numbers is drawn."""
    look = layer.look
    if isinstance(look, Image):
        return {"contrast_limits": look.window, "colormap": "gray"}
    if isinstance(look, Probability):
        ends = (-4.0, 4.0) if look.is_logit else (0.0, 1.0)
        colours = [(0, 0, 0), look.colour]
        limits = tuple(look.code.stored(value) for value in ends)
        return {"contrast_limits": limits, "colormap": colours, "blending": "additive"}
    assert not isinstance(look, Ids | Vectors | Shares), "has a branch of its own"
    limits = look.limits
    if look.has_sign:
        limits = (-max(map(abs, limits)), max(map(abs, limits)))
    limits = tuple(sorted(look.code.stored(value) for value in limits))
    return {"contrast_limits": limits, "colormap": "bwr" if look.has_sign else "viridis"}


@dataclass(frozen=True)
class Lazy:
    """A volume that is read when it is sliced: (C, Z, Y, X)."""

    volume: Volume
    dtype: np.dtype
    ndim: int = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels first."""
        return (self.volume.channels, *self.volume.extent)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        channels, *parts = where
        ends = [part.indices(n) for part, n in zip(parts, self.volume.extent, strict=True)]
        box = Box.between([start for start, _, _ in ends], [end for _, end, _ in ends])
        return as_served(self.volume.read(box), self.dtype)[channels]


def levels(layer: Layer) -> list[Any]:
    """The levels as dask arrays (C, Z, Y, X), in the chunks that are stored."""
    dtype, found = served_dtype(layer), list[Any]()
    for level in layer.levels:
        chunks: Any = (-1, *level.volume.chunks)
        lazy = Lazy(level.volume, dtype)
        found.append(da.from_array(lazy, chunks=chunks, meta=np.empty(0, dtype)))
    return found


def rgb(array: Any, look: Vectors) -> Any:  # noqa: ANN401 - dask arrays are not typed
    """Vectors (C, Z, Y, X) as (Z, Y, X, 3) colours, uint8."""
    draw: Callable[[np.ndarray], np.ndarray] = lambda stored: colours_of(stored, look)  # noqa: E731
    whole = array.rechunk({0: -1})
    return whole.map_blocks(
        draw, dtype=np.uint8, chunks=(*whole.chunks[1:], (3,)), meta=np.empty(0, np.uint8)
    )


def colours_of(stored: np.ndarray, look: Vectors) -> np.ndarray:
    """The colours of stored vectors: (C, Z, Y, X) -> (Z, Y, X, 3) uint8, black without a direction."""
    z, y, x = triple(stored[channel].astype(np.float32) for channel in look.channels)
    codes = np.stack([x, y, z], axis=-1)
    vectors = codes * np.float32(look.code.scale) + np.float32(look.code.offset)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    is_none = ~(length > 1e-3 * look.longest)
    for code in look.zero_codes:
        is_none |= (codes == code).all(-1, keepdims=True)
    direction = vectors / np.where(is_none, 1, length)
    shown = np.abs(direction) if look.is_axial else (direction + 1) / 2
    bright = np.minimum(length / look.longest, 1)
    return np.round(255 * np.where(is_none, 0, shown * bright)).astype(np.uint8)
