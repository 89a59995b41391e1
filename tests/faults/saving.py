"""Writes that never end, for workers that are killed."""

from pathlib import Path

import torch

from vcmodels.checkpoint import SCHEMA, save_checkpoint


def save_for_ever(path: str) -> None:
    """Save one checkpoint over the other."""
    torch.set_num_threads(1)
    number = 0
    while True:
        number += 1
        state = {"schema": SCHEMA, "n": number, "w": torch.full((10**5,), float(number))}
        save_checkpoint(Path(path), state)
