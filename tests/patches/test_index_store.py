"""The stored label index: what it saves, and what must never be believed of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from vcmodels.data.predictions import PredictedLabel
from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box
from vcmodels.patches import index as label_index
from vcmodels.patches.index import IndexPlan
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.patches.index_store import IndexStore
from vcmodels.reporting import Silent
from vcmodels.targets import BinaryTarget
from vcmodels.volumes import open_volume

CELL = (4, 3, 2)


@pytest.fixture(autouse=True)
def small_bricks(monkeypatch):
    monkeypatch.setattr(label_index, "BRICK_SIDE", 16)


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    array = rng.integers(1, 4, (30, 31, 29)).astype(np.uint8)
    array[rng.random(array.shape) < 0.9] = 0
    array[10:20, :, 14:] = 0
    return array


@pytest.fixture
def read_chunks(monkeypatch):
    """Counts reads of chunk files under `data.zarr`."""
    reads: Counter[str] = Counter()
    get = LocalStore.get

    async def counting(self, key, *args, **named):
        if "data.zarr" in str(self.root) and "zarr" not in key:
            reads[key] += 1
        return await get(self, key, *args, **named)

    monkeypatch.setattr(LocalStore, "get", counting)
    return reads


def ask(location, folder, reporter=None, ignore=(), within=None, dask=None):
    """The index of a label as a new process would get it: totals, and all cells."""
    volume = open_volume(location, key="label")
    indexer = Indexer(folder, reporter or Silent(), dask)
    wanted = Wanted(volume, volume.box, within or volume.box, CELL, ignore)
    with closing(indexer.indexes([wanted])) as indexes:
        index = next(indexes)
    cells = index.plan.cells(volume.box)
    counts, planes = index.gather(cells)
    return index.totals(cells), counts.tobytes(), planes.tobytes()


def totals(labels):
    values, counts = np.unique(labels, return_counts=True)
    return {v: n for v, n in zip(values.tolist(), counts.tolist(), strict=True) if v}


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shards", [None, (10, 12, 14)])
def test_each_stored_chunk_is_read_once_and_never_again(
    store, labels, read_chunks, tmp_path, shards
):
    location = store("label", labels, shards=shards)
    stored = set(open_volume(location, key="label").listing.files)
    read_chunks.clear()
    first = ask(location, tmp_path / "index")
    assert set(read_chunks) == {"c/" + "/".join(map(str, i)) for i in stored}
    # Of a shard that the volume's end cuts, zarr reads the index and each inner chunk by itself.
    assert {n for key, n in read_chunks.items() if not (shards and "2" in key)} == {1}
    assert max(read_chunks.values()) <= 9
    read_chunks.clear()
    assert ask(location, tmp_path / "index") == first
    assert not read_chunks
    assert first[0] == totals(labels)


def test_an_edited_chunk_costs_the_reads_of_its_brick_alone(store, labels, read_chunks, tmp_path):
    location = store("label", labels)
    ask(location, tmp_path / "index")
    zarr.open_array(location)[0, 0, 0] = 9
    labels[0, 0, 0] = 9
    read_chunks.clear()
    assert ask(location, tmp_path / "index")[0] == totals(labels)
    assert 0 < len(read_chunks) <= 18
    assert all(max(map(int, key[2:].split("/"))) <= 2 for key in read_chunks)


def test_a_bbox_costs_the_reads_of_the_bricks_that_it_touches(store, labels, read_chunks, tmp_path):
    location = store("label", labels)
    ask(location, tmp_path / "index", within=Box((21, 13, 1), (2, 2, 2)))
    assert 0 < len(read_chunks) <= 18
    before = set(read_chunks)
    ask(location, tmp_path / "index")
    assert set(read_chunks.values()) == {1}
    assert set(read_chunks) > before


def damages():
    def same_size_and_time(location, folder):
        path = next(p for p in files_of(folder) if "cells" in str(p) and p.parent.name != "cells")
        status = path.stat()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def by_hand(location, folder):
        (root,) = folder.iterdir()
        cells = zarr.open_array(root / "cells")
        cells[3] = cells[3] + np.uint16(1)

    def planes_by_hand(location, folder):
        (root,) = folder.iterdir()
        cells = zarr.open_array(root / "cells")
        cells[0] = cells[0] | np.uint16(1)

    def values_by_hand(location, folder):
        (root,) = folder.iterdir()
        seals = zarr.open_array(root / "seals")
        seals[5] = 7

    def absurd_seals(location, folder):
        (root,) = folder.iterdir()
        zarr.open_array(root / "seals")[...] = np.iinfo(np.int64).min

    def torn(location, folder):
        for path in files_of(folder):
            if path.parent.name not in ("cells", "values", "seals") and path.name != "zarr.json":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def chunks_gone(location, folder):
        (root,) = folder.iterdir()
        shutil.rmtree(root / "cells" / "c")

    def metadata_cut(location, folder):
        (root,) = folder.iterdir()
        (root / "cells" / "zarr.json").write_text('{"zarr_format": 3, "node_type"')

    def metadata_gone(location, folder):
        (root,) = folder.iterdir()
        (root / "seals" / "zarr.json").unlink()

    def other_shape(location, folder):
        (root,) = folder.iterdir()
        zarr.open_array(root / "cells").resize((4, 3, 3, 3))

    def a_file_instead(location, folder):
        (root,) = folder.iterdir()
        shutil.rmtree(root)
        root.write_text("hello")

    def of_another_label(location, folder):
        other = zarr.open_array(location)
        other[...] = 3 - np.minimum(other[...], 3)

    return [f for f in locals().values() if callable(f)]


@pytest.mark.parametrize("damage", damages(), ids=lambda f: f.__name__)
def test_what_was_damaged_is_not_used_and_not_fatal(store, labels, tmp_path, damage):
    location, folder = store("label", labels), tmp_path / "index"
    ask(location, folder)
    damage(location, folder)
    wanted = ask(location, None)
    assert ask(location, folder) == wanted
    assert ask(location, folder) == wanted


def test_a_chunk_of_equal_size_and_second_is_noticed(store, labels, tmp_path):
    location, folder = store("label", labels, version=2), tmp_path / "index"
    ask(location, folder)
    path = next(p for p in files_of(tmp_path / "data.zarr" / "label") if p.name.isdigit())
    status = path.stat()
    array = zarr.open_array(location, mode="r+")
    array[...] = np.where(array[...] == 1, 2, array[...])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert ask(location, folder) == ask(location, None)


def test_chunks_that_mean_something_else_by_their_metadata_are_counted_anew(
    store, labels, tmp_path
):
    location, folder = store("label", np.where(labels == 1, 200, labels).astype(np.uint8)), tmp_path
    assert 200 in ask(location, folder / "index")[0]
    metadata = Path(location, "zarr.json")
    metadata.write_text(metadata.read_text().replace('"uint8"', '"int8"'))
    assert set(ask(location, folder / "index")[0]) == {-56, 2, 3}


def test_other_ignored_values_are_another_index(store, labels, tmp_path):
    location, folder = store("label", labels), tmp_path / "index"
    ask(location, folder)
    assert ask(location, folder, ignore=(2,)) == ask(location, None, ignore=(2,))
    assert ask(location, folder) == ask(location, None)


def test_ids_beyond_int64_are_labelled_without_being_told_apart(store, labels, tmp_path):
    huge = labels.astype(np.uint64)
    huge[labels == 2], huge[labels == 3] = 2**63 + 1, 2**64 - 1
    location = store("huge", huge, chunks=(8, 9, 7))
    ignore = (2**64 - 1,)
    first = ask(location, tmp_path / "index", ignore=ignore)
    assert ask(location, tmp_path / "index", ignore=ignore) == first
    plain = store("plain", np.where(labels == 3, 0, labels), chunks=(8, 9, 7))
    assert first[1:] == ask(plain, None)[1:]


def test_a_folder_that_cannot_be_written_is_told_once(store, labels, tmp_path):
    location, reporter = store("label", labels), Silent()
    (tmp_path / "file").write_text("")
    found = ask(location, tmp_path / "file" / "index", reporter)
    assert found == ask(location, None)
    assert len(reporter.lines) == 1
    assert "the label index is not kept" in reporter.lines[0]


def test_a_dask_cluster_gives_the_same(store, labels, tmp_path):
    distributed = pytest.importorskip("distributed")
    location = store("label", labels)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
    ):
        assert ask(location, None, dask=cluster.scheduler_address) == ask(location, None)


def test_a_scheduler_that_is_not_there_is_refused(store, labels, monkeypatch):
    monkeypatch.setattr("vcmodels.devices.CONNECT_S", 0.3)
    with pytest.raises(RefusedError, match=r"--dask.*no Dask scheduler answers"):
        ask(store("label", labels), None, dask="tcp://127.0.0.1:9")


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from vcmodels.patches import index, index_build
index.BRICK_SIDE = 16
whole = index_build.summarise_unit
def slowly(*args):
    time.sleep(0.01)
    return whole(*args)
index_build.summarise_unit = slowly
print("begun", flush=True)
from test_index_store import ask
from pathlib import Path
ask({location!r}, Path({folder!r}))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_twenty_times_the_index_is_that_of_one_pass(store, labels, tmp_path, read_chunks):
    location, folder = store("label", labels), tmp_path / "index"
    script = SCRIPT.format(tests=str(Path(__file__).parent), location=location, folder=str(folder))
    rng, kills = np.random.default_rng(0), 0
    while kills < 20:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            kills += 1
            if b"done" in process.stdout.read():
                shutil.rmtree(folder, ignore_errors=True)
    ask(location, folder)
    again = tmp_path / "again"
    ask(location, again)
    (one,), (other,) = folder.glob("label-*"), again.glob("label-*")
    assert [p.relative_to(one) for p in files_of(one)] == [
        p.relative_to(other) for p in files_of(other)
    ]
    for a, b in zip(files_of(one), files_of(other), strict=True):
        assert a.read_bytes() == b.read_bytes(), a
    read_chunks.clear()
    assert ask(location, folder)[0] == totals(labels)
    assert not read_chunks


def test_two_processes_at_once_leave_one_whole_index(store, labels, tmp_path, read_chunks):
    location, folder = store("label", labels), tmp_path / "index"
    script = SCRIPT.format(tests=str(Path(__file__).parent), location=location, folder=str(folder))
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=800) for process in both] == [0, 0]
    assert [path.name[:6] for path in folder.iterdir()] == ["label-"]  # and nothing half made
    read_chunks.clear()
    assert ask(location, folder)[0] == totals(labels)
    assert not read_chunks


def test_the_store_is_named_by_label_and_plan(store, labels, tmp_path):
    volume = open_volume(store("label", labels), key="label")
    plans = [IndexPlan.of(volume, volume.box, cell, ()) for cell in (CELL, (2, 2, 2))]
    paths = {IndexStore(tmp_path, volume, plan, pytest.fail).path for plan in plans}
    assert len(paths) == 2


def test_a_prediction_that_is_read_in_two_ways_has_an_index_for_each(store, tmp_path, monkeypatch):
    codes = np.random.default_rng(0).integers(0, 256, (20, 31, 29)).astype(np.uint8)
    codes[6:10] = 0
    plain = open_volume(store("label", codes), key="label")
    notes = {"encoding": BinaryTarget().encoding(np.dtype(np.uint8))}
    folder, reporter = tmp_path / "index", Silent()
    ways = [(least, rule) for least in (None, 0.7, 0.9) for rule in (None, ">= 0.8")]

    def totals_of(least, rule):
        target = BinaryTarget(foreground=rule)
        label = PredictedLabel.of(plain, notes, target, least)
        wanted = Wanted(label, label.box, label.box, CELL, target.ignored, target.annotated)
        with closing(Indexer(folder, reporter).indexes([wanted])) as indexes:
            index = next(indexes)
        return sum(index.totals(index.plan.cells(label.box)).values())

    chance = codes / 255
    for least, rule in ways:
        is_sure = np.maximum(chance, 1 - chance) >= (least or 0)
        mask = chance > 0.5 if rule is None else chance >= 0.8
        assert totals_of(least, rule) == (mask & is_sure).sum()
    assert len(list(folder.iterdir())) == len(ways)
    monkeypatch.setattr("vcmodels.patches.index_build.cells_of", pytest.fail)
    for way in (*ways, *ways[::-1]):
        totals_of(*way)
    assert reporter.lines == []
