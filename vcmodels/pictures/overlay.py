"""A PNG of slices: the image, and beside it the label and the prediction of every target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vcmodels.data.labels import Label
from vcmodels.geometry.boxes import Box
from vcmodels.pictures.slices import LABEL_COLOUR, PREDICTION_COLOUR, Panel, draw_panel, one_colour
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume

LINE_HEIGHT, FONT_SIZE, GAP = 18, 13, 6
MIN_PANEL = 240
"""Small panels are enlarged by a whole factor to at least this many pixels along their long edge."""
MAX_PANEL = 512
"""Larger slices are cut to their middle: what is drawn stays readable, what is read bounded."""


@dataclass(frozen=True)
class Scored:
    """One target of a picture."""

    label: Label
    prediction: Volume
    caption: str = ""
    """Shown under the name, such as the scores."""


def write_overlay(
    path: Path,
    image: Volume,
    targets: Mapping[str, Scored],
    box: Box,
    slices: Sequence[int] | None = None,
) -> None:
    """Draw z slices of a box, one row each: image | label | prediction | label | prediction...

    Masks and classes are outlined on the image; other targets are shown in the colours of their
    kind. Where a label does not count the panel is dark.

    Args:
        path: the PNG; its folder is made.
        image: its first channel is shown.
        targets: by name.
        box: what was scored.
        slices: z of the slices, inside the box; three evenly spaced ones when None.
    """
    depth = min(3, box.shape[0])
    chosen = slices or [
        box.origin[0] + (2 * i + 1) * box.shape[0] // (2 * depth) for i in range(depth)
    ]
    boxes = [_middle(box, z) for z in chosen]
    grey = [image.read(b)[0, 0].astype(np.float32) for b in boxes]
    low, high = np.percentile(np.concatenate([g.ravel() for g in grey]), (1, 99))
    rows = []
    for b, g in zip(boxes, grey, strict=True):
        shown = np.repeat(np.clip((g - low) / max(high - low, 1e-12), 0, 1)[..., None], 3, axis=2)
        panels = [p for scored in targets.values() for p in _pair(scored, b, shown)]
        rows.append([Panel(shown), *panels])
    titles = [f"image, z = {', '.join(map(str, chosen))}"]
    captions = [f"y, x from {boxes[0].origin[1]}, {boxes[0].origin[2]}"]
    for name, scored in targets.items():
        titles += [f"{name}: label", f"{name}: prediction"]
        captions += [_legend(scored.label.target), scored.caption]
    path.parent.mkdir(parents=True, exist_ok=True)
    _compose(rows, titles, captions).save(path)


def _middle(box: Box, z: int) -> Box:
    """The slice at z, cut to its middle."""
    edges = [min(n, MAX_PANEL) for n in box.shape[1:]]
    y, x = (o + (n - e) // 2 for o, n, e in zip(box.origin[1:], box.shape[1:], edges, strict=True))
    return Box((z, y, x), (1, edges[0], edges[1]))


def _legend(target: Target) -> str:
    if target.drawn_as == "colours":
        return "same colours; dark: unlabelled"
    return "outlines; dark: unlabelled"


def _pair(scored: Scored, box: Box, image: np.ndarray) -> tuple[Panel, Panel]:
    """The panels of the label and of the prediction."""
    target = scored.label.target
    truth, valid = scored.label.read(box)
    counts = np.logical_or.reduce(valid)[0, :, :, None]
    known = target.as_prediction(torch.from_numpy(truth)).numpy()[:, 0]
    predicted = target.decode(scored.prediction.read(box))[:, 0]
    # Both at once: a kind without a range of its own scales by what it is given.
    both = target.picture(np.concatenate([known, predicted], axis=2))
    label, prediction = np.split(both, 2, axis=1)
    if target.drawn_as == "colours":
        # Dim where nothing says what it should be, so that the eye compares what can be compared.
        return Panel(label * counts), Panel(prediction * np.where(counts, 1, 0.35))
    dimmed = np.where(counts, image, image * 0.35)
    if len(known) == 1:
        label = one_colour(label, LABEL_COLOUR)
        prediction = one_colour(prediction, PREDICTION_COLOUR)
    return Panel(dimmed, label * counts), Panel(image, prediction)


def _compose(rows: list[list[Panel]], titles: list[str], captions: list[str]) -> Image.Image:
    """Lay the panels out under their titles."""
    height, width = rows[0][0].background.shape[:2]
    factor = max(1, -(-MIN_PANEL // max(height, width)))
    height, width = height * factor, width * factor
    header = 2 * LINE_HEIGHT + GAP
    column = max(width, MIN_PANEL) + GAP
    font = ImageFont.load_default(FONT_SIZE)
    sheet = Image.new(
        "RGB",
        (GAP + column * len(titles), header + len(rows) * (height + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, (title, caption) in enumerate(zip(titles, captions, strict=True)):
        x = GAP + i * column
        draw.text((x, 2), _fit(title, column - GAP, font), "black", font)
        draw.text((x, 2 + LINE_HEIGHT), _fit(caption, column - GAP, font), "#555555", font)
    for j, row in enumerate(rows):
        for i, panel in enumerate(row):
            pixels = Image.fromarray(np.round(255 * draw_panel(panel, factor)).astype(np.uint8))
            sheet.paste(pixels, (GAP + i * column, header + j * (height + GAP)))
    return sheet


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than its column."""
    while font.getlength(text) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
