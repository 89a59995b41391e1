"""What is shown of tasks, runs, results and arrays."""

import fsspec
import numpy as np
import pytest
import zarr

from tests.inference.conftest import Workplace
from vcmodels.config import parse_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RefusedError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.pictures.slices import LABEL_COLOUR
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.targets import KINDS
from vcmodels.viewers.contents import is_result, scene_of_arrays, scene_of_result, scene_of_task
from vcmodels.viewers.looks import (
    Ids,
    Image,
    Linear,
    Numbers,
    Probability,
    Shares,
    Vectors,
    look_of_label,
    look_of_prediction,
)
from vcmodels.viewers.scene import Frame
from vcmodels.viewers.served import ServedScene
from vcmodels.volumes import ArrayVolume, Grid, open_volume, write_volume


def target(kind: str, **keys):
    return KINDS[kind].model_validate({"kind": kind, **keys})


@pytest.fixture
def task(sheet_task):
    return parse_task(sheet_task, "task.json")[0]


def test_a_task_shows_a_volume_with_its_labels(task):
    reporter = Silent()
    scene = scene_of_task(task, None, reporter)
    looks = {layer.name: layer.look for layer in scene.layers}
    assert list(looks) == ["image", "sheet (label)", "normals (label)"]
    assert isinstance(looks["image"], Image)
    low, high = looks["image"].window
    assert 0 < low < high < 255
    assert looks["sheet (label)"].other == LABEL_COLOUR
    assert set(looks["sheet (label)"].colours) == {2}  # the ignored
    assert looks["normals (label)"] == Vectors(
        Linear(2 / 65535, -1.0), (2, 1, 0), False, zero_codes=(0,)
    )
    assert scene.boxes == ()
    assert any("no patches" in line for line in reporter.lines)
    with pytest.raises(RefusedError, match='no volume "other"; choose from'):
        scene_of_task(task, "other", reporter)


def test_a_run_shows_its_sides_and_its_patches_on_them(task):
    volumes = open_volumes(task)
    (name,) = (volume.name for volume in volumes)
    rows = load_or_find_patches(task, volumes).rows
    train, val = Box((0, 0, 0), (24, 64, 56)), Box((0, 72, 0), (24, 24, 56))
    pairs = [[[o, e] for o, e in zip(box.origin, box.end, strict=True)] for box in (train, val)]
    Run(task.run_dir).write_splits(
        {"volumes": [name], "train_regions": [pairs[0]], "val_regions": [pairs[1]]}
    )
    boxes = {one.name: one.boxes for one in scene_of_task(task, None, Silent()).boxes}
    assert boxes["region: train"] == (train,)
    assert boxes["region: validation"] == (val,)
    every = [Box(tuple(row), (16, 16, 16)) for row in rows[:, 1:].tolist()]
    assert boxes["patches: train"] == tuple(box for box in every if train.contains(box))
    shown = [box for side, found in boxes.items() if "patches" in side for box in found]
    assert sorted(shown) == sorted(every)


@pytest.fixture
def work(tmp_path):
    return Workplace(
        tmp_path / "work", np.random.default_rng(0).random((8, 12, 16), np.float32), (8, 8, 8)
    )


def test_a_result_shows_its_input_and_its_predictions(work):
    work.run(output_type="float32")
    root = str(work.folder / "out" / "net.zarr")
    assert is_result(root)
    assert not is_result(work.store)
    scene = scene_of_result(root, (), Silent())
    assert [layer.name for layer in scene.layers] == ["image", "value (prediction)"]
    assert scene.layers[0].levels[0].volume.location == f"{work.store}/raw"
    assert isinstance(scene.layers[1].look, Numbers)


def test_a_result_whose_input_is_gone_is_shown_with_a_word(work, tmp_path):
    work.run()
    (work.folder / "input.zarr").rename(work.folder / "moved.zarr")
    reporter = Silent()
    root = str(work.folder / "out" / "net.zarr")
    scene = scene_of_result(root, (), reporter)
    assert [layer.name for layer in scene.layers] == ["value (prediction)"]
    assert any("is not shown" in line for line in reporter.lines)
    scene = scene_of_result(root, [str(work.folder / "moved.zarr" / "raw")], reporter)
    assert [layer.name for layer in scene.layers] == ["image", "value (prediction)"]


def test_arrays_are_shown_by_what_they_say_of_themselves(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    rng = np.random.default_rng(0)
    for name, dtype in (("grey", "uint8"), ("wide", "uint16"), ("ids", "uint32"), ("x", "float32")):
        group.create_array(name, data=rng.integers(0, 9, (6, 7, 8)).astype(dtype))
    reporter = Silent()
    place = str(tmp_path / "a.zarr")
    scene = scene_of_arrays(f"{place}/ids", [f"{place}/grey"], [f"{place}/wide"], reporter)
    assert [(one.name, type(one.look)) for one in scene.layers] == [
        ("image", Image), ("ids", Ids), ("wide", Ids),
    ]  # fmt: skip
    scene = scene_of_arrays(f"{place}/wide", (), (), reporter)
    assert isinstance(scene.layers[0].look, Image)
    assert any("--labels shows it as ids" in line for line in reporter.lines)
    with pytest.raises(VolumeError, match="are no ids"):
        scene_of_arrays(f"{place}/grey", (), [f"{place}/x"], reporter)


def test_one_grid_for_arrays_of_one_extent_and_their_own_for_others(tmp_path):
    for name, shape, spacing in (("a", (6, 7, 8), (4.0, 2.0, 1.0)), ("b", (6, 7, 8), (9.0, 9.0, 9.0)),
                                 ("c", (3, 3, 4), (8.0, 4.0, 2.0))):  # fmt: skip
        array = np.ones(shape, np.uint8)
        grid = Grid(spacing, (1.0, 1.0, 1.0), "micrometer", is_known=True)
        write_volume(str(tmp_path / f"{name}.zarr"), array, grid=grid, chunks=(8, 8, 8))
    a, b, c = (str(tmp_path / f"{name}.zarr") for name in "abc")
    scene = scene_of_arrays(b, [a], [c], Silent())
    first = Frame((4.0, 2.0, 1.0), (1.0, 1.0, 1.0), "micrometer", (6, 7, 8))
    assert [layer.frame for layer in scene.layers[:2]] == [first, first]
    assert scene.layers[2].frame.spacing == (8.0, 4.0, 2.0)


@pytest.mark.parametrize(
    ("kind", "keys", "dtype", "look"),
    [
        ("binary", {}, "uint8", Probability(Linear(1 / 255))),
        ("binary", {"activation": "none"}, "float32", Probability(Linear(), is_logit=True)),
        ("multiclass", {"channels": 3, "label_values": [0, 3, 7]}, "uint8", Ids),
        ("multiclass", {"channels": 3, "output": "probabilities"}, "uint8", Shares),
        ("distance", {"clip": 4.0}, "uint8", Numbers(Linear(8 / 255, -4.0), (-4.0, 4.0))),
        ("distance", {"clip": 4.0}, "float32", Numbers(Linear(), (-4.0, 4.0))),
        ("normals", {"orientation": "axial", "loss": "axial_cosine"}, "uint8",
         Vectors(Linear(2 / 255, -1.0), (2, 1, 0), True, zero_codes=(0,))),
        ("vector", {"output_range": [-9.0, 9.0], "vector_order": "zyx"}, "float32",
         Vectors(Linear(), (0, 1, 2), False, 9.0)),
        ("regression", {"output_range": [2.0, 4.0]}, "uint16",
         Numbers(Linear(2 / 65535, 2.0), (2.0, 4.0))),
        ("affinities", {"derive": "x", "offsets": [[1, 0, 0], [0, 1, 0]]}, "uint8", Numbers),
    ],
)  # fmt: skip
def test_predictions_look_as_their_kind_says(kind, keys, dtype, look):
    one = target(kind, **keys)
    found = look_of_prediction(one, one.encoding(np.dtype(dtype)), np.dtype(dtype), (0.0, 1.0))
    assert isinstance(found, look) if isinstance(look, type) else found == look


@pytest.mark.parametrize(
    ("kind", "keys", "dtype", "look"),
    [
        ("multiclass", {"channels": 3, "label_values": [0, 3, 7], "ignore_label": 9}, "uint8", {3, 7, 9}),
        ("binary", {"ignore_label": [0, 2]}, "uint8", {2}),
        ("regression", {"encoding": {"scale": 0.5, "offset": 1.0}}, "uint8",
         Numbers(Linear(0.5, 1.0), (1.0, 6.0))),
        ("vector", {"encoding": {"scale": 0.5, "zero_code": 7}}, "int16",
         Vectors(Linear(0.5, 0.0), (2, 1, 0), False, 1.0, (7,))),
    ],
)  # fmt: skip
def test_labels_look_as_they_are_stored(kind, keys, dtype, look):
    channels = 3 if kind == "vector" else 1
    array = ArrayVolume.of(np.zeros((channels, 6, 7, 8), dtype), (1.0, 1.0, 1.0), "label")
    found = look_of_label(target(kind, **keys), array, (0.0, 10.0))
    assert set(found.colours) == look if isinstance(look, set) else found == look


def test_arrays_on_a_server_are_shown_through_the_same_reader(s3, phantom):
    place = f"s3://{s3.bucket}/scroll.zarr"
    fsspec.filesystem("s3").put(str(phantom), place, recursive=True)
    scene = scene_of_arrays(f"{place}/sheet", [f"{place}/ct"], (), Silent())
    ct = open_volume(str(phantom / "ct"), key="x")
    served = ServedScene(scene)
    z, y, x = served.levels[0][0].chunk
    found = np.frombuffer(served.answer("0/0/c/1/0/2")[0], np.uint8).reshape(z, y, x)
    wanted = ct.read(Box((z, 0, 2 * x), (z, y, x)))[0]
    np.testing.assert_array_equal(found, wanted)
