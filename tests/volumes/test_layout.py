import numpy as np
import pytest

from vcmodels.errors import VolumeError
from vcmodels.volumes import open_volume
from vcmodels.volumes.nodes import find_channel_axis


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}], ids=["v2", "v3"])
@pytest.mark.parametrize("axis", ["first", "last"])
def test_channels_first_and_last_read_the_same(tmp_path, stores, axis, options):
    data = stores.numbers((3, 6, 7, 8))
    stored = data if axis == "first" else np.moveaxis(data, 0, 3)
    chunks = (1, 2, 3, 3) if axis == "first" else (2, 3, 3, 2)
    path = stores.write(tmp_path / "a.zarr", stored, chunks=chunks, **options)
    volume = open_volume(path, key="normals", channels=3)
    assert (volume.channel_axis, volume.extent, volume.chunks) == (axis, (6, 7, 8), (2, 3, 3))
    np.testing.assert_array_equal(volume.read(volume.box), data)
    assert len(list(volume.stored_blocks())) == 27
    assert volume.missing_blocks() == 0


def find(shape, axes=None, channels=None, declared=None):
    return find_channel_axis(shape, axes, channels, declared, key="v.normals")


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "declared", "expected"),
    [
        ((6, 7, 8), None, None, None, None),
        ((6, 7, 8), None, 1, None, None),
        ((6, 7, 8), None, "any", None, None),
        ((1, 6, 7, 8), None, 1, None, "first"),
        ((3, 6, 7, 8), None, 3, None, "first"),
        ((6, 7, 8, 3), None, 3, None, "last"),
        ((3, 3, 3, 3), None, 3, "last", "last"),
        ((3, 3, 3, 3), ("c", "z", "y", "x"), 3, None, "first"),
        ((3, 3, 3, 3), ("z", "y", "x", "c"), 3, None, "last"),
        ((2, 6, 7, 8), ("c", "z", "y", "x"), "any", None, "first"),
        ((6, 7, 8, 2), None, "any", "last", "last"),
    ],
)
def test_the_channel_axis_is_found_where_it_is_certain(shape, axes, channels, declared, expected):
    assert find(shape, axes, channels, declared) == expected


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "declared", "message"),
    [
        ((6, 7), None, None, None, r"v.normals: shape \(6, 7\) has 2 axes; expected 3 axes"),
        ((1, 1, 6, 7, 8), None, 3, None, "has 5 axes; .* or 4, with channels first or last"),
        ((3, 6, 7, 8), None, None, None, r"has 4 axes; expected 3 axes \(z, y, x\)"),
        ((3, 6, 7, 8), None, 1, None, "no axis of 1 channels, neither first nor last"),
        ((6, 7, 8), None, 3, None, "no channel axis; expected 3 channels"),
        ((3, 3, 3, 3), None, 3, None, r"as 3 channels of \(3, 3, 3\) or .*\"channel_axis\""),
        ((2, 6, 7, 4), None, "any", None, r"as 2 channels of \(6, 7, 4\) or as 4 channels of"),
        ((3, 6, 7, 8), None, 3, "last", "8 channels on its last axis; expected 3"),
        ((6, 7, 8), ("x", "y", "z"), None, None, "expected the order z, y, x"),
    ],
)
def test_anything_else_is_refused_with_shape_and_remedy(shape, axes, channels, declared, message):
    with pytest.raises(VolumeError, match=message):
        find(shape, axes, channels, declared)
