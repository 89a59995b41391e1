import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from vcmodels.data.volumes import open_volumes, report_missing
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.volumes import set_group_attributes

SHAPE = (6, 7, 8)
NORMALS = {"sheet": {"kind": "binary"}, "normals": {"kind": "normals", "channels": 3}}


@pytest.fixture
def entry(store):
    return {
        "input": store("raw", np.zeros(SHAPE, np.uint8)),
        "sheet": store("sheet", np.zeros(SHAPE, np.uint8)),
        "ref_label": "sheet",
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_another_shape_are_refused_with_both_keys(make_task, entry, store, axis):
    shape = [*SHAPE]
    shape[axis] += 1
    entry["sheet"] = store("other", np.zeros(shape, np.uint8))
    message = rf"volume_paths.0.sheet: .*{tuple(shape)}.* but .*0.input .*{SHAPE}"
    message = message.replace("(6", r"\(6").replace("(7", r"\(7").replace("8)", r"8\)").replace("9)", r"9\)")  # fmt: skip
    with pytest.raises(VolumeError, match=message):
        open_volumes(make_task([entry]))


def test_chunks_that_are_not_stored_are_counted(make_task, entry, store):
    image = np.ones(SHAPE, np.uint8)
    image[:5, :6, :7] = 0
    entry["input"] = store("holes", image)
    entry["sheet"] = store("whole", np.ones(SHAPE, np.uint8))
    volumes, reporter = open_volumes(make_task([entry])), Silent()
    report_missing(volumes, reporter)
    assert reporter.lines == [f"{volumes[0].name}: chunks not stored, read as fill: input 1 of 8"]


def test_chunks_of_an_input_that_are_not_stored_are_an_error_where_the_task_says_so(
    make_task, entry, store
):
    image = np.ones(SHAPE, np.uint8)
    image[:5, :6, :7] = 0
    entry["input"] = store("holes", image)
    task = make_task([entry], dataset={"on_missing": "error"})
    with pytest.raises(
        VolumeError,
        match=r"^dataset_config.volume_paths.0.input: chunks of .*/holes.* that are not stored: 1, "
        r'the first \(0, 0, 0\); restore them, or set dataset_config.on_missing to "fill"$',
    ):
        open_volumes(task)
    assert len(open_volumes(make_task([entry], dataset={"on_missing": "fill"}))) == 1
    whole = {**entry, "input": store("whole", np.ones(SHAPE, np.uint8))}
    assert len(open_volumes(make_task([whole], dataset={"on_missing": "error"}))) == 1
    elsewhere = {**entry, "bbox": [[5, 6], [0, 7], [0, 8]]}
    assert len(open_volumes(make_task([elsewhere], dataset={"on_missing": "error"}))) == 1


def test_stored_chunks_that_hold_nothing_are_reported_before_they_are_read(make_task, entry, store):
    entry["input"] = store("holes", np.ones(SHAPE, np.uint8))
    entry["sheet"] = store("whole", np.ones(SHAPE, np.uint8))
    volumes = open_volumes(make_task([entry]))
    chunk = min(p for p in Path(entry["input"]).rglob("0") if p.is_file())
    chunk.unlink()
    chunk.symlink_to("nowhere")
    reporter = Silent()
    report_missing(volumes, reporter)
    assert reporter.lines == [
        f"{volumes[0].name}: input has damaged chunks: 1, the first (0, 0, 0): {chunk} is empty, or "
        "leads to nothing"
    ]


def test_vector_labels_need_their_channels(make_task, entry, store):
    entry["normals"] = store("flat", np.zeros(SHAPE, np.uint8))
    with pytest.raises(VolumeError, match=r"volume_paths.0.normals"):
        open_volumes(make_task([entry], NORMALS))


def test_inputs_are_stacked_and_must_have_one_shape(make_task, entry, store):
    more = store("more", np.zeros(SHAPE, np.float32))
    entry["input"] = [entry["input"], more]
    (volume,) = open_volumes(make_task([entry]))
    assert volume.channels == 2
    entry["input"] = [more, store("other", np.zeros((6, 7, 9), np.float32))]
    with pytest.raises(VolumeError, match="equal shapes"):
        open_volumes(make_task([entry]))


def test_bbox_is_cut_at_the_border_and_refused_outside(make_task, entry):
    entry["bbox"] = [[2, 6], [0, 99], [3, 5]]
    (volume,) = open_volumes(make_task([entry]))
    assert volume.region == Box((2, 0, 3), (4, 7, 2))
    entry["bbox"] = [[6, 9], [0, 7], [0, 8]]
    with pytest.raises(TaskError, match=r"bbox: .* outside of the shape \(6, 7, 8\)"):
        open_volumes(make_task([entry]))


@pytest.fixture
def cases(store):
    for name in ("b", "a", "c"):
        store(f"{name}/raw", np.zeros((4, 5, 6), np.uint8))
        if name != "c":
            store(f"{name}/sheet", np.zeros((4, 5, 6), np.uint8))
    root = Path(store("a/dist", np.zeros((4, 5, 6), np.float32))).parent.parent
    return str(root)


def test_star_expands_to_matching_stems_in_order(make_task, cases):
    entry = {"input": f"{cases}/*/raw", "sheet": f"{cases}/*/sheet"}
    reporter = Silent()
    volumes = open_volumes(make_task([entry]), reporter)
    assert [v.name for v in volumes] == ["a", "b", "c"]
    assert [Path(v.labels["sheet"].location).parent.name for v in volumes[:2]] == ["a", "b"]
    assert not volumes[2].labels
    assert reporter.lines[0] == "volume c has no sheet: no loss for it there"


def test_star_without_a_reference_label_is_refused(make_task, cases):
    entry = {"input": f"{cases}/*/raw", "sheet": f"{cases}/*/sheet", "ref_label": "sheet"}
    with pytest.raises(TaskError, match=r"0.sheet: there is no such label for '\*' = c"):
        open_volumes(make_task([entry]))


def test_a_star_in_some_paths_only_is_refused(make_task, cases):
    entry = {"input": f"{cases}/*/raw", "sheet": f"{cases}/a/sheet"}
    with pytest.raises(TaskError, match=r"'\*' in all or in none"):
        open_volumes(make_task([entry]))


def test_split_is_read_from_the_group(make_task, cases):
    for name, side in (("a", "train"), ("b", "val"), ("c", "train")):
        set_group_attributes(f"{cases}/{name}", {"fold": side}, zarr_format=3)
    entry = {
        "input": f"{cases}/*/raw",
        "sheet": f"{cases}/*/sheet",
        "split": {"attribute": "fold"},
    }
    assert [v.split for v in open_volumes(make_task([entry]))] == ["train", "val", "train"]
    set_group_attributes(f"{cases}/c", {"fold": "test"}, zarr_format=3)
    assert [v.split for v in open_volumes(make_task([entry]))] == ["train", "val", "test"]
    set_group_attributes(f"{cases}/b", {"fold": "tset"}, zarr_format=3)
    with pytest.raises(TaskError, match=r"split: attribute 'fold' .* is 'tset'"):
        open_volumes(make_task([entry]))


def test_names_are_made_unique(make_task, entry):
    names = [v.name for v in open_volumes(make_task([entry, entry, entry]))]
    assert names == ["data.zarr/raw", "data.zarr/raw#2", "data.zarr/raw#3"]


def test_differing_voxel_sizes_are_told(make_task, entry, store):
    other = {
        "input": store("coarse", np.zeros(SHAPE, np.uint8), spacing=(2.0, 1.0, 1.0)),
        "sheet": entry["sheet"],
    }
    reporter = Silent()
    open_volumes(make_task([entry, other]), reporter)
    assert "voxel sizes differ" in reporter.lines[0]
    other["spacing"] = [1.005, 1.0, 1.0]
    reporter = Silent()
    assert open_volumes(make_task([entry, other]), reporter)[1].spacing == (1.005, 1.0, 1.0)
    assert not any("voxel sizes" in line for line in reporter.lines)


def test_volumes_with_other_channel_counts_are_refused(make_task, entry):
    other = dict(entry, input=[entry["input"]] * 2)
    with pytest.raises(VolumeError, match="has 2 channels"):
        open_volumes(make_task([entry, other]))


def test_opened_volumes_are_small_when_pickled(make_task, entry):
    import pickle

    volumes = open_volumes(make_task([entry]))
    volumes[0].inputs[0].read(Box((0, 0, 0), (1, 1, 1)))
    text = pickle.dumps(volumes)
    assert len(text) < 20_000
    assert json.dumps(pickle.loads(text)[0].name)


def test_the_patch_is_checked_against_the_network_that_the_voxel_size_calls_for(make_task, store):
    path = store("raw", np.zeros((14, 20, 24), np.uint8), chunks=(8, 8, 8))
    entry = {"input": path, "sheet": path, "name": "v"}
    sections = {"patch_size": [9, 16, 16]}
    thick = make_task([entry | {"spacing": [5.0, 1.0, 1.0]}], **sections)
    assert open_volumes(thick)[0].spacing == (5.0, 1.0, 1.0)
    with pytest.raises(TaskError, match=r"tr_params.patch_size: .*along z"):
        open_volumes(make_task([entry], **sections))


@pytest.mark.parametrize(("patch", "told"), [([8, 8, 8], True), ([4, 4, 4], False)])
def test_volumes_shorter_than_the_patch_are_told(make_task, entry, patch, told):
    reporter = Silent()
    open_volumes(make_task([entry], patch_size=patch), reporter)
    assert any("1 of 1 volumes are shorter" in line for line in reporter.lines) is told


@pytest.mark.parametrize("name", ["sheet", "mask", "input_mask"])
def test_a_label_of_any_name_is_read_at_the_level_of_its_volume(make_task, tmp_path, name):
    rng = np.random.default_rng(0)
    whole = {n: rng.integers(1, 9, (12, 14, 16)).astype(np.uint8) for n in ("raw", "label")}
    datasets = [{"path": "0"}, {"path": "1"}]
    for part, values in whole.items():
        group = tmp_path / "a.zarr" / part
        image = {"version": "0.4", "axes": [{"name": n} for n in "zyx"], "datasets": datasets}
        zarr.create_group(group, zarr_format=2, attributes={"multiscales": [image]})
        for level, data in enumerate((values, values[::2, ::2, ::2])):
            zarr.create_array(group / str(level), data=data, chunks=(6, 7, 8), zarr_format=2)
    entry = {"input": str(tmp_path / "a.zarr/raw"), name: str(tmp_path / "a.zarr/label")}
    entry |= {"level": 1, "ref_label": name}
    (volume,) = open_volumes(make_task([entry], {name: {"kind": "binary"}}))
    assert volume.inputs[0].extent == volume.labels[name].extent == (6, 7, 8)
    found = volume.labels[name].read(volume.region)[0]
    np.testing.assert_array_equal(found, whole["label"][::2, ::2, ::2])
