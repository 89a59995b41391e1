"""An input whose values are of another scale than the training's is predicted with a note, once."""

from dataclasses import replace

import numpy as np
import pytest

from tests.inference.test_sharing import PatchPosition
from vcmodels.data.intensities import measure
from vcmodels.devices import dask_client
from vcmodels.inference import (
    Part,
    RunOptions,
    predict_on,
    predict_request,
)
from vcmodels.inference.dask_cluster import predict_on_cluster
from vcmodels.reporting import Silent
from vcmodels.results import is_complete, our_attributes
from vcmodels.volumes import ArrayVolume

NOTE = "of channel 0 (raw) lie in "


def noise(top):
    return (np.random.default_rng(0).random((20, 17, 22)) * top).astype(np.float32)


def trained_on(values):
    raw = ArrayVolume.of(values, (1.0, 1.0, 1.0), "raw")
    return measure([([raw], raw.box)])


@pytest.fixture
def begin(workplace):
    """A place whose input is 1000 times what its network was trained on, and the request."""

    def make(top=1000.0, **settings):
        work = workplace(noise(top), network=PatchPosition())
        known = trained_on(noise(1.0))
        task = work.task(overlap=0.3, threads=1, **settings)
        return work, work.request(task, intensities=known)

    return make


def told(predict, *arguments, **options):
    """The notes on values that a prediction reports."""
    reporter = Silent()
    predict(*arguments, RunOptions(reporter=reporter, **options))
    return [line for line in reporter.lines if line.startswith("note: ") and NOTE in line]


def test_a_run_reports_it_at_its_begin_alone_and_gives_the_same_bytes(begin):
    work, request = begin()
    unknown = replace(request, networks=tuple(replace(n, intensities=()) for n in request.networks))
    assert len(told(predict_request, request, dry_run=True)) == 1
    stops = iter([False] * 3)
    (line,) = told(predict_request, request, should_stop=lambda: next(stops, True))
    assert f"note: {work.store}/raw: values of channel 0 (raw) lie in 4.8" in line
    assert ", those of the training in 0.00" in line
    assert not is_complete(our_attributes(request.output))
    assert told(predict_request, request) == [], "the run continues"
    assert is_complete(our_attributes(request.output))
    assert told(predict_request, unknown) == [], "the manifest is the same"
    assert told(predict_request, request, verify=True) == []
    continued = work.hashes()
    assert told(predict_request, unknown, overwrite=True) == []
    assert work.hashes() == continued
    assert len(told(predict_request, request, overwrite=True)) == 1


def test_an_input_of_the_same_scale_and_an_older_checkpoint_say_nothing(begin):
    _, request = begin(top=1.0)
    assert told(predict_request, request) == []
    work, _ = begin()
    assert told(predict_request, work.request(work.task())) == []


def test_the_bbox_alone_is_looked_at(begin):
    work, request = begin(top=1.0, bbox=[[0, 20], [0, 17], [0, 8]])
    values = noise(1.0)
    values[:, :, 8:] *= 1000
    elsewhere = ArrayVolume.of(values, (1.0, 1.0, 1.0), "raw")
    assert told(predict_request, replace(request, inputs=(elsewhere,))) == []
    everywhere = work.request(work.task(threads=1), intensities=request.networks[0].intensities)
    assert len(told(predict_request, replace(everywhere, inputs=(elsewhere,)), overwrite=True)) == 1


def test_of_several_parts_the_first_reports_it(begin):
    _, request = begin()
    assert [len(told(predict_request, request, part=Part(n, 3))) for n in (1, 0, 2)] == [1, 0, 0]


@pytest.mark.slow
def test_of_several_devices_the_process_that_watches_reports_it(begin):
    _, request = begin()
    assert len(told(predict_on, request, ["cpu", "cpu"])) == 1


@pytest.mark.slow
def test_of_a_cluster_the_process_that_watches_reports_it(begin):
    _, request = begin()
    with dask_client("local:1") as client:
        assert len(told(predict_on_cluster, request, client)) == 1


def test_an_array_in_memory_is_compared_too(begin):
    work, request = begin()
    predictor = work.predictor(work.task(), intensities=request.networks[0].intensities)
    for top, count in ((1.0, 0), (1000.0, 1)):
        reporter = Silent()
        predictor.predict(noise(top), reporter=reporter)
        assert sum("channel 0 (array)" in line for line in reporter.lines) == count
