import json

import numpy as np
import pytest

from vcmodels.data import normalization
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import open_volume

SHAPE = (11, 13, 17)
GLOBAL = {"scheme": "zscore", "per": "global"}


@pytest.fixture
def image():
    return np.random.default_rng(0).gamma(3.0, 40.0, SHAPE).astype(np.float32)


@pytest.fixture
def fitted(make_task, store):
    """Fits the normalisation of a task over some images, on the given regions."""

    def fit(images, scheme, regions=None):
        entries = []
        for n, channels in enumerate(images):
            inputs = [store(f"raw{n}-{c}", array) for c, array in enumerate(channels)]
            entries.append({"input": inputs, "sheet": inputs[0], "name": f"v{n}"})
        task = make_task(entries, dataset={"normalization": scheme})
        volumes = open_volumes(task)
        return fit_normalization(
            task.dataset_config.normalization, volumes, regions or [v.region for v in volumes]
        )

    return fit


def expected(image, scheme):
    values = image.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    if scheme == "zscore":
        return (values - values.mean()) / values.std()
    if scheme == "minmax":
        return (values - values.min()) / np.ptp(values)
    clipped = values.clip(low, high)
    if scheme == "ct":
        return (clipped - clipped.mean()) / clipped.std()
    if scheme == "percentile":
        return (clipped - low) / (high - low)
    return values


@pytest.mark.parametrize("scheme", ["zscore", "ct", "minmax", "percentile", "none"])
@pytest.mark.parametrize("per", ["global", "volume", "patch"])
def test_schemes_equal_their_definition(fitted, image, scheme, per):
    found = fitted([[image]], {"scheme": scheme, "per": per})
    out = found.apply(image[None], found.volumes.get("v0"))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0], expected(image, scheme), atol=2e-5, rtol=2e-5)


def test_statistics_come_from_the_regions_alone(fitted, image):
    spoiled = image.copy()
    spoiled[:, :, 9:] = 1e6
    found = fitted([[spoiled]], GLOBAL, [Box((0, 0, 0), (11, 13, 9))])
    part = image[:, :, :9].astype(np.float64)
    assert found.channels[0].mean == pytest.approx(part.mean())
    assert found.channels[0].sd == pytest.approx(part.std())


def test_global_statistics_join_all_volumes(fitted, image):
    other = image[:5] * 3 + 100
    found = fitted([[image], [other]], GLOBAL).channels[0]
    both = np.concatenate([image.ravel(), other.ravel()]).astype(np.float64)
    assert found.mean == pytest.approx(both.mean())
    assert found.sd == pytest.approx(both.std())
    assert (found.minimum, found.maximum) == (both.min(), both.max())


@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_have_their_own_statistics_or_joint_ones(fitted, image, per_channel):
    channels = [image, 50 - 2 * image]
    found = fitted([channels], {**GLOBAL, "per_channel": per_channel})
    out = found.apply(np.stack(channels))
    means = out.mean(axis=(1, 2, 3))
    if per_channel:
        np.testing.assert_allclose(means, 0, atol=1e-4)
    else:
        assert abs(means[0] - means[1]) > 1
        assert out.mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("scheme", ["zscore", "ct", "minmax", "percentile"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7e5])
def test_a_constant_image_becomes_zero(scheme, value):
    image = np.full((1, 6, 7, 8), value, np.float32)
    out = Normalization(scheme, "patch").apply(image)
    np.testing.assert_allclose(out, 0, atol=1e-7)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int64", "float16", "float64", ">i2"]
)
def test_dtypes_give_the_same_numbers(image, dtype):
    whole = (image.clip(0, 250)).astype(np.uint8)[None]
    stats = Normalization("zscore", "patch").apply(whole)
    np.testing.assert_allclose(
        Normalization("zscore", "patch").apply(whole.astype(dtype)), stats, atol=1e-6
    )


@pytest.mark.parametrize("per", ["global", "volume"])
def test_dictionary_survives_json(fitted, image, per):
    scheme = {"scheme": "ct", "per": per, "percentiles": [1, 98]}
    found = fitted([[image, image * 2]], scheme)
    assert Normalization.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(fitted, image, bad):
    image[7, 3, 12] = bad
    with pytest.raises(RunError, match=r"raw0-0.*\(z, y, x\) = \(7, 3, 12\)"):
        fitted([[image]], "zscore")


def test_large_volumes_are_sampled_within_bounds_and_always_alike(store, image, monkeypatch):
    location = store("raw", image, chunks=(3, 3, 3))
    monkeypatch.setattr(normalization, "COUNTED_CUBES", 5)
    monkeypatch.setattr(normalization, "CUBE", 4)
    volume = open_volume(location, key="input", channels="any")
    plain = Normalization("zscore")
    first = plain.of_volume([volume], volume.box)
    assert first == plain.of_volume([open_volume(location, key="input")], volume.box)
    assert first[0].mean == pytest.approx(float(image.mean()), rel=0.3)


def test_statistics_of_the_wrong_number_of_channels_are_refused(fitted, image):
    with pytest.raises(ValueError, match="2 channels, but statistics of 1"):
        fitted([[image]], GLOBAL).apply(np.stack([image, image]))


SCHEMES = ["zscore", "ct", "minmax", "percentile", "none"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per", ["global", "patch"])
def test_nan_counts_for_no_statistic_and_becomes_0(image, scheme, per):
    sparse = image.copy()
    sparse[3:6] = np.nan
    known = np.delete(image, [3, 4, 5], axis=0)[None]
    one = Normalization("zscore", per="patch")
    plain = Normalization(scheme, per, channels=one._finish(normalization.of_patch(known)))
    found, expected = plain.apply(sparse[None]), plain.apply(known)
    assert not found[:, 3:6].any()
    np.testing.assert_allclose(np.delete(found, [3, 4, 5], axis=1), expected, atol=1e-5)
    nothing = plain.apply(np.full((1, *SHAPE), np.nan, np.float32))
    assert not nothing.any()
