import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.formats import aligning
from vcmodels.formats.aligning import ahead, aligned, chunk_shape
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import tiles


@given(
    extent=st.tuples(*[st.integers(1, 9)] * 3),
    piece=st.tuples(*[st.integers(1, 5)] * 3),
    depth=st.integers(1, 6),
    channels=st.integers(1, 2),
    seed=st.integers(0, 99),
    room=st.sampled_from([0, 200, 1 << 20]),
)
def test_pieces_in_any_order_become_whole_slabs(
    tmp_path_factory, extent, piece, depth, channels, seed, room
):
    wanted = np.random.default_rng(seed).integers(0, 99, (channels, *extent), np.uint16)
    cut = list(tiles(Box((0, 0, 0), extent), piece))
    boxes = [cut[n] for n in np.random.default_rng(seed).permutation(len(cut))]
    pieces = ((b, wanted[(slice(None), *b.slices())]) for b in boxes)
    found, folder = np.zeros_like(wanted), tmp_path_factory.mktemp("room")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aligning, "ROOM_BYTES", room)
        for box, voxels in ahead(aligned(pieces, wanted.shape, wanted.dtype, depth, folder)):
            assert box.origin[0] % depth == 0
            assert box.shape == (min(depth, extent[0] - box.origin[0]), *extent[1:])
            found[(slice(None), *box.slices())] = voxels
            seen.append(box.origin[0])
    np.testing.assert_array_equal(found, wanted)
    assert sorted(seen) == list(range(0, extent[0], depth))
    assert not list(folder.iterdir())


def test_planes_in_order_leave_one_slab_waiting():
    made = []

    def planes():
        for z in range(12):
            made.append(z)
            yield Box((z, 0, 0), (1, 3, 2)), np.full((1, 1, 3, 2), z, np.uint8)

    slabs = aligned(planes(), (12, 3, 2), np.dtype(np.uint8), 4, None)
    _, voxels = next(slabs)
    assert made == [0, 1, 2, 3]
    np.testing.assert_array_equal(voxels[0, :, 0, 0], [0, 1, 2, 3])


def test_what_fails_while_reading_ahead_reaches_the_writer():
    def broken():
        yield Box((0, 0, 0), (1, 1, 1)), np.zeros((1, 1, 1, 1))
        raise RuntimeError("cut")

    found = ahead(broken())
    next(found)
    with pytest.raises(RuntimeError, match="cut"):
        next(found)


@pytest.mark.parametrize(
    ("shape", "itemsize", "wanted"),
    [
        ((500, 400, 300), 2, (64, 64, 64)),
        ((5, 400, 30), 2, (5, 64, 30)),
        ((4000, 4000, 4000), 2, (128, 128, 128)),
        ((200, 64, 64, 40), 4, (32, 32, 32)),
    ],
)
def test_chunks_are_cubes_of_bounded_bytes(shape, itemsize, wanted):
    assert chunk_shape(shape, itemsize) == wanted
