"""What torch raises where memory is too small, and what becomes of it."""

import pytest
import torch
from torch import nn

from vcmodels.devices import CompiledOrEager, _local_cluster, is_out_of_memory
from vcmodels.errors import RefusedError


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


def test_a_local_cluster_whose_process_dies_as_it_starts_is_started_again(monkeypatch):
    tries = []

    class Cluster:
        def __init__(self, **manner):
            tries.append(manner["n_workers"])
            if len(tries) < 3:
                raise RuntimeError("Nanny failed to start.")

    class Distributed:
        LocalCluster = Cluster

    assert isinstance(_local_cluster(Distributed, 2), Cluster)
    assert tries == [2, 2, 2]
    tries[:] = []
    monkeypatch.setattr("vcmodels.devices._CLUSTER_TRIES", 2)
    with pytest.raises(RefusedError, match=r"--dask: processes died .* 2 times \(Nanny failed"):
        _local_cluster(Distributed, 2)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    ],
)
def test_what_libraries_say_when_memory_is_too_small(text):
    assert is_out_of_memory(RuntimeError(text))
