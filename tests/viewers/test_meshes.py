"""Surfaces of ids in the viewer: they lie on the voxels, and only they are served."""

import json

import numpy as np
import pytest

from vcmodels.blockwise import Crew, Threads
from vcmodels.errors import RefusedError
from vcmodels.objects import MeshRequest, SkeletonRequest, write_meshes, write_skeletons
from vcmodels.reporting import Silent
from vcmodels.viewers.contents import scene_of_arrays
from vcmodels.viewers.scene import with_meshes, with_skeletons
from vcmodels.viewers.served import MissingFileError, ServedScene
from vcmodels.viewers.state import state_of
from vcmodels.volumes import Grid, open_volume, write_volume
from vcmodels.volumes.levels import stored_levels

IDS = np.zeros((6, 7, 8), np.uint32)
IDS[1:3, 2:5, 3:8] = 7
IDS[5, 6, 0] = 9


@pytest.fixture
def places(tmp_path):
    """Ids with their meshes, and a folder of an image of the same voxels; in micrometers."""

    def make(grid):
        write_volume(str(tmp_path / "ids.zarr"), IDS, grid=grid, chunks=(4, 4, 4))
        volume = open_volume(str(tmp_path / "ids.zarr"))
        crew = Crew(Threads(1))
        assert write_meshes(MeshRequest(volume, tmp_path / "m", "precomputed"), crew)
        return str(tmp_path / "ids.zarr"), tmp_path / "m"

    return make


@pytest.mark.parametrize("unit", ["micrometer", None])
@pytest.mark.parametrize("has_image", [False, True])
def test_meshes_lie_on_the_voxels(places, tmp_path, unit, has_image):
    ids, folder = places(Grid((4.0, 1.5, 2.0), (10.0, 20.0, 30.0), unit))
    image = tmp_path / "image.zarr"
    grid = Grid((8.0, 3.0, 5.0), (1.0, 2.0, 3.0), unit)  # says something else of the same voxels
    write_volume(str(image), np.ones(IDS.shape, np.uint8), grid=grid, chunks=(4, 4, 4))
    images = [str(image)] if has_image else []
    scene = with_meshes(scene_of_arrays(ids, images, (), Silent()), folder)
    state = state_of(scene, "http://here")
    layer = state["layers"][-1]
    assert layer["segments"] == ["7", "9"]
    voxels, meshes = layer["source"]
    assert (voxels, meshes["url"]) == (
        f"zarr3://http://here/{int(has_image)}/", f"precomputed://http://here/{int(has_image)}/meshes"
    )  # fmt: skip
    stored = np.frombuffer((folder / "7.mesh").read_bytes(), np.float32, 3 * _count(folder), 4)
    points = np.hstack([stored.reshape(-1, 3), np.ones((_count(folder), 1))])
    dimensions = meshes["transform"]["outputDimensions"]
    # Factors are of lengths: a mesh counts nanometers, and a shift the unit of the output.
    points[:, :3] *= [1e-9 / dimensions[axis][0] for axis in "xyz"]
    lengths = [dimensions[axis][0] / state["dimensions"][axis][0] for axis in "xyz"]
    seen = points @ np.transpose(meshes["transform"]["matrix"]) * lengths
    # In the viewer voxel 0 of the first layer begins at its offset, and is 1 long.
    start = np.divide(scene.frame.offset, scene.frame.spacing)[::-1]
    np.testing.assert_allclose(seen.min(axis=0) - start, [3, 2, 1], atol=1e-4)
    np.testing.assert_allclose(seen.max(axis=0) - start, [8, 5, 3], atol=1e-4)


def _count(folder) -> int:
    return int(np.frombuffer((folder / "7.mesh").read_bytes(), np.uint32, 1)[0])


def test_only_files_of_meshes_are_served(places):
    ids, folder = places(Grid())
    (folder / "secret").write_text("x")
    served = ServedScene(with_meshes(scene_of_arrays(ids, (), (), Silent()), folder))
    for name in ("info", "segment_properties/info", "7:0", "7.mesh"):
        assert served.answer(f"0/meshes/{name}")[0] == (folder / name).read_bytes()
    for path in ("0/meshes/secret", "0/meshes/meshes.json", "0/meshes/8:0", "1/meshes/info",
                 "0/meshes/../ids.zarr/zarr.json", "0/meshes/", "0/meshes/7:1"):  # fmt: skip
        with pytest.raises(MissingFileError):
            served.answer(path)
    without = ServedScene(scene_of_arrays(ids, (), (), Silent()))
    with pytest.raises(MissingFileError):
        without.answer("0/meshes/info")


def test_skeletons_are_shown_next_to_meshes_or_without(places, tmp_path):
    ids, folder = places(Grid((4.0, 1.5, 2.0), (10.0, 20.0, 30.0), "micrometer"))
    levels = stored_levels(open_volume(ids))
    request = SkeletonRequest(levels, tmp_path / "s", "precomputed", chosen=(7,))
    assert write_skeletons(request, Crew(Threads(1)))
    scene = with_skeletons(scene_of_arrays(ids, (), (), Silent()), tmp_path / "s")
    (layer,) = state_of(scene, "http://here")["layers"]
    assert layer["segments"] == ["7"]
    assert layer["source"][1]["url"] == "precomputed://http://here/0/skeletons"
    (both,) = state_of(with_meshes(scene, folder), "http://here")["layers"]
    assert [one["url"].rpartition("/")[2] for one in both["source"][1:]] == ["meshes", "skeletons"]
    assert both["source"][1]["transform"] == layer["source"][1]["transform"]
    assert both["segments"] == ["7", "9"]
    served = ServedScene(scene)
    for name in ("info", "segment_properties/info", "7"):
        assert served.answer(f"0/skeletons/{name}")[0] == (tmp_path / "s" / name).read_bytes()
    for name in ("9", "7:0", "skeletons.json", "../m/7.mesh"):
        with pytest.raises(MissingFileError):
            served.answer(f"0/skeletons/{name}")
    with pytest.raises(RefusedError, match=r"--skeletons: .* holds neuroglancer_legacy_mesh; give"):
        with_skeletons(scene, folder)


def test_what_cannot_be_shown_is_refused(places, tmp_path):
    ids, folder = places(Grid())
    scene = scene_of_arrays(ids, (), (), Silent())
    with pytest.raises(RefusedError, match=r"--meshes: .* holds no meshes .*--form precomputed"):
        with_meshes(scene, tmp_path)
    write_volume(str(tmp_path / "image.zarr"), np.ones(IDS.shape, np.uint8), chunks=(4, 4, 4))
    image = scene_of_arrays(str(tmp_path / "image.zarr"), (), (), Silent())
    with pytest.raises(RefusedError, match="no layer shows ids; name their array with --labels"):
        with_meshes(image, folder)
    (folder / "info").write_text(json.dumps({"@type": "x"}))
    with pytest.raises(RefusedError, match="holds no meshes for neuroglancer"):
        with_meshes(scene, folder)
