import json
import multiprocessing
import re
import shutil
import threading
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

import vcmodels
from tests.formats.made_dicom import numbers, save, series_of
from tests.formats.test_arrays import write_n5
from vcmodels.data.intensities import channel_names
from vcmodels.errors import OutputError, VolumeError
from vcmodels.formats import imported as module
from vcmodels.formats import known, nifti
from vcmodels.formats.base import library
from vcmodels.formats.imported import imported, is_import, open_located
from vcmodels.reporting import Silent
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.world import source_note

AFFINE = np.diag([0.5, 1.5, 4, 1])
VOXELS = np.random.default_rng(0).integers(-99, 99, (9, 8, 70), np.int16)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vcmodels" / "imported"


@pytest.fixture
def case(tmp_path) -> Path:
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), tmp_path / "case.nii.gz")
    return tmp_path / "case.nii.gz"


def zarrs(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.zarr"))


def test_a_file_is_imported_once_and_said_once(cache, case):
    reporter = Silent()
    first = open_located(str(case), reporter=reporter)
    assert reporter.lines == [f"importing case.nii.gz (once, to {cache})"]
    again = open_located(str(case), reporter=reporter)
    assert len(reporter.lines) == 1
    assert again.fingerprint() == first.fingerprint()
    np.testing.assert_array_equal(again.read(again.box)[0], VOXELS.T)
    assert (again.spacing, again.unit) == ((4.0, 1.5, 0.5), "millimeter")
    assert again.shown == str(case)


def test_a_second_opening_reads_nothing_of_the_file(cache, case, monkeypatch):
    open_located(str(case))
    monkeypatch.setattr(module, "examined", None)
    assert open_located(str(case)).extent == (70, 8, 9)


def test_a_copy_or_a_moved_file_is_not_imported_again(cache, case):
    open_located(str(case))
    moved = case.rename(case.with_name("other.nii.gz"))
    reporter = Silent()
    assert open_located(str(moved), reporter=reporter).shown == str(moved)
    assert not reporter.lines
    assert len(zarrs(cache)) == 1


def test_a_file_that_changes_is_imported_again(cache, case):
    before = open_located(str(case))
    nibabel.save(nibabel.Nifti1Image(VOXELS + 1, AFFINE), case)
    after = open_located(str(case))
    np.testing.assert_array_equal(after.read(after.box)[0], VOXELS.T + 1)
    assert after.fingerprint() != before.fingerprint()


def test_another_version_imports_again(cache, case, monkeypatch):
    open_located(str(case))
    for one in (known, module):
        monkeypatch.setattr(one, "VERSION", 99)
    open_located(str(case))
    assert len(zarrs(cache)) == 2


def test_the_same_file_imported_again_is_the_same_volume(cache, case):
    before = open_located(str(case)).fingerprint()
    for store in zarrs(cache):
        shutil.rmtree(store)
    assert open_located(str(case)).fingerprint() == before


def test_names_of_channels_are_kept(cache, tmp_path):
    about = {"axes": "CZYX", "Channel": {"Name": ["nuclei", "membrane"]}}
    values = np.zeros((2, 3, 6, 7), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=about)
    assert channel_names([open_located(str(tmp_path / "a.ome.tif"), channels="any")]) == [
        "nuclei",
        "membrane",
    ]
    np.save(tmp_path / "b.npy", values)
    assert channel_names([open_located(str(tmp_path / "b.npy"), channels="any")]) == ["b:0", "b:1"]


def test_a_file_more_in_a_folder_is_seen(cache, tmp_path):
    (tmp_path / "slices").mkdir()
    for name in "12":
        tifffile.imwrite(tmp_path / f"slices/{name}.tif", VOXELS[0])
    assert open_located(str(tmp_path / "slices")).extent == (2, 8, 70)
    tifffile.imwrite(tmp_path / "slices/3.tif", VOXELS[0])
    assert open_located(str(tmp_path / "slices")).extent == (3, 8, 70)


def test_a_folder_more_between_a_location_and_its_files_is_seen(cache, tmp_path):
    slices = series_of(numbers((5, 4, 3)))
    save(slices[:2], tmp_path / "study" / "ct" / "a")
    assert open_located(str(tmp_path / "study")).extent == (2, 4, 3)
    save(slices[2:], tmp_path / "study" / "ct" / "b")
    assert open_located(str(tmp_path / "study")).extent == (5, 4, 3)


def test_the_note_names_no_folder(cache, case):
    note = source_note(open_located(str(case)))
    assert note["format"] == "nifti"
    assert note["name"] == "case.nii.gz"
    assert re.fullmatch("[0-9a-f]{64}", note["sha256"])
    assert str(case.parent) not in json.dumps(note)


def test_zeros_that_are_not_stored_are_not_missing(cache, tmp_path):
    voxels = np.zeros((70, 70, 70), np.uint8)
    voxels[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii.gz")
    volume = open_located(str(tmp_path / "a.nii.gz"))
    assert len(list(volume.stored_blocks())) == 1
    assert volume.missing_blocks() == 0
    volume.require_stored(volume.box, "on_missing")


def test_a_cut_file_leaves_nothing(cache, case):
    case.write_bytes(case.read_bytes()[:-9])
    with pytest.raises(VolumeError, match=r"case.nii.gz cannot be read .*cut or damaged"):
        open_located(str(case))
    assert not [p.name for p in cache.iterdir() if p.name != "known"]


def test_what_a_killed_import_left_goes_with_the_next(cache, case):
    left = cache / ".abc.zarr.partial"
    (left / "0").mkdir(parents=True)
    (cache / ".abc.zarr.lock").touch()
    (cache / "abc.zarr.import").touch()
    running = cache / ".def.zarr.partial"
    running.mkdir()
    lock = FileLock(cache / ".def.zarr.lock")
    open_located(str(case))
    lock.close()
    assert not left.exists()
    assert not list(cache.glob("*abc*"))
    assert running.exists()


def _open(path: str, start: threading.Barrier, found: multiprocessing.Queue) -> None:
    start.wait()
    reporter = Silent()
    volume = open_located(path, reporter=reporter)
    found.put((len(reporter.lines), int(volume.read(volume.box).sum())))


def test_processes_at_once_import_once(cache, case):
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(3), context.Queue()
    each = [context.Process(target=_open, args=(str(case), start, found)) for _ in range(3)]
    for one in each:
        one.start()
    results = [found.get(timeout=60) for _ in each]
    for one in each:
        one.join()
    assert sorted(lines for lines, _ in results) == [0, 0, 1]
    assert {total for _, total in results} == {int(VOXELS.sum())}
    assert len(zarrs(cache)) == 1


def test_a_full_disk_is_said_with_a_remedy(cache, case, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_image", full)
    with pytest.raises(
        OutputError, match=r"has no room .*set XDG_CACHE_HOME to a folder with room"
    ):
        open_located(str(case))
    assert not zarrs(cache)


def test_a_cache_folder_that_cannot_be_is_refused(case, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="is a file; set XDG_CACHE_HOME"):
        open_located(str(case))


def test_what_else_says_its_source_is_no_import(cache, case, tmp_path):
    open_located(str(case))
    (store,) = zarrs(cache)
    assert is_import(store)
    assert not is_import(tmp_path)
    attributes = json.loads((store / ".zattrs").read_text())
    attributes["vcmodels"]["encoding"] = {}  # as of a prediction
    (store / ".zattrs").write_text(json.dumps(attributes))
    assert not is_import(store)


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(VolumeError, match=r"a.x needs the package no_such, .*vcmodels\[formats\]"):
        library("no_such.inner", "a.x", "input")


def test_a_file_behind_a_url_is_refused():
    with pytest.raises(VolumeError, match=r"a.nii.gz is a file .*; download it, and give its path"):
        open_located("https://host/a.nii.gz")


def test_zarr_stays_where_it_is(tmp_path):
    assert imported(str(tmp_path / "a.zarr"), "input", Silent()) == (str(tmp_path / "a.zarr"), None)


def test_memory_holds_some_slabs_of_a_file(cache, tmp_path, monkeypatch):
    depth, path = 960, tmp_path / "a.nii"
    monkeypatch.setattr(nifti, "_PIECE_BYTES", 1 << 18)
    monkeypatch.setattr(known, "_READ_BYTES", 1 << 18)
    values = np.random.default_rng(0).integers(0, 4000, (96, 80, depth), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    del values
    small = np.zeros((4, 4, 4), np.int16)
    nibabel.save(nibabel.Nifti1Image(small, AFFINE), tmp_path / "b.nii")
    open_located(str(tmp_path / "b.nii"))  # what is loaded once
    tracemalloc.start()
    open_located(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Slabs of 1 MiB, and smaller pieces: how many at once is a matter of time.
    assert peak < path.stat().st_size / 2


def test_a_volume_of_the_library_may_be_a_file(cache, case):
    volume = vcmodels.open_volume(case)
    np.testing.assert_array_equal(volume.read(volume.box)[0], VOXELS.T)


def n5_with_a_block_at(folder: Path, x: int) -> Path:
    """(Z, Y, X) zeros, and one block of ones; x of its first voxel."""
    voxels = np.zeros((4, 4, 8), np.uint8)
    voxels[..., x : x + 4] = 1
    write_n5(folder / "c0", voxels.T, {}, (4, 4, 4))
    (folder / "c0" / str(1 - x // 4) / "0" / "0").unlink(missing_ok=True)
    return folder / "c0"


def test_equal_blocks_at_different_places_are_different_images(cache, tmp_path):
    for x in (0, 4):
        volume = open_located(str(n5_with_a_block_at(tmp_path / f"{x}.n5", x)))
        voxels = volume.read(volume.box)[0]
        assert (voxels[..., x : x + 4] == 1).all()
        assert voxels.sum() == 64
    assert len(zarrs(cache)) == 2


def test_the_voxel_size_of_the_group_around_an_n5_is_part_of_it(cache, tmp_path):
    place = n5_with_a_block_at(tmp_path / "a.n5", 0)
    around = place.parent / "attributes.json"
    for size in (2, 3):
        around.write_text(json.dumps({"pixelResolution": [1, 1, size], "units": "nm"}))
        assert open_located(str(place)).spacing == (size, 1, 1)
