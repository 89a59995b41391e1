"""Losses of the first steps by each recipe, so that a change of what is learnt is noticed.

After a change that is meant: WRITE_GOLDENS=1 .venv/bin/pytest tests/training/test_goldens.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

from vcmodels.config import parse_task
from vcmodels.samples.loader import Batch
from vcmodels.training.learner import Learner

GOLDENS = Path(__file__).with_name("golden_losses.json")
PATCH, STEPS = (8, 8, 16), 6
CASES = {
    "adamw_constant": {},
    "adamw_poly": {"recipe": "adamw_poly"},
    "adamw_cosine": {"recipe": "adamw_cosine"},
    "sgd_poly": {"recipe": "sgd_poly"},
    "mixup": {"mixup": {"alpha": 1.0}, "gradient_accumulation": 2},
    "manifold": {"mixup": {"alpha": 1.0, "manifold": True}},
    "uncertainty": {"loss_balance": "uncertainty"},
    "frozen": {"freeze": ["encoder"], "freeze_epochs": 1},
    "accumulated": {"gradient_accumulation": 2},
    "clipped": {"gradient_clip": 0.25},
}


def batch(step: int, number: int) -> Batch:
    """A wavy sheet, its normals, and a noisy image of it; voxels count in a part of each sample."""
    generator = torch.Generator().manual_seed(100 * step + number)
    phase = 6 * torch.rand(2, 1, 1, 1, 1, generator=generator)
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in PATCH), indexing="ij")
    height = torch.sin(z / 2 + y / 5 + x / 9 + phase)
    image = height + 0.3 * torch.randn(2, 1, *PATCH, generator=generator)
    normals = torch.tensor([1 / 2, 1 / 5, 1 / 9]).view(1, 3, 1, 1, 1).expand(2, 3, *PATCH)
    labels = {"sheet": (height > 0.5).float(), "normals": normals / normals.norm(dim=1)[:, None]}
    valid = z + phase > 3
    return Batch(image, labels, {"sheet": valid, "normals": valid & (y > 1)}, ())


def losses(settings: dict) -> list[dict[str, float]]:
    """The losses of the first steps of a tiny network, and the validation of its average."""
    block = {
        "tr_params": {
            "model_name": "tiny", "patch_size": list(PATCH), "amp": "off", "max_epoch": 2,
            "max_steps_per_epoch": STEPS // 2, "warmup_steps": 1, **settings,
        },
        "model_config": {"f_maps": [4, 6, 8], "deep_supervision": True},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "sheet": "b.zarr", "normals": "c.zarr"}],
            "targets": {"sheet": {"kind": "binary"}, "normals": {"kind": "normals"}},
        },
    }  # fmt: skip
    task, _ = parse_task(block, "golden")
    torch.manual_seed(0)
    network = task.model.build(1, task.heads, PATCH, (1.0, 1.0, 1.0))
    learner = Learner(network, task.dataset_config.targets, task.tr_params, torch.device("cpu"))
    micro = range(task.tr_params.gradient_accumulation)
    found = []
    for step in range(STEPS):
        result = learner.train_step([batch(step, number) for number in micro]).read()
        found.append({**result.losses, "norm": result.gradient_norm, "rate": result.rate})
    with torch.no_grad():
        outputs = learner.run(learner.best_network, batch(STEPS, 0))
    found.append({name: float(maps[0].square().mean()) for name, maps in outputs.items()})
    return [{name: float(f"{value:.6g}") for name, value in step.items()} for step in found]


def as_text(goldens: dict[str, list]) -> str:
    """A line for each step."""
    cases = [
        f"{json.dumps(case)}: [\n " + ",\n ".join(json.dumps(step) for step in steps) + "\n]"
        for case, steps in goldens.items()
    ]
    return "{\n" + ",\n".join(cases) + "\n}\n"


@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_are_as_they_were(case):
    if os.environ.get("WRITE_GOLDENS"):
        goldens = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
        kept = {name: goldens[name] for name in CASES if name in goldens} | {
            case: losses(CASES[case])
        }
        GOLDENS.write_text(as_text(kept))
    wanted = json.loads(GOLDENS.read_text())[case]
    for step, (now, before) in enumerate(zip(losses(CASES[case]), wanted, strict=True)):
        # Rounding differs between processors and releases of torch, and grows from step to step.
        assert now == pytest.approx(before, rel=2e-3), f"step {step}"


def test_every_golden_has_a_case_and_differs_from_the_others():
    goldens = json.loads(GOLDENS.read_text())
    assert list(goldens) == list(CASES)
    assert len({json.dumps(steps) for steps in goldens.values()}) == len(CASES)
