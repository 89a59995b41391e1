"""Against balls that are laid around every voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.postprocess.close import CloseStep, OpenStep
from vcmodels.postprocess.radius import ball

SHAPE = (9, 14, 11)
SPACING = (3.0, 1.0, 2.0)
BLOCKS = st.tuples(*(st.integers(4, 15),) * 3)


def by_balls(mask, radius, spacing, *, opens):
    around = ball(radius, spacing)
    width = [(n, n) for n in around.shape]
    wide = np.pad(mask, width, mode="edge")
    if opens:
        made = ndimage.binary_dilation(ndimage.binary_erosion(wide, around), around)
    else:
        made = ndimage.binary_erosion(ndimage.binary_dilation(wide, around), around, border_value=1)
    return made[tuple(slice(n, -n) for n in around.shape)]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=BLOCKS,
    kind=st.sampled_from([CloseStep, OpenStep]),
    keys=st.sampled_from([{"radius_um": 3.0}, {"radius_um": 2.3}, {"radius": 2.0}]),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_masks_are_closed_and_opened_by_balls_in_space(
    tmp_path_factory, seed, block, kind, keys, share
):
    mask = np.random.default_rng(seed).random(SHAPE) < share
    source = source_of(np.where(mask, 255, 0).astype(np.uint8), "binary")
    found = run_step(
        step_of(kind, "mask", **keys),
        {"mask": source},
        tmp_path_factory.mktemp("c"),
        block,
        spacing=tuple(1000 * side for side in SPACING),
        unit="nanometer",
    )
    spacing = SPACING if "radius_um" in keys else (1.0, 1.0, 1.0)
    expected = by_balls(mask, *keys.values(), spacing, opens=kind is OpenStep)
    np.testing.assert_array_equal(found, np.where(expected, 255, 0))


def test_a_radius_in_micrometers_needs_a_unit_and_voxels_that_it_reaches():
    step = step_of(CloseStep, "mask", radius_um=2.0)
    source = {"mask": source_of(np.zeros(SHAPE, np.uint8), "binary")}
    with pytest.raises(TaskError, match=r'no unit of length; give "radius", in voxels'):
        step.check(source, SPACING, None)
    with pytest.raises(TaskError, match=r"2 is less than a voxel .* from 3 to 192"):
        step.check(source, (9.0, 3.0, 3.0), "micrometer")
    step.check(source, (9.0, 2.0, 3.0), "micrometer")


def test_a_radius_is_given_once():
    with pytest.raises(ValueError, match='"radius" is missing'):
        step_of(CloseStep, "mask")
    with pytest.raises(ValueError, match='"radius" is given twice'):
        step_of(CloseStep, "mask", radius=2.0, radius_um=2.0)
