import numpy as np
import pytest


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("extent", [(20, 21, 22), (3, 30, 11), (1, 1, 1), (6, 8, 10)], ids=str)
def test_identity_network_gives_the_input_back(workplace, extent, overlap):
    work = workplace(noise(extent))
    work.run(overlap=overlap)
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6, rtol=0)
