"""Resampled values against scipy, SimpleITK, torch, NumPy's moves and slow obvious versions."""

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import CubicSpline
from skimage.transform import resize
from torch.nn import functional as F

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, mirror
from vcmodels.prepare import kernels
from vcmodels.prepare.kernels import outside, pick, resample, vote

SHAPE = (17, 24, 30)
FINER, COARSER = (0.8, 0.5, 0.61), (2, 3, 1.7)


def noise(shape=SHAPE, channels=1):
    return np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)


def smooth(shape=SHAPE):
    return ndimage.gaussian_filter(noise(shape)[0], 2)[None]


def reader(array):
    def read(box):
        assert Box((0, 0, 0), array.shape[1:]).contains(box)
        return array[(slice(None), *box.slices())]

    return read


def whole(grid):
    return Box((0, 0, 0), grid.shape)


def centres(grid):
    return np.meshgrid(*[grid.centres(a, 0, grid.shape[a]) for a in range(3)], indexing="ij")


def itk(array, grid, interpolator):
    image = SimpleITK.GetImageFromArray(array[0])
    start = [grid.centres(axis, 0, 1)[0] for axis in (2, 1, 0)]
    return SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(
            image, grid.shape[::-1], SimpleITK.Transform(), interpolator, start,
            grid.factors[::-1], image.GetDirection(),
        )
    )  # fmt: skip


def test_finer_linear_is_that_of_scipy_and_itk():
    array, grid = noise(), GridMap.identity(SHAPE).resampled(FINER)
    found = resample(reader(array), grid, whole(grid), "linear")[0]
    expected = ndimage.map_coordinates(array[0], centres(grid), order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, itk(array, grid, SimpleITK.sitkLinear), atol=1e-5)


def test_finer_cubic_is_the_natural_spline_and_inside_that_of_scipy_and_itk():
    array, grid = noise(), GridMap.identity(SHAPE).resampled(FINER)
    found = resample(reader(array), grid, whole(grid), "cubic")[0]
    expected = array[0].astype(np.float64)
    for axis in range(3):
        at = np.clip(grid.centres(axis, 0, grid.shape[axis]), 0, SHAPE[axis] - 1)
        spline = CubicSpline(np.arange(SHAPE[axis]), expected, axis, bc_type="natural")
        expected = spline(at)
    span = np.ptp(array)
    np.testing.assert_allclose(found, expected, atol=1e-5 * span)
    shape = (26, 28, 30)
    wide, grid = noise(shape), GridMap.identity(shape).resampled(FINER)
    inner = tuple(slice(round(10 / f), -round(10 / f)) for f in FINER)
    found = resample(reader(wide), grid, whole(grid), "cubic")[0][inner]
    scipy = ndimage.map_coordinates(wide[0], centres(grid), order=3, mode="mirror")[inner]
    np.testing.assert_allclose(found, scipy, atol=1e-5 * span)
    bspline = itk(wide, grid, SimpleITK.sitkBSpline)[inner]
    np.testing.assert_allclose(found, bspline, atol=1e-5 * span)


@pytest.mark.parametrize(("order", "mode"), [("linear", "area"), ("cubic", "bicubic")])
def test_coarser_by_whole_factors_is_that_of_torch(order, mode):
    array, grid = noise((4, 36, 36)), GridMap.identity((4, 36, 36)).resampled((1, 3, 2))
    found = resample(reader(array), grid, whole(grid), order)
    expected = F.interpolate(
        torch.from_numpy(array[0])[None], (12, 18), mode=mode, antialias=mode == "bicubic"
    )
    np.testing.assert_allclose(found[0, :, 3:-3, 3:-3], expected[0, :, 3:-3, 3:-3], atol=1e-5)


@pytest.mark.parametrize("factors", [FINER, COARSER, (1.37, 1.05, 2.9)])
@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_ramps_stay_ramps(order, factors):
    grid = GridMap.identity(SHAPE).resampled(factors)
    ramp = sum(k * axis for k, axis in zip((1, -2, 0.5), np.indices(SHAPE), strict=True))
    found = resample(reader(ramp[None].astype(np.float32)), grid, whole(grid), order)[0]
    at = [np.clip(p, 0, n - 1) for p, n in zip(centres(grid), SHAPE, strict=True)]
    expected = at[0] - 2 * at[1] + 0.5 * at[2]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(ramp))


def test_what_is_too_fine_for_coarse_voxels_is_averaged():
    array = np.broadcast_to(np.indices((1, 1, 60))[2] % 2, (1, 4, 4, 60)).astype(np.float32)
    grid = GridMap.identity((4, 4, 60)).resampled((1, 1, 4))
    for order in ("linear", "cubic"):
        found = resample(reader(array), grid, whole(grid), order)[..., 3:-3]
        np.testing.assert_allclose(found, 0.5, atol=0.02)


grids = st.builds(
    lambda factors, symmetry, low, extra: (
        GridMap.identity(SHAPE)
        .cropped(Box(low, tuple(n - o - e for n, o, e in zip(SHAPE, low, extra, strict=True))))
        .turned(symmetry)
        .resampled(factors)
    ),
    st.tuples(*[st.floats(0.5, 3)] * 3),
    st.sampled_from(CUBE_SYMMETRIES),
    st.tuples(*[st.integers(-3, 5)] * 3),
    st.tuples(*[st.integers(-3, 5)] * 3),
)


@settings(max_examples=25)
@given(grids, st.integers(2, 9), st.sampled_from(["linear", "cubic"]))
def test_any_block_gives_what_the_whole_gives(grid, length, order):
    array = noise()
    classes = (array > 0.3).astype(np.uint8) + (array > 1)
    every = resample(reader(array), grid, whole(grid), order)
    voted, picked = (f(reader(classes), grid, whole(grid)) for f in (vote, pick))
    draw = np.random.default_rng(length)
    for _ in range(4):
        low = [int(draw.integers(0, n)) for n in grid.shape]
        box = Box(tuple(low), (length, length, length)).intersect(whole(grid))
        part = (slice(None), *box.slices())
        found = resample(reader(array), grid, box, order)
        np.testing.assert_allclose(found, every[part], atol=1e-5)
        np.testing.assert_array_equal(vote(reader(classes), grid, box), voted[part])
        np.testing.assert_array_equal(pick(reader(classes), grid, box), picked[part])


@settings(max_examples=30)
@given(st.lists(st.sampled_from(CUBE_SYMMETRIES), max_size=3), st.sampled_from([1, 2]))
def test_exact_maps_only_move_voxels(turns, channels):
    array = noise(channels=channels)
    grid, expected = GridMap.identity(SHAPE), array
    for symmetry in turns:
        grid, expected = grid.turned(symmetry), symmetry(expected)
    np.testing.assert_array_equal(pick(reader(array), grid, whole(grid)), expected)
    for order in ("nearest", "linear", "cubic"):
        found = resample(reader(array), grid, whole(grid), order)
        np.testing.assert_array_equal(found, expected)


def test_votes_are_the_largest_of_the_interpolated_one_hot():
    array = np.random.default_rng(0).integers(0, 4, (1, 9, 10, 11)).astype(np.int16) * 100 - 100
    grid = GridMap.identity(array.shape[1:]).resampled((0.7, 0.9, 0.4))
    found = vote(reader(array), grid, whole(grid))
    assert found.dtype == np.int16
    shares = np.stack(
        [
            ndimage.map_coordinates(
                (array[0] == v).astype(float), centres(grid), order=1, mode="nearest"
            )
            for v in np.unique(array)
        ]
    )
    first, second = np.sort(shares, axis=0)[:-3:-1]
    clear = first - second > 1e-4
    expected = np.unique(array)[shares.argmax(0)]
    np.testing.assert_array_equal(found[0][clear], expected[clear])
    assert clear.mean() > 0.8


@pytest.mark.parametrize("factors", [(0.5, 0.8, 0.7), (2, 1.5, 1)])
def test_a_value_votes_where_it_lies(factors, monkeypatch):
    array = np.zeros((1, 16, 20, 24), np.int32)
    for number, (z, y, x) in enumerate(np.ndindex(4, 5, 6)):
        array[0, 4 * z : 4 * z + 3, 4 * y : 4 * y + 3, 4 * x : 4 * x + 2] = number + 1
    grid = GridMap.identity(array.shape[1:]).resampled(factors).turned(mirror(1))
    seen, real = [], kernels.resample

    def resampled(read, grid, box, *how):
        seen.append(box.voxels)
        return real(read, grid, box, *how)

    monkeypatch.setattr(kernels, "resample", resampled)
    found = vote(reader(array), grid, whole(grid))
    assert len(seen) == 121
    assert sum(seen) < 8 * whole(grid).voxels
    monkeypatch.setattr(kernels, "_touched", lambda held, grid, box: box)
    np.testing.assert_array_equal(found, vote(reader(array), grid, whole(grid)))


@pytest.mark.parametrize("factors", [(0.6, 0.8, 0.9), (1.5, 2, 1.2)])
def test_the_volume_of_a_mask_stays_within_a_hundredth(factors):
    z, y, x = np.indices((40, 44, 48))
    ball = ((z - 20) ** 2 + (y - 21) ** 2 + (x - 24) ** 2 < 17**2)[None]
    grid = GridMap.identity(ball.shape[1:]).resampled(factors)
    found = vote(reader(ball.astype(np.uint8)), grid, whole(grid))
    assert found.sum() * np.prod(factors) == pytest.approx(ball.sum(), rel=0.01)


def test_a_band_of_one_voxel_stays_connected():
    line = np.zeros((1, 20, 20, 20), np.uint8)
    line[0, np.arange(20), np.arange(20), 10] = 1
    grid = GridMap.identity((20, 20, 20)).resampled((0.5, 0.5, 0.5))
    found = pick(reader(line), grid, whole(grid))[0]
    pieces, count = ndimage.label(found, np.ones((3, 3, 3)))
    assert count == 1
    assert pieces.any(axis=(1, 2)).sum() >= 38


def test_outside_begins_a_whole_voxel_past_the_last_centre():
    grid = GridMap.identity((4, 4, 4)).cropped(Box((-2, 0, 0), (8, 4, 4)))
    np.testing.assert_array_equal(outside(grid, 0, 0, 8), [1, 1, 0, 0, 0, 0, 1, 1])
    # 5 voxels as 2 of 2 1/2 each, and as 2 of 2 each: half a voxel more lies past the end.
    back = GridMap.identity((5, 5, 5)).resampled((2, 2.5, 1)).inverse()
    assert not any(outside(back, axis, 0, 5).any() for axis in range(3))


@pytest.mark.parametrize("factors", [(0.8, 0.5, 0.61), (2, 3, 1.7), (0.7, 1, 1.4)], ids=str)
def test_a_spline_is_the_cubic_resize_of_scikit_image(factors):
    """As nnU-Net calls it: edges repeat, and nothing is averaged where voxels get coarser."""
    array = noise()
    lengths = [round(n / f) for n, f in zip(SHAPE, factors, strict=True)]
    exact = [n / m for n, m in zip(SHAPE, lengths, strict=True)]
    grid = GridMap.identity(SHAPE).resampled(exact)
    expected = resize(array[0], lengths, order=3, mode="edge", anti_aliasing=False, clip=False)
    found = resample(reader(array), grid, whole(grid), "spline", "edge")[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_each_axis_may_have_an_order():
    array, grid = noise(), GridMap.identity(SHAPE).resampled((0.5, 2, 2))
    found = resample(reader(array), grid, whole(grid), ("nearest", "linear", "linear"))
    slices = GridMap.identity((1, *SHAPE[1:])).resampled((1, 2, 2))
    for number in range(grid.shape[0]):
        one = reader(array[:, number // 2 : number // 2 + 1])
        np.testing.assert_allclose(found[:, number : number + 1], resample(one, slices, whole(slices), "linear"), atol=1e-6)  # fmt: skip
