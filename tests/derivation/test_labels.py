import json
import re
import signal

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.labels import Label
from vcmodels.data.volumes import open_volumes
from vcmodels.derivation import derive as run
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.targets import KINDS, DistanceTarget
from vcmodels.volumes import Grid, create_array, group_attributes, open_volume, whole_folder

EXTENT = (13, 18, 23)
SPACING = (2.0, 1.0, 1.5)

OFFSETS = [[-1, 0, 0], [0, 3, 0], [0, -2, 4]]
STORED = {
    "binary": {"kind": "binary"},
    "boundary": {"kind": "boundary"},
    "affinities": {"kind": "affinities", "offsets": OFFSETS},
    "distance": {"kind": "distance", "clip": 3.5, "positive": "inside"},
    "normals": {"kind": "normals", "vector_order": "zyx"},
    "axes": {"kind": "normals", "orientation": "axial"},
    "vector": {"kind": "vector"},
    "centres": {"kind": "centres"},
}
"""Keys of targets of each kind that can be derived."""
DERIVED = {
    "binary": {"dilate_label": 2},
    "boundary": {"width": 1.5, "between": "instances"},
    "distance": {"surface_of": "instances"},
    "normals": {"smoothing_sigma": 0.7},
    "vector": {"max_extent": 5},
    "centres": {"max_extent": [4, 4, 5]},
}
"""Those that go with `derive` alone."""


def block(name, **more):
    return {**STORED[name], **DERIVED.get(name, {}), "derive": "cells", **more}


@pytest.fixture
def cells():
    """Bricks of up to (3, 4, 5) voxels, some of which touch; 9 is ignored."""
    rng = np.random.default_rng(3)
    ids = np.zeros(EXTENT, np.uint16)
    for number, corner in enumerate(np.ndindex(3, 3, 3), start=10):
        z, y, x = (int(4.3 * i + rng.integers(0, 2)) for i in corner)
        ids[z : z + 3, y + 1 : y + 5, x + 1 : x + 6] = number
    ids[:, 16:, 17:] = 9
    ids[5, 4, ::7] = 9
    return ids


@pytest.fixture
def build(tmp_path, cells):
    """A task whose only label is `cells`, with targets that are derived from it."""
    root = str(tmp_path / "data.zarr")
    for name, values in (("raw", np.zeros(EXTENT, np.uint8)), ("cells", cells)):
        grid = Grid(SPACING, (5.0, 6.0, 7.0), "micrometer")
        array = create_array(
            root, name, shape=EXTENT, chunks=(5, 6, 7), dtype=values.dtype, grid=grid
        )
        array.write(open_volume(array.location, key=name).box, values[None])

    def make(targets, volume=None, chunks=(8, 8, 8), **sections):
        entry = {"input": f"{root}/raw", "cells": f"{root}/cells", "name": "scroll"}
        entry |= volume or {}
        return {
            "tr_params": {"model_name": "m", "patch_size": [8, 8, 8]},
            "model_config": {"f_maps": [2, 4]},
            "augment": [],
            "inference_params": {"output_chunks": list(chunks)},
            "dataset_config": {
                "volume_paths": [{k: v for k, v in entry.items() if v is not None}],
                "targets": targets,
            },
        } | sections

    return make


def label_of(task, name):
    """The whole label of a target, as training reads it."""
    (volume,) = open_volumes(task)
    label = volume.label(name, task.dataset_config.targets[name], volume.region)
    return label.read(volume.inputs[0].box)


@pytest.mark.parametrize(
    ("version", "bbox"),
    [(2, None), (3, [[2, 12], [0, 18], [3, 22]])],
    ids=["whole", "part"],
)
@pytest.mark.parametrize("name", STORED)
def test_what_is_written_reads_back_as_the_label(build, tmp_path, monkeypatch, name, bbox, version):
    monkeypatch.setattr("vcmodels.derivation.labels.LEAST_BLOCK", 1)
    target = block(name, ignore_label=9)
    params = {"inference_params": {"output_chunks": [5, 6, 7], "output_zarr_format": version}}
    task, _ = parse_task(build({"t": target}, {"bbox": bbox}, **params), "test")
    reporter = Silent()
    place = run(task, "t", str(tmp_path / "t.zarr"), reporter=reporter)
    wanted, valid = label_of(task, "t")
    assert valid.any()
    assert not valid.all()
    assert np.abs(wanted).sum() > 10

    keys = re.search(r"the target then has (.*) in the place of", reporter.lines[-1])[1]
    stored = STORED[name] | json.loads("{" + keys + "}")
    entry = {"cells": None, "t": str(place), "bbox": bbox}
    again, _ = parse_task(build({"t": stored}, entry), "test")
    found, counts = label_of(again, "t")
    np.testing.assert_array_equal(counts, valid)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_blocks_without_anything_stored_are_computed_once(build, tmp_path, monkeypatch):
    monkeypatch.setattr("vcmodels.derivation.labels.LEAST_BLOCK", 1)
    root, extent = str(tmp_path / "data.zarr"), (24, 24, 64)
    cells = np.zeros((1, *extent), np.uint8)
    cells[:, 3:6, 4:7, 2:5] = 1
    for name, values in (("wide", cells), ("thin", cells)):
        array = create_array(root, name, shape=extent, chunks=(8, 8, 8), dtype="uint8")
        array.write(Box((0, 0, 0), extent), values)
    data = build({"t": block("distance")}, {"input": f"{root}/wide", "cells": f"{root}/thin"})
    task, _ = parse_task(data, "test")
    computed = []
    original = DistanceTarget.derive_label

    def counted(self, source, *arguments):
        computed.append(source.shape)
        return original(self, source, *arguments)

    monkeypatch.setattr(DistanceTarget, "derive_label", counted)
    place = run(task, "t", str(tmp_path / "t.zarr"))
    borders = 9 * 8 - 6  # the 6 blocks that touch no border have nothing stored around them
    assert borders + 1 <= len(computed) < borders + 6
    stored = open_volume(str(place), key="t")
    wanted, valid = label_of(task, "t")
    expected = np.where(valid, wanted * 3.5, np.nan)
    np.testing.assert_allclose(stored.read(stored.box), expected, rtol=1e-6)


def test_the_image_says_what_it_is(build, tmp_path):
    task, _ = parse_task(build({"t": block("vector")}), "test")
    place = run(task, "t", str(tmp_path / "t.zarr"))
    volume = open_volume(str(place), key="t", channels=3)
    assert (volume.spacing, volume.offset, volume.unit) == (SPACING, (5.0, 6.0, 7.0), "micrometer")
    notes = group_attributes(str(place))["vcmodels"]
    assert notes["encoding"]["kind"] == "vector"
    assert notes["encoding"]["vector_order"] == "xyz"
    assert notes["derived_from"] == str(tmp_path / "data.zarr/cells")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "t.zarr"]


@pytest.mark.parametrize(
    ("kind", "is_label"), [("boundary", True), ("affinities", False), ("distance", False)]
)
def test_a_mask_is_a_label_image_named_as_its_target(build, tmp_path, kind, is_label):
    task, _ = parse_task(build({"t": block(kind)}), "test")
    attributes = group_attributes(str(run(task, "t", str(tmp_path / "other.zarr"))))
    assert attributes["multiscales"][0]["name"] == "t"
    assert ("image-label" in attributes) == is_label
    if is_label:
        assert attributes["image-label"]["version"] == "0.4"
        colours = attributes["image-label"]["colors"]
        assert [colour["label-value"] for colour in colours] == [-1, 0, 1]


TARGETS = {"t": block("vector")}


@pytest.fixture
def command(build, tmp_path, capsys, monkeypatch):
    """Runs `vcmodels derive`; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(*words, data=None):
        (tmp_path / "task.json").write_text(json.dumps(data or build(TARGETS)))
        code = main(["derive", "task.json", *words])
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (code != 0)
        return code, captured.out + captured.err

    return call


def test_an_earlier_result_is_replaced_only_when_told(command, tmp_path):
    assert command("t", "--output", "t.zarr")[0] == 0
    marker = tmp_path / "t.zarr" / "marker"
    marker.touch()
    code, said = command("t", "--output", "t.zarr")
    assert code == 2
    assert "t.zarr: exists already; choose another, or give --overwrite" in said
    assert marker.exists()
    code, said = command("t", "--output", "t.zarr", "--overwrite")
    assert code == 0
    assert "t of scroll: " in said
    assert not marker.exists()
    assert (tmp_path / "t.zarr" / "0").is_dir()


def test_what_is_not_ours_is_never_replaced(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "link").symlink_to("mine")
    for place in ("mine", "link", "mine/thesis.txt"):
        code, said = command("t", "--output", place, "--overwrite")
        assert code == 2
        assert f"{place}: exists and was not written by vcmodels derive" in said
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["u", "--output", "t.zarr"], 'TARGET: "u" is no target; targets are t'),
        (["t", "--output", "s3://bucket/t.zarr"], "--output: s3://bucket/t.zarr is a URL"),
        (
            ["t", "--output", "data.zarr/t"],
            r"--output: .*data.zarr/t lies in the input .*data.zarr",
        ),
        (["t", "--output", "t.zarr", "--volume", "x"], '--volume: there is no volume "x" .*scroll'),
        (
            ["t", "--output", "task.json/t"],
            r"--output: .*task.json cannot be written",
        ),
        (["t"], "Missing option '--output'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command, tmp_path, words, message):
    code, said = command(*words)
    assert code == 2
    assert re.search(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "task.json"]


def test_a_stored_target_is_not_derived(command, build):
    code, said = command("cells", "--output", "o", data=build({"cells": {"kind": "binary"}}))
    assert code == 2
    assert "dataset_config.targets.cells: is stored, not derived" in said


def test_of_several_volumes_one_is_named(command, build, tmp_path):
    data = build(TARGETS)
    (entry,) = data["dataset_config"]["volume_paths"]
    lacking = {"input": entry["input"], "other": entry["cells"], "name": "lacking"}
    data["dataset_config"]["volume_paths"] += [{**entry, "name": "second"}, lacking]
    data["dataset_config"]["targets"] = TARGETS | {"other": {"kind": "binary"}}
    code, said = command("t", "--output", "t.zarr", data=data)
    assert code == 2
    assert '--volume: 2 volumes have a label "cells"; give one of scroll, second' in said
    code, said = command("t", "--output", "t.zarr", "--volume", "second", data=data)
    assert code == 0
    assert "t of second: " in said


def test_a_bad_value_is_named_and_leaves_nothing(command, build, tmp_path):
    path = str(tmp_path / "data.zarr")
    array = create_array(path, "bad", shape=EXTENT, chunks=(5, 6, 7), dtype="float32")
    values = np.zeros((1, *EXTENT), np.float32)
    values[0, 10, 11, 12] = 0.5
    array.write(open_volume(array.location, key="bad").box, values)
    data = build(TARGETS, {"cells": array.location})
    code, said = command("t", "--output", "t.zarr", data=data)
    assert code == 1
    assert "volume_paths.0.cells: volume scroll holds 0.5 at (z, y, x) = (10, 11, 12)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "task.json"]


def test_a_stop_leaves_nothing_and_keeps_what_was_there(command, build, tmp_path, monkeypatch):
    assert command("t", "--output", "t.zarr")[0] == 0
    (tmp_path / "t.zarr" / "marker").touch()

    def stopped(*_args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("vcmodels.derivation.labels.blocks_of", stopped)
    with pytest.raises(SystemExit) as leaving:
        command("t", "--output", "t.zarr", "--overwrite")
    assert leaving.value.code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "t.zarr", "task.json"]
    assert (tmp_path / "t.zarr" / "marker").exists()


def test_what_came_there_meanwhile_is_left_alone(command, tmp_path, monkeypatch):
    original = Label.read

    def read(self, box):
        (tmp_path / "t.zarr").mkdir(exist_ok=True)
        (tmp_path / "t.zarr" / "thesis.txt").touch()
        return original(self, box)

    monkeypatch.setattr(Label, "read", read)
    code, said = command("t", "--output", "t.zarr")
    assert code == 1
    assert "t.zarr" in said
    assert [path.name for path in (tmp_path / "t.zarr").iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "t.zarr", "task.json"]


def test_what_a_kill_left_is_in_nobodys_way(command, tmp_path):
    for name in (".t.zarr.partial", ".t.zarr.old"):
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / ".zgroup").touch()
    assert command("t", "--output", "t.zarr")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "t.zarr", "task.json"]


def test_two_do_not_write_one_output(command, tmp_path):
    with whole_folder(tmp_path / "t.zarr") as folder:
        (folder / "0").mkdir()
        code, said = command("t", "--output", "t.zarr")
        assert code == 2
        assert "t.zarr: another process writes it; wait for it" in said
        assert (folder / "0").is_dir()


def test_every_kind_that_can_be_derived_is_tested():
    kinds = {kind for kind, target in KINDS.items() if target.is_derivable}
    assert kinds == {target["kind"] for target in STORED.values()}


def test_the_offset_is_written_in_the_unit_of_the_spacing(tmp_path, cells):
    volumes = []
    for name, size, unit in (("a", 2000.0, "nanometer"), ("b", 2.0, "micrometer")):
        grid = Grid((size, size, size), (3 * size, 0.0, size), unit)
        for kind in ("raw", "cells"):
            array = create_array(
                str(tmp_path / name), kind, shape=EXTENT, chunks=(8, 8, 8), dtype="u2", grid=grid
            )
            array.write(Box((0, 0, 0), EXTENT), cells[None])
        entry = {"input": f"{tmp_path}/{name}/raw", "cells": f"{tmp_path}/{name}/cells"}
        volumes.append({**entry, "name": name})
    task = {
        "tr_params": {"model_name": "net"},
        "dataset_config": {"volume_paths": volumes, "targets": {"inside": {**block("binary")}}},
    }
    run(parse_task(task, "test")[0], "inside", str(tmp_path / "out.zarr"), volume="b")
    written = open_volume(str(tmp_path / "out.zarr"), key="x")
    assert (written.spacing, written.unit) == ((2000.0, 2000.0, 2000.0), "nanometer")
    assert written.offset == (6000.0, 0.0, 2000.0)
