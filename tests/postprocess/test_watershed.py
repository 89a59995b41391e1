import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forests import in_order, kruskal, without_unseeded
from tests.nuclei import (
    average_precision,
    predicted_boundary,
    predicted_distance,
    predicted_mask,
)
from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.blockwise import Crew
from vcmodels.errors import TaskError
from vcmodels.fields.forest import by_depth, by_seeds
from vcmodels.geometry.boxes import Box
from vcmodels.phantom.nuclei import touching_ellipsoids
from vcmodels.postprocess.landscape import UNIT, Above, Boundaries, OneChannel, Terrain
from vcmodels.postprocess.watershed import WatershedStep
from vcmodels.reporting import Silent

SHAPE = (36, 44, 40)
OUTWARD = {"signed": True, "positive": "outside"}


@pytest.fixture(scope="module")
def nuclei():
    return touching_ellipsoids(SHAPE, 7, (7, 10), 4)


def sources_of(**arrays):
    kinds = {"seeds": "centres", "mask": "binary"}
    return {role: source_of(a, kinds.get(role, "boundary"), role) for role, a in arrays.items()}


def run(sources, folder, block=(64, 64, 64), **keys):
    step = step_of(WatershedStep, {role: role for role in sources}, **keys)
    return run_step(step, sources, folder, block)


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_touching_ellipsoids_are_found_from_boundaries(nuclei, tmp_path, noise):
    boundary, mask = predicted_boundary(nuclei, noise, 1), predicted_mask(nuclei, noise, 2)
    found = run(sources_of(boundary=boundary, mask=mask), tmp_path, min_size=50)
    assert average_precision(found, nuclei) >= 0.95


def test_touching_ellipsoids_are_found_from_distances(nuclei, tmp_path):
    values = -predicted_distance(nuclei, 0.05, 3)
    source = source_of(values, "distance", encoding=OUTWARD)
    found = run({"boundary": source}, tmp_path, min_size=50)
    assert average_precision(found, nuclei) >= 0.95


def test_seeds_decide_how_many_objects_there_are(nuclei, tmp_path):
    boundary, mask = predicted_boundary(nuclei, 0.1, 1), predicted_mask(nuclei, 0.0, 2)
    seeds = np.zeros(SHAPE, np.float32)
    for number in (1, 3, 4):
        z, y, x = np.argwhere(nuclei == number).mean(0).astype(int)
        seeds[z - 1 : z + 2, y - 1 : y + 2, x] = 0.8
    found = run(sources_of(boundary=boundary, seeds=seeds, mask=mask), tmp_path, seed_threshold=0.7)
    assert found.max() == 3
    for number in (1, 3, 4):
        inside = found[nuclei == number]
        counts = np.bincount(inside.astype(int), minlength=4)
        assert counts[1:].max() > 0.9 * counts.sum()


@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(5, 15),) * 3),
    has_seeds=st.booleans(),
)
def test_objects_are_those_of_all_voxels_for_any_blocks(tmp_path_factory, seed, block, has_seeds):
    shape = (9, 14, 11)
    rng = np.random.default_rng(seed)
    arrays = {"boundary": rng.random(shape).astype(np.float32)}
    arrays["mask"] = rng.random(shape).astype(np.float32)
    if has_seeds:
        arrays["seeds"] = (rng.random(shape) * 0.52).astype(np.float32)
    sources = sources_of(**arrays)
    found = run(sources, tmp_path_factory.mktemp("w"), block, reach=2.0)
    within = Box((0, 0, 0), shape)
    ground = Terrain(
        Boundaries(OneChannel(sources["boundary"], within), 0.5, 1, 2.0, (1.0, 1.0, 1.0)),
        Above(OneChannel(sources["mask"], within), 0.5),
        Above(OneChannel(sources["seeds"], within), 0.5) if has_seeds else None,
    )
    heights = ground.heights(within)
    expected = kruskal(heights, by_seeds if has_seeds else by_depth(UNIT // 4))
    if has_seeds:
        expected = without_unseeded(expected, heights)
    np.testing.assert_array_equal(found, in_order(expected))


def test_small_objects_are_removed_and_the_rest_is_numbered(tmp_path):
    mask = np.zeros((6, 8, 20), np.float32)
    mask[:, :, :2] = mask[2:5, 2:5, 6:9] = mask[:, :, 12:] = 1
    sources = sources_of(boundary=np.zeros_like(mask), mask=mask)
    found = run(sources, tmp_path, min_size=28)
    expected = np.zeros(mask.shape, np.uint64)
    expected[:, :, :2], expected[:, :, 12:] = 1, 2
    np.testing.assert_array_equal(found, expected)


def test_sizes_in_micrometers_are_those_in_voxels(tmp_path):
    mask = np.zeros((6, 8, 20), np.float32)
    mask[2:5, 2:5, 6:9] = mask[:, :, 12:] = 1
    spacing = (200.0, 500.0, 100.0)  # nanometers: 27 voxels are 0.27 cubic micrometers
    sources = {
        role: source_of(values, "boundary", role, spacing)
        for role, values in (("boundary", np.zeros_like(mask)), ("mask", mask))
    }
    for least, count in ((0.27, 2), (0.28, 1)):
        step = step_of(WatershedStep, {"boundary": "b", "mask": "m"}, min_size_um3=least)
        found = run_step(step, sources, tmp_path / str(least), spacing=spacing, unit="nanometer")
        assert found.max() == count


def test_what_cannot_be_is_refused_before():
    sources = sources_of(boundary=np.zeros((4, 5, 6), np.float32))
    with pytest.raises(ValueError, match="seed_threshold is of use with seeds only"):
        step_of(WatershedStep, "b", seed_threshold=0.5)
    with pytest.raises(ValueError, match='"min_size" is given twice'):
        step_of(WatershedStep, "b", min_size=3, min_size_um3=2.0)
    with pytest.raises(TaskError, match="threshold: 3 is no probability"):
        step_of(WatershedStep, "b", threshold=3.0).check(sources, (1.0, 1.0, 1.0), None)
    seeded = {"boundary": "b", "seeds": "s"}
    for least in (200.0, 0.0):
        with pytest.raises(TaskError, match=f"seed_threshold: {least:g} is no probability"):
            step_of(WatershedStep, seeded, seed_threshold=least).check(sources, (1, 1, 1), None)
    distance = {"boundary": source_of(np.zeros((4, 5, 6), np.float32), "distance")}
    masked = distance | sources_of(mask=np.zeros((4, 5, 6), np.float32))
    step_of(WatershedStep, "b", threshold=3.0).check(distance, (1.0, 1.0, 1.0), None)
    with pytest.raises(TaskError, match="threshold: the mask says where objects are; leave it out"):
        step_of(WatershedStep, "b", threshold=3.0).check(masked, (1.0, 1.0, 1.0), None)
    with pytest.raises(TaskError, match="min_size_um3: the store says no unit of length"):
        step_of(WatershedStep, "b", min_size_um3=3.0).check(sources, (1.0, 1.0, 1.0), None)


def test_a_mask_as_it_is_stored_is_0_and_1(tmp_path):
    stored = np.zeros((6, 8, 20), np.uint8)
    stored[:, :, 9:11] = 255
    masks = {"as_stored": stored, "decoded": (stored / 255).astype(np.float32)}
    found = {name: run(sources_of(boundary=a), tmp_path / name) for name, a in masks.items()}
    assert found["decoded"].max() == 2
    np.testing.assert_array_equal(found["as_stored"], found["decoded"])


def test_a_voxel_of_nan_belongs_to_nothing(tmp_path):
    boundary = np.full((6, 8, 20), 0.1, np.float32)
    boundary[:, :, 9:11] = np.nan
    found = run(sources_of(boundary=boundary), tmp_path, (4, 5, 7))
    expected = np.zeros(boundary.shape, np.uint64)
    expected[:, :, :9], expected[:, :, 11:] = 1, 2
    np.testing.assert_array_equal(found, expected)


def test_that_there_is_no_seed_is_said_once(tmp_path):
    arrays = {role: np.full((6, 8, 20), 0.3, np.float32) for role in ("boundary", "seeds")}
    step, reporter = step_of(WatershedStep, {role: role for role in arrays}), Silent()
    for _ in range(2):
        found = run_step(step, sources_of(**arrays), tmp_path, crew=Crew(reporter=reporter))
        assert not found.any()
    notes = [line for line in reporter.lines if line.startswith("note: ")]
    assert notes == ['note: "made" is empty: nothing of "seeds" reaches the seed_threshold 0.5']
