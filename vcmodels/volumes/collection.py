"""A group of several OME-Zarr images, so that readers find all of them from the top.

"bioformats2raw.layout" (https://ngff.openmicroscopy.org/0.4/#bf2raw and /0.5): `OME` names the images
in order, once as `series` and once as OME-XML (schema 2016-06), which is all that some readers follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vcmodels.geometry.boxes import Shape
from vcmodels.volumes.backend import ZarrFormat
from vcmodels.volumes.places import place_at
from vcmodels.volumes.spacing import Grid
from vcmodels.volumes.writer import set_group_attributes

OME = "OME"
"""The group of a collection that says what images there are."""
_XML = "METADATA.ome.xml"
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_TYPES = {"float32": "float", "float64": "double"} | {
    name: name for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32")
}
_SYMBOLS = {
    "nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m",
}  # fmt: skip


@dataclass(frozen=True)
class ListedImage:
    """One image of a collection."""

    path: str
    """From the collection's group, and its name."""
    extent: Shape
    channels: int
    dtype: np.dtype[Any]
    grid: Grid


def write_collection(
    location: str,
    members: Sequence[ListedImage],
    attributes: Mapping[str, Any],
    *,
    zarr_format: ZarrFormat = 2,
) -> None:
    """Make a group a collection of images; the attributes are added to it.

    Raises:
        VolumeError: there is a group whose metadata is damaged.
    """
    series = {"series": [member.path for member in members]}
    set_group_attributes(f"{location}/{OME}", _said(series, zarr_format), zarr_format=zarr_format)
    (place_at(location) / OME).write(_XML, _xml(members))
    layout = _said({"bioformats2raw.layout": 3}, zarr_format)
    set_group_attributes(location, {**layout, **attributes}, zarr_format=zarr_format)


def read_members(location: str) -> list[str] | None:
    """The names of the images in a collection's OME-XML; None where it cannot be read."""
    try:
        text = (place_at(location) / OME).read(_XML)
        return [image.get("Name", "") for image in ElementTree.fromstring(text)]
    except (FileNotFoundError, ElementTree.ParseError):
        return None


def _said(attributes: Mapping[str, Any], zarr_format: ZarrFormat) -> dict[str, Any]:
    """Attributes of OME where the version has them."""
    return dict(attributes) if zarr_format == 2 else {"ome": {"version": "0.5", **attributes}}


def _xml(members: Sequence[ListedImage]) -> bytes:
    root = ElementTree.Element("OME", {"xmlns": _SCHEMA})
    for member in members:
        image = ElementTree.SubElement(
            root, "Image", {"ID": f"Image:{member.path}", "Name": member.path}
        )
        pixels = ElementTree.SubElement(image, "Pixels", _pixels(member))
        for number in range(member.channels):
            name = f"Channel:{member.path}:{number}"
            ElementTree.SubElement(pixels, "Channel", {"ID": name, "SamplesPerPixel": "1"})
        ElementTree.SubElement(pixels, "MetadataOnly")
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _pixels(member: ListedImage) -> dict[str, str]:
    sizes = dict(zip("ZYX", member.extent, strict=True)) | {"C": member.channels, "T": 1}
    symbol = _SYMBOLS.get(member.grid.unit or "")
    lengths = dict(zip("ZYX", member.grid.spacing, strict=True)) if symbol else {}
    return {
        "ID": f"Pixels:{member.path}",
        "DimensionOrder": "XYZCT",
        "Type": _TYPES.get(member.dtype.name, "float"),
        **{f"Size{axis}": str(size) for axis, size in sizes.items()},
        **{f"PhysicalSize{axis}": repr(float(length)) for axis, length in lengths.items()},
        **{f"PhysicalSize{axis}Unit": symbol for axis in lengths if symbol},
    }
