"""Meshes in folders: read by another library, continued after a stop, refused where they would mix."""

import json
import re

import numpy as np
import pytest
from zmesh import Mesh

from tests.objects.places import CREW, SPACING, random_ids, stored
from vcmodels import extras
from vcmodels.blockwise import Crew, Part, Threads
from vcmodels.errors import OutputError, RefusedError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.objects import meshes
from vcmodels.objects.folder import SCRATCH
from vcmodels.objects.meshes import MANIFEST, MeshRequest, write_meshes
from vcmodels.volumes import ArrayVolume, open_volume

BLOCK = (5, 6, 8)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return stored(random_ids(1), tmp_path_factory.mktemp("ids") / "ids.zarr")


def written(volume, folder, crew=CREW, block=BLOCK, **options):
    found = write_meshes(MeshRequest(volume, folder, **options), crew, block)
    assert found is not None
    return found


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != MANIFEST}


def load(folder, form, number) -> Mesh:
    """A mesh, as zmesh reads the form; x, y, z. It reads no PLY but its own."""
    if form == "precomputed":
        (fragment,) = json.loads((folder / f"{number}:0").read_text())["fragments"]
        return Mesh.from_precomputed((folder / fragment).read_bytes())
    data = (folder / f"{number}.{form}").read_bytes()
    return ply(data) if form == "ply" else Mesh.from_obj(data.decode())


def ply(data: bytes) -> Mesh:
    """A PLY by its header: elements one after the other, each with the properties it lists."""
    header, _, rest = data.partition(b"end_header\n")
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == "element"}
    properties = [line[1:] for line in lines if line[0] == "property"]
    assert properties == [
        *(["float", a] for a in "xyz"),
        ["list", "uchar", "int", "vertex_indices"],
    ]
    points = np.frombuffer(rest, "<f4", 3 * counts["vertex"]).reshape(-1, 3)
    faces = np.frombuffer(rest[points.nbytes :], [("count", "u1"), ("of", "<i4", 3)])
    assert len(faces) == counts["face"]
    assert (faces["count"] == 3).all()
    return Mesh(points, faces["of"])


@pytest.mark.parametrize("form", ["ply", "obj", "precomputed"])
def test_every_form_is_read_by_another_library_and_lies_where_the_store_says(
    volume, tmp_path, form
):
    found = written(volume, tmp_path / "m", form=form)
    length = 1e3 if form == "precomputed" else 1.0  # nanometers of a store in micrometers
    ids = volume.read(volume.box)[0]
    assert found.table.ids.tolist() == np.unique(ids[ids > 0]).tolist()
    triangles = 0
    for number in found.table.ids.tolist():
        mesh = load(tmp_path / "m", form, number)
        places = np.argwhere(ids == number)
        low = (places.min(axis=0) - 0.5) * SPACING + (10, 20, 30)
        high = (places.max(axis=0) + 0.5) * SPACING + (10, 20, 30)
        np.testing.assert_allclose(mesh.vertices.min(axis=0), low[::-1] * length, rtol=1e-6)
        np.testing.assert_allclose(mesh.vertices.max(axis=0), high[::-1] * length, rtol=1e-6)
        a, b, c = (mesh.vertices[mesh.faces[:, n]].astype(float) for n in range(3))
        assert np.einsum("ij,ij->", a - low[::-1] * length, np.cross(b - a, c - a)) > 0
        triangles += len(mesh.faces)
    assert found.triangles == triangles
    notes = json.loads((tmp_path / "m" / MANIFEST).read_text())
    assert notes["complete"]
    assert notes["unit"] == ("nanometer" if form == "precomputed" else "micrometer")
    assert not (tmp_path / "m" / SCRATCH).exists()


def test_precomputed_meshes_say_how_large_the_objects_are(volume, tmp_path):
    found = written(volume, tmp_path / "m", form="precomputed")
    info = json.loads((tmp_path / "m" / "info").read_text())
    assert info["@type"] == "neuroglancer_legacy_mesh"
    place = tmp_path / "m" / info["segment_properties"] / "info"
    inline = json.loads(place.read_text())["inline"]
    assert [int(one) for one in inline["ids"]] == found.table.ids.tolist()
    numbers = {one["id"]: one["values"] for one in inline["properties"]}
    assert numbers["voxels"] == found.table.voxels.tolist()
    np.testing.assert_allclose(numbers["volume_um3"], found.table.voxels * np.prod(SPACING))


def test_files_do_not_depend_on_blocks_threads_or_parts(volume, tmp_path):
    written(volume, tmp_path / "a", block=(99, 99, 99))
    written(volume, tmp_path / "b", Crew(Threads(3)))
    for part in (Part(0, 2), Part(1, 2)):
        written(volume, tmp_path / "c", Crew(Threads(1), part), block=(4, 7, 9))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_only_chosen_and_large_objects_are_written(volume, tmp_path):
    every = written(volume, tmp_path / "all").table
    numbers, sizes = every.ids.tolist(), every.voxels.tolist()
    found = written(volume, tmp_path / "some", chosen=(numbers[1], 999))
    assert found.table.ids.tolist() == [numbers[1]]
    name = f"{numbers[1]}.ply"
    assert files_of(tmp_path / "some") == {name: files_of(tmp_path / "all")[name]}
    found = written(volume, tmp_path / "large", min_size=max(sizes))
    kept = [n for n, size in zip(numbers, sizes, strict=True) if size == max(sizes)]
    assert found.table.ids.tolist() == kept
    assert set(files_of(tmp_path / "large")) == {f"{n}.ply" for n in kept}


class KilledError(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("function", ["cut_surfaces", "welded"])
def test_a_killed_run_goes_on_where_it_was(volume, tmp_path, monkeypatch, function):
    written(volume, tmp_path / "whole")
    real, calls = getattr(meshes, function), []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KilledError
        return real(*arguments)

    request = MeshRequest(volume, tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr(meshes, function, fails_later)
        patch.setattr(meshes, "TOGETHER", 1)
        with pytest.raises(KilledError):
            write_meshes(request, CREW, BLOCK)
    assert not json.loads((tmp_path / "m" / MANIFEST).read_text())["complete"]
    kept = len(list((tmp_path / "m" / SCRATCH).glob("*/pieces/*")))
    assert kept >= 2
    assert not request.check()
    counted = []
    monkeypatch.setattr(meshes, "cut_surfaces", lambda *a: (counted.append(a), real_cut(*a))[1])
    written(volume, tmp_path / "m")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "whole")
    blocks = 2 * 2 * 2
    assert len(counted) == (blocks - 2 if function == "cut_surfaces" else 0)
    assert request.check()


real_cut = meshes.cut_surfaces


@pytest.mark.parametrize("function", ["cut_surfaces", "welded"])
def test_a_killed_run_goes_on_with_other_blocks_and_then_with_the_first(
    volume, tmp_path, monkeypatch, function
):
    written(volume, tmp_path / "whole")
    request = MeshRequest(volume, tmp_path / "m")
    for block in (BLOCK, (9, 6, 8)):
        with monkeypatch.context() as patch:
            patch.setattr(meshes, function, raises_killed)
            with pytest.raises(KilledError):
                write_meshes(request, CREW, block)
    written(volume, tmp_path / "m")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "whole")


def raises_killed(*_):
    raise KilledError


def test_a_complete_folder_is_left_as_it_is_but_for_what_is_unfinished(
    volume, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(meshes, "remove_scratch", raises_killed)
        with pytest.raises(KilledError):
            written(volume, tmp_path / "m")
    assert (tmp_path / "m" / SCRATCH).exists()
    before = {path: path.stat() for path in (tmp_path / "m").iterdir() if path.is_file()}
    assert written(volume, tmp_path / "m").table is None
    assert {path: path.stat() for path in (tmp_path / "m").iterdir()} == before


def test_a_stop_between_blocks_is_continued(volume, tmp_path):
    answers = iter([False, False, True])
    crew = Crew(Threads(1), should_stop=lambda: next(answers, True))
    assert write_meshes(MeshRequest(volume, tmp_path / "m"), crew, BLOCK) is None
    written(volume, tmp_path / "m")
    written(volume, tmp_path / "whole")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "whole")


def test_an_array_without_objects_gives_none(tmp_path):
    empty = stored(np.zeros((6, 7, 8), np.uint8), tmp_path / "ids.zarr")
    assert written(empty, tmp_path / "m", form="precomputed").triangles == 0
    assert set(files_of(tmp_path / "m")) == {"info"}


def test_the_largest_id_has_a_mesh_as_well(tmp_path):
    ids = np.zeros((6, 7, 8), np.uint64)
    ids[1, 2, 3], ids[4, 5, 6] = 5, 2**64 - 1
    written(stored(ids, tmp_path / "ids.zarr"), tmp_path / "m", block=(3, 4, 5))
    for number in (5, 2**64 - 1):
        assert len(load(tmp_path / "m", "ply", number).faces) == 8


def test_a_voxel_on_every_side_of_the_volume_is_closed(tmp_path):
    full = stored(np.ones((3, 4, 5), bool), tmp_path / "ids.zarr")
    written(full, tmp_path / "m", block=(3, 3, 3))
    mesh = load(tmp_path / "m", "ply", 1)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 2


def test_a_folder_with_something_else_is_refused_and_left_as_it_is(volume, tmp_path):
    request = MeshRequest(volume, tmp_path / "m")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="m holds other files; name another folder, or remove it"):
        write_meshes(request, CREW)
    assert list((tmp_path / "m").iterdir()) == [tmp_path / "m" / "notes.txt"]
    written(volume, tmp_path / "n", min_size=3)
    with pytest.raises(OutputError, match="n holds meshes of other form, min_size; name another"):
        write_meshes(MeshRequest(volume, tmp_path / "n", "obj"), CREW)
    (tmp_path / "n" / MANIFEST).write_text("[]")
    with pytest.raises(OutputError, match=rf"{re.escape(MANIFEST)} is none of vcmodels"):
        MeshRequest(volume, tmp_path / "n").check()
    with pytest.raises(OutputError, match=r"notes.txt is a file; name a folder"):
        MeshRequest(volume, tmp_path / "m" / "notes.txt").check()


def test_what_cannot_be_meshed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    floats = ArrayVolume.of(np.zeros((6, 7, 8), np.float32), SPACING, "f")
    with pytest.raises(VolumeError, match="f holds float32; give an array"):
        write_meshes(MeshRequest(floats, tmp_path / "m"), CREW)
    ids = ArrayVolume.of(np.zeros((6, 7, 8), np.uint8), SPACING, "i")
    monkeypatch.setattr(meshes, "LONGEST_SIMPLIFIED", 8)
    with pytest.raises(VolumeError, match=r"i is 8 voxels long, from 8 on .*leave --simplify out"):
        MeshRequest(ids, tmp_path / "m", reduction=2).check()
    assert not MeshRequest(ids, tmp_path / "m").check()
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(
        RefusedError, match=r'zmesh, which is not installed; pip install "vcmodels\[objects\]"'
    ):
        write_meshes(MeshRequest(ids, tmp_path / "m"), CREW)
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_are_not_stored_are_not_read(tmp_path, monkeypatch):
    ids = np.zeros((12, 15, 18), np.uint8)
    ids[4, 5, 6] = 1  # in the second chunk of each axis; its surface reaches into all eight
    volume = stored(ids, tmp_path / "a.zarr")
    assert len(list(volume.stored_blocks())) == 1
    read, boxes = type(volume).read, list[Box]()
    monkeypatch.setattr(
        type(volume),
        "read",
        lambda self, box, *more: (boxes.append(box), read(self, box, *more))[1],
    )
    written(volume, tmp_path / "m", block=(4, 5, 6))
    assert len(boxes) == 8
    mesh = load(tmp_path / "m", "ply", 1)
    assert (len(mesh.vertices), len(mesh.faces)) == (6, 8)
    assert open_volume(str(tmp_path / "a.zarr")).fill_value == 0
