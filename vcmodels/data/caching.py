"""How many decoded chunks the readers of a training may keep."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from vcmodels.config import Task
from vcmodels.data.volumes import TaskVolume
from vcmodels.volumes import Volume
from vcmodels.volumes.chunk_cache import CachedVolume, ChunkCache

AUTO_BYTES = 500_000_000
"""In all processes together: memory must not grow with the volumes unless someone asks for it."""


def cached_volumes(task: Task, volumes: Sequence[TaskVolume]) -> tuple[TaskVolume, ...]:
    """The volumes, read through a cache that they share if `chunk_cache_gb` asks for one.

    Each process that gets a copy fills one of its own.
    """
    budget = worker_budget(task, volumes)
    if not budget:
        return tuple(volumes)
    cache = ChunkCache(budget)

    def cached(volume: Volume) -> Volume:
        return CachedVolume.of(volume, cache)

    return tuple(
        replace(
            volume,
            inputs=tuple(map(cached, volume.inputs)),
            labels={name: cached(label) for name, label in volume.labels.items()},
        )
        for volume in volumes
    )


def worker_budget(task: Task, volumes: Sequence[TaskVolume]) -> int:
    """Bytes that each reading process may keep.

    Patches come in random order: of volumes that do not fit, a cache would serve just the share that
    does, so `auto` keeps all or nothing.
    """
    settings = task.tr_params
    # torchrun tells how many trainers share this host's memory.
    trainers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes = trainers * max(settings.num_dataloader_workers, 1)
    if settings.chunk_cache_gb != "auto":
        return int(settings.chunk_cache_gb * 1e9) // processes
    needed = _decoded_bytes(volumes)
    return needed if processes * needed <= AUTO_BYTES else 0


def _decoded_bytes(volumes: Iterable[TaskVolume]) -> int:
    """Of all arrays, those that several volumes share counted once."""
    arrays = {
        array.location: array.channels * prod(array.extent) * array.dtype.itemsize
        for volume in volumes
        for array in (*volume.inputs, *volume.labels.values())
    }
    return sum(arrays.values())
