"""Pictures of slices: colours, and regions outlined on an image."""

from dataclasses import dataclass

import numpy as np

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
