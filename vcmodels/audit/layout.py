"""How much more is decoded than a patch holds, and how many files it touches."""

from collections.abc import Iterator
from math import prod

from vcmodels.audit.base import AuditScene, Check, Finding, listed
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.volumes import Volume

MOST_DECODED = 16.0
"""Voxels for one of a patch. Chunks as long as the patch cost almost 8, twice as long 27."""
MOST_FILES = 1000
"""Touched by a patch."""


def amplification(patch: Shape, chunks: Shape, extent: Shape) -> float:
    """Voxels that are decoded for one of a patch at a random place, on average.

    Along an axis a patch of p voxels at a place that is equally likely for all offsets touches
    (p + c - 1) / c chunks of c voxels on average; no more than the volume has.
    """
    factors = 1.0
    for p, c, n in zip(patch, chunks, extent, strict=True):
        inside = min(p, n)
        decoded = min(inside + c - 1, -(-n // c) * c)
        factors *= decoded / inside
    return factors


def touched(patch: Shape, unit: Shape, extent: Shape) -> float:
    """Storage units that a patch at a random place touches, on average."""
    decoded = amplification(patch, unit, extent) * prod(map(min, patch, extent))
    return decoded / prod(unit)


def _find(scene: AuditScene) -> Iterator[Finding]:
    patch = scene.task.tr_params.patch_size
    costly: dict[tuple[Shape, str], list[tuple[str, str, float]]] = {}
    many: dict[Shape, list[tuple[str, str, float]]] = {}
    for volume in scene.volumes:
        for name, array in _arrays(volume):
            factor = amplification(patch, array.chunks, array.extent)
            files = touched(patch, array.storage_unit, array.extent)
            about = f"{volume.name} ({name})", volume.key
            if factor > MOST_DECODED:
                costly.setdefault((array.chunks, _in_shards(array)), []).append((*about, factor))
            if files > MOST_FILES:
                many.setdefault(array.storage_unit, []).append((*about, files))
    for (chunks, shards), rows in costly.items():
        worst = max(factor for *_, factor in rows)
        found = (
            f"{listed(name for name, *_ in rows)}: chunks of {_times(chunks)}{shards} decode "
            f"{worst:.3g} voxels for each one of a patch of {_times(patch)}"
        )
        better = triple(max(min(p // 2, 64), 1) for p in patch)
        factor = amplification(patch, better, (2**40,) * 3)
        remedy = (
            f"store a copy in chunks of {_times(better)} ({factor:.2g} voxels for one), or train on "
            'a larger "patch_size"'
        )
        figures = {
            "read_amplification": round(worst, 3),
            "chunks": list(chunks),
            "patch": list(patch),
        }
        yield Finding("warning", rows[0][1], found, remedy, figures)
    for unit, rows in many.items():
        worst = max(files for *_, files in rows)
        found = (
            f"{listed(name for name, *_ in rows)}: a patch touches about {worst:.0f} files of "
            f"{_times(unit)} voxels each"
        )
        remedy = "store a copy in larger chunks, or in shards"
        yield Finding("warning", rows[0][1], found, remedy, {"files_a_patch": round(worst)})


def _arrays(volume: TaskVolume) -> Iterator[tuple[str, Volume]]:
    yield from (("input", image) for image in volume.inputs)
    yield from volume.labels.items()


def _in_shards(array: Volume) -> str:
    return f" (in shards of {_times(array.shards)})" if array.shards else ""


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))


CHECK = Check("layout", "Chunks against the patch size", _find, is_cheap=True)
