import numpy as np
import pytest
from PIL import Image

from vcmodels.data.labels import Label, StoredLabel
from vcmodels.geometry.boxes import Box
from vcmodels.pictures import overlay
from vcmodels.pictures.overlay import DrawnTarget, compose, write_overlay
from vcmodels.pictures.slices import Panel, draw_panel
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget

EXTENT = (9, 20, 30)
GREEN, ORANGE = (26, 217, 89), (255, 115, 13)


def colours(pixels):
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}


@pytest.fixture
def scored(store):
    mask = np.zeros(EXTENT, np.uint8)
    mask[:, 5:12, 6:20] = 1
    code = np.zeros((3, *EXTENT), np.uint8)
    code[:] = 128
    code[0] = 255  # x, stored first

    def label(target, name, values):
        array = store(name, values)
        return Label(target, StoredLabel("scroll", array, array.box), (1.0, 1.0, 1.0))

    sheet = DrawnTarget(label(BinaryTarget(), "l", mask), store("p", mask * 255), "dice 1.000")
    normals = DrawnTarget(label(NormalsTarget(channels=3), "n", code), store("m", code))
    return store("raw", np.full(EXTENT, 7, np.uint8)), {"sheet": sheet, "normals": normals}


def test_every_target_has_two_panels_beside_the_image(scored, tmp_path):
    image, targets = scored
    write_overlay(tmp_path / "o.png", image, targets, Box((0, 0, 0), EXTENT), slices=[2, 5])
    pixels = np.asarray(Image.open(tmp_path / "o.png"))
    panels = pixels[42 + 10 :, 6:].reshape(len(pixels) - 52, -1, 3)[:200]
    columns = [panels[:, i * 246 : i * 246 + 240] for i in range(5)]
    assert GREEN in colours(columns[1])
    assert ORANGE not in colours(columns[1])
    assert ORANGE in colours(columns[2])
    assert all(c[..., 0].max() > 200 for c in columns[3:])  # x is red
    assert GREEN not in colours(columns[0])


def test_three_slices_are_chosen_inside_the_box(scored, tmp_path, monkeypatch):
    image, targets = scored
    read = []
    original = type(image).read

    def spy(self, box, *args, **kwargs):
        if self == image:
            read.append(box.origin[0])
        return original(self, box, *args, **kwargs)

    monkeypatch.setattr(type(image), "read", spy)
    write_overlay(tmp_path / "o.png", image, targets, Box((3, 0, 0), (6, 20, 30)))
    assert read == [4, 6, 8]
    read.clear()
    write_overlay(tmp_path / "o.png", image, targets, Box((8, 0, 0), (1, 20, 30)))
    assert read == [8]


def test_lines_run_along_the_inner_border_of_a_region_and_nowhere_else():
    regions = np.zeros((6, 7, 3), np.float32)
    regions[2:5, 1:6] = (0, 1, 0)
    drawn = draw_panel(Panel(np.full((6, 7, 3), 0.5, np.float32), regions), 4)
    line = (drawn != 0.5).any(axis=2)
    assert (drawn[line] == (0, 1, 0)).all()
    expected = np.zeros((24, 28), bool)
    expected[8:20, 4:24] = True
    expected[9:19, 5:23] = False
    np.testing.assert_array_equal(line, expected)


def test_a_line_is_not_drawn_where_the_picture_ends():
    regions = np.ones((3, 4, 3), np.float32)
    background = np.zeros((3, 4, 3), np.float32)
    np.testing.assert_array_equal(draw_panel(Panel(background, regions), 1), background)


def test_a_value_has_one_grey_in_all_rows(store, tmp_path, monkeypatch):
    target = RegressionTarget()
    truth = np.ones(EXTENT, np.float32)
    truth[2], truth[5, 0, 0] = 2, 4
    array = store("truth", truth)
    label = Label(target, StoredLabel("v", array, array.box), (1.0, 1.0, 1.0))
    depth = {"depth": DrawnTarget(label, store("found", np.full(EXTENT, 3, np.float32)))}
    rows = []
    compose = overlay.compose
    monkeypatch.setattr(overlay, "compose", lambda *given: rows.extend(given[0]) or compose(*given))
    image = store("raw", np.zeros(EXTENT, np.uint8))
    write_overlay(tmp_path / "o.png", image, depth, Box((0, 0, 0), EXTENT), slices=[2, 5])
    greys = [[np.median(panel.background) for panel in row[1:]] for row in rows]
    np.testing.assert_allclose(greys, [[1 / 3, 2 / 3], [0, 2 / 3]], atol=1e-6)


def test_letters_stand_at_the_edges_of_the_first_panel_alone():
    grey = np.full((40, 60, 3), 0.5, np.float32)
    rows = [[Panel(grey), Panel(grey)]]
    plain, marked = (
        np.asarray(compose(rows, ["a", "b"], ["", ""], edges)) for edges in (None, tuple("PARL"))
    )
    rows, columns = np.nonzero((plain != marked).any(axis=-1))
    panel = marked.shape[1] // 2
    assert columns.max() < panel
    assert np.ptp(columns) > 0.9 * panel - 20
    assert np.ptp(rows) > 140  # of the 160 of the panel
