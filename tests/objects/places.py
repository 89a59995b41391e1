"""Ids in memory and on disk for tests of objects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage

from vcmodels.blockwise import Crew, Threads
from vcmodels.volumes import ArrayVolume, Grid, Volume, open_volume, write_volume

SPACING = (4.0, 1.5, 2.0)
CREW = Crew(Threads(1))
blocks = st.tuples(st.integers(4, 10), st.integers(4, 12), st.integers(5, 14))


def random_ids(seed: int, shape: Sequence[int] = (9, 11, 13)) -> np.ndarray:
    """Smooth or rough regions, some of which touch each other and the border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), rng.choice([0, 0.8, 1.5]))
    ids = np.digitize(field, np.quantile(field, [0.5, 0.7, 0.9])).astype(np.uint64)
    return ids * np.uint64(rng.choice([1, 7, 2**40]))


def in_memory(values: np.ndarray, name: str = "ids") -> Volume:
    return ArrayVolume.of(values, SPACING, name)


def stored(values: np.ndarray, place: Path, chunks: Sequence[int] = (4, 5, 6)) -> Volume:
    z, y, x = chunks
    grid = Grid(SPACING, (10.0, 20.0, 30.0), "micrometer")
    write_volume(str(place), values, grid=grid, chunks=(z, y, x))
    return open_volume(str(place), key="ids")
