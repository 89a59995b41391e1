"""`vcmodels evaluate PREDICTION LABEL`: what is decided, refused, shown and written."""

import csv
import json
import re
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from scipy import ndimage

from vcmodels.cli import main
from vcmodels.evaluation import scoring
from vcmodels.evaluation.report import Report
from vcmodels.geometry.grid import blocks_of
from vcmodels.reporting import StopSignals
from vcmodels.targets import BinaryTarget, MulticlassTarget
from vcmodels.volumes import Description, Grid, write_multiscale_group

EXTENT = (10, 14, 18)
INSTANCES = ("--kind", "instances", "--metrics", "instances")


def smooth():
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=EXTENT), 1.5)
    return field / field.std()


FIELD = smooth()
LABEL = (FIELD > 0.5).astype(np.uint8)
PROBABILITY = (1 / (1 + np.exp(-3 * (FIELD - 0.7)))).astype(np.float32)
CLASSES = np.digitize(FIELD, [0.5, 1]).astype(np.uint8)
PREDICTED = np.digitize(FIELD + 0.2, [0.5, 1]).astype(np.uint8)
IDS = np.arange(np.prod(EXTENT)).reshape(EXTENT).astype(np.uint32) // 7
VECTORS = np.random.default_rng(1).normal(size=(3, *EXTENT)).astype(np.float32)


@pytest.fixture
def work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def save(**arrays):
        for name, values in arrays.items():
            chunks = (*values.shape[:-3], 4, 5, 6)
            zarr.create_array(str(tmp_path / name), data=values, chunks=chunks)

    def run(*words, code=0):
        found = main(["evaluate", *words])
        said = capsys.readouterr()
        assert found == code, said
        return said.out, said.err

    save.run = run
    return save


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def figures(out):
    """By name, of a table of one column."""
    lines = (line.split() for line in out.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}


FIRST = ("--set", "channel_axis=first")
DECIDED = [
    ((PROBABILITY, LABEL), (), "binary: foreground is > 0 in the label, probability above 0.5"),
    ((PROBABILITY > 0.5, LABEL), (), "binary: foreground is > 0 in the label, > 0 in the prediction"),
    ((LABEL * 255, LABEL), (), "binary: foreground is > 0 in the label, > 0 in the prediction"),
    ((PREDICTED * 90, LABEL), ("--kind", "binary"), "codes 0 to 255 are probabilities 0 to 1"),
    ((PREDICTED, CLASSES), ("--kind", "multiclass"), "multiclass: 0, 1, 2, the values of both"),
    ((PREDICTED, CLASSES), ("--classes", "0,1=cord,2"), "multiclass: 0, 1 cord, 2, as --classes"),
    ((np.stack([1 - PROBABILITY, PROBABILITY]), LABEL), FIRST, "2 channels of probabilities"),
    ((IDS, IDS[::-1].copy()), (), "instances: each value but 0 is one"),
    ((PROBABILITY, FIELD.astype(np.float32)), (), "regression: numbers as they are stored"),
    ((VECTORS, VECTORS), (*FIRST, "--kind", "normals", "--axial"), "normals, n and -n are the same"),
    ((VECTORS, VECTORS), (*FIRST, "--kind", "vector"), "vector: lengths count"),
    (
        (PREDICTED, CLASSES),
        ("--foreground", "== 2", "--predicted-foreground", ">= 2"),
        "binary: foreground is == 2 in the label, >= 2 in the prediction",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "options", "said"), DECIDED, ids=[str(n) for n in range(len(DECIDED))]
)
def test_what_the_arrays_are_is_decided_and_said(work, pair, options, said):
    work(p=pair[0], l=pair[1])
    out, _ = work.run("p", "l", *options, "--workers", "1")
    first, *table = out.splitlines()
    assert said in first
    assert len(table) > 3


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ((PREDICTED * 90, LABEL), r"more than 2 values; give --kind binary .* or --kind instances"),
        (
            (PREDICTED, CLASSES),
            r"the values 0, 1, 2.*--kind multiclass .*--kind instances.*--ignore",
        ),
        ((PROBABILITY, CLASSES), r"give --kind regression \(numbers\), or --kind multiclass"),
        ((VECTORS, VECTORS[::-1].copy()), r"three channels; give --kind normals .*, or --kind vec"),
        ((VECTORS, LABEL[None].repeat(2, 0)), r"the prediction has 3 channels, the label 2"),
        ((PROBABILITY > 0.5, CLASSES), r"--foreground: is needed.*--foreground \"== 1\""),
        ((LABEL, PROBABILITY), r"the label holds fractions.*give the prediction first"),
    ],
)
def test_what_may_mean_several_things_is_refused(work, pair, said):
    work(p=pair[0], l=pair[1])
    _, error = work.run("p", "l", *(FIRST if pair[0].ndim > 3 else ()), code=2)
    assert re.search(said, error), error


def test_figures_are_those_of_the_arrays(work):
    label = LABEL.copy()
    label[2, 3, 4:9] = 255
    mask = np.ones(EXTENT, np.uint8)
    mask[:, :, 12:] = 0
    work(p=PROBABILITY, l=label, m=mask)
    options = ("--ignore", "255", "--mask", "m", "--bbox", "1:9,2:14,0:17")
    out, _ = work.run("p", "l", *options, "--metrics", "dice,surface", "--tolerance", "1,2")
    at = np.s_[1:9, 2:14, 0:17]
    counts = ((label != 255) & (mask > 0))[at]
    expected = dice((PROBABILITY > 0.5)[at] & counts, (label == 1)[at] & counts)
    found = figures(out)
    assert float(found["dice"]) == pytest.approx(expected, abs=1e-4)
    assert {"surface_dice_at_1", "surface_dice_at_2"} <= found.keys()
    assert "iou" not in found


def test_classes_have_names(work):
    work(p=PREDICTED, l=CLASSES)
    out, _ = work.run("p", "l", "--classes", "0=none,1=cord,2", "--metrics", "dice", "-o", "out")
    header, _, row = [line for line in out.splitlines() if line.strip()][2:5]
    assert header.split() == ["l", "all", "cord", "2"]
    assert float(row.split()[2]) == pytest.approx(dice(PREDICTED == 1, CLASSES == 1), abs=1e-4)
    rows = list(csv.DictReader(Path("out/scores.csv").read_text().splitlines()))
    assert [(r["volume"], r["target"], r["class"]) for r in rows] == [
        ("p", "l", ""), ("p", "l", "cord"), ("p", "l", "2"),
    ]  # fmt: skip
    assert float(rows[2]["dice"]) == pytest.approx(dice(PREDICTED == 2, CLASSES == 2), abs=1e-12)


def test_a_report_is_written_and_printed(work):
    work(p=PROBABILITY, l=LABEL)
    out, said = work.run("p", "l", "--json", "-o", "new/out")
    document = json.loads(out)
    report = Report.from_json(document)
    assert "comparing as binary" in said
    assert json.loads(Path("new/out/report.json").read_text()) == document
    written = sorted(path.name for path in Path("new/out").iterdir())
    assert written == ["pictures", "report.html", "report.json", "scores.csv"]
    (volume,) = report.volumes
    expected = dice(PROBABILITY > 0.5, LABEL > 0)
    assert volume.targets["l"].figures["dice"] == pytest.approx(expected, abs=1e-12)
    assert report.provenance["command"].startswith("vcmodels")
    assert report.pooled["l"].curves


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        ("dice=0.1", 0, ""),
        ("l.dice=0.99", 1, r"failed: l.dice is 0.\d+, at least 0.99 was asked for"),
        ("brier=0.9", 0, ""),
        ("brier=0.0001", 1, r"failed: l.brier is 0.\d+, at most 0.0001"),
        ("mcc=0.5", 2, 'no figure "mcc" of l is measured; choose from dice'),
        ("best_threshold=0.5", 2, 'no figure "best_threshold"'),
        ("dice", 2, 'found "dice"; write TARGET.FIGURE=VALUE'),
        ("dice=good", 2, 'found "dice=good"'),
    ],
)
def test_a_figure_that_is_worse_than_asked_for_fails(work, limit, code, said):
    work(p=PROBABILITY, l=LABEL)
    out, error = work.run(
        "p", "l", "--metrics", "dice,brier,best_threshold", "--fail-under", limit, code=code
    )
    assert re.search(said, out + error)
    assert ("failed" in out) == (code == 1)


def group(path, values, spacing, unit="micrometer", offset=(0.0, 0.0, 0.0), notes=None):
    zarr.create_array(f"{path}/0", data=values, chunks=(4, 5, 6), zarr_format=2)
    grid = Grid(spacing, offset, unit, axes=("z", "y", "x"), is_known=True)
    write_multiscale_group(str(path), grid, Description("image", notes or {}))


@pytest.mark.parametrize("name", ["scores.csv", "report.json", "report.html"])
def test_files_of_others_are_not_replaced(work, name):
    work(p=PROBABILITY, l=LABEL)
    Path("out").mkdir()
    Path("out", name).write_text("mine\n")
    _, error = work.run("p", "l", "--metrics", "dice", "-o", "out", code=2)
    assert f"out/{name}" in error
    assert "is there, and" in error
    assert [(path.name, path.read_text()) for path in Path("out").iterdir()] == [(name, "mine\n")]
    _, error = work.run("p", "l", "-o", f"out/{name}", code=2)
    assert f"out/{name} is a file; name a folder" in error
    Path("out", name).unlink()
    for _ in range(2):  # what evaluate wrote it writes again
        work.run("p", "l", "--metrics", "dice", "-o", "out")


@pytest.mark.parametrize(
    ("prediction", "code", "said"),
    [
        (-PROBABILITY * 9, 1, "which is no probability; for logits store their softmax"),
        (
            np.int32(PROBABILITY * 99),
            2,
            "int32 with more than 2 values, which are no codes of prob",
        ),
    ],
    ids=["logits", "codes of our own"],
)
def test_channels_that_are_no_probabilities_of_classes_are_refused(work, prediction, code, said):
    work(p=np.stack([prediction, 1 - prediction]), l=LABEL)
    assert said in work.run("p", "l", *FIRST, code=code)[1]


def test_channels_of_masks_are_certain_classes(work):
    masks = np.stack([c == PREDICTED for c in range(3)]).astype(np.uint8)
    work(p=masks, l=CLASSES, other=PREDICTED)
    out, _ = work.run("p", "l", *FIRST, "--metrics", "dice,accuracy")
    same, _ = work.run("other", "l", "--kind", "multiclass", "--metrics", "dice,accuracy")
    assert "3 channels of masks" in out
    assert out.splitlines()[1:] == same.splitlines()[1:]
    assert '"brier" cannot be' in work.run("p", "l", *FIRST, "--metrics", "brier", code=2)[1]


@pytest.mark.parametrize(
    ("prediction", "label", "options"),
    [
        (PROBABILITY, LABEL, ()),
        (FIELD.astype(np.float32), FIELD.astype(np.float32) + 1, ("--kind", "regression")),
        (IDS.astype(np.float32), IDS, ("--kind", "instances")),
    ],
    ids=["binary", "regression", "instances"],
)
def test_nan_is_refused_only_where_it_counts(work, prediction, label, options):
    holes = prediction.copy()
    holes[3, 4, 5], mask = np.nan, np.ones(EXTENT, np.uint8)
    mask[3] = 0
    work(p=prediction, holes=holes, l=label, m=mask)
    _, error = work.run("holes", "l", *options, code=1)
    assert "holes holds NaN at (z, y, x) = (3, 4, 5), where the label counts" in error
    masked, whole = (work.run(p, "l", *options, "--mask", "m")[0] for p in ("holes", "p"))
    assert masked == whole


def test_a_mask_of_floats_is_closed_where_it_is_nan(work):
    closed = np.ones(EXTENT, np.float32)
    closed[3:6] = 0
    holes = np.where(closed == 0, np.float32(np.nan), closed)
    work(p=PROBABILITY, ids=IDS, same=IDS, l=LABEL, zero=closed, nan=holes)
    for pair in (("p", "l", "--metrics", "dice,average_precision"), ("ids", "same", *INSTANCES)):
        tables = [work.run(*pair, "--mask", mask)[0] for mask in ("zero", "nan")]
        assert tables[0] == tables[1]
    assert (
        work.run("p", "l", "--metrics", "dice")[0]
        != work.run("p", "l", "--metrics", "dice", "--mask", "nan")[0]
    )


def test_a_tolerance_of_nothing_counts_what_lies_on_each_other(work):
    work(p=PREDICTED == 1, l=PREDICTED == 1)
    out, _ = work.run("p", "l", "--metrics", "surface", "--tolerance", "0", "--json")
    (volume,) = Report.from_json(json.loads(out)).volumes
    assert volume.targets["l"].figures["surface_dice"] == 1


def test_r2_of_large_numbers_is_that_of_their_differences(work):
    rng = np.random.default_rng(0)
    label = rng.choice([60_000, 60_002], EXTENT).astype(np.uint16)
    prediction = np.where(rng.random(EXTENT) < 0.8, label, 60_002).astype(np.uint16)
    work(p=prediction, l=label)
    out, _ = work.run("p", "l", "--kind", "regression", "--metrics", "r2", "--json")
    (volume,) = Report.from_json(json.loads(out)).volumes
    p, t = prediction.astype(float), label.astype(float)
    expected = 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    assert volume.targets["l"].figures["r2"] == pytest.approx(expected, abs=1e-6)


def test_spacing_and_unit_come_from_the_groups(work, tmp_path):
    group(tmp_path / "p.zarr", PROBABILITY, (2.0, 1.0, 0.5))
    group(tmp_path / "l.zarr", LABEL, (2.0, 1.0, 0.5))
    out, _ = work.run("p.zarr", "l.zarr", "--json", "--metrics", "surface,centroid_distance")
    (volume,) = Report.from_json(json.loads(out)).volumes
    assert (volume.spacing, volume.unit) == ((2.0, 1.0, 0.5), "micrometer")
    out, _ = work.run("p.zarr", "l.zarr", "--json", "--metrics", "surface", "--spacing", "1,1,1")
    (other,) = Report.from_json(json.loads(out)).volumes
    assert other.spacing == (1.0, 1.0, 1.0)
    assert other.targets["l"].figures["assd"] != volume.targets["l"].figures["assd"]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"spacing": (2.0, 1.0, 1.0)}, r"spacing \(2, 1, 1\), the prediction \(2, 1, 0.5\)"),
        ({"offset": (0.0, 8.0, 0.0)}, r"begins at \(0, 8, 0\), the prediction at \(0, 0, 0\)"),
        ({"unit": "millimeter"}, r"in millimeter, those of the prediction in micrometer"),
    ],
)
def test_arrays_at_other_places_are_refused_unless_the_spacing_is_given(work, tmp_path, grid, said):
    group(tmp_path / "p.zarr", PROBABILITY, (2.0, 1.0, 0.5))
    group(tmp_path / "l.zarr", LABEL, **({"spacing": (2.0, 1.0, 0.5)} | grid))
    _, error = work.run("p.zarr", "l.zarr", code=2)
    assert re.search(said, error)
    assert "--spacing" in error
    work.run("p.zarr", "l.zarr", "--spacing", "2,1,0.5", "--metrics", "dice")


def test_a_mask_at_another_place_is_refused(work, tmp_path):
    group(tmp_path / "p.zarr", PROBABILITY, (2.0, 1.0, 0.5))
    group(tmp_path / "m.zarr", np.ones(EXTENT, np.uint8), (2.0, 1.0, 0.5), offset=(0.0, 8.0, 0.0))
    work(l=LABEL)
    _, error = work.run("p.zarr", "l", "--mask", "m.zarr", code=2)
    assert "--mask: " in error
    assert "begins at (0, 8, 0), the prediction at (0, 0, 0)" in error
    work.run("p.zarr", "l", "--mask", "m.zarr", "--spacing", "2,1,0.5", "--metrics", "dice")


def test_files_that_an_affine_puts_elsewhere_are_refused(work, tmp_path):
    """Of one shape and voxel size; turned, mirrored or moved, as only the affine says."""
    affine = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, 7], [0, 0, 2, -3], [0, 0, 0, 1.0]])
    moved, mirrored = affine.copy(), affine @ np.diag([-1, 1, 1, 1.0])
    moved[:2, 3] += [0.4, 0.3]
    mirrored[:3, 3] += affine[:3, 0] * (EXTENT[2] - 1)
    for name, place in {"p": affine, "l": affine, "moved": moved, "mirrored": mirrored}.items():
        voxels = PROBABILITY.astype(np.float32) if name == "p" else LABEL.astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels.T, place), tmp_path / f"{name}.nii.gz")
    work.run("p.nii.gz", "l.nii.gz", "--metrics", "dice")
    _, error = work.run("p.nii.gz", "moved.nii.gz", code=2)
    assert "voxels (0.5 mm) off" in error
    _, error = work.run("p.nii.gz", "mirrored.nii.gz", code=2)
    assert "has its axes otherwise" in error
    work.run("p.nii.gz", "mirrored.nii.gz", "--spacing", "2,1,1", "--metrics", "dice")


def test_a_label_of_several_values_is_no_mask_of_a_prediction_of_ours(work, tmp_path):
    notes = {
        "vcmodels": {"encoding": BinaryTarget().encoding(np.dtype(np.uint8)), "complete": True}
    }
    codes = np.rint(PROBABILITY * 255).astype(np.uint8)
    group(tmp_path / "p.zarr", codes, (1.0, 1.0, 1.0), notes=notes)
    unknown = LABEL.copy()
    unknown[:2] = 255
    work(l=LABEL, unknown=unknown)
    _, error = work.run("p.zarr", "unknown", code=2)
    assert "--foreground: is needed: the label holds the values 0, 1, 255" in error
    for options in (("--ignore", "255"), ("--foreground", "> 0"), ("--foreground", "== 1")):
        work.run("p.zarr", "unknown", *options, "--metrics", "dice")
    work.run("p.zarr", "l", "--metrics", "dice")


def test_a_prediction_of_ours_says_what_it_is(work, tmp_path):
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7])
    notes = {"vcmodels": {"encoding": target.encoding(np.dtype(np.uint8)), "complete": True}}
    values = np.array([0, 3, 7], np.uint8)
    group(tmp_path / "p.zarr", values[PREDICTED], (1.0, 1.0, 1.0), notes=notes)
    work(l=values[CLASSES])
    out, _ = work.run("p.zarr", "l", "--metrics", "dice")
    assert "comparing as multiclass, as the prediction says" in out
    assert out.splitlines()[2].split() == ["l", "all", "3", "7"]
    _, error = work.run("p.zarr", "l", "--kind", "binary", code=2)
    assert "--kind: binary, but the prediction says that it is multiclass" in error
    _, error = work.run("l", "p.zarr", code=2)
    assert "give the prediction first, then its label" in error
    notes["vcmodels"]["complete"] = False
    group(tmp_path / "half.zarr", values[PREDICTED], (1.0, 1.0, 1.0), notes=notes)
    _, error = work.run("half.zarr", "l", code=2)
    assert "half.zarr/0 is not finished; run infer again" in error


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("p", "p"), 2, "p is the prediction itself"),
        (("p", "short"), 2, "has extent (9, 14, 18), the prediction (10, 14, 18)"),
        (("p", "none"), 2, "none"),
        (("p", "l", "--bbox", "0:11,0:4,0:4"), 2, "--bbox: reaches out of the volume"),
        (("p", "l", "--mask", "short"), 2, "--mask: "),
        (("p", "l", "--level", "1"), 2, "--level: no OME-Zarr group is given"),
        (("p", "l", "--kind", "nope"), 2, '--kind: found "nope"; choose from binary'),
        (("p", "l", "--classes", "0,1", "--kind", "binary"), 2, "--classes: has no effect"),
        (("p", "l", "--axial"), 2, "--axial: has no effect for kind binary"),
        (("p", "l", "--classes", "0,0"), 2, "names one twice"),
        (("p", "l", "--metrics", "nope"), 2, '"nope" cannot be measured'),
        (("p", "l", "--metrics", "dice", "--tolerance", "1"), 2, "--tolerance: none of dice takes"),
        (("p", "l", "--tolerance", "-1"), 2, "give numbers from 0 on"),
        (("p", "l", "--ignore", "a"), 2, "give whole numbers"),
        (("p", "l", "--foreground", "big"), 2, '--foreground: "big" is no comparison'),
        (("p", "l", "--set", "name=1"), 2, "says nothing of how arrays are read"),
        (("vectors", "l"), 2, "say which with --set channel_axis=first, or last"),
        (("p", "l", "--fold", "1"), 2, "--fold: goes with a task"),
        (("p", "l", "--overlay", "a.png"), 2, "--overlay: goes with a task"),
        (("p", "l", "--workers", "2", "--dask", "local:1"), 2, "--workers: goes with no --dask"),
        (("p", "l", "-o", "l/out"), 2, "lies in the Zarr store"),
        (("task.json", "--kind", "binary"), 2, "--kind: goes with two arrays; give the label too"),
        (("task.json", "--mask", "m"), 2, "--mask: goes with two arrays"),
        (("logits", "l"), 1, "holds 3, which is no probability; for logits give --predicted-fore"),
        (("p", "negative", "--foreground", "> 0"), 0, "dice"),
        (
            ("p3", "l3", "--classes", "0,1"),
            1,
            "p3 holds 2, which is no class; name it with --classes",
        ),
    ],
)
def test_wrong_arguments_are_named(work, options, code, said):
    logits = np.where(PROBABILITY > 0.5, 3, PROBABILITY).astype(np.float32)
    work(p=PROBABILITY, l=LABEL, short=LABEL[:9], logits=logits, negative=LABEL.astype(np.int8) - 1)
    work(p3=PREDICTED, l3=LABEL, vectors=VECTORS)
    out, error = work.run(*options, code=code)
    assert said in " ".join((out + error).split())
    assert not Path("l/out").exists()


def test_axes_channels_and_positions_are_chosen(work):
    both = np.stack([PROBABILITY, 1 - PROBABILITY])
    work(p=both, l=np.stack([1 - LABEL, LABEL])[:, None].transpose(1, 0, 2, 3, 4).copy())
    keys = (
        "axes.label=tczyx",
        "axes.prediction=czyx",
        "index.t=0",
        "index.c.label=1",
        "channels=[0]",
    )
    out, _ = work.run("p", "l", *(w for k in keys for w in ("--set", k)), "--metrics", "dice")
    expected = dice(PROBABILITY > 0.5, LABEL > 0)
    assert float(figures(out)["dice"]) == pytest.approx(expected, abs=1e-4)


def scores(out):
    """The targets of a printed report."""
    return json.loads(out)["volumes"][0]["targets"]


def test_a_stopped_command_continues_and_a_cluster_gives_the_same(work, monkeypatch):
    work(p=PROBABILITY, l=LABEL)
    expected, _ = work.run("p", "l", "--json")
    asked = []

    def stop(signals):
        asked.append(1)
        signals.received = signal.SIGINT if len(asked) > 1 else None
        return signals.is_stopped()

    words = ("p", "l", "--workers", "1", "-o", "out", "--json")
    with monkeypatch.context() as context:
        context.setattr(StopSignals, "should_stop", stop)
        context.setattr(scoring, "blocks_of", lambda box, _cell: blocks_of(box, (4, 5, 6)))
        _, said = work.run(*words, code=130)
    assert "stopped; the same command continues" in said
    assert [path.name for path in Path("out").iterdir()] == ["unfinished"]
    out, _ = work.run(*words)
    assert scores(out) == scores(expected)
    assert not Path("out/unfinished").exists()
    out, _ = work.run("p", "l", "--dask", "local:1", "--json")
    assert scores(out) == scores(expected)


def test_a_spacing_has_three_lengths(work):
    work(p=PROBABILITY, l=LABEL)
    _, error = work.run("p", "l", "--spacing", "1,2", code=2)
    assert '--spacing: found "1,2"; give three, as in 4,1,1' in error


def test_sheets_are_told_apart_by_the_ids_of_the_label_of_a_mask(work):
    place = np.indices((12, 14, 24))[2] / 3.5 + 1
    ids = np.where(np.abs(place - np.rint(place)) < 0.3, np.rint(place), 0).astype(np.uint16)
    merged = np.ones(ids.shape, np.uint8)
    half = np.where(np.arange(14)[:, None] < 7, merged, ids > 0).astype(np.uint8)
    work(ids=ids, half=half, named=7 * ids)
    sheets = ("--metrics", "sheets", "--workers", "1")
    out, _ = work.run("half", "ids", "--foreground", "> 0", *sheets)
    assert 0.4 < float(figures(out)["resolved_3_4"]) < 0.6
    out, _ = work.run("named", "ids", "--kind", "instances", *sheets)
    assert float(figures(out)["resolved_3_4"]) == 1
