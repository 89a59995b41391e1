"""500 damaged checkpoints in full are refused, and a save that is killed 200 times leaves a whole file."""

import hashlib
import random

import pytest
import torch

from tests.faults.forks import forks
from tests.faults.saving import save_for_ever
from vcmodels.checkpoint import SCHEMA, load_checkpoint, save_checkpoint
from vcmodels.errors import CheckpointError
from vcmodels.runs.run import TRAILER


def resealed(body: bytes) -> bytes:
    return body + TRAILER + hashlib.sha256(body).digest()


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Cut, changed or lengthened; a third of them under a checksum that is right again."""
    body = whole[: -len(TRAILER) - 32]
    at = rng.randrange(len(body))
    match rng.randrange(6):
        case 0:
            return whole[: rng.randrange(len(whole))]
        case 1:
            at = rng.randrange(len(whole))
            return whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        case 2:
            return whole + rng.randbytes(rng.randrange(1, 99))
        case 3:
            return rng.randbytes(rng.randrange(1, 4096))
        case 4:
            return resealed(body[:at])
        case _:
            return resealed(rng.randbytes(at))


def test_a_damaged_checkpoint_is_refused(tmp_path, count):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"schema": SCHEMA, "model": {"w": torch.arange(500.0)}})
    whole = path.read_bytes()
    rng = random.Random(0)
    for number in range(count(500)):
        path.write_bytes(damaged(rng, whole))
        with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
            pytest.fail(f"{number} loads: {load_checkpoint(path).state}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_save_killed_at_any_instant_leaves_a_whole_file(tmp_path, count):
    path, rng = tmp_path / "a.pth", random.Random(0)
    save_checkpoint(path, {"schema": SCHEMA, "n": -1})
    with forks(save_for_ever) as savers:
        for _ in range(count(200)):
            assert savers.kill({"path": str(path)}, rng.uniform(0, 0.1))
            assert load_checkpoint(path).state["n"] >= -1
