"""What a viewer is told of an output: windows and colours of its channels, or colours of its classes.

OME-NGFF 0.4 and 0.5: `omero` (https://ngff.openmicroscopy.org/0.4/#omero-md) and `image-label`
(https://ngff.openmicroscopy.org/0.4/#label-md).
"""

from typing import Any, Literal

import numpy as np

from vcmodels.inference.deviation import Written
from vcmodels.targets.multiclass import MulticlassTarget

_WHITE, _AXES = "FFFFFF", {"x": "FF0000", "y": "00FF00", "z": "0000FF"}
_CYCLE = tuple(_AXES.values())
_WIDE = np.dtype(np.uint16)


def display(
    target: Written, dtype: np.dtype, depth: int, zarr_format: Literal[2, 3]
) -> dict[str, Any]:
    """`omero` for an image, `image-label` for classes; nothing where the range of values is open.

    Args:
        target: what is stored.
        dtype: of the stored voxels.
        depth: planes of the volume; viewers open in the middle.
        zarr_format: 2 is for OME-NGFF 0.4, 3 for 0.5.
    """
    if isinstance(target, MulticlassTarget) and target.is_categorical:
        version = {"version": "0.4"} if zarr_format == 2 else {}
        return {"image-label": {**version, "colors": _class_colours(target)}}
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


def _window(target: Written, dtype: np.dtype) -> tuple[float, float] | None:
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


def _channels(target: Written, dtype: np.dtype) -> list[tuple[str, str, bool]]:
    """Name, colour, and whether it is shown at first, of each stored channel."""
    count = target.output_channels(dtype) or 1
    code = target.encoding(dtype)
    if "vector_order" in code:
        return [(axis, _AXES[axis], True) for axis in code["vector_order"]]
    if isinstance(target, MulticlassTarget):
        colours = _class_colours(target)
        return [
            (f"class {c['label-value']}", "{:02X}{:02X}{:02X}".format(*c["rgba"]), number > 0)
            for number, c in enumerate(colours)
        ]
    if count == 1:
        return [(str(code.get("quantity", target.kind)), _WHITE, True)]
    names = [f"offset {offset}" for offset in code["offsets"]] if "offsets" in code else []
    return [(names[n] if names else f"channel {n}", _CYCLE[n % 3], n < 3) for n in range(count)]


def _class_colours(target: MulticlassTarget) -> list[dict[str, Any]]:
    """The colours in which all pictures show the classes; that of class 0 is transparent."""
    each = np.eye(target.channels, dtype=np.float32)[:, None]
    colours = (255 * target.picture(each)[0]).round().astype(int).tolist()
    return [
        {"label-value": value, "rgba": [*colour, 255 if number else 0]}
        for number, (value, colour) in enumerate(zip(target.values, colours, strict=True))
    ]
