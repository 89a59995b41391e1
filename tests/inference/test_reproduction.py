from dataclasses import replace

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.errors import OutputError
from vcmodels.inference import Comparison, Predictor, reproduce
from vcmodels.reporting import Silent
from vcmodels.volumes import group_attributes, open_volume, set_group_attributes
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.writer import WritableArray


@pytest.fixture
def made(workplace, monkeypatch):
    """A finished result, and its network where a checkpoint would be read."""
    work = workplace(np.random.default_rng(0).random((12, 10, 11), np.float32))
    settings = {"pyramid": "auto", "bbox": [[0, 12], [2, 10], [0, 11]], "overlap": 0.5}
    work.run(**settings)
    work.loaded = work.predictor(work.task(**settings))
    monkeypatch.setattr("vcmodels.inference.reproduction.load_predictor", lambda _: work.loaded)
    work.root = work.folder / "out" / "net.zarr"
    return work


def again(work, **options):
    return reproduce(work.root, work.folder / "again", reporter=Silent(), **options)


def test_from_its_attributes_alone_a_result_comes_out_identical(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    comparison = again(made)
    assert (comparison.is_whole, comparison.lines) == (True, [])
    assert (made.folder / "again" / "net.zarr" / "value" / "1" / ".zarray").exists()


@pytest.mark.parametrize("level", [0, 1])
def test_one_other_voxel_is_named(made, level):
    place = str(made.root / "value" / str(level))
    volume = open_volume(place, key="x")
    data = volume.read(volume.box)
    data[0, -1, -1, -1] += 0.25
    WritableArray(ArrayHandle(place, 2, "r+")).write(volume.box, data)
    (line,) = again(made).lines
    assert f"value/{level}: 1 of " in line
    assert "differ, by 0.25 at most" in line


def test_another_checkpoint_or_input_is_refused(made):
    was = made.loaded
    made.loaded = Predictor((replace(was.networks[0], sha256="1" * 64),))
    with pytest.raises(OutputError, match="cannot be made again: checkpoint_sha256 was"):
        again(made)
    made.loaded = was
    next(p for p in (made.folder / "input.zarr" / "raw").rglob("0") if p.is_file()).unlink()
    with pytest.raises(OutputError, match="cannot be made again: input_content was"):
        again(made)
    assert not (made.folder / "again").exists()


def test_other_versions_are_told(made):
    noted = group_attributes(str(made.root))["vcmodels"]
    noted["manifest"]["torch"] = "1.0"
    set_group_attributes(str(made.root), {"vcmodels": noted})
    reporter = Silent()
    assert not reproduce(made.root, made.folder / "again", reporter=reporter).lines
    assert 'torch was "1.0", is ' in reporter.lines[0]


def test_what_is_not_finished_is_refused(made, tmp_path):
    with pytest.raises(OutputError, match="is no zarr group"):
        reproduce(tmp_path / "nothing", tmp_path, reporter=Silent())
    noted = group_attributes(str(made.root))["vcmodels"]
    set_group_attributes(str(made.root), {"vcmodels": noted | {"complete": False}})
    with pytest.raises(OutputError, match="is no finished result"):
        again(made)


@pytest.mark.parametrize(
    ("comparison", "code", "said"),
    [
        (Comparison(True, []), 0, "net.zarr: identical"),
        (Comparison(True, ["value/0: 1 of 8"]), 1, "value/0: 1 of 8"),
        (Comparison(False, []), 0, "stopped"),
    ],
)
def test_the_command_says_what_differs_by_its_exit_code(
    monkeypatch, tmp_path, capsys, comparison, code, said
):
    monkeypatch.setattr("vcmodels.inference.reproduce", lambda *_, **__: comparison)
    assert main(["reproduce", str(tmp_path / "net.zarr")]) == code
    told = capsys.readouterr()
    assert said in (told.out + told.err).replace("\n", "")


@pytest.fixture
def older(made):
    """A finished result as it was noted before there were levels."""
    made.run(pyramid=None, options={"overwrite": True})
    noted = group_attributes(str(made.root))["vcmodels"]
    del noted["manifest"]["pyramid"]
    set_group_attributes(str(made.root), {"vcmodels": noted})
    made.loaded = made.predictor(made.task(pyramid=None))
    return made


def test_a_result_without_the_key_of_levels_has_none(older):
    assert older.run(pyramid=None).was_complete
    assert again(older).lines == []
    with pytest.raises(OutputError, match="another result: pyramid was 0, is 1; restore"):
        older.run(pyramid=1)
