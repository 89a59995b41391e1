import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, distance_transform_edt

from tests.postprocess.places import source_of
from vcmodels.fields.watershed import NOTHING, SEED
from vcmodels.geometry.boxes import Box
from vcmodels.postprocess.landscape import (
    UNIT,
    Above,
    Boundaries,
    Depths,
    OneChannel,
    Terrain,
    smoothed,
)
from vcmodels.postprocess.links import LinkChannels, NearBoundary

SHAPE = (9, 13, 11)
SPACING = (2.0, 1.0, 1.5)


def random_source(seed, channels=1, **keys):
    values = np.random.default_rng(seed).random((channels, *SHAPE)).astype(np.float32)
    return source_of(values, "boundary", spacing=SPACING, **keys)


@given(times=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_smoothing_is_a_convolution(times, seed):
    values = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
    expected = padded = np.pad(values, times, "edge")
    for _ in range(times):
        for axis in range(3):
            expected = convolve1d(expected, [0.25, 0.5, 0.25], axis)
    inside = tuple(slice(times, n + times) for n in SHAPE)
    np.testing.assert_allclose(smoothed(padded, times), expected[inside], atol=1e-5)


def test_heights_add_probability_and_distance():
    source = random_source(0)
    box = source.volume.box
    found = Boundaries(OneChannel(source, box), 0.2, 0, 3.0, SPACING)(box)
    values = source.volume.read(box)[0]
    inside = values < 0.2
    # From the centre of a voxel to the nearest face of the other side: by boxes, one by one.
    places = np.argwhere(np.ones(SHAPE, bool))
    for at in places[::37]:
        others = places[inside[tuple(places.T)] != inside[tuple(at)]]
        apart = np.maximum(np.abs(others - at) - 0.5, 0) * SPACING
        distance = min(np.sqrt((apart**2).sum(1)).min(), 3.0)
        signed = distance if inside[tuple(at)] else -distance
        assert abs(found[tuple(at)] - (values[tuple(at)] + 1 - signed / 3)) < 1e-5


@settings(max_examples=12)
@given(
    corner=st.tuples(*(st.integers(0, n - 1) for n in SHAPE)),
    size=st.tuples(*(st.integers(1, 9),) * 3),
)
def test_heights_of_a_box_are_those_of_the_whole(corner, size):
    source = random_source(1)
    within = Box((1, 0, 2), (7, 13, 9))
    part = Box(corner, size).intersect(within)
    if not part.voxels:
        return
    value = OneChannel(source, within)
    ground = Terrain(
        Boundaries(value, 0.4, 2, 3.0, SPACING),
        Above(OneChannel(random_source(2), within), 0.3),
        Above(OneChannel(random_source(3), within), 0.9),
    )
    whole = ground.heights(within)
    assert {SEED, NOTHING} <= {whole.min(), whole.max()}
    np.testing.assert_array_equal(ground.heights(part), whole[part.slices(within)])


def test_depths_are_clipped_distances():
    values = np.linspace(-9, 9, 1144, dtype=np.float32).reshape(8, 13, 11)
    source = source_of(values, "distance")
    found = Depths(OneChannel(source, source.volume.box, -1), 0, 4.0)(source.volume.box)
    np.testing.assert_allclose(found, 1 + np.clip(values / 4, -1, 1), atol=1e-6)
    assert UNIT * found.max() < NOTHING


@settings(max_examples=10)
@given(
    seed=st.integers(0, 99),
    corner=st.tuples(*(st.integers(-2, n - 1) for n in SHAPE)),
    size=st.tuples(*(st.integers(2, 9),) * 3),
)
def test_boundaries_from_affinities_are_means_over_the_neighbours_that_there_are(
    seed, corner, size
):
    offsets = [[-1, 0, 0], [0, 1, 0], [0, 1, -2], [3, 0, 0]]
    source = random_source(seed, 4, encoding={"offsets": offsets})
    within = Box((0, 2, 1), (8, 9, 10))
    box = Box(corner, size)
    if not box.intersect(within).voxels:
        return
    found = NearBoundary(LinkChannels(source, within, 2))(box)
    values = source.volume.read(source.volume.box)
    low, high = np.array(within.origin), np.array(within.end) - 1
    for at in np.argwhere(np.ones(box.shape, bool))[::5]:
        place = np.clip(at + box.origin, low, high)
        held = []
        for channel, offset in enumerate(offsets[:3]):
            partner, holder = place + offset, place - offset
            if (low <= partner).all() and (partner <= high).all():
                held.append(values[(channel, *place)])
            if (low <= holder).all() and (holder <= high).all():
                held.append(values[(channel, *holder)])
        assert abs(found[tuple(at)] - (1 - np.mean(held))) < 1e-6


def test_the_largest_affinity_of_a_voxel_is_over_all_its_neighbours():
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    values = np.zeros((3, *SHAPE), np.float32)
    values[0, 4, 5, 6] = 0.75  # between (4, 5, 6) and (3, 5, 6)
    values[1, 2, 0, 3] = 0.5  # with nobody
    source = source_of(values, "affinities", encoding={"offsets": offsets})
    found = LinkChannels(source, source.volume.box, 1).largest(source.volume.box)
    assert np.argwhere(found).tolist() == [[3, 5, 6], [4, 5, 6]]


def test_the_distance_is_that_of_scipy_far_from_corners():
    mask = np.zeros((16, 16, 16), np.float32)
    mask[8:] = 1
    source = source_of(mask, "boundary")
    found = Boundaries(OneChannel(source, source.volume.box), 0.5, 0, 6.0, (1.0, 1.0, 1.0))(
        source.volume.box
    )
    expected = np.clip(distance_transform_edt(mask == 0) - 0.5, 0, 6)
    np.testing.assert_allclose(found[:8], (1 - expected / 6)[:8], atol=1e-6)


@pytest.mark.parametrize(
    ("height", "gap"),
    [
        (lambda values: Boundaries(values, 0.4, 2, 3.0, SPACING), 1),  # unknown is as a boundary
        (lambda values: Depths(values, 2, 3.0), 0),  # as a surface
    ],
    ids=["boundaries", "depths"],
)
def test_what_is_nan_is_nothing_and_stays_alone(height, gap):
    values = np.random.default_rng(4).random(SHAPE).astype(np.float32)
    known = np.random.default_rng(5).random(SHAPE) > 0.1
    box = Box((0, 0, 0), SHAPE)
    seeds = Above(OneChannel(random_source(3), box), 0.9)
    found, filled = (
        Terrain(
            height(OneChannel(source_of(np.where(known, values, fill), "boundary"), box)),
            seeds=seeds,
        ).heights(box)
        for fill in (np.float32(np.nan), np.float32(gap))
    )
    np.testing.assert_array_equal(found, np.where(known, filled, NOTHING))


def test_nan_affinities_are_0_and_a_voxel_without_any_is_unknown():
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -7]]
    values = np.random.default_rng(6).random((4, *SHAPE)).astype(np.float32)
    values[np.random.default_rng(7).random(values.shape) < 0.5] = np.nan
    zeros = np.where(np.isnan(values), 0, values).astype(np.float32)
    box = Box((1, 2, 0), (7, 9, 11))
    links, known = (
        LinkChannels(source_of(v, "affinities", encoding={"offsets": offsets}), box, 1)
        for v in (values, zeros)
    )
    is_unknown = np.isnan(values[(slice(3), *box.slices())]).all(0)
    assert is_unknown.any()
    np.testing.assert_array_equal(
        links.mean(box), np.where(is_unknown, np.float32(np.nan), known.mean(box))
    )
    np.testing.assert_array_equal(links.largest(box), known.largest(box))
    np.testing.assert_array_equal(links.whole_numbers(box, 255), known.whole_numbers(box, 255))
