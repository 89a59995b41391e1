"""Trainings of several processes, started as a person would: with torchrun."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import RefusedError
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.training.world import World, local_device

REPOSITORY = Path(__file__).parents[2]


def with_folder(task: dict, folder: Path, **settings) -> dict:
    copy = json.loads(json.dumps(task))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), "threads": 1, **settings}
    return copy


def start(task: dict, folder: Path, *words: str, processes: int = 2) -> subprocess.Popen:
    """A training of several processes on the CPU, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    file = folder / "task.json"
    file.write_text(json.dumps(task))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(REPOSITORY / "train.py"), str(file), *words,
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def state_of(task: dict) -> dict:
    return load_checkpoint(Path(task["tr_params"]["ckpt_out_base"]) / "tiny_last.pth").state


def wait_for_step(task: dict, step: int, running: subprocess.Popen) -> None:
    """Until a checkpoint holds so many steps."""
    last = Path(task["tr_params"]["ckpt_out_base"]) / "tiny_last.pth"
    for _ in range(3000):
        assert running.poll() is None, running.communicate()
        if last.exists() and state_of(task)["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def test_the_share_of_each_process_is_every_number_once():
    for count in (0, 1, 2, 3, 7, 8):
        for size in (1, 2, 3, 8):
            shares = [World(rank, size).share(range(5, 5 + count)) for rank in range(size)]
            assert [n for share in shares for n in share] == list(range(5, 5 + count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_learn_what_one_does(sheet_task, tmp_path):
    """Weights, validation, and the losses that say what is drawn next; 3 samples for 2 of them."""
    sheet_task["dataset_config"]["sampling"] = {"foreground": 0, "hard": 0.8}
    settings = {
        "batch_size": 3,
        "gradient_accumulation": 1,
        "loss_balance": "uncertainty",
        "amp": "off",
        "recipe": "sgd_poly",  # Adam makes whole steps of what rounding leaves of a gradient near 0
    }
    one = with_folder(sheet_task, tmp_path / "one", **settings)
    assert train(parse_task(one, "task.json")[0], reporter=Silent()) == 0
    two = with_folder(sheet_task, tmp_path / "two", **settings)
    running = start(two, tmp_path / "job")
    out, err = running.communicate(timeout=800)
    assert running.returncode == 0, err
    assert out.count("epoch 1/") == 1
    assert out.count("curves: ") == 2  # before the first step and at the end
    wanted, found = state_of(one), state_of(two)
    for part in ("model", "ema", "balance"):
        for name, value in wanted[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found["hard"]["losses"], wanted["hard"]["losses"], rtol=1e-3, atol=1e-4, equal_nan=True
    )
    assert found["counters"]["best"] == pytest.approx(wanted["counters"]["best"], rel=1e-4)
    assert found["split"].keys() == wanted["split"].keys()
    lines = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*lines, strict=True):
        for key in a.keys() & b.keys():
            if key.startswith(("val/", "epoch/")):
                assert b[key] == pytest.approx(a[key], rel=1e-2, abs=1e-3), key


def test_a_lost_process_ends_all_and_one_goes_on_alone(sheet_task, tmp_path):
    task = with_folder(sheet_task, tmp_path / "run", max_epoch=10_000)
    running = start(task, tmp_path / "job")
    wait_for_step(task, 1, running)
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(running.pid)], capture_output=True, text=True
    ).stdout.splitlines()  # fmt: skip
    (victim,) = [line.split()[0] for line in children if "train.py" in line][-1:]
    os.kill(int(victim), signal.SIGKILL)
    _, err = running.communicate(timeout=800)
    assert running.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [re.sub(r"process \d", "process N", line) for line in lines] == [
        "error: process N of 2: another process of this training has ended; see what it said; "
        "the same command continues from the last checkpoint"
    ]
    step = state_of(task)["step"]
    alone = with_folder(
        sheet_task, tmp_path / "run", max_epoch=state_of(task)["epoch"] + 2
    )  # it may have ended before a validation
    reporter = Silent()
    assert train(parse_task(alone, "task.json")[0], reporter=reporter) == 0
    assert any("processes 1 instead of 2" in line for line in reporter.lines)
    assert state_of(task)["step"] > step


def test_a_signal_stops_all_at_the_same_step_with_the_state_saved(sheet_task, tmp_path):
    task = with_folder(sheet_task, tmp_path / "run", max_epoch=10_000, max_steps_per_epoch=50)
    running = start(task, tmp_path / "job")
    wait_for_step(task, 50, running)
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGTERM)
    out, _ = running.communicate(timeout=800)
    stopped = re.findall(r"stopped at step (\d+)", out)
    assert len(stopped) == 1
    assert state_of(task)["step"] == int(stopped[0]) > 50


def test_what_is_refused_is_said_once(sheet_task, tmp_path):
    task = with_folder(sheet_task, tmp_path / "run", batch_size=1)
    running = start(task, tmp_path / "job", processes=2)
    _, err = running.communicate(timeout=800)
    assert running.returncode != 0
    assert err.count("error: tr_params.batch_size: a step has 1 samples, for 2 processes") == 1
    assert not (tmp_path / "run").exists()


def test_a_world_without_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        RefusedError, match=r"WORLD_SIZE=2: .*; start several processes with torchr"
    ):
        World.join(torch.device("cpu"))


@pytest.mark.parametrize(
    ("wanted", "found", "device"),
    [("auto", 0, "cpu"), ("auto", 4, "cuda:2"), ("cuda", 3, "cuda:2"), (-1, 4, "cpu")],
)
def test_each_process_of_a_host_has_a_device_of_its_own(monkeypatch, wanted, found, device):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert local_device(wanted) == device


@pytest.mark.parametrize(("wanted", "found"), [("auto", 2), ("cuda", 0), ("cuda:1", 4), (0, 4)])
def test_processes_do_not_share_a_cuda_device(monkeypatch, wanted, found):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(RefusedError, match=r"tr_params\.device: .*3 processes on this host"):
        local_device(wanted)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RefusedError, match=rf"listens on port {port}; .* --master-port"):
            World.join(torch.device("cpu"))
