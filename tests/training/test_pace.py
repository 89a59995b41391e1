"""How fast an epoch went: by a clock that is set by hand."""

from types import SimpleNamespace

import pytest
import torch

from vcmodels.config.train_params import TrainingParams
from vcmodels.training import progress
from vcmodels.training.progress import Pace, forecast
from vcmodels.training.start import compile_pays


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


def test_the_first_step_does_not_count_for_what_a_step_takes(clock):
    epoch = Pace(torch.device("cpu"), begun=clock[0])
    clock[0] += 60  # compiling
    epoch.end_step()
    assert epoch.step_seconds() is None
    for _ in range(2):
        clock[0] += 4
        assert not epoch.is_settled
        epoch.end_step()
    assert epoch.step_seconds() == 4
    assert epoch.is_settled


@pytest.mark.parametrize(
    ("left", "end"),
    [
        (600.0, "ends by max_minutes in 10 min"),
        (59.0, "ends by max_minutes in 59 s"),
        (float("inf"), "20 epochs in about 19 min, without validation"),
    ],
)
def test_a_forecast_says_the_pace_an_epoch_and_what_ends_the_run(left, end):
    settings = TrainingParams.model_validate(
        {"model_name": "m", "max_epoch": 20, "max_steps_per_epoch": 50}
    )
    words = forecast(50, 1.2, 2, settings, left)
    assert words == f"1.7 patches/s; an epoch of 50 steps in about 60 s; {end}"


@pytest.mark.parametrize(
    ("steps", "given", "pays"),
    [
        (300, {}, True),
        (299, {}, False),
        (10_000, {"max_minutes": 8}, False),
        (10_000, {"max_minutes": 15}, True),
        (10_000, {"max_minutes": 8, "compile": True}, True),
        (10_000, {"max_minutes": 60, "compile": False}, False),
    ],
    ids=str,
)
def test_a_run_is_compiled_when_its_steps_and_its_time_repay_that(steps, given, pays):
    settings = TrainingParams.model_validate({"model_name": "m", **given})
    assert compile_pays(SimpleNamespace(settings=settings, total_steps=steps)) is pays
