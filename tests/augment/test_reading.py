"""Reading between voxels against SciPy, polynomials and the other way of doing it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from vcmodels.augment import resample
from vcmodels.augment.resample import read_nearest, read_smooth, turn_tensor
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES

CROP = (9, 11, 13)
INTERPOLATIONS = ("linear", "cubic")


def places(seed=0, shape=(7, 8, 10), crop=CROP, reach=1.5):
    """Positions in a crop and up to `reach` voxels outside of it."""
    rng = np.random.default_rng(seed)
    low, high = -reach, np.array(crop)[:, None, None, None] - 1 + reach
    return torch.tensor(rng.uniform(low, high, (3, *shape)), dtype=torch.float32)


def noise(channels, crop=CROP):
    values = np.random.default_rng(1).normal(size=(channels, *crop))
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("crop", [CROP, (1, 11, 13), (2, 1, 40), (1, 1, 1)], ids=str)
def test_linear_and_nearest_are_scipys(crop):
    arrays, position = [noise(1, crop), noise(3, crop)], places(crop=crop)
    read = read_smooth(arrays, position)
    for array, smooth in zip(arrays, read, strict=True):
        for order, values in ((1, smooth), (0, read_nearest(array, position))):
            for channel, found in zip(array.double().numpy(), values, strict=True):
                expected = map_coordinates(channel, position.numpy(), order=order, mode="nearest")
                np.testing.assert_allclose(found, expected, atol=2e-5)


def test_nearest_keeps_dtypes():
    mask = noise(2) > 0
    read = read_nearest(mask, places())
    assert read.dtype == torch.bool
    np.testing.assert_array_equal(read, read_nearest(mask.float(), places()) > 0.5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_voxels_keep_their_values(interpolation):
    array = noise(2)
    nodes = torch.tensor(np.indices(CROP), dtype=torch.float32)
    (read,) = read_smooth([array], nodes, interpolation)
    assert torch.equal(read, array)


def test_cubic_is_exact_for_quadratic_polynomials():
    def polynomial(place):
        z, y, x = place / 5
        return 1 + z - 2 * y + x * x - y * z + 3 * z * z - x * y + (x * y * z) ** 2

    nodes = torch.tensor(np.indices(CROP), dtype=torch.float32)
    inner = places(reach=-1)
    (read,) = read_smooth([polynomial(nodes)[None]], inner, "cubic")
    torch.testing.assert_close(read[0], polynomial(inner), atol=2e-5, rtol=0)


def test_cubic_is_nearer_to_a_wave_than_linear_and_near_to_scipys_spline():
    crop = (13, 40, 50)
    wave = np.sin(np.indices(crop)[1] * 0.9) * np.cos(np.indices(crop)[2] * 0.7)
    position = places(crop=crop, shape=(9, 10, 11), reach=-5)
    truth = torch.sin(position[1] * 0.9) * torch.cos(position[2] * 0.7)
    array = torch.tensor(wave[None], dtype=torch.float32)
    error = {
        i: float((read_smooth([array], position, i)[0][0] - truth).abs().max())
        for i in INTERPOLATIONS
    }
    assert error["cubic"] < error["linear"] / 3
    spline = map_coordinates(wave, position.numpy(), order=3, mode="mirror")
    read = read_smooth([array], position, "cubic")[0][0].numpy()
    np.testing.assert_allclose(read, spline, atol=0.05)


def test_the_paths_of_other_devices_agree():
    array, position = noise(3), places()
    linear, cubic = (read_smooth([array], position, i)[0] for i in INTERPOLATIONS)
    torch.testing.assert_close(resample._grid_sampled(array, position), linear, atol=1e-5, rtol=0)
    torch.testing.assert_close(resample._summed(array, position), cubic, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_slabs_do_not_show(interpolation, monkeypatch):
    arrays, position = [noise(1), noise(3)], places(2)
    whole = read_smooth(arrays, position, interpolation)
    monkeypatch.setitem(resample.SLAB, interpolation, 80)
    for one, other in zip(read_smooth(arrays, position, interpolation), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_turned_tensors_are_turned_arrays(symmetry):
    for tensor in (noise(2), noise(2) > 0):
        turned = turn_tensor(symmetry, tensor)
        np.testing.assert_array_equal(turned, symmetry(tensor.numpy()))
        assert turned.is_contiguous()
        assert turned.data_ptr() != tensor.data_ptr()
