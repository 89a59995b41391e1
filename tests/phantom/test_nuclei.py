import numpy as np
import pytest
from scipy.ndimage import label

from vcmodels.cli import main
from vcmodels.errors import FaultError, OutputError
from vcmodels.phantom.nuclei import (
    NucleiScan,
    require_nuclei,
    stained,
    touching_ellipsoids,
    write_nuclei,
)
from vcmodels.volumes import open_volume


def test_nuclei_are_ellipsoids_of_one_piece_that_touch():
    ids = touching_ellipsoids((60, 70, 80), 12, (8, 12), 3)
    numbers, voxels = np.unique(ids, return_counts=True)
    assert numbers.tolist() == list(range(13))
    # Those at a face are cut, and of two that meet each keeps a part.
    assert voxels[1:].min() > 0.1 * 4 / 3 * np.pi * 8**3
    assert voxels[1:].max() <= 1.05 * 4 / 3 * np.pi * 12**3
    assert all(label(ids == number)[1] == 1 for number in numbers[1:])
    touching = set()
    for axis in range(3):
        along = np.moveaxis(ids, axis, 0)
        one, other = along[1:], along[:-1]
        touching |= set(one[(one != other) & (one > 0) & (other > 0)].tolist())
    assert len(touching) >= 6


def test_an_image_is_no_mask_and_of_its_seed():
    ids = touching_ellipsoids((48, 60, 52), 8, (7, 11), 1)
    image = stained(ids, 1).astype(float)
    np.testing.assert_array_equal(image, stained(ids, 1))
    assert (image != stained(ids, 2)).mean() > 0.5
    means = np.array([image[ids == n].mean() for n in range(9)])
    assert means[1:].min() > 1.8 * means[0]
    assert means[1:].max() > 1.3 * means[1:].min()
    # One threshold leaves touching ones together.
    assert label(image > (means[0] + means[1:].min()) / 2)[1] != 8


def test_what_does_not_fit_is_said():
    with pytest.raises(FaultError, match=r"50 do not fit into \(40, 40, 40\) voxels, \d+ were"):
        touching_ellipsoids((40, 40, 40), 50, (8, 12), 0)


def test_a_scan_is_written_once_and_known_again(tmp_path):
    path, scan = str(tmp_path / "n.zarr"), NucleiScan((40, 60, 50), 5, 2)
    write_nuclei(path, scan)
    raw, ids = (open_volume(f"{path}/{name}", key=name) for name in ("raw", "ids"))
    expected = touching_ellipsoids(scan.shape, 5, (9.0, 17.0), 2)
    np.testing.assert_array_equal(ids.read(ids.box)[0], expected)
    np.testing.assert_array_equal(raw.read(raw.box)[0], stained(expected, 2))
    assert raw.unit == "micrometer"
    require_nuclei(path, scan)
    with pytest.raises(OutputError, match="is a phantom of objects 5, not 6"):
        require_nuclei(path, NucleiScan((40, 60, 50), 6, 2))
    with pytest.raises(OutputError, match="no phantom of nuclei"):
        require_nuclei(f"{path}/raw", scan)


def test_the_command_refuses_what_has_no_effect(tmp_path, capsys):
    path = str(tmp_path / "n.zarr")
    words = ["phantom", path, "--kind", "nuclei", "--shape", "40,60,50", "--objects", "5"]
    assert main([*words, "--seed", "2"]) == 0
    assert "raw and ids of 5 nuclei" in capsys.readouterr().out
    assert main([*words, "--seed", "2", "--keep"]) == 0
    for more, said in (
        (["--spacing", "2,6"], "--spacing: has no effect with --kind nuclei"),
        (["--shape", "40,60,5000"], "give at most 512"),
        (["--objects", "500"], "500 do not fit"),
    ):
        assert main(["phantom", str(tmp_path / "other.zarr"), *words[2:], *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other.zarr").exists()
