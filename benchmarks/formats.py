"""What the import of a file costs next to reading it, and that memory does not grow with it.

    python benchmarks/formats.py [KIND ...] [--planes 512] [--edge 512] [--folder DIR]

Kinds: nii.gz (a made CT of 16 bits), nii, tif (slices, deflated), nrrd (gzip), h5 (chunked, gzip).
Each is imported in a process of its own, and read by its library alone in another. A JSON line each:
seconds by the clock and of the CPUs of both, their ratios, and by how much the peak of memory is above
that after importing the packages, in slabs of 64 planes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("nii.gz", "nii", "tif", "nrrd", "h5")
SLAB = 64


def make(place: Path, kind: str, planes: int, edge: int) -> None:
    """Write a made CT: air, a body of soft tissue, noise in 5 bits."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:edge, :edge]
    body = ((y - edge / 2) ** 2 + (x - edge / 2) ** 2 < (0.4 * edge) ** 2) * 1040 - 1000
    voxels = np.empty((planes, edge, edge), np.int16)
    for plane in voxels:
        plane[:] = body + rng.normal(0, 10, (edge, edge))
    if kind in ("nii.gz", "nii"):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(voxels.T, np.diag([0.7, 0.7, 1, 1])), place)
    elif kind == "tif":
        import tifffile

        tifffile.imwrite(place, voxels, compression="zlib", photometric="minisblack")
    elif kind == "nrrd":
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(place), True)
    else:
        import h5py

        with h5py.File(place, "w") as file:
            file.create_dataset("ct", data=voxels, chunks=(16, 64, 64), compression="gzip")


def read_alone(place: Path) -> None:
    """All voxels, in memory, by the library of the format."""
    if ".nii" in place.name:
        import nibabel

        np.asarray(nibabel.load(place).dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    elif place.suffix == ".tif":
        import tifffile

        tifffile.imread(place)
    elif place.suffix == ".nrrd":
        import SimpleITK

        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(place)))
    else:
        import h5py

        with h5py.File(place) as file:
            file["ct"][...]  # pyright: ignore[reportIndexIssue]


def measure(way: str, place: Path) -> dict[str, float]:
    """One way, in this process, after the packages are there."""
    import h5py
    import nibabel
    import SimpleITK
    import tifffile

    from vcmodels.formats.imported import imported
    from vcmodels.reporting import Silent

    del h5py, nibabel, SimpleITK, tifffile
    before, start, cpu = peak_mib(), time.perf_counter(), cpu_seconds()
    if way == "import":
        imported(str(place), "input", Silent())
    else:
        read_alone(place)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": cpu_seconds() - cpu,
        "mib": peak_mib() - before,
    }


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    """The most memory that this process has had (`VmHWM`)."""
    # Not ru_maxrss: that starts with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def compare(kind: str, folder: Path, planes: int, edge: int) -> dict[str, Any]:
    """Both ways for a file of a kind."""
    place = folder / f"{planes}x{edge}.{kind}"
    if not place.exists():
        make(place, kind, planes, edge)
    found = {}
    for way in ("read", "import"):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            words = [sys.executable, __file__, "--way", way, "--place", str(place)]
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(words, env=environment, capture_output=True, check=True)
            found[way] = json.loads(done.stdout)
    slab = SLAB * edge * edge * 2 / 2**20
    return {
        "kind": kind,
        "voxels_mib": round(planes * edge * edge * 2 / 2**20),
        "file_mib": round(place.stat().st_size / 2**20),
        **{
            f"{way}_{key}": round(found[way][key], 2) for way in found for key in ("seconds", "cpu")
        },
        "ratio": round(found["import"]["seconds"] / found["read"]["seconds"], 2),
        "slabs": round(found["import"]["mib"] / slab, 2),
    }


def main() -> None:
    """Run the kinds that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--planes", type=int, default=512)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way")
    parser.add_argument("--place", type=Path)
    given = parser.parse_args()
    if given.way:
        sys.stdout.write(json.dumps(measure(given.way, given.place)))
        return
    with tempfile.TemporaryDirectory() as text:
        folder = given.folder or Path(text)
        for kind in given.kinds:
            sys.stdout.write(json.dumps(compare(kind, folder, given.planes, given.edge)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
