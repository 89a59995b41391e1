import itertools
import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.errors import OutputError, RunError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import BoxSet
from vcmodels.inference import Part, RunOptions, predict_on, predict_request
from vcmodels.inference.units import share


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


class PatchPosition(nn.Module):
    """A network whose output depends on where in its patch a voxel is: blending must show."""

    def forward(self, image, targets):
        ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).reshape(image[0, 0].shape)
        return {name: (image[:, :1] * 3 + ramp.sin(),) for name in targets}


class Dying(PatchPosition):
    def forward(self, image, targets):
        if image.max() > 1:
            os._exit(1)
        return super().forward(image, targets)


@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(1, 9),
    st.data(),
)
def test_the_boxes_of_all_parts_are_whole_blocks_that_cover_the_region_once(
    extent, block, count, data
):
    start = [data.draw(st.integers(0, n - 1)) for n in extent]
    end = [data.draw(st.integers(s + 1, n)) for s, n in zip(start, extent, strict=True)]
    region = Box.between(start, end)
    wanted = BoxSet.of([region.intersect(Box((0, 0, 0), (9, 9, 9)))])
    seen = np.zeros(extent, int)
    for index in range(count):
        box = share(region, wanted, block, extent, Part(index, count))
        seen[box.slices()] += 1
        for o, e, b, low, high in zip(
            box.origin, box.end, block, region.origin, region.end, strict=True
        ):
            assert not box.voxels or ((o % b == 0 or o == low) and (e % b == 0 or e == high))
    assert (seen[region.slices()] == 1).all()
    assert seen.sum() == region.voxels


def test_parts_have_about_equal_work_where_the_volume_is_sparse():
    region = Box((0, 0, 0), (64, 64, 640))
    wanted = BoxSet.of(Box((0, 0, 8 * x), (64, 64, 8)) for x in range(8))
    boxes = [share(region, wanted, (8, 8, 8), region.shape, Part(i, 4)) for i in range(4)]
    assert [sum(b.voxels for b in wanted.within(box)) for box in boxes] == [64 * 64 * 16] * 4


def test_a_part_that_is_none_is_refused():
    with pytest.raises(ValueError, match="part 3/3: give 0/n to n-1/n"):
        Part(3, 3)


def run_part(work, part, **settings):
    task = work.task(overlap=0.3, threads=1, **settings)
    return predict_request(work.request(task), RunOptions(part=part))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    work = Workplace(
        tmp_path_factory.mktemp("reference"), noise((20, 37, 41)), (8, 8, 8), PatchPosition()
    )
    work.run(overlap=0.3)
    return work.hashes()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_parts_one_by_one_give_the_same_bytes_and_the_last_one_completes(
    workplace, reference, order
):
    work = workplace(noise((20, 37, 41)), network=PatchPosition())
    reports = [run_part(work, Part(i, 3)) for i in order]
    assert [report.is_complete for report in reports] == [False, False, True]
    assert all(report.is_through and report.patches for report in reports)
    assert work.hashes() == reference
    assert run_part(work, Part(1, 3)).was_complete
    assert not list((work.folder / "out").glob(".*"))


def test_another_count_of_parts_continues_what_others_began(workplace, reference):
    work = workplace(noise((20, 37, 41)), network=PatchPosition())
    run_part(work, Part(1, 2))
    for i in range(5):
        report = run_part(work, Part(i, 5), memory=4e-4)
    assert report.is_complete
    assert work.hashes() == reference


def test_more_parts_than_blocks_leave_some_without_work(workplace):
    work = workplace(noise((9, 9, 9)))
    reports = [run_part(work, Part(i, 30), output_chunks=[16, 16, 16]) for i in range(30)]
    assert [report.patches > 0 for report in reports].count(True) == 1
    assert reports[-1].is_complete
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6)


def test_parts_at_the_same_time_give_the_same_bytes(workplace, reference):
    work = workplace(noise((20, 37, 41)), network=PatchPosition())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_part, args=(work, Part(i, 3))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert work.hashes() == reference
    assert run_part(work, Part(0, 3)).was_complete
    assert not list((work.folder / "out").glob(".*"))


def test_a_part_neither_joins_a_whole_run_nor_overwrites(workplace):
    work = workplace(noise((9, 10, 11)))
    request = work.request(work.task())
    with pytest.raises(TaskError, match="--overwrite: is for the whole, part 0/2"):
        predict_request(request, RunOptions(part=Part(0, 2), overwrite=True))
    asked = itertools.count()

    def try_part():
        if next(asked) == 1:
            with pytest.raises(OutputError, match="in use by pid"):
                predict_request(request, RunOptions(part=Part(0, 2)))
        return False

    predict_request(request, RunOptions(should_stop=try_part))
    assert next(asked) > 1


def test_several_devices_give_the_bytes_of_one(workplace, reference):
    work = workplace(noise((20, 37, 41)), network=PatchPosition())
    request = work.request(work.task(overlap=0.3, threads=1))
    report = predict_on(request, ["cpu", "cpu"])
    assert report.is_complete
    assert work.hashes() == reference
    assert predict_on(request, ["cpu", "cpu"]).was_complete  # at once
    again = predict_on(request, ["cpu"], RunOptions(overwrite=True))
    assert (again.was_complete, work.hashes()) == (False, reference)


def test_a_worker_that_dies_does_not_stop_the_others(workplace):
    values = noise((40, 10, 11))
    values[39, 9, 10] = 2
    work = workplace(values, network=Dying())
    request = work.request(work.task(overlap=0, threads=1))
    with pytest.raises(RunError, match=r"worker 1 on device cpu: ended with code 1; .*continues"):
        predict_on(request, ["cpu", "cpu"])
    done = sorted(work.hashes())
    assert {f"value/0/{z}/0/0" for z in (0, 1)} <= set(done)
    assert not [name for name in done if name.startswith("value/0/4")]
