"""Augmentations as blocks of the task file."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from vcmodels.augment import DEFAULT_AUGMENTATIONS, AnyAugmentation
from vcmodels.augment.geometric import Affine, Elastic, Flip, QuarterTurn, Shear

LIST = TypeAdapter(tuple[AnyAugmentation, ...])


def parse(text):
    (block,) = LIST.validate_json(f"[{text}]")
    return block


def test_the_default_list_comes_back_from_json():
    assert LIST.validate_json(LIST.dump_json(DEFAULT_AUGMENTATIONS)) == DEFAULT_AUGMENTATIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "flip", "p": 0.2, "axes": [0, "x"]}', Flip(p=0.2, axes=("z", "x"))),
        ('{"name": "quarter_turn", "planes": [["y", "x"]]}', QuarterTurn(planes=(("y", "x"),))),
        ('{"name": "affine", "rotation_degrees": 15}', Affine(rotation_degrees=15.0)),
        (
            '{"name": "affine", "rotation_degrees": [180, 5, 5.5], "scaling": [0.9, 1]}',
            Affine(rotation_degrees=(180.0, 5.0, 5.5), scaling=(0.9, 1.0)),
        ),
        (
            '{"name": "elastic", "spacing": 32, "amplitude": 4}',
            Elastic(spacing=32.0, amplitude=4.0),
        ),
    ],
)
def test_a_block_is_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "flop"}', "flop"),
        ('{"name": "flip", "probability": 1}', "probability"),
        ('{"name": "flip", "p": 1.5}', "less than or equal to 1"),
        ('{"name": "flip", "p": -0.1}', "greater than or equal to 0"),
        ('{"name": "flip", "axes": [3]}', "'z', 'y' or 'x'"),
        ('{"name": "flip", "axes": ["z", 0]}', "one axis twice"),
        ('{"name": "quarter_turn", "planes": [["y", "y"]]}', "one axis twice"),
        ('{"name": "affine", "scaling": [1.25, 0.8]}', "low end 1.25 exceeds"),
        ('{"name": "affine", "scaling": [0, 1]}', "greater than 0"),
        ('{"name": "affine", "rotation_degrees": 270}', "less than or equal to 180"),
        ('{"name": "shear", "slope": 0.5}', "less than 0.5"),
        ('{"name": "elastic", "spacing": 10, "amplitude": 5}', "can be at most 4"),
        ('{"name": "noise", "deviation": [0.2, 0.1]}', "low end 0.2 exceeds"),
        ('{"name": "blank_boxes", "count": [3, 1]}', "low end 3 exceeds"),
        ('{"name": "low_resolution", "zoom": [0.5, 2]}', "less than or equal to 1"),
        ('{"name": "low_resolution", "zoom": [0, 1]}', "greater than 0"),
    ],
)
def test_a_wrong_block_is_refused_with_the_reason(text, message):
    with pytest.raises(ValidationError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("spacing", "patch", "angles"),
    [
        ((1, 1, 1), (32, 48, 64), [30, 30, 30]),
        ((4, 1, 1), (32, 96, 96), [30, 0, 0]),
        ((1, 1, 1), (16, 128, 128), [30, 0, 0]),
        ((1, 4, 1), (64, 16, 64), [0, 30, 0]),
        ((2, 1, 1), (32, 64, 64), [30, 30, 30]),
    ],
    ids=str,
)
def test_one_angle_leaves_out_flat_planes(spacing, patch, angles):
    turned = Affine(rotation_degrees=30.0, scaling=(1, 1))
    drawn = [
        turned.sample_matrix(np.random.default_rng(seed), patch, spacing) for seed in range(200)
    ]
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        largest = max(abs(matrix[first, second]) for matrix in drawn)
        assert (largest > 0.3) == (angle > 0)
    slanted = Shear(p=1).sample_matrix(np.random.default_rng(0), patch, spacing)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        assert (slanted[first, second] != 0) == (slanted[second, first] != 0) == (angle > 0)
    if angles[1:] == [0, 0]:
        found = np.degrees([np.arctan2(matrix[2, 1], matrix[1, 1]) for matrix in drawn])
        assert -30 <= found.min() < -27
        assert 27 < found.max() <= 30
