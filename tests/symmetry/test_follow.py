import copy
from dataclasses import replace

import numpy as np
import pytest

from tests.symmetry.phantoms import blobs, find
from vcmodels.augment import DEFAULT_AUGMENTATIONS, exact_moves
from vcmodels.config import parse_task
from vcmodels.config.train_params import FoldConfig
from vcmodels.errors import TaskError
from vcmodels.geometry.symmetries import (
    CUBE_SYMMETRIES,
    IDENTITY,
    generated_group,
    mirror,
    quarter_turn,
)
from vcmodels.reporting import Silent
from vcmodels.symmetry.findings import SignVerdict
from vcmodels.symmetry.follow import followed, notes, question_of, refuse_turned_pairs, suited

CUBIC, FLAT = (1.0, 1.0, 1.0), (3.0, 1.0, 1.0)


def task_of(augment=None, **target):
    task = {
        "tr_params": {"model_name": "t", "patch_size": [8, 8, 8]},
        "dataset_config": {
            "targets": {"mask": {"kind": "multiclass", "channels": 3, **target}},
            "volume_paths": [{"input": "a.zarr", "mask": "b.zarr"}],
        },
    }
    given = {} if augment is None else {"augment": copy.deepcopy(augment)}
    return parse_task(task | given, "task")[0]


@pytest.fixture(scope="module")
def plane():
    """Mirrors and turns of the plane hold."""
    return find(blobs(lambda rng: (0.2, *rng.uniform(0.3, 0.7, 2)), count=40))


@pytest.mark.parametrize("spacing", [CUBIC, FLAT], ids=["cubic", "flat"])
@pytest.mark.parametrize(
    "generators",
    [[], [mirror(0)], [mirror(2)], [mirror(1), quarter_turn(1, 2)], [quarter_turn(1, 2)],
     [mirror(0) @ mirror(1)], list(CUBE_SYMMETRIES)],
    ids=["none", "z", "x", "plane", "turn", "half turn", "all"],
)  # fmt: skip
def test_the_default_list_moves_by_nothing_that_does_not_hold(generators, spacing):
    group = set(generated_group(generators))
    kept = suited(DEFAULT_AUGMENTATIONS, tuple(group), [spacing])
    moves = set(exact_moves(kept, spacing))
    assert moves <= group
    assert {mirror(axis) for axis in range(3)} & group <= moves
    lawful = {one for one in (quarter_turn(0, 1), quarter_turn(0, 2), quarter_turn(1, 2)) if one.is_lawful(spacing)}  # fmt: skip
    assert lawful & group <= moves
    names = [one.name for one in DEFAULT_AUGMENTATIONS if one.name not in ("flip", "quarter_turn")]
    assert [one.name for one in kept if one.name in names] == names


def test_where_all_holds_the_list_is_as_it_was():
    assert suited(DEFAULT_AUGMENTATIONS, CUBE_SYMMETRIES, [CUBIC]) == list(DEFAULT_AUGMENTATIONS)


def test_moves_are_all_that_is_ever_drawn():
    task = task_of(
        [{"name": "flip", "axes": ["z"]}, {"name": "quarter_turn", "planes": [["y", "x"]]}]
    )
    for spacing in (CUBIC, (1.0, 2.0, 1.0)):
        drawn = {IDENTITY}
        rng = np.random.default_rng(0)
        for _ in range(200):
            flip, turn = (one.sample_symmetry(rng, spacing) for one in task.augment)
            drawn.add(turn @ flip)
        assert drawn == set(exact_moves(task.augment, spacing))
    never = task_of([{"name": "flip", "p": 0.0}, {"name": "quarter_turn", "p": 0.0}])
    assert exact_moves(never.augment, CUBIC) == (IDENTITY,)


def test_a_default_list_follows_and_a_given_one_is_spoken_of(plane):
    volumes, reporter = blobs(lambda rng: (0.5, 0.5, 0.5), count=1), Silent()
    task = followed(task_of(), plane, volumes, reporter)
    flip, turn, *_ = task.augment
    assert flip.axes == ("y", "x")
    assert turn.planes == (("y", "x"),)
    assert reporter.lines == [f"symmetry: {plane.summary}; the default augment follows"]
    given = [{"name": "flip", "axes": ["z", "x"]}]
    reporter = Silent()
    assert followed(task_of(given), plane, volumes, reporter).augment == task_of(given).augment
    (line,) = reporter.lines
    assert line.startswith("note: augment: does what the data refute: mirror z: label mask: told")
    assert ", and 1 more; leave it out" in line
    reporter = Silent()
    followed(task_of([{"name": "flip", "axes": ["y"]}]), plane, volumes, reporter)
    assert reporter.lines == []


def test_a_sign_that_a_given_list_takes_away_is_spoken_of(plane):
    up = SignVerdict(0.5, 40, 1.0, 1.0, (0.9, 0.0, 0.0))
    signed = replace(plane, signs={"mask": up})
    flips = task_of([{"name": "flip", "axes": ["z"]}])
    lines = list(notes(flips, signed, [CUBIC]))
    assert any("once augment turns them about: leave out mirror z" in line for line in lines)
    for other in (replace(up, by_image=0.9), replace(up, mean=(0.0, 0.0, 0.9))):
        lines = list(notes(flips, replace(plane, signs={"mask": other}), [CUBIC]))
        assert not any("sign" in line for line in lines)
    few = replace(plane, signs={"mask": replace(up, remedy="take axes", by_direction=True)})
    lines = list(notes(flips, few, [CUBIC]))
    assert any("once augment turns them about: leave out mirror z" in line for line in lines)
    lost = replace(up, along=0.5, remedy="take axes")
    lines = list(notes(task_of([]), replace(plane, signs={"mask": lost}), [CUBIC]))
    assert lines == [
        "note: dataset_config.targets.mask: nothing tells the sign of its vectors (the image tells "
        "it in 50% of 40 windows, 50% of the vectors point one way): take axes"
    ]
    alone = replace(plane, signs={"mask": replace(lost, by_direction=True)})
    (line,) = notes(task_of([]), alone, [CUBIC])
    assert "the sign of its vectors is known by direction alone (the image tells it" in line
    assert line.endswith("in volumes that lie as these do; for others take axes")


def test_a_question_is_another_one_for_other_targets_patches_and_divisions():
    task = task_of()
    folds = {"count": 3, "index": 0}
    others = [
        task_of(mirror_pairs={"x": [[1, 2]]}),
        *(changed(task, **one) for one in (
            {"given_patch_size": (8, 8, 16)}, {"seed": 1}, {"tr_val_split": 0.5}, {"split_guard": 3},
            {"split_mode": "random"}, {"folds": FoldConfig(**folds)},
        )),
    ]  # fmt: skip
    asked = [question_of(one) for one in (task, *others)]
    assert len(set(asked)) == len(asked)
    assert question_of(changed(task, max_epoch=3)) == asked[0]
    fold = changed(task, folds=FoldConfig(**folds | {"index": 2}))
    assert question_of(fold) == asked[-1]


def changed(task, **settings):
    return task.changed(tr_params=task.tr_params.changed(**settings))


def test_quarter_turns_of_a_side_are_refused():
    pairs = {"mirror_pairs": {"x": [[1, 2]]}}
    turns = [{"name": "quarter_turn", "planes": [["z", "x"]]}]
    volumes = blobs(lambda rng: (0.5, 0.5, 0.5), count=1)
    with pytest.raises(
        TaskError, match="augment: has quarter turns of x, along which mask has mirror_pairs"
    ):
        refuse_turned_pairs(task_of(turns, **pairs), volumes)
    flat = blobs(lambda rng: (0.5, 0.5, 0.5), count=1, spacing=FLAT)
    refuse_turned_pairs(task_of(turns, **pairs), flat)  # by 180 degrees only
    refuse_turned_pairs(task_of(**pairs), volumes)  # the default follows the data
    refuse_turned_pairs(task_of(turns), volumes)
