"""Reading through a cache: the same voxels, each chunk decoded once while it fits, within a budget."""

import pickle

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Reading, Volume, create_array, open_volume
from vcmodels.volumes.chunk_cache import CachedVolume, ChunkCache

EXTENT, CHUNKS = (13, 18, 23), (4, 5, 6)


@pytest.fixture(scope="module", params=[None, 3], ids=["plain", "channels"])
def volume(request, tmp_path_factory):
    rng = np.random.default_rng(0)
    lead = () if request.param is None else (request.param,)
    array = create_array(
        str(tmp_path_factory.mktemp("cache") / "a.zarr"), "a", shape=(*lead, *EXTENT),
        chunks=(*lead, *CHUNKS), dtype=np.uint16,
    )  # fmt: skip
    values = rng.integers(1, 60_000, (request.param or 1, *EXTENT)).astype(np.uint16)
    array.write(Box((0, 0, 0), EXTENT), values)
    return open_volume(array.location, key="a", channels=request.param)


def boxes():
    starts = [st.integers(-3, n - 1) for n in EXTENT]
    return st.builds(
        lambda origin, shape: Box(origin, shape),
        st.tuples(*starts),
        st.tuples(*(st.integers(1, n + 3) for n in EXTENT)),
    )


@given(wanted=st.lists(boxes(), min_size=1, max_size=6), budget=st.sampled_from([0, 3000, 10**6]))
def test_voxels_are_those_of_the_volume_within_the_budget(volume, wanted, budget):
    cache = ChunkCache(budget)
    cached = CachedVolume.of(volume, cache)
    for box in wanted:
        found = cached.read(box, pad="reflect")
        np.testing.assert_array_equal(found, volume.read(box, pad="reflect"))
        assert found.flags.c_contiguous or not volume.box.contains(box)
        found += 1  # must not reach what is kept
        assert cache.bytes <= budget
        assert cache.bytes == sum(block.nbytes for block in cache._blocks.values())
        assert all(owned(block) == block.nbytes for block in cache._blocks.values())


def owned(array):
    """Bytes that are kept alive by an array."""
    return array.nbytes if array.base is None else owned(array.base)


def spied(monkeypatch):
    read, inner = [], Volume._read_inside

    def spy(self, box):
        read.append(box)
        return inner(self, box)

    monkeypatch.setattr(Volume, "_read_inside", spy)
    return read


def test_a_chunk_is_decoded_once_while_it_fits(volume, monkeypatch):
    read = spied(monkeypatch)
    cached = CachedVolume.of(volume, ChunkCache(10**6))
    cached.read(Box((1, 1, 1), (6, 7, 8)))
    assert [box.shape for box in read] == [(8, 10, 12)]  # whole chunks, at once
    cached.read(Box((0, 2, 3), (8, 5, 9)))
    assert len(read) == 1
    cached.read(Box((1, 1, 1), (6, 7, 14)))
    assert sorted(box.origin for box in read[1:]) == [
        (z, y, 12) for z in (0, 4) for y in (0, 5)
    ]  # the column that was not there
    cached.read(volume.box)
    count = len(read)
    cached.read(volume.box)
    assert len(read) == count


def test_the_chunk_that_was_not_used_for_longest_goes_first(volume, monkeypatch):
    size = volume.channels * 2 * int(np.prod(CHUNKS))
    cached = CachedVolume.of(volume, ChunkCache(2 * size))
    first, second, third = (Box((0, 0, x), (1, 1, 1)) for x in (0, 6, 12))
    for box in (first, second, first, third):
        cached.read(box)
    read = spied(monkeypatch)
    cached.read(first)
    cached.read(third)
    assert not read
    cached.read(second)
    assert len(read) == 1


def test_a_box_over_more_chunks_than_fit_is_read_as_it_is(volume, monkeypatch):
    size = volume.channels * 2 * int(np.prod(CHUNKS))
    cached = CachedVolume.of(volume, ChunkCache(4 * size - 1))
    read = spied(monkeypatch)
    cached.read(Box((1, 1, 1), (5, 6, 2)))  # in four chunks
    assert [box.shape for box in read] == [(5, 6, 2)]
    assert cached.cache.bytes == 0


def test_what_is_kept_stays_in_its_process(volume):
    cached = CachedVolume.of(volume, ChunkCache(10**6))
    cached.read(volume.box)
    copies = pickle.loads(pickle.dumps([cached, cached]))
    assert copies[0].cache is copies[1].cache
    assert (copies[0].cache.budget, copies[0].cache.bytes) == (10**6, 0)
    assert len(pickle.dumps(cached)) < len(pickle.dumps(volume)) + 2000
    np.testing.assert_array_equal(copies[0].read(volume.box), volume.read(volume.box))


def test_one_cache_keeps_channels_and_times_of_an_array_apart(tmp_path):
    values = np.random.default_rng(0).integers(0, 99, (2, 3, *EXTENT)).astype(np.uint8)
    chunks = (1, 3, *CHUNKS)
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, dtype="u1", chunks=chunks, dimension_names=[*"tczyx"]
    )
    array[...] = values
    cache = ChunkCache(10**6)
    for time, channel in np.ndindex(2, 3):
        reading = Reading(index={"t": time, "c": channel})
        volume = open_volume(str(tmp_path / "a"), key="label", reading=reading)
        found = CachedVolume.of(volume, cache).read(volume.box)
        np.testing.assert_array_equal(found[0], values[time, channel])
    image = open_volume(
        str(tmp_path / "a"), key="input", channels=3, reading=Reading(index={"t": 0})
    )
    found = CachedVolume.of(image, cache).read(image.box)
    np.testing.assert_array_equal(found, values[0])
