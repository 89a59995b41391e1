"""What the table and the meshes of objects cost, and that memory does not grow with the volume.

    python benchmarks/objects_mesh.py [ROW ...] [--size 512] [--workers 2]

Rows: table, ply, simplified, precomputed. Each runs in a process of its own over balls of radius 20 in
a volume of SIZE^3 and in one of half its edge: 1,000 objects in 512^3, 125 in 256^3. A JSON line each:
seconds by the clock and of the CPUs, and by how much the peak of memory is above that after importing.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vcmodels.blockwise import Crew, Threads
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.objects import MeshRequest, measure_objects, write_meshes, write_table
from vcmodels.objects.table import ObjectArrays
from vcmodels.volumes import create_array, open_volume

ROWS = {
    "table": {},
    "ply": {"form": "ply"},
    "simplified": {"form": "ply", "reduction": 10},
    "precomputed": {"form": "precomputed"},
}
PITCH, RADIUS, CHUNK = 51, 20, (64, 64, 64)


def make_ids(folder: Path, size: int) -> str:
    """Balls on a grid, one voxel or some away from its points; written block by block."""
    shape = (size, size, size)
    array = create_array(str(folder), f"{size}", shape=shape, chunks=CHUNK, dtype=np.uint64)
    count = size // PITCH
    rng = np.random.default_rng(0)
    centres = (
        np.moveaxis(np.indices((count, count, count)), 0, -1).reshape(-1, 3) * PITCH + PITCH // 2
    )
    centres = centres + rng.integers(-4, 5, centres.shape)
    for box in blocks_of(Box((0, 0, 0), shape), CHUNK):
        ids = np.zeros(box.shape, np.uint64)
        low, high = np.array(box.origin) - RADIUS, np.array(box.end) + RADIUS
        for number in np.flatnonzero(((centres > low) & (centres < high)).all(1)):
            axes = np.ogrid[box.slices()]
            squares = [(a - c) ** 2 for a, c in zip(axes, centres[number], strict=True)]
            ids[sum(squares) <= RADIUS**2] = number + 1
        array.write(box, ids[None])
    return array.location


def measure(row: str, place: str, workers: int) -> dict[str, float]:
    """One row, in this process."""
    volume, crew = open_volume(place), Crew(Threads(workers))
    before, start, cpu = peak_mib(), time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if row == "table":
            table = measure_objects(ObjectArrays(volume), folder / "record", crew)
            assert table is not None
            write_table(table, folder / "objects.csv")
            triangles = 0
        else:
            written = write_meshes(MeshRequest(volume, folder / "m", **ROWS[row]), crew)
            assert written is not None
            table, triangles = written.table, written.triangles
            assert table is not None
    return {
        "objects": len(table.ids),
        "triangles": triangles,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "growth_mib": round(peak_mib() - before),
    }


def peak_mib() -> float:
    """The most memory this process has had so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[], metavar="ROW")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = options.rows or list(ROWS)
    if options.place:
        sys.stdout.write(json.dumps(measure(rows[0], options.place, options.workers)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in (options.size // 2, options.size):
            place = make_ids(Path(folder), size)
            for row in rows:
                words = [row, "--place", place, "--workers", str(options.workers)]
                ran = subprocess.run(
                    [sys.executable, __file__, *words], check=True, capture_output=True, text=True
                )
                found = {"row": row, "size": size, **json.loads(ran.stdout)}
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
