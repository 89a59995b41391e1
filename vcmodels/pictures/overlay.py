"""A PNG of slices: the image, and next to it the label and the prediction of every target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vcmodels.data.labels import Label
from vcmodels.geometry.affine import edge_codes
from vcmodels.geometry.boxes import Box
from vcmodels.pictures.slices import (
    Panel,
    PicturePair,
    as_predicted,
    draw_panels,
    pair_of,
    separate_panels,
    shade_of,
    window_of,
)
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume
from vcmodels.volumes.places import write_atomic
from vcmodels.volumes.world import world_affine

LINE_HEIGHT, FONT_SIZE, GAP, MARGIN = 18, 13, 6, 3
MIN_PANEL = 240
"""Small panels are enlarged by a whole factor to at least this many pixels along their long edge."""
MAX_PANEL = 512
"""Larger slices are cut to their middle: what is drawn stays readable, what is read bounded."""


@dataclass(frozen=True)
class DrawnTarget:
    """One target of a picture."""

    label: Label
    prediction: Volume
    caption: str = ""
    """Shown under the name, such as the scores."""


def write_overlay(
    path: Path,
    image: Volume,
    targets: Mapping[str, DrawnTarget],
    box: Box,
    slices: Sequence[int] | None = None,
) -> None:
    """Draw z slices of a box, one row each: image | label | prediction | label | prediction...

    Masks and classes are outlined on the image; other targets are shown in the colours of their
    kind. Where a label does not count the panels are dark.

    Args:
        path: the PNG; its folder is made.
        image: its first channel is shown.
        targets: by name.
        box: what was scored.
        slices: z of the slices, inside the box; three evenly spaced ones when None.
    """
    boxes = slice_boxes(box, slices)
    chosen = [b.origin[0] for b in boxes]
    grey = [np.nan_to_num(image.read(b)[0, 0]) for b in boxes]
    window = window_of(np.stack(grey))
    columns = [_read_pairs(target, boxes) for target in targets.values()]
    rows = []
    for row, g in enumerate(grey):
        shown = shade_of(g, window)
        pairs = [column[row] for column in columns]
        rows.append([Panel(shown), *(p for pair in pairs for p in separate_panels(pair, shown))])
    titles = [f"image, z = {', '.join(map(str, chosen))}"]
    captions = [f"y, x from {boxes[0].origin[1]}, {boxes[0].origin[2]}"]
    for name, drawn in targets.items():
        titles += [f"{name}: label", f"{name}: prediction"]
        captions += [_legend(drawn.label.target), drawn.caption]
    path.parent.mkdir(parents=True, exist_ok=True)
    compose(rows, titles, captions, edges_of(image, 0)).save(path)


def edges_of(image: Volume | None, axis: int) -> tuple[str, str, str, str] | None:
    """What lies above, below, left and right of its slices, where it says how it lies in the world."""
    affine = None if image is None else world_affine(image)
    return None if affine is None else edge_codes(affine, axis)


SLICES = 3


def slice_boxes(box: Box, slices: Sequence[int] | None = None) -> list[Box]:
    """Slices of a box, each cut to its middle.

    Args:
        box: what is shown.
        slices: z of them; three evenly spaced ones, or as many as there are, when None.
    """
    depth = min(SLICES, box.shape[0])
    evenly = [box.origin[0] + (2 * i + 1) * box.shape[0] // (2 * depth) for i in range(depth)]
    return [middle_of(box.cut(0, z, z + 1), MAX_PANEL) for z in slices or evenly]


def write_predicted(path: Path, rows: Mapping[int, np.ndarray], titles: Sequence[str]) -> None:
    """Write rows of panels, as from `predicted_row`, under each other into a PNG.

    Args:
        path: it is replaced as a whole; its folder is made.
        rows: by the z of their slice, all of one size.
        titles: of the panels in a row.

    Raises:
        OSError: it cannot be written.
    """
    height, width = next(iter(rows.values())).shape[:2]
    font, column = ImageFont.load_default(FONT_SIZE), width // len(titles)
    sheet = Image.new("RGB", (width, LINE_HEIGHT + len(rows) * (height + LINE_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for n, title in enumerate(titles):
        draw.text((n * column + 2, 2), _fit(title, column - GAP, font), "black", font)
    for n, (z, row) in enumerate(rows.items()):
        top = LINE_HEIGHT + n * (height + LINE_HEIGHT)
        draw.text((2, top), f"z = {z}", "#555555", font)
        picture = Image.fromarray(np.round(255 * row).astype(np.uint8))
        sheet.paste(picture, (0, top + LINE_HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    sheet.save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def middle_of(box: Box, most: int) -> Box:
    """A box with edges along y and x of `most` voxels or less, in the middle."""
    (z, *_), (depth, *_) = box.origin, box.shape
    edges = [min(n, most) for n in box.shape[1:]]
    y, x = (o + (n - e) // 2 for o, n, e in zip(box.origin[1:], box.shape[1:], edges, strict=True))
    return Box((z, y, x), (depth, edges[0], edges[1]))


def _legend(target: Target) -> str:
    if target.drawn_as == "colours":
        return "same colours; dark red: unlabelled"
    return "outlines; dark: unlabelled"


def _read_pairs(drawn: DrawnTarget, boxes: Sequence[Box]) -> list[PicturePair]:
    """Label and prediction on each slice, all on one scale."""
    target = drawn.label.target
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    shown: list[np.ndarray] = []
    for box in boxes:
        label, valid = (values[:, 0] for values in drawn.label.read(box))
        prediction = target.decode(drawn.prediction.read(box))[:, 0]
        counts = np.logical_or.reduce(valid)
        shown += [prediction, np.where(counts, as_predicted(target, label), prediction)]
        found.append((label, prediction, counts))
    target = target.on_scale_of(np.concatenate(shown, axis=1))
    return [pair_of(target, *each) for each in found]


def compose(
    rows: list[list[Panel]],
    titles: list[str],
    captions: list[str],
    edges: tuple[str, str, str, str] | None = None,
) -> Image.Image:
    """Lay the panels out under their titles.

    Args:
        rows: of panels.
        titles: of the columns.
        captions: under the titles.
        edges: letters above, below, left and right in the first panel of each row, such as P, A, R, L.
    """
    drawn = [draw_panels(row, MIN_PANEL) for row in rows]
    height, width = drawn[0][0].shape[:2]
    header = 2 * LINE_HEIGHT + GAP
    column = max(width, MIN_PANEL) + GAP
    font = ImageFont.load_default(FONT_SIZE)
    sheet = Image.new(
        "RGB", (GAP + column * len(titles), header + len(rows) * (height + GAP)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for i, (title, caption) in enumerate(zip(titles, captions, strict=True)):
        x = GAP + i * column
        draw.text((x, 2), _fit(title, column - GAP, font), "black", font)
        draw.text((x, 2 + LINE_HEIGHT), _fit(caption, column - GAP, font), "#555555", font)
    for j, row in enumerate(drawn):
        for i, pixels in enumerate(row):
            picture = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
            sheet.paste(picture, (GAP + i * column, header + j * (height + GAP)))
        if edges is not None:
            _draw_edges(draw, edges, (GAP, header + j * (height + GAP)), (width, height))
    return sheet


def _draw_edges(
    draw: ImageDraw.ImageDraw,
    edges: tuple[str, str, str, str],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Write a letter in the middle of each edge of a panel."""
    (left, top), (width, height) = corner, size
    x, y = left + width // 2, top + height // 2
    places = {
        "mt": (x, top + MARGIN),
        "mb": (x, top + height - MARGIN),
        "lm": (left + MARGIN, y),
        "rm": (left + width - MARGIN, y),
    }
    font = ImageFont.load_default(FONT_SIZE)
    for letter, (anchor, place) in zip(edges, places.items(), strict=True):
        draw.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than its column."""
    while font.getlength(text) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
