"""NaN as the fill value says that there is no value: neither damage nor a number."""

import json

import numpy as np
import pytest
import zarr
from torch import nn

from vcmodels.errors import RunError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import predict_request
from vcmodels.reporting import Silent
from vcmodels.volumes import open_volume

EXTENT = (24, 22, 27)
NAN_OF_XARRAY_3 = "AAAAAAAA+H8="


class NeighbourSum(nn.Module):
    """Each voxel and what is next to it along x: NaN would spread."""

    def forward(self, image, targets):
        value = image[:, :1].clone()
        value[..., 1:] += image[:, :1, ..., :-1]
        return dict.fromkeys(targets, (value,))


def sparse(work, *, fill, stored_nan=True, attributes=None):
    """Values in some chunks, with NaN within one of them; the others are not stored."""
    values = np.random.default_rng(1).uniform(1, 9, EXTENT).astype(np.float32)
    values[8:16] = np.nan
    if stored_nan:
        values[3, 4:6, 5:20] = np.nan
    array = zarr.create_array(
        f"{work.folder}/sparse", shape=EXTENT, chunks=(8, 8, 8), dtype="f4", zarr_format=2,
        fill_value=fill, attributes=attributes or {},
    )  # fmt: skip
    array[:8], array[16:] = values[:8], values[16:]
    return values


@pytest.mark.parametrize(
    ("fill", "attributes"),
    [(np.nan, {}), (0, {"_FillValue": NAN_OF_XARRAY_3})],
    ids=["zarr", "xarray"],
)
def test_what_is_not_there_is_read_as_0_and_what_is_not_stored_is_left_out(
    workplace, fill, attributes
):
    work = workplace(np.ones((4, 4, 4), np.float32), network=NeighbourSum())
    values = sparse(work, fill=fill, attributes=attributes)
    report = work.run(input_path=f"{work.folder}/sparse", overlap=0.0, patch_size=[8, 22, 27])
    assert report.is_complete
    known = np.nan_to_num(values)
    expected = known.copy()
    expected[..., 1:] += known[..., :-1]
    np.testing.assert_allclose(work.read(), expected, rtol=1e-6)
    assert not (work.folder / "out/net.zarr/value/0/1").exists()


def test_nothing_is_background_of_any_height(workplace):
    work = workplace(np.ones((4, 4, 4), np.float32), network=NeighbourSum())
    values = sparse(work, fill=np.nan)
    array = zarr.open_array(f"{work.folder}/sparse", mode="r+")
    dark = np.full((8, 8, 8), -1, np.float32)
    dark[2:5] = np.nan
    array[:8, :8, :8] = dark
    work.run(
        input_path=f"{work.folder}/sparse", overlap=0.0, patch_size=[8, 8, 8], skip={"below": 0}
    )
    found = work.read()
    assert not found[:8, :8, :8].any()
    known = np.nan_to_num(values)
    np.testing.assert_allclose(found[20, 9, 9:16], known[20, 9, 9:16] + known[20, 9, 8:15])


def test_nan_in_an_array_of_another_fill_value_is_said_once(workplace):
    work = workplace(np.ones((4, 4, 4), np.float32))
    sparse(work, fill=0)
    array = zarr.open_array(f"{work.folder}/sparse", mode="r+")
    for z, x in ((1, 1), (1, 25), (20, 3), (20, 20)):
        array[z, 2, x] = np.nan
    reporter = Silent()
    with pytest.raises(RunError, match=r"holds nan at \(z, y, x\) = ") as caught:
        work.run(input_path=f"{work.folder}/sparse", options={"reporter": reporter})
    assert len([line for line in reporter.lines if "left out" in line]) == 1
    assert len(str(caught.value)) < 500
    assert str(caught.value).count("replace the values") == 1


def test_what_is_not_stored_may_be_an_error(workplace):
    work = workplace(np.ones((4, 4, 4), np.float32))
    sparse(work, fill=np.nan, stored_nan=False)
    given = {"input_path": f"{work.folder}/sparse", "overlap": 0.0, "on_missing": "error"}
    with pytest.raises(
        VolumeError,
        match=r"^inference_params.input_path: chunks of .*/sparse that are not stored: 12, the first "
        r'\(1, 0, 0\); restore them, or set inference_params.on_missing to "fill"$',
    ):
        work.run(**given)
    assert not (work.folder / "out").exists()
    assert work.run(**given, bbox=[[0, 6], [0, 22], [0, 27]]).is_complete


@pytest.mark.parametrize("channels", [None, [1, 0], [1]], ids=str)
def test_a_channel_that_is_not_stored_is_missing_though_the_others_are(workplace, channels):
    work = workplace(np.ones((4, 4, 4), np.float32))
    place = work.folder / "apart"
    array = zarr.create_array(
        place, shape=(2, 8, 9, 16), chunks=(1, 8, 9, 8), dtype="f4", zarr_format=2
    )
    array[...] = np.random.default_rng(0).uniform(1, 9, array.shape)
    (place / "1.0.0.1").unlink()
    count = len(channels or [0, 1])
    given = {"input_path": str(place), "channel_axis": "first", "on_missing": "error"}
    given |= {"channels": channels, "patch_size": [8, 8, 8], "overlap": 0.0}
    task = work.task(**given)
    request = work.request(task, in_channels=count)
    with pytest.raises(
        VolumeError,
        match=r"chunks of .*/apart that are not stored: 1, the first \(0, 0, 1\); restore",
    ):
        predict_request(request)
    assert not (work.folder / "out").exists()
    for other, taken in (({"bbox": [[0, 8], [0, 9], [0, 8]]}, count), ({"channels": [0]}, 1)):
        task = work.task(**given | other | {"output_dir": str(work.folder / str(other))})
        assert predict_request(work.request(task, in_channels=taken)).is_complete


def test_infinity_is_an_error_even_there(workplace):
    work = workplace(np.ones((4, 4, 4), np.float32))
    sparse(work, fill=np.nan)
    zarr.open_array(f"{work.folder}/sparse", mode="r+")[2, 2, 2] = np.inf
    with pytest.raises(RunError, match=r"holds inf at \(z, y, x\) = \(2, 2, 2\)"):
        work.run(input_path=f"{work.folder}/sparse")


@pytest.mark.parametrize(
    ("fill", "attributes", "is_void"),
    [
        (np.nan, {}, True),
        (0.5, {"_FillValue": NAN_OF_XARRAY_3}, True),
        (0.5, {"_FillValue": "NaN"}, True),
        (0.5, {"_FillValue": "AAAAAAAA8D8="}, False),
        (0.5, {"_FillValue": 3}, False),
        (0.5, {}, False),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_both_zarr_and_xarray_may_say_that_nan_is_no_value(
    tmp_path, version, fill, attributes, is_void
):
    path = str(tmp_path / "a")
    zarr.create_array(
        path, shape=(4, 5, 6), chunks=(4, 5, 6), dtype="f2", zarr_format=version, fill_value=fill,
        attributes=attributes,
    )  # fmt: skip
    volume = open_volume(path)
    assert volume.is_nan_void is is_void
    read = volume.read(Box((0, 0, 0), (1, 1, 1))).item()
    assert json.dumps(read) == json.dumps(float(fill))
