"""A chunk that is put back lets a run go on with what is finished; another input does not."""

import os

import numpy as np
import pytest
import zarr

from tests.inference.conftest import Workplace
from vcmodels.data.normalization import Normalization
from vcmodels.errors import OutputError, RunError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import RunOptions, predict_request
from vcmodels.inference.repair import InputRecord, lets_continue
from vcmodels.reporting import Silent

EXTENT = (40, 30, 28)
BAD, FAR = "4/3/3", "0/0/0"


def noise():
    return np.random.default_rng(5).random(EXTENT, np.float32) + 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    work = Workplace(tmp_path_factory.mktemp("reference"), noise(), (8, 8, 8))
    work.run(overlap=0.3)
    return work.hashes()


@pytest.fixture
def begun(workplace):
    """A run that is unfinished for one chunk, cut short, and the bytes of that chunk."""
    work = workplace(noise())
    chunk = work.folder / "input.zarr/raw" / BAD
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    with pytest.raises(RunError, match=r"chunk \(4, 3, 3\)"):
        work.run(overlap=0.3)
    return work, chunk, whole


def stamped(work):
    root = work.folder / "out/net.zarr/value/0"
    return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name[0] != "."}


def changed_later(path, data):
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))


def test_a_chunk_that_was_put_back_at_another_time_lets_the_run_finish(begun, reference):
    work, chunk, whole = begun
    before, reporter = stamped(work), Silent()
    changed_later(chunk, whole)
    report = work.run(overlap=0.3, options={"reporter": reporter})
    assert report.is_complete
    assert work.hashes() == reference
    assert 0 < report.patches < 60
    assert before.items() <= stamped(work).items()
    assert any("chunks of the input that changed: 1; what is finished" in s for s in reporter.lines)
    assert work.run(overlap=0.3).was_complete
    assert not (work.folder / "out/net.zarr/.vcmodels").exists()


def test_chunks_of_the_same_bytes_are_the_same_whatever_their_times(begun, reference):
    work, chunk, whole = begun
    chunk.write_bytes(whole)
    for path in (work.folder / "input.zarr/raw").rglob("*"):
        if path.is_file():
            os.utime(path, ns=(10**18, 10**18))
    assert work.run(overlap=0.3).is_complete
    assert work.hashes() == reference


@pytest.mark.parametrize("change", ["other bytes", "gone", "metadata"])
def test_what_was_read_and_changed_is_refused(begun, change):
    work, chunk, whole = begun
    before = stamped(work)
    chunk.write_bytes(whole)
    far = work.folder / "input.zarr/raw" / FAR
    if change == "gone":
        far.unlink()
    elif change == "metadata":
        far = work.folder / "input.zarr/raw/.zarray"
        far.write_text(far.read_text() + " ")
    else:
        changed_later(far, (work.folder / "input.zarr/raw/0/0/1").read_bytes())
    with pytest.raises(OutputError, match=r"input_content was .*; restore its chunks"):
        work.run(overlap=0.3)
    assert stamped(work) == before


def test_what_is_looked_at_anew_counts_as_read(begun):
    work, chunk, whole = begun
    changed_later(chunk, whole)
    with pytest.raises(OutputError, match="input_content was"):
        work.run(overlap=0.3, options={"verify": True})


def test_a_chunk_that_nothing_can_have_read_may_come_and_go(workplace):
    work = workplace(noise())
    raw = work.folder / "input.zarr/raw"
    bbox = [[0, 16], [0, 16], [0, 16]]
    whole = (raw / "0/1/0").read_bytes()
    (raw / "0/1/0").write_bytes(b"noise")
    with pytest.raises(RunError, match=r"chunk \(0, 1, 0\)"):
        work.run(overlap=0.3, bbox=bbox)
    changed_later(raw / "0/1/0", whole)
    (raw / BAD).unlink()
    assert work.run(overlap=0.3, bbox=bbox).is_complete


def test_without_a_sound_note_of_the_chunks_it_is_as_before(begun):
    work, chunk, whole = begun
    changed_later(chunk, whole)
    note = work.folder / "out/net.zarr/.vcmodels/inputs.npz"
    data = note.read_bytes()
    for damaged in (data[:40], data[: len(data) // 2], b"", b"noise", None):
        note.unlink()
        if damaged is not None:
            note.write_bytes(damaged)
        with pytest.raises(OutputError, match="input_content was"):
            work.run(overlap=0.3)
        note.write_bytes(data)
    assert work.run(overlap=0.3).is_complete


class Pipe:
    """What a record is made of."""

    def __init__(self, volume, grid, scale=1.0):
        self.inputs, self.grid, self.measured, self.stack = (volume,), grid, (scale,), None


def test_a_record_survives_its_file_and_statistics_are_part_of_it(workplace):
    from vcmodels.geometry.grid import PatchGrid
    from vcmodels.volumes import open_volume

    work = workplace(noise())
    volume = open_volume(f"{work.store}/raw")
    grid = PatchGrid.covering(EXTENT, (6, 8, 10), (0.3,) * 3)
    record = InputRecord.of(Pipe(volume, grid))
    assert InputRecord.from_bytes(record.to_bytes()) == record
    assert len(record.chunks[0]) == 5 * 4 * 4
    done = [Box((0, 0, 0), (8, 30, 28))]
    assert lets_continue(Pipe(volume, grid), record, record, done)
    other = InputRecord.of(Pipe(volume, grid, scale=1.01))
    assert not lets_continue(Pipe(volume, grid), record, other, done)


def test_a_chunk_was_read_if_a_patch_touches_both_it_and_what_is_finished(workplace):
    from vcmodels.geometry.grid import PatchGrid
    from vcmodels.volumes import open_volume

    work = workplace(noise())
    volume = open_volume(f"{work.store}/raw")
    grid = PatchGrid.covering(EXTENT, (6, 8, 10), (0.3,) * 3)
    record = InputRecord.of(Pipe(volume, grid))
    patches = [
        Box(grid.origin(index), grid.patch).intersect(volume.box)
        for index in np.ndindex(*grid.shape)
    ]
    done = Box((8, 8, 0), (8, 8, 28))
    for index in record.chunks[0]:
        chunk = Box(tuple(8 * i for i in index), (8, 8, 8)).intersect(volume.box)
        is_read = any(p.intersect(chunk).voxels and p.intersect(done).voxels for p in patches)
        one = InputRecord(({**record.chunks[0], index: (1, 1)},), record.manner)
        assert lets_continue(Pipe(volume, grid), record, one, [done]) is not is_read


def test_statistics_of_the_input_that_changed_make_another_input_however_little(workplace):
    """What they make of round numbers is the same: all lie outside of the percentiles."""
    values = np.random.default_rng(5).uniform(200, 201, EXTENT).astype(np.float32)
    values[32:] = 199.9
    work = workplace(values)
    task = work.task(overlap=0.3)
    config = task.dataset_config
    way = config.normalization.model_copy(update={"scheme": "percentile", "per": "volume"})
    config = config.model_copy(update={"normalization": way})
    task = task.model_copy(update={"dataset_config": config})

    def run(**options):
        request = work.request(task, normalization=Normalization("percentile", "volume"))
        return predict_request(request, RunOptions(**options))

    asked = []
    assert not run(should_stop=lambda: asked.append(1) or len(asked) > 30).is_complete
    before = stamped(work)
    assert before
    zarr.open_array(f"{work.store}/raw", mode="r+")[32:] = 199.8  # nothing finished has read it
    with pytest.raises(OutputError, match="holds another result: input_content was"):
        run()
    assert stamped(work) == before
