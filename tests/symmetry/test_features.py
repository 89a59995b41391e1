import numpy as np
import pytest
import torch

from vcmodels.augment.resample import turn_tensor
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, mirror
from vcmodels.symmetry.features import (
    label_features,
    pooled,
    skewness,
    standardised,
    turned_label_leans,
    turned_leans,
    turned_values,
    without_trend,
)
from vcmodels.targets import BinaryTarget, MulticlassTarget, NormalsTarget, VectorTarget

SHAPE, SPACING = (8, 12, 16), (1.0, 1.0, 1.0)
TARGETS = {
    "mask": BinaryTarget(),
    "classes": MulticlassTarget(channels=4),
    "pairs": MulticlassTarget(channels=5, mirror_pairs={"x": [(1, 3)], "z": [(2, 4)]}),
    "normals": NormalsTarget(),
    "displacement": VectorTarget(units="voxels"),
    "gradient": VectorTarget(transforms_as="gradient"),
}


def label_of(target, rng):
    if target.channels == 3 and target.kind != "multiclass":
        return torch.from_numpy(rng.normal(size=(3, *SHAPE)).astype(np.float32))
    return torch.from_numpy(rng.integers(0, max(target.channels, 2), (1, *SHAPE))).float()


def test_a_linear_trend_is_what_least_squares_find():
    values = np.random.default_rng(0).normal(size=(2, 5, 6, 7)) + np.arange(7)
    places = np.indices((5, 6, 7)).reshape(3, -1).T
    known = np.column_stack([np.ones(len(places)), places])
    fitted = known @ np.linalg.lstsq(known, values.reshape(2, -1).T, rcond=None)[0]
    found = without_trend(torch.from_numpy(values))
    np.testing.assert_allclose(found.reshape(2, -1).T, values.reshape(2, -1).T - fitted, atol=1e-9)
    np.testing.assert_allclose(without_trend(torch.ones(1, 1, 2, 3)), np.zeros((1, 1, 2, 3)))


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_features_of_a_turned_window_are_the_turned_features(name, symmetry):
    """The oracle is the augmentation itself: voxels moved, then values as the target turns them."""
    target, rng = TARGETS[name], np.random.default_rng(0)
    if any(symmetry.permutation[axis] != axis for axis in target.paired_axes):
        pytest.skip("a side has no name after a quarter turn")
    image = torch.from_numpy(rng.normal(size=(2, *SHAPE)).astype(np.float32))
    label, valid = label_of(target, rng), torch.from_numpy(rng.random((1, *SHAPE)) < 0.8)
    label = torch.where(valid, label, 0.0)
    jacobian = torch.as_tensor(symmetry.matrix, dtype=torch.float32)
    moved, counts = (turn_tensor(symmetry, t.contiguous()) for t in (label, valid))
    turned, counts = target.turn(moved, counts, jacobian, SPACING)
    whole = label_features(target, label, valid, image, SPACING, rng)
    other = label_features(target, turned, counts, turn_tensor(symmetry, image), SPACING, rng)
    layout = turned_values(target, SPACING, whole.layout[None], symmetry)[0]
    np.testing.assert_allclose(layout, other.layout, atol=1e-5)
    lean = turned_label_leans(target, SPACING, whole.lean[None], symmetry)[0]
    np.testing.assert_allclose(lean, other.lean, atol=1e-5)
    np.testing.assert_allclose(
        turned_leans(skewness(image), symmetry), skewness(turn_tensor(symmetry, image)), atol=1e-5
    )


def test_edges_that_are_steep_on_one_side_lean_along_their_axis_alone():
    ramp = torch.arange(48, dtype=torch.float32) % 6
    noise = torch.randn(1, 20, 24, 48, generator=torch.Generator().manual_seed(0))
    image = ramp.expand(1, 20, 24, 48) + 0.1 * noise
    found = skewness(standardised(image))[0]
    assert abs(float(found[0, 2])) > 0.3
    assert float(found[:, :2].abs().max()) < 0.1
    mirrored = skewness(turn_tensor(mirror(2), standardised(image)))[0]
    np.testing.assert_allclose(mirrored[:, 2], -found[:, 2], atol=1e-5)


def test_cells_are_means_over_what_counts():
    torch.manual_seed(0)  # one of 256 cells has nothing that counts
    values, counts = torch.rand(2, 8, 8, 8), (torch.rand(1, 8, 8, 8) < 0.5).float()
    counts[0, :2, :2, :2] = 0
    found = pooled(values * counts, counts)
    cell = counts[0, 2:4, 4:6, 6:8] > 0
    np.testing.assert_allclose(found[1, 1, 2, 3], values[1, 2:4, 4:6, 6:8][cell].mean(), rtol=1e-5)
    everywhere = counts[0] > 0
    np.testing.assert_allclose(found[0, 0, 0, 0], values[0][everywhere].mean(), rtol=1e-5)


def test_a_constant_channel_and_what_is_not_finite_say_nothing():
    image = torch.stack([torch.full(SHAPE, 7.3), torch.rand(SHAPE)])
    image[1, 0] = float("nan")
    found = standardised(image)
    assert not found[0].any()
    assert not found[1, 0].any()
    assert float(found[1, 1:].mean()) == pytest.approx(0, abs=1e-5)
