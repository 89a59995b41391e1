import time

import numpy as np
from torch import nn

from vcmodels.geometry.boxes import Box
from vcmodels.inference.journal import Journal
from vcmodels.volumes import WritableArray


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
    assert Journal(work.folder / "out" / "net.zarr").done()
    assert work.run(memory=1.0).is_complete
    assert work.hashes() == reference.hashes()


def test_a_torn_last_line_of_the_journal_is_dropped(tmp_path):
    journal = Journal(tmp_path)
    journal.begin({"a": 1})
    boxes = [Box((0, 0, 0), (8, 9, 10)), Box((8, 0, 0), (8, 9, 10))]
    for box in boxes:
        journal.mark(box)
    (written,) = (tmp_path / ".vcmodels").glob("done-*.jsonl")
    with written.open("a") as file:
        file.write("[[16, 0")
    again = Journal(tmp_path)
    assert again.done() == boxes
    again.mark(Box((16, 0, 0), (8, 9, 10)))
    assert len(Journal(tmp_path).done()) == 3


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
