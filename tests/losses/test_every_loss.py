"""What all losses promise: masks, precision, gradients, and a graph that compiles whole."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.losses import LOSSES

SHAPE = (6, 7, 8)
LABEL_KIND = {
    "bce": (1, "mask"),
    "soft_dice": (4, "classes"),
    "soft_jaccard": (4, "classes"),
    "ce": (4, "classes"),
    "l1": (2, "values"),
    "l2": (2, "values"),
    "smooth_l1": (2, "values"),
    "cosine": (3, "vectors"),
    "axial_cosine": (3, "vectors"),
}
CASES = [*LABEL_KIND.items(), ("soft_dice", (1, "mask")), ("soft_jaccard", (1, "mask"))]
every_loss = pytest.mark.parametrize(("name", "case"), CASES, ids=str)
SMOOTHED = {
    n for n, loss in LOSSES.items() if "label_smoothing" in inspect.signature(loss).parameters
}
every_smoothing = pytest.mark.parametrize(
    ("name", "case", "options"),
    [(n, c, {}) for n, c in CASES]
    + [(n, c, {"label_smoothing": 0.2}) for n, c in CASES if n in SMOOTHED],
    ids=str,
)


def example(channels, kind, seed=0, batch=2, shape=SHAPE):
    """Random logits, label and a valid mask of about half the voxels."""
    torch.manual_seed(seed)
    logits = torch.randn(batch, channels, *shape)
    if kind == "mask":
        label = torch.randint(0, 2, (batch, 1, *shape)).float()
    elif kind == "classes":
        label = torch.randint(0, channels, (batch, 1, *shape)).float()
    else:
        label = torch.randn(batch, channels, *shape)
    if kind == "vectors":
        label = torch.nn.functional.normalize(label, dim=1)
    return logits, label, torch.rand(batch, 1, *shape) > 0.5


def test_every_loss_has_a_case():
    assert set(LOSSES) == set(LABEL_KIND)


@every_smoothing
@pytest.mark.parametrize("junk", [0.0, -1.0, 255.0, 3e38, -3e38, 0.5])
def test_labels_under_invalid_voxels_do_not_matter_and_get_no_gradient(name, case, options, junk):
    logits, label, valid = example(*case)
    clean = LOSSES[name](logits, label, valid, **options)
    logits.requires_grad_()
    dirty = torch.where(valid, label, junk)
    loss = LOSSES[name](logits, dirty, valid, **options)
    loss.backward()
    assert loss == clean
    assert loss.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
    outside = ~valid.expand_as(logits)
    assert (logits.grad[outside] == 0).all()
    assert (logits.grad[~outside] != 0).any()


@every_loss
def test_huge_logits_under_invalid_voxels_do_not_matter(name, case):
    logits, label, valid = example(*case)
    clean = LOSSES[name](logits, label, valid)
    logits = torch.where(valid, logits, 1e30).requires_grad_()
    loss = LOSSES[name](logits, label, valid)
    loss.backward()
    assert loss == clean
    assert torch.isfinite(logits.grad).all()


@every_smoothing
def test_nothing_valid_is_zero_with_zero_gradient(name, case, options):
    logits, label, valid = example(*case)
    logits.requires_grad_()
    loss = LOSSES[name](logits, label, torch.zeros_like(valid), **options)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@every_smoothing
def test_gradients_agree_with_finite_differences(name, case, options):
    logits, label, valid = example(*case, shape=(2, 1, 3))
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, label.double(), valid, **options), logits
    )


@every_loss
def test_half_precision_logits_are_computed_in_float32(name, case):
    logits, label, valid = example(*case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](logits.bfloat16(), label, valid)
    assert loss.dtype == torch.float32
    assert loss == LOSSES[name](logits.bfloat16().float(), label, valid)


@every_loss
def test_the_loss_is_one_graph(name, case):
    logits, label, valid = example(*case)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, label, valid), LOSSES[name](logits, label, valid))


@every_loss
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 5))
def test_voxels_that_are_masked_out_might_as_well_not_exist(name, case, seed, cut):
    logits, label, valid = example(*case, seed=seed)
    valid[:, :, cut:] = False
    whole = LOSSES[name](logits, label, valid)
    part = LOSSES[name](logits[:, :, :cut], label[:, :, :cut], valid[:, :, :cut])
    np.testing.assert_allclose(whole, part, rtol=2e-6, atol=1e-7)
