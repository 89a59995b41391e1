"""What is read back of a prediction, in the way that the evaluation reads it, is what the network said."""

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.inference import predict_request
from vcmodels.targets import (
    KINDS,
    AffinitiesTarget,
    BinaryTarget,
    BoundaryTarget,
    CentresTarget,
    DistanceTarget,
    MulticlassTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)
from vcmodels.volumes import open_volume

TARGETS = {
    "binary": BinaryTarget(channels=1),
    "boundary": BoundaryTarget(channels=1),
    "centres": CentresTarget(channels=1),
    "distance": DistanceTarget(channels=1, clip=4.0),
    "unsigned distance": DistanceTarget(channels=1, clip=4.0, signed=False),
    "affinities": AffinitiesTarget(
        channels=4, offsets=[[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -2, 0]]
    ),
    "vector": VectorTarget(channels=3, output_range=[-6.0, 6.0]),
    "vector xyz": VectorTarget(channels=3, output_range=[-6.0, 6.0], vector_order="xyz"),
    "regression": RegressionTarget(channels=2, output_range=[-6.0, 6.0]),
    "multiclass": MulticlassTarget(channels=3, label_values=[0, 2, 7], output="probabilities"),
    "normals": NormalsTarget(channels=3),
    "normals xyz": NormalsTarget(channels=3, vector_order="xyz"),
    "axes": NormalsTarget(channels=3, orientation="axial"),
}


class Pointwise(nn.Module):
    """Each channel another slope: the same for a voxel in whichever patch it is."""

    def __init__(self, channels):
        super().__init__()
        self.slope = torch.linspace(-3, 4, channels).view(1, -1, 1, 1, 1)

    def forward(self, image, targets):
        return dict.fromkeys(targets, (self.slope * (image - 0.4),))


def test_all_kinds_are_here():
    assert {target.kind for target in TARGETS.values()} == set(KINDS)


@pytest.mark.parametrize("output_type", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_stored_prediction_decodes_to_what_the_network_said(workplace, target, output_type):
    work = workplace(np.random.default_rng(0).random((9, 11, 12), np.float32))
    task = work.task(output_type=output_type, overlap=0.5)
    config = task.dataset_config.model_copy(update={"targets": {"value": target}})
    task = task.model_copy(update={"dataset_config": config})
    work.network = Pointwise(target.channels)
    predict_request(work.request(task))

    logits = work.network(torch.from_numpy(work.values)[None, None], ["value"])["value"][0]
    said = target.unblend(target.blendable(logits))[0].numpy()
    place = str(work.folder / "out/net.zarr/value")
    stored = open_volume(place, key="output", channels="any")  # as the evaluation opens it
    found = target.decode(stored.read(stored.box))
    steps = {"uint8": 255, "uint16": 65535, "float32": 2e6}[output_type]
    scale = 12 if np.abs(said).max() > 1.01 else 2
    if target.kind == "normals" and target.orientation == "axial":  # n and -n are the same
        found = found * np.sign((found * said).sum(0))
    np.testing.assert_allclose(found, said, atol=0.51 * scale / steps + 1e-6)
