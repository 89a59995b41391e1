"""The dry run's figures, against what a real run then does."""

import json
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr

from vcmodels.errors import VolumeError
from vcmodels.geometry.grid import tiles
from vcmodels.inference import Part
from vcmodels.inference.cost import _size
from vcmodels.results import census
from vcmodels.volumes import Volume, open_volume


def noise(shape):
    return np.random.default_rng(0).random(shape, np.float32) + 1


def scattered(shape):
    values = np.zeros(shape, np.float32)
    values[:14, :8, :18] = values[28:35, 16:24, 36:] = 1  # whole chunks
    return values


@pytest.fixture
def reads(monkeypatch):
    """Chunks decoded, by array, as zarr decodes those that a box touches and that are stored."""
    counted, read = Counter(), Volume.read

    def counting(self, box, *rest, **more):
        inside = box.intersect(self.box)
        counted[self.location] += sum(self.is_stored(part) for part in tiles(inside, self.chunks))
        return read(self, box, *rest, **more)

    monkeypatch.setattr(Volume, "read", counting)
    return counted


CASES = {
    "one unit": {},
    "units": {"memory": 6e-4, "overlap": 0.5},
    "levels": {"pyramid": "auto", "overlap": 0.5},
    "odd chunks": {"pyramid": 3, "output_chunks": [7, 9, 11]},
    "shards": {"pyramid": 3, "output_zarr_format": 3, "output_shards": [16, 8, 16]},
    "a box": {"bbox": [[5, 23], [7, 19], [9, 40]], "pyramid": 2},
    "background": {"skip": {"below": 0.5}, "memory": 6e-4},
}


@pytest.mark.parametrize("make", [noise, scattered])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_chunks_and_bytes_are_those_of_the_run(workplace, reads, settings, make):
    work = workplace(make((40, 30, 50)), (7, 8, 9))
    plan = work.run(options={"dry_run": True}, **settings).estimate
    assert not reads
    work.run(**settings)
    levels = sorted(Path(work.folder, "out/net.zarr/value").glob("[0-9]"))
    arrays = [open_volume(str(level), key="output", channels="any") for level in levels]
    assert plan.traffic.chunks_read == reads[f"{work.store}/raw"]
    assert plan.traffic.bytes_read == plan.traffic.chunks_read * 7 * 8 * 9 * 4
    written = [
        sum(array.read(part).any() for part in tiles(array.box, array.chunks)) for array in arrays
    ]
    # A chunk of zeros is not stored, which the plan cannot know: `below` finds that while it reads.
    is_exact = "skip" not in settings
    if is_exact:
        assert list(plan.traffic.chunks_written) == written
    assert all(a >= b for a, b in zip(plan.traffic.chunks_written, written, strict=True))
    sizes = [
        n * prod(a.chunks) * 4 for n, a in zip(plan.traffic.chunks_written, arrays, strict=True)
    ]
    assert plan.traffic.bytes_written == sum(sizes)
    assert plan.traffic.bytes_reread == sum(sizes[:-1])
    if is_exact and "output_shards" not in settings:
        stored = [
            census(open_volume(f"{work.folder}/out/net.zarr/value/{n}", key="output"))["chunks"]
            for n in range(len(arrays))
        ]
        assert stored == written


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 kB"), (1234, "1.23 kB"), (999_600, "1 MB"), (5.25e9, "5.25 GB"), (2e15, "2e+03 TB")],
)
def test_sizes_are_told_in_three_digits(count, text):
    assert _size(count) == text


def test_uncompressed_files_have_the_bytes_that_were_planned(workplace, monkeypatch):
    create = zarr.create_array
    monkeypatch.setattr(
        zarr,
        "create_array",
        lambda store, **more: create(store, **more | {"compressors": None, "filters": None}),
    )
    work = workplace(noise((24, 24, 32)))
    settings = {"pyramid": "auto", "overlap": 0.5}
    plan = work.run(options={"dry_run": True}, **settings).estimate
    work.run(**settings)
    root = work.folder / "out/net.zarr"
    found = sum((root / name).stat().st_size for name in work.hashes())
    assert found == pytest.approx(plan.traffic.bytes_written, rel=0.1)


def test_a_volume_of_any_size_is_planned_by_what_is_stored(workplace):
    work = workplace(noise((16, 16, 16)))
    metadata = Path(work.store, "raw", ".zarray")
    stored = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(stored | {"shape": [20_000] * 3}))
    plan = work.run(output_chunks=[64] * 3, options={"dry_run": True}).estimate
    assert plan.traffic.chunks_read == 8
    metadata.write_text(json.dumps(stored | {"shape": [10**12] * 3}))
    with pytest.raises(VolumeError, match=r"has shape \(1000000000000, .*correct its metadata"):
        work.run(options={"dry_run": True})


def test_parts_plan_their_own_share(workplace):
    work = workplace(noise((40, 30, 50)))
    plans = [work.run(options={"dry_run": True, "part": Part(n, 2)}).estimate for n in range(2)]
    whole = work.run(options={"dry_run": True}).estimate
    assert sum(plan.patches for plan in plans) > whole.patches
    parts = [plan.traffic.bytes_written for plan in plans]
    assert sum(parts) == whole.traffic.bytes_written
    assert max(parts) < 0.6 * sum(parts)
