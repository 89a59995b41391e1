from vcmodels.geometry.boxes import Box


def test_the_layer_of_a_box_follows_it():
    assert Box((2, -3, 4), (5, 6, 7)).with_layer() == Box((2, -3, 4), (6, 7, 8))
