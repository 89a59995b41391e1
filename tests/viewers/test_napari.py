"""Against a viewer that keeps what it is given: napari itself needs a screen."""

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.targets import NormalsTarget
from vcmodels.viewers.looks import Ids, Image, Linear, Numbers, Probability, Shares, Vectors
from vcmodels.viewers.napari import add_scene, colours_of, edges
from vcmodels.viewers.scene import Boxes, Frame, Layer, Marker, Scene
from vcmodels.volumes import ArrayVolume
from vcmodels.volumes.levels import StoredLevel

RNG = np.random.default_rng(0)
FRAME = Frame((4.0, 2.0, 1.0), (8.0, 2.0, 0.0))


class FakeViewer:
    def __init__(self):
        self.added = []

    def __getattr__(self, name):
        return lambda data, **options: self.added.append((name, data, options))


def layer(look, values, factor=None) -> Layer:
    array = ArrayVolume.of(values, FRAME.spacing, "a")
    levels = [StoredLevel(array)]
    if factor:
        coarse = ArrayVolume.of(values[:, ::2, ::2, ::2].copy(), FRAME.spacing, "b")
        levels.append(StoredLevel(coarse, (2.0, 2.0, 2.0), (0.5, 0.5, 0.5)))
    return Layer("layer", tuple(levels), look, FRAME)


def shown(*layers, **more):
    viewer = FakeViewer()
    add_scene(viewer, Scene("s", layers, **more))
    return viewer.added


def test_an_image_is_read_level_by_level_where_it_lies():
    values = RNG.integers(0, 99, (1, 6, 7, 8), np.uint8)
    ((name, data, options),) = shown(layer(Image((3.0, 90.0)), values, factor=2))
    assert name == "add_image"
    np.testing.assert_array_equal(data[0].compute(), values[0])
    np.testing.assert_array_equal(data[1].compute(), values[0, ::2, ::2, ::2])
    assert (options["scale"], options["translate"]) == (FRAME.spacing, FRAME.offset)
    assert options["contrast_limits"] == (3.0, 90.0)


def test_channels_are_an_axis_before_the_others():
    values = RNG.random((3, 6, 7, 8)).astype(np.float32)
    ((_, data, options),) = shown(layer(Image((0.0, 1.0)), values))
    np.testing.assert_array_equal(data[0].compute(), values)
    assert options["scale"] == (1.0, 4.0, 2.0, 1.0)


def test_ids_are_whole_numbers():
    ((name, data, _),) = shown(layer(Ids(), np.full((1, 6, 7, 8), 3, np.int16)))
    assert name == "add_labels"
    assert data[0].compute().dtype.kind == "u"


@pytest.mark.parametrize(
    ("look", "limits"),
    [
        (Probability(Linear(1 / 255)), (0, 255)),
        (Numbers(Linear(8 / 255, -4.0), (-4.0, 4.0)), (0, 255)),
        (Numbers(Linear(-1.0), (0.0, 2.0)), (-2, 0)),
    ],
)
def test_limits_are_of_stored_values(look, limits):
    ((_, _, options),) = shown(layer(look, np.zeros((1, 6, 7, 8), np.uint8)))
    np.testing.assert_allclose(options["contrast_limits"], limits)


def test_each_class_has_its_colour():
    look = Shares(Linear(1 / 255), ((0, 0, 0), (1, 0, 0), (0, 1, 0)))
    values = RNG.integers(0, 255, (3, 6, 7, 8), np.uint8)
    added = shown(layer(look, values))
    assert [options["colormap"][1] for _, _, options in added] == [(1, 0, 0), (0, 1, 0)]
    np.testing.assert_array_equal(added[1][1][0].compute(), values[2])


@pytest.mark.parametrize("orientation", ["axial", "oriented"])
def test_vectors_have_the_colours_of_all_pictures(orientation):
    loss = "axial_cosine" if orientation == "axial" else "cosine"
    target = NormalsTarget(orientation=orientation, loss=loss)
    stored = RNG.integers(1, 255, (3, 6, 7, 8), np.uint8)
    stored[:, 2] = 0
    look = Vectors(Linear(2 / 255, -1.0), (2, 1, 0), orientation == "axial", zero_codes=(0,))
    decoded = target.decode(stored)
    length = np.linalg.norm(decoded, axis=0, keepdims=True)
    unit = decoded / np.maximum(length, 1e-6)
    wanted = np.stack([255 * target.picture(unit[:, z]) for z in range(6)])
    wanted *= np.minimum(length[0], 1)[..., None]
    np.testing.assert_allclose(colours_of(stored, look), wanted, atol=1)
    ((_, data, options),) = shown(layer(look, stored))
    assert options["rgb"]
    np.testing.assert_array_equal(data[0].compute(), colours_of(stored, look))


def test_boxes_have_twelve_edges_around_their_voxels():
    lines = np.array(edges(Box((1, 2, 3), (2, 3, 4))))
    assert len({tuple(line.ravel()) for line in lines}) == 12
    assert sorted(np.abs(np.diff(lines, axis=1)).sum((1, 2))) == [2] * 4 + [3] * 4 + [4] * 4
    np.testing.assert_array_equal(lines.min((0, 1)), [0.5, 1.5, 2.5])
    boxes = Boxes("boxes", (Box((0, 0, 0), (2, 2, 2)),), (1, 0, 0), is_visible=False)
    image = layer(Image((0, 1)), np.zeros((1, 6, 7, 8), np.uint8))
    added = shown(image, boxes=(boxes,), points=(Marker((1, 2, 3), "a"),))
    assert [name for name, _, _ in added] == ["add_image", "add_shapes", "add_points"]
    assert len(added[1][1]) == 12
    assert added[2][2]["features"] == {"text": ["a"]}
