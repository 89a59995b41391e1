import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.augment import DEFAULT_AUGMENTATIONS, apply_intensity, sample_spatial
from vcmodels.augment.geometric import Affine, Compress, Elastic, Flip, QuarterTurn, Shear
from vcmodels.augment.slices import in_plane
from vcmodels.geometry.boxes import Box
from vcmodels.samples.dataset import _tensor

EVERY = [
    Flip(), QuarterTurn(p=1.0), Affine(p=1.0, per_axis_scaling=True), Shear(p=1.0),
    Elastic(p=1.0, spacing=8.0, amplitude=3.0), Compress(p=1.0, spacing=8.0),
]  # fmt: skip


@given(
    st.integers(0, 2),
    st.tuples(*[st.integers(5, 20)] * 3),
    st.tuples(*[st.floats(0.3, 4.0)] * 3),
    st.integers(0, 2**20),
)
def test_no_draw_leaves_the_plane_of_a_slice(number, shape, spacing, seed):
    """What a patch is read from is one voxel thick: else it would hold other slices."""
    patch = tuple(1 if axis == number else n for axis, n in enumerate(shape))
    listed = in_plane(EVERY, "zyx"[number])
    transform = sample_spatial(listed, np.random.default_rng(seed), patch, spacing)
    read = transform.input_box(Box((50, 60, 70), patch), spacing)
    assert read.shape[number] == 1
    assert read.origin[number] == (50, 60, 70)[number]
    assert transform.symmetry.permutation[number] == number
    assert not transform.symmetry.flips[number]
    assert np.linalg.det(transform.matrix) > 0
    assert max(read.shape) > 1


def test_turns_in_the_plane_stay_turns():
    """An angle about the axis across the slices is kept; those about the others are not drawn."""
    rng = np.random.default_rng(0)
    affine = Affine(p=1.0, rotation_degrees=30.0, scaling=(1.0, 1.0))
    drawn = [sample_spatial([affine], rng, (9, 1, 9), (2.9, 1.0, 1.0)).matrix for _ in range(20)]
    for matrix in drawn:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert len({round(float(matrix[0, 0]), 6) for matrix in drawn}) > 10


@pytest.mark.parametrize("number", range(3))
def test_the_default_list_changes_the_values_of_slices(number):
    patch = tuple(1 if axis == number else n for axis, n in enumerate((16, 18, 20)))
    image = _tensor(np.random.default_rng(0).normal(size=(3, *patch)).astype(np.float32))
    every = [one.changed(p=1.0) for one in DEFAULT_AUGMENTATIONS]
    found = apply_intensity(every, image, np.random.default_rng(0))
    assert found.shape == image.shape
    assert bool(found.isfinite().all())
