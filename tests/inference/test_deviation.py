"""How far predictions of one voxel lie apart, in the unit that each kind states."""

import numpy as np
import pytest
import torch

from vcmodels.errors import TaskError
from vcmodels.inference.network import Uncertainty, uncertainties
from vcmodels.targets.affinities import AffinitiesTarget
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.distance import DistanceTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.targets.vector import VectorTarget


def root(target, logits):
    """The deviation of predictions, (N, C) logits of one voxel, in the unit of the kind."""
    values = target.blendable(torch.tensor(logits)[..., None, None, None])
    mean, variance = values.mean(0, keepdim=True), values.var(0, correction=0, keepdim=True)
    dispersion = target.dispersion(mean, variance)
    assert dispersion.shape == (1, 1, 1, 1, 1)
    return float(Uncertainty(target).unblend(dispersion))


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
@pytest.mark.parametrize("angle", [0.0, 1.0, 20.0, 44.0])
def test_two_directions_deviate_by_half_the_angle_between_them(orientation, angle):
    rng = np.random.default_rng(1)
    frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    half = np.deg2rad(angle)
    pair = np.array([[np.cos(half), np.sin(half), 0], [np.cos(half), -np.sin(half), 0]]) @ frame
    target = NormalsTarget(orientation=orientation)
    found = root(target, (pair * [[2.0], [5.0]]).astype(np.float32))
    assert found == pytest.approx(angle, abs=0.06)
    flipped = root(target, (pair * [[1.0], [-1.0]]).astype(np.float32))
    assert flipped == pytest.approx(angle if orientation == "axial" else 90 - angle, abs=0.06)


def test_axes_of_no_direction_at_all_deviate_most():
    largest = np.rad2deg(np.arcsin(np.sqrt(2 / 3)))
    target = NormalsTarget(orientation="axial")
    assert root(target, np.eye(3, dtype=np.float32)) == pytest.approx(largest, abs=0.01)
    assert root(target, np.zeros((2, 3), np.float32)) == pytest.approx(largest, abs=0.01)


SURE = 30.0


@pytest.mark.parametrize(
    ("target", "logits", "expected"),
    [
        (BinaryTarget(), [[SURE], [-SURE]], 0.5),
        (AffinitiesTarget(), [[SURE] * 3, [-SURE] * 3], 0.5),
        (AffinitiesTarget(), [[SURE, 0, 0], [-SURE, 0, 0]], 0.5 / 3**0.5),
        (MulticlassTarget(channels=2), [[SURE, 0], [0, SURE]], 0.5**0.5),
        (MulticlassTarget(channels=9), (SURE * np.eye(9)).tolist(), (8 / 9) ** 0.5),
        (DistanceTarget(clip=4.0), [[-2.0], [2.0]], 4.0),
        (DistanceTarget(clip=4.0, signed=False), [[-2.0], [2.0]], 2.0),
        (RegressionTarget(channels=4, output_range=[-1, 3]), [[-1.0] * 4, [3.0] * 4], 4.0),
        (VectorTarget(output_range=[-1, 1]), [[-1.0] * 3, [1.0] * 3], 3**0.5),
    ],
    ids=lambda value: getattr(value, "kind", None) or str(value)[:12],
)
def test_deviations_are_what_is_stated_and_fit_the_scale(target, logits, expected):
    found = root(target, np.asarray(logits, np.float32))
    assert found == pytest.approx(expected, rel=1e-5)
    written = Uncertainty(target)
    for name in ("uint8", "uint16", "float32"):
        dtype = np.dtype(name)
        code = written.encode(torch.full((1, 1, 1, 1), found), dtype)
        scale = written.encoding(dtype)
        assert code.dtype == dtype
        assert code.item() * scale["scale"] + scale["offset"] == pytest.approx(
            found, abs=scale["scale"] / 2 if dtype.kind == "u" else 1e-6
        )


def test_a_target_with_the_name_of_an_uncertainty_is_refused():
    targets = {"sheet": BinaryTarget(), "sheet_uncertainty": RegressionTarget()}
    with pytest.raises(TaskError, match='"sheet_uncertainty" would be the uncertainty of "sheet"'):
        uncertainties(targets)
