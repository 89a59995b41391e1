"""What viewers are told, by the specification's validator and by drawing as a viewer does."""

import json

import numpy as np
import pytest
import torch
import zarr
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
from pydantic_zarr.v2 import ArraySpec, GroupSpec
from torch import nn

from tests.inference.test_ngff import validated
from vcmodels.inference import predict_request
from vcmodels.inference.network import Uncertainty
from vcmodels.inference.output import display
from vcmodels.targets import (
    AffinitiesTarget,
    BinaryTarget,
    CentresTarget,
    DistanceTarget,
    MulticlassTarget,
    NormalsTarget,
    RegressionTarget,
    VectorTarget,
)

ImageLabel04.model_rebuild(_types_namespace={"ArraySpec": ArraySpec, "GroupSpec": GroupSpec})
U1, F4 = np.dtype(np.uint8), np.dtype(np.float32)


def drawn(stored, omero):
    """(S, H, W) -> (H, W, 3) in [0, 1], as viewers do: windowed, coloured, added up."""
    picture = np.zeros((*stored.shape[1:], 3))
    for values, channel in zip(stored, omero["channels"], strict=True):
        window = channel["window"]
        share = (values.astype(float) - window["start"]) / (window["end"] - window["start"])
        colour = np.array([int(channel["color"][i : i + 2], 16) for i in (0, 2, 4)]) / 255
        picture += channel["active"] * np.clip(share, 0, 1)[..., None] * colour
    return picture


PICTURED = {
    "probability": (BinaryTarget(channels=1), 1),
    "heat": (CentresTarget(channels=1), 1),
    "value": (RegressionTarget(channels=1, output_range=[-3.0, 5.0]), 1),
    "vectors": (NormalsTarget(channels=3), 3),
    "vectors xyz": (NormalsTarget(channels=3, vector_order="xyz"), 3),
}
"""Of these a picture for people is a mixture of their channels."""


@pytest.mark.parametrize("dtype", [U1, np.dtype(np.uint16), F4], ids=str)
@pytest.mark.parametrize(("target", "channels"), PICTURED.values(), ids=PICTURED)
def test_a_viewer_draws_the_colours_of_our_own_pictures(target, channels, dtype):
    values = np.random.default_rng(0).uniform(-1, 1, (channels, 1, 6, 7)).astype(np.float32)
    values = values / np.linalg.norm(values, axis=0) if channels == 3 else np.abs(values)
    stored = target.encode(torch.from_numpy(values), dtype)
    shown = drawn(stored[:, 0], display(target, dtype, 9, 2)["omero"])
    np.testing.assert_allclose(shown, target.picture(target.decode(stored)[:, 0]), atol=0.01)


@pytest.mark.parametrize(
    ("target", "dtype", "window"),
    [
        (BinaryTarget(channels=1), U1, (0, 255)),
        (BinaryTarget(channels=1), F4, (0, 1)),
        (NormalsTarget(channels=3), np.dtype(np.int8), (-127, 127)),
        (NormalsTarget(channels=3), F4, (-1, 1)),
        (DistanceTarget(channels=1, clip=10.0), F4, (-10, 10)),
        (DistanceTarget(channels=1, clip=10.0, signed=False), F4, (0, 10)),
        (VectorTarget(channels=3, output_range=[-4.0, 4.0]), F4, (-4, 4)),
        (Uncertainty(BinaryTarget(channels=1)), F4, (0, 0.5)),
        (Uncertainty(MulticlassTarget(channels=3)), U1, (0, 255)),
    ],
)
def test_the_window_is_the_range_of_the_stored_values(target, dtype, window):
    for channel in display(target, dtype, 9, 2)["omero"]["channels"]:
        found = channel["window"]
        assert (found["min"], found["max"]) == (found["start"], found["end"])
        np.testing.assert_allclose((found["min"], found["max"]), window, rtol=1e-6)


def test_nothing_is_said_where_the_range_is_open():
    assert display(RegressionTarget(channels=1), F4, 9, 2) == {}
    assert display(BinaryTarget(channels=1, activation="none"), F4, 9, 2) == {}


def test_channels_are_named():
    def labels(target):
        return [c["label"] for c in display(target, U1, 9, 2)["omero"]["channels"]]

    assert labels(BinaryTarget(channels=1)) == ["probability"]
    assert labels(NormalsTarget(channels=3, vector_order="xyz")) == ["x", "y", "z"]
    classes = MulticlassTarget(channels=3, label_values=[0, 2, 7], output="probabilities")
    assert labels(classes) == ["class 0", "class 2", "class 7"]
    offsets = AffinitiesTarget(channels=4, offsets=[[1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 0]])
    assert labels(offsets)[3] == "offset [3, 0, 0]"
    shown = display(offsets, U1, 9, 2)["omero"]["channels"]
    assert [c["active"] for c in shown] == [True, True, True, False]


def test_classes_have_the_colours_of_our_own_pictures():
    target = MulticlassTarget(channels=3, label_values=[0, 2, 7])
    colours = display(target, U1, 9, 3)["image-label"]["colors"]
    assert [colour["label-value"] for colour in colours] == [0, 2, 7]
    assert [colour["rgba"][3] for colour in colours] == [0, 255, 255]
    stored = np.array([[[[0, 7], [2, 2]]]], np.uint8)
    mine = {c["label-value"]: c["rgba"][:3] for c in colours}
    shown = [[mine[value] for value in row] for row in stored[0, 0].tolist()]
    np.testing.assert_allclose(
        np.array(shown) / 255, target.picture(target.decode(stored)[:, 0]), atol=0.003
    )


class Repeating(nn.Module):
    """As many channels as the target has, each a little less than the one before."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, image, targets):
        shares = 0.9 ** torch.arange(self.channels).view(1, -1, 1, 1, 1)
        return dict.fromkeys(targets, (image[:, :1] * shares,))


def predict_as(work, target, **inference):
    task = work.task(output_type="uint8", **inference)
    config = task.dataset_config.model_copy(update={"targets": {"value": target}})
    task = task.model_copy(update={"dataset_config": config})
    work.network = Repeating(target.channels)
    predict_request(work.request(task))


@pytest.mark.parametrize("version", [2, 3])
def test_the_validator_takes_windows_and_class_colours(workplace, version):
    work = workplace(np.random.default_rng(0).random((9, 17, 18), np.float32))
    target = RegressionTarget(channels=1, output_range=[0.0, 1.0])
    classes = MulticlassTarget(channels=3, label_values=[0, 2, 7])
    for number, one in enumerate((target, classes)):
        folder = str(work.folder / str(number))
        predict_as(work, one, output_zarr_format=version, output_dir=folder)
    place = work.folder / "0/net.zarr/value"
    _, (scales,) = validated(place, version)
    assert scales.datasets[0].path == "0"
    name, holder = (".zattrs", ()) if version == 2 else ("zarr.json", ("attributes", "ome"))
    attributes = json.loads((place / name).read_text())
    for key in holder:
        attributes = attributes[key]
    assert Omero(**attributes["omero"]).channels[0].window.end == 255
    assert attributes["omero"]["rdefs"] == {"defaultZ": 4, "model": "greyscale"}
    place = work.folder / "1/net.zarr/value"
    validated(place, version)
    group = zarr.open_group(str(place), mode="r")
    label = {2: ImageLabel04, 3: ImageLabel05}[version].from_zarr(group)
    holder = label.attributes if version == 2 else label.ome_attributes
    assert [colour.label_value for colour in holder.image_label.colors] == [0, 2, 7]
    assert holder.image_label.version == {2: "0.4", 3: "0.5"}[version]
    assert holder.multiscales[0].name == "value"
