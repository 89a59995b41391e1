"""What a validation shows of its first patches: image, label, prediction, and one over the other."""

import numpy as np
from torch import Tensor

from vcmodels.targets import AnyTarget
from vcmodels.targets.drawing import (
    LABEL_COLOUR,
    PREDICTION_COLOUR,
    Panel,
    draw_panel,
    one_colour,
)

PATCHES = 4
GAP = 4
SHORTEST = 160
"""Pixels: smaller patches are enlarged by a whole factor to at least this along their longer side."""
UNCOUNTED = np.array((0.25, 0, 0), np.float32)
"""Of label voxels that do not count, so that an empty label is told from none."""
DIM = 0.35
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
    over = np.where(counts, shade, DIM * shade)
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
