import copy

import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError

TASK = {
    "tr_params": {"model_name": "net", "patch_size": [32, 32, 32]},
    "volume_paths": [{"input": "a.zarr", "cells": "b.zarr", "ref_label": "cells"}],
    "targets": {"cells": {"kind": "instances"}},
}


def read(target, **more):
    document = copy.deepcopy(TASK) | more
    document["targets"]["cells"] |= target
    return parse_task(document, "task.json")[0]


@pytest.mark.parametrize(
    ("target", "heads", "step"),
    [
        ({}, {"mask": "binary", "boundary": "boundary"}, "watershed"),
        (
            {"recipe": "boundary+distance", "clip": 4.0},
            {"boundary": "boundary", "distance": "distance"},
            "watershed",
        ),
        (
            {"recipe": "centres+boundary", "max_extent": 20},
            {"mask": "binary", "centres": "centres", "boundary": "boundary"},
            "watershed",
        ),
        (
            {"recipe": "affinities"},
            {"affinities": "affinities", "boundary": "boundary"},
            "agglomerate",
        ),
        ({"recipe": "flow", "max_extent": 20}, {"mask": "binary", "flow": "vector"}, "follow"),
    ],
    ids=lambda value: value.get("recipe") if isinstance(value, dict) else None,
)
def test_a_recipe_is_heads_that_are_derived_from_the_ids_and_a_step(target, heads, step):
    task = read({**target, "weight": 0.5, "ignore_label": 7})
    found = task.dataset_config.targets
    assert {name: one.kind for name, one in found.items()} == {
        f"cells_{head}": kind for head, kind in heads.items()
    }
    for one in found.values():
        assert (one.derive, one.weight, one.ignored) == ("cells", 0.5, (7,))
    (made,) = task.postprocess
    assert (made.name, made.output) == (step, "cells")
    assert made.min_size == (None if step == "agglomerate" else 50)
    (made,) = read({**target, "min_size": 7}).postprocess
    assert made.min_size == 7
    assert set(made.sources.values()) <= found.keys()


def test_what_is_spelt_out_reads_as_itself():
    task = read({"recipe": "affinities"})
    assert parse_task(task.to_json(), "task.json", is_record=True)[0] == task


def test_a_step_of_the_task_with_that_output_takes_the_place_of_the_recipes():
    step = {"name": "watershed", "output": "cells", "from": "cells_boundary", "threshold": 0.3}
    task = read({}, postprocess=[step])
    assert [(one.output, one.threshold) for one in task.postprocess] == [("cells", 0.3)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"recipe": "centre"}, r'targets.cells.recipe: found "centre"; give one of "boundary", '),
        ({"recipe": "flow"}, r'recipe "flow" needs max_extent; give the longest object, in voxels'),
        ({"clip": 2.0}, r'recipe "boundary" has no use for clip; leave it out'),
        ({"recip": "flow"}, r'targets.cells.recip: unknown key; did you mean "recipe"'),
        ({"kind": "instance"}, r'targets.cells.kind: found "instance"; did you mean "instances"'),
    ],
)
def test_a_wrong_key_is_named(target, message):
    with pytest.raises(TaskError, match=message):
        read(target)


def test_a_target_with_the_name_of_a_head_is_refused():
    other = {"cells": {"kind": "instances"}, "cells_mask": {"kind": "binary", "derive": "cells"}}
    with pytest.raises(TaskError, match=r'targets.cells_mask: is also what a head of "cells"'):
        parse_task(copy.deepcopy(TASK) | {"targets": other}, "task.json")
