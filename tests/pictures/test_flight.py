import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from vcmodels.data.labels import Label, StoredLabel
from vcmodels.errors import OutputError, RefusedError, RunError
from vcmodels.geometry.boxes import Box
from vcmodels.pictures import flight
from vcmodels.pictures.flight import (
    frame_count,
    positions,
    require_writable_film,
    write_flight,
    write_slices,
)
from vcmodels.pictures.forms import FormDrawing
from vcmodels.pictures.layers import IDS, DrawnLayer, Subject, ids, labelled, plain, predicted
from vcmodels.pictures.planes import View
from vcmodels.reporting import Silent
from vcmodels.targets import BinaryTarget, NormalsTarget, RegressionTarget

EXTENT = (9, 20, 30)
WHOLE = Box((0, 0, 0), EXTENT)


@pytest.fixture
def subject(store):
    """A grey ramp along z; a mask that moves along z, its label, and ids."""
    image = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None] * 20, EXTENT).copy()
    mask, truth = np.zeros(EXTENT, np.uint8), np.full(EXTENT, 2, np.uint8)
    truth[:, :, :25] = 0
    for z in range(9):
        mask[z, 4:9, z : z + 6] = 255
        truth[z, 12:16, z : z + 6] = 1
    target = BinaryTarget(ignore_label=2)
    array = store("label", truth)
    label = Label(target, StoredLabel("v", array, array.box), (1.0, 1.0, 1.0))
    layers = (
        DrawnLayer("sheet", target, predicted(store("mask", mask), target), labelled(label)),
        DrawnLayer("cells", IDS, ids(store("ids", (mask // 255) * np.uint8(7)))),
    )
    return Subject(layers, WHOLE, EXTENT, (1.0, 1.0, 1.0), store("image", image))


def view(axis=0, most=30, box=WHOLE):
    return View.of(axis, box, (1.0, 1.0, 1.0), most)


def test_each_row_of_a_png_is_a_slice_of_image_and_layers(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("vcmodels.pictures.overlay.MIN_PANEL", 1)
    write_slices(tmp_path / "o.png", subject, view(), [1, 7])
    pixels = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    rows = pixels[42:, 6:]
    for number, z in enumerate((1, 7)):
        image, sheet, cells = (
            rows[number * 26 : number * 26 + 20, c * 36 : c * 36 + 30] for c in range(3)
        )
        assert np.ptp(image) == 0
        assert image[0, 0, 0] == [0, 255][number]  # one contrast for all slices
        assert (sheet[4, z] == (255, 115, 13)).all()  # the prediction's line
        inside = (0.7 * image[0, 0] + 0.3 * np.array([26, 217, 89])).round()
        np.testing.assert_allclose(sheet[13, z + 1], inside, atol=1)
        np.testing.assert_allclose(sheet[0, 29], (0.35 * image[0, 0]).round(), atol=1)  # ignored
        assert len(np.unique(cells[:, :, 0])) == (2 if number else 3) or np.ptp(cells) > 0
        assert (cells[0, 0] == image[0, 0]).all()


@pytest.mark.parametrize(
    ("axis", "place"), [(1, (slice(None), 6)), (2, (slice(None), slice(None), 6))]
)
def test_slices_lie_across_any_axis(subject, tmp_path, monkeypatch, axis, place):
    monkeypatch.setattr("vcmodels.pictures.overlay.MIN_PANEL", 1)
    write_slices(tmp_path / "o.png", subject, view(axis), [6])
    found = np.asarray(Image.open(tmp_path / "o.png"))[42:, 6:]
    wanted = subject.image.read(WHOLE)[0][place].astype(float)
    height, width = wanted.shape
    shown = found[:height, :width, 0].astype(float)
    np.testing.assert_allclose(shown, 255 * wanted / wanted.max(), atol=2)


def frames(path, height, width):
    """The pictures of an MP4, and what ffmpeg says of it."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return done.stderr.decode(), found


def test_a_film_has_a_picture_for_each_slice_of_even_edges(subject, tmp_path):
    box = Box((0, 0, 0), (9, 19, 29))
    write_flight(tmp_path / "o.mp4", subject, view(0, 29, box), range(9), 5, Silent())
    about, found = frames(tmp_path / "o.mp4", 20, 29 * 2 + flight.GAP)
    assert len(found) == 9
    assert " 5 fps" in about
    assert "h264" in about
    # The mask moves by one voxel a slice: its line is orange, at the right place.
    for z in (0, 4, 8):
        row = found[z][5:8, :29].astype(int)
        orange = (row[..., 0] - row[..., 2]).mean(0)
        assert abs(int(orange.argmax()) - z) <= 6
        assert orange[z : z + 6].max() > orange[z + 8 : 25].max(initial=0) + 20
    assert not list(tmp_path.glob(".o.mp4*"))


def test_a_gif_has_a_picture_for_each_slice(subject, tmp_path):
    write_flight(tmp_path / "o.gif", subject, view(), range(9), 10, Silent())
    with Image.open(tmp_path / "o.gif") as film:
        assert film.n_frames == 9
        assert film.info["duration"] == 100
        assert film.size == (64, 20)


def test_a_gif_that_memory_might_not_hold_is_refused(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(flight, "GIF_BYTES", 2 * 9 * 600 - 1)
    with pytest.raises(RefusedError, match=r"name an \.mp4"):
        write_flight(tmp_path / "o.gif", subject, view(), range(9), 10, Silent())
    assert not (tmp_path / "o.gif").exists()


def test_a_film_that_fails_leaves_the_old_one(subject, tmp_path, monkeypatch):
    (tmp_path / "o.mp4").write_bytes(b"old")

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(flight, "_frame", fail)
    with pytest.raises(OSError, match="disk"):
        write_flight(tmp_path / "o.mp4", subject, view(), range(9), 5, Silent())
    assert (tmp_path / "o.mp4").read_bytes() == b"old"
    assert not list(tmp_path.glob(".o.mp4*"))


def test_what_the_encoder_says_is_reported(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(flight._Encoder, "_start", _failing)
    with pytest.raises(RunError, match="cannot be written: no space"):
        write_flight(tmp_path / "o.mp4", subject, view(), range(9), 5, Silent())
    assert not list(tmp_path.glob("*.mp4*"))


def _failing(self, height, width):
    command = [sys.executable, "-c", "import sys; sys.stdin.read(9); sys.exit('no space')"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._said)


def test_without_the_encoder_a_film_is_refused_before_anything(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(RefusedError, match=r"vcmodels\[view\]"):
        require_writable_film(tmp_path / "o.mp4")
    require_writable_film(tmp_path / "o.gif")
    with pytest.raises(OutputError, match="name it so"):
        require_writable_film(tmp_path / "o.avi")


def test_layers_without_image_or_without_prediction_are_drawn(store, tmp_path, monkeypatch):
    monkeypatch.setattr("vcmodels.pictures.overlay.MIN_PANEL", 1)
    mask = np.zeros(EXTENT, np.uint8)
    mask[:, 5:9, 5:9] = 1
    code = np.full((3, *EXTENT), 128, np.uint8)
    code[0] = 255  # x
    target, normals = BinaryTarget(), NormalsTarget(channels=3)
    layers = (
        DrawnLayer("label", target, label=plain(store("m", mask), target)),
        DrawnLayer("strange", target, plain(store("s", mask), target, as_prediction=True)),
        DrawnLayer("normals", normals, predicted(store("n", code), normals)),
    )
    subject = Subject(layers, WHOLE, EXTENT, (1.0, 1.0, 1.0))
    write_slices(tmp_path / "o.png", subject, view(), [4])
    found = np.asarray(Image.open(tmp_path / "o.png"))[42:, 6:]
    assert (found[5, 5] == (26, 217, 89)).all()
    assert (found[5, 36 + 5] == (255, 115, 13)).all()
    assert found[0, 72, 0] > 200  # x is red
    assert (found[0, 0] == 0).all()


def test_without_an_image_the_places_stand_over_the_first_layer(store, tmp_path, monkeypatch):
    def keep(rows, titles, captions, edges):
        kept.extend(zip(titles, captions, strict=True))
        return compose(rows, titles, captions)

    kept = []
    compose = flight.compose
    monkeypatch.setattr(flight, "compose", keep)
    target = BinaryTarget()
    source = plain(store("m", np.ones(EXTENT, np.uint8)), target)
    layers = (DrawnLayer("a", target, source), DrawnLayer("b", target, label=source))
    subject = Subject(layers, WHOLE, EXTENT, (1.0, 1.0, 1.0))
    write_slices(tmp_path / "o.png", subject, view(), [2, 4])
    assert kept == [("a", "z = 2, 4; prediction"), ("b", "label")]


@pytest.mark.parametrize("count", [1, 3, 9, 50])
def test_slices_are_spread_over_what_is_shown(count):
    box = Box((2, 0, 0), (9, 20, 30))
    found = positions(view(0, 30, box), count)
    assert len(found) == len(set(found)) == min(count, 9)
    assert min(found) >= 2
    assert max(found) < 11
    assert found[0] - 2 == pytest.approx(11 - 1 - found[-1], abs=1)


def test_a_film_goes_on_by_as_much_as_a_pixel_is_wide():
    assert frame_count(view(0, 30), 100) == 9
    assert frame_count(view(0, 10), 100) == 3
    assert frame_count(view(2, 20), 25) == 25


@pytest.mark.parametrize(
    "target", [RegressionTarget(), FormDrawing("values")], ids=["kind", "form"]
)
def test_a_value_has_one_grey_in_all_slices_of_a_film_and_its_name_states_the_scale(
    store, tmp_path, monkeypatch, target
):
    depth = np.full(EXTENT, 100, np.float32) + np.arange(9, dtype=np.float32)[:, None, None]
    depth[:, 0, 0] = np.linspace(0, 40, 9)  # the extremes of a slice differ from slice to slice
    depth[4, 1, 1] = np.nan
    shown = []
    monkeypatch.setattr(flight, "_frame", lambda *given: shown.append(given) or _black())
    source = predicted(store("depth", depth), RegressionTarget())
    subject = Subject((DrawnLayer("depth", target, source),), WHOLE, EXTENT, (1.0, 1.0, 1.0))
    write_flight(tmp_path / "o.gif", subject, view(), range(9), 5, Silent())
    assert {names[0] for _, names, _ in shown} == {"depth 0 to 108"}
    for z, (panels, _, _) in enumerate(shown):
        wanted = depth[z] / 108
        wanted[~np.isfinite(wanted)] = 0
        np.testing.assert_allclose(panels[0].background[..., 0], wanted, atol=1e-6)


def test_a_label_that_does_not_count_is_left_out_of_the_scale(store, tmp_path, monkeypatch):
    monkeypatch.setattr("vcmodels.pictures.overlay.MIN_PANEL", 1)
    kept, compose = [], flight.compose
    monkeypatch.setattr(flight, "compose", lambda *given: kept.append(given) or compose(*given))
    target = RegressionTarget(ignore_label=-99)
    truth = np.full(EXTENT, 2, np.float32)
    truth[:, 5:], truth[0, 0, 0] = -99, 6
    array = store("truth", truth)
    label = labelled(Label(target, StoredLabel("v", array, array.box), (1.0, 1.0, 1.0)))
    source = predicted(store("found", np.full(EXTENT, 1, np.float32)), target)
    subject = Subject((DrawnLayer("a", target, source, label),), WHOLE, EXTENT, (1.0, 1.0, 1.0))
    write_slices(tmp_path / "o.png", subject, view(), [0, 4])
    assert kept[0][1] == ["a 1 to 6"]


def _black():
    return np.zeros((20, 30, 3), np.uint8)
