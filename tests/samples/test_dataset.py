import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.patches.split import split_patches
from vcmodels.samples.loader import batches
from vcmodels.samples.training_set import augmented_set, plain_set
from vcmodels.volumes import Volume
from vcmodels.volumes.chunk_cache import CachedVolume

SHAPE = (14, 18, 44)
MOVES = [{"name": "flip", "p": 1.0}, {"name": "quarter_turn", "p": 1.0}]
FREE = [{"name": "affine", "p": 1.0}, {"name": "elastic", "p": 1.0}]
CPU = torch.device("cpu")


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0).astype(np.float32)


@pytest.fixture
def build(make_task, store):
    """Dataset over one or more volumes; every patch qualifies."""

    def make(entries, side="train", scheme="none", augment_now=None, **sections):
        dataset = {"normalization": scheme, "min_bbox_percent": 0.0, "min_labeled_ratio": 0.0}
        sections = {"patch_size": [6, 7, 8], "split_guard": 4, **sections}
        task = make_task(entries, dataset=dataset, **sections)
        volumes = open_volumes(task)
        split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
        fitted = fit_normalization(task.dataset_config.normalization, volumes, split.train_regions)
        is_train = side == "train"
        rows, regions = (
            (split.train, split.train_regions) if is_train else (split.val, split.val_regions)
        )
        parts = (Resolved(task, volumes), rows, regions, fitted)
        is_augmented = is_train if augment_now is None else augment_now
        return augmented_set(*parts, seed=7) if is_augmented else plain_set(*parts)

    return make


def read(dataset, draw):
    return dataset.read(draw, dataset.row(draw))


def finish(dataset, draws):
    (batch,) = batches(dataset, [draws], workers=0, device=CPU)
    return batch


def test_label_stays_on_its_image_through_jitter_and_exact_moves(build, store, image):
    entry = {
        "input": store("raw", image),
        "sheet": store("sheet", (image > 0).astype(np.uint8)),
    }
    dataset = build([entry], augment=MOVES)
    places = set()
    for draw in range(40):
        batch = finish(dataset, [draw])
        assert batch.image.shape == (1, 1, 6, 7, 8)
        assert batch.valid["sheet"].all()
        np.testing.assert_array_equal(batch.labels["sheet"], (batch.image > 0).float())
        places.add(batch.places[0].origin)
    assert any(z % 3 or x % 4 for z, _, x in places), "no patch was shifted"


def test_label_follows_its_image_through_free_moves(build, store, image):
    smooth = ndimage.gaussian_filter(image, 2.0)
    entry = {
        "input": store("raw", smooth),
        "sheet": store("sheet", (smooth > 0).astype(np.uint8)),
    }
    dataset = build([entry], augment=MOVES + FREE, patch_size=[10, 12, 14])
    agree = []
    for draw in range(10):
        batch = finish(dataset, [draw])
        valid = batch.valid["sheet"]
        assert valid.float().mean() > 0.3
        same = (batch.image > 0).float() == batch.labels["sheet"]
        agree.append(same[valid].float().mean())
    assert np.mean(agree) > 0.9


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("cache", ["auto", 0])
def test_nothing_outside_of_the_own_region_is_read(build, store, image, monkeypatch, side, cache):
    entry = {
        "input": store("raw", image),
        "sheet": store("sheet", (image > 0).astype(np.uint8)),
    }
    touched = np.zeros(SHAPE, bool)

    def spy_on(kind):
        inner = kind._read_inside

        def spy(self, box):
            if type(self) is kind:  # whole chunks that a cache decodes are not what is read
                touched[box.slices()] = True
            return inner(self, box)

        monkeypatch.setattr(kind, "_read_inside", spy)

    spy_on(Volume)
    spy_on(CachedVolume)
    dataset = build(
        [entry],
        side,
        "zscore" if side == "train" else "none",  # statistics are of the training side
        targets={"sheet": {"kind": "binary", "dilate_label": 3}},
        augment=MOVES + FREE,
        # Short regions side by side: crops and margins reach over the border all the time.
        split_guard=0,
        chunk_cache_gb=cache,
        tr_val_split=0.1 if side == "train" else 0.9,
    )
    for draw in range(60 if side == "train" else len(dataset)):
        read(dataset, draw)
    (region,) = dataset._regions
    assert min(region.shape) < 12
    assert touched[region.slices()].mean() > 0.9
    touched[region.slices()] = False
    assert not touched.any()


def test_padding_of_a_thin_volume_is_reflected_and_does_not_count(build, store):
    thin = np.arange(4 * 9 * 30, dtype=np.float32).reshape(4, 9, 30)
    entry = {"input": store("raw", thin), "sheet": store("sheet", np.ones(thin.shape, np.uint8))}
    dataset = build([entry], augment_now=False)
    sample = read(dataset, 0)
    _, y, x = sample.place.origin
    assert sample.image.shape == (1, 6, 7, 8)
    assert sample.labels["sheet"].valid[0].sum(dim=(1, 2)).tolist() == [56] * 4 + [0] * 2
    wanted = thin[[0, 1, 2, 3, 2, 1], y : y + 7, x : x + 8]
    np.testing.assert_array_equal(sample.image[0], wanted)
    assert (sample.labels["sheet"].values[0, 4:] == 0).all()


def test_a_volume_without_a_target_gives_no_valid_voxel_for_it(build, store, image):
    label = store("sheet", (image > 0).astype(np.uint8))
    normals = store("normals", np.ones((3, *SHAPE), np.float32), chunks=(5, 6, 7))
    raw = store("raw", image)
    targets = {"sheet": {"kind": "binary"}, "normals": {"kind": "normals", "channels": 3}}
    entries = [
        {"input": raw, "sheet": label, "name": "a"},
        {"input": store("raw2", image), "normals": normals, "name": "b"},
    ]
    dataset = build(entries, targets=targets, augment=MOVES)
    seen = set()
    for draw in range(30):
        sample = read(dataset, draw)
        seen.add(sample.place.volume)
        has, lacks = ("sheet", "normals") if sample.place.volume == "a" else ("normals", "sheet")
        assert sample.labels[has].valid.all()
        assert not sample.labels[lacks].valid.any()
        assert not sample.labels[lacks].values.any()
        assert sample.labels["normals"].values.shape[0] == 3
    assert seen == {"a", "b"}
    batch = finish(dataset, range(4))
    assert batch.labels["normals"].shape == (4, 3, 6, 7, 8)


def test_ignore_label_and_only_on_label_reach_the_valid_mask(build, store, image):
    stored = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    entry = {"input": store("raw", image), "sheet": store("sheet", stored)}
    sections = {"augment": [], "patch_jitter": False}
    for only, wanted in ((False, stored != 2), (True, stored == 1)):
        target = {"kind": "binary", "ignore_label": 2, "loss_only_on_label": only}
        sample = read(build([entry], targets={"sheet": target}, **sections), 3)
        part = wanted[Box(sample.place.origin, (6, 7, 8)).slices()]
        np.testing.assert_array_equal(sample.labels["sheet"].valid[0], part)


def test_dilation_sees_labels_beyond_the_patch(build, store, image):
    stored = np.zeros(SHAPE, np.uint8)
    stored[3::5, 4::6, 2::9] = 1
    entry = {"input": store("raw", image), "sheet": store("sheet", stored)}
    ball = np.sum(np.indices((5, 5, 5)) ** 2 - 4 * np.indices((5, 5, 5)) + 4, axis=0) <= 4
    wanted = ndimage.binary_dilation(stored, ball)
    dataset = build(
        [entry], targets={"sheet": {"kind": "binary", "dilate_label": 2}}, augment_now=False
    )
    region, compared = dataset._regions[0].grow((-2, -2, -2)), 0
    for draw in range(len(dataset)):
        sample = read(dataset, draw)
        patch = Box(sample.place.origin, (6, 7, 8))
        part = patch.intersect(region)  # the region's own border cannot see beyond
        found = sample.labels["sheet"].values[0][part.slices(within=patch)]
        np.testing.assert_array_equal(found, wanted[part.slices()])
        compared += part.voxels
    assert compared > 500


def test_validation_is_in_order_unchanged_and_repeatable(build, store, image):
    entry = {"input": store("raw", image), "sheet": store("sheet", (image > 0).astype(np.uint8))}
    dataset = build([entry], "val", augment=MOVES + FREE)
    for draw in range(len(dataset)):
        one, two = read(dataset, draw), read(dataset, draw)
        assert one.transform.is_identity
        assert one.place.origin == tuple(dataset.rows[draw, 1:].tolist())
        assert torch.equal(one.image, two.image)
        part = image[Box(one.place.origin, (6, 7, 8)).slices()]
        np.testing.assert_array_equal(one.image[0], part)


def test_a_nan_is_named_with_its_place(build, store, image):
    image[5, 6, 7] = np.nan
    entry = {"input": store("raw", image), "sheet": store("sheet", np.ones(SHAPE, np.uint8))}
    dataset = build([entry], augment_now=False)
    with pytest.raises(RunError, match=r"holds nan at \(z, y, x\) = \(5, 6, 7\)"):
        list(map(dataset.__getitem__, range(len(dataset))))


def test_where_nan_is_the_fill_value_it_is_read_as_the_mean(build, store, image, tmp_path):
    image[5, 6, 7] = np.nan
    raw = store("raw", image)
    document = json.loads((Path(raw) / "zarr.json").read_text())
    (Path(raw) / "zarr.json").write_text(json.dumps(document | {"fill_value": "NaN"}))
    dataset = build(
        [{"input": raw, "sheet": store("sheet", np.ones(SHAPE, np.uint8))}], augment_now=False
    )
    samples = [read(dataset, draw) for draw in range(len(dataset))]
    assert all(np.isfinite(one.image.numpy()).all() for one in samples)


def test_a_label_that_the_kind_cannot_have_is_named_with_its_place(build, store, image):
    stored = np.zeros(SHAPE, np.uint8)
    stored[5, 6, 7] = 9
    entry = {"input": store("raw", image), "kind": store("kind", stored), "name": "scroll"}
    targets = {"kind": {"kind": "multiclass", "channels": 3}}
    dataset = build([entry], targets=targets, augment_now=False)
    message = r"volume_paths.0.kind: volume scroll holds 9 at \(z, y, x\) = \(5, 6, 7\)"
    with pytest.raises(RunError, match=message):
        list(map(dataset.__getitem__, range(len(dataset))))


def test_channels_are_stacked_and_normalised_each(build, store, image):
    entry = {
        "input": [store("raw", image), store("more", 100 + 7 * image)],
        "sheet": store("sheet", (image > 0).astype(np.uint8)),
    }
    sample = read(build([entry], scheme="zscore", augment_now=False), 0)
    assert sample.image.shape[0] == 2
    np.testing.assert_allclose(sample.image[0], sample.image[1], atol=1e-4)


def test_statistics_of_its_own_volume_are_used(build, store, image):
    entries = [
        {"input": store("raw", image), "sheet": store("s", (image > 0).astype(np.uint8))},
        {"input": store("raw2", 5 + 3 * image), "sheet": store("s2", (image > 0).astype(np.uint8))},
    ]
    dataset = build(entries, scheme={"scheme": "zscore", "per": "volume"}, augment_now=False)
    assert isinstance(dataset._normalization, Normalization)
    half = len(dataset) // 2
    np.testing.assert_allclose(read(dataset, 0).image, read(dataset, half).image, atol=1e-4)


def test_each_volume_is_turned_by_its_own_voxel_size(build, store):
    """The oracle is the slope of the transformed image, in the space of the volume it is from."""
    spacings = {"cubes": (1.0, 1.0, 1.0), "slabs": (2.5, 1.0, 1.0), "rods": (1.0, 1.0, 2.0)}
    normal = np.array([0.48, 0.6, 0.64])
    entries = []
    for name, spacing in spacings.items():
        place = np.indices((40, 41, 42)) * np.array(spacing)[:, None, None, None]
        image = np.tensordot(normal, place, 1).astype(np.float32)
        label = np.broadcast_to(normal[:, None, None, None], (3, *image.shape)).astype(np.float32)
        entries.append(
            {
                "input": store(name, image, spacing=spacing),
                "normals": store(f"{name}_normals", np.ascontiguousarray(label)),
                "name": name,
            }
        )
    turning = {"name": "affine", "p": 1.0, "rotation_degrees": [40, 40, 40], "scaling": [1.0, 1.0]}
    dataset = build(
        entries, targets={"normals": {"kind": "normals", "vector_order": "zyx"}}, augment=[turning]
    )
    seen = set()
    for draw in range(12):
        batch = finish(dataset, [draw])
        name = batch.places[0].volume
        seen.add(name)
        slope = np.stack(np.gradient(batch.image[0, 0].numpy(), *spacings[name]))[
            :, 2:-2, 2:-2, 2:-2
        ]
        label = batch.labels["normals"][0, :, 2:-2, 2:-2, 2:-2].numpy()
        np.testing.assert_allclose(label, slope, atol=1e-3)
    assert seen == set(spacings)
