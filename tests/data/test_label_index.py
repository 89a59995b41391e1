from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcmodels.data.label_index import build_index, cell_shape, cut_block, labelled_mask
from vcmodels.data.patch_density import patch_density, patch_grid
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Volume, create_array, open_volume


def brute_force(mask, region, patch, origins):
    """Box voxels and labelled voxels of each patch, from the voxels themselves."""
    found = []
    for origin in product(*origins):
        start = [o + r for o, r in zip(origin, region.origin, strict=True)]
        box = Box((start[0], start[1], start[2]), patch).intersect(region)
        inside = np.argwhere(mask[box.slices()])
        size = int(np.prod(np.ptp(inside, axis=0) + 1)) if len(inside) else 0
        found.append((size, len(inside)))
    return found


def axis_cases():
    return st.tuples(
        st.integers(1, 40),  # extent
        st.integers(1, 20),  # patch
        st.integers(1, 20),  # stride
        st.integers(1, 12),  # chunk
        st.integers(0, 9),  # region start
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    axes=st.tuples(axis_cases(), axis_cases(), axis_cases()),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.0, 0.002, 0.05, 0.9]),
    layout=st.sampled_from(["plain", "sharded", "vectors", "filled"]),
    ignore=st.sampled_from([(), (2,), (1, 3)]),
)
def test_box_and_count_of_every_patch_equal_brute_force(
    tmp_path_factory, axes, seed, density, layout, ignore
):
    extent, patch, stride, chunk, start = (tuple(a) for a in zip(*axes, strict=True))
    stride = tuple(min(s, p) for s, p in zip(stride, patch, strict=True))
    rng = np.random.default_rng(seed)
    channels = (3,) if layout == "vectors" else ()
    labels = rng.integers(1, 4, (*channels, *extent)).astype(np.uint8)
    labels *= rng.random(labels.shape) < density
    fill = 1 if layout == "filled" else 0
    array = create_array(
        str(tmp_path_factory.mktemp("index")),
        "label",
        shape=labels.shape,
        chunks=channels + chunk,
        shards=tuple(2 * c for c in chunk) if layout == "sharded" else None,
        dtype=np.uint8,
        fill_value=fill,
        zarr_format=3,
    )
    array.write(Box((0, 0, 0), extent), labels.reshape(-1, *extent))
    volume = open_volume(array.location, key="label", channels=3 if channels else None)
    low = [min(s, n - 1) for s, n in zip(start, extent, strict=True)]
    region = Box.between(low, extent)

    cell = cell_shape(patch, stride)
    index = build_index(volume, region, cell, ignore, threads=2)
    grid = patch_grid(region, patch, stride, cell)
    found = patch_density(index, grid)

    stored = labels.reshape(-1, *extent)
    mask = (stored != 0).any(0)
    for value in ignore:
        mask &= (stored != value).any(0)
    wanted = brute_force(mask, region, patch, grid.origins)
    assert list(zip(found.box.ravel(), found.labelled.ravel(), strict=True)) == wanted
    assert index.counts.sum() == mask[region.slices()].sum()


@given(
    extent=st.integers(1, 300),
    patch=st.integers(1, 100),
    stride=st.integers(1, 100),
)
def test_origins_are_multiples_of_the_stride_and_one_tail_in_whole_cells(extent, patch, stride):
    stride = min(stride, patch)
    cell = cell_shape((patch, 1, 1), (stride, 1, 1))[0]
    region = Box((3, 0, 0), (extent, 1, 1))
    origins = patch_grid(region, (patch, 1, 1), (stride, 1, 1), (cell, 1, 1)).origins[0]
    assert (np.diff(origins) > 0).all()
    assert (origins % cell == 0).all()
    assert (origins[:-1] % stride == 0).all()
    if extent <= patch:
        assert origins.tolist() == [0]
    else:
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


@pytest.mark.parametrize("shards", [None, (10, 12, 14)])
def test_each_stored_block_is_read_once_and_absent_ones_never(store, monkeypatch, shards):
    labels = np.zeros((30, 31, 29), np.uint8)
    labels[4:9, 5:20, 14:22] = 1
    labels[29, 30, 28] = 1
    volume = open_volume(store("label", labels, shards=shards), key="label")
    stored = set(volume.stored_blocks())
    assert 0 < len(stored) < 125
    reads: Counter[Box] = Counter()
    read = Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, box, *a, **k: reads.update([box]) or read(self, box, *a, **k)
    )
    build_index(volume, volume.box, (4, 4, 3), threads=3)
    assert reads == Counter(stored)


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
    assert labelled_mask(stored).tolist() == [[[False, False, True, True]]]


def test_patches_that_do_not_fit_the_cells_are_refused(store):
    volume = open_volume(store("label", np.ones((20, 20, 20), np.uint8)), key="label")
    index = build_index(volume, volume.box, (4, 4, 4))
    grid = patch_grid(volume.box, (8, 8, 9), (4, 4, 3), (4, 4, 3))
    with pytest.raises(ValueError, match="do not fit cells"):
        patch_density(index, grid)
