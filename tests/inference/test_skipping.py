import time

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from vcmodels.errors import OutputError, VolumeError
from vcmodels.reporting import Silent
from vcmodels.volumes import Volume, create_array, open_volume


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


class PatchPosition(nn.Module):
    """A network whose output depends on where in its patch a voxel is: blending must show."""

    def forward(self, image, targets):
        ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).reshape(image[0, 0].shape)
        return {name: (image[:, :1] * 3 + ramp.sin() + 2,) for name in targets}


def dim():
    """Two of 4 x 5 x 6 chunks are bright, and a voxel of a third; all are stored."""
    values = noise((32, 40, 48)) * 0.4 + 0.1
    values[8:16, 16:24, 8:24] += 1
    values[31, 39, 47] = 1
    return values


def bright_chunks(values, below):
    cells = values.reshape(4, 8, 5, 8, 6, 8).max(axis=(1, 3, 5)) >= below
    return cells.repeat(8, 0).repeat(8, 1).repeat(8, 2)


@pytest.mark.parametrize("memory", [5e-4, 1.0])
def test_background_is_left_out_and_the_rest_has_the_same_bits(workplace, memory):
    full = workplace(dim(), network=PatchPosition())
    whole = full.run(overlap=0.3)
    work = workplace(dim(), network=PatchPosition())
    report = work.run(overlap=0.3, memory=memory, skip={"below": 0.9})
    bright = bright_chunks(work.values, 0.9)
    assert bright.mean() == 3 / 120
    np.testing.assert_array_equal(work.read()[bright], full.read()[bright])
    assert not work.read()[~bright].any()
    assert full.read().all()
    assert report.patches < whole.patches / 5
    assert sorted(work.hashes()) == ["value/0/1/2/1", "value/0/1/2/2", "value/0/3/4/5"]


def test_a_chunk_that_lies_in_two_units_is_judged_whole_by_both(workplace):
    values = np.full((32, 40, 48), 0.5, np.float32)
    values[0, 39, 47] = values[31, 0, 0] = 1  # corners far from the other units that need them
    bright = np.zeros(values.shape, bool)
    bright[:16, 20:, 24:] = bright[16:, :20, :24] = True
    hashes = []
    for memory in (5e-4, 1.0):
        work = workplace(values, chunks=(16, 20, 24), network=PatchPosition())
        work.run(overlap=0.3, memory=memory, skip={"below": 0.9}, output_chunks=[8, 8, 8])
        hashes.append(work.hashes())
        np.testing.assert_array_equal(work.read() != 0, bright)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("factor", [1, 3])
def test_a_mask_decides_by_voxel_what_is_written(workplace, factor):
    full = workplace(dim(), network=PatchPosition())
    whole = full.run(overlap=0.3)
    work = workplace(dim(), network=PatchPosition())
    coarse = np.zeros(tuple(-(-n // factor) for n in work.values.shape), np.uint8)
    coarse[9 // factor : 12 // factor, 5 // factor : 31 // factor, -4:] = 1
    mask = create_array(
        str(work.folder / "mask.zarr"), "m", shape=coarse.shape, chunks=(4, 7, 9), dtype="u1"
    )
    mask.write(open_volume(mask.location, key="m").box, coarse[None])
    report = work.run(overlap=0.3, skip={"mask": mask.location})
    allowed = coarse.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    allowed = allowed[tuple(slice(0, n) for n in work.values.shape)].astype(bool)
    np.testing.assert_array_equal(work.read(), np.where(allowed, full.read(), 0))
    assert 0 < report.patches < whole.patches / 4


def test_a_mask_of_another_shape_is_refused(workplace):
    work = workplace(noise((20, 21, 22)))
    mask = create_array(
        str(work.folder / "mask.zarr"), "m", shape=(20, 21, 9), chunks=(8, 8, 8), dtype="u1"
    )
    with pytest.raises(VolumeError, match=r"skip\.mask: has shape \(20, 21, 9\), the input \(20"):
        work.run(skip={"mask": mask.location})


def test_what_is_skipped_belongs_to_the_result(workplace):
    work = workplace(noise((20, 21, 22)))
    work.run()
    with pytest.raises(OutputError, match=r"skip was .* is .*0\.5"):
        work.run(skip={"below": 0.5})


def test_scattered_chunks_of_a_huge_volume_take_their_own_time_alone(workplace, monkeypatch):
    """10^12 voxels of which 40 chunks are stored."""
    work = workplace(noise((8, 8, 8)))
    array = create_array(
        str(work.folder / "huge.zarr"), "raw", shape=(10_000,) * 3, chunks=(16,) * 3, dtype="u1"
    )
    rng = np.random.default_rng(0)
    places = rng.integers(0, 10_000 // 16, (40, 3)) * 16
    volume = open_volume(array.location, key="x")
    for place in places:
        box = type(volume.box)(tuple(place.tolist()), (16, 16, 16))
        array.write(box, np.full((1, 16, 16, 16), 7, np.uint8))
    read = []
    fetch = Volume.read

    def watched(self, box, *args, **kwargs):
        read.append(box.voxels)
        return fetch(self, box, *args, **kwargs)

    monkeypatch.setattr(Volume, "read", watched)
    begun = time.process_time()
    reporter = Silent()
    report = work.run(
        input_path=array.location,
        output_chunks=[32, 32, 32],
        patch_size=[16, 16, 16],
        overlap=0.25,
        options={"reporter": reporter},
    )
    assert time.process_time() - begun < 10
    assert report.is_complete
    assert report.patches <= 40 * 3**3
    assert sum(read) <= 40 * (32 + 2 * 16) ** 3
    out = open_volume(str(work.folder / "out/net.zarr/value/0"), key="o")
    assert out.extent == (10_000,) * 3
    for place in places:
        box = type(volume.box)(tuple(place.tolist()), (16, 16, 16))
        np.testing.assert_allclose(out.read(box), 7, rtol=1e-6)


def test_the_level_of_the_input_is_none_of_the_mask(workplace):
    work = workplace(dim()[:16, :20, :24])
    fine = np.concatenate([work.values, work.values]).repeat(2, 1).repeat(2, 2)
    coarse = np.zeros((4, 5, 6), np.uint8)
    coarse[1:3, 2:, :4] = 1
    group = work.folder / "image.zarr"
    image = {"axes": [{"name": name} for name in "zyx"], "datasets": [{"path": "f"}, {"path": "c"}]}
    zarr.create_group(group, zarr_format=2, attributes={"multiscales": [image]})
    zarr.create_array(group / "f", data=fine, chunks=(8, 8, 8), zarr_format=2)
    zarr.create_array(group / "c", data=work.values, chunks=(8, 8, 8), zarr_format=2)
    mask = work.folder / "mask.zarr"
    zarr.create_array(mask, data=coarse, chunks=(2, 2, 2), zarr_format=2)
    work.run(input_path=str(group), level=1, overlap=0.0, skip={"mask": str(mask)})
    allowed = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    np.testing.assert_allclose(work.read(), work.values * allowed, rtol=1e-6)
