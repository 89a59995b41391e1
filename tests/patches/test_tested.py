"""Volumes that are kept for testing are in no training."""

import json

import numpy as np
import pytest
import zarr

from vcmodels.errors import TaskError
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.training import train

SHAPE = (20, 25, 64)


@pytest.fixture
def entry(store):
    """Writes a volume with labels everywhere, and returns its entry."""

    def write(name, seed=0, spacing=None, **keys):
        values = np.random.default_rng(seed).integers(0, 255, SHAPE, dtype=np.uint8)
        image = store(f"{name}/raw", values, chunks=(8, 8, 8), spacing=spacing)
        label = store(f"{name}/sheet", (values > 50).astype(np.uint8), chunks=(8, 8, 8))
        return {"name": name, "input": image, "sheet": label, "ref_label": "sheet", **keys}

    return write


def test_a_test_volume_is_in_no_patch_and_on_no_side(make_task, entry):
    entries = [entry("t", 0, split="test"), entry("a", 1), entry("b", 2)]
    reporter = Silent()
    resolved = resolve(make_task(entries), reporter)
    assert [v.name for v in resolved.volumes] == ["a", "b"]
    assert [v.name for v in resolved.tested] == ["t"]
    assert "kept for testing, in no training: 1 volume (t)" in reporter.lines
    patches = load_or_find_patches(resolved.task, resolved.volumes)
    split = split_patches(resolved.task.tr_params, resolved.volumes, patches)
    without = resolve(make_task(entries[1:]))
    expected = split_patches(without.task.tr_params, without.volumes, patches)
    np.testing.assert_array_equal(split.train, expected.train)
    np.testing.assert_array_equal(split.val, expected.val)
    assert split.to_dict() == expected.to_dict()


def test_the_network_is_planned_for_the_first_volume_that_trains(make_task, entry):
    entries = [
        entry("t", 0, spacing=(9.0, 9.0, 9.0), split="test"),
        entry("a", 1, spacing=(3.0, 2.0, 1.0)),
    ]
    assert resolve(make_task(entries)).volumes[0].spacing == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("split", ["train", "val", None])
def test_a_test_volume_shares_no_voxels_with_another(make_task, entry, split):
    keys = {} if split is None else {"split": split}
    copy = entry("copy", 1, bbox=[[0, 20], [0, 25], [0, 40]], **keys)
    entries = [copy, entry("a", 2, split="train"), entry("b", 3, split="val")]
    tested = entry("t", 1, split="test", bbox=[[0, 20], [0, 25], [40, 64]])
    resolve(make_task([*entries, tested]))
    tested["bbox"] = [[0, 20], [0, 25], [39, 64]]
    with pytest.raises(TaskError, match=r"shares voxels with t, which is for testing"):
        resolve(make_task([*entries, tested]))


def test_a_group_is_for_testing_as_a_whole(make_task, entry):
    entries = [
        entry("a", 1, group="x"), entry("b", 2, group="y"), entry("c", 3, group="z"),
        entry("t", 4, group="y", split="test"),
    ]  # fmt: skip
    resolved = resolve(make_task(entries))
    assert [v.name for v in resolved.tested] == ["b", "t"]
    with pytest.raises(TaskError, match='is "test", and b, also of group y, is "val"'):
        resolve(make_task([entries[0], {**entries[1], "split": "val"}, *entries[2:]]))


def test_folds_leave_test_volumes_out(make_task, entry):
    entries = [entry(name, n) for n, name in enumerate("abcd")]
    task = make_task([*entries, entry("t", 9, split="test")], folds={"count": 2})
    folds = resolve(task).folds
    assert [sorted(v.name for v in fold) for fold in folds] == [["a", "b", "c", "d"]] * 2


def test_nothing_but_test_volumes_cannot_be_trained_on(make_task, entry):
    with pytest.raises(TaskError, match='all are "split": "test"'):
        resolve(make_task([entry("t", split="test")]))


def test_a_test_volume_with_pseudo_labels_alone_stays_out_of_training(make_task, entry):
    label = entry("p", 3, split={"attribute": "split"}, pseudo={"sheet": 0.5})
    zarr.open_array(label["input"]).attrs["split"] = "test"
    task = make_task([entry("a", 1), label])
    assert [v.name for v in resolve(task).tested] == ["p"]


def test_a_run_goes_on_when_test_volumes_are_added(make_task, entry):
    entries = [entry("a", 1, split="train"), entry("b", 2, split="val")]
    settings = {"max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1, "amp": "off"}
    train(make_task(entries, max_epoch=1, **settings), reporter=Silent())
    more = make_task([*entries, entry("t", 3, split="test")], max_epoch=2, **settings)
    train(more, reporter=Silent())
    run = Run(more.run_dir)
    assert json.loads(run.log.read_text().splitlines()[-1])["epoch"] == 2
    assert run.splits() is not None
    assert run.splits().volumes == ("a", "b")
