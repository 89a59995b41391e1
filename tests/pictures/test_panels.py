"""What the pictures of a validation show."""

import numpy as np
import pytest
import torch

from vcmodels.pictures.slices import (
    DIM,
    GAP,
    LABEL_COLOUR,
    PREDICTION_COLOUR,
    TINT,
    UNLABELLED_COLOUR,
    draw_panel,
    draw_row,
    predicted_row,
    shade_of,
    single_panel,
    telling_slice,
    window_of,
)
from vcmodels.targets import BinaryTarget, MulticlassTarget, NormalsTarget, RegressionTarget

SHAPE = (5, 160, 170)


def columns(picture):
    """The four panels of a row, without the white between them."""
    height, width = SHAPE[1:]
    assert picture.shape == (height + GAP, 4 * (width + GAP), 3)
    assert 0 <= picture.min() <= picture.max() <= 1
    assert picture.dtype == np.float32
    return [picture[:height, n * (width + GAP) :][:, :width] for n in range(4)]


@pytest.fixture
def image():
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_mask_is_tinted_where_labelled_and_outlined_where_predicted(image):
    label, prediction = torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE)
    valid = torch.ones(1, *SHAPE, dtype=torch.bool)
    label[:, 2, 20:60, 20:60] = 1
    prediction[:, 2, 30:70, 30:70] = 0.9
    valid[..., 100:] = False
    prediction[..., 80:100, 140:160] = 0.9  # where nothing counts
    grey, truth, found, over = columns(
        draw_row(BinaryTarget(activation="sigmoid"), image, label, valid, prediction)
    )
    assert (truth[20:60, 20:60] == 1).all()
    assert (truth[:, 100:] == UNLABELLED_COLOUR).all()
    assert found[40, 40] == pytest.approx([0.9] * 3)
    np.testing.assert_allclose(
        over[25, 25], (1 - TINT) * grey[25, 25] + TINT * np.array(LABEL_COLOUR), atol=1e-6
    )
    assert over[30, 40] == pytest.approx(PREDICTION_COLOUR)  # its border
    np.testing.assert_allclose(over[65, 65], grey[65, 65], atol=1e-6)  # predicted, not labelled
    for y, x in ((5, 150), (90, 150)):
        np.testing.assert_allclose(over[y, x], DIM * grey[y, x], atol=1e-6)


def test_classes_keep_their_colours(image):
    target = MulticlassTarget(channels=3)
    label = torch.zeros(1, *SHAPE)
    label[..., 50:80, :] = 2
    prediction = torch.zeros(3, *SHAPE)
    prediction[1] = 1
    valid = torch.ones(1, *SHAPE, dtype=torch.bool)
    _, truth, found, over = columns(draw_row(target, image, label, valid, prediction))
    colours = [target.picture(np.eye(3, dtype=np.float32)[:, [c], None])[0, 0] for c in range(3)]
    np.testing.assert_allclose(truth[60, 60], colours[2])
    np.testing.assert_allclose(found[60, 60], colours[1])
    assert not np.allclose(over[60, 60], over[20, 60])


def test_normals_are_colours_over_the_image(image):
    normals = torch.zeros(3, *SHAPE)
    normals[2] = 1  # along x
    valid = torch.ones(1, *SHAPE, dtype=torch.bool)
    grey, truth, found, over = columns(draw_row(NormalsTarget(), image, normals, valid, -normals))
    np.testing.assert_allclose(truth[3, 3], [1, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(found[3, 3], [0, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(over[3, 3], (grey[3, 3] + found[3, 3]) / 2, atol=1e-6)


def test_label_and_prediction_have_one_scale_that_uncounted_voxels_do_not_stretch(image):
    label = torch.full((1, *SHAPE), 1.0)
    valid = torch.ones(1, *SHAPE, dtype=torch.bool)
    valid[..., 90:] = False
    label[..., 90:] = 1000.0
    prediction = torch.full((1, *SHAPE), 2.0)
    prediction[..., :9] = 3.0
    _, truth, found, _ = columns(draw_row(RegressionTarget(), image, label, valid, prediction))
    assert (truth[:, :90] == 0).all()
    assert (found[:, :9] == 1).all()
    np.testing.assert_allclose(found[:, 9:], 0.5, atol=1e-6)


def test_a_prediction_next_to_its_image_is_drawn_as_in_an_overlay():
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE[1:]).astype(np.float32)
    mask, normals = (rng.uniform(size=(n, *SHAPE[1:])).astype(np.float32) for n in (1, 3))
    given = [(BinaryTarget(), mask), (NormalsTarget(), normals)]
    row = predicted_row(image, given)
    shade = shade_of(image, window_of(image))
    wanted = [single_panel(one, values, shade, PREDICTION_COLOUR) for one, values in given]
    height, width = image.shape
    np.testing.assert_array_equal(row[:height, :width], shade)
    for n, panel in enumerate(wanted, 1):
        found = row[:height, n * (width + GAP) :][:, :width]
        np.testing.assert_allclose(found, draw_panel(panel, 1), atol=1e-6)


def test_the_slice_with_the_most_labels_is_shown():
    valid = torch.zeros(1, 7, 4, 4, dtype=torch.bool)
    assert telling_slice(valid) == 3
    valid[:, 5, 0] = True
    assert telling_slice(valid) == 5
    valid[:, 2, 0] = True
    assert telling_slice(valid) == 2
    valid[:, 6] = True
    assert telling_slice(valid) == 6


def test_small_patches_are_enlarged_by_a_whole_factor():
    arrays = [torch.zeros(1, 2, 30, 41)] * 2
    valid = torch.ones(1, 2, 30, 41, dtype=torch.bool)
    picture = draw_row(BinaryTarget(), *arrays, valid, arrays[0])
    assert picture.shape == (4 * 30 + GAP, 4 * (4 * 41 + GAP), 3)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_patch_that_is_a_slice_is_shown_in_its_plane(axis):
    rng = torch.Generator().manual_seed(0)
    image, label, prediction = (torch.rand(1, 1, 18, 20, generator=rng) for _ in range(3))
    arrays = image, (label > 0.5).float(), label > 0.1, prediction
    target = BinaryTarget(activation="sigmoid")
    turned = [array.movedim(1, 1 + axis).contiguous() for array in arrays]
    np.testing.assert_array_equal(draw_row(target, *turned), draw_row(target, *arrays))
