import itertools
import json
from collections import Counter
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.errors import OutputError, RunError
from vcmodels.geometry.grid import patch_origins
from vcmodels.inference import predict_request
from vcmodels.inference.job import prepare
from vcmodels.inference.network import Forward
from vcmodels.reporting import Silent
from vcmodels.volumes import Volume, WritableArray


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


class PatchPosition(nn.Module):
    """A network whose output depends on where in its patch a voxel is: blending must show."""

    def forward(self, image, targets):
        ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).reshape(image[0, 0].shape)
        return {name: (image[:, :1] * 3 + ramp.sin(),) for name in targets}


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("extent", [(20, 21, 22), (3, 30, 11), (1, 1, 1), (6, 8, 10)], ids=str)
def test_identity_network_gives_the_input_back(workplace, extent, overlap):
    work = workplace(noise(extent))
    work.run(overlap=overlap)
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6, rtol=0)


def test_a_constant_and_a_ramp_have_no_seam(workplace):
    ramp = np.add.outer(np.add.outer(np.arange(20), 3 * np.arange(23)), 7 * np.arange(26))
    for values in (np.full((20, 23, 26), 5, np.float32), ramp.astype(np.float32)):
        work = workplace(values)
        work.run(overlap=0.4)
        np.testing.assert_allclose(work.read(), values, rtol=3e-7, atol=1e-6)


def test_units_and_workers_do_not_change_a_bit(workplace):
    hashes, columns = [], []
    for settings in (
        {"memory": 4e-4},
        {"memory": 6e-4, "num_dataloader_workers": 0},
        {"memory": 1.0, "num_dataloader_workers": 5},
    ):
        work = workplace(noise((20, 37, 41)), network=PatchPosition())
        plan = work.run(overlap=0.3, options={"dry_run": True}, **settings).estimate
        columns.append(plan.column)
        work.run(overlap=0.3, **settings)
        hashes.append(work.hashes())
    assert len(set(columns)) == 3
    assert len(hashes[0]) == 3 * 5 * 6
    assert hashes[0] == hashes[1] == hashes[2]


def test_a_box_gives_what_the_whole_run_gives_there(workplace):
    work = workplace(noise((20, 37, 31)), network=PatchPosition())
    work.run(overlap=0.3)
    whole = work.read()
    work.run(overlap=0.3, bbox=[[5, 17], [3, 30], [9, 28]], options={"overwrite": True})
    part = work.read()
    inside = np.s_[5:17, 3:30, 9:28]
    np.testing.assert_array_equal(part[inside], whole[inside])
    part[inside] = 0
    assert not part.any()


def test_every_chunk_is_written_once_and_read_about_once(workplace, monkeypatch):
    written, read = Counter(), Counter()
    write, fetch = WritableArray.write, Volume.read

    def blocks_of(box):
        spans = (range(o // 8, -(-e // 8)) for o, e in zip(box.origin, box.end, strict=True))
        return list(itertools.product(*spans))

    def counting_write(self, box, data):
        written.update(blocks_of(box))
        write(self, box, data)

    def counting_read(self, box, *args, **kwargs):
        read.update(blocks_of(box))
        return fetch(self, box, *args, **kwargs)

    work = workplace(noise((40, 37, 41)))
    monkeypatch.setattr(WritableArray, "write", counting_write)
    monkeypatch.setattr(Volume, "read", counting_read)
    work.run(overlap=0.5)
    assert len(written) == len(read) == 5 * 5 * 6
    assert set(written.values()) == set(read.values()) == {1}


def sparse():
    """Three of 4 x 5 x 6 chunks are stored: two neighbours, and one alone in the far corner."""
    values = np.zeros((32, 40, 48), np.float32)
    values[8:16, 16:24, 8:24] = noise((8, 8, 16)) + 0.1
    values[24:32, 32:40, 40:48] = noise((8, 8, 8), 1) + 0.1
    return values


@pytest.mark.parametrize("chunks", [[8, 8, 8], [16, 12, 20]], ids=str)
def test_output_is_exact_where_input_is_stored_and_absent_elsewhere(workplace, chunks):
    work = workplace(sparse(), network=PatchPosition())
    work.run(overlap=0.3, output_chunks=chunks)
    full = workplace(sparse(), network=PatchPosition())
    full.run(overlap=0.3, output_chunks=chunks, skip={"fill": False})
    stored = work.values != 0
    np.testing.assert_array_equal(work.read()[stored], full.read()[stored])
    assert not work.read()[~stored].any()
    assert full.read()[~stored].any()
    if chunks == [8, 8, 8]:
        assert sorted(work.hashes()) == ["value/0/1/2/1", "value/0/1/2/2", "value/0/3/4/5"]


def test_patches_without_stored_input_are_not_predicted(workplace):
    values = sparse()
    values[24:] = 0
    work = workplace(values)
    report = work.run(overlap=0)
    touched = [
        sum(o < end and o + patch > start for o in patch_origins(extent, patch, patch))
        for extent, patch, start, end in zip(
            values.shape, (6, 8, 10), (8, 16, 8), (16, 24, 24), strict=True
        )
    ]
    assert report.patches == work.network.patches == prod(touched)
    plan = work.run(overlap=0, output_dir="elsewhere", options={"dry_run": True}).estimate
    assert plan.skipped == 6 * 5 * 5 - prod(touched)


def test_half_precision_stays_close_and_is_noted(workplace):
    work = workplace(noise((9, 10, 11)))
    work.run(amp="bf16")
    np.testing.assert_allclose(work.read(), work.values, atol=4e-3)
    with pytest.raises(OutputError, match='precision was "bfloat16", is "float32"'):
        work.run(amp="auto")


def test_nan_from_the_network_names_its_patch_and_is_not_written(workplace):
    class Poisoned(nn.Module):
        def forward(self, image, targets):
            bad = torch.where(image > 2, torch.nan, image)
            return dict.fromkeys(targets, (bad,))

    values = noise((20, 21, 22))
    values[13, 9, 5] = 3
    work = workplace(values, network=Poisoned())
    with pytest.raises(RunError, match=r'patch at \(z, y, x\) = \(12, 8, 0\).*NaN.*"value"'):
        work.run(overlap=0)
    wanted = {f"value/0/{z}/{y}/{x}" for z, y, x in np.ndindex(3, 3, 3)}
    touched = {f"value/0/{z}/1/{x}" for z in (1, 2) for x in (0, 1)}
    assert {name for name in work.hashes() if name.startswith("value/")} == wanted - touched


def test_on_a_cpu_a_batch_is_one_patch_whatever_is_asked(workplace):
    """oneDNN gives other bits to the same patch in another batch."""
    sizes = []

    class Watching(nn.Module):
        def forward(self, image, targets):
            sizes.append(len(image))
            return dict.fromkeys(targets, (image,))

    workplace(noise((9, 10, 11)), network=Watching()).run(batch_size=3)
    assert set(sizes) == {1}


def test_batches_are_filled_across_units_and_do_not_change_a_bit(workplace, monkeypatch):
    """As on a GPU; this network gives the same bits in any batch."""
    alone = workplace(noise((20, 37, 41)), network=PatchPosition())
    alone.run(overlap=0.3, memory=4e-4)

    class InThrees(Forward):
        def __init__(self, *args):
            super().__init__(*args)
            self.batch = 3

    sizes = []

    class Watching(PatchPosition):
        def forward(self, image, targets):
            sizes.append(len(image))
            return super().forward(image, targets)

    monkeypatch.setattr("vcmodels.inference.job.Forward", InThrees)
    work = workplace(noise((20, 37, 41)), network=Watching())
    report = work.run(overlap=0.3, memory=4e-4)
    assert work.run(overlap=0.3, memory=4e-4, options={"dry_run": True}).estimate.units > 3
    assert sizes[: -(-report.patches // 3)] == [3] * -(-report.patches // 3)
    assert work.hashes() == alone.hashes()


def test_the_patch_is_that_of_the_checkpoint_when_the_task_names_none(workplace):
    """The task's own training may have had another."""
    work = workplace(noise((20, 21, 22)))
    task = work.task(patch_size=None)
    predict_request(work.request(task, patch=(4, 6, 8)))
    attributes = json.loads((work.folder / "out/net.zarr/.zattrs").read_text())
    assert attributes["vcmodels"]["manifest"]["patch_size"] == [4, 6, 8]
    assert task.tr_params.patch_size == (16, 16, 16)


@pytest.mark.parametrize(
    ("output_type", "wanted", "precision"),
    [
        ("uint8", "auto", "bfloat16"),
        ("float16", "auto", "float32"),
        ("float32", "auto", "float32"),
        ("uint8", "off", "float32"),
        ("float32", "bf16", "bfloat16"),
    ],
)
def test_bf16_is_taken_by_itself_where_the_output_is_coarser(
    workplace, monkeypatch, output_type, wanted, precision
):
    monkeypatch.setattr("vcmodels.devices.has_fast_bf16", lambda _device: True)
    work = workplace(noise((9, 10, 11)))
    task = work.task(output_type=output_type, amp=wanted)
    target = task.dataset_config.targets["value"].model_copy(update={"output_range": [0.0, 1.0]})
    config = task.dataset_config.model_copy(update={"targets": {"value": target}})
    task = task.model_copy(update={"dataset_config": config})
    assert prepare(work.request(task), Silent()).manifest["precision"] == precision


def test_memory_of_the_sums_does_not_grow_with_the_height(workplace):
    estimates = []
    for depth in (24, 240):
        work = workplace(np.zeros((depth, 21, 22), np.float32))
        estimates.append(work.run(skip={"fill": False}, options={"dry_run": True}).estimate)
    assert estimates[0].streaming_bytes == estimates[1].streaming_bytes
    written = [estimate.traffic.bytes_written for estimate in estimates]
    assert written[1] == 10 * written[0]


def test_the_dry_run_counts_right_and_writes_nothing(workplace):
    work = workplace(noise((20, 21, 22)))
    plan = work.run(overlap=0.25, options={"dry_run": True}).estimate
    assert not (work.folder / "out").exists()
    reporter = Silent()
    report = work.run(overlap=0.25, options={"reporter": reporter})
    assert plan.patches == report.patches
    assert (plan.skipped, plan.repeated, plan.units) == (0, 0, 1)
    whole_chunks = 4 * 24**3
    assert plan.traffic.bytes_read == plan.traffic.bytes_written == whole_chunks
    assert f"{report.patches} patches in 1 units" in reporter.lines[-1]
