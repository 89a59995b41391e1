import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vcmodels.config import parse_task
from vcmodels.config.slices import SliceStack, reach_of, readers_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box

offsets = st.sets(st.integers(-6, 6), min_size=1, max_size=5).map(
    lambda found: tuple(sorted({0, *found} | ({1} if found == {0} else set())))
)


@st.composite
def places(draw):
    """A volume, a part of it along one axis that may be read, and a slice in that part."""
    extent = draw(st.tuples(*[st.integers(1, 9)] * 3))
    number = draw(st.integers(0, 2))
    low = draw(st.integers(0, extent[number] - 1))
    high = draw(st.integers(low + 1, extent[number]))
    at = draw(st.integers(low, high - 1))
    whole = Box((0, 0, 0), extent)
    return number, whole.cut(number, low, high), whole.cut(number, at, at + 1)


@given(places(), offsets, st.integers(1, 3))
def test_a_stack_holds_the_nearest_slice_there_is(place, steps, channels):
    number, within, box = place
    stack = SliceStack(axis="zyx"[number], offsets=steps)
    shape = (channels, *(o + n for o, n in zip(within.origin, within.shape, strict=True)))
    values = np.random.default_rng(0).random(shape)
    read = stack.needed(box, within)
    assert within.contains(read)
    found = stack.stacked(values[(slice(None), *read.slices())], box, within)
    assert found.flags.c_contiguous
    assert found.shape == (channels * stack.depth, *box.shape)
    low, high, at = within.origin[number], within.end[number], box.origin[number]
    for channel in range(channels):
        for k, step in enumerate(steps):
            plane = values[channel].take(sorted((low, at + step, high - 1))[1], number)
            got = found[channel * stack.depth + k].take(0, number)
            np.testing.assert_array_equal(got, plane)


@given(places(), offsets, st.integers(1, 4))
def test_what_is_read_for_a_box_is_what_is_read_for_its_slices(place, steps, depth):
    number, within, box = place
    stack = SliceStack(axis="zyx"[number], offsets=steps)
    thick = box.cut(number, box.origin[number], box.origin[number] + depth).intersect(within)
    slices = [box.cut(number, at, at + 1) for at in range(thick.origin[number], thick.end[number])]
    needed = [stack.needed(one, within) for one in slices]
    reach = reach_of(stack, thick, within)
    assert reach.origin[number] == min(one.origin[number] for one in needed)
    assert reach.end[number] == max(one.end[number] for one in needed)
    assert max(one.shape[number] for one in needed) <= stack.span(box.shape)[number]
    assert all(
        one.origin[number] + stack.lowest[number] <= part.origin[number]
        for one, part in zip(slices, needed, strict=True)
    )
    for one, part in zip(slices, needed, strict=True):  # whoever reads a plane is among its readers
        for plane in range(part.origin[number], part.end[number]):
            is_used = plane in stack._planes(one, within)
            seen = readers_of(stack, box.cut(number, plane, plane + 1))
            assert not is_used or seen.contains(one) or plane in (0, within.end[number] - 1)


def test_without_a_stack_a_box_is_read_as_it_is():
    box = Box((1, 2, 3), (4, 5, 6))
    assert reach_of(None, box, Box((0, 0, 0), (9, 9, 9))) == readers_of(None, box) == box


@pytest.mark.parametrize("wrong", [(1, 0), (0, 0), (-1, 1), (0,), (-2000, 0)])
def test_offsets_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        SliceStack(axis="z", offsets=wrong)


def parsed(dataset=None, augment=None, **settings):
    document = {
        "tr_params": {"model_name": "net", **settings},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "sheet": "b.zarr"}],
            "targets": {"sheet": {"kind": "binary"}},
            **(dataset or {}),
        },
        **({"augment": augment} if augment else {}),
    }
    return parse_task(document, "test")


@pytest.mark.parametrize(
    ("dataset", "patch", "axis"),
    [
        ({"slice_axis": "y"}, None, "y"),
        ({"stack": {"axis": "x"}}, None, "x"),
        ({"stack": {"axis": 0}, "slice_axis": "z"}, [1, 64, 64], "z"),
        ({}, [64, 1, 64], "y"),
        ({}, [64, 64, 64], None),
        ({}, None, None),
    ],
)
def test_the_axis_across_slices_is_what_any_key_tells(dataset, patch, axis):
    task, _ = parsed(dataset, patch_size=patch)
    assert task.dataset_config.slice_axis == axis
    again, _ = parse_task(task.to_json(), "test")
    assert again == task


@pytest.mark.parametrize(
    ("dataset", "settings", "augment", "match"),
    [
        ({"stack": {"axis": "z"}, "slice_axis": "y"}, {}, None, r'stack.axis: "z" is not .*"y"'),
        ({"stack": {"axis": "z"}}, {"patch_size": [8, 64, 64]}, None, "patch_size: is 8 along z"),
        ({"slice_axis": "x"}, {"patch_size": [1, 64, 64]}, None, "patch_size: is 64 along x"),
        (
            {"slice_axis": "z", "patch_stride": [2, 8, 8]}, {"patch_size": [1, 64, 64]}, None,
            "patch_stride: is 2 along z",
        ),
        (
            {"slice_axis": "z"}, {}, [{"name": "affine", "rotation_degrees": [10, 5, 0]}],
            "rotation_degrees: turns slices across z",
        ),
        (
            {"slice_axis": "y"}, {}, [{"name": "compress", "direction": "y"}],
            "augment.0.direction: is y",
        ),
        ({"slice_axis": "w"}, {}, None, "slice_axis"),
        ({"stack": {"offsets": [-1, 0, 1]}}, {}, None, "stack.axis"),
    ],
)  # fmt: skip
def test_keys_that_contradict_slices_are_refused(dataset, settings, augment, match):
    with pytest.raises(TaskError, match=match):
        parsed(dataset, augment, **settings)


def test_slices_are_mirrored_and_turned_in_their_plane():
    task, notes = parsed({"slice_axis": "y"}, [{"name": "flip"}, {"name": "quarter_turn"}])
    flip, turn = task.augmentations
    assert flip.axes == ("z", "x")
    assert turn.planes == (("z", "x"),)
    assert "augment: slices across y are mirrored and turned in their plane alone" in notes
    task, notes = parsed({"slice_axis": "y"}, [{"name": "flip", "axes": ["y"]}, {"name": "noise"}])
    assert [one.name for one in task.augmentations] == ["noise"]
    assert not parsed({"slice_axis": "y"})[1]
