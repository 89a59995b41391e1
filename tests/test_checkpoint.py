import errno
import hashlib
import os

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.checkpoint import (
    SCHEMA,
    load_checkpoint,
    load_weights,
    previous_generation,
    save_checkpoint,
    strip_prefixes,
)
from vcmodels.errors import CheckpointError
from vcmodels.runs.run import TRAILER


def state(value: float = 1.0) -> dict:
    return {
        "schema": SCHEMA,
        "task": {"a": [1, "b", None]},
        "model": {"w": torch.full((50,), value)},
    }


def test_a_saved_state_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a.pth", state())
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.state["task"] == {"a": [1, "b", None]}
    assert torch.equal(loaded.state["model"]["w"], torch.ones(50))


def test_the_previous_generation_is_kept(tmp_path):
    path = tmp_path / "a.pth"
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(path, state(value))
    assert load_checkpoint(path).state["model"]["w"][0] == 3
    assert load_checkpoint(previous_generation(path)).state["model"]["w"][0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.previous.pth", "a.pth"]


def test_two_generations_stay_when_there_is_no_room_for_a_third(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    for value in (1.0, 2.0):
        save_checkpoint(path, state(value))

    def fsync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, state(3.0))
    kept = [load_checkpoint(p).state["model"]["w"][0] for p in (path, previous_generation(path))]
    assert kept == [2, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.previous.pth", "a.pth"]


def test_every_cut_and_every_flip_is_refused(tmp_path):
    path, damaged = tmp_path / "a.pth", tmp_path / "b.pth"
    save_checkpoint(path, state())
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(data), 40):
        damaged.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"b\.pth"):
            load_checkpoint(damaged)
    for position in rng.integers(0, len(data), 40):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"sha256 differs|no checksum"):
            load_checkpoint(damaged)


def test_the_previous_generation_is_offered_for_a_damaged_file(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"use .*a\.previous\.pth"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def test_a_pickled_call_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "a.pth", {"schema": SCHEMA, "model": Evil()})
    with pytest.raises(CheckpointError, match=r"refused: contains (posix|nt)\.mkdir, which"):
        load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("body", [b"", b"hello", b"PK\x03\x04", b"\x80\x02h\x05.", bytes(99)])
def test_other_bytes_under_a_right_checksum_are_refused_in_words(tmp_path, body):
    path = tmp_path / "a.pth"
    path.write_bytes(body + TRAILER + hashlib.sha256(body).digest())
    with pytest.raises(CheckpointError, match="refused: not a file of tensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: p.write_bytes(b""), "no checksum"),
        (lambda p: torch.save({"model": {}}, p), "no checksum"),
        (lambda p: save_checkpoint(p, {"schema": 99}), "schema 99"),
    ],
    ids=["missing", "directory", "empty", "foreign", "schema"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, found):
    make(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=found):
        load_checkpoint(tmp_path / "a.pth")


def test_wrapper_prefixes_are_stripped():
    weights = {"module._orig_mod.a.weight": torch.ones(1), "module._orig_mod.b": torch.ones(1)}
    assert set(strip_prefixes(weights)) == {"a.weight", "b"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: w.pop("bias"), "1 of 2 tensors do not fit the network: bias"),
        (lambda w: w.update(extra=torch.ones(1)), "extra"),
        (lambda w: w.update(bias=torch.ones(7)), "bias"),
        (lambda w: w["bias"].fill_(float("nan")), "bias holds NaN"),
    ],
)
def test_weights_load_all_or_none(change, found):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    weights = {name: value.clone() for name, value in other.state_dict().items()}
    change(weights)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=found):
        load_weights(network, weights, "a.pth")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
