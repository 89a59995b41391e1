"""What cannot be predicted is named and left out; everything else is written, and stays."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import Part, RunOptions, predict_on, predict_request
from vcmodels.inference.writing import MOST_RUNNING, Failures, PlaceError
from vcmodels.reporting import Silent

EXTENT = (40, 30, 28)
BLOCK = (8, 8, 8)


def noise():
    return np.random.default_rng(5).random(EXTENT, np.float32) + 1


class PatchPosition(nn.Module):
    """Depends on the place in the patch, and fails as told where a value is negative."""

    def __init__(self, failing=""):
        super().__init__()
        self.failing, self.calls, self.patches = failing, 0, 0

    def forward(self, image, targets):
        self.calls += 1
        ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).reshape(image[0, 0].shape)
        values = image[:, :1] + ramp.sin()
        if image.min() < 0:
            if self.failing == "raise":
                raise RuntimeError("no\nsuch kernel")
            if self.failing == "nan":
                values[0, 0, 0, 0, 0] = torch.nan
        self.patches += len(image)
        return dict.fromkeys(targets, (values,))


def files_of_blocks_touched_by(work, bad, patch=(6, 8, 10), overlap=0.3):
    """By brute force: the output chunks that share a patch with a box of the input."""
    from vcmodels.geometry.grid import PatchGrid

    grid = PatchGrid.covering(EXTENT, patch, (overlap,) * 3)
    lost = set()
    for index in np.ndindex(*grid.shape):
        box = Box(grid.origin(index), patch).intersect(Box((0, 0, 0), EXTENT))
        if box.intersect(bad).voxels:
            spans = [range(o // 8, -(-e // 8)) for o, e in zip(box.origin, box.end, strict=True)]
            lost |= {f"value/0/{z}/{y}/{x}" for z in spans[0] for y in spans[1] for x in spans[2]}
    return lost


def rewrite(path, data):
    """Bit rot, and a copy put back with its time: neither shows in a listing."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def damage(path):
    """Flip a byte; returns what was there."""
    whole = path.read_bytes()
    rewrite(path, whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    return whole


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    work = Workplace(tmp_path_factory.mktemp("reference"), noise(), (8, 8, 8), PatchPosition())
    work.run(overlap=0.3)
    return work.hashes()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("memory", [1.0, 4e-4], ids=["one unit", "columns"])
def test_a_damaged_chunk_costs_the_blocks_it_touches_alone(workplace, reference, memory, threads):
    work = workplace(noise(), network=PatchPosition())
    chunk = work.folder / "input.zarr/raw/2/1/3"
    whole = damage(chunk)
    settings = {"overlap": 0.3, "memory": memory, "num_dataloader_workers": threads}
    with pytest.raises(RunError, match=r"raw: chunk \(2, 1, 3\): .*raw/2/1/3.*tries them again"):
        work.run(**settings)
    lost = files_of_blocks_touched_by(work, Box((16, 8, 24), (8, 8, 4)))
    assert 8 < len(lost) < 40
    done = work.hashes()
    written = {name: done[name] for name in done if name.startswith("value/0/")}
    assert written == {name: reference[name] for name in reference if name not in lost}
    rewrite(chunk, whole)
    patches = work.network.patches
    report = work.run(**settings)
    assert report.is_complete
    assert work.hashes() == reference
    assert 0 < work.network.patches - patches < 2 / 3 * patches


def test_a_run_that_still_fails_writes_nothing_anew(workplace):
    work = workplace(noise(), network=PatchPosition())
    damage(work.folder / "input.zarr/raw/2/1/3")
    for _ in range(2):
        before = dict.fromkeys(work.hashes())
        before |= {
            name: (work.folder / "out/net.zarr" / name).stat().st_mtime_ns
            for name in before
            if name.startswith("value")
        }
        patches = work.network.patches
        with pytest.raises(RunError, match="blocks of output are not written"):
            work.run(overlap=0.3)
    after = {
        n: (work.folder / "out/net.zarr" / n).stat().st_mtime_ns
        for n in before
        if n.startswith("value")
    }
    assert after == {n: t for n, t in before.items() if n.startswith("value")}
    assert work.network.patches - patches < patches


@pytest.mark.parametrize("failing", ["raise", "nan"])
def test_a_patch_on_which_the_network_fails_is_named_and_the_rest_is_there(workplace, failing):
    values = noise()
    values[20, 3, 4] = -1
    whole = workplace(values, network=PatchPosition())
    whole.run(overlap=0.3)
    work = workplace(values, network=PatchPosition(failing))
    message = "the network failed .no such kernel" if failing == "raise" else "NaN or infinity"
    with pytest.raises(RunError, match=rf"patch at \(z, y, x\) = \(\d+, 0, 0\): .*{message}"):
        work.run(overlap=0.3)
    lost = files_of_blocks_touched_by(work, Box((20, 3, 4), (1, 1, 1)))
    expected = {n: h for n, h in whole.hashes().items() if n.startswith("value") and n not in lost}
    assert {n: h for n, h in work.hashes().items() if n.startswith("value")} == expected
    work.network.failing = ""
    assert work.run(overlap=0.3).is_complete
    assert work.hashes() == whole.hashes()


def test_a_failure_that_does_not_come_again_costs_nothing(workplace, reference):
    class Once(PatchPosition):
        def forward(self, image, targets):
            if self.calls == 5:
                self.calls += 1
                raise RuntimeError("once")
            return super().forward(image, targets)

    work = workplace(noise(), network=Once())
    assert work.run(overlap=0.3).is_complete
    assert work.hashes() == reference


def test_a_chunk_is_read_twice_before_it_is_given_up(workplace, reference, monkeypatch):
    from vcmodels.volumes import ChunkError, Volume

    read, failed = Volume.read, []

    def flaky(self, box, *rest):
        if not failed and self.key.endswith("input_path"):
            failed.append(box)
            raise ChunkError("raw", "as a disk with a cold", "")
        return read(self, box, *rest)

    monkeypatch.setattr(Volume, "read", flaky)
    work = workplace(noise(), network=PatchPosition())
    assert work.run(overlap=0.3).is_complete
    assert failed
    assert work.hashes() == reference


def test_a_value_that_is_not_finite_costs_its_chunk_alone(workplace):
    values = noise()
    values[20, 3, 4] = np.inf
    work = workplace(values, network=PatchPosition())
    with pytest.raises(RunError, match=r"the input holds inf at \(z, y, x\) = \(20, 3, 4\)"):
        work.run(overlap=0)
    assert (work.folder / "out/net.zarr/value/0/4/3/3").exists()


def test_a_part_that_fails_leaves_the_others_complete(workplace, reference):
    work = workplace(noise(), network=PatchPosition())
    chunk = work.folder / "input.zarr/raw/0/0/0"
    whole = damage(chunk)
    task = work.task(overlap=0.3, threads=1)
    with pytest.raises(RunError, match=r"chunk \(0, 0, 0\)"):
        predict_on(work.request(task), ["cpu", "cpu"])
    rewrite(chunk, whole)
    for number in range(2):
        report = predict_request(work.request(task), RunOptions(part=Part(number, 2)))
    assert report.is_complete
    assert work.hashes() == reference


def test_when_nothing_works_any_more_it_stops():
    reporter = Silent()
    failures = Failures(reporter)
    block = Box((0, 0, 0), BLOCK)
    for number in range(MOST_RUNNING - 1):
        failures.add(PlaceError("a", str(number)), [block])
        failures.add(PlaceError("a", str(number)), [block])
    assert len(reporter.lines) == MOST_RUNNING - 1
    failures.worked()
    for number in range(MOST_RUNNING - 1):
        failures.add(PlaceError("b", str(number)), [block])
    with pytest.raises(RunError, match="64 places failed one after the other"):
        failures.add(PlaceError("b", "last"), [block])
    assert "1 blocks of output" in str(failures.error("out"))
