"""Labelled volumes whose axes are stored in any order, or of which a part is chosen."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.cache import fingerprint, load_or_find_patches
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Silent

SHAPE = (12, 16, 20)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(1, 200, SHAPE).astype("u1")
MASK = (RNG.random(SHAPE) > 0.6).astype("u1")
NORMALS = RNG.normal(size=(3, *SHAPE)).astype("f4")
TARGETS = {
    "sheet": {"kind": "binary"},
    "normals": {"kind": "normals", "channels": 3},
    "far": {"kind": "distance", "derive": "sheet", "clip": 3},
}


@pytest.fixture
def put(tmp_path):
    """Writes values with axes (c, z, y, x) in another order, singletons included."""

    def write(name, values, axes, *, version=3, is_named=True, shards=None):
        for extra in axes:
            if extra not in "czyx":
                values = values[None]
        order = [*(a for a in axes if a not in "czyx"), *"czyx"]
        if "c" not in axes:
            values, order = values.take(0, order.index("c")), [a for a in order if a != "c"]
        stored = np.ascontiguousarray(values.transpose([order.index(a) for a in axes]))
        named = {}
        if is_named and version == 3:
            named = {"dimension_names": [*axes]}
        elif is_named:
            named = {"attributes": {"_ARRAY_DIMENSIONS": [*axes]}}
        chunks = tuple({"z": 4, "y": 8, "x": 5}.get(a, 1) for a in axes)
        if shards:
            named["shards"] = tuple(
                n * (2 if a in "zyx" else 1) for a, n in zip(axes, chunks, strict=True)
            )
        array = zarr.create_array(
            LocalStore(tmp_path / name), shape=stored.shape, dtype=stored.dtype,
            chunks=chunks, zarr_format=version, **named,
        )  # fmt: skip
        array[...] = stored
        return str(tmp_path / name)

    return write


def read_all(volume):
    arrays = {"input": volume.inputs[0], **volume.labels}
    return {name: array.read(array.box) for name, array in arrays.items()}


LAYOUTS = [
    ("zyx", "zyx", "czyx", {}),
    ("xyz", "zyx", "xyzc", {"version": 2}),
    ("tczyx", "czyx", "czyx", {"version": 2}),
    ("tczyx", "tczyx", "tczyx", {"shards": True}),
    ("zyxc", "zyxc", "zyxc", {}),
    ("tczyx", "czyx", "czyx", {"is_named": False, "version": 2}),
    ("tzyx", "tzyx", "tczyx", {}),
    ("yzx", "xyz", "cyxz", {"shards": True}),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_gives_the_same_voxels_and_patches(make_task, put, layout):
    image, mask, normals, options = layout
    entry = {
        "input": put("image", IMAGE[None], image, **options),
        "sheet": put("sheet", MASK[None], mask, **options),
        "normals": put("normals", NORMALS, normals, **options),
        "ref_label": "sheet",
    }
    task = make_task([entry], TARGETS)
    (volume,) = open_volumes(task)
    found = read_all(volume)
    np.testing.assert_array_equal(found["input"], IMAGE[None])
    np.testing.assert_array_equal(found["sheet"], MASK[None])
    np.testing.assert_array_equal(found["normals"], NORMALS)
    patches = load_or_find_patches(task, [volume])
    corners = itertools.product((0, 4), (0, 4, 8), (0, 4, 8, 12))
    assert [tuple(row[1:]) for row in patches.rows.tolist()] == list(corners)


def test_choices_of_channels_and_times_change_what_is_read_and_the_list(make_task, put, tmp_path):
    images = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]])
    masks = np.stack([MASK, np.zeros_like(MASK)])
    masks[1, :8, :8, :8] = 1
    entry = {
        "input": put("image", images, "tczyx"),
        "sheet": put("sheet", masks, "czyx"),
        "other": put("other", masks, "zyxc"),
        "ref_label": "sheet",
        "channels": [2, 0],
        "index": {"c": {"sheet": 1, "other": 0}},
    }
    targets = {"sheet": {"kind": "binary"}, "other": {"kind": "binary"}}
    task = make_task([entry], targets, dataset={"index_dir": str(tmp_path / "index")})
    (volume,) = open_volumes(task)
    found = read_all(volume)
    np.testing.assert_array_equal(found["input"], images[[2, 0]])
    np.testing.assert_array_equal(found["sheet"], masks[1:])
    np.testing.assert_array_equal(found["other"], masks[:1])
    few, reporter = load_or_find_patches(task, [volume]), Silent()
    task = make_task(
        [entry | {"index": {"c": 0}}], targets, dataset={"index_dir": str(tmp_path / "index")}
    )
    (other,) = open_volumes(task)
    many = load_or_find_patches(task, [other], reporter)
    assert len(few.rows) < len(many.rows)
    assert "out of date" in reporter.lines[0]
    criteria = PatchCriteria.of(task)
    assert fingerprint(criteria, [volume]) != fingerprint(criteria, [other])


def test_what_is_not_read_may_be_damaged(make_task, put):
    path = put("image", np.stack([IMAGE, IMAGE + 1]), "czyx")
    for file in Path(path).glob("c/0/*/*/*"):
        file.write_bytes(b"damaged")
    entry = {"input": path, "sheet": put("sheet", MASK[None], "zyx"), "channels": [1]}
    (volume,) = open_volumes(make_task([entry]))
    np.testing.assert_array_equal(volume.inputs[0].read(volume.region), IMAGE[None] + 1)


@pytest.mark.parametrize(
    ("image", "mask", "message", "remedy"),
    [
        ("tczyx", "czyx", r"0.sheet: axis c .* has 2 pos.*\"index\": {\"c\": 0}", {"index": {"c": 0}}),
        (None, "zyx", r"0.input: shape .* can be read as .*channel_axis", {"channel_axis": "first"}),
        ("ijk", "zyx", r"0.input: .*\(i, j, k\).*\"axes\": \"zyx\"", {"axes": "zyx"}),
    ],
)  # fmt: skip
def test_the_remedy_of_a_message_works(make_task, put, image, mask, message, remedy):
    masks = np.stack([MASK, MASK]) if "c" in mask else MASK[None]
    path = put("sheet", masks, mask)
    if image is None:
        source = put("image", np.stack([IMAGE, IMAGE]), "czyx", is_named=False)
    else:
        source = put("image", IMAGE[None], "zyx" if image == "ijk" else image)
    if image == "ijk":
        array = zarr.open_array(source, mode="r+")
        assert array.metadata.dimension_names == ("z", "y", "x")
        file = Path(source, "zarr.json")
        names = '"dimension_names": [\n    "{}",\n    "{}",\n    "{}"'
        file.write_text(file.read_text().replace(names.format(*"zyx"), names.format(*"ijk")))
    entry = {"input": source, "sheet": path}
    with pytest.raises(VolumeError, match=message):
        open_volumes(make_task([entry]))
    (volume,) = open_volumes(make_task([entry | remedy]))
    np.testing.assert_array_equal(read_all(volume)["sheet"], MASK[None])
    np.testing.assert_array_equal(read_all(volume)["input"][:1], IMAGE[None])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"index": {"t": 3}},
            r"0.index.t: no array has an axis t on which 3 can be read; the axes",
        ),
        ({"axes": "tczyx"}, r'0.axes: "tczyx" names 5 axes, the arrays have 3'),
        ({"index": {"c": 0}}, "0.index.c: no array has an axis c"),
    ],
)
def test_keys_that_fit_no_array_are_refused(make_task, put, keys, message):
    entry = {"input": put("image", IMAGE[None], "zyx"), "sheet": put("sheet", MASK[None], "zyx")}
    with pytest.raises(TaskError, match=message):
        open_volumes(make_task([entry | keys]))


def test_a_label_without_names_next_to_a_turned_image_is_refused(make_task, put):
    cube = IMAGE[:, :12, :12]
    entry = {
        "input": put("image", cube[None], "xyz"),
        "sheet": put("sheet", cube[None], "zyx", is_named=False),
    }
    with pytest.raises(VolumeError, match=r'0.sheet: .*does not name.*"axes": {"sheet": "zyx"}'):
        open_volumes(make_task([entry]))
    entry["axes"] = {"sheet": "zyx"}
    (volume,) = open_volumes(make_task([entry]))
    np.testing.assert_array_equal(*read_all(volume).values())


def test_times_of_one_array_may_train_and_validate_but_channels_may_not(make_task, put):
    images = np.stack([IMAGE, IMAGE])
    mask = put("sheet", MASK[None], "zyx")
    times = put("times", images, "czyx")
    for key, is_leak in (("index", False), ("channels", True)):
        axes = "tzyx" if key == "index" else "czyx"
        entries = [
            {
                "input": times, "sheet": mask, "split": side, "axes": {"input": axes},
                key: {"t": at} if key == "index" else [at],
            }
            for at, side in enumerate(("train", "val"))
        ]  # fmt: skip
        task = make_task(entries)
        volumes = open_volumes(task)
        patches = load_or_find_patches(task, volumes)
        if is_leak:
            with pytest.raises(TaskError, match="shares voxels with the validation part"):
                split_patches(task.tr_params, volumes, patches)
        else:
            assert len(split_patches(task.tr_params, volumes, patches).val)


def test_voxel_sizes_come_in_the_unit_of_the_first_volume(make_task, put, tmp_path):
    mask = put("sheet", MASK[None], "zyx")
    entries = []
    for name, size, unit in (("a", [2, 1, 0.5], "um"), ("b", [2000, 1000, 500], "nm")):
        path = put(name, IMAGE[None], "zyx", version=2)
        array = zarr.open_array(path, mode="r+")
        array.attrs.update({"resolution": size, "units": unit})
        entries.append({"input": path, "sheet": mask})
    reporter = Silent()
    volumes = open_volumes(make_task(entries), reporter)
    assert [(v.spacing, v.unit) for v in volumes] == [((2, 1, 0.5), "micrometer")] * 2
    assert reporter.lines == []


def test_lengths_of_targets_ask_for_a_voxel_size(make_task, put):
    entry = {"input": put("image", IMAGE[None], "zyx"), "sheet": put("sheet", MASK[None], "zyx")}
    targets = {key: TARGETS[key] for key in ("sheet", "far")}
    reporter = Silent()
    open_volumes(make_task([entry], targets), reporter)
    (line,) = reporter.lines
    assert "is unknown: lengths of far count voxels there" in line
    assert line.endswith('give "spacing" (dataset_config.volume_paths.0.spacing)')
    reporter = Silent()
    (volume,) = open_volumes(make_task([entry | {"spacing": [3, 2, 1]}], targets), reporter)
    assert (volume.spacing, volume.has_spacing, reporter.lines) == ((3, 2, 1), True, [])
    assert volume.region == Box((0, 0, 0), SHAPE)
