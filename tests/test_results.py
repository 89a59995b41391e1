import shutil
from pathlib import Path

import numpy as np
import pytest

from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.results import (
    KEY,
    census,
    is_complete,
    open_inputs,
    open_prediction,
    our_attributes,
    result_root,
)
from vcmodels.targets import BinaryTarget
from vcmodels.volumes import (
    ChunkError,
    Description,
    Grid,
    create_array,
    open_volume,
    place_at,
    set_group_attributes,
    write_multiscale_group,
)

CODES = np.random.default_rng(0).integers(0, 256, (6, 7, 8), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    """Writes the prediction of one target as inference does, and returns the result's group."""

    def write(**notes):
        root = tmp_path / "out" / "net.zarr"
        shutil.rmtree(root, ignore_errors=True)
        array = create_array(
            str(root), "sheet/0", shape=CODES.shape, chunks=(3, 4, 5), dtype=CODES.dtype
        )
        array.write(open_volume(array.location).box, CODES[None])
        noted = {"encoding": BinaryTarget().encoding(CODES.dtype), "complete": True, **notes}
        write_multiscale_group(str(root / "sheet"), Grid(), Description("sheet", {KEY: noted}))
        return result_root(str(tmp_path / "out"), "net")

    return write


def test_a_prediction_is_opened_where_inference_writes_it(write):
    volume = open_prediction(write(), "sheet", BinaryTarget())
    np.testing.assert_array_equal(volume.read(volume.box)[0], CODES)


def test_what_cannot_be_read_as_the_target_says_is_refused(write):
    with pytest.raises(VolumeError, match=r"net.zarr/depth: there is no prediction; run infer.py"):
        open_prediction(write(), "depth", BinaryTarget())
    with pytest.raises(VolumeError, match=r"is not finished; run infer.py again"):
        open_prediction(write(complete=False), "sheet", BinaryTarget())
    with pytest.raises(VolumeError, match=r"was written with None, the task now says .*restore"):
        open_prediction(write(encoding=None), "sheet", BinaryTarget())


def test_a_result_is_complete_once_its_group_says_so(write, tmp_path):
    root = write()
    assert not is_complete(our_attributes(root))
    for complete in (False, True):
        set_group_attributes(str(root), {KEY: {"complete": complete, "manifest": {}}})
        assert is_complete(our_attributes(root)) == complete
    assert our_attributes(root)["manifest"] == {}
    assert our_attributes(place_at(str(tmp_path / "nothing"))) == {}


def test_a_location_is_named_with_its_key(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert str(result_root("$PLACE/out", "net")) == str(tmp_path / "out" / "net.zarr")
    for folder, found in (
        (None, "is not set"),
        ("$NOWHERE/out", r"\$NOWHERE is not set"),
        ("https://host/out", "https://host/out cannot be written to"),
    ):
        with pytest.raises(TaskError, match=rf"inference_params.output_dir: {found}"):
            result_root(folder, "net")
    with pytest.raises(TaskError, match=r"inference_params.input_path: \$NOWHERE is not set"):
        open_inputs("$NOWHERE/raw")
    with pytest.raises(TaskError, match="input_path: is not set; name the volume"):
        open_inputs(None)


def test_inputs_come_in_the_order_of_their_names(tmp_path):
    paths = []
    for name, extent in (("b", (6, 7, 8)), ("a", (5, 7, 8))):
        array = create_array(str(tmp_path / "in.zarr"), name, shape=extent, chunks=(3, 4, 5),
                             dtype=CODES.dtype)  # fmt: skip
        paths.append(array.location)
    assert [volume.location for volume in open_inputs(paths)] == paths
    assert [volume.location for volume in open_inputs(paths[1])] == paths[1:]
    opened = open_volume(paths[0])
    assert open_inputs([opened, Path(paths[1])]) == (opened, *open_inputs(paths[1]))


@pytest.mark.parametrize("is_old", [False, True], ids=["today", "only the number"])
def test_a_prediction_that_lost_a_chunk_is_not_read_as_zeros(write, is_old):
    root = write()
    chunk = Path(root, "sheet/0/1/0/1")
    found = census(open_prediction(root, "sheet", BinaryTarget()))
    stored = {"sheet/0": found["chunks"] if is_old else found}
    set_group_attributes(str(root), {KEY: {"complete": True, "stored_chunks": stored}})
    assert open_prediction(root, "sheet", BinaryTarget()).extent == (6, 7, 8)
    chunk.unlink()
    with pytest.raises(OutputError, match=r"7 chunks are stored, which were 8; run .* --verify"):
        open_prediction(root, "sheet", BinaryTarget())


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("sheet/0/.zarray", b'{"zarr', r"0/.zarray is not JSON"),
        ("sheet/0/.zarray", b"{}", r"0/.zarray has zarr_format None"),
        ("sheet/.zattrs", b"[]", r"sheet: .zattrs holds no JSON object"),
        (".zattrs", b"", r"net.zarr: .zattrs is not JSON"),
        ("sheet/0/0/0/0", b"", r"0/0/0/0 is empty"),
        ("sheet/0/0/0/0", bytes(50), r"0/0/0/0 does not begin as a zstd chunk"),
        ("sheet/0/0/0/0", bytes.fromhex("28b52ffd 24 3d 00"), r"holds 61 bytes and should hold 60"),
        ("sheet/0/.zarray", None, r"sheet/0: is missing"),
    ],
)
def test_a_damaged_prediction_is_named_with_what_repairs_it(write, name, content, found):
    root = write()
    set_group_attributes(str(root), {KEY: {"complete": True}})
    if content is None:
        Path(root, name).unlink()
    else:
        Path(root, name).write_bytes(content)
    with pytest.raises(OutputError, match=rf"{found}.*; run infer.py with --verify"):
        open_prediction(root, "sheet", BinaryTarget())


def test_a_damaged_chunk_of_a_prediction_is_not_to_be_deleted(write):
    root = write()
    volume = open_prediction(root, "sheet", BinaryTarget())
    chunk = Path(root, "sheet/0/0/0/0")
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ChunkError, match=r"cannot be read .*; run infer.py with --verify"):
        volume.read(volume.box)
