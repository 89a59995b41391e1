"""A scene as neuroglancer's JSON: layers with their sources, boxes and points, and what is looked at.

The state is what stands behind the # of its addresses
(https://neuroglancer-docs.web.app/json/api/index.html).
"""

from typing import Any

from vcmodels.geometry.boxes import Box, Spacing, triple
from vcmodels.viewers.looks import ArrayLook, Ids, Numbers, Vectors
from vcmodels.viewers.scene import Boxes, Frame, Layer, Scene
from vcmodels.viewers.served import METERS, served_dtype
from vcmodels.viewers.shaders import hexadecimal, shader_of

PANEL = 400
"""Pixels of one of the four panels, about: what is looked at first fills it."""
_LINES = "void main() {\n  setColor(defaultColor());\n}\n"


def state_of(scene: Scene, sources: str) -> dict[str, Any]:
    """The state that shows a scene.

    Args:
        scene: what is shown.
        sources: the URL below which the layers are served by number.
    """
    shown = scene.focus or scene.layers[0].levels[0].volume.box
    lengths = [n * s for n, s in zip(shown.shape, scene.frame.spacing, strict=True)]
    finest = min(scene.frame.spacing)
    layers = [_layer(layer, f"{sources}/{n}/", scene) for n, layer in enumerate(scene.layers)]
    hidden = [not layer["visible"] for layer in layers]
    if all(hidden):
        layers[0]["visible"] = True
    layers += [_box_layer(boxes, scene) for boxes in scene.boxes]
    if scene.points:
        layers.append(_point_layer(scene))
    return {
        "title": scene.title,
        "dimensions": _dimensions(scene),
        "displayDimensions": ["x", "y", "z"],
        "position": _place(scene, scene.centre),
        "crossSectionScale": max(lengths) / finest / PANEL,
        "projectionScale": 1.5 * max(lengths) / finest,
        "layers": layers,
        "layout": "4panel",
        "showAxisLines": True,
    }


def _dimensions(scene: Scene) -> dict[str, Any]:
    factor, unit = (METERS[scene.frame.unit], "m") if scene.frame.unit in METERS else (1.0, "")
    sides = zip("zyx", scene.frame.spacing, strict=True)
    return {axis: [length * factor, unit] for axis, length in sides}


def _place(scene: Scene, voxel: Spacing) -> list[float]:
    """The position of a place in voxels of the first layer: there voxel 0 reaches from 0 to 1."""
    start = zip(scene.frame.offset, scene.frame.spacing, strict=True)
    return [o / s + v + 0.5 for (o, s), v in zip(start, voxel, strict=True)]


def _layer(layer: Layer, url: str, scene: Scene) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": layer.name,
        "source": f"zarr3://{url}",
        "visible": is_first_shown(layer),
    }
    look = layer.look
    if isinstance(look, Ids):
        colours = {str(value): hexadecimal(colour) for value, colour in look.colours.items()}
        other = {"segmentDefaultColor": hexadecimal(look.other)} if look.other else {}
        drawn = {
            name: folder
            for name, folder in (("meshes", layer.meshes), ("skeletons", layer.skeletons))
            if folder is not None
        }
        if drawn:
            at = {"transform": _mesh_transform(layer, scene)}
            sources = [{"url": f"precomputed://{url}{name}", **at} for name in drawn]
            ids = dict.fromkeys(one for folder in drawn.values() for one in folder.shown)
            shown |= {"source": [shown["source"], *sources], "segments": [*ids]}
        return {
            **shown, "type": "segmentation", "segmentColors": colours, **other,
            "selectedAlpha": 0.4, "tab": "rendering",
        }  # fmt: skip
    shader = shader_of(look, layer.channels, served_dtype(layer))
    return {**shown, "type": "image", "shader": shader, "opacity": 1.0, "tab": "rendering"}


def _mesh_transform(layer: Layer, scene: Scene) -> dict[str, Any]:
    """Where meshes and skeletons lie: their numbers, nanometers of the store, in the frame of the layer.

    As voxels do in `group_metadata`, they lie half a voxel of the first layer further. In a matrix of
    neuroglancer a factor is one of lengths, whatever their units are, and a shift counts the unit of
    the output.
    """
    own, frame = Frame.of(layer.levels[0].volume), layer.frame
    step = METERS[own.unit] / METERS["nanometer"] if own.unit in METERS else 1.0
    length = [METERS[frame.unit], "m"] if frame.unit in METERS else [1.0, ""]
    matrix = []
    for row, axis in enumerate((2, 1, 0)):  # x, y, z
        scale = frame.spacing[axis] / own.spacing[axis]
        shift = frame.offset[axis] - scale * own.offset[axis] + scene.frame.spacing[axis] / 2
        factor = scale / step * length[0] / METERS["nanometer"]
        matrix.append([factor if n == row else 0.0 for n in range(3)] + [shift])
    return {"matrix": matrix, "outputDimensions": dict.fromkeys("xyz", length)}


def is_first_shown(layer: Layer) -> bool:
    """Whether a layer is seen at first: what hides the image under it waits for a click."""
    hides: tuple[type[ArrayLook], ...] = (Numbers, Vectors)
    return layer.is_visible and not isinstance(layer.look, hides)


def _box_layer(boxes: Boxes, scene: Scene) -> dict[str, Any]:
    items = [
        {
            "type": "axis_aligned_bounding_box",
            "id": str(number),
            "pointA": _corner(scene, box, 0),
            "pointB": _corner(scene, box, 1),
        }
        for number, box in enumerate(boxes.boxes)
    ]
    return _annotations(boxes.name, scene, items, hexadecimal(boxes.colour), boxes.is_visible)


def _corner(scene: Scene, box: Box, end: int) -> list[float]:
    return _place(scene, triple(n - 0.5 for n in (box.end if end else box.origin)))


def _point_layer(scene: Scene) -> dict[str, Any]:
    items = [
        {
            "type": "point",
            "id": str(number),
            "point": _place(scene, point.place),
            **({"description": point.text} if point.text else {}),
        }
        for number, point in enumerate(scene.points)
    ]
    return _annotations("points", scene, items, "#ffee00", is_visible=True)


def _annotations(
    name: str, scene: Scene, items: list[dict[str, Any]], colour: str, is_visible: bool
) -> dict[str, Any]:
    transform = {"outputDimensions": _dimensions(scene)}
    return {
        "type": "annotation",
        "name": name,
        "source": {"url": "local://annotations", "transform": transform},
        "annotations": items,
        "annotationColor": colour,
        "shader": _LINES,
        "visible": is_visible,
        "tab": "annotations",
    }
