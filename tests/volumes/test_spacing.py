import re

import numpy as np
import pytest

from vcmodels.errors import VolumeError
from vcmodels.volumes import Reading, open_volume
from vcmodels.volumes.spacing import in_unit, unit_name

SHAPE = (6, 7, 8)
UNKNOWN = ((1, 1, 1), False)


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def move(*values):
    return {"type": "translation", "translation": list(values)}


@pytest.fixture
def image(tmp_path, stores):
    """Opens an image of OME-Zarr 0.4 with these transformations, and units along its axes."""

    def make(steps, *, names="zyx", units=("micrometer",) * 3, shape=SHAPE, group=(), **more):
        axes = [
            {"name": n, "type": "space", **({"unit": u} if u else {})}
            for n, u in zip(names, units, strict=True)
        ]
        entry = {"version": "0.4", "axes": axes, "coordinateTransformations": list(group)}
        entry["datasets"] = [{"path": "0", "coordinateTransformations": steps}]
        place = tmp_path / f"image{len(list(tmp_path.iterdir()))}"
        stores.write_group(place, {"multiscales": [entry], **more})
        stores.write(place / "0", stores.numbers(shape), zarr_format=2)
        return open_volume(str(place), key="input", channels="any")

    return make


def test_levels_and_the_whole_image_scale_and_move_in_turn(image):
    volume = image([scale(1, 2, 3), move(1, 1, 1)], group=[scale(2, 2, 2), move(0, 0, 5)])
    assert (volume.spacing, volume.offset, volume.has_spacing) == ((2, 4, 6), (2, 2, 7), True)
    assert volume.spacing_notes == ()


def test_steps_of_a_sequence_are_taken_one_by_one(image):
    steps = [{"type": "sequence", "transformations": [scale(1, 2, 3), {"type": "identity"}]}]
    assert image(steps).spacing == (1, 2, 3)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([scale(0, 1, 1)], r"\(0.0, 1.0, 1.0\) are not 3 numbers above 0"),
        ([scale(-2, 1, 1)], "not 3 numbers above 0"),
        ([scale(float("nan"), 1, 1)], r"scale \[nan, 1, 1\] is not understood"),
        ([scale(float("inf"), 1, 1)], "is not understood"),
        ([scale(10**400, 1, 1)], "is not understood"),
        ([scale("2", 1, 1)], r"scale \['2', 1, 1\] is not understood"),
        ([scale(True, 1, 1)], "is not understood"),
        ([scale(1, 1)], "not 3 numbers above 0"),
        ([{"type": "scale", "path": "scales"}], "scale scales is not understood"),
        ([{"type": "affine", "affine": [[1, 0, 0, 0]]}], "affine .* is not understood"),
        ([scale(1, 2, 3), {"type": "rotation"}], "rotation is not understood"),
        ([scale(1, 2, 3), scale(1, 2)], "of 3 and of 2 axes"),
        ([scale(1, 2, 3), move(1, 2, 3, 4)], "of 3 and of 4 axes"),
        ([move(1, 2), scale(1, 2, 3)], "of 2 and of 3 axes"),
        ([move(1, 2), move(1, 2, 3)], "of 2 and of 3 axes"),
    ],
    ids=str,
)
def test_a_scale_that_is_not_understood_is_unknown_and_said(image, steps, said):
    volume = image(steps)
    assert (volume.spacing, volume.has_spacing) == UNKNOWN
    (note,) = volume.spacing_notes
    assert note.endswith('the voxel size is unknown: give "spacing"')
    assert re.search(said, note)


def test_nothing_said_or_ones_without_a_unit_are_unknown_without_a_word(image):
    for steps in ([], [scale(1, 1, 1)]):
        volume = image(steps, units=(None,) * 3)
        assert (volume.spacing, volume.has_spacing, volume.spacing_notes) == (*UNKNOWN, ())
    assert image([scale(1, 1, 1)]).has_spacing


def test_units_that_differ_along_the_axes_are_brought_together(image):
    volume = image([scale(2000, 0.5, 0.25), move(500, 1, 1)], units=("nanometer", "um", "micron"))
    assert (volume.spacing, volume.offset) == ((2, 0.5, 0.25), (0.5, 1, 1))
    assert (volume.unit, volume.spacing_notes) == ("micrometer", ())


def test_units_that_cannot_be_brought_together_are_unknown_and_said(image):
    volume = image([scale(2, 0.5, 0.5)], units=("second", "micrometer", "micrometer"))
    assert (volume.spacing, volume.has_spacing) == UNKNOWN
    assert "units second, micrometer, micrometer along z, y, x" in volume.spacing_notes[0]


def test_a_unit_that_is_not_known_is_said(image):
    volume = image([scale(2, 0.5, 0.5)], units=("cubit",) * 3)
    assert (volume.spacing, volume.unit) == ((2, 0.5, 0.5), "cubit")
    assert volume.spacing_notes == (
        'multiscales: unit "cubit" is no known length; sizes are taken as they are',
    )


def test_the_scale_follows_the_order_of_the_stored_axes(image):
    volume = image([scale(1, 2, 3), move(4, 5, 6)], names="xzy", units=("nm", "um", "um"))
    assert volume.extent == (7, 8, 6)
    assert (volume.spacing, volume.offset) == ((2, 3, 0.001), (5, 6, 0.004))
    assert volume.axes_notes == ("axes (x, z, y) are read, and results written, as (z, y, x)",)


def test_omero_with_another_number_of_channels_is_said(image):
    omero = {"channels": [{"label": "a"}, {"label": "b"}]}
    assert image([], omero=omero).axes_notes == ("omero lists 2 channels, the array has 1",)


def test_the_task_goes_before_the_store(image):
    place = image([scale(0, 1, 1)]).location
    volume = open_volume(place, key="input", reading=Reading(spacing=(3, 2, 1)))
    assert (volume.spacing, volume.has_spacing, volume.spacing_notes) == ((3, 2, 1), True, ())


@pytest.mark.parametrize(
    ("attributes", "spacing", "note"),
    [
        ({"resolution": [4, 2, 1]}, (4, 2, 1), ""),
        ({"resolution": {"x": 1, "y": 2, "z": 4}}, (4, 2, 1), ""),
        ({"resolution": 2.5}, (2.5, 2.5, 2.5), ""),
        ({"pixelResolution": {"dimensions": [1, 2, 4], "unit": "um"}}, (4, 2, 1), ""),
        ({"pixelResolution": [1, 2, 4]}, (4, 2, 1), ""),
        ({"resolution": [4, 2, 1], "pixelResolution": [1, 2, 4]}, (4, 2, 1), ""),
        ({"resolution": [4, 2, 1], "pixelResolution": [4, 2, 1]}, (4, 2, 1), "the first is used"),
        ({"spacing": [2, 2, 2]}, (2, 2, 2), ""),
        ({"spacing": [4, 2, 1]}, None, r"\[4, 2, 1\] may be z, y, x or x, y, z"),
        ({"resolution": "4 nm"}, None, "4 nm are not 3 numbers above 0"),
        ({"voxel_size": [4, -2, 1]}, None, r"voxel_size: \[4, -2, 1\] are not 3 numbers"),
        ({"resolution": [4, 2, 1], "offset": "left"}, (4, 2, 1), "the offset left is not 3"),
        ({"transform": {"scale": [1, 2, 4], "axes": ["x", "y", "z"], "order": "F"}}, (4, 2, 1), ""),
    ],
    ids=str,
)
def test_attributes_of_other_programs_are_used_or_said(tmp_path, stores, attributes, spacing, note):
    path = stores.write(tmp_path / "a", stores.numbers(), zarr_format=2, attributes=attributes)
    volume = open_volume(path, key="input")
    assert (volume.spacing, volume.has_spacing) == ((spacing, True) if spacing else UNKNOWN)
    assert volume.extent == SHAPE
    assert bool(volume.spacing_notes) == bool(note)
    assert re.search(note, "".join(volume.spacing_notes))


@pytest.mark.parametrize("by", ["group", "array"])
def test_ome_zarr_goes_before_attributes_of_the_array(tmp_path, stores, by):
    levels = [{"path": "0", "coordinateTransformations": [scale(4, 2, 1)]}]
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    stores.write_group(tmp_path / "a", {"multiscales": [{"axes": axes, "datasets": levels}]})
    own = {"resolution": [4000, 2000, 1500], "units": "nm"}
    stores.write(tmp_path / "a" / "0", stores.numbers(), zarr_format=2, attributes=own)
    volume = open_volume(str(tmp_path / "a" / ("0" if by == "array" else "")), key="input")
    assert volume.spacing == (4, 2, 1)
    assert "resolution (4.0, 2.0, 1.5): the first is used" in volume.spacing_notes[0]


@pytest.fixture
def dataset(tmp_path, stores):
    """Opens a variable of xarray, in its version 2 or 3, with these coordinates and units."""

    def make(coordinates, units=None, *, version=2, names=("z", "y", "x")):
        def named(*dims):
            key = "attributes" if version == 2 else "dimension_names"
            return {key: {"_ARRAY_DIMENSIONS": [*dims]} if version == 2 else [*dims]}

        stores.write_group(tmp_path / "d", {}, version)
        for name, values in coordinates.items():
            path = tmp_path / "d" / name
            stores.write(path, np.asarray(values), chunks=(3,), zarr_format=version, **named(name))
            if units and version == 2:
                stores.edit(path / ".zattrs", units=units)
        return open_volume(
            stores.write(
                tmp_path / "d" / "raw", stores.numbers(), zarr_format=version, **named(*names)
            ),
            key="input",
        )

    return make


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_coordinates_of_equal_steps_give_spacing_and_offset(dataset, version, dtype):
    steps = {"z": 10 + 2.0 * np.arange(6), "y": 0.5 * np.arange(7), "x": 0.1 * np.arange(8)}
    found = dataset({name: values.astype(dtype) for name, values in steps.items()}, version=version)
    np.testing.assert_allclose(found.spacing, (2, 0.5, 0.1), rtol=1e-6)
    assert (found.offset, found.has_spacing, found.spacing_notes) == ((10, 0, 0), True, ())


def test_coordinates_follow_their_axes_and_have_units(dataset):
    steps = {"x": 3 * np.arange(6), "Y": 2 * np.arange(7), "depth": 5 * np.arange(8)}
    found = dataset(steps, "um", names=("x", "Y", "depth"))
    assert (found.extent, found.spacing, found.unit) == ((8, 7, 6), (5, 2, 3), "micrometer")


@pytest.mark.parametrize(
    ("z", "said"),
    [
        ([0, 1, 2, 3, 4, 6], "along z: their steps differ"),
        ([5, 4, 3, 2, 1, 0], "they do not increase"),
        ([0, 1, 2], "3 for 6 voxels"),
        ([0, 1, 2, np.nan, 4, 5], "not all are finite"),
        (None, "along z: there are none"),
    ],
    ids=str,
)
def test_coordinates_that_give_no_spacing_are_said(dataset, z, said):
    found = dataset({"y": np.arange(7.0), "x": np.arange(8.0)} | ({"z": z} if z else {}))
    assert (found.spacing, found.has_spacing) == UNKNOWN
    assert said in found.spacing_notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "|u99"}, "0 for 6 voxels"),
        ({"shape": [0]}, "0 for 6 voxels"),
        ({"chunks": [0]}, "0 for 6 voxels"),
        ({"compressor": {"id": "nothing"}}, "0 for 6 voxels"),
        ({"fill_value": "six"}, "0 for 6 voxels"),
        ({"zarr_format": 1}, "0 for 6 voxels"),
        ({"dtype": "<U4", "fill_value": ""}, "there are none"),
        ({"shape": 6}, "there are none"),
        ({"shape": [2, 3]}, "there are none"),
        ("0", "0 for 6 voxels"),
        (".zarray", "0 for 6 voxels"),
        (".zattrs", "0 for 6 voxels"),
    ],
    ids=str,
)
def test_coordinates_that_cannot_be_read_are_said(dataset, tmp_path, stores, changes, said):
    place = dataset({"z": np.arange(6.0), "y": np.arange(7.0), "x": np.arange(8.0)}).location
    if isinstance(changes, str):
        (tmp_path / "d/z" / changes).write_bytes(b"noise")
    else:
        stores.edit(tmp_path / "d/z/.zarray", **changes)
    volume = open_volume(place, key="input")
    assert (volume.spacing, volume.has_spacing) == UNKNOWN
    (note,) = volume.spacing_notes
    assert f"coordinates along z: {said}" in note
    np.testing.assert_array_equal(volume.read(volume.box)[0], stores.numbers())
    known = open_volume(place, key="input", reading=Reading(spacing=(3, 2, 1)))
    assert (known.spacing, known.spacing_notes) == ((3, 2, 1), ())


def test_numbers_of_voxels_as_coordinates_say_nothing(dataset):
    found = dataset({"z": np.arange(6), "y": np.arange(7), "x": np.arange(8)})
    assert (found.has_spacing, found.spacing_notes) == (False, ())


@pytest.mark.parametrize(
    ("ome", "own", "message"),
    [
        ("zyx", "xyz", r"dimension_names names the axes \(x, y, z\), multiscales \(z, y, x\); .*axes"),
        ("czyx", None, r"multiscales names the axes \(c, z, y, x\) of an array of shape \(6, 7, 8\)"),
    ],
)  # fmt: skip
def test_names_that_contradict_each_other_or_the_shape_are_refused(
    tmp_path, stores, ome, own, message
):
    entry = {"axes": [{"name": n} for n in ome], "datasets": [{"path": "0"}]}
    stores.write_group(tmp_path / "a", {"ome": {"multiscales": [entry]}}, 3)
    names = [*own] if own else None
    stores.write(tmp_path / "a" / "0", stores.numbers(), dimension_names=names)
    for place in (tmp_path / "a", tmp_path / "a" / "0"):
        with pytest.raises(VolumeError, match=message):
            open_volume(str(place), key="input")
        told = Reading("yzx")
        assert open_volume(str(place), key="input", reading=told).extent == (7, 6, 8)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"name": "z", "type": "time"}, r"\(z \(time\), y, x\), no z"),
        ({"name": "t", "type": "space"}, r"\(t \(space\), y, x\), no z"),
        ({"name": "lambda", "type": "channel"}, r"\(c, y, x\), no z"),
        ({"name": "frame", "type": "time"}, r"\(t, y, x\), no z"),
    ],
    ids=str,
)
def test_axes_whose_type_is_not_of_space_are_no_z(tmp_path, stores, axis, message):
    entry = {"axes": [axis, {"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}
    stores.write_group(tmp_path / "a", {"multiscales": [entry]})
    stores.write(tmp_path / "a" / "0", stores.numbers(), zarr_format=2)
    with pytest.raises(VolumeError, match=message):
        open_volume(str(tmp_path / "a"), key="input", channels="any")


@pytest.mark.parametrize(
    ("entry", "shape", "extent"),
    [
        ({"version": "0.1"}, (1, 1, *SHAPE), SHAPE),
        ({}, (1, 2, *SHAPE), SHAPE),
        ({"version": "0.1"}, SHAPE, SHAPE),
        ({"version": "0.3", "axes": [*"zyx"]}, SHAPE, SHAPE),
        ({"version": "0.3", "axes": [*"tczyx"]}, (1, 2, *SHAPE), SHAPE),
    ],
    ids=str,
)
def test_old_images_have_the_axes_of_their_version(tmp_path, stores, entry, shape, extent):
    datasets = [{"path": "0"}]
    stores.write_group(tmp_path / "a", {"multiscales": [{**entry, "datasets": datasets}]})
    chunks = (1,) * (len(shape) - 3) + (2, 3, 3)
    stores.write(tmp_path / "a" / "0", stores.numbers(shape), chunks=chunks, zarr_format=2)
    volume = open_volume(str(tmp_path / "a"), key="input", channels="any")
    assert (volume.extent, volume.channels) == (extent, shape[1] if len(shape) == 5 else 1)


def test_an_axes_attribute_that_may_be_reversed_is_refused(tmp_path, stores):
    given = {"axes": ["x", "y", "z"]}
    path = stores.write(tmp_path / "a", stores.numbers(), zarr_format=2, attributes=given)
    with pytest.raises(VolumeError, match=r'\(x\?, y\?, z\?\), no z, y, x .*"axes": "zyx"'):
        open_volume(path, key="input")
    assert open_volume(path, key="input", reading=Reading("zyx")).extent == SHAPE


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Micrometers", "micrometer"), ("µm", "micrometer"), ("nanometre", "nanometer"),
        ("Å", "angstrom"), ("pixel", None), ("", None), (5, None), ("cubit", "cubit"),
    ],
)  # fmt: skip
def test_units_are_known_by_their_usual_names(text, name):
    assert unit_name(text) == name


def test_lengths_are_converted_where_both_units_are_known():
    assert in_unit((500, 250, 40), "nanometer", "micrometer") == (0.5, 0.25, 0.04)
    assert in_unit((500, 250, 40), None, "micrometer") == (500, 250, 40)
