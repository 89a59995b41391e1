"""Tables and folders of cases in the place of `volume_paths`."""

import hashlib
import json

import pytest

from vcmodels.config import load_task, parse_task
from vcmodels.errors import TaskError

TABLE = "SubjectID,Image,Label\np1,a.zarr,b.zarr\np2,c.zarr,d.zarr\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cases.csv").write_text(TABLE, encoding="utf-8-sig")
    return tmp_path


def parsed(volumes, targets=None, **dataset):
    document = {
        "tr_params": {"model_name": "net", "patch_size": [16, 16, 16]},
        "dataset_config": {
            "volume_paths": volumes,
            "targets": targets or {"cord": {"kind": "binary"}},
            **dataset,
        },
    }
    return parse_task(document, "test")


FIRST = {"input": "data/a.zarr", "cord": "data/b.zarr", "name": "p1"}
SECOND = {"input": "data/c.zarr", "cord": "data/d.zarr", "name": "p2"}


@pytest.mark.parametrize(
    ("volumes", "entries"),
    [
        ("data/cases.csv", [FIRST, SECOND]),
        ({"cases": "data/cases.csv"}, [FIRST, SECOND]),
        (
            {"cases": "data/cases.csv", "ref_label": "cord", "level": 1, "cohort": "A"},
            [{**one, "ref_label": "cord", "level": 1, "cohort": "A"} for one in (FIRST, SECOND)],
        ),
        (
            [{"input": "x.zarr", "cord": "y.zarr"}, "data/cases.csv"],
            [{"input": "x.zarr", "cord": "y.zarr"}, FIRST, SECOND],
        ),
    ],
)
def test_a_table_gives_the_entries_that_could_stand_in_the_file(here, volumes, entries):
    task, notes = parsed(volumes)
    assert task.dataset_config == parsed(entries)[0].dataset_config
    (record,) = task.cases
    text = hashlib.sha256(TABLE.encode()).hexdigest()
    assert (record.source, record.sha256, record.volumes) == ("data/cases.csv", text, 2)
    assert any("2 volumes from data/cases.csv" in note for note in notes)
    assert parse_task(task.to_json(), "test")[0] == task


def test_what_a_row_says_goes_before_what_all_rows_share(here):
    (here / "data/cases.csv").write_text("Image,cord,Cohort,Weight\na,b,,2\nc,d,B,\n")
    task, _ = parsed({"cases": "data/cases.csv", "cohort": "A", "weight": 3})
    found = [(one.cohort, one.weight) for one in task.dataset_config.volume_paths]
    assert found == [("A", 2), ("B", 3)]


def test_volumes_for_testing_do_not_share_what_only_training_takes(here):
    (here / "data/cases.csv").write_text("Image,cord,Split\na,b,test\nc,d,\n")
    task, notes = parsed({"cases": "data/cases.csv", "ref_label": "cord", "weight": 2, "level": 1})
    found = [(v.ref_label, v.weight, v.level) for v in task.dataset_config.volume_paths]
    assert found == [(None, 1, 1), ("cord", 2, 1)]
    assert not any("ref_label" in note for note in notes)


def test_the_label_is_what_the_only_target_is_derived_from(here):
    for targets in (
        {"far": {"kind": "distance", "derive": "ids", "clip": 4.0}},
        {"ids": {"kind": "instances"}},
    ):
        task, _ = parsed("data/cases.csv", targets)
        assert task.dataset_config.volume_paths[0].labels == {"ids": "data/b.zarr"}


def test_a_task_file_names_a_table(here):
    document = {
        "tr_params": {"model_name": "net"},
        "volume_paths": "data/cases.csv",
        "targets": {"cord": {}},
    }
    (here / "task.json").write_text(json.dumps(document))
    loaded = load_task("task.json")
    assert len(loaded.task.dataset_config.volume_paths) == 2
    (here / "data/other.csv").write_text("Image,Label\ne.zarr,f.zarr\n")
    loaded = load_task("task.json", ["volume_paths=data/other.csv"])
    assert [one.input for one in loaded.task.dataset_config.volume_paths] == ["data/e.zarr"]


def test_folders_and_bids_data_sets_are_read(here):
    for name in ("imagesTr/a_0000.nii", "labelsTr/a.nii"):
        (here / "nn" / name).parent.mkdir(parents=True)
        (here / "nn" / name).touch()
    task, _ = parsed("nn")
    assert task.dataset_config.volume_paths[0].input == "nn/imagesTr/a_0000.nii"
    labels = "derivatives/labels/sub-1/anat/sub-1_T2w_seg.nii"
    for name in ("dataset_description.json", "sub-1/anat/sub-1_T2w.nii", labels):
        (here / "bids" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "bids" / name).touch()
    source = {"bids": "bids", "input": "T2w", "labels": {"cord": "seg"}, "split": "test"}
    task, _ = parsed([source, "nn"])
    first, second = task.dataset_config.volume_paths
    assert (first.labels["cord"], first.split, second.split) == (f"bids/{labels}", "test", None)
    assert [one.source for one in task.cases] == ["bids", "nn"]
    with pytest.raises(TaskError, match="bids is a BIDS data set, and does not say which"):
        parsed("bids")


@pytest.fixture
def two_sites(here):
    """Tables of two sites; both have a sub-01, with two scans in Oslo."""
    for site, subjects in (("oslo", ("sub-01", "sub-01", "sub-02")), ("basel", ("sub-01",))):
        rows = "".join(f"{name},{n}.nii,{n}_seg.nii\n" for n, name in enumerate(subjects))
        (here / f"{site}.csv").write_text(f"SubjectID,Image,Label\n{rows}")
    return here


def named(volumes):
    task, _ = parsed(volumes)
    return [(one.name, one.group) for one in task.dataset_config.volume_paths]


def test_subjects_of_two_cohorts_that_are_called_alike_are_told_apart(two_sites):
    found = named(
        [{"cases": "oslo.csv", "cohort": "Oslo"}, {"cases": "basel.csv", "cohort": "Basel"}]
    )
    oslo = [("Oslo_sub-01", "Oslo_sub-01"), ("Oslo_sub-01_2", "Oslo_sub-01"), ("sub-02", None)]
    assert found == [*oslo, ("Basel_sub-01", None)]


@pytest.mark.parametrize("cohorts", [("Oslo", None), (None, None), ("both", "both")])
def test_a_subject_of_two_tables_that_may_be_one_person_is_refused(two_sites, cohorts):
    sources = [{"cases": f"{n}.csv", "cohort": c} for n, c in zip(("oslo", "basel"), cohorts, strict=True)]  # fmt: skip
    match = r"subject sub-01 is in .*oslo.csv and in .*basel.csv; give each a \"cohort\" of its own"
    with pytest.raises(TaskError, match=match):
        parsed([{key: value for key, value in one.items() if value} for one in sources])


def test_images_of_one_data_set_that_are_no_channels_share_the_groups_of_its_subjects(here):
    for name in ("dataset_description.json", *(
        f"{place}sub-1_{contrast}{end}.nii" for contrast in ("T1w", "T2w")
        for place, end in (("sub-1/anat/", ""), ("derivatives/labels/sub-1/anat/", "_seg"))
    )):  # fmt: skip
        (here / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "set" / name).touch()
    one = {"labels": {"cord": "seg"}}
    sources = [{"bids": "set", "input": "T1w", **one}, {"bids": "./set", "input": "T2w", **one}]
    assert named(sources) == [("sub-1", "sub-1"), ("sub-1_2", "sub-1")]
    sources[0]["cohort"], sources[1]["cohort"] = "T1w", "T2w"
    assert named(sources) == [("sub-1", "sub-1"), ("sub-1_2", "sub-1")], "they are one person"


def test_a_group_that_all_share_goes_before_that_of_a_subject(two_sites):
    found = named({"cases": "oslo.csv", "group": "all"})
    assert [group for _, group in found] == ["all"] * 3


@pytest.mark.parametrize(
    ("volumes", "match"),
    [
        ("absent.csv", r"^dataset_config.volume_paths: absent.csv is not there"),
        (["absent.csv"], r"^dataset_config.volume_paths.0: absent.csv is not there"),
        ("s3://bucket/cases.csv", "is a URL; copy the table"),
        ("$NOT_SET_HERE/cases.csv", r"volume_paths: \$NOT_SET_HERE is not set"),
        ("data", "data is a folder without imagesTr"),
        ({"cases": "data/cases.csv", "levle": 1}, r'volume_paths.levle: .* did you mean "level"'),
        ({"cases": "data/cases.csv", "name": "x"}, r"volume_paths.name: is no key of a table"),
        ({"cases": ["a.csv", "b.csv"]}, "volume_paths.cases: "),
        ({"bids": "data", "input": "T2w"}, "volume_paths.labels: "),
        (
            {"bids": "data", "input": "T2w", "labels": {"chord": "seg"}},
            r'volume_paths.labels.chord: is no label of the task \(it has "cord"\)',
        ),
        ({"cases": "data/cases.csv", "level": "x"}, r"volume_paths.0.level: "),
    ],
)
def test_what_is_no_source_is_refused_with_its_key(here, volumes, match):
    with pytest.raises(TaskError, match=match):
        parsed(volumes)


def test_a_url_with_a_password_in_a_table_is_refused(here):
    (here / "data/cases.csv").write_text("Image,Label\nhttps://me:secret@host/a.zarr,b\n")
    with pytest.raises(
        TaskError, match=r"volume_paths.0.input: the URL holds a password"
    ) as caught:
        parsed("data/cases.csv")
    assert "secret" not in str(caught.value)


def test_a_table_that_is_not_utf8_is_refused(here):
    (here / "data/cases.csv").write_bytes("Image,Label\nä,b\n".encode("latin-1"))
    with pytest.raises(TaskError, match="in line 2 is not UTF-8"):
        parsed("data/cases.csv")
