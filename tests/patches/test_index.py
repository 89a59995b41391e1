from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box, cut_block
from vcmodels.patches import index as label_index
from vcmodels.patches.density import patch_density, patch_grid
from vcmodels.patches.index import MOST_VALUES, IndexPlan, cell_shape, cells_of
from vcmodels.patches.index_build import decoding_threads, index_label, stored_bricks
from vcmodels.patches.index_store import IndexStore
from vcmodels.targets.stored import countable
from vcmodels.volumes import Storage, create_array, open_volume


def make_index(volume, frame, cell, ignore=(), within=None, store=None):
    plan = IndexPlan.of(volume, frame, cell, ignore)
    wanted = stored_bricks(volume, plan, within or frame)
    with decoding_threads([volume]) as pool:
        return index_label(volume, plan, wanted, pool=pool, store=store)


def brute_force(mask, counted, grid):
    """(flat place, labelled voxels, box voxels) of each patch, from the voxels themselves."""
    for place, origin in enumerate(product(*(o.tolist() for o in grid.origins))):
        box = Box(origin, grid.patch).intersect(grid.region)
        inside = np.argwhere(mask[box.slices()])
        size = int(np.prod(np.ptp(inside, axis=0) + 1)) if len(inside) else 0
        count = int(counted[box.slices()].sum())
        if count:
            yield place, count, size


def axis_cases():
    return st.tuples(
        st.integers(1, 30),  # extent
        st.integers(1, 20),  # patch
        st.integers(1, 20),  # stride
        st.integers(3, 12),  # chunk
        st.integers(0, 9),  # start of the bbox
        st.integers(1, 40),  # its length
    )


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    axes=st.tuples(axis_cases(), axis_cases(), axis_cases()),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.0, 0.002, 0.05, 0.9]),
    layout=st.sampled_from(["plain", "sharded", "vectors", "filled"]),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
    ignore=st.sampled_from([(), (2,), (1, 3)]),
    brick=st.sampled_from([15, 512]),
)
def test_box_and_count_of_every_patch_equal_brute_force(
    tmp_path_factory, monkeypatch, axes, seed, density, layout, dtype, ignore, brick
):
    monkeypatch.setattr(label_index, "BRICK_SIDE", brick)
    extent, patch, stride, chunk, start, length = (tuple(a) for a in zip(*axes, strict=True))
    stride = tuple(min(s, p) for s, p in zip(stride, patch, strict=True))
    rng = np.random.default_rng(seed)
    channels = (3,) if layout == "vectors" else ()
    labels = rng.integers(1, 4, (*channels, *extent))
    labels = (labels * (rng.random(labels.shape) < density)).astype(dtype)
    folder = tmp_path_factory.mktemp("index")
    array = create_array(
        str(folder),
        "label",
        shape=labels.shape,
        chunks=channels + chunk,
        dtype=dtype,
        storage=Storage(
            3,
            shards=tuple(2 * c for c in chunk) if layout == "sharded" else None,
            fill_value=1 if layout == "filled" else 0,
        ),
    )
    array.write(Box((0, 0, 0), extent), labels.reshape(-1, *extent))
    volume = open_volume(array.location, key="label", channels=3 if channels else None)
    low = [min(s, n - 1) for s, n in zip(start, extent, strict=True)]
    high = [min(s + n, e) for s, n, e in zip(low, length, extent, strict=True)]
    region = Box.between(low, high)

    cell = cell_shape(patch, stride)
    grid = patch_grid(volume.box, region, patch, stride, cell)
    store = IndexStore(folder, volume, IndexPlan.of(volume, grid.frame, cell, ignore), pytest.fail)
    made = make_index(volume, grid.frame, cell, ignore, region, store)
    again = make_index(volume, grid.frame, cell, ignore, region, store)

    mask = countable(labels.reshape(-1, *extent), ignore, only_on_label=True)[0]
    for index in (made, again):
        found = patch_density(index, grid)
        rows = list(
            zip(*(a.tolist() for a in (found.places, found.labelled, found.box)), strict=True)
        )
        assert rows == list(brute_force(mask, mask, grid))
        if channels:  # counted together, or nothing is labelled
            assert not index.values
            continue
        inside = grid.frame.slices()
        assert set(index.values) >= set(np.unique(labels[region.slices()])) - {0, *ignore}
        for value in index.values:
            found = patch_density(index, grid, [value])
            counted = labels == value
            wanted = [row[:2] for row in brute_force(mask, counted, grid)]
            assert list(zip(found.places.tolist(), found.labelled.tolist(), strict=True)) == wanted
        if region == volume.box:
            totals = index.totals(index.plan.cells(grid.frame))
            values, counts = np.unique(labels[inside], return_counts=True)
            wanted = dict(zip(values.tolist(), counts.tolist(), strict=True))
            assert totals == {v: n for v, n in wanted.items() if v}


@given(
    extent=st.integers(1, 300),
    start=st.integers(0, 50),
    patch=st.integers(1, 100),
    stride=st.integers(1, 100),
)
def test_origins_are_multiples_of_the_stride_and_one_at_each_end(extent, start, patch, stride):
    stride = min(stride, patch)
    start = min(start, extent - 1)
    cell = cell_shape((patch, 1, 1), (stride, 1, 1))[0]
    whole, region = Box((0, 0, 0), (extent, 1, 1)), Box.between((start, 0, 0), (extent, 1, 1))
    grid = patch_grid(whole, region, (patch, 1, 1), (stride, 1, 1), (cell, 1, 1))
    origins = grid.origins[0]
    assert (np.diff(origins) > 0).all()
    assert ((origins - grid.frame.origin[0]) % cell == 0).all()
    if extent - start < patch:
        assert origins.tolist() == [start]
        return
    assert ((origins[1:-1] - grid.frame.origin[0]) % stride == 0).all()
    assert (np.diff(origins) <= stride).all()
    assert start <= origins[0] < start + cell
    assert origins[-1] + patch <= extent < origins[-1] + patch + cell


@pytest.mark.parametrize(
    ("patch", "stride", "cell"),
    [
        ((64, 64, 64), (32, 32, 32), (16, 16, 16)),
        ((56, 40, 17), (28, 20, 17), (14, 10, 1)),
        ((32, 48, 9), (32, 24, 3), (16, 12, 3)),
    ],
)
def test_cell_is_the_largest_common_divisor_up_to_16(patch, stride, cell):
    assert cell_shape(patch, stride) == cell


def test_a_finer_index_answers_a_coarser_grid(store, blobs):
    volume = open_volume(store("label", blobs), key="label")
    index = make_index(volume, volume.box, (2, 2, 2))
    grid = patch_grid(volume.box, volume.box, (8, 12, 16), (4, 6, 8), (4, 6, 8))
    found = patch_density(index, grid)
    rows = list(zip(*(a.tolist() for a in (found.places, found.labelled, found.box)), strict=True))
    assert rows == list(brute_force(blobs != 0, blobs != 0, grid))


def test_patches_that_do_not_fit_the_cells_are_refused(store):
    volume = open_volume(store("label", np.ones((20, 20, 20), np.uint8)), key="label")
    index = make_index(volume, volume.box, (4, 4, 4))
    grid = patch_grid(volume.box, volume.box, (8, 8, 9), (4, 4, 3), (4, 4, 3))
    with pytest.raises(ValueError, match="do not fit cells"):
        patch_density(index, grid)


def test_large_shards_are_cut_along_chunks_without_overlap_or_gap():
    block, chunk = Box((64, 0, 128), (64, 60, 64)), (16, 10, 8)
    parts = list(cut_block(block, chunk, most=5000))
    assert sum(part.voxels for part in parts) == block.voxels
    assert max(part.voxels for part in parts) <= 5000
    for part in parts:
        offset = [o - b for o, b in zip(part.origin, block.origin, strict=True)]
        assert all(o % c == 0 for o, c in zip(offset, chunk, strict=True))


def test_nan_is_not_labelled():
    stored = np.array([[[[np.nan, 0.0, 0.5, -1.0]]]], np.float32)
    assert countable(stored, (), only_on_label=True).tolist() == [[[[False, False, True, True]]]]


@pytest.mark.parametrize("many", [MOST_VALUES, MOST_VALUES + 1])
@pytest.mark.parametrize("spread", [False, True])
def test_values_are_counted_one_by_one_up_to_a_number(many, spread):
    labels = np.zeros((8, 24, 50), np.int32)
    labels.flat[: many * 3 : 3] = np.arange(1, many + 1) * 1000
    if spread:  # so that a sample of the voxels does not meet them
        labels = np.roll(labels, 5000)
    cells = cells_of(labels[None], Box((0, 0, 0), labels.shape), (0, 0, 0), (8, 8, 5), ())
    assert (len(cells.counts) == many) == (many <= MOST_VALUES)
    assert sum(int(counts.sum()) for counts in cells.counts.values()) == many


def test_a_volume_of_a_quintillion_voxels_costs_what_is_stored(tmp_path):
    side = 10**6
    array = create_array(
        str(tmp_path),
        "label",
        shape=(side,) * 3,
        chunks=(64, 64, 64),
        dtype=np.uint8,
        storage=Storage(2),
    )
    block = np.zeros((1, 40, 70, 50), np.uint8)
    block[0, ::3, 5:60, ::2] = 1
    place = Box((500_000, 700_000, 3), (40, 70, 50))
    array.write(place, block)
    volume = open_volume(array.location, key="label")
    grid = patch_grid(volume.box, volume.box, (64, 64, 64), (32, 32, 32), (16, 16, 16))
    store = IndexStore(tmp_path / "i", volume, IndexPlan.of(volume, volume.box, (16,) * 3), print)
    make_index(volume, volume.box, (16, 16, 16), store=store)
    found = patch_density(make_index(volume, volume.box, (16, 16, 16), store=store), grid)
    for origin, count in zip(grid.rows(found.places).tolist(), found.labelled, strict=True):
        patch = Box((origin[0], origin[1], origin[2]), (64, 64, 64)).intersect(place)
        assert count == block[0][patch.slices(within=place)].sum()
    assert len(found.places) == 3 * 3 * 2
