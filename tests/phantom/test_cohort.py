import numpy as np
import pytest
from scipy.ndimage import label

from vcmodels.cli import main
from vcmodels.errors import OutputError
from vcmodels.fields.centreline import trace
from vcmodels.geometry.affine import axis_codes, is_square, spacing_of
from vcmodels.phantom.cohort import NeckScans, require_cohort, write_cohort
from vcmodels.phantom.magnet import CONTRASTS, Slices, scan
from vcmodels.phantom.neck import LESION, Neck
from vcmodels.volumes import group_attributes, open_volume
from vcmodels.volumes.world import world_affine

SIZE = (60.0, 56.0, 52.0)
SMALL = NeckScans(2, 3, SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("cords") / "cords.zarr"
    write_cohort(str(path), SMALL)
    return path


def volumes(store, name):
    arrays = ("image", "cord", "lesion")
    return [open_volume(f"{store}/{name}/{one}", key=one, channels="any") for one in arrays]


def test_labels_are_exact_at_the_centres_of_voxels_in_the_world(store):
    """Each voxel of a scan, put into the world by nibabel, is what the neck has there."""
    from nibabel.affines import apply_affine

    names = [name for name, *_ in SMALL.scans()]
    assert names == ["sub-01_T2", "sub-01_T2s", "sub-02_T2s", "sub-02_STIR"]
    for name, subject, contrast in SMALL.scans():
        image, cord, lesion = volumes(store, name)
        affine = world_affine(image)
        assert image.extent == cord.extent == lesion.extent
        np.testing.assert_allclose(image.spacing, spacing_of(affine))
        assert sorted(image.spacing) == pytest.approx(sorted(contrast.spacing))
        assert is_square(affine)
        assert image.unit == "millimeter"
        index = np.random.default_rng(0).integers(0, image.extent, (4000, 3))
        index = np.concatenate([index, np.argwhere(lesion.read(lesion.box)[0])])
        world = apply_affine(affine, index[:, ::-1])
        tissue = Neck(3000 + subject, SIZE).tissue(*world.T)
        found = lesion.read(lesion.box)[0][tuple(index.T)]
        np.testing.assert_array_equal(found, tissue == LESION)
        assert found.any()


def test_lesions_lie_in_the_cord_and_look_other_than_it(store):
    for name, *_ in SMALL.scans():
        image, cord, lesion = (volume.read(volume.box)[0] for volume in volumes(store, name))
        assert not (lesion & ~cord & 1).any()
        assert label(cord, np.ones((3, 3, 3)))[1] == 1
        bright, usual = image[lesion == 1].mean(), image[(cord == 1) & (lesion == 0)].mean()
        assert bright > 1.15 * usual


def test_the_cord_runs_along_its_own_centreline():
    neck = Neck(5, SIZE)
    slices = Slices.of(CONTRASTS[1], SIZE, 5)
    cord = np.argwhere(scan(neck, CONTRASTS[1], slices, 5).cord)
    spacing = spacing_of(slices.affine)
    line = trace(cord, np.ones(len(cord)), spacing, most_gap=10.0).line
    index = line.points / spacing
    world = index[:, ::-1] @ slices.affine[:3, :3].T + slices.affine[:3, 3]
    right, front = neck.middle(world[:, 2])
    inner = np.abs(world[:, 2]) < SIZE[0] / 2 - 6
    error = np.hypot(right - world[:, 0], front - world[:, 1])[inner]
    assert error.max() < 0.7  # mm: a voxel


def test_axes_run_every_way_and_groups_stay_together(store):
    codes = {axis_codes(Slices.of(CONTRASTS[0], SIZE, seed).affine) for seed in range(40)}
    assert len(codes) > 20
    attributes = [group_attributes(str(store / name)) for name, *_ in SMALL.scans()]
    assert [one["subject"] for one in attributes] == ["sub-01"] * 2 + ["sub-02"] * 2
    assert [one["split"] for one in attributes] == ["train"] * 2 + ["val"] * 2


def test_the_command_writes_it_and_keeps_it(tmp_path, capsys):
    path = str(tmp_path / "c.zarr")
    words = ["phantom", path, "--kind", "cord", "--subjects", "1", "--size", "48,50,52"]
    assert main(words) == 0
    assert "image, cord and lesion of 2 scans" in capsys.readouterr().out
    assert main([*words, "--keep"]) == 0
    assert main([*words, "--keep", "--seed", "1"]) == 2
    assert "is a phantom of seed 0, not 1" in capsys.readouterr().err
    with pytest.raises(OutputError, match="of size_mm"):
        require_cohort(path, NeckScans(1, 0, SIZE))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "cord", "--shape", "9,9,9"], "--shape: has no effect with --kind cord"),
        (["--subjects", "2"], "--subjects: has no effect with --kind scroll"),
        (["--kind", "cord", "--size", "9,90,90"], "--size: found 9,90,90; give lengths from 48"),
    ],
)
def test_options_of_the_other_kind_are_refused(tmp_path, capsys, words, message):
    assert main(["phantom", str(tmp_path / "x"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_grids_are_turned_about_right_and_then_about_front_by_up_to_8_degrees():
    found = []
    for seed in range(200):
        steps = Slices.of(CONTRASTS[0], SIZE, seed).affine[:3, :3]
        directions = steps / np.linalg.norm(steps, axis=0)
        turn = directions @ np.round(directions).T
        # Ry(b) Rx(a): its second row is (0, cos a, -sin a); its first column (cos b, 0, +-sin b).
        assert turn[1, 0] == pytest.approx(0, abs=1e-12)
        found.append((np.arctan2(turn[1, 2], turn[1, 1]), np.arctan2(turn[2, 0], turn[0, 0])))
    degrees = np.abs(np.rad2deg(found)).max(axis=0)
    np.testing.assert_allclose(degrees, 8, atol=0.2)
    assert (degrees <= 8).all()
