"""What all losses promise: masks, weights, precision, gradients, and a graph that compiles whole."""

import functools
import inspect
from dataclasses import dataclass, field

import pytest
import torch

from vcmodels.losses import LOSSES

SHAPE = (6, 7, 8)
MASK, MASKS, CLASSES = (1, 1, "mask"), (3, 3, "mask"), (4, 1, "classes")
VALUES, VECTORS = (2, 2, "values"), (3, 3, "vectors")
"""Channels of the logits, of the label, and what the label holds."""
REGIONS = [MASK, MASKS, CLASSES]
TAKES = {
    "bce": [MASK, MASKS],
    "ce": [CLASSES],
    "focal": REGIONS,
    "topk_ce": REGIONS,
    "soft_dice": REGIONS,
    "soft_jaccard": REGIONS,
    "tversky": REGIONS,
    "focal_tversky": REGIONS,
    "generalised_dice": REGIONS,
    "cldice": REGIONS,
    "skeleton_recall": REGIONS,
    "boundary": REGIONS,
    "gap": REGIONS,
    "l1": [VALUES],
    "l2": [VALUES],
    "smooth_l1": [VALUES],
    "cosine": [VECTORS],
    "axial_cosine": [VECTORS],
    "unit_length": [VECTORS],
}
OPTIONS = {
    "bce": {"pos_weight": 3.0},
    "ce": {"class_weights": [0.5, 1.0, 2.0, 4.0]},
    "focal": {"gamma": 0.7, "alpha": 0.25},
    "topk_ce": {"share": 0.3},
    "soft_dice": {"include_background": True},
    "soft_jaccard": {"include_background": True},
    "tversky": {"alpha": 0.1, "beta": 0.4, "include_background": True},
    "focal_tversky": {"alpha": 0.1, "beta": 0.4, "gamma": 2.0, "include_background": True},
    "cldice": {"iterations": 1},
    "skeleton_recall": {"iterations": 1},
    "boundary": {"clip": 2},
    "gap": {"width": 2},
    "smooth_l1": {"beta": 0.3},
}
"""Other than the defaults, for every option that there is."""


@dataclass(frozen=True)
class Case:
    """A loss, the label that it is called with, and the options."""

    name: str
    channels: int
    label_channels: int
    content: str
    valid_channels: int = 1
    options: dict = field(default_factory=dict)

    def __str__(self):
        options = "-".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}-{self.channels}{self.content}-{self.valid_channels}valid-{options}"

    def __call__(self, logits, label, valid, **kwargs):
        return LOSSES[self.name].function(logits, label, valid, **kwargs, **self.options)

    def example(self, seed=0, batch=2, shape=SHAPE):
        """Random logits, label and a valid mask of about half the voxels."""
        torch.manual_seed(seed)
        logits = torch.randn(batch, self.channels, *shape)
        shape = (batch, self.label_channels, *shape)
        if self.content == "vectors":
            label = torch.nn.functional.normalize(torch.randn(shape), dim=1)
        elif self.content == "values":
            label = torch.randn(shape)
        else:
            label = torch.randint(0, max(2, self.channels // self.label_channels), shape).float()
        return logits, label, torch.rand(batch, self.valid_channels, *shape[2:]) > 0.5


def cases():
    for name, kinds in TAKES.items():
        keywords = inspect.signature(LOSSES[name].function).parameters
        smoothing = [{"label_smoothing": 0.2}] if "label_smoothing" in keywords else []
        for options in [{}, *smoothing, *filter(None, [OPTIONS.get(name)])]:
            for kind in kinds:
                yield Case(name, *kind, options=options)
                # Vectors are known as a whole; the others may be known channel by channel.
                if kind[1] > 1 and kind != VECTORS:
                    yield Case(name, *kind, valid_channels=kind[1], options=options)


CASES = list(cases())
every_case = pytest.mark.parametrize("case", CASES, ids=str)
PLAIN = [case for case in CASES if not case.options and case.valid_channels == 1]
every_plain_case = pytest.mark.parametrize("case", PLAIN, ids=str)


def test_every_loss_and_every_option_has_a_case():
    assert set(TAKES) == set(LOSSES)
    for name, loss in LOSSES.items():
        keywords = {
            p.name
            for p in inspect.signature(loss.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        assert keywords - {"weight", "label_smoothing"} == set(OPTIONS.get(name, {})), name


@every_case
def test_labels_under_invalid_voxels_do_not_matter_and_get_no_gradient(case):
    logits, label, valid = case.example()
    clean = case(logits, label, valid)
    logits.requires_grad_()
    outside = ~valid.expand_as(logits)
    for junk in (-1.0, 255.0, 3e38, torch.nan):
        loss = case(logits, torch.where(valid, label, junk), valid)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == clean
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert (gradient[outside] == 0).all()
        assert torch.isfinite(gradient).all()
        assert (gradient[~outside] != 0).any()


@every_case
def test_logits_and_weights_under_invalid_voxels_do_not_matter(case):
    logits, label, valid = case.example()
    weight = torch.rand(2, 1, *SHAPE)
    clean = case(logits, label, valid, weight=weight)
    for junk in (1e30, -3e38, torch.inf, -torch.inf, torch.nan):
        dirty = torch.where(valid, logits, junk).requires_grad_()
        dirty_weight = torch.where(valid.any(1, keepdim=True), weight, junk)
        loss = case(dirty, label, valid, weight=dirty_weight)
        loss.backward()
        assert loss == clean
        assert (dirty.grad[~valid.expand_as(dirty)] == 0).all()
        assert torch.isfinite(dirty.grad).all()


@every_case
def test_nothing_valid_is_zero_with_zero_gradient(case):
    logits, label, valid = case.example()
    logits.requires_grad_()
    for weight in (None, torch.rand(2, 1, *SHAPE)):
        loss = case(logits, label * torch.nan, torch.zeros_like(valid), weight=weight)
        loss.backward()
        assert loss == 0
        assert (logits.grad == 0).all()


@every_case
def test_an_empty_label_has_a_finite_loss_and_gradient(case):
    logits, label, valid = case.example()
    for size in (0.0, 50.0, -50.0):
        alike = torch.full_like(logits, size).requires_grad_()
        loss = case(alike, torch.zeros_like(label), valid)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(alike.grad).all()


@every_case
def test_gradients_agree_with_finite_differences(case):
    logits, label, valid = case.example(shape=(2, 1, 3))
    logits = logits.double().requires_grad_()
    weight = torch.rand(2, 1, 1, 1, 1)
    loss = functools.partial(case, label=label.double(), valid=valid, weight=weight)
    # Along random directions: the whole matrix takes eight times as long and shows no more.
    assert torch.autograd.gradcheck(loss, logits, fast_mode=True)


@every_case
def test_half_precision_logits_are_computed_in_float32(case):
    logits, label, valid = case.example()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss = case(logits.to(dtype), label, valid)
        assert loss.dtype == torch.float32
        assert loss == case(logits.to(dtype).float(), label, valid)


@every_plain_case
def test_the_loss_is_one_graph(case):
    torch.compiler.reset()
    logits, label, valid = case.example()
    weight = torch.rand(2, 1, 1, 1, 1)
    compiled = torch.compile(case.__call__, fullgraph=True, backend="eager")
    wanted = case(logits, label, valid, weight=weight)
    torch.testing.assert_close(compiled(logits, label, valid, weight=weight), wanted)


@every_case
def test_voxels_that_are_masked_out_might_as_well_not_exist(case):
    for cut in (1, 2, 5):
        logits, label, valid = case.example(seed=cut)
        valid[:, :, cut:] = False
        whole = case(logits, label, valid)
        part = case(logits[:, :, :cut], label[:, :, :cut], valid[:, :, :cut])
        torch.testing.assert_close(whole, part, rtol=5e-6, atol=1e-7)


@every_case
def test_a_tenth_of_the_weight_pulls_a_tenth_as_hard(case):
    logits, label, valid = case.example()
    logits.requires_grad_()
    for weight in (torch.ones(2, 1, 1, 1, 1), torch.rand(2, 1, *SHAPE)):
        whole, part = (case(logits, label, valid, weight=weight * f) for f in (1.0, 0.1))
        torch.testing.assert_close(part, whole * 0.1, rtol=5e-6, atol=1e-9)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (whole, part)]
        torch.testing.assert_close(gradients[1], gradients[0] * 0.1, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        case(logits, label, valid, weight=torch.ones(2, 1, 1, 1, 1)), case(logits, label, valid)
    )


@every_case
def test_a_sample_of_weight_zero_gets_no_gradient(case):
    logits, label, valid = case.example()
    logits.requires_grad_()
    weight = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1)
    case(logits, label, valid, weight=weight).backward()
    assert (logits.grad[0] == 0).all()
    assert (logits.grad[1] != 0).any()
    logits.grad = None
    loss = case(logits, label, valid, weight=torch.zeros(2, 1, *SHAPE))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@every_plain_case
def test_the_loss_falls_as_the_prediction_nears_the_label(case):
    """Descent from noise ends near the least value, whatever the loss."""
    logits, label, valid = case.example(shape=(3, 4, 5))
    logits.requires_grad_()
    start = case(logits, label, valid)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        case(logits, label, valid).backward()
        optimizer.step()
    assert case(logits, label, valid) < 0.35 * start
    assert case(logits, label, valid) >= 0
