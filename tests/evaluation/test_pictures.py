import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from vcmodels.evaluation.pictures import (
    GAP,
    KeptPictures,
    PairPictures,
    draw_slice,
    middle_of,
    pair_pictures,
    picture_name,
)
from vcmodels.evaluation.scoring import ScoredTarget, ScoredVolume
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent

GREEN, ORANGE = (26, 217, 89), (255, 115, 13)
SHAPE = (6, 20, 30)


@dataclass
class InMemory:
    """A pair of arrays."""

    form: str
    prediction: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    spacing: tuple = (1.0, 1.0, 1.0)

    @property
    def box(self):
        return Box((0, 0, 0), self.label.shape[1:])

    @property
    def classes(self):
        return len(self.prediction)

    def read(self, box):
        at = (slice(None), *box.slices())
        return self.prediction[at], self.label[at], self.valid[at]

    def regions(self, box):
        raise NotImplementedError


@pytest.fixture
def masks():
    label, prediction = np.zeros((2, 1, *SHAPE), np.float32)
    label[0, 3, 5:10, 5:10] = 1
    prediction[0, 3, 5:10, 12:20] = 0.9
    valid = np.ones((1, *SHAPE), bool)
    valid[..., 25:] = False
    return InMemory("masks", prediction, label, valid)


def panels(pixels, count, width):
    return [pixels[:, i * (width + GAP) : i * (width + GAP) + width] for i in range(count)]


def test_a_slice_is_the_image_the_label_the_prediction_and_both(masks):
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    drawn = draw_slice(masks, 3, lambda box: image[box.slices()])
    factor = 7  # 30 voxels to 192 pixels or more
    assert drawn.shape == (20 * factor, 4 * 30 * factor + 3 * GAP, 3)
    plain, label, prediction, both = panels(drawn, 4, 30 * factor)
    grey = plain[::factor, ::factor].astype(int)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (np.diff(grey[..., 0].ravel()) >= 0).all()
    for panel, colour, x in ((label, GREEN, 5), (prediction, ORANGE, 12)):
        places = np.argwhere((panel == colour).all(-1)) // factor
        assert places.min(0).tolist() == [5, x]
        assert places[:, 0].max() == 9
    assert (both == ORANGE).all(-1).any()
    assert not (both == GREEN).all(-1).any()  # the label is filled, not outlined
    counted, ignored = label[0, 0].astype(int), label[0, -1].astype(int)
    assert ignored[0] < plain[0, -1, 0]
    assert counted[0] == plain[0, 0, 0]


def test_without_an_image_regions_lie_on_black(masks):
    drawn = draw_slice(masks, 3, None)
    assert drawn.shape[1] == 3 * 210 + 2 * GAP
    assert (drawn[0, 0] == 0).all()


def test_a_large_slice_is_cut_to_its_middle_and_thinned():
    assert middle_of(Box((3, 10, 20), (1, 100, 31)), 30) == Box((3, 45, 20), (1, 30, 30))
    shape = (1, 1, 1500, 400)
    zeros = np.zeros(shape, np.float32)
    drawn = draw_slice(InMemory("masks", zeros, zeros, zeros == 0), 0, None)
    assert drawn.shape[:2] == (256, 3 * 100 + 2 * GAP)


@pytest.mark.parametrize(
    ("form", "channels", "labels", "dtype", "panel_count"),
    [("classes", 3, 1, np.float32, 4), ("values", 1, 1, np.float32, 4),
     ("directions", 3, 3, np.float32, 4), ("vectors", 3, 3, np.float32, 4),
     ("masks", 4, 4, np.float32, 4), ("instances", 1, 1, np.uint64, 4)],
)  # fmt: skip
def test_every_form_is_drawn(form, channels, labels, dtype, panel_count):
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 2, (channels, *SHAPE)).astype(dtype)
    label = rng.integers(0, 2, (labels, *SHAPE)).astype(dtype)
    pair = InMemory(form, prediction, label, np.ones((1, *SHAPE), bool))
    drawn = draw_slice(pair, 2, lambda box: np.ones(box.shape))
    assert drawn.shape[1] == panel_count * 210 + (panel_count - 1) * GAP
    assert np.ptp(drawn.astype(int)) > 50


def test_pictures_are_of_the_pair_and_slice_that_is_asked_for(masks):
    pictures = PairPictures({("v", "t"): masks}, {})
    with Image.open(io.BytesIO(pictures("v", "t", 3))) as found:
        assert found.format == "WEBP"
        wanted = draw_slice(masks, 3, None).astype(float)
        assert np.abs(np.asarray(found).astype(float) - wanted).mean() < 6
    assert pictures("v", "other", 3) is None
    assert pictures("v", "t", 6) is None


def test_an_image_that_is_missing_or_does_not_fit_is_said_and_left_out(masks, tmp_path):
    target = ScoredTarget("t", masks, {})
    volumes = [
        ScoredVolume("gone", "p", (target,), image=(str(tmp_path / "gone.zarr"),)),
        ScoredVolume("none", "p", (target,)),
    ]
    reporter = Silent()
    pictures = pair_pictures(volumes, reporter)
    assert set(pictures.pairs) == {("gone", "t"), ("none", "t")}
    assert not pictures.images
    (line,) = reporter.lines
    assert line.startswith("note: pictures of gone have no image:")


def test_the_image_of_a_volume_is_read(masks, store):
    small = store("small", np.ones((3, 4, 5), np.uint8))
    image = store("image", np.full(SHAPE, 7, np.uint8))
    target, reporter = ScoredTarget("t", masks, {}), Silent()
    volumes = [
        ScoredVolume("a", "p", (target,), image=(image.location,)),
        ScoredVolume("b", "p", (target,), image=(small.location,)),
    ]
    pictures = pair_pictures(volumes, reporter)
    assert (pictures.images["a"](Box((1, 2, 3), (1, 5, 6))) == np.full((1, 5, 6), 7)).all()
    assert set(pictures.images) == {"a"}
    assert reporter.lines == ["note: pictures of b have no image: it is of another extent"]


def test_kept_pictures_are_read_where_nothing_draws(tmp_path):
    def draw(_volume, _target, z):
        return None if z > 5 else f"picture {z}".encode()

    drawn = KeptPictures(tmp_path, draw)
    assert drawn("v", "t", 3) == b"picture 3"
    assert drawn("v", "t", 9) is None
    kept = KeptPictures(tmp_path)
    assert kept("v", "t", 3) == b"picture 3"
    assert kept("v", "t", 4) is None
    kept.sweep()
    assert kept("v", "t", 3) == b"picture 3"


def test_names_of_pictures_are_files_anywhere_and_never_the_same():
    nasty = ["a/b", "a_b", "..", "", "漢" * 300, "x" * 300, 'q"<>|:*?']
    names = [picture_name(v, t, 3) for v in nasty for t in ("t", "u")]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) < 200
        assert not set(name) & set('/\\<>|:*?"')
        assert not name.startswith("..")
