"""Members alone, together and left out, against NumPy on what each has stored."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from pydantic import TypeAdapter

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.errors import RefusedError
from vcmodels.evaluation.fused import FusedPrediction, Fusion, fitted_weights
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.targets import AnyTarget
from vcmodels.training import train
from vcmodels.volumes import ArrayVolume
from vcmodels.workflows import fuse as workflow
from vcmodels.workflows.fuse import fuse

SHAPE = (5, 6, 7)


def target_of(**block):
    return TypeAdapter(AnyTarget).validate_python(block)


def volume(values, name="v"):
    return ArrayVolume.of(np.asarray(values, np.float32), (1.0, 1.0, 1.0), name)


def fused(members, target, fusion, spreads=()):
    stored = [volume(one, f"m{n}") for n, one in enumerate(members)]
    kept = [volume(one, f"s{n}") for n, one in enumerate(spreads)]
    found = FusedPrediction.of(stored, target, fusion, kept)
    return target.decode(found.read(Box((0, 0, 0), SHAPE)))


def test_the_mean_and_the_vote_of_masks_and_classes():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 1, *SHAPE)).astype(np.float32)
    binary, weights = target_of(kind="binary"), (0.5, 0.2, 0.3)
    mean = fused(masks, binary, Fusion("mean", weights))
    np.testing.assert_allclose(mean, np.tensordot(weights, masks, 1), atol=1e-6)
    vote = fused(masks, binary, Fusion("vote", weights, is_vote=True))
    np.testing.assert_allclose(vote, np.tensordot(weights, masks > 0.5, 1), atol=1e-6)
    classes = target_of(kind="multiclass", channels=3, output="probabilities")
    said = rng.dirichlet([1, 1, 1], (3, *SHAPE)).transpose(0, 4, 1, 2, 3)
    vote = fused(said, classes, Fusion("vote", (1.0, 1.0, 1.0), is_vote=True))
    hot = (said.argmax(1)[:, None] == np.arange(3).reshape(1, 3, 1, 1, 1)).mean(0)
    np.testing.assert_allclose(vote, hot, atol=1e-6)
    left = fused(masks, binary, Fusion("without", (1.0, 0.0, 1.0)))
    np.testing.assert_allclose(left, (masks[0] + masks[2]) / 2, atol=1e-6)


def test_the_mean_of_directions_and_of_axes():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 3, *SHAPE))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    oriented = target_of(kind="normals", vector_order="zyx")
    found = fused(vectors, oriented, Fusion("mean", (1.0, 1.0, 1.0)))
    mean = vectors.mean(0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=0), atol=1e-5)
    axial = target_of(kind="normals", vector_order="zyx", orientation="axial")
    signs = rng.choice([-1, 1], (3, 1, *SHAPE))
    found = fused(vectors * signs, axial, Fusion("mean", (1.0, 1.0, 1.0)))
    tensor = np.einsum("mizyx,mjzyx->zyxij", vectors, vectors)
    _, axes = np.linalg.eigh(tensor)
    cosine = np.einsum("izyx,zyxi->zyx", found, axes[..., -1])
    assert np.quantile(np.abs(cosine), 0.01) > 0.999


def test_the_weights_by_spread_are_those_of_inference():
    rng = np.random.default_rng(2)
    masks, deviation = rng.random((2, 2, 1, *SHAPE)).astype(np.float32)
    binary = target_of(kind="binary")
    found = fused(masks, binary, Fusion("variance", (0.5, 0.5), by_spread=4), deviation)
    variance = deviation.astype(np.float64) ** 2
    weights = 1 / (1 + 3 * variance / variance.mean(0))
    np.testing.assert_allclose(found, (weights * masks).sum(0) / weights.sum(0), atol=1e-5)


def test_fitted_weights_are_the_best_that_are_not_negative():
    rng = np.random.default_rng(3)
    truth = (rng.random((1, *SHAPE)) > 0.5).astype(np.float32)
    good, bad = 0.8 * truth + 0.1, 1 - truth
    fair = np.clip(truth + rng.normal(0, 0.4, truth.shape), 0, 1)
    binary = target_of(kind="binary", ignore_label=2)
    stored = truth.astype(np.uint8)
    stored[:, 0] = 2  # what does not count holds the opposite
    members = [np.where(stored == 2, 1 - truth, one) for one in (good, bad, fair)]
    label = StoredLabel("v", volume(stored), Box((0, 0, 0), SHAPE))
    box = Box((0, 0, 0), SHAPE)
    parts = [(Label(binary, label, (1.0, 1.0, 1.0)), [volume(one) for one in members], box)]
    found = np.array(fitted_weights(parts))
    assert found.sum() == pytest.approx(1)
    assert found[1] == pytest.approx(0, abs=1e-6)
    kept = stored != 2
    said = np.stack([one[kept] for one in members])

    def error(weights):
        weights = np.asarray(weights)
        best = (weights @ said @ truth[kept]) / ((weights @ said) ** 2).sum()
        return ((best * (weights @ said) - truth[kept]) ** 2).sum()

    least = error(found)
    for other in rng.dirichlet([1, 1, 1], 200):
        assert least <= error(other) + 1e-6


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("members")


@pytest.fixture
def task(sheet_task, task_file, kept):
    """A task with whole volumes of either side, and two networks of different shapes for it."""
    config = sheet_task["dataset_config"]
    (first,) = config["volume_paths"]
    bounds = {"train": [[0, 24], [0, 56], [0, 56]], "val": [[0, 24], [64, 96], [0, 56]]}
    config["volume_paths"] = [
        first | {"split": split, "bbox": box, "name": split} for split, box in bounds.items()
    ]
    config["targets"]["normals"]["orientation"] = "axial"
    sheet_task["inference_params"] = {"tta": {"flips": ["x"]}, "output_chunks": [16, 16, 16]}
    for seed, features in ((0, [4, 8]), (1, [6, 8])):
        copy = json.loads(json.dumps(sheet_task))
        copy["tr_params"] |= {"ckpt_out_base": str(kept / f"run{seed}"), "seed": seed}
        copy["model_config"]["f_maps"] = features
        if not (kept / f"run{seed}").exists():
            assert train(parse_task(copy, "task.json")[0], reporter=Silent()) == 0
    return task_file(sheet_task)


def test_a_report_is_that_of_numpy_by_hand(task, kept, phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "clear", lambda _: None)
    output = tmp_path / "out"
    words = ["compare", str(kept / "run0"), str(kept / "run1"), "--on", str(task), "--fuse"]
    assert main([*words, "--weights", "3,1", "-o", str(output), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    table = json.loads((output / "fuse.json").read_text())
    assert printed == table
    assert table["members"] == ["run0", "run1"]
    members = []
    for name in table["members"]:
        root = zarr.open_group(output / "predictions" / name / "val.zarr", mode="r")
        members.append(np.asarray(root["sheet"]["0"])[:, 64:96].astype(np.float64))
    label = np.asarray(zarr.open_array(phantom / "sheet", mode="r"))[:, 64:96]
    valid = label != 2

    def dice(said):
        mask = (said > 0.5)[valid]
        truth = (label == 1)[valid]
        return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())

    weights = np.array(table["ways"]["fitted"]["weights"]["sheet"])
    one, other = members
    wanted = {
        "run0": dice(one),
        "run1": dice(other),
        "mean": dice((one + other) / 2),
        "weighted": dice(0.75 * one + 0.25 * other),
        "fitted": dice(weights[0] * one + weights[1] * other),
        "vote": dice(((one > 0.5) * 1.0 + (other > 0.5)) / 2),
        "mean without run0": dice(other),
        "mean without run1": dice(one),
    }
    assert {*wanted, "variance"} == set(table["ways"])
    assert "upper bound" in table["ways"]["fitted"]["note"]
    for way, value in wanted.items():
        found = table["ways"][way]["figures"]["sheet"]["dice"]
        assert found == pytest.approx(value, abs=1e-4), way
    gain = table["gains"]["sheet"]["run0"]
    assert gain == pytest.approx(wanted["mean"] - wanted["mean without run0"], abs=1e-4)
    better = table["main"]["normals"]
    assert better == {"figure": "angle_deg", "better": "min"}
    angles = [table["ways"][way]["figures"]["normals"]["angle_deg"] for way in ("mean", "run1")]
    assert table["gains"]["normals"]["run0"] == pytest.approx(angles[1] - angles[0], abs=1e-6)
    assert "normals" not in table["ways"]["vote"]["figures"]
    page = (output / "fuse.html").read_text()
    assert "mean without run1" in page
    assert main([*words, "-o", str(tmp_path / "plain")]) == 0
    assert "run1 adds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("one", "there is one checkpoint"),
        ("twice", "is given twice"),
        ("weights", r"--weights: \[1.0\] for 2 checkpoints"),
    ],
)
def test_what_cannot_be_fused_is_refused(task, kept, tmp_path, change, match):
    names = [str(kept / "run0"), str(kept / "run1")]
    if change == "one":
        names = names[:1]
    if change == "twice":
        shutil.copytree(kept / "run0", tmp_path / "copy")
        names[1] = str(tmp_path / "copy")
    weights = [1.0] if change == "weights" else None
    output = tmp_path / "out"
    with pytest.raises(RefusedError, match=match):
        fuse(names, str(task), (), output, weights=weights, reporter=Silent())
    assert not output.exists()


def test_no_box_larger_than_a_block_is_held(monkeypatch):
    """The report reads members box by box: a whole volume would be one read."""
    stored, boxes = volume(torch.rand(1, *SHAPE).numpy()), []
    original = ArrayVolume._read_inside

    def noted(self, box):
        boxes.append(box)
        return original(self, box)

    monkeypatch.setattr(ArrayVolume, "_read_inside", noted)
    found = FusedPrediction.of([stored, stored], target_of(kind="binary"), Fusion("m", (1.0, 1.0)))
    part = Box((1, 2, 3), (2, 2, 2))
    assert found.read(part).shape == (1, 2, 2, 2)
    assert boxes == [part, part]
