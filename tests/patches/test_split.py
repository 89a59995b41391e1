import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.find import PatchList, search_patches
from vcmodels.patches.split import best_cut, load_or_split, rows_inside, split_patches
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run

SHAPE = (20, 25, 64)


@pytest.fixture
def prepare(make_task, store):
    """Task, volumes and patches over volumes of given shapes."""

    def build(shapes=(SHAPE,), entries=None, **sections):
        entries = entries or [{} for _ in shapes]
        for n, (shape, entry) in enumerate(zip(shapes, entries, strict=True)):
            if "input" not in entry:
                entry["input"] = store(f"raw{n}", np.zeros(shape, np.uint8), chunks=(8, 8, 8))
            entry.setdefault("name", f"v{n}")
            entry.setdefault("sheet", entry["input"])
        task = make_task(entries, targets={"sheet": {"kind": "binary"}}, **sections)
        volumes = open_volumes(task)
        return task, volumes, search_patches(task, volumes)

    return build


def touched(rows, patch, shape):
    """Voxels that the patches cover."""
    mask = np.zeros(shape, bool)
    for _, z, y, x in rows:
        mask[Box((z, y, x), patch).slices()] = True
    return mask


@settings(max_examples=80, deadline=None)
@given(
    extent=st.tuples(st.integers(4, 40), st.integers(4, 40), st.integers(4, 60)),
    patch=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)),
    guard=st.integers(0, 8),
    count=st.integers(1, 40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_cut_leaves_the_guard_between_the_sides_and_beats_every_other_cut(
    extent, patch, guard, count, share, seed
):
    rng = np.random.default_rng(seed)
    room = np.maximum(np.array(extent) - patch, 0)
    origins = np.unique(rng.integers(0, room + 1, (count, 3)), axis=0) + np.array([5, 6, 7])
    region = Box((5, 6, 7), extent)
    settings = type("S", (), {"tr_val_split": share})
    task = type("T", (), {"tr_params": settings})
    cut = best_cut(region, origins, patch, (guard,) * 3, task.tr_params.tr_val_split)

    scores = []
    for axis in range(3):
        places = {*(origins[:, axis] + patch[axis]), *(origins[:, axis] - guard)}
        for place in range(region.origin[axis], region.end[axis] + 1):
            a = (origins[:, axis] + patch[axis] <= place).sum()
            b = (origins[:, axis] >= place + guard).sum()
            if a and b and place in places:
                lost = len(origins) - a - b
                trained = (place - region.origin[axis]) / extent[axis]
                scores.append((abs(a / (a + b) - share), lost, -trained))
    assert (cut is None) == (not scores)
    if cut is not None:
        train, val = cut
        rows = np.concatenate([np.zeros((len(origins), 1), int), origins], axis=1)
        a = rows_inside(rows, patch, [train]).sum()
        b = rows_inside(rows, patch, [val]).sum()
        trained = train.voxels / region.voxels
        found = (abs(a / (a + b) - share), len(origins) - a - b, -trained)
        assert found == pytest.approx(min(scores))
        assert not train.grow((guard, guard, guard)).intersect(val).voxels or guard == 0
        gaps = [v - t for v, t in zip(val.origin, train.end, strict=True)]
        assert max(gaps) == guard
        assert region.contains(train)
        assert region.contains(val)


def test_spatial_sides_share_no_voxel_and_come_near_the_wanted_share(prepare):
    task, volumes, patches = prepare(tr_val_split=0.7)
    split = split_patches(task.tr_params, volumes, patches)
    train, val = (touched(rows, (8, 8, 8), SHAPE) for rows in (split.train, split.val))
    assert not (train & val).any()
    assert len(split.train) / (len(split.train) + len(split.val)) == pytest.approx(0.7, abs=0.1)
    gap = split.val_regions[0].origin[2] - split.train_regions[0].end[2]
    assert gap == 8


def test_guard_width_is_the_tasks(prepare):
    task, volumes, patches = prepare(split_guard=3)
    split = split_patches(task.tr_params, volumes, patches)
    one, other = split.train_regions[0], split.val_regions[0]
    assert max(o - e for o, e in zip(other.origin, one.end, strict=True)) == 3


@pytest.mark.parametrize(
    ("shape", "patch", "band"),
    [
        ((51, 120, 122), (24, 60, 60), 0),
        ((20, 128, 96), (10, 64, 48), 0),
        ((36, 60, 52), (18, 30, 26), 0),
        ((9, 10, 56), (8, 8, 8), 8),
        ((9, 10, 40), (8, 8, 8), 4),
        ((9, 10, 32), (8, 8, 8), 2),
        ((9, 10, 26), (8, 8, 8), 0),
        ((9, 10, 23), (8, 8, 8), 0),
        ((9, 10, 16), (8, 8, 7), 0),
    ],
)
def test_the_guard_is_a_patch_where_that_leaves_enough_to_train_and_else_narrower(
    prepare, shape, patch, band
):
    task, volumes, patches = prepare([shape], patch_size=list(patch))
    reporter = Silent()
    split = split_patches(task.tr_params, volumes, patches, reporter)
    train, val = split.train_regions[0], split.val_regions[0]
    gaps = [v - t for v, t in zip(val.origin, train.end, strict=True)]
    assert max(gaps) == band
    assert len(split.train)
    assert len(split.val)
    said = [line for line in reporter.lines if "guard band" in line]
    if band == patch[gaps.index(band)]:
        assert not said
    else:
        (line,) = said
        for size in (shape, patch, train.shape, val.shape):
            assert " x ".join(map(str, size)) in line
        assert line.endswith(f"{band} voxels apart")


@pytest.mark.parametrize("shape", [(9, 9, 17), (17, 9, 20), (10, 23, 11)])
def test_a_guard_that_is_given_is_strict_and_the_widest_that_fits_is_named(prepare, shape):
    task, volumes, patches = prepare([shape], split_guard=16)
    with pytest.raises(
        TaskError, match=r"split_guard: 16 leaves no patch .*most \d+, or null"
    ) as e:
        split_patches(task.tr_params, volumes, patches)
    most = int(re.search(r"at most (\d+)", str(e.value))[1])
    entry = {"input": volumes[0].inputs[0].location}
    for guard in (most, None, most + 1):
        other, _, _ = prepare([shape], entries=[dict(entry)], split_guard=guard)
        if guard == most + 1:
            with pytest.raises(TaskError, match=f"most {most}, or null"):
                split_patches(other.tr_params, volumes, patches)
        else:
            split = split_patches(other.tr_params, volumes, patches)
            assert len(split.train)
            assert len(split.val)


def test_a_volume_without_two_patches_side_by_side_is_an_error_with_the_size_that_fits(prepare):
    shape = (9, 15, 11)
    task, volumes, patches = prepare([shape])
    found = r"patch_size: volume v0 \(9 x 15 x 11 voxels\) holds no two patches of 8 x 8 x 8 .* 7 along y"
    with pytest.raises(TaskError, match=found):
        split_patches(task.tr_params, volumes, patches)
    entry = {"input": volumes[0].inputs[0].location}
    for change in ({"patch_size": [8, 7, 8]}, {"tr_val_split": 1.0}):
        split = split_patches(*_again(prepare, shape, entry, change))
        assert len(split.train)


def _again(prepare, shape, entry, settings):
    task, volumes, patches = prepare([shape], entries=[dict(entry)], **settings)
    return task.tr_params, volumes, patches


def test_patches_that_all_overlap_where_there_is_room_are_an_error_about_the_thresholds(prepare):
    task, volumes, patches = prepare([SHAPE])
    few = PatchList(patches.patch_size, np.array([[0, 0, 0, 8], [0, 4, 4, 12]]))
    with pytest.raises(TaskError, match=r"no two of its 2 patches apart.* patch_stride"):
        split_patches(task.tr_params, volumes, few)


def test_few_volumes_of_one_patch_each_are_divided_as_wholes(prepare):
    task, volumes, patches = prepare([(9, 15, 11)] * 2)
    reporter = Silent()
    split = split_patches(task.tr_params, volumes, patches, reporter)
    assert {int(n) for n in split.train[:, 0]} ^ {int(n) for n in split.val[:, 0]} == {0, 1}
    assert "whole volumes are divided" in reporter.lines[0]


def test_a_short_volume_next_to_one_with_room_is_trained_on_whole(prepare):
    task, volumes, patches = prepare([(9, 9, 17), SHAPE])
    split = split_patches(task.tr_params, volumes, patches)
    assert split.train_regions[0] == volumes[0].region
    assert (
        max(
            v - t
            for v, t in zip(split.val_regions[1].origin, split.train_regions[1].end, strict=True)
        )
        == 8
    )


def test_a_split_that_was_recorded_with_another_band_is_used_again(prepare):
    task, volumes, patches = prepare([(9, 10, 64)])
    run = Run(task.run_dir)
    load_or_split(run, task.tr_params, volumes, patches)
    saved = json.loads(run.splits_file.read_text())
    saved["val_regions"][0][2][0] -= 3
    run.splits_file.write_text(json.dumps(saved))
    again = load_or_split(run, task.tr_params, volumes, patches)
    assert again.to_dict() == saved


def test_many_short_volumes_are_divided_as_wholes(prepare):
    task, volumes, patches = prepare([(9, 8, 11)] * 10, tr_val_split=0.8)
    split = split_patches(task.tr_params, volumes, patches)
    trained = {int(n) for n in split.train[:, 0]}
    validated = {int(n) for n in split.val[:, 0]}
    assert len(trained) == 8
    assert trained | validated == set(range(10))
    assert not trained & validated
    other, _, _ = prepare([(9, 8, 11)] * 10, entries=[{"input": v.inputs[0].location} for v in volumes], seed=5)  # fmt: skip
    assert {int(n) for n in split_patches(other.tr_params, volumes, patches).val[:, 0]} != validated


def test_volumes_with_a_split_of_their_own_are_kept_whole(prepare):
    entries = [{"split": "train"}, {"split": "val"}, {}]
    task, volumes, patches = prepare([SHAPE, (9, 9, 9), SHAPE], entries)
    split = split_patches(task.tr_params, volumes, patches)
    assert split.train_regions[:2] == [volumes[0].region, None]
    assert split.val_regions[:2] == [None, volumes[1].region]
    assert split.train_regions[2] is not None
    assert split.val_regions[2] is not None


def test_parts_of_one_array_that_overlap_across_the_sides_are_refused(prepare, store):
    raw = store("shared", np.zeros(SHAPE, np.uint8))
    entries = [
        {"input": raw, "split": "train", "bbox": [[0, 20], [0, 25], [0, 40]]},
        {"input": raw, "split": "val", "bbox": [[0, 20], [0, 25], [39, 64]]},
    ]
    task, volumes, patches = prepare([SHAPE, SHAPE], entries)
    with pytest.raises(TaskError, match="shares voxels with the validation part of v1"):
        split_patches(task.tr_params, volumes, patches)


def test_random_split_divides_the_patches_and_says_that_voxels_are_shared(prepare):
    task, volumes, patches = prepare(split_mode="random", tr_val_split=0.75)
    reporter = Silent()
    split = split_patches(task.tr_params, volumes, patches, reporter)
    assert len(split.train) == round(0.75 * len(patches.rows))
    both = np.concatenate([split.train, split.val])
    np.testing.assert_array_equal(np.unique(both, axis=0), patches.rows)
    assert "may share voxels" in reporter.lines[0]


def test_only_validation_volumes_is_an_error(prepare):
    task, volumes, patches = prepare(entries=[{"split": "val"}])
    with pytest.raises(TaskError, match="no patch left to train on"):
        split_patches(task.tr_params, volumes, patches)


@pytest.mark.parametrize("mode", ["spatial", "random"])
def test_saved_split_is_used_again(prepare, mode):
    task, volumes, patches = prepare(split_mode=mode)
    first = load_or_split(Run(task.run_dir), task.tr_params, volumes, patches)
    saved = json.loads((task.run_dir / "splits.json").read_text())
    assert saved["seed"] == 0
    assert saved["patches"]["count"] == len(patches.rows)
    again = load_or_split(Run(task.run_dir), task.tr_params, volumes, patches)
    np.testing.assert_array_equal(again.train, first.train)
    np.testing.assert_array_equal(again.val, first.val)
    assert again.to_dict() == first.to_dict() == saved


def test_saved_split_of_another_patch_list_is_refused(prepare):
    task, volumes, patches = prepare()
    load_or_split(Run(task.run_dir), task.tr_params, volumes, patches)
    other = type(patches)(patches.patch_size, patches.rows[1:])
    with pytest.raises(TaskError, match="made from another patch list"):
        load_or_split(Run(task.run_dir), task.tr_params, volumes, other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:40], "damaged"),
        (lambda _: "[]", "damaged"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "made with seed 1, now 0"),
        (lambda text: text.replace('"train_regions"', '"regions"'), "damaged"),
        (lambda text: text.replace('"train_patches": ', '"train_patches": 1'), "changed by hand"),
    ],
    ids=["cut", "list", "seed", "key", "count"],
)
def test_damaged_or_edited_split_is_refused(prepare, damage, message):
    task, volumes, patches = prepare()
    load_or_split(Run(task.run_dir), task.tr_params, volumes, patches)
    path = task.run_dir / "splits.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(TaskError, match=message):
        load_or_split(Run(task.run_dir), task.tr_params, volumes, patches)


def test_a_share_of_one_trains_on_everything_and_validates_on_nothing(prepare):
    task, volumes, patches = prepare(tr_val_split=1.0)
    split = split_patches(task.tr_params, volumes, patches)
    assert np.array_equal(split.train, patches.rows)
    assert split.train_regions == [volumes[0].region]
    assert split.val_regions == [None]
    assert not len(split.val)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_random_split_of_few_patches_leaves_one_on_each_side(prepare, share):
    task, volumes, patches = prepare([(9, 9, 13)], split_mode="random", tr_val_split=share)
    assert len(patches.rows) == 2
    split = split_patches(task.tr_params, volumes, patches)
    assert (len(split.train), len(split.val)) == (1, 1)


@pytest.mark.parametrize(
    ("entry", "settings", "message", "followed"),
    [
        ({}, {"split_mode": "random"}, "validate on; .*tr_val_split 1", {"tr_val_split": 1.0}),
        ({"split": "train"}, {}, "validate on; .*tr_val_split 1", {"tr_val_split": 1.0}),
        (
            {},
            {"split_mode": "random"},
            "validate on; give a finer patch_stride",
            {"dataset": {"patch_stride": [1, 1, 1]}},
        ),
    ],
)
def test_the_remedy_of_an_empty_side_works(prepare, entry, settings, message, followed):
    shape = (8, 9, 10)
    task, volumes, patches = prepare([shape], [dict(entry)], **settings)
    with pytest.raises(TaskError, match=message):
        split_patches(task.tr_params, volumes, patches)
    again = {**entry, "input": volumes[0].inputs[0].location}
    assert len(split_patches(*_again(prepare, shape, again, settings | followed)).train)
