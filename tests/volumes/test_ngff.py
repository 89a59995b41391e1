import pytest

from vcmodels.errors import VolumeError
from vcmodels.volumes import open_volume

AXES = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]


def image(*levels, axes=AXES, **more):
    datasets = [{"path": p, "coordinateTransformations": t} for p, t in levels]
    return {"axes": axes, "datasets": datasets, **more}


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def move(*values):
    return {"type": "translation", "translation": list(values)}


@pytest.fixture(params=["0.4", "0.5"])
def pyramid(tmp_path, stores, request):
    levels = [("s0", [scale(2, 3, 4)]), ("deep/s1", [scale(4, 6, 8), move(1, 1.5, 2)])]
    if request.param == "0.4":
        attributes, version = {"multiscales": [image(*levels, version="0.4")]}, 2
    else:
        attributes, version = {"ome": {"version": "0.5", "multiscales": [image(*levels)]}}, 3
    root = tmp_path / "image.zarr"
    stores.write_group(root, attributes, version)
    stores.write(root / "s0", stores.numbers((6, 7, 8)), zarr_format=version)
    stores.write(root / "deep" / "s1", stores.numbers((3, 4, 4)), zarr_format=version)
    return str(root)


def test_the_levels_of_an_ome_zarr_group_carry_spacing_and_unit(pyramid):
    fine, coarse = (open_volume(pyramid, key="input", level=n) for n in (0, 1))
    assert (fine.extent, fine.spacing, fine.offset) == ((6, 7, 8), (2, 3, 4), (0, 0, 0))
    assert (coarse.extent, coarse.spacing, coarse.offset) == ((3, 4, 4), (4, 6, 8), (1, 1.5, 2))
    assert fine.unit == coarse.unit == "micrometer"
    assert coarse.location == f"{pyramid}/deep/s1"


def test_an_array_named_by_its_own_path_finds_the_group_that_describes_it(pyramid):
    direct = open_volume(f"{pyramid}/deep/s1", key="input")
    assert direct == open_volume(pyramid, key="input", level=1)


def test_a_missing_level_is_named_with_those_that_exist(pyramid):
    with pytest.raises(
        VolumeError, match=r"input: .* 2 levels \(s0, deep/s1\), not level 2; .*0 to 1"
    ):
        open_volume(pyramid, key="input", level=2)
    with pytest.raises(VolumeError, match="an array, which has no level 1"):
        open_volume(f"{pyramid}/s0", key="input", level=1)


def test_channel_axes_and_transformations_of_the_whole_image_are_understood(tmp_path, stores):
    axes = [{"name": "c", "type": "channel"}, *AXES]
    levels = ("0", [scale(1, 2, 2, 2), move(0, 10, 0, 0)])
    whole = image(levels, axes=axes, coordinateTransformations=[scale(1, 5, 1, 1)])
    stores.write_group(tmp_path / "a.zarr", {"multiscales": [whole]})
    stores.write(
        tmp_path / "a.zarr" / "0", stores.numbers((3, 3, 3, 3)), chunks=(1, 2, 2, 2), zarr_format=2
    )
    volume = open_volume(str(tmp_path / "a.zarr"), key="input", channels=3)
    assert volume.axes.channel == 0
    assert (volume.spacing, volume.offset) == ((10, 2, 2), (50, 0, 0))


@pytest.mark.parametrize(
    ("attributes", "spacing", "offset", "unit"),
    [
        ({"resolution": [40, 4, 4], "offset": [80, 0, 8]}, (40, 4, 4), (80, 0, 8), None),
        ({"resolution": [40, 4, 4], "units": ["nm", "nm", "nm"]}, (40, 4, 4), (0, 0, 0), "nanometer"),
        ({"voxel_size": [1, 2, 3], "voxel_unit": "µm"}, (1, 2, 3), (0, 0, 0), "micrometer"),
        (
            {"transform": {"axes": ["x", "y", "z"], "scale": [3, 2, 1], "translate": [6, 5, 4], "units": ["nm"] * 3}},
            (1, 2, 3), (4, 5, 6), "nanometer",
        ),
        ({"resolution": "fine", "offset": 3}, (1, 1, 1), (0, 0, 0), None),
        ({"resolution": [0, 1, 1]}, (1, 1, 1), (0, 0, 0), None),
        ({}, (1, 1, 1), (0, 0, 0), None),
    ],
    ids=["resolution", "units", "voxel_size", "transform-xyz", "nonsense", "zero", "none"],
)  # fmt: skip
@pytest.mark.parametrize("on", ["array", "group"])
def test_janelia_attributes_give_the_spacing(
    tmp_path, stores, attributes, spacing, offset, unit, on
):
    stores.write_group(tmp_path / "a.zarr", attributes if on == "group" else {})
    own = attributes if on == "array" else {}
    path = stores.write(
        tmp_path / "a.zarr" / "raw", stores.numbers(), zarr_format=2, attributes=own
    )
    volume = open_volume(path, key="input")
    assert (volume.spacing, volume.offset, volume.unit) == (spacing, offset, unit)
