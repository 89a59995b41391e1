"""What TensorBoard shows, and that no writer stops a training."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer import event_file_writer

from vcmodels.boards import Board, CurveSink, EventWriter
from vcmodels.config import parse_task
from vcmodels.config.task import epoch_curves
from vcmodels.models.unet import ResidualUNet
from vcmodels.training.curves import (
    append_json_line,
    cut_json_lines,
    events_folder,
    hyperparameters,
    layout_of,
    main_curves,
    traceable,
)

pytestmark = pytest.mark.usefixtures("graphs")


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def read_scalars(folder, tag):
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def open_board(folder, step, complain=print, **contents):
    facts = {"document": {}, "parameters": {}, "metrics": []} | contents
    return Board([CurveSink("TensorBoard", lambda: EventWriter(folder, step, **facts))], complain)


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


def test_curves_stand_together_by_target(sheet_task, tmp_path):
    task = parse_task(sheet_task, "task.json")[0]
    layout = layout_of(task.dataset_config.targets)
    open_board(tmp_path, 0, layout=layout).close()
    shown = PluginEventAccumulator(str(tmp_path))
    shown.Reload()
    (point,) = shown.Tensors(CONFIG_SUMMARY_TAG)
    found = Layout.FromString(point.tensor_proto.string_val[0])
    groups = {group.title: {c.title: list(c.multiline.tag) for c in group.chart}
              for group in found.category}  # fmt: skip
    assert list(groups) == ["all targets", "sheet", "normals"]
    curves = {f"^{re.escape(curve)}$" for curve in epoch_curves(task.dataset_config.targets)}
    charted = {tag for charts in groups.values() for tags in charts.values() for tag in tags}
    assert curves <= charted
    assert groups["sheet"]["dice"] == [r"^val/dice_sheet$"]


def test_the_network_is_drawn_once_and_changes_nothing(tmp_path):
    network = ResidualUNet(f_maps=(4, 8), num_levels=2).build(
        2, {"a": 1, "b": 3}, (32, 32, 32), (1,) * 3
    )
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    model = ResidualUNet(f_maps=(4, 8), num_levels=2)
    make = partial(traceable, network, model, (32, 32, 32), (1.0, 1.0, 1.0), 2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for step in (0, 5):
        open_board(tmp_path / str(step), step, network=make).close()
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    graph = GraphDef.FromString(read(tmp_path / "0").Graph().SerializeToString())
    names = " ".join(node.name for node in graph.node)
    assert "encoder" in names
    assert "heads" in names
    assert not read(tmp_path / "5").Tags()["graph"]
    assert make()[1].shape == (1, 2, 4, 4, 4)


def test_a_network_that_cannot_be_traced_costs_a_line(tmp_path):
    def broken():
        raise RuntimeError("no trace")

    lines = []
    board = open_board(tmp_path, 0, pytest.fail, network=broken, say=lines.append)
    assert lines == ["TensorBoard gets no graph of the network: no trace"]
    board.scalars({"loss": 1.0}, 1)
    board.close()
    assert read_scalars(tmp_path, "loss") == [(1, 1.0)]


def test_a_run_shows_under_its_name_and_an_older_one_goes_on_where_it_was(sheet_task):
    task = parse_task(sheet_task, "task.json")[0]
    assert events_folder(task) == task.run_dir / "tensorboard" / "tiny"
    above = task.run_dir / "tensorboard"
    above.mkdir(parents=True)
    (above / "events.out.tfevents.1.host.2.0").touch()
    assert events_folder(task) == above
