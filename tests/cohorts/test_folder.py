from pathlib import Path

import pytest

from vcmodels.cohorts.entries import Source, entries_of
from vcmodels.cohorts.folder import is_paired, read_folder
from vcmodels.errors import TaskError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_an_nnunet_data_set_has_channels_and_volumes_for_testing(tmp_path):
    touch(
        tmp_path,
        *(f"imagesTr/a_{n:03}_{c:04}.nii.gz" for n in (1, 2) for c in (0, 1)),
        *(f"labelsTr/a_{n:03}.nii.gz" for n in (1, 2)),
        "imagesTr/a_003_0000.nii.gz", "imagesTr/a_003_0001.nii.gz", "imagesTr/._a_001_0000.nii.gz",
        "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz", "labelsTs/t.nii.gz", "dataset.json",
    )  # fmt: skip
    found = read_folder(tmp_path, "data", ["organ"])
    assert entries_of([Source(found)])[0] == [
        {
            "input": [f"{tmp_path}/images{side}/{case}_000{c}.nii.gz" for c in (0, 1)],
            "organ": f"{tmp_path}/labels{side}/{case}.nii.gz",
            "name": case,
            **more,
        }
        for side, case, more in (
            ("Tr", "a_001", {}), ("Tr", "a_002", {}), ("Ts", "t", {"split": "test"}),
        )
    ]  # fmt: skip
    assert found.notes == ("data: images without a label, left out: 1",)


def test_images_may_be_called_as_their_labels_and_have_another_ending(tmp_path):
    touch(
        tmp_path,
        "images/b_0001.tif",
        "images/c.ome.zarr/.zattrs",
        "labels/b_0001.nii",
        "labels/c.zarr/.zattrs",
    )
    found = entries_of([Source(read_folder(tmp_path, "data", ["organ"]))])[0]
    assert [(one["input"], one["organ"], one["name"]) for one in found] == [
        (f"{tmp_path}/images/b_0001.tif", f"{tmp_path}/labels/b_0001.nii", "b_0001"),
        (f"{tmp_path}/images/c.ome.zarr", f"{tmp_path}/labels/c.zarr", "c"),
    ]


def test_only_what_can_be_read_is_a_case(tmp_path):
    touch(
        tmp_path,
        *("images/readme.txt", "images/c.mhd", "images/c.raw"),
        *("labels/readme.txt", "labels/c.mhd", "labels/c.raw"),
    )
    found = read_folder(tmp_path, "data", ["organ"])
    assert [one.inputs for one in found.cases] == [(f"{tmp_path}/images/c.mhd",)]
    assert found.notes == (
        "data: of no format that is read, left out: images/readme.txt, labels/readme.txt",
    )


def test_folders_of_dicom_keep_the_dots_of_their_names(tmp_path):
    cases = ("1.2.3", "1.2.4")
    for name in (f"{side}/{case}/1" for side in ("images", "labels") for case in cases):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = read_folder(tmp_path, "data", ["organ"]).cases
    assert [case.subject for case in found] == list(cases)


@pytest.mark.parametrize(
    ("files", "both"),
    [
        (["images/a.nii", "images/a.nii.gz"], "images/a.nii.gz: .* images/a.nii;"),
        (["images/a.nii", "images/a_0000.tif"], "images/a_0000.tif: .* images/a.nii;"),
        (["images/a.nii", "labels/a.mha"], "labels/a.nii: .* labels/a.mha;"),
    ],
)
def test_two_files_of_one_name_are_refused(tmp_path, monkeypatch, files, both):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, *files, "labels/a.nii")
    with pytest.raises(TaskError, match=both.replace(".*", "means the same array as")):
        read_folder(Path(), "data", ["organ"])


@pytest.mark.parametrize(
    ("files", "names", "match"),
    [
        (["imagesTr/a_0000.nii", "labelsTr/b.nii"], ["organ"], "b.nii: has no image in"),
        (["imagesTr/a_0001.nii", "labelsTr/a.nii"], ["organ"], r"a.nii: has channels \[1\] in"),
        (["imagesTr/a_0000.nii"], ["organ"], "data: holds no label"),
        (["imagesTr/a.nii", "labelsTr/a.nii"], ["organ", "vessel"], "the task has organ, vessel"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, files, names, match):
    touch(tmp_path, *files)
    with pytest.raises(TaskError, match=match):
        read_folder(tmp_path, "data", names)


def test_a_folder_is_known_by_its_images(tmp_path):
    assert not is_paired(tmp_path)
    (tmp_path / "images").mkdir()
    assert is_paired(tmp_path)
