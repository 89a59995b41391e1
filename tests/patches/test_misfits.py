"""What labels cannot mean is said before the first step, alike by `check`, `patches` and `train`."""

import json
import shutil
import tempfile
from collections import Counter

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from vcmodels.cli import main
from vcmodels.errors import TaskError
from vcmodels.patches import index as label_index
from vcmodels.patches import misfits
from vcmodels.patches.find import search_patches
from vcmodels.patches.misfits import report_misfits, report_split, report_unlearnt
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Silent
from vcmodels.volumes import Volume

SHAPE = (20, 25, 31)


@pytest.fixture
def entry(store):
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    return {"input": store("raw", image)}


@pytest.fixture
def said(make_task, entry, store, tmp_path):
    """The lines for a label, and the error if there is one, each time with a new index."""
    count = iter(range(100))

    def said(label, target, is_ref=True, volume=None, **written):
        name = f"label{next(count)}"
        volume = {**entry, "t": store(name, label, **written), **(volume or {})}
        if is_ref:
            volume["ref_label"] = "t"
        dataset = {"index_dir": str(tmp_path / name)}
        resolved = resolve(make_task([volume], {"t": target}, dataset=dataset))
        reporter = Silent()
        try:
            report_misfits(resolved.task, resolved.volumes, reporter)
        except TaskError as error:
            return reporter.lines, str(error)
        return reporter.lines, None

    return said


BINARY = {"kind": "binary"}


@pytest.mark.parametrize("is_ref", [True, False], ids=["reference", "another"])
@pytest.mark.parametrize("shards", [None, (10, 12, 14)])
def test_a_value_that_is_no_class_is_named_with_its_place(said, blobs, is_ref, shards):
    classes = {"kind": "multiclass", "channels": 2}
    assert said(blobs, classes, is_ref, shards=shards) == ([], None)
    blobs[17, 3, 29] = blobs[17, 4, 29] = 9
    _, error = said(blobs, classes, is_ref, shards=shards)
    assert error == (
        "dataset_config.volume_paths.0.t: volume data.zarr/raw holds 9 in 2 voxels, at (z, y, x) = "
        '(17, 3, 29); the classes are 0, 1; correct "channels", "label_values" or "remap", or name '
        'it in "ignore_label"'
    )
    assert said(blobs, {**classes, "ignore_label": 9}, is_ref) == ([], None)


@pytest.mark.parametrize("is_ref", [True, False], ids=["reference", "another"])
def test_what_lies_outside_of_the_bbox_is_not_spoken_of(said, blobs, is_ref):
    blobs[12:, 7:9] = 9
    inside = {"bbox": [[0, 11], [1, 25], [2, 31]]}
    classes = {"kind": "multiclass", "channels": 2}
    assert said(blobs, classes, is_ref, inside) == ([], None)
    soft = np.where(blobs == 9, 0.5, blobs > 0).astype(np.float32)
    assert said(soft, BINARY, is_ref, inside) == ([], None)
    assert "holds 9 in" in said(blobs, classes, is_ref, {"bbox": [[0, 13], [1, 25], [2, 31]]})[1]
    assert "fractions" in said(soft, BINARY, is_ref)[1]


def test_what_is_not_stored_counts_as_the_fill_value(said, blobs):
    ones = np.ones(SHAPE, np.uint8)
    _, error = said(ones, BINARY, fill_value=1)
    assert "all 15,500 voxels that count are foreground, none background" in error
    assert "all 15,500 voxels" in said(ones, BINARY, is_ref=False, fill_value=1)[1]
    half = ones.copy()
    half[10:] = 0
    assert said(half, BINARY, chunks=(10, 25, 31)) == ([], None)
    _, error = said(ones * 255, {**BINARY, "ignore_label": 255}, is_ref=False, fill_value=255)
    assert "no voxel counts; all of it is ignored" in error


def test_a_large_label_is_looked_at_in_parts(said, blobs, monkeypatch):
    monkeypatch.setattr(label_index, "BRICK_SIDE", 5)
    monkeypatch.setattr(misfits, "MOST_VOXELS", 3000)
    reads, read = [], Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, *a, **k: reads.append(self) or read(self, *a, **k)
    )
    soft = blobs * np.float32(0.5)
    assert "fractions" in said(soft, BINARY, is_ref=False)[1]
    labels = [volume for volume in reads if "label" in volume.location and volume.dtype.kind == "f"]
    assert 0 < len([v for v in labels if "data.zarr" in v.location]) * 5 * 6 * 7 < 6000


def test_no_voxel_is_read_again(said, blobs, make_task, entry, store, tmp_path, monkeypatch):
    volume = {**entry, "t": store("label", blobs * np.float32(0.25)), "ref_label": "t"}
    target = {"t": {"kind": "binary", "foreground": ">= 0.25"}}
    resolved = resolve(make_task([volume], target, dataset={"index_dir": str(tmp_path / "index")}))
    search_patches(resolved.task, resolved.volumes)
    monkeypatch.setattr("vcmodels.patches.index_build.cells_of", pytest.fail)
    report_misfits(resolved.task, resolved.volumes, Silent())


def test_an_index_of_before_is_given_figures(make_task, entry, store, tmp_path, blobs):
    volume = {**entry, "t": store("label", blobs * np.float32(0.25)), "ref_label": "t"}
    folder = tmp_path / "index"
    target = {"t": {"kind": "binary"}}
    resolved = resolve(make_task([volume], target, dataset={"index_dir": str(folder)}))
    found = search_patches(resolved.task, resolved.volumes)
    (figures,) = folder.glob("*/figures")
    shutil.rmtree(figures)
    again = search_patches(resolved.task, resolved.volumes)
    assert again.digest() == found.digest()
    with pytest.raises(TaskError, match="holds fractions, from 0 to"):
        report_misfits(resolved.task, resolved.volumes, Silent())
    assert figures.is_dir()


def test_a_foreground_decides_which_patches_there_are(make_task, entry, store, tmp_path):
    rng = np.random.default_rng(2)
    soft = rng.random(SHAPE).astype(np.float32) ** 4
    hard = (soft >= 0.5).astype(np.uint8)
    two = np.where(hard, 1, 2).astype(np.uint8)

    names = iter("abcdefgh")

    def patches(label, **target):
        volume = {**entry, "t": store(next(names), label), "ref_label": "t"}
        thresholds = {"min_labeled_ratio": 0.2, "min_bbox_percent": 0.9}
        dataset = {**thresholds, "index_dir": str(tmp_path / "index"), "patch_stride": [4, 4, 4]}
        task = make_task([volume], {"t": {"kind": "binary", **target}}, dataset=dataset)
        resolved = resolve(task)
        return search_patches(task, resolved.volumes).rows.tolist()

    wanted = patches(hard)
    assert 0 < len(wanted) < 100
    assert patches(soft, foreground=">= 0.5") == wanted
    assert patches((soft * 255).astype(np.uint8), foreground=">= 127") != patches(
        two, ignore_label=0
    )
    assert patches(two, foreground="== 1") == wanted
    # Where 0 is ignored, the background is annotated, too.
    assert patches(two, foreground="== 1", ignore_label=0) == patches(two + 1)


def test_a_class_that_no_training_patch_holds_gets_a_line(make_task, entry, store, blobs):
    label = blobs.copy()
    label[16:, 20:] = 2
    volume = {**entry, "t": store("label", label), "ref_label": "t"}
    classes = {"t": {"kind": "multiclass", "channels": 3}}
    resolved = resolve(make_task([volume], classes, patch_jitter=False))
    reporter = Silent()
    rows = np.array([[0, 0, 0, 0], [0, 8, 12, 20]])
    report_unlearnt(resolved.task, resolved.volumes, rows, reporter)
    (line,) = reporter.lines
    assert line.startswith("note: dataset_config.targets.t: no training patch holds 2 (620 voxels)")
    reporter = Silent()
    more = np.concatenate([rows, [[0, 12, 17, 0]]])
    report_unlearnt(resolved.task, resolved.volumes, more, reporter)
    assert not reporter.lines


def test_what_a_new_training_would_make_of_the_patches(make_task, entry, store, blobs):
    volume = {**entry, "t": store("label", blobs), "ref_label": "t"}
    resolved = resolve(make_task([volume], {"t": {"kind": "binary"}}, split_guard=30))
    reporter = Silent()
    patches = search_patches(resolved.task, resolved.volumes)
    report_split(resolved.task, resolved.volumes, patches, reporter)
    (line,) = reporter.lines
    assert line.startswith("note: tr_params.split_guard: 30 leaves no patch on one side of volume")


@pytest.fixture
def three_values(sheet_task, task_file, tmp_path):
    """0 unlabelled, 1 sheet, 2 air: with 0 ignored, there is no background."""

    def write(**target):
        config = sheet_task["dataset_config"]
        volume = config["volume_paths"][0]
        label = zarr.open_array(volume["sheet"])[...]
        place = str(tmp_path / f"air{len(target)}.zarr")
        zarr.save_array(place, np.where(label == 1, 1, 2).astype(np.uint8))
        volume = {**{k: v for k, v in volume.items() if k != "normals"}, "sheet": place}
        targets = {"sheet": {"kind": "binary", "ignore_label": 0, **target}}
        dataset = {**config, "volume_paths": [volume], "targets": targets}
        return str(task_file({**sheet_task, "dataset_config": dataset}))

    return write


@pytest.mark.parametrize("command", ["check", "patches", "train"])
def test_the_commands_refuse_alike_and_write_nothing(command, three_values, tmp_path, capsys):
    assert main([command, three_values()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: dataset_config.targets.sheet: all 129,024 voxels that count are"
    )
    assert error.endswith(
        'none background; give "foreground": "== 1" or correct ignore_label, or remove the target'
    )
    assert not (tmp_path / "run" / "patches.json").exists()
    assert not list((tmp_path / "run").glob("tiny*"))


def test_the_remedy_is_followed_in_the_same_folder(three_values, tmp_path, capsys):
    assert main(["train", three_values()]) == 2
    capsys.readouterr()
    assert main(["train", three_values(foreground="== 1")]) == 0
    assert (tmp_path / "run" / "tiny_last.pth").exists()
    task = json.loads((tmp_path / "run" / "task.json").read_text())
    assert task["dataset_config"]["targets"]["sheet"]["foreground"] == "== 1"
    assert "note" not in capsys.readouterr().out


CLASSES = {"kind": "multiclass", "channels": 2}
INSIDE, WIDER = ({"bbox": [[0, end], [1, 25], [2, 31]]} for end in (11, 14))


@pytest.mark.parametrize("is_ref", [True, False], ids=["reference", "another"])
@pytest.mark.parametrize(
    ("target", "value"),
    [*((CLASSES, value) for value in (-1, -7, 300, 40_000)), (BINARY, -1)],
    ids=lambda given: given["kind"] if isinstance(given, dict) else str(given),
)
def test_a_value_that_is_no_class_outside_of_the_bbox_is_none_of_the_task(
    said, blobs, target, value, is_ref
):
    label = blobs.astype(np.int32)
    label[12:, 7:9] = value
    assert said(label, target, is_ref, INSIDE) == ([], None)
    lines, error = said(label, target, is_ref, WIDER)
    assert f"holds {value}" in (error or lines[0])


@pytest.mark.parametrize("is_ref", [True, False], ids=["reference", "another"])
def test_an_id_below_0_outside_of_the_bbox_is_none_of_the_task(
    make_task, entry, store, tmp_path, is_ref
):
    label = np.arange(1, np.prod(SHAPE) + 1, dtype=np.int32).reshape(SHAPE)  # too many to count
    label[12:, 7:9] = -1
    volume = {
        **entry,
        "cells": store("cells", label, chunks=(10, 12, 14)),
        "sheet": store("sheet", label % 2),
    }
    volume["ref_label"] = "cells" if is_ref else "sheet"
    targets = {
        "edge": {"kind": "boundary", "derive": "cells"},
        "sheet": {**BINARY, "foreground": "> 0"},
    }

    def report(bbox, folder):
        task = make_task(
            [{**volume, **bbox}], targets, dataset={"index_dir": str(tmp_path / folder)}
        )
        resolved, reporter = resolve(task), Silent()
        report_misfits(resolved.task, resolved.volumes, reporter)
        return reporter.lines

    assert report(INSIDE, "inside") == []
    with pytest.raises(TaskError, match=r"paths.0.cells: .* holds -1; .* at .* = \(12, 7, 2\)"):
        report(WIDER, "wider")


@pytest.fixture
def label_reads(monkeypatch):
    """Counts the reads of each chunk of a label, by array and chunk."""
    reads: Counter[str] = Counter()
    get = LocalStore.get

    async def counting(self, key, *args, **named):
        place = f"{self.root}/{key}"
        if "data.zarr/label" in place and "zarr.json" not in key:
            reads[place.partition("data.zarr/")[2]] += 1
        return await get(self, key, *args, **named)

    monkeypatch.setattr(LocalStore, "get", counting)
    return reads


def test_check_reads_each_chunk_of_a_label_once_and_keeps_nothing(
    make_task, entry, store, blobs, label_reads, tmp_path, monkeypatch
):
    labels = {"label_ref": blobs, "label_ids": blobs * 3, "label_soft": blobs * np.float32(0.5)}
    places = {name: store(name, label) for name, label in labels.items()}
    volume = {**entry, "ref": places["label_ref"], "ids": places["label_ids"], "ref_label": "ref"}
    volume["soft"] = places["label_soft"]
    targets = {
        "ref": BINARY,
        "ids": {"kind": "multiclass", "label_values": [0, 3], "channels": 2},
        "edge": {"kind": "boundary", "derive": "ids"},
        "soft": {"kind": "regression"},
    }
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    dataset = {"index_dir": str(tmp_path / "index")}
    task = make_task([volume], targets, dataset=dataset)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task.to_json()))
    label_reads.clear()
    assert main(["check", str(path)]) == 0
    chunks = {file.parts for file in (tmp_path / "data.zarr").glob("label_*/c/*/*/*")}
    assert len(chunks) == len(label_reads) > 100
    assert set(label_reads.values()) == {1}
    left = {entry.name for entry in tmp_path.iterdir()} - {"data.zarr", "task.json", "scratch"}
    assert left | {*(tmp_path / "scratch").iterdir()} == set()
