"""The pictures of a preview: which are written, of which patches, and what is drawn where."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vcmodels.config import parse_task
from vcmodels.errors import OutputError
from vcmodels.pictures import preview
from vcmodels.pictures.preview import Patch, PatchSource, write_figure, write_preview
from vcmodels.pictures.slices import LABEL_COLOUR, Slice, draw_label, look_of, physical
from vcmodels.reporting import Silent
from vcmodels.samples.dataset import PatchOrigin
from vcmodels.targets import (
    BinaryTarget,
    DistanceTarget,
    MulticlassTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)

TARGETS = {
    "mask": BinaryTarget(),
    "parts": MulticlassTarget(channels=3, label_values=[0, 4, 9]),
    "depth": RegressionTarget(),
    "colour": RegressionTarget(channels=3),
    "axis": NormalsTarget(channels=3, orientation="axial"),
    "normal": NormalsTarget(channels=3, orientation="oriented"),
}


def patch_of(shape, seed=0, valid=True):
    rng = np.random.default_rng(seed)
    labels = {
        "mask": rng.integers(0, 2, (1, *shape)),
        "parts": rng.integers(0, 3, (1, *shape)),
        "depth": rng.normal(size=(1, *shape)),
        "colour": rng.random((3, *shape)),
        "axis": rng.normal(size=(3, *shape)),
        "normal": rng.normal(size=(3, *shape)),
    }
    return Patch(
        rng.normal(size=(2, *shape)).astype(np.float32),
        {name: label.astype(np.float32) for name, label in labels.items()},
        {name: np.full(shape, valid) for name in labels},
        PatchOrigin("scan", (0, 0, 0)),
        (5.0, 1.0, 0.8),
    )


@pytest.fixture
def task_with(sheet_task):
    def build(augment):
        return parse_task(sheet_task | {"augment": augment}, "task.json")[0]

    return build


@pytest.fixture
def drawn(monkeypatch):
    """Instead of drawing, keep what would be drawn, by the name of the file."""
    kept = {}
    monkeypatch.setattr(
        preview,
        "write_figure",
        lambda path, _title, _caption, patches, *_: kept.update({path.name: patches}),
    )
    return kept


def test_one_picture_for_each_transform_and_each_sample(task_with, tmp_path):
    task = task_with([{"name": "flip"}, {"name": "affine"}, {"name": "blur"}, {"name": "flip"}])
    folder, written = write_preview(task, samples=2)
    names = ["01_flip.png", "02_affine.png", "03_blur.png", "04_flip.png", "all_1.png", "all_2.png"]
    assert [path.name for path in written] == names
    assert folder == tmp_path / "run" / "preview"
    assert sorted(folder.iterdir()) == written
    for path in written:
        with Image.open(path) as picture:
            assert 900 < picture.width < 2000
            assert 400 < picture.height < 2000


def test_each_transform_is_forced_but_the_whole_list_is_not(task_with, tmp_path, drawn):
    task = task_with(
        [{"name": "noise", "p": 0}, {"name": "elastic", "p": 0}, {"name": "flip", "p": 0}]
    )
    write_preview(task, tmp_path, samples=1)
    for name, patches in drawn.items():
        before, *after = patches
        for patch in after:
            assert patch.place == before.place
            assert np.array_equal(patch.image, before.image) == (name == "all_1.png")
    noisy, _ = drawn["01_noise.png"][1:]
    for name in ("sheet", "normals"):
        assert np.array_equal(noisy.labels[name], drawn["01_noise.png"][0].labels[name])


def test_the_seed_alone_decides_what_is_drawn(task_with, tmp_path, drawn):
    task = task_with([{"name": "noise"}])
    images = []
    for seed in (None, 0, 1):
        write_preview(task, tmp_path, samples=0, seed=seed)
        images.append(drawn["01_noise.png"][1].image)
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_the_patches_that_are_shown_hold_labels(task_with):
    source = PatchSource(task_with([]), 0, Silent())
    rows = source.telling_rows(3)
    assert len(set(rows)) == 3
    for row in rows:
        patch = source.patch(row, [])
        assert 0.05 < (patch.labels["sheet"] != 0).mean() < 0.95
        assert patch.image.shape[1:] == (16, 16, 16)


def test_a_folder_that_cannot_be_made_is_refused(task_with, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="give --output"):
        write_preview(task_with([]), tmp_path / "file" / "folder")


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 9, 5), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("valid", [True, False])
def test_every_kind_is_drawn_for_any_shape(shape, valid, tmp_path):
    patches = [patch_of(shape, seed, valid) for seed in (0, 1)]
    write_figure(tmp_path / "all.png", "title", "caption " * 99, patches, TARGETS)
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > 500


def axes():
    from matplotlib.figure import Figure

    return Figure().add_axes((0, 0, 1, 1))


def draw(name, label, valid=None, size=None, across=(0, 2)):
    """Draw one slice of a target: the axes, as matplotlib keeps them."""
    label = np.asarray(label, np.float32)
    shape = label.shape[1:]
    valid = np.ones(shape, bool) if valid is None else valid
    look = look_of(TARGETS[name], label[None, :, None], valid[None, None])
    canvas = axes()
    size = size or (float(shape[0]), float(shape[1]))
    draw_label(canvas, look, Slice(np.full(shape, 0.5, np.float32), label, valid, size, across))
    return canvas


def test_arrows_stand_on_their_voxels_and_point_the_way_of_the_picture():
    label = np.zeros((3, 60, 30))
    label[:, 40, 20] = 0.6, 0.0, 0.8  # (z, y, x), in the slice with z down and x to the right
    canvas = draw("normal", label, size=(300.0, 30.0))
    (arrows,) = (c for c in canvas.collections if hasattr(c, "U"))
    assert canvas.yaxis_inverted()
    assert arrows.N == 1
    np.testing.assert_allclose((arrows.X[0], arrows.Y[0]), (20.5, 40.5 * 5))
    np.testing.assert_allclose((arrows.U[0], arrows.V[0]), (0.8, 0.6), rtol=1e-6)
    assert arrows.angles == "xy"
    # The colour: red for x, green for y, blue for z.
    np.testing.assert_allclose(arrows.get_facecolor()[0][:3], (0.8, 0.0, 0.6), atol=1e-6)


def test_axes_have_no_head_and_uncounted_voxels_no_arrow():
    label = np.ones((3, 20, 20))
    valid = np.zeros((20, 20), bool)
    valid[:10] = True
    (lines,) = (c for c in draw("axis", label, valid).collections if hasattr(c, "U"))
    assert lines.headwidth == 0
    assert 0 < lines.N < 15 * 15
    assert lines.Y.max() < 10
    (arrows,) = (c for c in draw("normal", label, valid).collections if hasattr(c, "U"))
    assert arrows.headwidth > 0


def test_a_label_that_does_not_count_is_dark_and_no_region_there():
    mask, valid = np.ones((1, 8, 9)), np.zeros((8, 9), bool)
    valid[:, :4] = True
    mask[0, :4] = 0
    ground, fill = (picture.get_array() for picture in draw("mask", mask, valid).images)
    assert (ground[:, :4] > 2 * ground[:, 4:5]).all()
    assert (fill[..., 3] > 0).sum() == 4 * 4
    assert (fill[4:, :4, 3] > 0).all()
    np.testing.assert_allclose(fill[5, 0, :3], LABEL_COLOUR, atol=1e-6)  # as in all pictures


def test_classes_have_the_colours_of_their_kind_and_the_names_of_their_values():
    label = np.arange(3)[None, :, None].repeat(5, 2)
    look = look_of(
        TARGETS["parts"], label[None, :, None].astype(np.float32), np.ones((1, 1, 3, 5), bool)
    )
    assert list(look.names) == ["4", "9"]
    assert len(set(look.names.values())) == 2


def test_vectors_that_count_voxels_are_drawn_in_physical_units():
    label, spacing = np.ones((3, 1, 1, 1), np.float32), (5.0, 1.0, 2.0)
    steps = physical(VectorTarget(units="voxels"), label, spacing)
    np.testing.assert_array_equal(steps.ravel(), [5, 1, 2])
    slopes = physical(VectorTarget(units="voxels", transforms_as="gradient"), label, spacing)
    np.testing.assert_allclose(slopes.ravel(), [0.2, 1, 0.5])
    assert physical(VectorTarget(), label, spacing) is label


def test_distances_are_drawn_as_lengths():
    shares = np.array([-1, 0.5], np.float32).reshape(1, 1, 1, 2)
    drawn = physical(DistanceTarget(clip=40.0), shares, (5.0, 1.0, 2.0))
    np.testing.assert_array_equal(drawn.ravel(), [-40, 20])


def test_a_patch_has_the_voxel_size_of_its_own_volume(task_with):
    task = task_with([])
    entry = task.dataset_config.volume_paths[0]
    thick = entry.model_copy(update={"spacing": (3.0, 1.0, 1.0), "name": "thick"})
    config = task.dataset_config.model_copy(update={"volume_paths": [entry, thick]})
    source = PatchSource(task.model_copy(update={"dataset_config": config}), 0, Silent())
    rows = [int(np.flatnonzero(source.rows[:, 0] == number)[0]) for number in (0, 1)]
    patches = [source.patch(row, []) for row in rows]
    assert patches[1].place.volume == "thick"
    assert [patch.spacing[0] / patch.spacing[1] for patch in patches] == [1, 3]


def test_fields_before_and_after_share_one_scale():
    label = np.stack([np.full((1, 2, 3, 4), -2.0), np.full((1, 2, 3, 4), 7.0)])
    assert look_of(TARGETS["depth"], label, np.ones((2, 2, 3, 4), bool)).limits == (-2, 7)


def test_matplotlib_is_imported_late_and_without_its_global_state(tmp_path):
    program = f"""
import sys
from pathlib import Path
import numpy as np
import vcmodels.pictures.preview
from vcmodels.pictures.preview import write_figure
from vcmodels.pictures.preview import Patch
assert "matplotlib" not in sys.modules
patch = Patch(np.zeros((1, 4, 4, 4), "f4"), {{}}, {{}}, None, (1, 1, 1))
write_figure(Path({str(tmp_path / "a.png")!r}), "", "", [patch], {{}})
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
