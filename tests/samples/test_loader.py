import copy
import gc
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest
import torch

from vcmodels.augment import SpatialTransform
from vcmodels.augment.geometric import Affine
from vcmodels.augment.values import Contrast, Gamma, Noise
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RunError
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.patches.split import split_patches
from vcmodels.samples import workers
from vcmodels.samples.dataset import PatchDataset, finish_sample, make_sample
from vcmodels.samples.loader import batches
from vcmodels.samples.training_set import augmented_set

SHAPE = (14, 18, 44)
CPU = torch.device("cpu")


class Slow(PatchDataset):
    """Hangs, or dies, at draw 5."""

    does = ""

    def read(self, draw, row):
        if draw == 5 and self.does == "hangs":
            time.sleep(200)
        if draw == 5 and self.does == "asks":
            raise RunError("environment", os.environ.get("VCMODELS_TOLD", "nothing"))
        if draw == 5 and self.does == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(draw, row)


@pytest.fixture
def dataset(make_task, store):
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE).astype(np.float32)
    entry = {
        "input": store("raw", image),
        "sheet": store("sheet", (image > 0.5).astype(np.uint8)),
    }
    task = make_task(
        [entry],
        patch_size=[6, 7, 8],
        split_guard=4,
        augment=[{"name": "flip", "p": 0.5}, {"name": "affine", "p": 0.5}, {"name": "noise"}],
    )
    volumes = open_volumes(task)
    split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
    fitted = fit_normalization(task.dataset_config.normalization, volumes, split.train_regions)
    resolved = Resolved(task, volumes)
    made = augmented_set(resolved, split.train, split.train_regions, fitted, seed=3)
    made.__class__ = Slow
    return made


def grouped(first, draws, size):
    numbers = range(first, first + draws)
    return [numbers[start : start + size] for start in range(0, draws, size)]


def stream(dataset, first_draw=0, draws=10, batch_size=3, workers=0, **options):
    groups = grouped(first_draw, draws, batch_size)
    return batches(dataset, groups, workers=workers, device=CPU, **options)


def finished_here(dataset, draw):
    return make_sample(dataset, draw, dataset.row(draw))


def finished(dataset, **options):
    return list(stream(dataset, **options))


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.places == other.places
        assert torch.equal(one.image, other.image)
        for name in one.labels:
            assert torch.equal(one.labels[name], other.labels[name])
            assert torch.equal(one.valid[name], other.valid[name])


def test_workers_change_nothing_and_stay_for_the_next_call(dataset):
    alone = finished(dataset)
    assert [len(batch.image) for batch in alone] == [3, 3, 3, 1]
    assert_equal(finished(dataset, workers=2), alone)
    pids = set(workers._running[dataset].pool._processes)
    assert_equal(finished(dataset, workers=2), alone)
    assert set(workers._running[dataset].pool._processes) == pids


@pytest.mark.parametrize("workers", [0, 1])
def test_starting_at_a_draw_equals_continuing(dataset, workers):
    whole = finished(dataset, batch_size=2, draws=60)
    assert_equal(
        finished(dataset, batch_size=2, first_draw=34, draws=26, workers=workers), whole[17:]
    )


def test_patches_have_the_same_bits_however_many_threads_make_them(dataset):
    """The patch is so large that torch divides its sums; Gamma needs a mean and a deviation."""
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 60, 61, 62))).float()
    sample = replace(
        dataset.read(0, dataset.row(0)), image=image, labels={}, transform=SpatialTransform.IDENTITY
    )
    changed = copy.copy(dataset)
    changed.targets = {}
    changed.variation = replace(dataset.variation, augmentations=(Gamma(p=1), Contrast(p=1)))
    images, before = [], torch.get_num_threads()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        images.append(finish_sample(sample, changed).image)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(torch.equal(images[0], other) for other in images[1:])


def test_values_change_after_the_geometry(dataset):
    """Noise that came first would be averaged over neighbours by the rotation."""
    still = copy.copy(dataset)
    both = (Affine(p=1), Noise(p=1, deviation=(1, 1)))
    still.variation = replace(dataset.variation, augmentations=both)
    plain = copy.copy(still)
    plain.variation = replace(dataset.variation, augmentations=both[:1])
    draws = range(20)
    noise = [finished_here(still, k).image - finished_here(plain, k).image for k in draws]
    assert torch.cat(noise).std().item() == pytest.approx(1, abs=0.03)


def test_no_thread_is_left_and_a_batch_is_not_overwritten(dataset):
    made = stream(dataset, workers=2, draws=30)
    kept = [next(made) for _ in range(10)]
    assert_equal(kept, finished(dataset, draws=30))
    made.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_closing_does_not_wait_for_a_worker_that_hangs(dataset):
    dataset.does = "hangs"
    made = stream(dataset, workers=1, batch_size=1, draws=9)
    for _ in range(5):
        next(made)
    time.sleep(0.5)  # until the thread waits for the sixth
    started = time.monotonic()
    made.close()
    (process,) = workers._running[dataset].pool._processes.values()
    workers.stop_workers(dataset)
    assert time.monotonic() - started < 120
    assert not process.is_alive()
    workers.stop_workers(dataset)  # nothing to do


def test_an_abandoned_iterator_leaves_the_workers_usable(dataset):
    made = stream(dataset, draws=1000, workers=1)
    next(made)
    made.close()
    assert_equal(finished(dataset, workers=1), finished(dataset))


def test_a_dead_worker_is_an_error_that_names_patches(dataset):
    dataset.does = "dies"
    started = time.monotonic()
    with pytest.raises(RunError, match=r"a worker process died .* volume .* at \(z, y, x\)"):
        finished(dataset, workers=1)
    assert time.monotonic() - started < 200
    assert dataset not in workers._running
    dataset.does = ""
    assert_equal(finished(dataset, workers=1), finished(dataset))


def test_a_hanging_worker_is_an_error_that_names_the_patch(dataset):
    dataset.does = "hangs"
    place = dataset.place(5)
    with pytest.raises(RunError, match="no answer from a worker for 8 s") as caught:
        finished(dataset, workers=1, timeout_s=8.0)
    assert caught.value.subject == str(place)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_parts_across_the_process_border(dataset, workers):
    array = Path(dataset._volumes[0].inputs[0].location)
    for path in (array / "c").glob("*/*/*"):
        path.write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"chunk \(\d, \d, \d\): .* cannot be read") as caught:
        finished(dataset, workers=workers)
    assert type(caught.value).__name__ == "ChunkError"


def test_workers_have_the_environment_of_the_moment(dataset, monkeypatch):
    finished(dataset, workers=1)  # the server that forks them runs from here on
    workers.stop_workers(dataset)
    monkeypatch.setenv("VCMODELS_TOLD", "later")
    dataset.does = "asks"
    with pytest.raises(RunError, match="environment: later"):
        finished(dataset, workers=1)


def test_stop_signals_do_not_reach_workers(dataset):
    alone = finished(dataset)
    finished(dataset, workers=1)
    for pid in workers._running[dataset].pool._processes:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert_equal(finished(dataset, workers=1), alone)


def test_workers_are_of_this_version_whatever_the_working_directory_holds(
    dataset, tmp_path, monkeypatch
):
    alone = finished(dataset)
    (tmp_path / "vcmodels").mkdir()
    (tmp_path / "vcmodels/__init__.py").write_text("raise RuntimeError('another version')\n")
    monkeypatch.chdir(tmp_path)
    gc.collect()  # a worker that is left keeps the server
    forkserver._forkserver._stop()  # else the server of an earlier test would be asked
    assert_equal(finished(dataset, workers=1), alone)


def test_workers_leave_when_the_dataset_is_let_go(dataset):
    other = copy.copy(dataset)
    finished(other, workers=1)
    (process,) = workers._running[other].pool._processes.values()
    del other
    gc.collect()
    assert wait([process.sentinel], 10)
