import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.cohorts.entries import Source, entries_of
from vcmodels.cohorts.table import read_table
from vcmodels.errors import TaskError

NAMES = ("cord", "lesion")


def read(text, names=NAMES, folder="data"):
    return read_table(text, "cases.csv", folder, names)


def entries(text, **more):
    return entries_of([Source(read(text, **more))])[0]


IMAGES = ("channel", "Modality_0", "MODALITY", "Image", "images", "ImagePath", "input")
LABELS = (
    "mask",
    "SEGMENTATION",
    "GroundTruth",
    "seg",
    "LabelPath",
    "Label:cord",
    "mask: cord",
    "cord",
)
SUBJECTS = ("Subject", "Patient_ID", "PID", "subject id", "ID", "Name")


@pytest.mark.parametrize(
    ("subject", "image", "label"),
    [
        ("SubjectID", "Channel_0", "Label"),
        *(("SubjectID", image, "Label") for image in IMAGES),
        *(("SubjectID", "Channel_0", label) for label in LABELS),
        *((subject, "Channel_0", "Label") for subject in SUBJECTS),
    ],
)
def test_every_synonym_parses_to_the_same_list(subject, image, label):
    found = entries(f"{subject},{image},{label}\np1,a.nii.gz,b.nii.gz\n", names=("cord",))
    assert found == [{"input": "data/a.nii.gz", "cord": "data/b.nii.gz", "name": "p1"}]


def test_channels_are_in_the_order_of_their_numbers():
    (found,) = entries("Label:lesion,Channel_10,Channel_2,Channel_0\nl.zarr,c.zarr,b.zarr,a.zarr\n")
    assert found == {
        "input": ["data/a.zarr", "data/b.zarr", "data/c.zarr"],
        "lesion": "data/l.zarr",
    }


cells = st.text(string.ascii_letters + string.digits + " ,;\t\"'#/_-äß", min_size=1).filter(
    lambda text: text.strip() and not text.startswith("#") and "*" not in text
)


@given(
    st.lists(
        st.tuples(cells, cells, cells | st.just("")),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0].strip(),
    ),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_spreadsheet_writes_is_read_again(rows, separator, end):
    """Any separator, line end and quotes; an empty cell is a label that is lacking."""
    header = separator.join(["Image", "Label:cord", "Label:lesion"])
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    text = end.join([header, "# a comment", "", *quoted, separator * 2, ""])
    found = read(text, folder="/d").cases
    assert [(c.inputs, dict(c.labels)) for c in found] == [
        (
            (f"/d/{a.strip()}" if not a.strip().startswith("/") else a.strip(),),
            {
                name: path.strip() if path.strip().startswith("/") else f"/d/{path.strip()}"
                for name, path in (("cord", b), ("lesion", c))
                if path.strip()
            },
        )
        for a, b, c in rows
    ]


@pytest.mark.parametrize(
    "path", ["/abs/a.zarr", "s3://bucket/a.zarr", "~/a.zarr", "https://h/a.zarr"]
)
def test_a_path_that_does_not_depend_on_a_folder_stays(path):
    assert entries(f"Image,Label:cord\n{path},b.zarr\n")[0]["input"] == path


def test_a_relative_path_counts_from_the_folder_of_the_table_as_in_gandlf(monkeypatch):
    assert entries("Image,Label:cord\na.zarr,../b.zarr\n", folder=".")[0]["input"] == "a.zarr"
    monkeypatch.setenv("DATA", "/there")
    found = entries("Image,Label:cord\n$DATA/a.zarr,sub/b.zarr\n", folder="in")[0]
    assert (found["input"], found["cord"]) == ("$DATA/a.zarr", "in/sub/b.zarr")


def test_everything_that_is_said_of_a_case_is_in_its_entry():
    text = "Name,Image,Mask:cord,Split,Group,Site,Weight\np1,a.zarr,b.zarr,Validation,g1,Oslo,0.5\n"
    assert entries(text) == [
        {
            "input": "data/a.zarr", "cord": "data/b.zarr", "name": "p1", "split": "val",
            "group": "g1", "cohort": "Oslo", "weight": 0.5,
        }
    ]  # fmt: skip


def test_scans_of_one_subject_are_a_group_and_have_names_of_their_own():
    text = "SubjectID,Image,Label:cord\nA b/1,1.zarr,l1.zarr\nc,2.zarr,l2.zarr\nA b/1,3.zarr,l3.zarr\na_B_1,4.zarr,l4.zarr\n"
    found = entries(text)
    assert [one["name"] for one in found] == ["A_b_1", "c", "A_b_1_2", "a_B_1_3"]
    assert [one.get("group") for one in found] == ["A b/1", None, "A b/1", None]


@pytest.mark.parametrize("groups", [("family", ""), ("", "family")])
def test_a_group_of_one_row_is_that_of_all_rows_of_its_subject(groups):
    rows = "".join(f"p,{n}.zarr,l{n}.zarr,{group}\n" for n, group in enumerate(groups))
    found = entries(f"SubjectID,Image,Label:cord,Group\n{rows}")
    assert [one["group"] for one in found] == ["family", "family"]


def test_a_column_about_images_is_no_channel():
    found = read("Image_T1,Image_T2,Image_Type,Modality_Date,cord\na,b,MR,2020,l\n")
    assert found.cases[0].inputs == ("data/a", "data/b")
    assert found.notes == ("cases.csv: columns that are not read: Image_Type, Modality_Date",)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Image,shape\na,b\n", "data/b"),
        ("Image,shape,Label:shape\na,1 x 2,b\n", "data/b"),
        ("Image,Label,Shape\na,b,1 x 2\n", "data/b"),
    ],
)
def test_a_label_may_have_the_name_of_a_column_that_is_written(text, label):
    assert entries(text, names=("shape",))[0]["shape"] == label


def test_columns_that_are_not_read_are_named():
    found = read("Image,Label:cord,age,Shape,sex\na.zarr,b.zarr,70,1 x 2 x 3,f\n")
    assert found.notes == ("cases.csv: columns that are not read: age, sex",)
    assert read("Image,Label:cord\na.zarr,b.zarr\n").notes == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Image,Label,Mask\na,b,c\n", r'line 1: "Label" and "Mask" do not say which label .* write "Label:cord"'),
        ("# x\n\nImage,Label\na,b\n", r'line 3, "Label": names no label, and the task has cord, lesion'),
        ("Image,Label:chord\na,b\n", r'line 1: "chord" is no label .* did you mean "cord"\?'),
        ("Image,cord,Label:cord\na,b,c\n", "columns 2 and 3 are both the cord"),
        ("Image_0,Channel_0,cord\na,b,c\n", '"Channel_0" is channel 0 again'),
        ("Label:cord\nb\n", "line 1: no column is an input"),
        ("Image,cord,Spilt\na,b,train\n", 'line 1: "Spilt" is no column that is known; is "split" meant'),
        ("Chanel_1,cord\na,b\n", 'is "channel" meant'),
        ("Image,cord,Split\na,b,holdout\n", 'line 2: "holdout" is no split'),
        ("Image,cord,Weight\na,b,heavy\n", 'line 2: "heavy" is no weight'),
        ("Image,cord,Weight\na,b,-1\n", 'line 2: "-1" is no weight'),
        ("Image,cord,Weight\na,b,nan\n", 'line 2: "nan" is no weight'),
        ("Image,cord\na,b\na,c\n", "line 3: has the input of line 2"),
        ("Image,cord\na\n", "line 2: has 1 cells, the header 2"),
        ("Image,cord\na,b,c\n", "line 2: has 3 cells, the header 2"),
        ("Image,cord\n,b\n", 'line 2: "Image" is empty'),
        ("Image,cord\na,\n", "line 2: has no label"),
        ("Image,cord\n*.zarr,b\n", r"line 2: \*.zarr holds a \*"),
        ('Image,cord\n"a"x,b\n', "line 2: "),
        ("Image,cord\n", "has a header and no case"),
        ("\n# nothing\n", "cases.csv: is empty"),
        ("ID,Image,cord,Group\np,a,b,x\np,c,d,y\n", "line 3: p is in group x further up, in y here"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text, match):
    with pytest.raises(TaskError, match=match):
        read(text)


def test_the_identity_changes_with_the_table():
    one, other = (read(f"Image,cord\na,{path}\n").identity for path in "bc")
    assert one != other
