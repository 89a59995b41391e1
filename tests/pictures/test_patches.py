"""The map of the patches of a task."""

import numpy as np

from vcmodels.pictures.patches import MOST_PLACES, _histogram, _thinned


def test_a_long_axis_is_drawn_in_fewer_places_and_no_patch_is_lost():
    rows, columns = np.arange(0, 10**6, 8), np.arange(0, 400, 8)
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.choice(rows, 500), rng.choice(columns, 500)], axis=1)
    thin = _thinned(rows)
    assert MOST_PLACES // 2 < len(thin) <= MOST_PLACES
    assert (_thinned(columns) == columns).all()
    counts = _histogram(chosen, thin, columns)
    assert counts.shape == (len(thin), len(columns))
    assert counts.sum() == 500
    row, column = np.argwhere(counts)[0]
    is_here = (chosen[:, 1] == columns[column]) & (chosen[:, 0] >= thin[row])
    assert (is_here & (chosen[:, 0] < thin[row + 1])).sum() == counts[row, column]
