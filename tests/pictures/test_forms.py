import numpy as np
import pytest
import torch

from vcmodels.pictures.forms import FormDrawing, id_colours
from vcmodels.pictures.slices import (
    LABEL_COLOUR,
    PREDICTION_COLOUR,
    joint_panel,
    pair_of,
    single_panel,
)
from vcmodels.targets import MulticlassTarget


def test_an_id_has_one_colour_everywhere_and_no_other_has_it():
    ids = np.arange(6000).reshape(60, 100)
    colours = id_colours(ids)
    assert (colours[0, 0] == 0).all()
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 6000
    assert colours.reshape(-1, 3)[1:].max(1).min() >= 0.75  # bright
    spread = np.ptp(colours.reshape(-1, 3)[1:], axis=1)
    assert spread.min() > 0.4  # no grey, in which masks are drawn
    np.testing.assert_array_equal(id_colours(ids[10:20, 3:]), colours[10:20, 3:])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.int64])
def test_the_colour_of_an_id_does_not_depend_on_its_type(dtype):
    np.testing.assert_array_equal(
        id_colours(np.array([[0, 7, 100]], dtype)), id_colours(np.array([[0, 7, 100]]))
    )


def test_ids_that_float32_cannot_hold_differ():
    big = np.array([[2**40, 2**40 + 1]])
    assert (id_colours(big)[0, 0] != id_colours(big)[0, 1]).any()
    label = torch.from_numpy(big)[None, None, None]
    assert (FormDrawing("instances").as_prediction(label).numpy() == big).all()


def test_classes_have_the_colours_of_their_target():
    index = np.random.default_rng(0).integers(0, 3, (1, 5, 7)).astype(np.float32)
    drawing, target = FormDrawing("classes", 3), MulticlassTarget(channels=3)
    label = torch.from_numpy(index)[None, :, None]
    found = drawing.as_prediction(label)
    torch.testing.assert_close(found, target.as_prediction(label))
    np.testing.assert_array_equal(
        drawing.picture(found[0, :, 0].numpy()), target.picture(found[0, :, 0].numpy())
    )


def test_directions_look_like_their_opposites_and_nothing_is_black():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=0)
    vectors[:, 0, 0] = 0
    picture = FormDrawing("directions").picture(vectors)
    np.testing.assert_allclose(picture, FormDrawing("directions").picture(-vectors))
    np.testing.assert_allclose(picture[1:, :, 0], np.abs(vectors[2, 1:]), atol=1e-6)  # x is red
    assert (picture[0, 0] == 0).all()


def test_vectors_fade_with_their_length():
    vectors = np.zeros((3, 1, 3), np.float32)
    vectors[0] = [4, 2, 0]  # along z, which is blue
    picture = FormDrawing("vectors").picture(vectors)
    np.testing.assert_allclose(picture[0], [[0, 0, 1], [0, 0, 0.5], [0, 0, 0]])


def test_values_span_black_to_white_and_what_is_not_finite_is_zero():
    values = np.array([[[-2, 0, np.nan, 2, np.inf]]], np.float32)
    picture = FormDrawing("values").picture(values)
    np.testing.assert_allclose(picture[0, :, 0], [0, 0.5, 0.5, 1, 0.5])


@pytest.mark.parametrize("form", ["masks", "instances"])
def test_a_pair_has_the_label_filled_and_the_prediction_as_a_line(form):
    label = np.zeros((1, 9, 11), np.float32 if form == "masks" else np.int64)
    label[0, 2:6, 2:6] = 1
    prediction = np.roll(label, 3, axis=2)
    drawing = FormDrawing(form)
    pair = pair_of(drawing, label, prediction, np.ones((9, 11), bool))
    panel = joint_panel(pair, np.full((9, 11, 3), 0.5, np.float32))
    colour = LABEL_COLOUR if form == "masks" else id_colours(np.array([[1]]))[0, 0]
    line = PREDICTION_COLOUR if form == "masks" else colour
    inside = panel.background[3, 3]
    np.testing.assert_allclose(inside, 0.7 * 0.5 + 0.3 * np.array(colour), atol=1e-6)
    np.testing.assert_allclose(panel.background[8, 10], 0.5)
    np.testing.assert_allclose(panel.regions[3, 7], line, atol=1e-6)
    assert (panel.regions[3, 2] == 0).all()


def test_a_prediction_without_a_label_is_tinted_and_outlined():
    mask = np.zeros((1, 5, 6), np.float32)
    mask[0, 1:3, 1:4] = 0.9
    panel = single_panel(FormDrawing("masks"), mask, None, PREDICTION_COLOUR)
    np.testing.assert_allclose(panel.background[1, 1], 0.3 * np.array(PREDICTION_COLOUR), atol=1e-6)
    assert (panel.background[4, 5] == 0).all()
    values = np.linspace(0, 1, 30, dtype=np.float32).reshape(1, 5, 6)
    image = np.ones((5, 6, 3), np.float32)
    panel = single_panel(FormDrawing("values"), values, image, PREDICTION_COLOUR)
    np.testing.assert_allclose(panel.background[..., 0], 0.5 + 0.5 * values[0], atol=1e-6)
    assert panel.regions is None


@pytest.mark.parametrize("form", ["masks", "values", "vectors", "directions"])
def test_on_one_scale_a_picture_of_a_part_is_a_part_of_the_picture(form):
    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    drawing = FormDrawing(form, 3)
    scaled = drawing.on_scale_of(values)
    assert scaled.has_scale
    picture = drawing.picture(values)
    np.testing.assert_allclose(scaled.picture(values[:, 2:4, :3]), picture[2:4, :3], atol=1e-6)
    beyond = scaled.picture(100 * values)  # clipped
    assert beyond.min() >= 0
    assert beyond.max() <= 1
