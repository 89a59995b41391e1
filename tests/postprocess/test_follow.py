from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from tests.postprocess.test_components import in_order_of_first_voxels
from vcmodels.postprocess.follow import FollowStep
from vcmodels.volumes import Storage, create_array, open_volume

SHAPE = (18, 26, 31)
SPACING = (2.0, 1.0, 0.5)


def ellipsoids(seed, count=6):
    """Ids of ellipsoids that may touch, and the way from each voxel to the mean place of its own."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    best, ids = np.full(SHAPE, 1.0), np.zeros(SHAPE, np.uint64)
    for number in range(1, count + 1):
        centre = rng.uniform(2, np.array(SHAPE) - 3)
        radii = rng.uniform(3, 6, 3)
        far = (((places - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)) ** 2).sum(0)
        ids[far < best] = number
        best = np.minimum(best, far)
    way = np.zeros((3, *SHAPE), np.float32)
    for number in np.unique(ids)[1:]:
        mine = ids == number
        centre = np.array([axis[mine].mean() for axis in places])
        way[:, mine] = centre[:, None] - places[:, mine]
    return ids, way


def sources(ids, way, units="physical"):
    stored = way * np.array(SPACING, np.float32).reshape(3, 1, 1, 1)
    flow = stored if units == "physical" else way
    return {
        "flow": source_of(flow, "vector", encoding={"units": units}),
        "mask": source_of((ids > 0).astype(np.float32), "binary"),
    }


STEP = {"flow": "flow", "mask": "mask"}


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(7, 20),) * 3),
    units=st.sampled_from(["physical", "voxels"]),
)
def test_objects_are_those_that_the_vectors_came_from_for_any_blocks(
    tmp_path_factory, seed, block, units
):
    ids, way = ellipsoids(seed)
    step = step_of(FollowStep, STEP, votes=1, reach=12)
    folder = tmp_path_factory.mktemp("follow")
    found = run_step(step, sources(ids, way, units), folder, block, spacing=SPACING)
    centres = {tuple(np.rint(way[:, *np.argwhere(ids == n)[0]] + np.argwhere(ids == n)[0]))
               for n in np.unique(ids)[1:]}  # fmt: skip
    marks = np.zeros(SHAPE, bool)
    for centre in centres:
        marks[tuple(np.clip(np.array(centre, int), 0, np.array(SHAPE) - 1))] = True
    _, apart = ndimage.label(ndimage.binary_dilation(marks, np.ones((3, 3, 3))), np.ones((3, 3, 3)))
    if apart == len(np.unique(ids)) - 1:  # else centres are too near to each other to tell apart
        np.testing.assert_array_equal(found, in_order_of_first_voxels(ids.astype(np.int64)))
    whole = run_step(step, sources(ids, way, units), folder / "whole", SHAPE, spacing=SPACING)
    np.testing.assert_array_equal(found, whole)


def test_noise_of_the_vectors_is_borne_and_small_crowds_are_no_centres(tmp_path):
    ids, way = ellipsoids(4, count=4)
    noisy = way + np.random.default_rng(0).normal(0, 0.7, way.shape).astype(np.float32)
    step = step_of(FollowStep, STEP, votes=20, reach=12)
    found = run_step(step, sources(ids, noisy), tmp_path, (10, 13, 17), spacing=SPACING)
    kept = found[ids > 0] != 0
    assert kept.mean() > 0.9
    for number in np.unique(ids)[1:]:
        mine = found[(ids == number) & (found > 0)]
        assert np.bincount(mine.astype(int)).max() > 0.98 * len(mine)
    assert not found[ids == 0].any()


def test_a_mask_that_is_true_where_nothing_is_stored_is_read(tmp_path):
    ids, way = ellipsoids(1, count=2)
    array = create_array(
        str(tmp_path), "mask", shape=SHAPE, chunks=(9, 9, 9), dtype="float32",
        storage=Storage(2, fill_value=1.0),
    )  # fmt: skip
    mask = replace(sources(ids, way)["mask"], volume=open_volume(array.location, key="mask"))
    assert not mask.is_empty(mask.volume.box)
    step = step_of(FollowStep, STEP, votes=1, reach=12)
    found = run_step(
        step, {"flow": sources(ids, way)["flow"], "mask": mask}, tmp_path, SHAPE, spacing=SPACING
    )
    assert (found[ids > 0] > 0).all()


@pytest.mark.parametrize(("key", "value"), [("reach", 1), ("votes", 10**6)])
def test_voxels_that_point_too_far_or_to_too_few_belong_to_nothing(tmp_path, key, value):
    ids, way = ellipsoids(1, count=2)
    step = step_of(FollowStep, STEP, **{"votes": 1, "reach": 12, key: value})
    found = run_step(step, sources(ids, way), tmp_path, SHAPE, spacing=SPACING)
    far = np.abs(np.rint(way)).max(axis=0) > 1
    assert not found[far if key == "reach" else ...].any()
