import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vcmodels.targets import CentresTarget
from vcmodels.targets.stored import LabelError

SHAPE = (6, 7, 8)
SPACING = (2.0, 0.5, 1.0)


def test_a_stored_heat_map_is_read_by_its_encoding():
    stored = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    target = CentresTarget(encoding={"scale": 1 / 255})
    np.testing.assert_allclose(target.read_label(stored)[0].flatten(), (0, 0.2, 1), rtol=1e-6)
    with pytest.raises(
        LabelError, match=r"value 51 at \(z, y, x\) = \(0, 0, 1\); a heat map is in"
    ):
        CentresTarget().read_label(stored)


def test_nan_does_not_count_and_overflow_is_refused():
    stored = np.zeros((1, *SHAPE))
    stored[0, 1, 2, 3] = np.nan
    label, valid = CentresTarget().read_label(stored)
    assert np.argwhere(~valid).tolist() == [[0, 1, 2, 3]]
    assert (label == 0).all()
    stored[0, 2, 3, 4] = 1e300
    with pytest.raises(LabelError, match="value 1e"):
        CentresTarget().read_label(stored)


@pytest.mark.parametrize("units", ["voxels", "physical"])
def test_a_derived_heat_map_is_a_gaussian_of_the_stated_width(units):
    target = CentresTarget(derive="cells", max_extent=1, sigma=1.0, sigma_units=units)
    margin = target.source_margin(SPACING)
    width = np.array((1, 1, 1) if units == "voxels" else (0.5, 2, 1))
    assert margin == tuple(1 + math.ceil(3 * w) for w in width)
    ids = np.zeros(SHAPE, np.float32)
    ids[2, 3, 4] = 5
    around = [(m, m) for m in margin]
    source = torch.from_numpy(np.pad(ids, around))[None]
    known = torch.from_numpy(np.pad(np.ones(SHAPE, bool), around))[None]
    heat, valid = target.derive_label(source, known, SPACING)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    d = (places - np.reshape((2, 3, 4), (3, 1, 1, 1))) / width.reshape(3, 1, 1, 1)
    wanted = np.exp(-(d**2).sum(0) / 2) * (np.abs(d) <= 3).all(0)
    np.testing.assert_allclose(heat[0], wanted, atol=1e-6)
    assert valid.all()


def test_metrics_are_those_of_numpy():
    rng = np.random.default_rng(0)
    p, t = rng.random((2, 2, 1, *SHAPE)).astype(np.float32)
    valid = rng.random((2, 1, *SHAPE)) > 0.4
    target = CentresTarget()
    halves = [
        target.measure(*(torch.from_numpy(a[i : i + 1]) for a in (p, t, valid))) for i in (0, 1)
    ]
    found = target.summarise({key: halves[0][key] + halves[1][key] for key in halves[0]})
    wanted = np.corrcoef(p[valid], t[valid])[0, 1]
    error = (p - t)[valid].astype(np.float64)
    r2 = 1 - (error**2).mean() / t[valid].astype(np.float64).var()
    assert found == pytest.approx(
        {"correlation": wanted, "r2": r2, "mae": np.abs(error).mean()}, abs=1e-6
    )


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_a_constant_field_has_no_correlation(constant):
    torch.manual_seed(0)
    flat, other = torch.full((1, 1, *SHAPE), constant), torch.rand(1, 1, *SHAPE)
    valid = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    target = CentresTarget()
    for pair in ((flat, other), (other, flat)):
        assert math.isnan(target.summarise(target.measure(*pair, valid))["correlation"])
    nothing = target.summarise(target.measure(flat, other, ~valid))
    assert all(math.isnan(v) for v in nothing.values())


def test_l2_is_that_of_the_heat():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), torch.rand(2, 1, *SHAPE)
    valid = torch.ones_like(label, dtype=torch.bool)
    found = CentresTarget(loss="l2").compute_loss(logits, label, valid)
    torch.testing.assert_close(found, (logits.sigmoid() - label).square().mean())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"derive": "cells"}, 'give "max_extent" in voxels'),
        ({"derive": "cells", "max_extent": 5, "encoding": {"scale": 0.5}}, "has no encoding"),
        ({"max_extent": 5}, "of use with derive only"),
        ({"sigma": 0}, "greater than 0"),
        ({"sigma": 4}, "sigma is of use with derive only"),
        ({"loss": "l1"}, 'no loss "l1" for this kind'),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        CentresTarget(**keys)
