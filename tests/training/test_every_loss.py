"""With every loss of every kind: accumulated batches learn what the large one does."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.targets.test_every_kind import LOSSES, SHAPE, read
from vcmodels.config import parse_task
from vcmodels.samples.loader import Batch
from vcmodels.targets.base import Target
from vcmodels.training.learner import Learner

TASK = {
    "tr_params": {
        "model_name": "tiny", "patch_size": [8, 8, 8], "amp": "off", "recipe": "sgd_poly",
        "gradient_clip": 0.001, "ema_decay": None,
    },
    "model_config": {"f_maps": [4, 8]},
    "dataset_config": {
        "volume_paths": [{"input": "a.zarr", "it": "b.zarr"}],
        "targets": {"it": {"kind": "binary"}},
    },
}  # fmt: skip


class OneConvolution(nn.Module):
    """Logits in two resolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 3, padding=1)

    def forward(self, image):
        logits = self.conv(image)
        return {"it": (logits, F.interpolate(logits, (3, 4, 4)))}


def batch_of(case) -> Batch:
    """Three samples: one with all its voxels, one with a few, one with none."""
    labels, counts = map(list, zip(*(read(case, seed) for seed in (0, 1, 2)), strict=True))
    counts[1][..., 2:] = False
    counts[2][:] = False
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([0.7, 1.0, 0.2]).view(-1, 1, 1, 1, 1)
    image = torch.randn(3, 1, *SHAPE, generator=generator)
    return Batch(
        image, {"it": torch.stack(labels)}, {"it": torch.stack(counts)}, (), {"it": weight}
    )


def part(batch: Batch, start: int, end: int) -> Batch:
    cut = slice(start, end)
    named = ({"it": found["it"][cut]} for found in (batch.labels, batch.valid, batch.weight))
    labels, valid, weight = named
    return Batch(batch.image[cut], labels, valid, (), weight)


@pytest.mark.parametrize(
    ("case", "target"), LOSSES, ids=lambda v: v.loss if isinstance(v, Target) else str(v)
)
def test_accumulated_batches_learn_what_the_large_one_does(case, target):
    task, _ = parse_task(TASK, "test")
    torch.manual_seed(0)
    network, batch = OneConvolution(target.channels), batch_of(case)
    found = []
    for ends in ([3], [1, 2, 3]):
        learner = Learner(
            copy.deepcopy(network), {"it": target}, task.tr_params, torch.device("cpu")
        )
        micro = [part(batch, a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        result = learner.train_step(micro).read()
        found.append((result.losses["it"], result.gradient_norm, learner.network.conv.weight))
    assert found[0][1] > 0.001  # so that it is clipped
    assert found[1][:2] == pytest.approx(found[0][:2], rel=1e-4)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-4, atol=1e-7)
