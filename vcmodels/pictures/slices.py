"""Slices as people see them: grey image, outlined regions, arrows, colours of a field."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vcmodels.targets import AnyTarget, MulticlassTarget, VectorTarget

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LABEL_COLOUR = (0.10, 0.85, 0.35)
PREDICTION_COLOUR = (1.00, 0.45, 0.05)


@dataclass(frozen=True)
class Panel:
    """One cell of the picture, before it is enlarged."""

    background: np.ndarray
    """(H, W, 3) float32 in [0, 1]."""
    regions: np.ndarray | None = None
    """(H, W, 3) colours whose borders are drawn as lines over the background; black has none."""


def one_colour(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """One colour where a grey picture is bright, black elsewhere."""
    return np.where(picture[..., :1] > 0.5, np.array(colour, np.float32), np.float32(0))


def draw_panel(panel: Panel, factor: int) -> np.ndarray:
    """Enlarge a panel and draw the borders of its regions: (H * factor, W * factor, 3)."""
    pixels = panel.background.repeat(factor, 0).repeat(factor, 1)
    if panel.regions is None:
        return pixels
    regions = panel.regions.repeat(factor, 0).repeat(factor, 1)
    padded = np.pad(regions, ((1, 1), (1, 1), (0, 0)), mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    borders = np.zeros(regions.shape[:2], bool)
    for neighbour in neighbours:
        borders |= (neighbour != regions).any(axis=2)
    borders &= (regions > 0).any(axis=2)
    return np.where(borders[..., None], regions, pixels)


PLANES: dict[str, tuple[int, int, int]] = {"z": (0, 1, 2), "y": (1, 0, 2)}
"""Of the slices across z and y: the axis across, the axis down and the axis to the right."""
ARROWS = 15
"""Arrows along the longer side of a slice."""
DIM = 0.35
"""Brightness where a label does not count."""
MOST_REGIONS = 12
FIELD_COLOURS = "viridis"
# Okabe and Ito's vermilion, bluish green, sky blue and reddish purple; for masks, which have no colour.
MASK_COLOURS = ((0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.34, 0.71, 0.91), (0.8, 0.47, 0.65))

Style = Literal["regions", "arrows", "scalar", "colours"]


@dataclass(frozen=True)
class Slice:
    """One slice of one patch."""

    image: np.ndarray
    """(H, W) float32 in [0, 1]."""
    label: np.ndarray
    """(L, H, W) float32."""
    valid: np.ndarray
    """(H, W) bool."""
    size: tuple[float, float]
    """Height and width in physical units."""
    axes: tuple[int, int]
    """Which of (z, y, x) runs down, and which to the right."""


@dataclass(frozen=True)
class Look:
    """How a target is drawn, alike in all its panels."""

    target: AnyTarget
    style: Style
    limits: tuple[float, float]
    """Of a scalar's colours; for arrows the length that spans one step, in the second place."""
    colours: dict[float, tuple[float, float, float]]
    """Of regions, by the value of their label."""

    @property
    def names(self) -> dict[str, tuple[float, float, float]]:
        """Colours for a legend, by what they stand for."""
        if not isinstance(self.target, MulticlassTarget):
            return dict.fromkeys(["label"], next(iter(self.colours.values()), (0, 0, 0)))
        return {str(self.target.values[int(v)]): colour for v, colour in self.colours.items()}


def style_of(target: AnyTarget, channels: int) -> Style:
    """How a target with labels of so many channels is drawn."""
    if target.glyph is not None:
        return "arrows"
    if target.drawn_as == "outlines" and channels == 1:
        return "regions"
    return "scalar" if channels == 1 else "colours"


def physical(
    target: AnyTarget, label: np.ndarray, spacing: tuple[float, float, float]
) -> np.ndarray:
    """A label (L, Z, Y, X) as it is drawn: vectors that count voxels in the unit of the spacing.

    And scalars as they are predicted: distances as lengths, not as shares of `clip`.
    """
    if style_of(target, len(label)) == "scalar":
        return target.as_prediction(torch.from_numpy(label)[None])[0].numpy()
    if not isinstance(target, VectorTarget) or target.units == "physical":
        return label
    side = np.array(spacing, np.float32)[:, None, None, None]
    return label / side if target.transforms_as == "gradient" else label * side


def look_of(target: AnyTarget, number: int, labels: np.ndarray, valid: np.ndarray) -> Look:
    """How a target is drawn, given all labels (n, L, Z, Y, X) and valid (n, Z, Y, X) of a figure.

    Args:
        target: the target.
        number: which of the task's it is, to tell masks apart.
        labels: of all patches.
        valid: where they count.
    """
    style = style_of(target, labels.shape[1])
    counted = labels.swapaxes(0, 1)[:, valid]
    limits, colours = (0.0, 1.0), {}
    if style == "scalar" and counted.size:
        limits = float(counted.min()), float(counted.max())
    if style == "arrows" and counted.size:
        lengths = np.linalg.norm(counted, axis=0)
        limits = 0.0, float(np.percentile(lengths[lengths > 0], 90)) if lengths.any() else 1.0
    if style == "regions":
        values = [float(v) for v in np.unique(counted) if v != 0][:MOST_REGIONS]
        colours = {value: _colour(target, value, number) for value in values}
    return Look(target, style, limits, colours)


def _colour(target: AnyTarget, value: float, number: int) -> tuple[float, float, float]:
    """The colour that the kind gives a value, or the target's own where that is grey."""
    label = torch.full((1, 1, 1, 1, 1), value)
    r, g, b = target.picture(target.as_prediction(label)[0, :, 0].numpy())[0, 0].tolist()
    return MASK_COLOURS[number % len(MASK_COLOURS)] if r == g == b else (r, g, b)


def draw_image(axes: "Axes", image: np.ndarray, size: tuple[float, float]) -> None:
    """Show (H, W) or (H, W, 3) in [0, 1], as large as it is in physical units, y downwards."""
    axes.imshow(
        image, cmap="gray", vmin=0, vmax=1, extent=(0, size[1], size[0], 0),
        interpolation="nearest", aspect="equal",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def draw_label(axes: "Axes", look: Look, part: Slice) -> None:
    """Draw a target's slice over its image, which is dimmed where the label does not count."""
    base = 0.6 if look.style == "arrows" else 1.0  # thin bright lines need a dark ground
    dimmed = part.image * np.where(part.valid, base, base * DIM)
    draw_image(axes, dimmed, part.size)
    if look.style == "regions":
        _draw_regions(axes, look, part)
    elif look.style == "arrows":
        _draw_arrows(axes, look, part)
    elif look.style == "scalar":
        low, high = look.limits
        axes.imshow(
            np.ma.masked_where(~part.valid, part.label[0]), cmap=FIELD_COLOURS,
            vmin=low, vmax=max(high, low + 1e-6), extent=(0, part.size[1], part.size[0], 0),
            interpolation="nearest", aspect="equal",
        )  # fmt: skip
    else:
        prediction = look.target.as_prediction(torch.from_numpy(part.label)[None, :, None])
        picture = look.target.picture(prediction[0, :, 0].numpy())
        shown = np.where(part.valid[..., None], picture, dimmed[..., None])
        draw_image(axes, shown, part.size)


def _draw_regions(axes: "Axes", look: Look, part: Slice) -> None:
    """Fill each region lightly and draw its border."""
    height, width = part.label.shape[1:]
    down = (np.arange(height) + 0.5) * (part.size[0] / height)
    right = (np.arange(width) + 0.5) * (part.size[1] / width)
    for value, colour in look.colours.items():
        mask = (part.label[0] == value) & part.valid
        if not mask.any():
            continue
        fill = np.zeros((height, width, 4), np.float32)
        fill[mask] = (*colour, 0.3)
        axes.imshow(fill, extent=(0, part.size[1], part.size[0], 0), interpolation="nearest")
        if not mask.all() and min(mask.shape) > 1:
            axes.contour(right, down, mask, levels=[0.5], colors=[colour], linewidths=0.9)


def _draw_arrows(axes: "Axes", look: Look, part: Slice) -> None:
    """Components in the plane as arrows, or as lines where the sign means nothing.

    Each cell of the slice has one, at what counts nearest to its centre. Red, green and blue are
    the shares of x, y and z.
    """
    rows, columns = _arrow_places(part.valid & part.label.any(0), part.size)
    if not len(rows):
        return
    height, width = part.valid.shape
    vectors = part.label[:, rows, columns]
    shares = np.abs(vectors) / np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
    step = max(part.size) / ARROWS
    is_line = look.target.glyph == "line"
    axes.quiver(
        (columns + 0.5) * (part.size[1] / width), (rows + 0.5) * (part.size[0] / height),
        vectors[part.axes[1]], vectors[part.axes[0]],
        color=shares[::-1].T, angles="xy", scale_units="xy", scale=look.limits[1] / (0.95 * step),
        pivot="mid", units="width", width=0.009, minlength=0,
        headwidth=0 if is_line else 3.5, headlength=0 if is_line else 3.5,
        headaxislength=0 if is_line else 3.2,
    )  # fmt: skip


def _arrow_places(wanted: np.ndarray, size: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """In each square cell of the slice the wanted pixel that is nearest to its centre."""
    rows, columns = np.nonzero(wanted)
    step = max(size) / ARROWS
    places = [
        (index + 0.5) * (length / extent) / step
        for index, length, extent in zip((rows, columns), size, wanted.shape, strict=True)
    ]
    cells = [np.floor(place).astype(np.int64) for place in places]
    off = sum((place - cell - 0.5) ** 2 for place, cell in zip(places, cells, strict=True))
    order = np.lexsort((off, cells[1], cells[0]))
    _, first = np.unique(np.stack([cell[order] for cell in cells]), axis=1, return_index=True)
    return rows[order][first], columns[order][first]


PATCHES = 4
GAP = 4
SHORTEST = 160
"""Pixels: smaller patches are enlarged by a whole factor to at least this along their longer side."""
UNCOUNTED = np.array((0.25, 0, 0), np.float32)
"""Of label voxels that do not count, so that an empty label is told from none."""
OUTSIDE_DIM = 0.35
TINT = 0.3


def draw_row(
    target: AnyTarget, image: Tensor, label: Tensor, valid: Tensor, prediction: Tensor
) -> np.ndarray:
    """One slice of one patch: the input, the label, the prediction, and the last over the first.

    Over the image, masks and classes are tinted where the label has them and outlined where the
    prediction has; other kinds are mixed into it in their colours. It is darker where no label counts.

    Args:
        target: of the head.
        image: (C, Z, Y, X) float32.
        label: (L, Z, Y, X) float32.
        valid: (V, Z, Y, X) bool.
        prediction: (P, Z, Y, X) float32.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    z = telling_slice(valid)
    grey, found = (array[:, z].float().cpu().numpy() for array in (image[:1], prediction))
    wanted = target.as_prediction(label[None, :, z : z + 1])[0, :, 0].float().cpu().numpy()
    counts = valid[:, z].any(0).cpu().numpy()
    shade = np.repeat(_stretched(grey[0])[..., None], 3, axis=-1)
    # Both at once: a kind without a range of its own scales by what it is given, which shall be
    # nothing that does not count.
    both = np.concatenate([np.where(counts, wanted, found), found], axis=2)
    label_picture, picture = np.split(target.picture(both), 2, axis=1)
    counts = counts[..., None]
    over = np.where(counts, shade, OUTSIDE_DIM * shade)
    regions = None
    if target.drawn_as == "outlines":
        tint, regions = label_picture, picture
        if len(wanted) == 1:
            tint, regions = one_colour(tint, LABEL_COLOUR), one_colour(picture, PREDICTION_COLOUR)
        is_tinted = counts & tint.any(-1, keepdims=True)
        over = np.where(is_tinted, (1 - TINT) * over + TINT * tint, over)
    else:
        over = 0.5 * over + 0.5 * picture
    panels = (
        Panel(shade),
        Panel(np.where(counts, label_picture, UNCOUNTED)),
        Panel(picture),
        Panel(over, regions),
    )
    factor = max(1, -(-SHORTEST // max(shade.shape[:2])))
    return _side_by_side([draw_panel(panel, factor) for panel in panels])


def telling_slice(valid: Tensor) -> int:
    """The z at which most voxels of (V, Z, Y, X) count; of several the one nearest to the middle."""
    counts = valid.any(0).flatten(1).sum(1).cpu().numpy()
    candidates = np.flatnonzero(counts == counts.max())
    return int(candidates[np.abs(candidates - len(counts) // 2).argmin()])


def _stretched(grey: np.ndarray) -> np.ndarray:
    """Intensities between their percentiles 1 and 99 as 0 to 1."""
    low, high = np.percentile(grey, (1, 99))
    return np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1)


def _side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    padded = [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=1) for p in pictures]
    return np.concatenate(padded, axis=1).astype(np.float32)
