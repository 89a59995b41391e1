"""The table of cases of a run: it says how each volume is used, and can be given as `volume_paths`."""

import csv
import json

import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.data.cases import case_rows, mixtures, used_sides, write_cases
from vcmodels.data.opening import open_each
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.samples.order import volume_weights


@pytest.fixture
def entries(store):
    """Three volumes of two cohorts; the last has another voxel size."""
    labels = np.ones((8, 9, 40), np.uint8)
    sizes = [(2.0, 1.0, 1.0), (2.0, 1.0, 1.0), (3.0, 1.0, 1.0)]
    return [
        {
            "input": store(f"raw{n}", labels.astype(np.float32 if n == 1 else np.uint8), spacing=size),
            "sheet": store(f"sheet{n}", labels, spacing=size),
            "name": f"v{n}",
            "cohort": "AAB"[n],
            "group": f"g{n}",
        }
        for n, size in enumerate(sizes)
    ]  # fmt: skip


def test_a_table_says_all_of_a_volume_and_is_read_again(make_task, entries, tmp_path):
    entries[1] |= {"split": "val", "weight": 2.0}
    volumes = open_volumes(make_task(entries))
    whole, half = volumes[0].region, volumes[0].region.cut(2, 0, 20)
    sides = used_sides(volumes, [half, None, whole], [half, whole, None])
    rows = case_rows(volumes, sides)
    assert rows[1] == {
        "SubjectID": "v1", "Channel_0": entries[1]["input"], "Label:sheet": entries[1]["sheet"],
        "Split": "val", "Group": "g1", "Cohort": "A", "Weight": "2", "Used": "val",
        "Shape": "8 x 9 x 40", "Spacing": "2 x 1 x 1", "Unit": "", "DType": "float32",
        "Channels": "1",
    }  # fmt: skip
    assert [row["Used"] for row in rows] == ["train+val", "val", "train"]
    path = tmp_path / "cases.csv"
    write_cases(path, rows)
    with path.open() as file:
        assert list(csv.DictReader(file)) == rows
    document = make_task(entries).to_json()
    document["dataset_config"]["volume_paths"] = str(path)
    again, notes = parse_task(json.loads(json.dumps(document)), "test")
    assert not any("not read" in note for note in notes)
    assert again.dataset_config.volume_paths == make_task(entries).dataset_config.volume_paths


def test_parts_of_a_volume_have_one_row(make_task, entries):
    from dataclasses import replace

    volumes = open_volumes(make_task(entries[:1]))
    parts = [
        replace(volumes[0], name=name, split=split, region=Box((0, 0, 0), (8, 9, 10)))
        for name, split in (("v0", "train"), ("v0 (part 2)", "val"))
    ]
    (row,) = case_rows(parts, {"v0": "train", "v0 (part 2)": "val"})
    assert (row["SubjectID"], row["Used"]) == ("v0", "train+val")


def test_what_is_mixed_is_named(make_task, entries, store):
    entries[0]["input"] = [entries[0]["input"], entries[1]["input"]]
    task = make_task(entries)
    volumes = open_each(task, Silent())
    assert list(mixtures(volumes)) == [
        "voxel sizes differ: 2 x 1 x 1 in 2 (such as v0); 3 x 1 x 1 in 1 (such as v2)",
        "types differ: uint8+float32 in 1 (such as v0); float32 in 1 (such as v1); "
        "uint8 in 1 (such as v2)",
        "channels differ: 1 in 2 (such as v1); 2 in 1 (such as v0)",
    ]
    assert not list(mixtures(volumes[1:2]))
    with pytest.raises(VolumeError, match="v1 has 1 channels, v0 2"):
        open_volumes(task)


def test_cohorts_are_drawn_alike_however_many_volumes_and_patches_they_have(make_task, entries):
    volumes = open_volumes(make_task(entries, dataset={"balance": "cohort"}))
    rows = np.array([[0, 0, 0, 0]] * 5 + [[1, 0, 0, 0]] * 3 + [[2, 0, 0, 0]] * 2)
    found = volume_weights(volumes, rows, "cohort")
    np.testing.assert_allclose(found, [1 / 16] * 8 + [1 / 4] * 2)
    by_group = volume_weights(volumes, rows, "group")
    np.testing.assert_allclose(by_group, [1 / 15] * 5 + [1 / 9] * 3 + [1 / 6] * 2)
    heavy = open_volumes(make_task([{**entries[0], "weight": 3}, *entries[1:]]))
    weighed = volume_weights(heavy, rows, "cohort")
    np.testing.assert_allclose(weighed, [3 / 36] * 5 + [1 / 36] * 3 + [1 / 4] * 2)
    np.testing.assert_allclose(volume_weights(volumes, rows, None), [0.1] * 10)


def test_balance_needs_a_cohort_of_all_that_train(make_task, entries):
    del entries[1]["cohort"]
    task = make_task(entries, dataset={"balance": "cohort"})
    with pytest.raises(TaskError, match=r"volume_paths.1.cohort: is not set, and .*balance draws"):
        open_volumes(task)
    entries[1]["split"] = "val"
    assert open_volumes(make_task(entries, dataset={"balance": "cohort"}))


def test_scores_are_means_over_cohorts_or_else_groups(make_task, entries):
    del entries[2]["cohort"]
    found = open_volumes(make_task(entries))
    assert [volume.scored_with for volume in found] == ["A", "A", "g2"]


def test_volumes_are_opened_in_their_order_and_the_first_fault_is_told(make_task, entries, store):
    names = [f"n{n}" for n in range(40)]
    many = [{**entries[0], "name": name} for name in names]
    assert [volume.name for volume in open_each(make_task(many), Silent())] == names
    many[7] = {**many[7], "input": "/absent/7.zarr"}
    many[3] = {**many[3], "input": "/absent/3.zarr"}
    with pytest.raises(VolumeError, match=r"volume_paths.3.input: /absent/3.zarr"):
        open_each(make_task(many), Silent())
