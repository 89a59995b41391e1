"""Coordinates as channels of a sample: an image whose values are its own indices is the oracle."""

import numpy as np
import pytest

from vcmodels.data.normalization import Normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box
from vcmodels.patches.resolve import Resolved
from vcmodels.samples.dataset import make_sample
from vcmodels.samples.training_set import augmented_set

EXTENT = (14, 18, 24)
PATCH = (6, 7, 8)
EXACT = [{"name": "flip", "p": 1.0}, {"name": "quarter_turn", "p": 1.0}]
FREE = [{"name": "affine", "p": 1.0}, {"name": "elastic", "p": 1.0}]
VALUES = [
    {"name": "noise", "p": 1.0},
    {"name": "gamma", "p": 1.0},
    {"name": "blank_boxes", "p": 1.0},
]


def of_index(index: np.ndarray) -> np.ndarray:
    """(3, ...) positions of voxels by their indices."""
    sizes = np.reshape(EXTENT, (3, 1, 1, 1))
    return (index + 0.5) / sizes * 2 - 1


@pytest.fixture
def build(make_task, store):
    """A dataset on one volume of indices, whose patches begin where they are told to."""
    indices = np.indices(EXTENT).astype(np.float32)
    inputs = [store(f"raw{n}", channel) for n, channel in enumerate(indices)]
    sheet = store("sheet", np.ones(EXTENT, np.uint8))

    def make(origins, augment=(), region=None, **dataset):
        data = {"coordinates": True, "normalization": "none", **dataset}
        entry = {"input": inputs, "sheet": sheet}
        task = make_task([entry], augment=augment, dataset=data, patch_size=list(PATCH))
        task = task.with_values(tr_params={"patch_jitter": False})
        resolved = Resolved(task, open_volumes(task))
        region = region or resolved.volumes[0].region
        rows = np.array([(0, *origin) for origin in origins])
        return augmented_set(resolved, rows, [region], Normalization("none"), seed=3)

    return make


def some_origins(count: int) -> np.ndarray:
    room = np.subtract(EXTENT, PATCH) + 1
    return np.random.default_rng(0).integers(0, room, (count, 3))


def image_of(dataset, draw) -> np.ndarray:
    return make_sample(dataset, draw, dataset.row(draw)).image.numpy()


@pytest.mark.parametrize("augment", [(), EXACT], ids=["as it is", "mirrored and turned"])
def test_coordinates_follow_the_voxels_of_any_patch(build, augment):
    dataset = build(some_origins(30), augment)
    for draw in range(30):
        seen = image_of(dataset, draw)
        assert seen.shape == (6, *PATCH)
        np.testing.assert_allclose(seen[3:], of_index(seen[:3]), atol=1e-6)


def test_coordinates_are_resampled_with_the_voxels(build):
    region = Box((0, 0, 0), EXTENT)
    dataset = build([(4, 5, 8)] * 5, FREE)
    for draw in range(5):
        box = dataset.read(draw, dataset.row(draw)).transform.input_box(
            Box((4, 5, 8), PATCH), (1, 1, 1)
        )
        seen = image_of(dataset, draw)
        if region.contains(box):
            np.testing.assert_allclose(seen[3:], of_index(seen[:3]), atol=1e-4)
        assert np.ptp(seen[3:]) > 0.3


def test_past_the_ends_coordinates_go_on_where_the_image_is_reflected(build):
    region = Box((3, 2, 1), (4, 9, 20))  # thinner than a patch along z
    dataset = build([(3, 4, 5)], region=region)
    seen = image_of(dataset, 0)
    assert seen[0, :, 0, 0].tolist() == [3, 4, 5, 6, 5, 4]
    there = np.indices(PATCH) + np.reshape((3, 4, 5), (3, 1, 1, 1))
    np.testing.assert_allclose(seen[3:], of_index(there), atol=1e-6)


def test_changes_of_values_leave_coordinates_alone(build):
    origins = some_origins(6)
    changed, plain = build(origins, VALUES), build(origins, VALUES, coordinates=False)
    for draw in range(6):
        seen, alone = image_of(changed, draw), image_of(plain, draw)
        np.testing.assert_array_equal(seen[:3], alone)
        place = changed.place(draw).origin
        there = np.indices(PATCH) + np.reshape(place, (3, 1, 1, 1))
        np.testing.assert_allclose(seen[3:], of_index(there), atol=1e-6)


def test_coordinates_come_after_the_slices_and_are_counted(make_task, store):
    one = store("one", np.indices(EXTENT)[1].astype(np.float32))
    stack = {"axis": "z", "offsets": [-1, 0, 1]}
    dataset = {"stack": stack, "coordinates": True, "normalization": "none"}
    entry = {"input": one, "sheet": store("label", np.ones(EXTENT, np.uint8))}
    task = make_task([entry], dataset=dataset, patch_size=[1, 7, 8])
    (volume,) = open_volumes(task)
    assert (volume.channels, volume.stored_channels) == (6, 1)
    rows = np.array([(0, 5, 6, 7)])
    plain = augmented_set(Resolved(task, [volume]), rows, [volume.region], Normalization("none"))
    seen = image_of(plain, 0)
    z, y, x = plain.place(0).origin
    there = np.indices((1, 7, 8)) + np.reshape((z, y, x), (3, 1, 1, 1))
    np.testing.assert_allclose(seen[3:], of_index(there), atol=1e-6)
    np.testing.assert_array_equal(seen[:3], np.broadcast_to(there[1], (3, 7, 8))[:, None])
