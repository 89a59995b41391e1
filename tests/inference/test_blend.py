import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import PatchGrid
from vcmodels.inference.blend import Blender

CPU = torch.device("cpu")


def blend(volume, grid, core):
    """Blend the patches of a volume; every voxel of the core must come out once."""
    padding = [(0, 0), *((0, max(p - n, 0)) for p, n in zip(grid.patch, grid.extent, strict=True))]
    padded = torch.from_numpy(np.pad(volume, padding))
    blender = Blender(grid, core, len(volume), CPU)
    result = np.zeros((len(volume), *core.shape), np.float32)
    count = np.zeros(core.shape, int)

    def put(finished):
        for box, values in finished:
            result[(slice(None), *box.slices(core))] = values.numpy()
            count[box.slices(core)] += 1

    for index in itertools.product(*grid.touching(core)):
        patch = padded[(slice(None), *Box(grid.origin(index), grid.patch).slices())]
        put(blender.add(index, [patch[:1], patch[1:]]))
    put(blender.finish())
    np.testing.assert_array_equal(count, 1)
    return result


def naive(volume, grid):
    """Sums and weights over the whole volume, divided in the end (float64)."""
    total, weight = np.zeros(volume.shape), np.zeros(volume.shape[1:])
    window = [np.sin(np.pi * (np.arange(p) + 0.5) / p) ** 2 * 0.999 + 0.001 for p in grid.patch]
    window = window[0][:, None, None] * window[1][:, None] * window[2]
    for index in itertools.product(*map(range, grid.shape)):
        inside = Box(grid.origin(index), grid.patch).intersect(Box((0, 0, 0), grid.extent))
        part = window[tuple(slice(0, n) for n in inside.shape)]
        # a value that depends on the patch, so that the weights show
        total[(slice(None), *inside.slices())] += part * (
            volume[(slice(None), *inside.slices())] + sum(index)
        )
        weight[inside.slices()] += part
    return total / weight


@st.composite
def cases(draw):
    extent = tuple(draw(st.integers(1, 20)) for _ in range(3))
    patch = tuple(draw(st.integers(1, 8)) for _ in range(3))
    overlap = tuple(draw(st.floats(0, 0.85)) for _ in range(3))
    start = [draw(st.integers(0, n - 1)) for n in extent]
    end = [draw(st.integers(s + 1, n)) for s, n in zip(start, extent, strict=True)]
    return PatchGrid.covering(extent, patch, overlap), Box.between(start, end)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equal_patches_give_the_volume_back_and_any_part_the_same_bits(case):
    grid, core = case
    volume = np.random.default_rng(0).random((3, *grid.extent), np.float32)
    whole = blend(volume, grid, Box((0, 0, 0), grid.extent))
    np.testing.assert_allclose(whole, volume, atol=1e-6)
    np.testing.assert_array_equal(blend(volume, grid, core), whole[(slice(None), *core.slices())])


def test_different_patches_are_averaged_with_the_window():
    grid = PatchGrid.covering((13, 15, 18), (5, 6, 7), (0.4, 0.6, 0.2))
    volume = np.random.default_rng(1).random((2, *grid.extent), np.float32)
    core = Box((0, 0, 0), grid.extent)
    blender = Blender(grid, core, 2, CPU)
    result = np.zeros_like(volume)
    for index in itertools.product(*map(range, grid.shape)):
        patch = volume[(slice(None), *Box(grid.origin(index), grid.patch).slices())] + sum(index)
        for box, values in blender.add(index, [torch.from_numpy(patch)]):
            result[(slice(None), *box.slices())] = values.numpy()
    for box, values in blender.finish():
        result[(slice(None), *box.slices())] = values.numpy()
    np.testing.assert_allclose(result, naive(volume, grid), atol=1e-5)


def test_the_sums_of_a_column_do_not_depend_on_its_height():
    def bytes_held(depth):
        grid = PatchGrid.covering((depth, 64, 80), (16, 16, 16), (0.25,) * 3)
        blender = Blender(grid, Box((0, 0, 0), grid.extent), 4, CPU)
        return sum(t.nbytes for t in (blender.carry, blender.sums, blender.product))

    assert bytes_held(1000) == bytes_held(100)
    # the overlap of 4 planes over the whole cross section, one row, one patch
    assert bytes_held(100) == 4 * 4 * (4 * 64 * 80 + 16 * 16 * 80 + 16**3)


def test_skipped_patches_count_as_zero():
    grid = PatchGrid.covering((8, 8, 14), (8, 8, 8), (0, 0, 0.25))
    core = Box((0, 0, 0), grid.extent)
    blender = Blender(grid, core, 1, CPU)
    out = list(blender.add((0, 0, 1), [torch.ones(1, 8, 8, 8)])) + list(blender.finish())
    ((box, values),) = out
    assert box == core
    assert not values[..., :6].any()
    assert (values[..., 8:] == 1).all()
