"""Inputs whose axes are stored in any order, or of which a part is chosen, predict the same."""

import json

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from vcmodels.errors import OutputError, TaskError, VolumeError
from vcmodels.reporting import Silent

SHAPE = (9, 20, 13)
VALUES = np.random.default_rng(0).random(SHAPE, np.float32) + 0.5
LAYOUTS = {
    "xyz": ({}, {"zarr_format": 2}),
    "yxz": ({"axes": "yxz"}, None),
    "xyz sharded": ({}, {"shards": (8, 16, 8)}),
    "tczyx": ({}, {"zarr_format": 2}),
    "zyxc": ({}, {}),
    "one of channels": ({"channels": [2]}, {}),
    "one of times": ({"index": {"t": 1}}, {"zarr_format": 2}),
    "one of both, sharded": ({"index": {"t": 1}, "channels": [0]}, {"shards": (1, 2, 8, 16, 8)}),
    "channels without names": ({"axes": "czyx", "channels": [1]}, None),
    "unnamed ones": ({}, None),
}


def laid_out(name):
    """The values in a layout, and its axes."""
    if "xyz" in name:
        return VALUES.transpose(2, 1, 0), "xyz"
    noise = np.random.default_rng(1).random((3, *SHAPE), np.float32)
    if name == "yxz":
        return VALUES.transpose(1, 2, 0), "yxz"
    if name == "zyxc":
        return VALUES[..., None], "zyxc"
    if "one of both" in name:
        full = np.stack([noise[:2], np.stack([VALUES, noise[2]])])
        return full, "tczyx"
    if "one of" in name:
        at = 2 if "channels" in name else 1
        noise[at] = VALUES
        return noise, "czyx" if "channels" in name else "tzyx"
    if name == "channels without names":
        noise[1] = VALUES
        return noise, "czyx"
    return VALUES[None, None], "tczyx"


def write(place, values, axes, options):
    named = {}
    if options is not None and options.get("zarr_format") == 2:
        named = {"attributes": {"_ARRAY_DIMENSIONS": [*axes]}}
    elif options is not None:
        named = {"dimension_names": [*axes]}
    sides = {"z": 4, "y": 8, "x": 8}
    chunks = tuple(min(sides.get(a, 1), n) for a, n in zip(axes, values.shape, strict=True))
    array = zarr.create_array(
        LocalStore(place), shape=values.shape, dtype="f4", chunks=chunks, **named, **(options or {})
    )
    array[...] = np.ascontiguousarray(values)
    return str(place)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_the_same_voxels_gives_the_same_prediction(workplace, tmp_path, name):
    keys, options = LAYOUTS[name]
    values, axes = laid_out(name)
    work = workplace(VALUES, chunks=(4, 8, 8))
    work.run()
    expected, hashes = work.read(), work.hashes()
    np.testing.assert_allclose(expected, VALUES, rtol=1e-6)
    path = write(tmp_path / "other", values, axes, options)
    work.run(input_path=path, options={"overwrite": True}, **keys)
    np.testing.assert_array_equal(work.read(), expected)
    assert work.hashes() == hashes


def test_a_mask_is_read_by_the_same_keys(workplace, tmp_path):
    work = workplace(VALUES)
    masks = np.zeros((2, *SHAPE[::-1]), np.float32)
    masks[1, :, :, :5] = 1
    mask = write(tmp_path / "mask", masks, "cxyz", {})
    work.run(skip={"mask": mask}, index={"c": 1})
    assert work.read()[:5].all()
    assert not work.read()[5:].any()
    unnamed = write(tmp_path / "unnamed", masks[1], "xyz", None)
    with pytest.raises(VolumeError, match=r"has shape \(13, 20, 9\), the input \(9, 20, 13\)"):
        work.run(skip={"mask": unnamed})
    work.run(skip={"mask": unnamed}, axes={"mask": "xyz"}, options={"overwrite": True})
    assert not work.read()[5:].any()


def test_an_input_in_another_order_next_to_one_without_names_is_refused(workplace, tmp_path):
    cube = np.random.default_rng(0).random((8, 8, 8), np.float32)
    work = workplace(cube)
    other = write(tmp_path / "other", cube, "xyz", {})
    raw = f"{work.store}/raw"
    (tmp_path / "plain").mkdir()
    plain = write(tmp_path / "plain" / "a", cube, "zyx", None)
    with pytest.raises(VolumeError, match=r'not name its axes.*"axes": {"input": "zyx"}'):
        work.run(input_path=[other, plain])
    with pytest.raises(VolumeError, match=r'"axes": {"mask": "zyx"}'):
        work.run(input_path=other, skip={"mask": plain})
    work.run(input_path=other, skip={"mask": raw})


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"channels": [3]}, VolumeError, '"channels" asks for 3, and there are 3'),
        ({"index": {"t": 0}}, TaskError, r"inference_params.index.t: no array has an axis t"),
        ({"axes": "tczyx"}, TaskError, 'inference_params.axes: "tczyx" names 5 axes.* have 4'),
        ({}, VolumeError, r'3 channels, .*trained with 1; .*"channels": \[0\]'),
    ],
)
def test_keys_that_fit_nothing_are_refused(workplace, tmp_path, keys, error, message):
    values, axes = laid_out("one of channels")
    path = write(tmp_path / "other", values, axes, {})
    work = workplace(VALUES)
    with pytest.raises(error, match=message):
        work.run(input_path=path, **keys)
    assert not (work.folder / "out").exists()


def test_another_choice_is_another_result(workplace, tmp_path):
    values, axes = laid_out("one of times")
    path = write(tmp_path / "other", values, axes, {})
    work = workplace(VALUES)
    work.run(input_path=path, index={"t": 1})
    with pytest.raises(OutputError, match=r'input_choice was \["t 1"\], is \["t 2"\]'):
        work.run(input_path=path, index={"t": 2})
    with pytest.raises(OutputError, match=r"input_spacing was null, is \[2.0, 1.0, 1.0\]"):
        work.run(input_path=path, index={"t": 1}, spacing=[2, 1, 1])
    assert work.run(input_path=path, index={"t": 1}).was_complete


def test_the_spacing_of_the_task_is_that_of_the_result(workplace):
    work = workplace(VALUES)
    work.run(spacing=[2, 0.5, 0.25])
    notes = json.loads((work.folder / "out/net.zarr/value/.zattrs").read_text())
    (scales,) = notes["multiscales"]
    (step,) = scales["datasets"][0]["coordinateTransformations"]
    assert step["scale"] == [2, 0.5, 0.25]


def test_metadata_that_is_not_understood_is_said(workplace, tmp_path):
    path = write(tmp_path / "other", *laid_out("xyz"), {"zarr_format": 2})
    attributes = tmp_path / "other" / ".zattrs"
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | {"resolution": "fine"}))
    reporter = Silent()
    workplace(VALUES).run(input_path=path, options={"reporter": reporter})
    said = [line for line in reporter.lines if line.startswith("note")]
    assert said == [
        f"note: {path}: axes (x, y, z) are read, and results written, as (z, y, x)",
        f"note: {path}: resolution: fine are not 3 numbers above 0; the voxel size is unknown: "
        'give "spacing"',
    ]


def test_a_voxel_size_in_another_unit_is_compared_in_that_of_the_training(workplace):
    work, reporter = workplace(VALUES), Silent()
    attributes = work.folder / "input.zarr" / "raw" / ".zattrs"
    grid = {"resolution": [2000, 500, 250], "units": "nm"}
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | grid))
    from vcmodels.inference import RunOptions, predict_request

    for spacing, count in (((2.0, 0.5, 0.25), 0), ((2.0, 0.5, 0.5), 1)):
        request = work.request(work.task(), spacing=spacing, unit="micrometer")
        predict_request(request, RunOptions(dry_run=True, reporter=reporter))
        assert sum("those of the training" in line for line in reporter.lines) == count
