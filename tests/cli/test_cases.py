"""The command `cases`, on the example that is shipped."""

import csv
import shutil
from pathlib import Path

import pytest

from vcmodels.cli import main
from vcmodels.phantom import write_phantom

EXAMPLE = Path(__file__).parents[2] / "examples/cases"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example, with its volumes."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    for number in range(1, 6):
        write_phantom(str(tmp_path / f"s{number}.zarr"), shape=(16, 32, 32), seed=number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_is_what_a_training_reads_and_keeps(example, capsys):
    assert main(["cases", "task.json", "-o", "found.csv"]) == 0
    out = capsys.readouterr().out
    assert "5 volumes from cases.csv" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(" s")]
    assert [row[0] for row in rows] == ["s1", "s2", "s3", "s4", "s5"]
    assert rows[2][1:5] == ["sheet", "train", "B", "16"]
    assert "5 volumes\n" in out
    assert "differ" not in out
    with Path("found.csv").open() as file:
        found = list(csv.DictReader(file))
    assert found[0]["Channel_0"] == str(example / "s1.zarr/ct")
    assert found[2]["Label:normals"] == ""
    settings = (
        "max_epoch=1",
        "max_steps_per_epoch=1",
        "max_val_steps_per_epoch=1",
        "device=cpu",
        "num_dataloader_workers=0",
    )
    given = [word for one in settings for word in ("--set", f"tr_params.{one}")]
    given += ["--set", "model_config.f_maps=[2,4]", "--set", "augment=[]"]
    assert main(["train", "task.json", *given]) == 0
    with Path("run/cases.csv").open() as file:
        used = list(csv.DictReader(file))
    sides = {row.pop("SubjectID"): row.pop("Used") for row in used}
    assert sides == {"s1": "train", "s2": "train", "s3": "train", "s4": "val", "s5": "test"}
    assert used == [
        {key: value for key, value in row.items() if key not in ("SubjectID", "Used")}
        for row in found
    ]


def test_a_fault_of_the_table_is_one_line(example, capsys):
    text = Path("cases.csv").read_text().replace("Label:normals", "Label")
    Path("cases.csv").write_text(text.replace("Label:sheet", "Mask"))
    assert main(["cases", "task.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: cases.csv, line 3: "Mask" and "Label" do not say which label')
    assert error.count("\n") == 1


def test_a_file_that_is_there_is_replaced_only_if_told_to(example, capsys):
    table = Path("cases.csv").read_text()
    assert main(["cases", "task.json", "-o", "cases.csv"]) == 2
    assert "-o: cases.csv is there already; name another, or give --overwrite" in capsys.readouterr().err  # fmt: skip
    assert Path("cases.csv").read_text() == table
    assert main(["cases", "task.json", "-o", "s1.zarr"]) == 2
    Path("found.csv").touch()
    assert main(["cases", "task.json", "-o", "found.csv", "--overwrite"]) == 0
    assert Path("found.csv").read_text().startswith("SubjectID,")
