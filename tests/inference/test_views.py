from dataclasses import replace

import pytest
import torch

from tests.symmetry.phantoms import blobs, find
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import parse_task
from vcmodels.config.inference_params import Tta
from vcmodels.data.normalization import Normalization
from vcmodels.errors import TaskError
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, mirror
from vcmodels.inference.views import choose_views, report_refuted, wanted_tta
from vcmodels.reporting import Silent
from vcmodels.targets import MulticlassTarget

TASK = {
    "tr_params": {"model_name": "t", "patch_size": [8, 8, 8]},
    "inference_params": {"tta": "auto"},
    "dataset_config": {
        "targets": {"mask": {"kind": "binary"}},
        "volume_paths": [{"input": "a.zarr", "mask": "b.zarr"}],
    },
}


@pytest.fixture(scope="module")
def found():
    """Of data with an up and a down."""
    return find(blobs(lambda rng: (0.2, *rng.uniform(0.3, 0.7, 2)), count=40))


@pytest.fixture
def network(found, tmp_path):
    task = parse_task(TASK, "task")[0]
    return TrainedNetwork(
        torch.nn.Identity(), task, dict(task.dataset_config.targets), Normalization("none", "patch"),
        (8, 8, 8), (1.0, 1.0, 1.0), 1, "0", tmp_path / "tiny_best.pth", symmetry=found,
    )  # fmt: skip


def test_auto_is_every_mirror_that_holds_in_all_networks(network, found):
    assert network.task.inference_params.tta == "auto"
    assert wanted_tta("auto", [network], Silent()) == Tta(flips=("y", "x"))
    verdicts = found.verdicts | {str(mirror(1)): found.verdicts[str(mirror(0))]}
    other = replace(network, symmetry=replace(found, verdicts=verdicts))
    assert wanted_tta("auto", [network, other], Silent()) == Tta(flips=("x",))


def test_auto_is_nothing_where_no_mirror_holds(network, found):
    never = {name: replace(verdict, holds=False) for name, verdict in found.verdicts.items()}
    other, reporter = replace(network, symmetry=replace(found, verdicts=never)), Silent()
    assert wanted_tta("auto", [network, other], reporter) is None
    assert "no mirror holds" in reporter.lines[0]


def test_auto_needs_to_know_what_holds(network):
    with pytest.raises(
        TaskError, match=r"tta: is \"auto\", and .*tiny_best.pth does not say which"
    ):
        wanted_tta("auto", [network, replace(network, symmetry=None)], Silent())


def test_what_is_given_stays_and_is_spoken_of_once(network):
    given, reporter = Tta(flips=("z", "x")), Silent()
    assert wanted_tta(given, [network, network], reporter) is given
    assert wanted_tta(None, [network], reporter) is None
    report_refuted(CUBE_SYMMETRIES[:8], [network, network], reporter)
    (line,) = reporter.lines
    assert "has views that the data of the training refute: mirror z: label mask" in line
    reporter = Silent()
    report_refuted([mirror(1), mirror(2)], [network, replace(network, symmetry=None)], reporter)
    assert reporter.lines == []


def test_a_plane_with_a_side_is_turned_by_180_degrees_only():
    paired = MulticlassTarget(channels=3, mirror_pairs={"x": [(1, 2)]})
    reporter = Silent()
    tta, patch, spacings = Tta(quarter_turns=True), (8, 8, 8), [(1.0, 1.0, 1.0)]
    views = choose_views(tta, patch, spacings, reporter, {"t": paired})
    assert len(choose_views(tta, patch, spacings, reporter)) == 24
    assert all(view.permutation[2] == 2 for view in views)
    assert len(views) == 8
    assert reporter.lines[:2] == [
        f"tta: {axis} and x differ in mirror_pairs, turned by 180 degrees only" for axis in "zy"
    ]
