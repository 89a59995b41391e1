"""Slices that are drawn while a prediction is made."""

import sys
import threading

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import preview
from vcmodels.inference.job import prepare
from vcmodels.inference.preview import Preview, preview_path, previewing
from vcmodels.inference.request import RunOptions
from vcmodels.pictures.overlay import LINE_HEIGHT, MAX_PANEL, slice_boxes
from vcmodels.reporting import Silent


class Recorder:
    """A board that keeps the names of its pictures."""

    def __init__(self):
        self.calls = []

    def pictures(self, pictures, step):
        self.calls.append((list(pictures), step))

    def flush(self):
        pass


@pytest.fixture
def work(workplace):
    values = np.zeros((24, 20, 21), np.float32)
    values[:, 5:15, 5:15] = 1  # a square in every slice, and its prediction is itself
    return workplace(values)


def test_all_slices_are_there_at_the_end_each_next_to_its_image(work, tmp_path):
    reporter = Silent()
    path = tmp_path / "new" / "p.png"
    work.run(options={"preview": path, "reporter": reporter})
    pixels = np.asarray(Image.open(path)).astype(int)[LINE_HEIGHT:]
    assert pixels.shape[0] % 3 == 0
    for row in np.split(pixels, 3):
        image, prediction = np.split(row[LINE_HEIGHT:], 2, axis=1)
        assert {0, 255} <= set(image.flat)
        np.testing.assert_array_equal(image, prediction)  # the network gives its input back
    assert f"slices: {path}" in reporter.lines


def test_a_finished_result_is_drawn_again_without_predicting(work, tmp_path):
    work.run()
    seen = work.network.patches
    work.run(options={"preview": tmp_path / "p.png"})
    assert work.network.patches == seen
    assert (tmp_path / "p.png").is_file()


def test_a_slice_is_drawn_as_soon_as_it_is_there_and_once(work, monkeypatch):
    request = work.request(work.task())
    job = prepare(request, Silent())
    board = Recorder()
    one = Preview(job, board, None, Silent())
    monkeypatch.setattr(Preview, "_draw", lambda _self, box: np.zeros((4, 4, 3), np.float32))
    done: list[Box] = []
    monkeypatch.setattr(type(job.journal()), "done", lambda _self: sorted(done))
    one.look()
    assert board.calls == []
    done += [Box((0, 0, 0), (8, 20, 21))]  # the first of three layers of chunks
    one.look()
    one.look()
    assert board.calls == [(["prediction/z4"], 1)]
    assert [box.origin[0] for box in one.missing()] == [12, 20]
    done += [Box((8, 0, 0), (8, 20, 21)), Box((16, 0, 0), (8, 20, 21))]
    one.look()
    assert board.calls[1:] == [(["prediction/z4", "prediction/z12", "prediction/z20"], 3)]
    assert one.missing() == []


def test_it_looks_while_others_predict(work, monkeypatch, tmp_path):
    monkeypatch.setattr(preview, "SECONDS", 0.01)
    looked = threading.Event()
    monkeypatch.setattr(Preview, "look", lambda *_self, **_whole: looked.set())
    request = work.request(work.task())
    options = RunOptions(preview=tmp_path / "p.png")
    with previewing(prepare(request, Silent()), request, options):
        assert looked.wait(20)
    assert not any(thread.name == "preview" for thread in threading.enumerate())


def test_a_picture_that_cannot_be_written_costs_nothing(work, tmp_path):
    (tmp_path / "file").touch()
    reporter = Silent()
    report = work.run(options={"preview": tmp_path / "file" / "p.png", "reporter": reporter})
    assert report.is_complete
    assert sum("no more pictures" in line for line in reporter.lines) == 1


@pytest.mark.parametrize("when", ["meanwhile", "at the end"])
def test_a_fault_in_drawing_is_named_once_and_costs_nothing(work, tmp_path, monkeypatch, when):
    def fail(*_):
        raise ValueError("no such\ncolour")

    monkeypatch.setattr(preview, "SECONDS", 0.001 if when == "meanwhile" else 1000)
    monkeypatch.setattr(Preview, "_draw", fail)
    reporter = Silent()
    report = work.run(options={"preview": tmp_path / "p.png", "reporter": reporter})
    assert report.is_complete
    said = [line for line in reporter.lines if "pictures" in line]
    assert said == ["note: no more pictures: ValueError: no such colour"]
    assert not (tmp_path / "p.png").exists()


def test_tensorboard_gets_the_same_slices(work, tmp_path):
    work.run(tensorboard_log_dir=str(tmp_path / "boards"))
    events = EventAccumulator(str(tmp_path / "boards" / "net"))
    events.Reload()
    names = [f"prediction/z{z}" for z in (4, 12, 20)]
    assert [tag for tag in events.Tags()["images"] if tag.startswith("prediction")] == names


def test_boards_and_pictures_change_no_voxel_and_no_manifest(work, tmp_path):
    work.run()
    before = work.hashes()
    report = work.run(
        tensorboard_log_dir=str(tmp_path / "b"), options={"preview": tmp_path / "p.png"}
    )
    assert report.was_complete
    assert work.hashes() == before


def test_where_wandb_is_not_installed_it_is_refused(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RefusedError, match=r"inference_params\.wandb: .* not installed"):
        work.run(wandb={"project": "p"})
    assert not (work.folder / "out").exists()


def test_the_picture_lies_outside_of_the_result(work, tmp_path):
    inside = work.folder / "out" / "net.zarr" / "p.png"
    with pytest.raises(RefusedError, match=r"--preview: .* lies in the result"):
        work.run(options={"preview": inside})
    assert preview_path(tmp_path) == tmp_path / "preview.png"
    assert preview_path(tmp_path / "a.png") == tmp_path / "a.png"
    assert preview_path(tmp_path / "folder") == tmp_path / "folder" / "preview.png"
    with pytest.raises(RefusedError, match="name a PNG or a folder"):
        preview_path(tmp_path / "a.jpg")


def test_slices_are_spread_over_the_depth_and_cut_to_their_middle():
    long = MAX_PANEL + 100
    boxes = slice_boxes(Box((10, 0, 7), (30, long, 9)))
    assert [box.origin for box in boxes] == [(z, 50, 7) for z in (15, 25, 35)]
    assert {box.shape for box in boxes} == {(1, MAX_PANEL, 9)}
    assert [box.origin[0] for box in slice_boxes(Box((4, 0, 0), (2, 3, 3)))] == [4, 5]
