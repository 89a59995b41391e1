import pytest

from vcmodels.cohorts.bids import BidsCases, read_bids
from vcmodels.cohorts.entries import Source, entries_of
from vcmodels.errors import TaskError

LABELS = "derivatives/labels"


@pytest.fixture
def data_set(tmp_path):
    """Two subjects, one with two sessions; a label in each of both conventions."""
    names = [
        "dataset_description.json",
        "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T2w.json", "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T2w.ome.zarr/.zattrs",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz", "sub-03/anat/sub-03_T2w.nii.gz",
        f"{LABELS}/sub-01/anat/sub-01_T2w_label-SC_mask.nii.gz",
        f"{LABELS}/sub-01/anat/sub-01_T2w_label-lesion_mask.nii.gz",
        f"{LABELS}/sub-02/ses-a/anat/sub-02_ses-a_label-SC_mask.nii.gz",
        f"{LABELS}/sub-02/ses-b/anat/sub-02_ses-b_T2w_label-SC_mask.nii.gz",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def block(**keys):
    wanted = {"input": "T2w", "labels": {"cord": "label-SC_mask", "lesion": "label-lesion_mask"}}
    return BidsCases(**{"bids": "root", **wanted, **keys})


def test_subjects_sessions_and_labels_are_found(data_set):
    found = read_bids(block(), data_set, "root")
    raw, labels = str(data_set), f"{data_set}/{LABELS}"
    assert entries_of([Source(found)])[0] == [
        {
            "input": f"{raw}/sub-01/anat/sub-01_T2w.nii.gz",
            "cord": f"{labels}/sub-01/anat/sub-01_T2w_label-SC_mask.nii.gz",
            "lesion": f"{labels}/sub-01/anat/sub-01_T2w_label-lesion_mask.nii.gz",
            "name": "sub-01", "group": "sub-01",
        },
        {
            "input": f"{raw}/sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz",
            "cord": f"{labels}/sub-02/ses-a/anat/sub-02_ses-a_label-SC_mask.nii.gz",
            "name": "sub-02_ses-a", "group": "sub-02",
        },
        {
            "input": f"{raw}/sub-02/ses-b/anat/sub-02_ses-b_T2w.ome.zarr",
            "cord": f"{labels}/sub-02/ses-b/anat/sub-02_ses-b_T2w_label-SC_mask.nii.gz",
            "name": "sub-02_ses-b", "group": "sub-02",
        },
    ]  # fmt: skip
    assert found.notes == (
        "root: images without a label, or a channel, left out: 1, such as sub-03",
    )


def test_several_suffixes_are_channels_and_who_lacks_one_is_left_out(data_set):
    found = read_bids(
        block(input=["T2w", "T1w"], labels={"cord": "label-SC_mask"}), data_set, "root"
    )
    assert [case.name for case in found.cases] == ["sub-01", "sub-02_ses-b"]
    assert [path.rpartition("_")[2] for path in found.cases[0].inputs] == [
        "T2w.nii.gz",
        "T1w.nii.gz",
    ]


def test_a_label_of_two_pipelines_is_chosen_or_refused(data_set):
    other = data_set / "derivatives/manual/sub-01/anat/sub-01_T2w_label-SC_mask.nii.gz"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(TaskError, match=r'has the labels .* and .*choose with "pipeline"'):
        read_bids(block(), data_set, "root")
    found = read_bids(block(pipeline="manual"), data_set, "root")
    assert [case.labels for case in found.cases] == [{"cord": str(other)}]


def test_two_files_of_one_image_are_refused(data_set):
    (data_set / "sub-01/anat/sub-01_T2w.mha").touch()
    with pytest.raises(TaskError, match=r"sub-01_T2w.nii.gz: means the same array as .*T2w.mha"):
        read_bids(block(), data_set, "root")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"input": "FLAIR"}, "holds no image with the suffix FLAIR"),
        ({"labels": {"cord": "dseg"}}, "no image has a label that ends in dseg"),
        ({"pipeline": "absent"}, "has no derivatives/absent"),
    ],
)
def test_what_is_not_there_is_refused(data_set, keys, match):
    with pytest.raises(TaskError, match=match):
        read_bids(block(**keys), data_set, "root")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"root: has no dataset_description.json"):
        read_bids(block(), tmp_path, "root")
