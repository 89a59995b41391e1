import nibabel
import numpy as np
import pytest
import tifffile

from vcmodels.cli import main
from vcmodels.volumes import open_volume
from vcmodels.volumes.world import world_affine

AFFINE = np.diag([-0.5, 1.5, 4, 1])
VOXELS = np.random.default_rng(0).integers(0, 4, (90, 80, 70), np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), "a.nii.gz")
    tifffile.imwrite("b.tif", VOXELS, photometric="minisblack")
    return tmp_path


def test_one_file_becomes_the_destination_with_levels(folder, capsys):
    assert main(["import", "a.nii.gz", "out/x.zarr"]) == 0
    assert "wrote" in capsys.readouterr().out
    volume = open_volume(str(folder / "out/x.zarr"))
    np.testing.assert_array_equal(volume.read(volume.box)[0], VOXELS.T)
    np.testing.assert_allclose(world_affine(volume), AFFINE)
    assert volume.spacing == (4, 1.5, 0.5)
    assert open_volume(str(folder / "out/x.zarr"), level=1).extent == (70, 80, 45)


def test_labels_get_majorities(folder):
    assert main(["import", "--labels", "b.tif", "l.zarr"]) == 0
    coarse = open_volume(str(folder / "l.zarr"), level=1)
    part = VOXELS.reshape(45, 2, 40, 2, 35, 2).transpose(0, 2, 4, 1, 3, 5).reshape(45, 40, 35, 8)
    counts = np.stack([(part == value).sum(-1) for value in range(4)])
    np.testing.assert_array_equal(coarse.read(coarse.box)[0], counts.argmax(0))


def test_several_files_go_into_a_folder_by_their_names(folder):
    assert main(["import", "a.*.gz", "b.tif", "out", "--levels", "0"]) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.zarr", "b.zarr"]
    assert not (folder / "out" / "a.zarr" / "1").exists()


def test_only_an_import_is_replaced_and_only_when_asked(folder, capsys):
    assert main(["import", "a.nii.gz", "x.zarr"]) == 0
    assert main(["import", "b.tif", "x.zarr"]) == 2
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert main(["import", "b.tif", "x.zarr", "--overwrite"]) == 0
    volume = open_volume("x.zarr")
    np.testing.assert_array_equal(volume.read(volume.box)[0], VOXELS)
    (folder / "mine.zarr").mkdir()
    assert main(["import", "b.tif", "mine.zarr", "--overwrite"]) == 2
    assert "choose another path or remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.zarr"], "SOURCE: is missing"),
        (
            ["no.nii", "out.zarr"],
            "no.nii: is not there, or of no format that is known; give one of",
        ),
        (["a.nii.gz", "./a.nii.gz", "out"], "a.zarr: would be written twice; import one by one"),
        (["a.nii.gz", "s3://b/a.zarr"], "s3://b/a.zarr: is a URL; name a local path"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(folder, capsys, words, message):
    assert main(["import", *words]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in folder.iterdir() if path.is_dir()]
