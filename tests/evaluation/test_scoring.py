"""Figures of volumes are those of the arrays in memory, whoever measures them and how often."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from vcmodels.blockwise import Threads
from vcmodels.blockwise.engines import DaskWorkers
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.devices import dask_client
from vcmodels.errors import RunError
from vcmodels.evaluation import scoring
from vcmodels.evaluation.evaluate import pair_of
from vcmodels.evaluation.pairs import TargetPair
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import (
    ScoredTarget,
    ScoredVolume,
    better_of,
    default_metrics,
    remove_records,
    score_volumes,
)
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import BlockMetric, Curve, Metric, VolumeMetric
from vcmodels.metrics.registry import fitting_metrics
from vcmodels.reporting import Silent
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.volumes import ArrayVolume, Volume, open_volume

EXTENT = (10, 14, 18)
INNER = Box((1, 2, 3), (8, 11, 13))


@dataclass(frozen=True)
class Touching(BlockMetric):
    """The share of predicted voxels with a labelled one among their neighbours: it needs a halo."""

    step: int = 1
    compares: tuple = ("masks", "classes")

    @property
    def better(self):
        return {"touching": "max"}

    def measure(self, pair, block):
        predicted, labelled = pair.regions(block.grow((self.step,) * 3))
        cube = np.ones((2 * self.step + 1,) * 3, bool)
        near = np.stack([ndimage.binary_dilation(one, cube) for one in labelled])
        inner = (slice(None), *[slice(self.step, self.step + n) for n in block.shape])
        axes = (1, 2, 3)
        return {
            "hits": (predicted & near)[inner].sum(axes),
            "found": predicted[inner].sum(axes),
        }

    def join(self, parts):
        total = [np.stack([part["hits"], part["found"]]) for _, part in parts]
        return {"total": np.sum(total, axis=0)}

    def figures(self, joined):
        hits, found = joined["total"]
        return {"touching": [h / f if f else np.nan for h, f in zip(hits, found, strict=True)]}

    def curves(self, joined):
        return {"hits": Curve((0.0, 1.0), tuple(map(float, joined["total"][0][:2])), "x", "y")}


METRICS = {"dice": fitting_metrics("masks")["dice"], "touching": Touching()}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, EXTENT, dtype=np.uint8), rng.integers(0, 3, EXTENT, dtype=np.uint8)


def opened(values):
    if isinstance(values, Path):
        return open_volume(str(values))
    return ArrayVolume.of(values, (1.0, 1.0, 1.0), "array")


def volume(prediction, label, name="scroll", cell=(3, 4, 5), metrics=METRICS, target=None, **more):
    target = target or BinaryTarget(ignore_label=2)
    found, truth = map(opened, (prediction, label))
    read = Label(target, StoredLabel("label", truth, truth.box), (1.0, 1.0, 1.0))
    pair = pair_of(read, found, INNER, cell)
    one = ScoredTarget("sheet", pair, metrics, target.class_names, "there")
    return ScoredVolume(name, "here", (one,), **more)


def plain(report):
    """The report but for the time that it took."""
    return replace(report, volumes=tuple(replace(v, seconds=0.0) for v in report.volumes))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def masks(codes, label):
    at = INNER.slices()
    counts = label[at] != 2
    return (codes[at] > 127.5) & counts, (label[at] == 1) & counts


def test_figures_are_those_of_the_arrays():
    codes, label = arrays()
    label[4] = 2
    report = score_volumes([volume(codes, label, unit="um", group="g", split="val")])
    (found,) = report.volumes
    scores = found.targets["sheet"]
    predicted, labelled = masks(codes, label)
    near = ndimage.binary_dilation(labelled, np.ones((3, 3, 3)))
    assert scores.figures == {
        "dice": pytest.approx(dice(predicted, labelled), abs=1e-12),
        "touching": pytest.approx((predicted & near).sum() / predicted.sum(), abs=1e-12),
    }
    assert scores.better == {"dice": "max", "touching": "max"}
    assert scores.slices == {
        z: pytest.approx(dice(predicted[z - 1], labelled[z - 1]), abs=1e-12)
        for z in range(1, 9)
        if z != 4
    }
    assert list(scores.curves) == ["hits"]
    assert (found.name, found.prediction, found.labels) == ("scroll", "here", {"sheet": "there"})
    assert (found.boxes, found.unit, found.group, found.split) == ((INNER,), "um", "g", "val")
    assert report.settings["metrics"]["sheet"] == {"dice": {}, "touching": {"step": 1}}
    text = report.to_text()
    assert Report.from_json(json.loads(text)).to_text() == text


def test_pooled_figures_are_those_of_all_voxels():
    pairs = [arrays(seed) for seed in range(3)]
    volumes = [volume(*pair, name=f"scan {n}") for n, pair in enumerate(pairs)]
    report = score_volumes(volumes)
    together = [np.stack(side) for side in zip(*(masks(*pair) for pair in pairs), strict=True)]
    assert report.pooled["sheet"].figures == {"dice": pytest.approx(dice(*together), abs=1e-12)}
    other = volume(*pairs[0], name="other", metrics=METRICS | fitting_metrics("masks"))
    assert score_volumes([*volumes, other]).pooled == {}


def test_classes_have_figures_of_their_own():
    rng = np.random.default_rng(0)
    found, label = rng.integers(0, 3, (2, *EXTENT), dtype=np.uint8)
    target = MulticlassTarget(channels=3)
    report = score_volumes([volume(found, label, target=target)])
    scores = report.volumes[0].targets["sheet"]
    at = INNER.slices()
    assert scores.classes == ("1", "2")
    assert list(scores.figures) == [
        "dice",
        "dice_1",
        "dice_2",
        "touching",
        "touching_1",
        "touching_2",
    ]
    assert scores.better.keys() == scores.figures.keys()
    for c in (1, 2):
        expected = dice(found[at] == c, label[at] == c)
        assert scores.figures[f"dice_{c}"] == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def client():
    with dask_client("local:2") as client:
        yield client


def test_cells_threads_and_a_cluster_decide_nothing(tmp_path, client):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, *EXTENT)).astype(np.float32)
    for name, array in zip("pl", values, strict=True):
        zarr.create_array(str(tmp_path / name), data=array, chunks=(4, 5, 6))
    target, metrics = RegressionTarget(), fitting_metrics("values")

    def report(cell=(3, 4, 5), engine=None):
        scored = volume(tmp_path / "p", tmp_path / "l", cell=cell, metrics=metrics, target=target)
        return plain(score_volumes([scored], engine=engine))

    serial = report(engine=Threads(1))
    assert report(engine=Threads(3)) == serial
    assert report(engine=DaskWorkers(client)) == serial
    figures = serial.volumes[0].targets["sheet"].figures
    at = INNER.slices()
    assert figures["mae"] == pytest.approx(np.abs(values[0] - values[1])[at].mean(), abs=1e-6)
    for cell in ((1, 1, 20), (20, 3, 2), (20, 20, 20)):
        other = report(cell).volumes[0].targets["sheet"].figures
        assert other == pytest.approx(figures, rel=1e-12, abs=1e-12)


@pytest.fixture
def sparse(tmp_path):
    """Arrays of which a few chunks are stored, and the same ones in memory."""
    rng, places = np.random.default_rng(0), []
    for name, fill, chunks in (
        ("p", 200, [(0, 0, 0), (1, 1, 1)]),
        ("l", 1, [(0, 0, 0), (0, 1, 2)]),
    ):
        array = zarr.create_array(
            str(tmp_path / name), shape=EXTENT, chunks=(4, 5, 6), dtype="uint8", fill_value=fill
        )
        for index in chunks:
            array.blocks[index] = rng.integers(0, 3, (4, 5, 6), dtype=np.uint8) * (
                99 if fill > 1 else 1
            )
        places.append(tmp_path / name)
    return places, [zarr.open_array(str(place))[...] for place in places]


@pytest.mark.parametrize("metrics", [{"dice": METRICS["dice"]}, METRICS], ids=["sums", "blocks"])
def test_where_nothing_is_stored_counts_without_being_read(sparse, monkeypatch, metrics):
    stored, arrays = sparse
    read = []
    original = Volume._read_inside
    monkeypatch.setattr(
        Volume, "_read_inside", lambda self, box: read.append(box.voxels) or original(self, box)
    )
    found = score_volumes([volume(*stored, cell=(4, 5, 6), metrics=metrics)])
    assert sum(read) < 0.6 * 2 * INNER.voxels
    expected = score_volumes([volume(*arrays, cell=(4, 5, 6), metrics=metrics)])
    one, other = (r.volumes[0].targets["sheet"] for r in (found, expected))
    assert one.figures == pytest.approx(other.figures)
    assert one.slices == pytest.approx(other.slices)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("step", [1, 40], ids=["few labels", "many labels"])
def test_codes_that_are_counted_give_the_sums_of_decoded_ones(dtype, step, monkeypatch):
    codes, label = arrays()
    label = (label * step).astype(dtype)
    target = BinaryTarget(ignore_label=2 * step)
    metrics = {n: m for n, m in fitting_metrics("masks").items() if isinstance(m, Metric)}
    scored = volume(codes, label, metrics=metrics, target=target)
    counted = score_volumes([scored]).volumes[0].targets["sheet"]
    blocks = list(blocks_of(INNER, (3, 4, 5)))
    is_counted = [scored.targets[0].pair.counted(block) is not None for block in blocks]
    assert all(is_counted) == any(is_counted) == (dtype != np.float32)
    monkeypatch.setattr(TargetPair, "counted", lambda self, box: None)
    decoded = score_volumes([scored]).volumes[0].targets["sheet"]
    assert counted == decoded


KINDS = {
    "foreground": (BinaryTarget(foreground="== 1, 3", loss_only_on_label=True), [0, 1, 2, 3]),
    "several ignored": (BinaryTarget(ignore_label=[2, 3]), [0, 1, 2, 3]),
    "classes": (
        MulticlassTarget(channels=3, label_values=[0, 5, 7], remap={1: 7}, ignore_label=9),
        [0, 1, 5, 7, 9],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_reads_pairs_of_codes_as_it_reads_voxels(name, monkeypatch):
    target, values = KINDS[name]
    rng = np.random.default_rng(0)
    codes = rng.choice(target.values if target.is_categorical else 256, EXTENT).astype(np.uint8)
    label = rng.choice(values, EXTENT).astype(np.uint8)
    metrics = {n: m for n, m in target.stored_metrics.items() if isinstance(m, Metric)}
    scored = volume(codes, label, metrics=metrics, target=target)
    assert scored.targets[0].pair.counted(INNER) is not None
    counted = score_volumes([scored]).volumes[0].targets["sheet"]
    monkeypatch.setattr(TargetPair, "counted", lambda self, box: None)
    assert counted == score_volumes([scored]).volumes[0].targets["sheet"]
    assert not any(np.isnan(value) for value in counted.figures.values())
    assert ("average_precision" in counted.figures) == (not target.is_categorical)


def test_a_value_that_the_kind_cannot_have_is_named_where_it_is_counted():
    codes, label = arrays()
    label[4, 5, 6] = 9
    target = MulticlassTarget(channels=3)
    with pytest.raises(RunError, match=r"label holds 9 at \(z, y, x\) = \(4, 5, 6\)"):
        score_volumes([volume(codes % 3, label, target=target)])


def test_a_region_that_counts_nowhere_has_no_figure():
    codes, label = arrays()
    scores = score_volumes([volume(codes, np.full_like(label, 2))]).volumes[0].targets["sheet"]
    assert np.isnan(list(scores.figures.values())).all()
    assert scores.slices == {}


def extent_of(prediction, label, valid, spacing):
    del label, valid, spacing
    return {"extent": float(prediction.shape[1])}


def test_a_metric_of_whole_volumes_sees_it_whole_or_says_why_not(monkeypatch):
    metrics = METRICS | {"extent": VolumeMetric(extent_of, {"extent": "max"}, compares="masks")}
    scores = score_volumes([volume(*arrays(), metrics=metrics)]).volumes[0].targets["sheet"]
    assert scores.figures["extent"] == INNER.shape[0]
    assert scores.notes == ()
    monkeypatch.setattr(scoring, "MOST_WHOLE", 2 * INNER.voxels - 1)
    scores = score_volumes([volume(*arrays(), metrics=metrics)]).volumes[0].targets["sheet"]
    assert np.isnan(scores.figures["extent"])
    assert scores.better["extent"] == "max"
    assert scores.notes[0].startswith("extent: not measured: 2,288 values are more than")


class Stopping(Silent):
    """Asks to stop after some blocks."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __call__(self):
        self.after -= 1
        return self.after < 0


def test_a_stopped_scoring_continues_to_the_same_report(tmp_path):
    volumes = [volume(*arrays(seed), name=f"scan {seed}") for seed in range(2)]
    expected, folder = plain(score_volumes(volumes)), tmp_path / "record"
    stops = 0
    while (found := score_volumes(volumes, record=folder, should_stop=Stopping(9))) is None:
        stops += 1
    assert stops > 2
    assert plain(found) == expected
    again = score_volumes(volumes, record=folder, engine=None)
    assert plain(again) == expected
    remove_records(folder, volumes)
    assert not folder.exists()
    remove_records(folder, volumes)


def test_only_the_records_of_an_evaluation_are_removed_after_it(tmp_path):
    folder, others = tmp_path / "record", [volume(*arrays(1), name="other")]
    assert score_volumes(others, record=folder, should_stop=Stopping(9)) is None
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kept
    mine = [volume(*arrays(0), name="mine")]
    assert score_volumes(mine, record=folder)
    remove_records(folder, mine)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_what_has_changed_is_measured_again(tmp_path):
    codes, label = arrays()
    folder = tmp_path / "record"
    before = score_volumes([volume(codes, label)], record=folder)
    for changed, what in (
        (volume(codes, 1 - label % 2), "label"),
        (volume(codes, label, metrics=METRICS | {"touching": Touching(step=2)}), "label, metrics"),
        (volume(codes, label, target=BinaryTarget()), "metrics, target"),
    ):
        reporter = Silent()
        after = score_volumes([changed], record=folder, reporter=reporter)
        assert reporter.lines == [f"scroll: sheet is measured again: {what} changed"]
        assert after.volumes[0].targets != before.volumes[0].targets
        assert plain(after) == plain(score_volumes([changed]))


def test_default_metrics_and_senses():
    metrics = {**METRICS, "rare": Touching(is_default=False)}
    assert list(default_metrics(metrics)) == ["dice", "touching"]
    assert better_of(METRICS, ["dice", "dice_a"], ["a"]) == {"dice": "max", "dice_a": "max"}


KILLED = """
import sys, time
from pathlib import Path
from tests.evaluation.test_scoring import Touching, volume
from vcmodels.blockwise import Threads
from vcmodels.evaluation.scoring import score_volumes

measure = Touching.measure
Touching.measure = lambda self, pair, block: time.sleep(0.05) or measure(self, pair, block)
folder = Path(sys.argv[1])
score_volumes([volume(folder / "p", folder / "l")], record=folder / "record", engine=Threads(2))
"""


def test_a_killed_scoring_continues_to_the_same_report_bit_for_bit(tmp_path):
    for name, array in zip("pl", arrays(), strict=True):
        zarr.create_array(str(tmp_path / name), data=array, chunks=(4, 5, 6))
    scored = [volume(tmp_path / "p", tmp_path / "l")]
    expected = plain(score_volumes(scored)).to_text()
    folder, sizes = tmp_path / "record", []
    for least in (3000, 9000):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ)
        while not (sizes := [p.stat().st_size for p in folder.glob("*")]) or sizes[0] < least:
            time.sleep(0.01)
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    reporter = Silent()
    found = score_volumes(scored, record=folder, reporter=reporter)
    assert plain(found).to_text() == expected
    assert reporter.lines == []
