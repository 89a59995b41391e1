"""No file is written into a Zarr store that is there, whatever option names it."""

import pytest

from vcmodels.cli import main
from vcmodels.phantom import write_phantom


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "scan"  # a group whose name does not say so
    write_phantom(str(path), shape=(16, 24, 20), seed=0, chunks=(8, 8, 8))
    return path


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("way", ["straight", "link", "dots", "array"])
@pytest.mark.parametrize(
    "words",
    [
        ["patches", "TASK", "--picture", "PLACE/x.png"],
        ["preview", "TASK", "--output", "PLACE/pictures"],
        ["evaluate", "TASK", "--overlay", "PLACE/x.png"],
        ["submit", "TASK", "--output", "PLACE/job.sh"],
        ["infer", "TASK", "--log-json", "PLACE/log.jsonl"],
        ["infer", "TASK", "--output", "PLACE/out"],
        ["derive", "TASK", "far", "--output", "PLACE/out.zarr"],
        ["reproduce", "PLACE", "--output", "PLACE/again"],
        ["init", "PLACE/ct", "PLACE/sheet", "--output", "PLACE/task.json"],
        ["phantom", "PLACE/more"],
        ["cases", "TASK", "-o", "PLACE/found.csv"],
    ],
    ids=lambda words: f"{words[0]} {words[-2].strip('-')}",
)
def test_no_option_writes_into_an_input(scan, sheet_task, task_file, tmp_path, capsys, words, way):
    config = sheet_task["dataset_config"]
    for entry in config["volume_paths"]:
        entry |= {name: str(scan / array) for name, array in (("input", "ct"), ("sheet", "sheet"), ("normals", "normals"))}  # fmt: skip
    config["targets"]["far"] = {"kind": "distance", "derive": "sheet", "clip": 4}
    sheet_task["inference_params"]["input_path"] = str(scan / "ct")
    task = task_file(sheet_task)
    if way == "link":
        (tmp_path / "link").symlink_to(scan)
    place = {
        "straight": str(scan),
        "link": str(tmp_path / "link"),
        "dots": f"{scan}/./ct/..//",
        "array": str(scan / "ct"),
    }[way]
    before, given = (
        files(scan),
        [w.replace("TASK", str(task)).replace("PLACE", place) for w in words],
    )
    assert main(given) == 2
    assert files(scan) == before
    error = capsys.readouterr().err.strip().splitlines()[-1]
    if way != "array" or words[0] not in ("init", "reproduce"):
        assert "lies in the" in error
