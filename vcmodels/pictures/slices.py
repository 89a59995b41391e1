"""Slices as people see them: grey values stretched, what does not count dimmed, regions outlined.

They become panels of pixels (TensorBoard, `evaluate --overlay`) or axes of matplotlib with arrows and
fields (`preview`). All share the stretch of the image, the dimming and the colours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vcmodels.pictures.forms import FormDrawing
from vcmodels.targets import AnyTarget, MulticlassTarget, VectorTarget
from vcmodels.targets.base import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Colour = tuple[float, float, float]
LABEL_COLOUR: Colour = (0.10, 0.85, 0.35)
PREDICTION_COLOUR: Colour = (1.00, 0.45, 0.05)
UNLABELLED_COLOUR = np.array((0.25, 0, 0), np.float32)
"""Of a label where it does not count, without an image under it: no kind has such a dark red."""
WINDOW = (1, 99)
"""Percentiles of an image that are drawn black and white."""
DIM = 0.35
"""Brightness of an image or a prediction where no label counts."""
TINT = 0.3
"""Share of the colour where a region is filled over the image."""


def window_of(image: np.ndarray) -> tuple[float, float]:
    """The grey values that are drawn black and white."""
    low, high = np.percentile(image, WINDOW)
    return float(low), float(high)


def stretched(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Grey values as float32 in [0, 1], of the same shape."""
    low, high = window
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)


def shade_of(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """A slice (H, W) as grey pixels, (H, W, 3) float32 in [0, 1]."""
    return np.repeat(stretched(image, window)[..., None], 3, axis=-1)


def dimmed(picture: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, 3), darker where nothing counts: (H, W) bool."""
    shape = (*counts.shape, *(1,) * (picture.ndim - counts.ndim))
    return picture * np.where(counts, np.float32(1), np.float32(DIM)).reshape(shape)


Drawing = Target | FormDrawing
"""What says how values become colours."""


def as_predicted(target: Drawing, label: np.ndarray) -> np.ndarray:
    """A slice (L, H, W) of a label as a perfect prediction would be: (P, H, W).

    Float32; ids stay whole numbers.
    """
    found = target.as_prediction(torch.from_numpy(label)[None, :, None])[0, :, 0]
    return (found.float() if found.is_floating_point() else found).numpy()


@dataclass(frozen=True)
class PicturePair:
    """The label and the prediction of a target on one slice, in the same colours."""

    label: np.ndarray
    """(H, W, 3) float32 in [0, 1]; `UNLABELLED_COLOUR` where it does not count."""
    prediction: np.ndarray
    """(H, W, 3) float32 in [0, 1]."""
    regions: tuple[np.ndarray, np.ndarray] | None
    """Of masks and classes: the colours of their regions, (H, W, 3) each; black is in none."""
    counts: np.ndarray
    """(H, W) bool: where the label counts."""


def pair_of(
    target: Drawing, label: np.ndarray, prediction: np.ndarray, counts: np.ndarray
) -> PicturePair:
    """Label and prediction as pictures on one scale.

    Args:
        target: whose colours are taken.
        label: (L, H, W) float32.
        prediction: (P, H, W) float32.
        counts: (H, W) bool; what lies in the label where it is false changes no colour.
    """
    wanted = np.where(counts, as_predicted(target, label), prediction)
    # Both at once: a kind without a range of its own scales by what it is given.
    both = target.picture(np.concatenate([wanted, prediction], axis=2))
    wanted_picture, picture = np.split(both, 2, axis=1)
    seen = counts[..., None]
    regions = None
    if target.drawn_as == "outlines":
        label_regions, regions_found = wanted_picture * seen, picture
        if len(prediction) == 1 and _is_grey(both):
            label_regions = _one_colour(label_regions, LABEL_COLOUR)
            regions_found = _one_colour(picture, PREDICTION_COLOUR)
        regions = (label_regions, regions_found)
    return PicturePair(np.where(seen, wanted_picture, UNLABELLED_COLOUR), picture, regions, counts)


def _is_grey(picture: np.ndarray) -> bool:
    """Whether a picture has no colours: a mask has none, ids have."""
    return bool((picture[..., :1] == picture).all())


def _one_colour(picture: np.ndarray, colour: Colour) -> np.ndarray:
    """One colour where a grey picture is bright, black elsewhere."""
    return np.where(picture[..., :1] > 0.5, np.array(colour, np.float32), np.float32(0))


@dataclass(frozen=True)
class Panel:
    """One cell of a picture, before it is enlarged."""

    background: np.ndarray
    """(H, W, 3) float32 in [0, 1]."""
    regions: np.ndarray | None = None
    """(H, W, 3) colours whose borders are drawn as lines over the background; black has none."""


def separate_panels(pair: PicturePair, image: np.ndarray) -> tuple[Panel, Panel]:
    """Label and prediction, each outlined over the image (H, W, 3), or in its colours."""
    if pair.regions is None:
        # Dark where nothing says what it should be: the eye compares what can be compared.
        return Panel(pair.label), Panel(dimmed(pair.prediction, pair.counts))
    label, prediction = pair.regions
    return Panel(dimmed(image, pair.counts), label), Panel(image, prediction)


def joint_panel(pair: PicturePair, image: np.ndarray) -> Panel:
    """Label and prediction together over the image (H, W, 3), which is darker where none counts.

    Masks and classes are tinted where the label has them, and outlined where the prediction has;
    of other kinds the prediction is mixed into the image.
    """
    ground = dimmed(image, pair.counts)
    if pair.regions is None:
        return Panel(0.5 * ground + 0.5 * pair.prediction)
    label, prediction = pair.regions
    tinted = (1 - TINT) * ground + TINT * label
    return Panel(np.where(label.any(-1, keepdims=True), tinted, ground), prediction)


def single_panel(
    target: Drawing, prediction: np.ndarray, image: np.ndarray | None, colour: Colour
) -> Panel:
    """A prediction (P, H, W) without a label: tinted and outlined over the image, or mixed into it.

    Args:
        target: whose colours are taken.
        prediction: or a label, `as_predicted`.
        image: (H, W, 3); None for a black one.
        colour: of the region of a mask, which has none of its own.
    """
    picture = target.picture(prediction)
    if target.drawn_as == "colours":
        return Panel(picture if image is None else 0.5 * image + 0.5 * picture)
    is_mask = len(prediction) == 1 and _is_grey(picture)
    regions = _one_colour(picture, colour) if is_mask else picture
    ground = np.zeros_like(picture) if image is None else image
    tinted = (1 - TINT) * ground + TINT * regions
    return Panel(np.where(regions.any(-1, keepdims=True), tinted, ground), regions)


def predicted_row(
    image: np.ndarray, predictions: Sequence[tuple[Drawing, np.ndarray]]
) -> np.ndarray:
    """A slice of the input, and next to it each prediction as a `single_panel` over it.

    Args:
        image: (H, W) float32.
        predictions: the targets, and (P, H, W) float32 of each.

    Returns:
        (H', W', 3) float32 in [0, 1].
    """
    shade = shade_of(image, window_of(image))
    drawn = (single_panel(target, p, shade, PREDICTION_COLOUR) for target, p in predictions)
    return _side_by_side([Panel(shade), *drawn])


def _side_by_side(panels: Sequence[Panel]) -> np.ndarray:
    """Panels next to each other, with white to the right of each and below."""
    padding = ((0, GAP), (0, GAP), (0, 0))
    drawn = [np.pad(p, padding, constant_values=1) for p in draw_panels(panels, SHORTEST)]
    return np.concatenate(drawn, axis=1).astype(np.float32)


def draw_panels(panels: Iterable[Panel], least: int) -> list[np.ndarray]:
    """Panels enlarged by one whole factor, to `least` pixels or more along their longer side."""
    panels = list(panels)
    factor = max(1, -(-least // max(panels[0].background.shape[:2])))
    return [draw_panel(panel, factor) for panel in panels]


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


PATCHES = 4
"""Rows of a picture of a validation, one for each patch."""
GAP = 4
SHORTEST = 160
"""Pixels of the longer side of a panel, at least."""


def draw_row(
    target: AnyTarget, image: Tensor, label: Tensor, valid: Tensor, prediction: Tensor
) -> np.ndarray:
    """One slice of one patch: the input, the label, the prediction, and both over the input.

    Across z, or across the axis along which the patch is one voxel thick.

    Args:
        target: of the head.
        image: (C, Z, Y, X) float32.
        label: (L, Z, Y, X) float32.
        valid: (V, Z, Y, X) bool.
        prediction: (P, Z, Y, X) float32.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    across = next((axis for axis, n in enumerate(image.shape) if axis and n == 1), 1)
    image, label, valid, prediction = (
        a.movedim(across, 1) for a in (image, label, valid, prediction)
    )
    z = telling_slice(valid)
    grey, wanted, found = (a[:, z].float().cpu().numpy() for a in (image[:1], label, prediction))
    pair = pair_of(target, wanted, found, valid[:, z].any(0).cpu().numpy())
    shade = shade_of(grey[0], window_of(grey[0]))
    return _side_by_side(
        [Panel(shade), Panel(pair.label), Panel(pair.prediction), joint_panel(pair, shade)]
    )


def telling_slice(valid: Tensor) -> int:
    """The z at which most voxels of (V, Z, Y, X) count; of several the one nearest to the middle."""
    counts = valid.any(0).flatten(1).sum(1).cpu().numpy()
    candidates = np.flatnonzero(counts == counts.max())
    return int(candidates[np.abs(candidates - len(counts) // 2).argmin()])


PLANES: dict[str, tuple[int, int, int]] = {"z": (0, 1, 2), "y": (1, 0, 2)}
"""Of the slices across z and y: the axis across, the axis down and the axis to the right."""
ARROWS = 15
"""Arrows along the longer side of a slice."""
MOST_REGIONS = 12
FIELD_COLOURS = "viridis"

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
    """How a target is drawn, the same in all its panels."""

    target: AnyTarget
    style: Style
    limits: tuple[float, float]
    """Of a scalar's colours; for arrows the length that spans one step, in the second place."""
    colours: dict[float, Colour]
    """Of regions, by the value of their label."""

    @property
    def names(self) -> dict[str, Colour]:
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


def look_of(target: AnyTarget, labels: np.ndarray, valid: np.ndarray) -> Look:
    """How a target is drawn, given all labels (n, L, Z, Y, X) and valid (n, Z, Y, X) of a figure.

    Args:
        target: the target.
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
        colours = {value: _colour(target, value) for value in values}
    return Look(target, style, limits, colours)


def _colour(target: AnyTarget, value: float) -> Colour:
    """The colour that the kind gives a value, or the colour of labels where that is grey."""
    label = np.full((1, 1, 1), value, np.float32)
    r, g, b = target.picture(as_predicted(target, label))[0, 0].tolist()
    return LABEL_COLOUR if r == g == b else (r, g, b)


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
    ground = dimmed(base * part.image, part.valid)
    draw_image(axes, ground, part.size)
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
        picture = look.target.picture(as_predicted(look.target, part.label))
        shown = np.where(part.valid[..., None], picture, ground[..., None])
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
        fill[mask] = (*colour, TINT)
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
