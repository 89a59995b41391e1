"""What TensorBoard shows, and that no writer stops a training."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer import event_file_writer

from vcmodels.config import parse_task
from vcmodels.training.curves import (
    Board,
    CurveSink,
    EventWriter,
    append_json_line,
    cut_json_lines,
    hyperparameters,
    main_curves,
)


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def read_scalars(folder, tag):
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def open_board(folder, step, say=print, **contents):
    facts = {"document": {}, "parameters": {}, "metrics": []} | contents
    return Board([CurveSink("TensorBoard", lambda: EventWriter(folder, step, **facts))], say)


@pytest.fixture
def _ordered_files(monkeypatch):
    # Files of one second are read by their number in the process, as text: 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.mark.usefixtures("_ordered_files")
def test_a_resumed_curve_never_doubles_back(tmp_path):
    first = open_board(tmp_path, 0)
    for step in range(1, 6):
        first.scalars({"loss": step}, step)
    first.close()
    resumed = open_board(tmp_path, 3)  # continues from a checkpoint of step 3
    for step in range(4, 7):
        resumed.scalars({"loss": 10 * step}, step)
    resumed.close()
    assert read_scalars(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


@pytest.mark.usefixtures("_ordered_files")
def test_the_task_is_there_once_for_each_start_that_counts(tmp_path):
    for step in (0, 0, 3, 3):  # each was killed before its first checkpoint
        board = open_board(tmp_path, step, document={"seed": step})
        for later in range(step + 1, 6):
            board.scalars({"loss": later}, later)
        board.close()
    shown = PluginEventAccumulator(str(tmp_path))  # as TensorBoard itself reads
    shown.Reload()
    found = shown.Tensors("task/text_summary")
    texts = [(point.step, point.tensor_proto.string_val[0].decode()) for point in found]
    assert texts == [(s, f'```json\n{{\n  "seed": {s - 1}\n}}\n```') for s in (1, 4)]
    assert [step for step, _ in read_scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5]


def test_runs_are_compared_by_what_sets_them_apart(sheet_task, tmp_path):
    task = parse_task(sheet_task, "task.json")[0]
    curves = main_curves(task.dataset_config.targets)
    parameters = hyperparameters(task.to_json())
    assert parameters["tr_params.initial_lr"] == 1e-3
    assert parameters["tr_params.patch_size"] == "[16, 16, 16]"
    assert parameters["model_config.f_maps"] == "[4, 8]"
    assert parameters["dataset_config.targets.sheet.weight"] == 1
    assert not {"tr_params.ckpt_out_base", "tr_params.device"} & parameters.keys()
    assert curves == ["val/loss", "val/dice_sheet", "val/angle_deg_normals"]
    board = open_board(tmp_path, 0, parameters=parameters, metrics=curves)
    board.scalars({"val/dice_sheet": 0.5}, 3)
    board.close()
    content = read(tmp_path).PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["tr_params.initial_lr"].number_value == 1e-3
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert {info.name.tag for info in experiment.metric_infos} == set(curves)


@pytest.mark.parametrize(("is_failed", "ends"), [(False, True), (True, False)])
def test_a_failed_session_has_no_good_end(tmp_path, is_failed, ends):
    board = open_board(tmp_path, 0, parameters={"lr": 0.1})
    board.scalars({"loss": 1.0}, 1)
    board.close(is_failed=is_failed)
    content = read(tmp_path).PluginTagToContent(metadata.PLUGIN_NAME)
    assert (metadata.SESSION_END_INFO_TAG in content) == ends


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    board = open_board(tmp_path / "file" / "events", 0, said.append)
    board.scalars({"loss": 1.0}, 1)
    board.pictures({"x": np.zeros((4, 4, 3), np.float32)}, 1)
    board.close()
    assert len(said) == 1
    assert "TensorBoard is off" in said[0]


class Recorder:
    """A writer that keeps what it is given, until it breaks."""

    def __init__(self, breaks_after=100):
        self.calls, self.left = [], breaks_after

    def _take(self, *call):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("gone\nfor good")
        self.calls.append(call)

    def scalars(self, values, step):
        self._take("scalars", dict(values), step)

    def pictures(self, pictures, step):
        self._take("pictures", list(pictures), step)

    def flush(self):
        self._take("flush")

    def close(self, *, is_failed):
        self._take("close", is_failed)


@pytest.mark.parametrize("breaks_after", range(4))
def test_all_writers_are_told_the_same_and_one_that_breaks_is_left_out(breaks_after):
    said, good, bad = [], Recorder(), Recorder(breaks_after)
    board = Board([CurveSink("bad", lambda: bad), CurveSink("good", lambda: good)], said.append)
    board.scalars({"loss": 1.0, "nan": float("nan")}, 1)
    board.pictures({"image": np.zeros((4, 4, 3), np.float32)}, 1)
    board.flush()
    board.close(is_failed=True)
    assert good.calls == [
        ("scalars", {"loss": 1.0}, 1),
        ("pictures", ["image"], 1),
        ("flush",),
        ("close", True),
    ]
    assert bad.calls == good.calls[:breaks_after]
    assert said == ["bad is off from here on: gone for good"]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    board = open_board(tmp_path, 0)
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
    path.write_text(path.read_text() + '[1]\n{"step": 12, "lo')
    cut_json_lines(path, 6)
    assert path.read_text() == '{"step": 3}\n{"step": 6}\n'
