"""How far two predictions are from each other, against plain NumPy and its own symmetries."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.special import rel_entr

from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.losses.agreement import axis_distance, direction_distance, sure_mean
from vcmodels.targets import AnyTarget

SHAPE = (3, 4, 5)
CLOSED = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
BLOCKS = {
    "mask": {"kind": "binary"},
    "logits": {"kind": "binary", "activation": "none"},
    "masks": {"kind": "affinities", "offsets": CLOSED},
    "classes": {"kind": "multiclass", "channels": 3},
    "values": {"kind": "regression", "channels": 2},
    "distance": {"kind": "distance", "clip": 2.5, "activation": "tanh"},
    "vector": {"kind": "vector"},
    "oriented": {"kind": "normals"},
    "axial": {"kind": "normals", "orientation": "axial"},
}
EXACT = [name for name in BLOCKS if name != "masks"]
"""Whose voxels all stay inside under a turn."""


def target_of(name):
    return TypeAdapter(AnyTarget).validate_python(BLOCKS[name])


def logits_of(name, seed):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(2, target_of(name).channels, *SHAPE)) * 2).float()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bernoulli(p):
    return np.stack([p, 1 - p])


def smooth(difference):
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5).mean(1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def dot(one, other):
    return (unit(one) * unit(other)).sum(1, keepdims=True)


BRUTE = {
    "mask": lambda s, t: rel_entr(bernoulli(sigmoid(t)), bernoulli(sigmoid(s))).sum(0),
    "logits": lambda s, t: rel_entr(bernoulli(sigmoid(t)), bernoulli(sigmoid(s))).sum(0),
    "masks": lambda s, t: rel_entr(bernoulli(sigmoid(t)), bernoulli(sigmoid(s))).sum(0),
    "classes": lambda s, t: rel_entr(softmax(t), softmax(s)).sum(1, keepdims=True),
    "values": lambda s, t: smooth(s - t),
    "distance": lambda s, t: smooth(np.tanh(s) - np.tanh(t)),
    "vector": lambda s, t: smooth(s - t),
    "oriented": lambda s, t: 1 - dot(s, t),
    "axial": lambda s, t: 1 - dot(s, t) ** 2,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_kind_disagrees_by_its_own_measure(name):
    target, student, teacher = target_of(name), logits_of(name, 0), logits_of(name, 1)
    found = target.disagreement(student, target.blendable(teacher))
    wanted = BRUTE[name](student.double().numpy(), teacher.double().numpy())
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_network_agrees_with_itself_and_then_learns_nothing(name):
    target, student = target_of(name), logits_of(name, 0).requires_grad_()
    found = target.disagreement(student, target.blendable(student))
    assert found.abs().max() < 2e-5
    found.sum().backward()
    assert student.grad.abs().max() < 2e-3
    other = target.disagreement(student, target.blendable(logits_of(name, 1)))
    assert other.mean() > 0.01


@pytest.mark.parametrize("name", BLOCKS)
def test_a_teacher_gets_no_gradient(name):
    target = target_of(name)
    student, teacher = logits_of(name, 0).requires_grad_(), logits_of(name, 1).requires_grad_()
    target.disagreement(student, target.blendable(teacher)).sum().backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["oriented", "axial"])
def test_the_sign_of_an_axis_does_not_count_and_that_of_a_vector_does(name):
    target, student, teacher = target_of(name), logits_of(name, 0), logits_of(name, 1)
    found = target.disagreement(student, target.blendable(teacher))
    for one, other in ((-student, teacher), (student, -teacher)):
        turned = target.disagreement(one, target.blendable(other))
        wanted = found if name == "axial" else 2 - found
        torch.testing.assert_close(turned, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", EXACT)
def test_two_networks_that_are_turned_disagree_as_before(name):
    """The image, and with it what student and teacher say, is mirrored or turned."""
    target, spacing = target_of(name), (1.0, 1.0, 1.0)

    def turned(logits, symmetry):
        jacobian = torch.tensor(symmetry.matrix.astype(np.float32))
        moved = torch.from_numpy(np.ascontiguousarray(symmetry(logits.numpy())))
        valid = torch.ones(1, *moved.shape[2:], dtype=torch.bool)
        return torch.stack([target.turn(one, valid, jacobian, spacing)[0] for one in moved])

    student, teacher = logits_of(name, 0), logits_of(name, 1)
    if name == "distance":  # such a map keeps lengths
        student, teacher = student.clamp(-0.9, 0.9), teacher.clamp(-0.9, 0.9)
    wanted = target.disagreement(student, target.blendable(teacher)).numpy()
    for symmetry in CUBE_SYMMETRIES:
        taught = target.blendable(turned(teacher, symmetry))
        found = target.disagreement(turned(student, symmetry), taught).numpy()
        np.testing.assert_allclose(found, symmetry(wanted), atol=1e-5, err_msg=str(symmetry))


def test_teachers_that_contradict_each_other_are_not_certain():
    axis = torch.zeros(1, 3, 1, 1, 1)
    axis[:, 0] = 1
    across = axis.roll(1, dims=1)
    for name, one, other, wanted in (
        ("oriented", axis, -axis, 0),
        ("oriented", axis, across, 0.5**0.5),
        ("axial", axis, -axis, 1),
        ("axial", axis, across, 0.5),
        ("axial", 0 * axis, 0 * axis, 0),
    ):
        target = target_of(name)
        mean = (target.blendable(one) + target.blendable(other)) / 2
        # The eigenvalues of a tie: the arc cosine is steep there.
        assert target.certainty(mean).item() == pytest.approx(wanted, abs=1e-4)
    for name, logits, wanted in (
        ("mask", [-2.0], sigmoid(2)),
        ("logits", [-2.0], sigmoid(2)),
        ("classes", [0.0, 1.0, 3.0], softmax(np.array([[0, 1, 3]])).max()),
        ("values", [5.0, 0.0], 1),
    ):
        target = target_of(name)
        mean = target.blendable(torch.tensor(logits).view(1, -1, 1, 1, 1))
        assert target.certainty(mean).item() == pytest.approx(wanted, abs=1e-6)


def test_only_voxels_that_the_teacher_is_sure_of_count_and_all_divide():
    rng = np.random.default_rng(0)
    distance, certainty = rng.random((2, 2, *SHAPE)), rng.random((2, 1, *SHAPE))
    certainty[0, 0, 0] = 0
    tensors = torch.tensor(distance).float(), torch.tensor(certainty).float()
    for least in (None, 0.6):
        kept = (certainty > 0) & (certainty >= (least or 0))
        wanted = (distance * kept).sum((1, 2, 3, 4)) / distance[0].size
        np.testing.assert_allclose(sure_mean(*tensors, least).numpy(), wanted, atol=1e-6)


def test_no_direction_pulls_nowhere():
    student = torch.randn(1, 3, *SHAPE, requires_grad=True)
    for distance in (direction_distance, axis_distance):
        (gradient,) = torch.autograd.grad(distance(student, 0 * student).sum(), student)
        assert not gradient.any()
