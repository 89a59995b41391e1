"""The patch finder of vesuvius 0.2.4, run by an interpreter that has it (`patch_finding.py --peer`).

    python benchmarks/vesuvius_patches.py PARAMETERS

PARAMETERS is JSON: the label (a Zarr v2 array), patch, share and ratio. The answer is JSON as well:
CPU and wall seconds of finding alone, without imports, the reads of chunk data, and the origins.
"""

import json
import sys
import time
from collections.abc import Iterator, MutableMapping

import zarr  # version 2
from vesuvius.models.datasets.find_valid_patches import find_valid_patches  # pyright: ignore


class CountingStore(MutableMapping):
    """Counts the chunks that are read through it."""

    def __init__(self, inner: MutableMapping) -> None:
        self.inner, self.reads = inner, 0

    def __getitem__(self, key: str) -> bytes:
        value = self.inner[key]
        self.reads += not key.rsplit("/", 1)[-1].startswith(".")
        return value

    def __setitem__(self, key: str, value: bytes) -> None:
        raise NotImplementedError

    def __delitem__(self, key: str) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def main() -> None:
    """Find the patches of level 0, which is the array itself."""
    given = json.loads(sys.argv[1])
    store = CountingStore(zarr.DirectoryStore(given["label"]))  # pyright: ignore
    array = zarr.open(store, mode="r")
    cpu, wall = time.process_time(), time.perf_counter()
    found = find_valid_patches(
        [array],
        ["labels"],
        patch_size=tuple(given["patch"]),
        bbox_threshold=given["share"],
        label_threshold=given["ratio"],
        valid_patch_find_resolution=0,
    )["fg_patches"]
    answer = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "reads": store.reads,
        "patches": sorted([int(v) for v in patch["start_pos"]] for patch in found),
    }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
