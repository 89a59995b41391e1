"""Candidates are stored, inside the region, apart from each other and from every label."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.suggestions.candidates import Ground, candidates
from vcmodels.volumes import create_array, open_volume

EXTENT, SIZE = (20, 37, 50), (8, 10, 12)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume of which the part with x < 16 is not stored."""
    store = str(tmp_path_factory.mktemp("scan") / "a.zarr")
    array = create_array(store, "raw", shape=EXTENT, chunks=(20, 37, 16), dtype="uint8")
    box = Box((0, 0, 16), (20, 37, 34))
    array.write(box, np.full((1, *box.shape), 7, np.uint8))
    return open_volume(f"{store}/raw")


class Labelled(Ground):
    """A ground with one labelled voxel."""

    at = (10, 20, 30)

    def is_labelled(self, box: Box) -> bool:
        return bool(box.intersect(Box(self.at, (1, 1, 1))).voxels)


def test_every_free_box_is_found_once_and_none_else(scan) -> None:
    region = Box((1, 0, 3), (18, 35, 47))
    ground = Labelled("a", (scan,), region)
    found = candidates(ground, SIZE, 1000, (2, 2, 2), np.random.default_rng(0))
    assert len(found) == len(set(found)) >= 10
    for box in found:
        assert box.shape == SIZE
        assert region.contains(box)
        assert scan.is_stored(box)
        assert not ground.is_labelled(box.grow((2, 2, 2)))
    assert not any(a.intersect(b).voxels for a, b in combinations(found, 2))
    free = candidates(Ground("a", (scan,), region), SIZE, 1000, (2, 2, 2), np.random.default_rng(0))
    lost = set(free) - set(found)
    assert lost
    assert all(ground.is_labelled(box.grow((2, 2, 2))) for box in lost)


def test_few_are_drawn_anywhere_and_alike_for_one_seed(scan) -> None:
    ground = Ground("a", (scan,), Box((0, 0, 0), EXTENT))
    drawn = [
        tuple(candidates(ground, (4, 4, 4), 5, (0, 0, 0), np.random.default_rng(seed)))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5


def test_a_volume_thinner_than_a_box_has_thinner_boxes(scan) -> None:
    ground = Ground("a", (scan,), Box((5, 0, 16), (3, 37, 34)))
    found = candidates(ground, SIZE, 100, (0, 0, 0), np.random.default_rng(0))
    assert {box.shape for box in found} == {(3, 10, 12)}


def test_a_volume_of_billions_of_places_is_drawn_from_at_once(scan) -> None:
    huge = replace(Ground("a", (scan,), Box((0, 0, 0), (10**6, 10**6, 10**6))))
    assert candidates(huge, (1, 1, 1), 2, (0, 0, 0), np.random.default_rng(0)) == []
