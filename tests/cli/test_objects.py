"""`vcmodels objects`, `mesh` and `skeleton`: the commands of docs/meshes.md, and what is refused."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from tests.objects.places import random_ids
from vcmodels.cli import main
from vcmodels.cli.app import app
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.boundary import BoundaryTarget
from vcmodels.volumes import Description, Grid, Pyramid, write_volume

PAGE = (Path(__file__).parents[2] / "docs" / "meshes.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    vcmodels (.*)$", PAGE, re.M)
GRID = Grid((4.0, 1.5, 2.0), (10.0, 20.0, 30.0), "micrometer")
IDS = random_ids(1)


def save(place: Path, values: np.ndarray, writer=None) -> None:
    """Store values, with the encoding of the target that they are a prediction of."""
    notes = {"vcmodels": {"encoding": writer.encoding(values.dtype)}} if writer else {}
    write_volume(
        str(place),
        values,
        grid=GRID,
        chunks=(4, 5, 6),
        pyramid=Pyramid(levels=0),
        description=Description(attributes=notes),
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The arrays that the page names, and some that are wrong."""
    place, ids = tmp_path_factory.mktemp("stored"), IDS // max(1, int(IDS[IDS > 0].min()))
    save(place / "ids.zarr", ids)
    save(place / "kinds.zarr", (1 + ids % 2).astype(np.uint8))
    floats = np.ones(IDS.shape, np.float32)
    save(place / "floats.zarr", floats)
    save(place / "image.zarr", 7 * floats)
    save(place / "boundary.zarr", np.full(IDS.shape, 51, np.uint8), BoundaryTarget())
    save(place / "logits.zarr", floats, BinaryTarget(activation="none"))
    return place


@pytest.fixture
def folder(stored, tmp_path, monkeypatch):
    """A copy of them to work in."""
    shutil.copytree(stored, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_commands_of_the_page_do_what_it_says(folder):
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] != "view":
            assert main(words) == 0, line
    with Path("means.csv").open() as file:
        rows = list(csv.DictReader(file))
    (first, *_) = rows
    assert {row["class"] for row in rows} <= {"1", "2"}
    assert all(float(row["mean_value"]) == pytest.approx(0.2) for row in rows)
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## Meshes")[0]))
    assert set(first) - named <= {"centroid_y_um", "centroid_x_um", "y_end", "x_start", "x_end"}
    assert sorted(path.name for path in Path("few").iterdir()) == ["1.obj", "3.obj", "meshes.json"]
    assert {path.name for path in Path("branches").iterdir() if path.is_file()} == {
        "1", "3", "info", "skeletons.json",
    }  # fmt: skip
    made = {"objects.csv", "means.csv", "surfaces", "few", "seen", "lines", "branches"}
    assert {path.name for path in folder.iterdir() if path.suffix != ".zarr"} == made


def test_every_option_of_the_commands_is_on_the_page():
    commands = typer.main.get_command(app).commands
    common = {"--help", "--debug", "--quiet", "--output"}
    for command in ("objects", "mesh", "skeleton"):
        options = {o for p in commands[command].params for o in p.opts if o[:2] == "--"}
        assert {one for one in options - common if f"`{one}" not in PAGE} == set()


def test_skeletons_say_on_which_level_and_what_is_missing(folder, capsys):
    ids = np.zeros((40, 41, 42), np.uint8)
    ids[2:39, 4:9, 4:9], ids[2:39, 2:40, 40] = 1, 2
    write_volume(
        "tall.zarr", ids, grid=GRID, chunks=(8, 8, 8), pyramid=Pyramid(levels=1, values="mode")
    )
    assert main(["skeleton", "tall.zarr", "--max-voxels", "1000", "--ids", "1,2,5"]) == 0
    said = capsys.readouterr().out
    assert "note: 5 has no voxel, or fewer than --min-size" in said
    assert "note: 1 objects on level 1, for --max-voxels" in said
    assert "note: 2 is too large for --max-voxels on every level that shows it" in said
    assert re.search(r"wrote skeletons: 1 objects, \d+ points", said)
    assert main(["skeleton", "tall.zarr", "--max-voxels", "1000", "--ids", "5,2,1"]) == 0
    assert capsys.readouterr().out == "skeletons is complete already\n"


def test_meshes_that_are_there_are_not_made_again(folder, capsys):
    assert main(["mesh", "ids.zarr", "--ids", "1,99"]) == 0
    assert "note: 99 has no voxel" in capsys.readouterr().out
    before = (folder / "meshes" / "1.ply").stat()
    assert main(["mesh", "ids.zarr", "--ids", "99,1"]) == 0
    assert capsys.readouterr().out == "meshes is complete already\n"
    assert (folder / "meshes" / "1.ply").stat() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objects", "none.zarr"], "none.zarr"),
        (["objects", "ids.zarr", "-o", "a.txt"], '-o: found "a.txt"; name a .csv or a .parquet'),
        (["objects", "ids.zarr", "--values", "logits.zarr"],
         "--values: .* holds logit, not one probability .*; give one of binary, boundary, centres"),
        (["objects", "ids.zarr", "--values", "image.zarr"],
         "--values: .* has values from 7 to 7, which are no probabilities; give values from 0 to 1"),
        (["objects", "ids.zarr", "--classes", "floats.zarr"], "--classes: .* holds float32; give"),
        (["mesh", "ids.zarr", "-o", "floats.zarr"], "-o: "),
        (["mesh", "floats.zarr"], "floats.zarr.* holds float32; give an array"),
        (["mesh", "ids.zarr", "--ids", "1,x"], '--ids: found "x"; give whole numbers above 0'),
        (["mesh", "ids.zarr", "--ids", "0"], '--ids: found "0"'),
        (["mesh", "ids.zarr", "--form", "stl"], "Invalid value for '--form'"),
        (["skeleton", "ids.zarr", "-o", "floats.zarr"], "-o: "),
        (["skeleton", "floats.zarr"], "floats.zarr.* holds float32; give an array"),
        (["skeleton", "ids.zarr", "--ids", "0"], '--ids: found "0"'),
        (["skeleton", "ids.zarr", "--form", "ply"], "Invalid value for '--form'"),
        (["skeleton", "ids.zarr", "--max-voxels", "9"], "Invalid value for '--max-voxels'"),
        (["view", "ids.zarr", "--meshes", "kinds.zarr"], "--meshes: kinds.zarr holds no meshes"),
        (["view", "ids.zarr", "--skeletons", "kinds.zarr"],
         "--skeletons: kinds.zarr holds no skeletons for neuroglancer; give one that vcmodels skel"),
        (["view", "ids.zarr", "--napari", "--meshes", "x"], "--meshes: is not for napari; leave it out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_is_written(folder, capsys, words, message):
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error), error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_table_that_is_there_is_replaced_only_with_overwrite(folder, capsys):
    Path("objects.csv").write_text("mine")
    assert main(["objects", "ids.zarr"]) == 2
    assert capsys.readouterr().err == (
        "error: -o: objects.csv is there already; name another, or give --overwrite\n"
    )
    assert Path("objects.csv").read_text() == "mine"
    assert main(["objects", "ids.zarr", "--overwrite"]) == 0
    assert Path("objects.csv").read_text().startswith("id,")


@pytest.mark.parametrize("command", ["objects", "mesh", "skeleton"])
def test_ctrl_c_ends_with_its_code_and_the_same_command_continues(
    folder, capsys, monkeypatch, command
):
    from vcmodels.reporting import StopSignals

    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "is_stopped", lambda _: True)
        patch.setattr(StopSignals, "exit_code", 130)
        assert main([command, "ids.zarr"]) == 130
    assert "stopped; the same command continues" in capsys.readouterr().out
    assert main([command, "ids.zarr"]) == 0
