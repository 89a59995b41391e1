import numpy as np
import pytest

from tests.evaluation.conftest import EXTENT, store, world
from vcmodels import evaluation
from vcmodels.config import parse_task
from vcmodels.errors import TaskError, VolumeError
from vcmodels.metrics.instances import Overlaps, object_figures
from vcmodels.reporting import Silent
from vcmodels.volumes import Description, Grid, write_multiscale_group

__all__ = ["store", "world"]

STEP = {"name": "components", "output": "cells", "from": "sheet"}
HELD_OUT = (slice(6, 10), slice(0, 14), slice(3, 18))


@pytest.fixture
def ids():
    rng = np.random.default_rng(1)
    return rng.integers(0, 6, EXTENT).astype(np.uint16)


def task_of(world, **changes):
    """The task of `world` with a label of ids, and a step whose output has its name."""
    document = world.task().to_json() | changes
    document.setdefault("postprocess", [STEP])
    document["dataset_config"]["volume_paths"][0]["cells"] = f"{world.folder}/data.zarr/cells"
    document["dataset_config"]["targets"]["inside"] = {
        "kind": "binary", "derive": "cells", "ignore_label": 5,
    }  # fmt: skip
    document["inference_params"]["output_targets"] = ["sheet"]
    document["postprocess"] = [STEP]
    return parse_task(document, "task.json")[0]


def make(world, values, *, complete=True):
    world.store("cells/0", values, root="out/net.zarr")
    notes = {"kind": "instances", "step": STEP, "complete": complete}
    place = str(world.folder / "out/net.zarr/cells")
    write_multiscale_group(place, Grid(), Description("cells", {"vcmodels": notes}))


def test_objects_are_scored_against_the_label_of_their_name_where_it_was_held_out(world, ids):
    found = np.random.default_rng(2).integers(0, 4, EXTENT).astype(np.uint64)
    world.store("cells", ids)
    make(world, found)
    scores = evaluation.evaluate(task_of(world))
    here, there = found[HELD_OUT], ids[HELD_OUT]
    table = Overlaps.of(here, there, there != 5)
    expected = object_figures(table, ignore_background=True)
    assert scores["cells"] == pytest.approx(expected, rel=1e-12)


def test_objects_that_are_not_made_yet_are_left_out_with_a_word(world, ids):
    world.store("cells", ids)
    make(world, ids.astype(np.uint64), complete=False)
    reporter = Silent()
    scores = evaluation.evaluate(task_of(world), reporter=reporter)
    assert set(scores) == {"sheet"}
    assert any("is not made yet: run vcmodels postprocess" in line for line in reporter.lines)


def test_objects_of_another_extent_are_refused(world, ids):
    world.store("cells", ids)
    make(world, np.zeros((10, 14, 17), np.uint64))
    with pytest.raises(VolumeError, match=r"has extent \(10, 14, 17\), its label"):
        evaluation.evaluate(task_of(world))


def test_metrics_of_objects_are_checked_when_the_task_is_read(world, ids):
    task_of(world, evaluation={"metrics": {"cells": ["instances"]}})
    with pytest.raises(TaskError, match=r'evaluation.metrics.cells: "dice" is no metric'):
        task_of(world, evaluation={"metrics": {"cells": ["dice"]}})
