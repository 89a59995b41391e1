"""How looks are drawn on a GPU: the small programs that neuroglancer runs for each voxel.

Written in its dialect of GLSL: `#uicontrol` lines become sliders next to the picture
(https://github.com/google/neuroglancer, `src/sliceview/image_layer_rendering.md`).
"""

from math import floor

import numpy as np

from vcmodels.pictures.slices import Colour
from vcmodels.viewers.looks import Image, Linear, Numbers, Probability, Shares, Vectors

_STORED = "float(toRaw(getDataValue({})))"
_FAINT = 1e-3
"""Vectors that are shorter have no direction."""


def hexadecimal(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{round(255 * share):02x}" for share in colour)


def shader_of(
    look: Image | Probability | Shares | Numbers | Vectors, channels: int, dtype: np.dtype
) -> str:
    """The program for a layer.

    Args:
        look: of the layer.
        channels: of its array.
        dtype: in which it is served.
    """
    if isinstance(look, Image):
        return _image(look, channels, dtype)
    if isinstance(look, Probability):
        return _probability(look, channels)
    if isinstance(look, Shares):
        return _shares(look)
    if isinstance(look, Vectors):
        return _vectors(look)
    return _signed(look, channels) if look.has_sign else _values(look, channels, dtype)


def _image(look: Image, channels: int, dtype: np.dtype) -> str:
    choose, channel = _channel(channels)
    return f"""{choose}#uicontrol invlerp contrast(range={_range(look.window, dtype)}, clamp=true)
void main() {{
  emitGrayscale(contrast(getDataValue({channel})));
}}
"""


def _probability(look: Probability, channels: int) -> str:
    choose, channel = _channel(channels)
    value = _value(look.code, channel)
    likely = f"1.0 / (1.0 + exp(-({value})))" if look.is_logit else value
    return f"""{choose}#uicontrol vec3 colour color(default="{hexadecimal(look.colour)}")
#uicontrol float threshold slider(min=0, max=1, default=0.5)
#uicontrol bool as_mask checkbox(default=false)
void main() {{
  float likely = {likely};
  float shown = as_mask ? step(threshold, likely) : likely;
  emitRGBA(vec4(colour, 0.7 * shown));
}}
"""


def _shares(look: Shares) -> str:
    terms = [
        f"  share = {_value(look.code, str(n))};\n"
        f"  sum += share * vec3({', '.join(map(_number, colour))}); rest -= share;"
        for n, colour in enumerate(look.colours)
        if n
    ]
    lines = "\n".join(terms)
    return f"""#uicontrol float strength slider(min=0, max=1, default=0.7)
void main() {{
  vec3 sum = vec3(0.0);
  float share, rest = 1.0;
{lines}
  float shown = clamp(1.0 - rest, 0.0, 1.0);
  emitRGBA(vec4(sum / max(shown, 1e-6), strength * shown));
}}
"""


def _values(look: Numbers, channels: int, dtype: np.dtype) -> str:
    choose, channel = _channel(channels)
    low, high = sorted(look.code.stored(limit) for limit in look.limits)
    return f"""{choose}#uicontrol invlerp limits(range={_range((low, high), dtype)}, clamp=true)
void main() {{
  emitRGB(colormapCubehelix(limits(getDataValue({channel}))));
}}
"""


def _signed(look: Numbers, channels: int) -> str:
    """White at 0, red above, blue below, as the pictures of distances are."""
    choose, channel = _channel(channels)
    most = max(map(abs, look.limits))
    return f"""{choose}#uicontrol float limit slider(min=0, max={_number(2 * most)}, default={_number(most)})
void main() {{
  float share = clamp(({_value(look.code, channel)}) / max(limit, 1e-12), -1.0, 1.0);
  float fading = 1.0 - abs(share);
  emitRGB(share > 0.0 ? vec3(1.0, fading, fading) : vec3(fading, fading, 1.0));
}}
"""


def _vectors(look: Vectors) -> str:
    z, y, x = (_STORED.format(channel) for channel in look.channels)
    codes = "".join(f" || stored == vec3({_number(code)})" for code in look.zero_codes)
    return f"""#uicontrol bool as_axes checkbox(default={"true" if look.is_axial else "false"})
#uicontrol float strength slider(min=0, max=1, default=1)
void main() {{
  vec3 stored = vec3({x}, {y}, {z});
  vec3 vector = {_number(look.code.scale)} * stored + {_number(look.code.offset)};
  float size = length(vector);
  if (!(size > {_number(_FAINT * look.longest)}){codes}) {{
    emitTransparent();
    return;
  }}
  vec3 direction = vector / size;
  float bright = min(size / {_number(look.longest)}, 1.0);
  emitRGBA(vec4(bright * (as_axes ? abs(direction) : 0.5 * direction + 0.5), strength));
}}
"""


def _channel(channels: int) -> tuple[str, str]:
    """A control that chooses a channel, and what stands for the chosen one."""
    if channels == 1:
        return "", ""
    return f"#uicontrol int channel slider(min=0, max={channels - 1}, default=0)\n", "channel"


def _value(code: Linear, channel: str) -> str:
    return f"{_number(code.scale)} * {_STORED.format(channel)} + {_number(code.offset)}"


def _range(limits: tuple[float, float], dtype: np.dtype) -> str:
    """The ends of a control: whole numbers of its type for integers, which may not be equal."""
    low, high = limits
    if dtype.kind == "f":
        return f"[{_number(low)}, {_number(high)}]"
    most = np.iinfo(dtype)
    first = int(min(max(floor(low), most.min), most.max - 1))
    return f"[{first}, {max(first + 1, min(round(high), most.max))}]"


def _number(value: float) -> str:
    """A number as GLSL has it, which is no whole one."""
    text = repr(float(value))
    return text if "." in text or "e" in text else f"{text}.0"
