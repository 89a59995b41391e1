"""What every value transform keeps: shape, type, its input, the seed, finite values, global state."""

import random
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.augment import DEFAULT_AUGMENTATIONS, AnyAugmentation, apply_intensity
from vcmodels.augment.albumentation import Albumentation
from vcmodels.augment.artefacts import BlankBoxes, MissingSlices
from vcmodels.augment.base import IntensityAugmentation
from vcmodels.augment.geometric import Flip
from vcmodels.augment.values import Brightness, Contrast, Noise

ALL = [
    kind
    for kind in get_args(get_args(AnyAugmentation)[0])
    # One block for many transforms, with a test file of its own.
    if issubclass(kind, IntensityAugmentation) and kind is not Albumentation
]
every_kind = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
SHAPE = (2, 20, 23, 26)


def smooth_image(shape=SHAPE):
    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0, 2, 2, 2))
    return (image / image.std()).astype(np.float32)


def changed_by(augmentations, image, seed=0):
    return apply_intensity(augmentations, torch.tensor(image), np.random.default_rng(seed)).numpy()


def change(augmentation, image, seed=0):
    return changed_by([augmentation], image, seed)


@every_kind
@pytest.mark.parametrize("per_channel", [False, True])
def test_shape_type_input_and_seed(kind, per_channel):
    image = torch.tensor(smooth_image())
    copy = image.clone()
    kept = [kind(p=1, per_channel=per_channel)]
    first, again, other = (
        apply_intensity(kept, image, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.dtype == torch.float32
    assert first.shape == image.shape
    assert first.is_contiguous()
    assert first.isfinite().all()
    assert torch.equal(image, copy)
    assert torch.equal(first, again)
    assert not torch.equal(first, image)
    assert not torch.equal(first, other)
    assert apply_intensity([kind(p=0)], image, np.random.default_rng(0)) is image


@every_kind
def test_constant_images_and_tiny_ones_stay_finite(kind):
    shapes = (SHAPE, (1, 1, 5, 7), (1, 5, 1, 1), (1, 1, 1, 1))
    for image in (np.full(shape, 3, np.float32) for shape in shapes):
        changed = change(kind(p=1), image)
        assert changed.shape == image.shape
        assert np.isfinite(changed).all()
        # These make values of nothing, or add a number; all others leave what has no structure.
        if kind.__name__ not in ("Noise", "Brightness", "BlankBoxes", "Rings", "MissingSlices"):
            np.testing.assert_allclose(changed, image, atol=1e-5)


@every_kind
def test_an_image_far_from_zero_stays_finite_and_near(kind):
    image = smooth_image() * 5 + 1000
    changed = change(kind(p=1), image)
    assert np.isfinite(changed).all()
    if kind not in (BlankBoxes, MissingSlices):
        assert abs(np.median(changed) - np.median(image)) < np.ptp(image)


@every_kind
def test_no_global_random_state_is_used(kind):
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    change(kind(p=1), smooth_image())
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@every_kind
def test_every_name_round_trips_through_json(kind):
    augmentation = kind(p=0.25, per_channel=True)
    assert kind.model_validate_json(augmentation.model_dump_json()) == augmentation


def test_probability_is_how_often_it_happens():
    rng = np.random.default_rng(0)
    image = torch.zeros(1, 2, 2, 2)
    shifted = [apply_intensity([Brightness(p=0.3)], image, rng) is not image for _ in range(2000)]
    assert np.mean(shifted) == pytest.approx(0.3, abs=0.03)


def test_channels_change_alike_unless_each_draws_anew():
    image = np.zeros((4, 3, 3, 3), np.float32)
    alike = change(Brightness(p=1), image)[:, 0, 0, 0]
    assert np.ptp(alike) == 0
    own = change(Brightness(p=1, per_channel=True), image)[:, 0, 0, 0]
    assert len(set(own.tolist())) == 4


def test_the_list_runs_in_its_order_and_passes_over_geometry():
    image = torch.tensor(smooth_image())
    rng = np.random.default_rng(0)
    double, up = Contrast(p=1, factor=(2, 2)), Brightness(p=1, shift=(1, 1))
    result = apply_intensity([Flip(p=1), double, up], image, rng)
    assert result.std().item() == pytest.approx(2 * image.std().item(), rel=1e-2)
    assert abs((result - image).mean().item()) == pytest.approx(1, abs=0.02)
    assert apply_intensity([Flip(p=1)], image, rng) is image
    blank_first = [MissingSlices(p=1, count=(20, 20)), Noise(p=1, deviation=(1, 1))]
    assert apply_intensity(blank_first, image, rng).std() > 0.9
    assert not apply_intensity(blank_first[::-1], image, rng).any()


def test_the_default_list_keeps_images_normalised_enough_to_learn_from():
    image = smooth_image()
    for seed in range(30):
        changed = changed_by(DEFAULT_AUGMENTATIONS, image, seed)
        assert abs(changed.mean()) < 0.5
        assert 0.5 < changed.std() < 2
        assert np.corrcoef(changed.ravel(), image.ravel())[0, 1] > 0.8
