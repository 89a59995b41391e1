import numpy as np
import pytest

import vcmodels
from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import open_volume
from vcmodels.volumes.axes import AxisMap, Reading, axis_name, find_axes


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}], ids=["v2", "v3"])
@pytest.mark.parametrize("axis", ["first", "last"])
def test_channels_first_and_last_read_the_same(tmp_path, stores, axis, options):
    data = stores.numbers((3, 6, 7, 8))
    stored = data if axis == "first" else np.moveaxis(data, 0, 3)
    chunks = (1, 2, 3, 3) if axis == "first" else (2, 3, 3, 2)
    path = stores.write(tmp_path / "a.zarr", stored, chunks=chunks, **options)
    volume = open_volume(path, key="normals", channels=3)
    assert volume.axes.channel == {"first": 0, "last": 3}[axis]
    assert (volume.extent, volume.chunks) == ((6, 7, 8), (2, 3, 3))
    np.testing.assert_array_equal(volume.read(volume.box), data)
    assert len(list(volume.stored_blocks())) == 27
    assert volume.missing_blocks() == 0


def find(shape, axes=None, channels=None, declared=None):
    return find_axes(shape, axes, channels, declared=declared, key="v.normals")


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "declared", "expected"),
    [
        ((6, 7, 8), None, None, None, None),
        ((6, 7, 8), None, 1, None, None),
        ((6, 7, 8), None, "any", None, None),
        ((1, 6, 7, 8), None, 1, None, 0),
        ((3, 6, 7, 8), None, 3, None, 0),
        ((6, 7, 8, 3), None, 3, None, 3),
        ((3, 3, 3, 3), None, 3, "last", 3),
        ((3, 3, 3, 3), ("c", "z", "y", "x"), 3, None, 0),
        ((3, 3, 3, 3), ("z", "y", "x", "c"), 3, None, 3),
        ((2, 6, 7, 8), ("c", "z", "y", "x"), "any", None, 0),
        ((6, 7, 8, 2), None, "any", "last", 3),
    ],
)
def test_the_channel_axis_is_found_where_it_is_certain(shape, axes, channels, declared, expected):
    assert find(shape, axes, channels, declared).channel == expected


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
        ((1, 6, 7, 3), None, "any", None, r"as 1 channels of \(6, 7, 3\) or as 3 channels of"),
        ((1, 6, 7, 1), None, None, None, r"as 1 channels of \(6, 7, 1\) or as 1 channels of"),
        ((3, 6, 7, 8), None, 3, "last", "8 channels on its last axis; expected 3"),
        ((3, 6, 7, 8), ("c", "z", "y", "x"), None, None, 'axis c .* has 3 pos.*"index": {"c": 0}'),
        ((2, 6, 7, 8), ("t", "z", "y", "x"), "any", None, 'axis t .* has 2 pos.*"index": {"t": 0}'),
        ((6, 7, 8), ("t", "y", "x"), "any", None, r'\(t, y, x\), no z .*"axes": "zyx"'),
        ((6, 7, 8), ("c", "y", "x"), "any", None, r'\(c, y, x\), no z .*"axes": "zyx"'),
        ((6, 7, 8), ("i", "j", "k"), None, None, r'\(i, j, k\), no z, y, x .*"axes": "zyx"'),
        ((5, 6, 7, 8), ("t", "c", "y", "x"), "any", None, r'no z .*"axes": "zcyx"'),
        ((5, 6, 7, 8), ("c", "c", "y", "x"), "any", None, "no z"),
        ((5, 6, 7, 8), ("c", "x", "y", "z"), "any", "last", 'remove it, or .*"axes": "czyx"'),
        ((2, 6, 7, 8), ("", "z", "y", "x"), "any", None, r'has 2 pos.*no name.*"axes": "czyx"'),
    ],
)
def test_anything_else_is_refused_with_shape_and_remedy(shape, axes, channels, declared, message):
    with pytest.raises(VolumeError, match=message):
        find(shape, axes, channels, declared)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"axes": "zyx", "is_general": False}, r'"axes" names 3 axes .* \(5, 6, 7, 8\)'),
        ({"channels": (0, 5)}, r'"channels" asks for 5, and there are 5 .* from 0 to 4'),
        ({"axes": "tzyx", "index": {"t": 5}}, '"index" asks for t 5, and there are 5 .* to 4'),
        ({"axes": "tzyx"}, '"index": {"t": 0}'),
    ],
)
def test_keys_that_do_not_fit_are_refused(reading, message):
    with pytest.raises(VolumeError, match=message):
        find_axes((5, 6, 7, 8), ("c", "z", "y", "x"), "any", Reading(**reading), key="input")


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("Z", "z"), ("Depth", "z"), ("plane", "z"), ("row", "y"), ("column", "x"), ("width", "x"),
        ("Time", "t"), ("channels", "c"), ("c^", "c"), ("dim_0", ""), ("d2", ""), (None, ""),
        (3, ""), ("angle", "angle"), ("k", "k"),
    ],
)  # fmt: skip
def test_axes_are_known_by_their_usual_names(stored, name):
    assert axis_name(stored) == name


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [
        ((1, 6, 7, 8), (1, 2, 3)),
        ((6, 7, 8, 1), (0, 1, 2)),
        ((1, 1, 6, 7, 8), (2, 3, 4)),
        ((1, 6, 7, 8, 1), (1, 2, 3)),
        ((1, 1, 1, 6, 7, 8), (3, 4, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [None, 1, "any"])
def test_unnamed_axes_of_length_one_around_a_volume_are_dropped(shape, spatial, channels):
    found = find(shape, None, channels)
    assert (found.spatial, found.count(shape), found.is_named) == (spatial, 1, False)


def stored_as(data, letters, other=1, at=0):
    """(C, Z, Y, X) with axes in the order of the letters; axes besides have `other` positions."""
    extra = [name for name in letters if name not in "czyx"]
    full = np.zeros((*[other] * len(extra), *data.shape), data.dtype)
    full[(at,) * len(extra)] = data
    order = [*extra, "c", "z", "y", "x"]
    if "c" not in letters:
        full, order = full.take(0, order.index("c")), [*extra, "z", "y", "x"]
    return np.ascontiguousarray(full.transpose([order.index(name) for name in letters]))


ORDERS = ["zyx", "xyz", "yxz", "czyx", "zyxc", "xyzc", "tczyx", "ctzyx", "tzyx", "xyczt", "tpczyx"]


@pytest.mark.parametrize("letters", ORDERS)
@pytest.mark.parametrize("where", ["v2", "v3", "v3 sharded", "key"])
def test_one_volume_in_any_order_of_axes_reads_the_same(tmp_path, stores, letters, where):
    channels = 3 if "c" in letters else 1
    data = stores.numbers((channels, 6, 7, 8))
    others = [name for name in letters if name not in "czyx"]
    array = stored_as(data, letters, other=2, at=1)
    sides = {"c": 2, "z": 2, "y": 3, "x": 4}
    chunks = tuple(sides.get(name, 1) for name in letters)
    options = {"zarr_format": 2 if where == "v2" else 3}
    if where == "v3 sharded":
        options["shards"] = tuple(2 * n for n in chunks)
    if where == "v2":
        options["attributes"] = {"_ARRAY_DIMENSIONS": list(letters.upper())}
    elif where != "key":
        options["dimension_names"] = list(letters)
    path = stores.write(tmp_path / "a", array, chunks=chunks, **options)
    axes = letters if where == "key" else None
    reading = Reading(
        axes, index=dict.fromkeys(others, 1), channels=(2, 0) if channels > 1 else None
    )
    wanted = data[[2, 0]] if channels > 1 else data
    volume = open_volume(path, key="input", channels="any", reading=reading)
    assert (volume.extent, volume.channels, volume.chunks) == ((6, 7, 8), len(wanted), (2, 3, 4))
    np.testing.assert_array_equal(volume.read(volume.box), wanted)
    part = Box((1, 2, 3), (3, 4, 5))
    np.testing.assert_array_equal(volume.read(part), wanted[:, 1:4, 2:6, 3:8])
    units = [-(-n // u) for n, u in zip((6, 7, 8), volume.storage_unit, strict=True)]
    assert len(list(volume.stored_blocks())) == np.prod(units)
    assert volume.missing_blocks() == 0
    files = list(volume.stored_files(tuple(map(range, units))))
    assert len(files) == len(volume.listing.files)


def test_only_chunks_of_what_is_read_count_as_stored(tmp_path, stores):
    data = np.zeros((3, 2, 6, 7, 8), np.uint8)
    data[0, :, :2], data[2, 1, 4:] = 1, 2
    path = stores.write(tmp_path / "a", data, chunks=(1, 1, 2, 7, 8), dimension_names=[*"tczyx"])
    blocks = {
        (t, channels): list(
            open_volume(
                path, key="input", channels="any", reading=Reading(None, True, channels, {"t": t})
            ).stored_blocks()
        )
        for t in (0, 1, 2)
        for channels in (None, (0,), (1,))
    }
    low, high = Box((0, 0, 0), (2, 7, 8)), Box((4, 0, 0), (2, 7, 8))
    assert blocks == {
        (0, None): [low], (0, (0,)): [low], (0, (1,)): [low],
        (1, None): [], (1, (0,)): [], (1, (1,)): [],
        (2, None): [high], (2, (0,)): [], (2, (1,)): [high],
    }  # fmt: skip
    second = open_volume(path, key="input", channels="any", reading=Reading(index={"t": 2}))
    assert second.missing_blocks() == 2 * 3 - 1


def test_chunks_of_other_channels_are_not_read(tmp_path, stores):
    data = stores.numbers((5, 6, 7, 8))
    path = stores.write(tmp_path / "a", data, chunks=(1, 6, 7, 8), dimension_names=[*"czyx"])
    for other in (0, 2, 3):
        (tmp_path / "a" / "c" / str(other) / "0" / "0" / "0").write_bytes(b"damaged")
    volume = open_volume(path, key="input", channels="any", reading=Reading(channels=(4, 1)))
    np.testing.assert_array_equal(volume.read(volume.box), data[[4, 1]])


def test_identity_and_fingerprint_depend_on_what_is_read_and_on_nothing_else(tmp_path, stores):
    data = stores.numbers((2, 3, 6, 6, 6))
    path = stores.write(tmp_path / "a", data, chunks=(2, 3, 6, 6, 6))
    readings = [
        Reading("tczyx"), Reading("tczyx", index={"t": 1}), Reading("tczyx", channels=(0, 1)),
        Reading("tczyx", channels=(1, 0)), Reading("tcxyz"), Reading("tcyzx"),
    ]  # fmt: skip
    full = [
        open_volume(
            path, key="input", channels="any",
            reading=Reading(r.axes, True, r.channels, {"t": r.index.get("t", 0)}),
        )
        for r in readings
    ]  # fmt: skip
    assert len({volume.identity for volume in full}) == len(full)
    assert len({volume.fingerprint() for volume in full}) == len(full)
    assert full[0].identity == path


def test_a_map_of_a_plain_array_chooses_nothing():
    assert AxisMap(("z", "y", "x"), (0, 1, 2)).choice == ""


def test_the_library_opens_what_a_task_does(tmp_path, stores):
    data = stores.numbers((2, 3, 6, 7, 8))
    path = stores.write(tmp_path / "a", data, chunks=(1, 1, 2, 3, 3))
    with pytest.raises(VolumeError, match='"axes": "tczyx"'):
        vcmodels.open_volume(path)
    volume = vcmodels.open_volume(path, axes="tczyx", index={"t": 1}, channels=[2, 0])
    np.testing.assert_array_equal(volume.read(volume.box), data[1][[2, 0]])


def test_a_task_that_contradicts_the_store_is_obeyed_and_that_is_said(tmp_path, stores):
    path = stores.write(tmp_path / "a", stores.numbers(), dimension_names=["x", None, "z"])
    volume = open_volume(path, key="input", reading=Reading("zyx"))
    assert volume.extent == (6, 7, 8)
    assert volume.axes_notes == (
        "dimension_names names the axes (x, ?, z); the task's zyx goes before it",
    )
    assert open_volume(path, key="input", reading=Reading("xyz")).axes_notes == (
        "axes (x, y, z) are read, and results written, as (z, y, x)",
    )
