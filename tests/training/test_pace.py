"""How fast an epoch went: by a clock that is set by hand."""

from types import SimpleNamespace

import pytest
import torch

from vcmodels.training import progress
from vcmodels.training.progress import Pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_patches_a_second_and_the_share_of_waiting(clock):
    epoch = Pace(torch.device("cpu"), begun=clock[0])
    epoch.steps, epoch.waited = 5, 2.5
    clock[0] += 10
    assert epoch.words(patches_per_step=4) == "2 patches/s, 25 % waiting"
    epoch.end_steps()
    clock[0] += 50  # validation and saving
    assert epoch.scalars(patches_per_step=4) == {
        "speed/patches_per_s": 2.0,
        "speed/data_wait": 0.25,
        "speed/epoch_minutes": 1.0,
    }
