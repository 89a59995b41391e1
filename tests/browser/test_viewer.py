"""neuroglancer's page, as Chromium shows it: every look has the colours that pictures have."""

import io
import json
import time
from base64 import b64decode
from importlib import import_module

import numpy as np
import pytest
from PIL import Image as Picture

from vcmodels.geometry.boxes import Box
from vcmodels.pictures.slices import LABEL_COLOUR, PREDICTION_COLOUR
from vcmodels.reporting import Silent
from vcmodels.viewers.looks import Ids, Image, Linear, Numbers, Probability, Shares, Vectors
from vcmodels.viewers.scene import Boxes, Frame, Layer, Marker, Scene
from vcmodels.volumes import ArrayVolume
from vcmodels.volumes.levels import StoredLevel

pytest.importorskip("neuroglancer")
module = import_module("vcmodels.viewers.neuroglancer")

SHAPE = (6, 7, 8)
FRAME = Frame((3.0, 2.0, 2.0), (0.0, 0.0, 0.0), "micrometer", SHAPE)
EIGHT_BIT = Linear(1 / 255)


def layer(name, look, values, dtype="uint8") -> Layer:
    array = np.broadcast_to(np.array(values, dtype).reshape(-1, 1, 1, 1), (len(values), *SHAPE))
    return Layer(name, (StoredLevel(ArrayVolume.of(array, FRAME.spacing, name)),), look, FRAME)


ORANGE, BLUE = (0.90, 0.62, 0.00), (0.34, 0.71, 0.91)
LAYERS = {
    # name: (layer, the colour that is seen over black)
    "grey": (layer("grey", Image((0.0, 200.0)), [100]), (0.5, 0.5, 0.5)),
    "float": (layer("float", Image((-1.0, 1.0)), [0.5], "float32"), (0.75, 0.75, 0.75)),
    "channels": (layer("channels", Image((0.0, 255.0)), [255, 0, 0]), (1.0, 1.0, 1.0)),
    "likely": (layer("likely", Probability(EIGHT_BIT), [255]), [0.7 * c for c in PREDICTION_COLOUR]),
    "unlikely": (layer("unlikely", Probability(EIGHT_BIT), [0]), (0.0, 0.0, 0.0)),
    "logit": (
        layer("logit", Probability(Linear(), is_logit=True), [0.0], "float32"),
        [0.35 * c for c in PREDICTION_COLOUR],
    ),
    "shares": (
        layer("shares", Shares(EIGHT_BIT, ((0.0, 0.0, 0.0), ORANGE, BLUE)), [0, 255, 0]),
        [0.7 * c for c in ORANGE],
    ),
    "far outside": (
        layer("far outside", Numbers(Linear(8 / 255, -4.0), (-4.0, 4.0)), [255]), (1.0, 0.0, 0.0),
    ),
    "far inside": (
        layer("far inside", Numbers(Linear(8 / 255, -4.0), (-4.0, 4.0)), [0]), (0.0, 0.0, 1.0),
    ),
    "highest": (layer("highest", Numbers(EIGHT_BIT, (0.0, 1.0)), [255]), (1.0, 1.0, 1.0)),
    "lowest": (layer("lowest", Numbers(Linear(), (2.0, 3.0)), [2.0], "float32"), (0.0, 0.0, 0.0)),
    # stored x, y, z
    "along x": (layer("along x", Vectors(Linear(), (2, 1, 0), False), [1, 0, 0], "float32"),
                (1.0, 0.5, 0.5)),
    "along -z": (layer("along -z", Vectors(Linear(), (2, 1, 0), False), [0, 0, -1], "float32"),
                 (0.5, 0.5, 0.0)),
    "axis y": (layer("axis y", Vectors(Linear(2 / 255, -1.0), (2, 1, 0), True), [127, 0, 128]),
               (0.0, 1.0, 0.0)),
    "stored z, y, x": (
        layer("stored z, y, x", Vectors(Linear(), (0, 1, 2), True), [1, 0, 0], "float32"),
        (0.0, 0.0, 1.0),
    ),
    "short": (layer("short", Vectors(Linear(), (2, 1, 0), True, 4.0), [2, 0, 0], "float32"),
              (0.5, 0.0, 0.0)),
    "none": (
        layer("none", Vectors(Linear(2 / 255, -1.0), (2, 1, 0), True, zero_codes=(0,)), [0, 0, 0]),
        (0.0, 0.0, 0.0),
    ),
    "class": (layer("class", Ids({3: BLUE}), [3]), [0.4 * c for c in BLUE]),
    "mask": (layer("mask", Ids({}, LABEL_COLOUR), [9], "int16"), [0.4 * c for c in LABEL_COLOUR]),
    "background": (layer("background", Ids({}, LABEL_COLOUR), [0]), (0.0, 0.0, 0.0)),
}  # fmt: skip


def show_only(page, names) -> None:
    """Make layers visible and wait until they are drawn."""
    wanted = json.dumps(list(names))
    page.evaluate(
        "viewer.layerManager.managedLayers.forEach("
        f"one => one.setVisible({wanted}.includes(one.name)))"
    )
    page.wait_for("viewer.isReady()")


def seen(page) -> np.ndarray:
    """(H, W, 3) what is seen, in [0, 1]."""
    data = page.call("Page.captureScreenshot", format="png")["data"]
    picture = Picture.open(io.BytesIO(b64decode(data))).convert("RGB")
    return np.asarray(picture, np.float32) / 255


def wait_for_colour(page, colour) -> None:
    """Wait until the middle of the slice has a colour: frames come some time after the data."""
    end = time.monotonic() + 20
    while True:
        picture = seen(page)
        height, width = picture.shape[:2]
        # beside the axis lines, which cross in the middle
        found = picture[height // 2 - 60 : height // 2 - 20, width // 2 - 60 : width // 2 - 20]
        found = found.reshape(-1, 3).mean(0)
        if np.abs(found - colour).max() < 0.02:
            return
        assert time.monotonic() < end, f"{found} is seen, not {colour}"


@pytest.fixture
def _one_slice(monkeypatch):
    """The page begins with one slice, some voxels large, and nothing over it."""

    def state_of(scene, sources):
        quiet = {"showAxisLines": False, "showDefaultAnnotations": False}
        return real(scene, sources) | {"layout": "xy", "crossSectionScale": 0.02} | quiet

    real = module.state_of
    monkeypatch.setattr(module, "state_of", state_of)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_slice")
def test_every_look_has_its_colours(page):
    black = layer("black", Image((0.0, 255.0)), [0])
    scene = Scene("looks", (black, *(one for one, _ in LAYERS.values())))
    with module.serving(scene, "127.0.0.1", 0, Silent()) as address:
        page.open(address)
        wait_for_layers(page, 1 + len(LAYERS))
        for name, (_, colour) in LAYERS.items():
            show_only(page, ["black", name])
            wait_for_colour(page, np.array(colour))
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.usefixtures("_one_slice")
def test_boxes_lie_on_the_voxels_and_nothing_is_asked_of_others(page):
    bright = np.zeros(SHAPE, np.uint8)
    bright[2:4, 1:3, 4:7] = 255
    array = StoredLevel(ArrayVolume.of(bright, FRAME.spacing, "image"))
    image = Layer("image", (array,), Image((0, 255)), FRAME)
    boxes = Boxes("boxes", (Box((2, 1, 4), (2, 2, 3)),), (0.0, 1.0, 0.0))
    scene = Scene("scene", (image,), (boxes,), (Marker((2.5, 1.5, 5.0), "the middle"),))
    with module.serving(scene, "127.0.0.1", 0, Silent()) as address:
        page.open(address)
        wait_for_layers(page, 3)
        show_only(page, ["image", "boxes"])
        white, green = wait_for_box(page)
    # A voxel is 50 pixels wide, and the lines run around the white ones, two pixels wide.
    for axis, pixels in ((0, 100), (1, 150)):
        inner, outer = np.ptp(white[:, axis]), np.ptp(green[:, axis])
        assert abs(inner - pixels) < 12
        assert abs(outer - pixels) < 12
        assert abs(white[:, axis].mean() - green[:, axis].mean()) < 6
    assert page.errors == []
    host = address.partition("/v/")[0]
    assert {one for one in page.requests if not one.startswith((host, "blob:"))} == set()


def wait_for_layers(page, count) -> None:
    page.wait_for(
        "typeof viewer !== 'undefined' && "
        f"viewer.layerManager.managedLayers.length === {count} && viewer.isReady()"
    )


def wait_for_box(page) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the white and of the green pixels of the slice."""
    end = time.monotonic() + 20
    while True:
        picture = seen(page)[80:840, 40:1220]
        red, green, blue = np.moveaxis(picture, -1, 0)
        masks = (picture > 0.9).all(-1), (green > 0.6) & (red < 0.4) & (blue < 0.4)
        places = [np.argwhere(mask) for mask in masks]
        if min(map(len, places)) > 500:
            return places[0], places[1]
        assert time.monotonic() < end, "the box or the voxels are not drawn"
