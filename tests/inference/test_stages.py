"""A network that finds regions, carried by the checkpoint of the network that needs it."""

import copy

import pytest
import torch

from tests.inference.conftest import make_task, save
from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.errors import CheckpointError
from vcmodels.regions.section import RegionConfig, RegionSource
from vcmodels.runs.run import seal
from vcmodels.stages import STAGES, carried_stages, stage_network


def test_a_checkpoint_carries_what_finds_its_regions(place):
    task = make_task(place)
    save(place, task)
    path = place / "run" / "net_best.pth"
    source = RegionSource(checkpoint=str(path), sha256=seal(path))
    region = RegionConfig.model_validate({"from": [source, RegionSource(heuristic="symmetry")]})
    second = task.with_values(dataset_config={"region": region})
    stages = carried_stages(second)
    assert list(stages) == [source.sha256]
    assert "optimizer" not in stages[source.sha256]
    state = {**load_checkpoint(path).state, "task": second.to_json(), STAGES: stages}
    carrier = place / "second.pth"
    save_checkpoint(carrier, state)
    own = stage_network(source, [])
    path.unlink()
    found = stage_network(source, [carrier])
    for name, value in own.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)
    assert found.normalization == own.normalization
    assert found.task == own.task

    with pytest.raises(CheckpointError, match="no such file"):
        stage_network(source, [])
    damaged = copy.deepcopy(state)
    damaged[STAGES][source.sha256]["in_channels"] = "two"
    save_checkpoint(carrier, damaged)
    with pytest.raises(CheckpointError, match='in_channels is "two"'):
        stage_network(source, [carrier])


def test_another_file_in_its_place_is_refused(place):
    task = make_task(place)
    save(place, task)
    source = RegionSource(checkpoint=str(place / "run"), sha256="0" * 64)
    with pytest.raises(CheckpointError, match="is another checkpoint than the one that found"):
        stage_network(source, [])


def test_a_task_without_networks_carries_none(place):
    assert carried_stages(make_task(place)) == {}
