import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forests import in_order, kruskal
from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.fields.agglomeration import FULL, PairSums, join_by_mean, join_by_mutex, join_small
from vcmodels.fields.forest import by_depth
from vcmodels.fields.instances import affinities
from vcmodels.phantom.nuclei import touching_ellipsoids
from vcmodels.postprocess.agglomerate import AgglomerateStep
from vcmodels.postprocess.landscape import UNIT, Boundaries
from vcmodels.postprocess.links import LinkChannels, NearBoundary

SHAPE = (9, 14, 11)
SPACING = (1.0, 1.0, 1.0)
OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, 1], [-3, 0, 0], [0, 2, -2]]


def affinities_of(values, offsets=OFFSETS):
    source = source_of(values, "affinities", encoding={"offsets": offsets})
    return {"affinities": source}


def run(sources, folder, block=(64, 64, 64), **keys):
    step = step_of(AgglomerateStep, {role: role for role in sources}, **keys)
    return run_step(step, sources, folder, block)


def in_memory(values, offsets, *, by, depth, threshold, bias, least):
    """The same on all voxels: fragments by Kruskal's algorithm, sums in a dictionary."""
    source = affinities_of(values, offsets)["affinities"]
    box = source.volume.box
    height = Boundaries(NearBoundary(LinkChannels(source, box, 2)), 0.5, 1, 2.0, SPACING)(box)
    heights = np.rint(height * np.float32(UNIT)).astype(np.int32) + 1
    fragments = in_order(kruskal(heights, by_depth(round(depth * UNIT)))).astype(np.int64)
    sums = {True: [], False: []}
    for offset, channel in zip(offsets, values, strict=True):
        for place in np.argwhere(np.ones(fragments.shape, bool)):
            partner = place + offset
            if (partner >= 0).all() and (partner < fragments.shape).all():
                a, b = fragments[tuple(place)], fragments[tuple(partner)]
                if a != b:
                    is_near = max(map(abs, offset)) <= 2
                    sums[is_near].append((a, b, round(float(channel[tuple(place)]) * FULL), 1))
    near, far = (
        PairSums.added(*np.array(sums[which], np.int64).reshape(-1, 4).T) for which in (True, False)
    )
    count = int(fragments.max())
    if by == "mean":
        objects = join_by_mean(near, count, threshold)
    else:
        objects = join_by_mutex(near, far, count, bias)
    objects = join_small(near, objects, np.bincount(fragments.reshape(-1)), least)
    return in_order(objects[fragments])


@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(5, 15),) * 3),
    by=st.sampled_from(["mean", "mutex"]),
    least=st.sampled_from([1, 20]),
)
def test_objects_are_those_of_all_voxels_for_any_blocks(tmp_path_factory, seed, block, by, least):
    rng = np.random.default_rng(seed)
    # Codes of one byte, as predictions are stored.
    values = (rng.integers(0, 256, (5, *SHAPE)) / 255).astype(np.float32)
    keys = {"threshold": 0.52} if by == "mean" else {"bias": 0.97}
    found = run(
        affinities_of(values), tmp_path_factory.mktemp("a"), block, by=by, depth=0.05, reach=2.0,
        min_size=least, near=2, **keys,
    )  # fmt: skip
    expected = in_memory(values, OFFSETS, by=by, depth=0.05, threshold=0.52, bias=0.97, least=least)
    assert found.max() > 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("by", ["mean", "mutex"])
def test_right_affinities_give_the_objects_back(tmp_path, by):
    ids = touching_ellipsoids((36, 44, 40), 7, (7, 10), 4)
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-5, 0, 0), (0, -5, 0), (0, 0, -5)]
    wide = torch.from_numpy(np.pad(ids, 5).astype(np.float32))[None]
    values = affinities(wide, torch.ones_like(wide, dtype=torch.bool), offsets)[0].numpy()
    found = run(
        affinities_of(values, offsets), tmp_path, (40, 30, 25), by=by, background=0.5, depth=0.02
    )
    has_neighbour = found != 0
    assert has_neighbour[ids > 0].mean() > 0.999
    assert not has_neighbour[ids == 0].any()
    # A few voxels in the notches between three objects have more neighbours in another one.
    assert np.mean(in_order(np.where(has_neighbour, ids, 0)) == found) > 0.999
    assert found.max() == 7


def test_a_boundary_and_a_mask_may_be_given(tmp_path):
    boundary, mask = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    boundary[:, 6], mask[:, :, 8:] = 1, 0
    values = np.ones((3, *SHAPE), np.float32)
    values[1, :, 6] = values[1, :, 7] = 0.2
    sources = affinities_of(values, OFFSETS[:3]) | {
        "boundary": source_of(boundary, "boundary"),
        "mask": source_of(mask, "binary"),
    }
    found = run(sources, tmp_path, reach=3.0, depth=0.3)
    assert not found[:, :, 8:].any()
    assert np.unique(found[:, :6, :8]).tolist() == [1]
    assert np.unique(found[:, 7:, :8]).tolist() == [2]


def test_what_cannot_be_is_refused_before():
    values = np.zeros((2, 4, 5, 6), np.float32)
    with pytest.raises(ValueError, match='bias is of use with "by": "mutex" only'):
        step_of(AgglomerateStep, "aff", bias=0.5)
    with pytest.raises(ValueError, match='threshold is of use with "by": "mean" only'):
        step_of(AgglomerateStep, "aff", by="mutex", threshold=0.5)
    bare = {"affinities": source_of(values, "affinities")}
    with pytest.raises(TaskError, match="does not say over which offsets"):
        step_of(AgglomerateStep, "aff").check(bare, SPACING, None)
    few = affinities_of(values, OFFSETS[:2])
    with pytest.raises(TaskError, match="has no affinity to the next voxel along each axis"):
        step_of(AgglomerateStep, "aff").check(few, SPACING, None)
    near = affinities_of(np.zeros((3, 4, 5, 6), np.float32), OFFSETS[:3])
    with pytest.raises(TaskError, match='by: "mutex" needs offsets beyond 4'):
        step_of(AgglomerateStep, "aff", by="mutex").check(near, SPACING, None)


def test_a_voxel_of_nan_belongs_to_nothing(tmp_path):
    values = np.ones((3, *SHAPE), np.float32)
    values[:, :, 6:8] = np.nan
    found = run(affinities_of(values, OFFSETS[:3]), tmp_path, (5, 7, 6), reach=3.0)
    assert not found[:, 6:8].any()
    assert np.unique(found[:, :6]).tolist() == [1]
    assert np.unique(found[:, 8:]).tolist() == [2]


@pytest.mark.parametrize(("between", "count"), [(0.65, 2), (0.75, 1)])
def test_without_a_threshold_objects_are_joined_from_07_on(tmp_path, between, count):
    boundary, values = np.zeros(SHAPE, np.float32), np.ones((3, *SHAPE), np.float32)
    boundary[:, 7], values[1, :, 6:9] = 0.6, between
    sources = affinities_of(values, OFFSETS[:3]) | {"boundary": source_of(boundary, "boundary")}
    assert run(sources, tmp_path, reach=3.0, depth=0.2).max() == count
