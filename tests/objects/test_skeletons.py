"""Centre lines of bodies whose lines are known: rods, a Y, and what a pyramid shows of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from osteoid import Skeleton

from tests.objects.places import CREW, SPACING, in_memory, random_ids, stored
from vcmodels import extras
from vcmodels.blockwise import Crew, Part, Threads
from vcmodels.errors import OutputError, RefusedError, VolumeError
from vcmodels.objects import skeletons
from vcmodels.objects.centrelines import traced
from vcmodels.objects.folder import SCRATCH
from vcmodels.objects.skeletons import MANIFEST, SkeletonRequest, write_skeletons
from vcmodels.volumes import Grid, Pyramid, open_volume, write_volume
from vcmodels.volumes.levels import StoredLevel, stored_levels

BLOCK = (7, 8, 9)
NO_OFFSET = (0.0, 0.0, 0.0)


def tube(shape, start, end, radius, spacing=(1.0, 1.0, 1.0)):
    """(Z, Y, X) bool: what is within a radius of a stretch between two voxels, in the spacing."""
    grid = np.stack(np.indices(shape), -1) * np.array(spacing)
    a, b = (np.array(place) * spacing for place in (start, end))
    share = np.clip((grid - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return ((grid - a - share[..., None] * (b - a)) ** 2).sum(-1) <= radius**2


def y_body(shape=(60, 58, 21), middle=(30, 29, 10), radius=4.0):
    """Three arms of one length that meet in the middle."""
    ends = [(7, 29, 10), (50, 9, 10), (50, 49, 10)]
    return np.any([tube(shape, middle, end, radius) for end in ends], axis=0)


def degrees(line):
    return np.bincount(line.edges.ravel().astype(int), minlength=len(line.points))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.5, 2.0), (1.0, 3.0, 3.0)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_line_of_a_straight_rod_has_its_length_and_its_radius(spacing, axis):
    radius = 9.0
    middle = [int(np.ceil(radius / s)) + 2 for s in spacing]
    shape = [2 * n + 1 for n in middle]
    shape[axis] = 60
    along = np.moveaxis(np.indices(shape), 0, -1)[..., axis]
    ends = (list(middle), list(middle))
    ends[0][axis], ends[1][axis] = -99, 199
    rod = tube(shape, *ends, radius, spacing) & (along >= 5) & (along < 50)
    line = traced(rod, spacing, NO_OFFSET)
    assert np.bincount(degrees(line)).tolist() == [0, 2, len(line.points) - 2]
    places = line.points[:, ::-1]
    length = np.ptp(places[:, axis])
    assert abs(length - 45 * spacing[axis]) <= spacing[axis]
    # Ends of the line go to the edges of the flat ends of the rod; what lies between is its middle.
    inner = (places[:, axis] > 15 * spacing[axis]) & (places[:, axis] < 40 * spacing[axis])
    across = [n for n in range(3) if n != axis]
    off = places[inner][:, across] - (np.array(middle) * spacing)[across]
    voxel = np.array(spacing)[across]
    assert (np.abs(off) <= voxel).all()
    assert (np.abs(line.radii[inner] - radius) <= voxel.max()).all()


def test_a_y_has_three_ends_and_one_branch():
    line = traced(y_body(), (1.0, 1.0, 1.0), (100.0, 200.0, 300.0))
    assert np.bincount(degrees(line))[[0, 1, 3]].tolist() == [0, 3, 1]
    places = line.points[:, ::-1] - (100, 200, 300)
    (branch,) = places[degrees(line) == 3]
    assert np.abs(branch - (30, 29, 10)).max() <= 4
    tips = places[degrees(line) == 1]
    for end in ((3, 29, 10), (53, 6, 10), (53, 52, 10)):
        assert np.linalg.norm(tips - end, axis=1).min() <= 4
    assert len(line.points) == len(line.edges) + 1


def test_pieces_have_a_tree_each_and_single_voxels_a_point():
    mask = tube((40, 20, 20), (5, 5, 5), (32, 5, 5), 2) | tube(
        (40, 20, 20), (5, 15, 15), (30, 15, 15), 2
    )
    line = traced(mask, (1.0, 1.0, 1.0), NO_OFFSET)
    assert len(line.points) - len(line.edges) == 2
    order, parents = line.parents()
    assert sorted(order) == list(range(len(line.points)))
    assert (parents == -1).sum() == 2
    place = {point: n for n, point in enumerate(order.tolist())}
    assert all(parent == -1 or place[parent] < n for n, parent in enumerate(parents.tolist()))
    single = np.zeros((3, 4, 5), bool)
    single[1, 2, 3] = True
    line = traced(single, (4.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    assert line.points.tolist() == [[39, 24, 14]]
    assert line.radii.tolist() == [2]
    assert len(traced(np.zeros((3, 4, 5), bool), (1.0, 1.0, 1.0), NO_OFFSET).points) == 0


IDS = np.zeros((60, 58, 42), np.uint64)
IDS[:, :, :21][y_body()] = 7
IDS[tube(IDS.shape, (5, 10, 35), (52, 12, 33), 3)] = 2**40
IDS[30, 50, 40] = 9


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    place = tmp_path_factory.mktemp("ids") / "ids.zarr"
    grid = Grid(SPACING, (10.0, 20.0, 30.0), "micrometer")
    write_volume(
        str(place),
        IDS,
        grid=grid,
        chunks=(16, 16, 16),
        pyramid=Pyramid(levels=2, values="mode"),
    )
    return stored_levels(open_volume(str(place), key="ids"))


def written(levels, folder, crew=CREW, block=BLOCK, **options):
    found = write_skeletons(SkeletonRequest(levels, folder, **options), crew, block)
    assert found is not None
    return found


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != MANIFEST}


def load(folder, form, number):
    """As osteoid reads it."""
    if form == "swc":
        return Skeleton.from_swc((folder / f"{number}.swc").read_text())
    attributes = json.loads((folder / "info").read_text())["vertex_attributes"]
    return Skeleton.from_precomputed(
        (folder / str(number)).read_bytes(), vertex_attributes=attributes
    )


@pytest.mark.parametrize("form", ["swc", "precomputed"])
def test_every_form_is_read_by_another_library_and_lies_in_its_object(levels, tmp_path, form):
    found = written(levels, tmp_path / "s", form=form)
    assert found.table.ids.tolist() == [7, 9, 2**40]
    length = 1e3 if form == "precomputed" else 1.0
    points = 0
    for number in found.table.ids.tolist():
        line = load(tmp_path / "s", form, number)
        places = (line.vertices[:, ::-1] / length - (10, 20, 30)) / SPACING
        z, y, x = np.rint(places).astype(int).T
        np.testing.assert_allclose(places, np.stack([z, y, x], 1), atol=2e-3)
        assert (IDS[z, y, x] == number).all()
        assert len(line.edges) == len(line.vertices) - 1
        assert (line.radii >= min(SPACING) * length * 0.999).all()
        points += len(line.vertices)
    assert found.points == points
    notes = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert notes["complete"]
    assert notes["unit"] == ("nanometer" if form == "precomputed" else "micrometer")
    assert not (tmp_path / "s" / SCRATCH).exists()


def test_files_do_not_depend_on_blocks_threads_or_parts(levels, tmp_path):
    written(levels, tmp_path / "a", block=(99, 99, 99))
    written(levels, tmp_path / "b", Crew(Threads(3)))
    for part in (Part(0, 2), Part(1, 2)):
        written(levels, tmp_path / "c", Crew(Threads(1), part), block=(17, 30, 11))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert len(files_of(tmp_path / "a")) == 3


def test_only_chosen_and_large_objects_are_written(levels, tmp_path):
    found = written(levels, tmp_path / "some", chosen=(7, 9, 99))
    assert found.table.ids.tolist() == [7, 9]
    found = written(levels, tmp_path / "large", min_size=2, form="precomputed")
    assert found.table.ids.tolist() == [7, 2**40]
    info = json.loads((tmp_path / "large" / "segment_properties" / "info").read_text())
    assert info["inline"]["ids"] == ["7", str(2**40)]


def test_a_large_object_is_traced_on_a_coarser_level_that_lies_where_it_does(levels, tmp_path):
    fine, coarse = (written(levels, tmp_path / name, most_voxels=most, chosen=(2**40,))
                    for name, most in (("fine", 60000), ("coarse", 6000)))  # fmt: skip
    assert (fine.coarse, coarse.coarse) == ((), ((1, 1),))
    a, b = (load(tmp_path / name, "swc", 2**40).vertices for name in ("fine", "coarse"))
    assert len(b) < len(a)
    voxel = 2 * np.array(SPACING)[::-1]
    far = np.abs((b[:, None] - a) / voxel).max(axis=-1).min(axis=1)
    assert far.max() <= 1


def test_what_fits_on_no_level_or_is_lost_on_a_coarse_one_is_named(levels, tmp_path):
    found = written(levels, tmp_path / "a", most_voxels=1000)
    assert found.left_out == (7,)
    assert found.coarse == ((2, 1),)
    assert set(files_of(tmp_path / "a")) == {"9.swc", f"{2**40}.swc"}
    empty = in_memory(np.zeros((30, 29, 21), np.uint64))
    lost = (levels[0], StoredLevel(empty, (2.0, 2.0, 2.0), (0.5, 0.5, 0.5)))
    found = written(lost, tmp_path / "b", most_voxels=20000, chosen=(7,))
    assert (found.left_out, found.points, found.table.ids.tolist()) == ((7,), 0, [])


class KilledError(Exception):
    """What stands for a kill."""


def test_a_killed_run_goes_on_where_it_was(levels, tmp_path, monkeypatch):
    written(levels, tmp_path / "whole")
    monkeypatch.setattr(skeletons, "TOGETHER", 1)
    real, calls = skeletons.traced, []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KilledError
        return real(*arguments)

    request = SkeletonRequest(levels, tmp_path / "s")
    monkeypatch.setattr(skeletons, "traced", fails_later)
    with pytest.raises(KilledError):
        write_skeletons(request, CREW, BLOCK)
    assert not request.check()
    measured = []
    monkeypatch.setattr(skeletons, "traced", lambda *a: (measured.append(a), real(*a))[1])
    written(levels, tmp_path / "s")
    assert len(measured) == 2
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert request.check()
    before = {path: path.stat() for path in (tmp_path / "s").iterdir()}
    assert written(levels, tmp_path / "s").table is None
    assert {path: path.stat() for path in (tmp_path / "s").iterdir()} == before


def test_a_stop_between_blocks_is_continued(levels, tmp_path):
    answers = iter([False, False, True])
    crew = Crew(Threads(1), should_stop=lambda: next(answers, True))
    assert write_skeletons(SkeletonRequest(levels, tmp_path / "s"), crew, BLOCK) is None
    written(levels, tmp_path / "s")
    assert len(files_of(tmp_path / "s")) == 3


def test_an_array_without_objects_gives_none(tmp_path):
    empty = stored(np.zeros((6, 7, 8), np.uint8), tmp_path / "ids.zarr")
    found = written((StoredLevel(empty),), tmp_path / "s", form="precomputed")
    assert found.points == 0
    assert set(files_of(tmp_path / "s")) == {"info"}


def test_what_cannot_be_traced_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    ids = SkeletonRequest((StoredLevel(in_memory(random_ids(1))),), tmp_path / "s")
    floats = StoredLevel(in_memory(np.zeros((6, 7, 8), np.float32), "f"))
    with pytest.raises(VolumeError, match="f holds float32; give an array"):
        write_skeletons(replace(ids, levels=(floats,)), CREW)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="m holds other files; name another folder, or remove it"):
        write_skeletons(replace(ids, folder=tmp_path / "m"), CREW)
    write_skeletons(ids, CREW)
    with pytest.raises(OutputError, match="s holds skeletons of other form; name another"):
        replace(ids, form="precomputed").check()
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(RefusedError, match=r'not installed; pip install "vcmodels\[skeletons\]"'):
        ids.check()
