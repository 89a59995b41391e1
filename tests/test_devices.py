"""What torch raises where memory is too small, and what becomes of it."""

import pytest
import torch
from torch import nn

from vcmodels.devices import CompiledOrEager, is_out_of_memory


def test_running_out_of_memory_is_known_by_what_torch_raises():
    with pytest.raises(RuntimeError, match="memory") as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(OSError("can't allocate memory"))


def test_a_compiled_network_that_runs_out_of_memory_is_not_tried_eagerly(monkeypatch):
    def compiled(_image):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(torch, "compile", lambda *_given, **_options: compiled)
    network = CompiledOrEager(nn.Identity(), pytest.fail)
    with pytest.raises(RuntimeError, match="memory"):
        network(torch.zeros(1))
    assert network.compiled is compiled
