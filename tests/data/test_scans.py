"""The same voxels by other names, which must not be on both sides of a split."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from vcmodels.data.scans import number_copies, number_scans, share_voxels
from vcmodels.data.task_volume import Preparation
from vcmodels.data.volumes import open_volumes, with_copies
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.prepare.plan import VolumePlan
from vcmodels.prepare.section import AS_IT_IS
from vcmodels.volumes import open_volume

SHAPE = (20, 24, 64)


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(1, 255, SHAPE, np.uint8)


@pytest.fixture
def image(tmp_path, values):
    """An OME group of two levels: `a.zarr/img`, with `0` and `1`."""
    group = tmp_path / "a.zarr" / "img"
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2**n] * 3}]}
        for n in range(2)
    ]
    image = {"version": "0.4", "axes": axes, "datasets": datasets}
    zarr.create_group(str(group), zarr_format=2, attributes={"multiscales": [image]})
    for level, data in (("0", values), ("1", values[::2, ::2, ::2])):
        zarr.create_array(str(group / level), data=data, chunks=(8, 8, 8), zarr_format=2)
    return group


def link(image):
    (image.parent.parent / "link.zarr").symlink_to(image.parent)
    return image.parent.parent / "link.zarr" / "img" / "0", {}


def copy(image):
    target = image.parent.parent / "copy"
    shutil.copytree(image / "0", target, copy_function=shutil.copyfile)
    return target, {}


def converted(image):
    target = image.parent.parent / "converted"
    data = zarr.open_array(str(image / "0"), mode="r")[...].astype(np.float32)
    zarr.create_array(str(target), data=data, chunks=(5, 7, 9), zarr_format=3)
    return target, {}


ALIASES = {
    "a link": link,
    "the group": lambda image: (image, {}),
    "another spelling": lambda image: (f"{image}/../img/./0", {}),
    "a relative path": lambda image: (os.path.relpath(image / "0"), {}),
    "a file URL": lambda image: (f"file://{image}/0", {}),
    "another level": lambda image: (image, {"level": 1}),
    "another level by its path": lambda image: (image / "1", {}),
    "a copy": copy,
    "a copy in other chunks and another type": converted,
}


@pytest.mark.parametrize("alias", ALIASES.values(), ids=ALIASES)
def test_the_same_voxels_by_another_name_are_one_scan(image, alias):
    place, keys = alias(image)
    place = str(place) if "://" in str(place) else os.path.abspath(place)  # noqa: PTH100
    volumes = [[open_volume(str(image / "0"))], [open_volume(place, **keys)]]
    assert number_copies(volumes, number_scans(volumes)) == [0, 0]


def test_other_scans_stay_apart(tmp_path, values):
    rng = np.random.default_rng(1)
    mask = (rng.random(SHAPE) < 0.01).astype(np.uint8)
    data = [values, values[::-1], rng.integers(1, 255, SHAPE, np.uint8), mask, mask, 0 * mask]
    for n, one in enumerate(data):  # masks and empty arrays are alike in many scans
        zarr.create_array(str(tmp_path / f"{n}"), data=np.ascontiguousarray(one), chunks=(8, 8, 8))
    volumes = [[open_volume(str(tmp_path / f"{n}"))] for n in range(len(data))]
    assert number_copies(volumes, number_scans(volumes)) == list(range(len(data)))


def test_scans_that_share_any_array_are_one(tmp_path, values):
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("label", 3)):
        data = np.random.default_rng(seed).integers(1, 255, SHAPE, np.uint8)
        zarr.create_array(str(tmp_path / name), data=data, chunks=(8, 8, 8))
    a, b, c, label = (open_volume(str(tmp_path / name)) for name in ("a", "b", "c", "label"))
    assert number_scans([[a, label], [c], [b, label], [c, b]]) == [0, 0, 0, 0]
    assert number_scans([[a, label], [c], [b, label], [c]]) == [0, 1, 0, 1]


def test_a_damaged_chunk_is_no_reason_to_stop(image, tmp_path):
    place, _ = copy(image)
    for path in Path(place).iterdir():
        if path.name[0].isdigit():
            path.write_bytes(b"damaged")
    volumes = [[open_volume(str(image / "0"))], [open_volume(str(place))]]
    assert number_copies(volumes, number_scans(volumes)) == [0, 1]


def test_boxes_of_two_levels_meet_where_they_show_the_same():
    whole, half = (20, 24, 64), (10, 12, 32)
    one = Box((0, 0, 0), (20, 24, 32))
    assert share_voxels(one, whole, Box((0, 0, 15), (10, 12, 17)), half)
    assert not share_voxels(one, whole, Box((0, 0, 16), (10, 12, 16)), half)
    assert not share_voxels(one, whole, Box((0, 0, 32), (20, 24, 32)), whole)


def cropped(volume, x, length):
    """A volume of which only a part along x is taken: its boxes count from there."""
    box = Box((0, 0, x), (20, 24, length))
    grid = GridMap.identity(SHAPE).cropped(box)
    inputs = VolumePlan(AS_IT_IS, grid, ()).images(volume.inputs)
    preparation = Preparation(volume, grid, AS_IT_IS)
    return replace(volume, inputs=inputs, region=inputs[0].box, preparation=preparation)


@pytest.mark.parametrize("alias", ["a link", "a copy"])
def test_two_crops_meet_where_they_show_the_same(task_of, alias):
    volumes = open_volumes(task_of(alias, {}, {}))
    left, right, far = (
        cropped(volumes[0], 0, 40),
        cropped(volumes[1], 30, 20),
        cropped(volumes[1], 50, 14),
    )
    left, right, far = with_copies([left, right, far])
    assert left.scan == right.scan
    assert left.meets(left.region, right, right.region)
    assert not left.meets(left.region, far, far.region)
    assert not left.meets(Box((0, 0, 0), (20, 24, 30)), right, right.region)
    assert right.meets(Box((0, 0, 0), (20, 24, 5)), left, Box((0, 0, 34), (20, 24, 6)))
    # Of one grid: parts next to each other share nothing, and equal ones are twins.
    assert not left.meets(Box((0, 0, 0), (20, 24, 8)), left, Box((0, 0, 8), (20, 24, 8)))
    assert left.is_twin(cropped(volumes[0], 0, 40))
    assert not left.is_twin(cropped(volumes[0], 10, 40))


@pytest.fixture
def task_of(make_task, image, store, values):
    """A task with the image, and with it by another name."""
    label = store("sheet", (values > 200).astype(np.uint8))
    other = store("other", (values[..., ::-1] > 100).astype(np.uint8))

    def build(alias, one, two, **settings):
        place, keys = ALIASES[alias](image)
        labels = {"ref_label": "sheet"}
        entries = [{"input": str(image / "0"), "sheet": label, "name": "a", **labels, **one}]
        twin = {"input": str(place), "name": "b", **labels, **keys}
        twin |= {} if keys else {"sheet": other}
        return make_task([*entries, {**twin, **two}], **settings)

    return build


@pytest.mark.parametrize(
    "alias", ["a link", "the group", "a relative path", "a file URL", "a copy"]
)
def test_they_do_not_train_and_validate(task_of, alias):
    task = task_of(alias, {"split": "train"}, {"split": "val"})
    volumes = resolve(task).volumes
    with pytest.raises(TaskError, match=r"shares voxels with the validation part of b.*leave one"):
        split_patches(task.tr_params, volumes, search_patches(task, volumes))


@pytest.mark.parametrize("alias", ["a link", "a copy"])
def test_volumes_of_the_same_voxels_are_cut_at_the_same_place(task_of, alias):
    task = task_of(alias, {}, {}, tr_val_split=0.5)
    volumes = resolve(task).volumes
    patches = search_patches(task, volumes)
    split = split_patches(task.tr_params, volumes, patches)
    assert split.train_regions[0] == split.train_regions[1] != volumes[0].region
    assert split.val_regions[0] == split.val_regions[1] is not None


def test_slabs_of_the_same_voxels_are_the_same(task_of, tmp_path):
    task = task_of("a copy", {}, {}, folds={"count": 2, "by": "slab", "index": 0})
    held = {v.name: v.region for v in resolve(task).volumes if v.split == "val"}
    assert held["a"] == held["b"]


def test_a_group_keeps_them_together(task_of, store, values):
    """The remedy that the message names."""
    task = task_of("a link", {"group": "g"}, {"group": "g"}, tr_val_split=0.5)
    third = store("third", np.roll(values, 5, 2))
    config = task.dataset_config
    entry = config.volume_paths[0].changed(input=third, group=None, name="c")
    entry = entry.changed(labels={"sheet": store("third_sheet", (values > 150).astype(np.uint8))})
    task = task.with_values(dataset_config={"volume_paths": (*config.volume_paths, entry)})
    volumes = with_copies(open_volumes(task))
    split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
    sides = [region is not None for region in split.train_regions]
    assert sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_copy_of_any_input_of_a_volume_makes_the_scans_one(image, tmp_path, at):
    rng = np.random.default_rng(5)

    def other(name):
        data = rng.integers(1, 255, SHAPE, np.uint8)
        zarr.create_array(str(tmp_path / name), data=data, chunks=(8, 8, 8))
        return open_volume(str(tmp_path / name))

    place, _ = copy(image)
    first = [other("u"), other("v"), open_volume(str(image / "0"))]
    second = [other(f"w{n}") for n in range(2)]
    second.insert(at, open_volume(str(place)))
    third = [other(f"x{n}") for n in range(3)]
    volumes = [first, second, third]
    assert number_scans(volumes) == [0, 1, 2]
    assert number_copies(volumes, [0, 1, 2]) == [0, 0, 2]
