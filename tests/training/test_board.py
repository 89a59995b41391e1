import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from vcmodels.training.board import Board, append_json_line, cut_json_lines


def read_scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def test_a_resumed_curve_never_doubles_back(tmp_path, monkeypatch):
    # Files of one second are read by their number in the process, as text: 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    first = Board(tmp_path, 0, print)
    for step in range(1, 6):
        first.scalars({"loss": step}, step)
    first.close()
    resumed = Board(tmp_path, 3, print)  # continues from a checkpoint of step 3
    for step in range(4, 7):
        resumed.scalars({"loss": 10 * step}, step)
    resumed.close()
    assert read_scalars(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    board = Board(tmp_path / "file" / "events", 0, said.append)
    board.scalars({"loss": 1.0}, 1)
    board.pictures({"x": np.zeros((4, 4, 3), np.float32)}, 1)
    board.close()
    assert len(said) == 1
    assert "TensorBoard is off" in said[0]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    board = Board(tmp_path, 0, print)
    board.scalars({"loss": float("nan")}, 1)
    board.scalars({"loss": 2.0}, 2)
    board.close()
    assert read_scalars(tmp_path, "loss") == [(2, 2.0)]


def test_a_resumed_log_never_doubles_back(tmp_path):
    path = tmp_path / "log.jsonl"
    cut_json_lines(path, 0)
    assert not path.exists()
    for step in (3, 6, 9):
        append_json_line(path, {"step": step})
    path.write_text(path.read_text() + '{"step": 12, "lo')
    cut_json_lines(path, 6)
    assert path.read_text() == '{"step": 3}\n{"step": 6}\n'
