import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcmodels.config.train_params import FoldConfig
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes, settle_groups, units_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.find import PatchCriteria, search_patches
from vcmodels.patches.folds import all_folds
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Silent
from vcmodels.volumes import create_array
from vcmodels.volumes.location import parent


def volume(number, group, voxels, split=None):
    """One without labels, so that all its voxels count as labelled."""
    region = Box((0, 0, 0), (8, 8, voxels))
    return TaskVolume(
        f"v{number}", f"dataset_config.volume_paths.{number}", (), {}, None, None, region, split,
        1.0, (1.0, 1.0, 1.0), None, {}, group,
    )  # fmt: skip


def divided(task, volumes):
    indexer = Indexer(None, Silent())
    return all_folds(task.tr_params, volumes, PatchCriteria.of(task), indexer)


def with_folds(task, seed=0, **folds):
    params = task.tr_params.model_copy(update={"folds": FoldConfig(**folds), "seed": seed})
    return task.model_copy(update={"tr_params": params})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.none() | st.sampled_from("abcdefg"), min_size=2, max_size=14),
    sizes=st.lists(st.integers(8, 90), min_size=14, max_size=14),
    fixed=st.dictionaries(st.sampled_from("abc"), st.sampled_from(["train", "val"])),
    count=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_no_group_is_on_both_sides_and_each_is_validated_on_once(
    make_task, groups, sizes, fixed, count, seed
):
    volumes = settle_groups(
        [
            volume(n, group, size, fixed.get(group) if group not in groups[:n] else None)
            for n, (group, size) in enumerate(zip(groups, sizes, strict=False))
        ]
    )
    assert all(v.split == fixed.get(v.group) for v in volumes)
    task = with_folds(make_task([{"input": "i", "sheet": "s"}]), seed, count=count, by="volume")
    free = [v for v in volumes if v.split is None]
    if free and len({v.group or v.name for v in free}) < count:
        with pytest.raises(TaskError, match=f"cannot be divided into {count} folds"):
            divided(task, volumes)
        return
    found = divided(task, volumes)
    assert len(found) == count
    for parts in found:
        sides = {}
        for part in parts:
            sides.setdefault(part.group or part.name, set()).add(part.split)
        assert all(len(side) == 1 and None not in side for side in sides.values())
        if free:
            assert {p.split for p in parts if p.name in {v.name for v in free}} == {"train", "val"}
    for v in free:
        assert [p.split for parts in found for p in parts if p.name == v.name].count("val") == 1


def test_folds_of_groups_hold_about_as_many_voxels(make_task):
    """Greedy: no two folds differ by more than the largest group."""
    rng = np.random.default_rng(0)
    volumes = [volume(n, f"p{n // 3}", int(rng.integers(10, 200))) for n in range(30)]
    task = with_folds(make_task([{"input": "i", "sheet": "s"}]), count=4, by="group")
    held = [
        sum(v.region.shape[2] for v in parts if v.split == "val")
        for parts in divided(task, volumes)
    ]
    largest = max(sum(v.region.shape[2] for v in volumes[n : n + 3]) for n in range(0, 30, 3))
    assert max(held) - min(held) <= largest


def test_units_are_groups_in_the_order_of_their_first_volume():
    volumes = [volume(n, group, 9) for n, group in enumerate(["b", None, "a", "b", None])]
    assert units_of(volumes, range(5)) == [[0, 3], [1], [2], [4]]
    assert units_of(volumes, [4, 2]) == [[4], [2]]


@pytest.mark.parametrize(
    ("groups", "folds", "match"),
    [
        (["a", "a", "b"], {"count": 2, "by": "slab"}, r'folds.by: is "slab".* group a on both'),
        (["a", None, "b"], {"count": 2, "by": "group"}, r'volume_paths.1.group: is not set'),
        (["a", "a", "b"], {"count": 3}, "2 groups cannot be divided into 3 folds; lower it$"),
    ],
)  # fmt: skip
def test_folds_that_would_divide_a_group_are_refused(make_task, groups, folds, match):
    volumes = [volume(n, group, 90) for n, group in enumerate(groups)]
    with pytest.raises(TaskError, match=match):
        divided(with_folds(make_task([{"input": "i", "sheet": "s"}]), **folds), volumes)


def test_a_group_of_two_sides_is_refused():
    volumes = [volume(0, "a", 9, "train"), volume(1, "a", 9, "val")]
    with pytest.raises(TaskError, match=r'volume_paths.1.split: is "val", and v0, also of group a'):
        settle_groups(volumes)


@pytest.fixture
def entries(store):
    """Four long volumes, which would be cut if they had no groups."""
    labels = np.ones((8, 9, 40), np.uint8)
    return [
        {"input": store(f"raw{n}", labels), "sheet": store(f"sheet{n}", labels), "name": f"v{n}"}
        for n in range(4)
    ]


def test_an_ordinary_split_divides_groups_as_wholes(make_task, entries):
    for entry, group in zip(entries, ["a", "b", "b", None], strict=True):
        entry["group"] = group
    for seed in range(6):
        task = make_task(entries, seed=seed, tr_val_split=0.5)
        volumes = open_volumes(task)
        split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
        sides = [
            (a is not None, b is not None)
            for a, b in zip(split.train_regions, split.val_regions, strict=True)
        ]
        assert all(a != b for a, b in sides)
        assert sides[1] == sides[2]


def test_what_leaves_a_group_on_no_side_is_refused(make_task, entries):
    entries[0]["group"] = "a"
    task = make_task(entries, split_mode="random")
    volumes = open_volumes(task)
    with pytest.raises(TaskError, match=r'split_mode: is "random", and the patches of group a'):
        split_patches(task.tr_params, volumes, search_patches(task, volumes))
    for entry in entries:
        entry["group"] = "a"
    task = make_task(entries)
    volumes = open_volumes(task)
    with pytest.raises(TaskError, match="the only one with patches, a, cannot be divided"):
        split_patches(task.tr_params, volumes, search_patches(task, volumes))


def test_the_group_can_be_an_attribute_of_the_volume_or_the_group_around_it(make_task, tmp_path):
    entries = []
    for n, (own, around) in enumerate([("p1", None), (7, "p1"), (None, "p1")]):
        image = create_array(
            str(tmp_path / f"{n}.zarr"), "raw",
            shape=(8, 8, 8), chunks=(8, 8, 8), dtype=np.uint8,
            attributes={} if own is None else {"patient": own},
        )  # fmt: skip
        if around:
            place = tmp_path / f"{n}.zarr" / "zarr.json"
            place.write_text('{"zarr_format":3,"node_type":"group","attributes":{"patient":"p1"}}')
        assert parent(image.location)
        entries.append(
            {"input": image.location, "sheet": image.location, "group": {"attribute": "patient"}}
        )
    found = open_volumes(make_task(entries))
    assert [v.group for v in found] == ["p1", "7", "p1"]
    entries[0]["group"] = {"attribute": "subject"}
    with pytest.raises(TaskError, match=r"0\.group: attribute 'subject' of .* is None"):
        open_volumes(make_task(entries))
