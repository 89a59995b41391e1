import numpy as np
import pytest

from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box
from vcmodels.viewers.looks import Ids, Image, Linear, Numbers, Vectors
from vcmodels.viewers.scene import (
    MOST_BOXES,
    Boxes,
    Frame,
    Layer,
    Marker,
    Scene,
    fewer_boxes,
    read_points,
)
from vcmodels.viewers.state import state_of
from vcmodels.volumes import ArrayVolume
from vcmodels.volumes.levels import StoredLevel


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1,2.5,3,cell\n4,5,6\n"),
        ("a.csv", "x,y,z,text\n3,2.5,1,cell\n6,5,4,\n"),
        ("a.csv", "\ufeffZ,Y,X,note,text\n1,2.5,3,n,cell\n\n4,5,6,n,\n"),
        ("a.json", '[[1, 2.5, 3, "cell"], {"z": 4, "y": 5, "x": 6}]'),
    ],
)
def test_points_are_read_by_the_names_of_their_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_points(tmp_path / name) == (Marker((1, 2.5, 3), "cell"), Marker((4, 5, 6)))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.csv", "1,2\n", "line 1 is 1, 2"),
        ("a.csv", "z,y,x\n1,2,3\n1,b,3\n", "line 3 is 1, b, 3"),
        ("a.csv", "1,2,nan\n", "line 1 is no place"),
        ("a.json", "{}", "holds no list"),
        ("a.json", "[1]", "number 0 is 1"),
        ("a.json", "[", "is no JSON"),
        ("b.csv", "", "cannot be read"),
    ],
)
def test_what_is_no_point_is_refused_with_its_place(tmp_path, name, text, found):
    (tmp_path / name.replace("b", "a")).write_text(text)
    with pytest.raises(RefusedError, match=found):
        read_points(tmp_path / name)


def test_many_boxes_are_thinned_evenly():
    boxes = [Box((n, 0, 0), (1, 1, 1)) for n in range(10 * MOST_BOXES)]
    shown = fewer_boxes(boxes)
    assert len(shown) == MOST_BOXES
    assert (shown[0], shown[-1]) == (boxes[0], boxes[-1])
    assert np.ptp(np.diff([box.origin[0] for box in shown])) <= 1
    assert fewer_boxes(boxes[:5]) == tuple(boxes[:5])


FRAME = Frame((4.0, 2.0, 1.0))


def layer(look, name="a", channels=1, dtype=np.uint8, frame=FRAME):
    array = ArrayVolume.of(np.zeros((channels, 6, 7, 8), dtype), (1.0, 1.0, 1.0), "a")
    return Layer(name, (StoredLevel(array),), look, frame)


def test_voxels_boxes_and_points_are_at_one_place():
    frame = Frame((4.0, 2.0, 1.0), (8.0, 2.0, 0.0), "micrometer")
    scene = Scene(
        "s",
        (layer(Image((0, 9)), frame=frame),),
        (Boxes("b", (Box((1, 2, 3), (2, 2, 2)),), (1, 0, 0)),),
        (Marker((1, 2, 3), "here"),),
    )
    state = state_of(scene, "http://x")
    assert state["dimensions"] == {"z": [4e-6, "m"], "y": [2e-6, "m"], "x": [1e-6, "m"]}
    assert list(state["dimensions"]) == ["z", "y", "x"]
    box, points = (one["annotations"][0] for one in state["layers"][1:])
    # voxel 0 lies at offset / spacing = (2, 1, 0) and is as long as 1
    assert (box["pointA"], box["pointB"]) == ([3, 3, 3], [5, 5, 5])
    assert points["point"] == [3.5, 3.5, 3.5]
    assert points["description"] == "here"
    assert state["position"] == [3.5, 3.5, 3.5]  # without a focus, the first point


def test_the_focus_is_looked_at_first():
    scene = Scene("s", (layer(Image((0, 9))),), focus=Box((0, 2, 4), (6, 2, 4)))
    assert state_of(scene, "u")["position"] == [3, 3, 6]


def test_what_hides_the_image_waits_unless_it_is_all_there_is():
    vectors = Vectors(Linear(), (2, 1, 0), True)
    scene = Scene("s", (layer(Image((0, 9))), layer(vectors, "n", 3), layer(Ids(), "i")))
    assert [one["visible"] for one in state_of(scene, "u")["layers"]] == [True, False, True]
    scene = Scene("s", (layer(vectors, "n", 3), layer(Numbers(Linear(), (0, 1)), "v")))
    assert [one["visible"] for one in state_of(scene, "u")["layers"]] == [True, False]


def test_ids_have_their_colours():
    state = state_of(Scene("s", (layer(Ids({2: (1.0, 0.5, 0.0)}, (0.0, 1.0, 0.0))),)), "u")
    (shown,) = state["layers"]
    assert shown["segmentColors"] == {"2": "#ff8000"}
    assert shown["segmentDefaultColor"] == "#00ff00"
    assert "segmentDefaultColor" not in state_of(Scene("s", (layer(Ids()),)), "u")["layers"][0]
