"""Where slices are alike from both sides, of discs whose middle is known."""

import numpy as np
import pytest

from vcmodels.regions.symmetric import best_path, symmetry_scores


@pytest.mark.parametrize("radii", [(4.0, 5.0), (0.6, 5.0), (4.0, 0.9)])
def test_a_disc_is_found_by_a_window_however_narrow(radii):
    draw = np.random.default_rng(0)
    image = draw.normal(0, 1, (6, 24, 30)).astype(np.float32)
    middles = np.array([(11 + n // 3, 14 - n // 2) for n in range(6)])
    y, x = np.mgrid[:24, :30]
    for slice_, (row, column) in zip(image, middles, strict=True):
        away = ((y - row) / 4) ** 2 + ((x - column) / 5) ** 2
        slice_ += 60 * np.exp(-2 * away)
    scores = symmetry_scores(image, radii)
    assert scores[np.arange(6), *middles.T].min() > 0.5
    assert np.abs(best_path(scores) - middles).max() <= 1
