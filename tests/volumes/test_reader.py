import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.volumes import ArrayVolume, ChunkError, Reading, open_volume, reader, remote

FAR = 25  # how far outside the padded reads of these tests may lie


def boxes(extent, outside):
    starts = st.tuples(*(st.integers(-outside, n + outside) for n in extent))
    return st.builds(Box, starts, st.tuples(*[st.integers(1, 12)] * 3))


def padded_by_numpy(data, within, box, pad):
    mode = {"zero": "constant"}.get(pad, pad)
    kept = data[within.slices()]
    whole = np.pad(kept, 2 * FAR, mode=mode)
    start = [o - w + 2 * FAR for o, w in zip(box.origin, within.origin, strict=True)]
    return whole[Box(tuple(start), box.shape).slices()]


def test_six_layouts_give_the_same_numbers(tmp_path, stores, any_layout):
    data = stores.numbers()
    volume = open_volume(stores.write(tmp_path / "a.zarr", data, **any_layout), key="input")
    np.testing.assert_array_equal(volume.read(volume.box), data[None])
    assert (volume.extent, volume.chunks, volume.channels) == ((6, 7, 8), (2, 3, 3), 1)
    assert volume.shards == any_layout.get("shards")
    assert volume.missing_blocks() == 0
    np.testing.assert_array_equal(
        volume.read(Box((-2, 3, 5), (9, 9, 9)), pad="reflect")[0],
        padded_by_numpy(data, volume.box, Box((-2, 3, 5), (9, 9, 9)), "reflect"),
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_array_in_memory_is_read_as_a_stored_one(tmp_path, stores, order):
    data = stores.numbers()
    stored = open_volume(stores.write(tmp_path / "a.zarr", data), key="input")
    swapped = data.astype(data.dtype.newbyteorder(order))
    volume = ArrayVolume.of(swapped, stored.spacing, "scan")
    for name in ("extent", "channels", "dtype", "spacing", "box"):
        assert getattr(volume, name) == getattr(stored, name)
    for box, pad in ((Box((-2, 3, 5), (9, 9, 9)), "reflect"), (volume.box, "zero")):
        block = volume.read(box, pad=pad)
        np.testing.assert_array_equal(block, stored.read(box, pad=pad))
        assert block.dtype == stored.read(box).dtype
        assert not np.shares_memory(block, data)
    assert list(volume.stored_blocks()) == [volume.box]
    assert volume.missing_blocks() == 0
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read(again.box)[0], data)


def test_arrays_in_memory_are_told_apart_by_their_values(stores):
    data, spacing = stores.numbers(), (2.0, 1.0, 1.0)
    other = data.copy()
    other[1, 2, 3] += 1
    arrays = data, data.copy(), other
    marks = [ArrayVolume.of(values, spacing, "scan").fingerprint() for values in arrays]
    assert marks[0] == marks[1] != marks[2]
    both = ArrayVolume.of(np.stack([data, other]), spacing, "scan")
    assert both.read(Box((1, 2, 3), (1, 1, 1)))[:, 0, 0, 0].tolist() == [
        data[1, 2, 3],
        other[1, 2, 3],
    ]
    with pytest.raises(ValueError, match=r"label has shape \(7, 8\); give \(Z, Y, X\)"):
        ArrayVolume.of(data[0], spacing, "label")


@pytest.mark.parametrize("pad", ["reflect", "edge", "zero"])
def test_a_padded_read_equals_numpy_pad(tmp_path, stores, pad):
    data = stores.numbers()
    volume = open_volume(stores.write(tmp_path / "a.zarr", data), key="input")

    @settings(deadline=None, max_examples=60)
    @given(boxes(stores.shape, 8), boxes(stores.shape, 0))
    def check(box, within):
        within = within.intersect(volume.box)
        if not within.voxels:
            return
        block = volume.read(box, within=within, pad=pad)
        assert block.shape == (1, *box.shape)
        np.testing.assert_array_equal(block[0], padded_by_numpy(data, within, box, pad))

    check()


def test_a_read_beside_the_part_that_exists_is_refused(tmp_path, stores):
    volume = open_volume(stores.write(tmp_path / "a.zarr", stores.numbers()), key="input")
    with pytest.raises(ValueError, match="holds no voxel"):
        volume.read(volume.box, within=Box((6, 0, 0), (2, 2, 2)))


@pytest.mark.parametrize("pad", ["reflect", "edge", "zero"])
def test_chunks_outside_the_permitted_part_are_never_read(tmp_path, stores, pad):
    data = stores.numbers()
    path = stores.write(tmp_path / "a.zarr", data, zarr_format=2)
    for file in (tmp_path / "a.zarr").glob("[1-9].*"):
        file.write_bytes(b"damaged")
    volume = open_volume(path, key="input")
    first = Box((0, 0, 0), (2, 7, 8))
    block = volume.read(Box((-1, 0, 0), (6, 7, 8)), within=first, pad=pad)
    np.testing.assert_array_equal(block[0, 1:3], data[:2])
    with pytest.raises(reader.ChunkError):
        volume.read(Box((-1, 0, 0), (6, 7, 8)), pad=pad)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_volume_used_here_can_be_read_in_other_processes(tmp_path, stores, start):
    data = stores.numbers()
    volume = open_volume(stores.write(tmp_path / "a.zarr", data), key="input")
    volume.read(volume.box)  # zarr's thread now runs here; a child that inherits it would hang
    with multiprocessing.get_context(start).Pool(2) as pool:
        blocks = [pool.apply_async(volume.read, (volume.box,)) for _ in range(4)]
        for block in blocks:
            np.testing.assert_array_equal(block.get(timeout=60), data[None])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_inherits_an_open_volume_opens_it_again(tmp_path, stores):
    data = stores.numbers()
    volume = open_volume(stores.write(tmp_path / "a.zarr", data), key="input")
    volume.read(volume.box)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=lambda: results.put(volume.read(volume.box)))
    child.start()
    np.testing.assert_array_equal(results.get(timeout=60), data[None])
    child.join()


def test_a_pickle_of_a_volume_is_small_and_equal(tmp_path, stores):
    path = stores.write(tmp_path / "a.zarr", np.ones((16, 16, 16), "uint8"), chunks=(2, 2, 2))
    volume = open_volume(path, key="input")
    volume.read(Box((0, 0, 0), (2, 2, 2)))
    assert volume.missing_blocks() == 0
    copy = pickle.dumps(volume)
    assert len(copy) < 4000
    assert pickle.loads(copy) == volume
    assert hash(volume) == hash(pickle.loads(copy))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8"])
def test_every_number_type_and_byte_order_reads_native(tmp_path, stores, name, order):
    data = stores.numbers(dtype=name)
    stored = data.astype(np.dtype(name).newbyteorder(order))
    volume = open_volume(stores.write(tmp_path / "a", stored, zarr_format=2), key="input")
    block = volume.read(volume.box)
    assert block.dtype == volume.dtype == np.dtype(name)
    assert block.dtype.isnative
    np.testing.assert_array_equal(block[0], data)


def test_big_endian_version_3_reads_native(tmp_path, stores):
    data = stores.numbers()
    path = stores.write(
        tmp_path / "a", data, serializer={"name": "bytes", "configuration": {"endian": "big"}}
    )
    volume = open_volume(path, key="input")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)


def test_chunks_that_are_not_stored_read_as_the_fill_value(tmp_path, stores):
    path = stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2, fill_value=7)
    (tmp_path / "a.zarr" / "0.0.0").unlink()
    volume = open_volume(path, key="input")
    assert volume.missing_blocks() == 1
    assert not volume.is_stored(Box((0, 0, 0), (2, 3, 3)))
    assert volume.is_stored(Box((0, 0, 0), (3, 3, 3)))
    assert (volume.read(Box((0, 0, 0), (2, 3, 3))) == 7).all()


@pytest.mark.parametrize("empty", [2, 40])
def test_stored_blocks_are_those_on_disk_and_cover_each_voxel_once(
    tmp_path, stores, any_layout, empty
):
    data = stores.numbers()
    data[:4, :6, :6] = 0 if empty == 40 else data[:4, :6, :6]
    data[:2, :3, :3] = 0
    volume = open_volume(stores.write(tmp_path / "a.zarr", data, **any_layout), key="input")
    blocks = list(volume.stored_blocks())
    assert blocks == sorted(blocks)
    count = np.zeros(data.shape, int)
    for block in blocks:
        assert volume.box.contains(block)
        count[block.slices()] += 1
    assert count.max() == 1
    assert not data[count == 0].any()
    units = np.prod([-(-n // u) for n, u in zip(data.shape, volume.storage_unit, strict=True)])
    assert len(blocks) == units - volume.missing_blocks()


@given(boxes((6, 7, 8), 3))
@settings(deadline=None, max_examples=40)
def test_stored_blocks_within_a_box_are_those_that_touch_it(tmp_path_factory, box):
    volume = _checkered(tmp_path_factory)
    expected = [b for b in volume.stored_blocks() if b.intersect(box).voxels]
    assert list(volume.stored_blocks(box)) == expected
    assert volume.is_stored(box) == bool(expected)


_made = {}


def _checkered(factory):
    """A store in which every other chunk is absent; made once for all examples."""
    if not _made:
        import zarr

        path = factory.mktemp("checkered") / "a.zarr"
        array = zarr.create_array(path, shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u1")
        for z, y, x in np.ndindex(3, 3, 3):
            if (z + y + x) % 2:
                array[2 * z : 2 * z + 2, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3] = 1
        _made["volume"] = open_volume(str(path), key="input")
    return _made["volume"]


def test_the_store_is_listed_once(tmp_path, stores, monkeypatch):
    path = stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2)
    volume = open_volume(path, key="input")
    calls = []
    real = remote.os.scandir
    monkeypatch.setattr(remote.os, "scandir", lambda p: calls.append(p) or real(p))
    for _ in range(3):
        list(volume.stored_blocks())
        list(volume.stored_blocks(Box((0, 0, 0), (1, 1, 1))))
        volume.is_stored(volume.box)
        volume.missing_blocks()
        volume.fingerprint()
    assert len(calls) == 1


def test_an_absurdly_large_sparse_array_is_opened_and_listed_at_once(tmp_path):
    import zarr

    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(10**12,) * 3, chunks=(4, 4, 4), dtype="u1")[8:9, :1, :1] = 1
    volume = open_volume(str(path), key="input")
    assert list(volume.stored_blocks()) == [Box((8, 0, 0), (4, 4, 4))]
    assert list(volume.stored_blocks(volume.box)) == [Box((8, 0, 0), (4, 4, 4))]
    assert not volume.is_stored(Box((12, 0, 0), (10**11, 4, 4)))
    assert volume.read(Box((7, 0, 0), (2, 1, 1))).tolist() == [[[[0]], [[1]]]]
    assert volume.missing_blocks() == (10**12 // 4) ** 3 - 1


def test_the_fingerprint_follows_content_and_metadata(tmp_path, stores):
    path = stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2)
    before = open_volume(path, key="input").fingerprint()
    assert open_volume(path, key="other").fingerprint() == before
    chunk = tmp_path / "a.zarr" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes())  # only the time in ns differs
    touched = open_volume(path, key="input").fingerprint()
    chunk.unlink()
    removed = open_volume(path, key="input").fingerprint()
    stores.edit(tmp_path / "a.zarr" / ".zarray", fill_value=3)
    changed = open_volume(path, key="input").fingerprint()
    assert len({before, touched, removed, changed}) == 4


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"shards": (7, 4, 7, 8)}], ids=str)
def test_a_file_may_hold_channels_that_are_not_read(tmp_path, stores, monkeypatch, options):
    monkeypatch.setattr(reader, "UNKNOWN_EXCESS", 0)
    data = stores.numbers((7, *stores.shape))
    path = stores.write(tmp_path / "a", data, chunks=(7, 2, 7, 8), compressors=None, **options)
    for channels in ((0,), (6,), (5, 1)):
        chosen = Reading("czyx", channels=channels)
        volume = open_volume(path, key="input", channels="any", reading=chosen)
        np.testing.assert_array_equal(volume.read(volume.box), data[list(channels)])
    one = Reading("czyx", index={"c": 3})
    volume = open_volume(path, key="input", reading=one)
    np.testing.assert_array_equal(volume.read(volume.box)[0], data[3])
    name = volume.names.name((0, 0, 0, 0))
    whole = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(whole * 11)
    with pytest.raises(ChunkError, match="bytes, where a chunk takes at most"):
        volume.read(volume.box)


def test_one_channel_by_its_index_is_not_another(tmp_path, stores):
    data = stores.numbers((3, *stores.shape))
    path = stores.write(tmp_path / "a", data, chunks=(3, 2, 3, 3), zarr_format=2)
    taken = [Reading("czyx", index={"c": number}) for number in range(3)]
    volumes = [open_volume(path, key="input", reading=reading) for reading in taken]
    every = open_volume(path, key="input", channels="any", reading=Reading("czyx"))
    chosen = open_volume(path, key="input", channels="any", reading=Reading("czyx", channels=(0,)))
    assert len({volume.identity for volume in (*volumes, every, chosen)}) == 5
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.read(volume.box)[0], data[number])


def test_the_position_0_of_an_axis_of_one_is_the_array_as_it_is(tmp_path, stores):
    path = stores.write(tmp_path / "a", stores.numbers()[None], chunks=(1, 2, 3, 3), zarr_format=2)
    volume = open_volume(path, key="input", reading=Reading("czyx", index={"c": 0}))
    assert volume.identity == volume.location
