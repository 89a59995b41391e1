import time

import numpy as np
import pytest
from torch import nn

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import journal
from vcmodels.inference.journal import Journal
from vcmodels.inference.writing import Output
from vcmodels.volumes import LocalPlace, WritableArray


class Slow(nn.Module):
    """Depends on the place in the patch, and leaves time to be killed."""

    def forward(self, image, targets):
        time.sleep(0.004)
        ramp = np.sin(np.arange(image[0, 0].numel(), dtype=np.float32)).reshape(image[0, 0].shape)
        return {name: (image[:, :1] + image.new_tensor(ramp),) for name in targets}


def volume():
    values = np.random.default_rng(3).random((40, 30, 31), np.float32)
    values[8:16] = 0
    return values


def test_a_stopped_run_continues_to_the_same_bytes(workplace):
    reference = workplace(volume(), network=Slow())
    reference.run(memory=4e-4)
    work = workplace(volume(), network=Slow())
    counts = []
    for batches in (20, 35, 10**9):
        left = iter(range(batches))
        report = work.run(
            memory=4e-4, options={"should_stop": lambda left=left: next(left, None) is None}
        )
        counts.append(report.patches)
    assert report.is_complete
    assert counts[0] == 21
    assert work.hashes() == reference.hashes()


def test_a_run_continues_with_other_units(workplace):
    reference = workplace(volume(), network=Slow())
    reference.run()
    work = workplace(volume(), network=Slow())
    left = iter(range(40))
    work.run(memory=4e-4, options={"should_stop": lambda: next(left, None) is None})
    assert Journal(LocalPlace(work.folder / "out" / "net.zarr")).done()
    assert work.run(memory=1.0).is_complete
    assert work.hashes() == reference.hashes()


def test_marks_of_all_processes_are_found_and_files_stay_short(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LINES", 2)
    place = LocalPlace(tmp_path)
    mine, other = Journal(place), Journal(place)
    mine.begin({"a": 1})
    boxes = [Box((8 * n, 0, 0), (8, 9, 10)) for n in range(6)]
    mine.mark(boxes[0])
    other.mark(boxes[5])
    for box in boxes[1:5]:
        mine.mark(box)
    mine.mark(boxes[0], array="value/1")
    assert Journal(place).done() == boxes
    assert Journal(place).done("value/1") == boxes[:1]
    counts = [path.read_text().count("\n") for path in (tmp_path / ".vcmodels").glob("done-*")]
    assert sorted(counts) == [1, 2, 2, 2]
    Journal(place).remove()
    assert not list(tmp_path.iterdir())


def test_a_process_that_lost_the_output_marks_and_writes_nothing(tmp_path):
    def refuse():
        raise RunError("out", "is another's", "")

    with pytest.raises(RunError, match="is another's"):
        Journal(LocalPlace(tmp_path), refuse).mark(Box((0, 0, 0), (8, 9, 10)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="is another's"):
        Output(None, None, np.dtype("u1"), refuse).write(Box((0, 0, 0), (1, 1, 1)), None)


def test_chunks_are_on_the_disk_before_their_layer_is_marked(workplace, monkeypatch):
    events = []
    write, sync, mark = WritableArray.write, WritableArray.sync, Journal.mark

    def watch(name, function):
        def watched(self, box, *rest):
            events.append((name, box))
            return function(self, box, *rest)

        return watched

    monkeypatch.setattr(WritableArray, "write", watch("write", write))
    monkeypatch.setattr(WritableArray, "sync", watch("sync", sync))
    monkeypatch.setattr(Journal, "mark", watch("mark", mark))
    workplace(volume()).run(memory=4e-4)
    layers = [box for name, box in events if name == "mark"]
    assert len(layers) > 5
    for layer in layers:
        marked = events.index(("mark", layer))
        synced = events.index(("sync", layer))
        written = [
            n for n, (name, box) in enumerate(events) if name == "write" and layer.contains(box)
        ]
        assert written
        assert max(written) < synced < marked
