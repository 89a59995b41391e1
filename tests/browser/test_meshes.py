"""Meshes and skeletons in neuroglancer, as the commands make and show them: they are drawn, and where the object is."""

import io
import re
import time
from base64 import b64decode
from importlib import import_module

import numpy as np
import pytest
from PIL import Image as Picture

from vcmodels.cli import main
from vcmodels.volumes import Grid, write_volume

pytest.importorskip("neuroglancer")
command = import_module("vcmodels.cli.view")

SHAPE = (30, 32, 36)
LOW, HIGH = (4, 6, 9), (26, 27, 29)
"""Of the object, a block without its corners."""


def ids():
    found = np.zeros(SHAPE, np.uint32)
    found[tuple(slice(a, b) for a, b in zip(LOW, HIGH, strict=True))] = 7
    return found


def seen(page) -> np.ndarray:
    """(H, W, 3) what is seen below the bars, in [0, 1]."""
    data = page.call("Page.captureScreenshot", format="png")["data"]
    return (
        np.asarray(Picture.open(io.BytesIO(b64decode(data))).convert("RGB"), np.float32)[60:] / 255
    )


def of_hue(picture, colour):
    """Pixels of a colour, however much light falls on them."""
    length = np.linalg.norm(picture, axis=-1)
    along = picture @ colour / np.linalg.norm(colour)
    return (length > 0.2) & (along > 0.995 * length)


def wait_for_mesh(page, colour, least) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the object, and of the lines around the volume, once both are drawn."""
    end = time.monotonic() + 60
    while True:
        picture = seen(page)
        places = [np.argwhere(of_hue(picture, one)) for one in (colour, (1.0, 1.0, 0.0))]
        if len(places[0]) >= least and len(places[1]) > 500:
            return places[0], places[1]
        assert time.monotonic() < end, f"the object is not drawn: {page.errors}"
        time.sleep(0.2)


def look(page, address, least=500) -> tuple[np.ndarray, np.ndarray]:
    """What `wait_for_mesh` finds, along z and without perspective."""
    page.open(address)
    page.wait_for("typeof viewer !== 'undefined' && viewer.isReady()")
    page.evaluate("viewer.showAxisLines.value = false")
    page.evaluate("viewer.layout.restoreState('xy')")
    layers = "viewer.layerManager.managedLayers.length"
    page.wait_for(f"{layers} > 0 && viewer.isReady()")
    colour, end = None, time.monotonic() + 60
    while colour is None or np.ptp(colour) < 0.2:  # grey until the voxels are there
        assert time.monotonic() < end, "the voxels are not drawn"
        picture = seen(page)
        colour = picture[picture.shape[0] // 2 - 10, picture.shape[1] // 2 - 10]
    page.evaluate("viewer.showPerspectiveSliceViews.value = false")
    page.evaluate("viewer.layout.restoreState({type: '3d', orthographicProjection: true})")
    return wait_for_mesh(page, colour, least)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["micrometer", "nanometer", None])
@pytest.mark.parametrize("has_image", [False, True], ids=["alone", "over an image"])
def test_the_mesh_that_the_commands_make_and_show_lies_in_its_place(
    page, tmp_path, monkeypatch, capsys, unit, has_image
):
    monkeypatch.chdir(tmp_path)
    grid = Grid((2.0, 1.5, 1.0), (10.0, 20.0, 30.0), unit)
    write_volume("ids.zarr", ids(), grid=grid, chunks=(16, 16, 16))
    assert main(["mesh", "ids.zarr", "-o", "seen", "--form", "precomputed"]) == 0
    words = ["view", "ids.zarr", "--meshes", "seen", "--no-browser"]
    if has_image:  # another frame of the same voxels
        other = Grid((8.0, 6.0, 4.0), (1.0, 2.0, 3.0), "micrometer")
        write_volume("image.zarr", np.zeros(SHAPE, np.uint8), grid=other, chunks=(16, 16, 16))
        words += ["--image", "image.zarr"]
    found = []

    def visit():
        (address,) = re.findall(r"http://\S+", capsys.readouterr().out)
        found.append(look(page, address))

    monkeypatch.setattr(command, "wait", visit)
    assert main(words) == 0
    (mesh, lines) = found[0]
    assert page.errors == []
    for axis in (1, 2):  # y goes down, x to the right
        start, end = lines[:, axis - 1].min(), lines[:, axis - 1].max()
        voxel = (end - start) / SHAPE[axis]
        assert abs(mesh[:, axis - 1].min() - start - LOW[axis] * voxel) < voxel / 2 + 2
        assert abs(mesh[:, axis - 1].max() - start - HIGH[axis] * voxel) < voxel / 2 + 2


@pytest.mark.slow
def test_the_skeleton_that_the_commands_make_and_show_lies_in_its_object(
    page, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    grid = Grid((2.0, 1.5, 1.0), (10.0, 20.0, 30.0), "micrometer")
    rod = np.zeros(SHAPE, np.uint32)
    rod[12:17, 13:18, 3:33] = 7
    write_volume("ids.zarr", rod, grid=grid, chunks=(16, 16, 16))
    assert main(["skeleton", "ids.zarr", "-o", "seen", "--form", "precomputed"]) == 0
    assert main(["mesh", "ids.zarr", "-o", "around", "--form", "precomputed"]) == 0
    found = []

    def visit():
        (address,) = re.findall(r"http://\S+", capsys.readouterr().out)
        found.append(look(page, address, 2000 if found else 100))
        # The page of the server before has noticed that it ended.
        assert [one for one in page.errors if "/events/" not in one] == []

    monkeypatch.setattr(command, "wait", visit)
    words = ["view", "ids.zarr", "--skeletons", "seen", "--no-browser"]
    assert main(words) == 0
    assert main([*words, "--meshes", "around"]) == 0
    (line, lines), (both, _) = found
    across, along = (np.ptp(lines[:, n]) / SHAPE[n + 1] for n in (0, 1))
    rows, columns = line[:, 0] - lines[:, 0].min(), line[:, 1] - lines[:, 1].min()
    assert abs(columns.min() - 3.5 * along) < along
    assert abs(columns.max() - 32.5 * along) < along
    middle = (columns > 10 * along) & (columns < 26 * along)
    assert np.abs(rows[middle] - 15.5 * across).max() < across
    assert len(both) > 3 * len(line)
