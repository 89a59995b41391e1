import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torch.nn import functional as F

from vcmodels.data.labels import Label, StoredLabel, read_ids
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.patches.split import split_patches
from vcmodels.samples.loader import batches
from vcmodels.samples.training_set import augmented_set, plain_set
from vcmodels.targets import (
    AffinitiesTarget,
    BinaryTarget,
    BoundaryTarget,
    CentresTarget,
    DistanceTarget,
    NormalsTarget,
    VectorTarget,
)
from vcmodels.targets.stored import LabelError
from vcmodels.volumes import open_volume

SHAPE = (14, 18, 44)
MOVES = [{"name": "flip", "p": 1.0}, {"name": "quarter_turn", "p": 1.0}]
FREE = [{"name": "affine", "p": 1.0}, {"name": "elastic", "p": 1.0}]
CPU = torch.device("cpu")


class Rim(BinaryTarget):
    """A derived kind whose oracle is plain: 1 where another instance is within `reach` voxels."""

    is_derivable = True
    reach: int = 1

    def source_margin(self, spacing):
        return (self.reach,) * 3

    def derive_label(self, source, valid, spacing):
        size = 2 * self.reach + 1
        known = torch.where(valid & (source > 0), source, torch.nan)
        low = -F.max_pool3d(torch.nan_to_num(-known, nan=-torch.inf)[None], size, 1)[0]
        high = F.max_pool3d(torch.nan_to_num(known, nan=-torch.inf)[None], size, 1)[0]
        inner = (slice(None), *(slice(self.reach, n - self.reach) for n in source.shape[1:]))
        counts = valid[inner]
        return ((high > low) & counts).float(), counts


def rim_of(ids, valid, reach=1):
    """The same by SciPy, of a whole volume."""
    is_id, size = valid & (ids > 0), 2 * reach + 1
    high = ndimage.maximum_filter(np.where(is_id, ids, -1.0), size, mode="nearest")
    low = ndimage.minimum_filter(np.where(is_id, ids, np.inf), size, mode="nearest")
    return ((high > low) & valid).astype(np.float32)


@pytest.fixture
def ids():
    """Instances of 1 to 5 voxels a side; 9 is ignored, and the numbers do not fit in float32."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (4, 5, 10)) * rng.integers(1, 2**40, (4, 5, 10))
    stored = coarse.repeat(4, 0).repeat(4, 1).repeat(5, 2)[:14, :18, :44]
    return np.where(rng.random(SHAPE) < 0.03, 9, stored)


@pytest.fixture
def world(store, ids):
    """A volume entry whose image numbers the voxels, so that it tells where each one is from."""
    return {
        "input": store("raw", np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)),
        "cells": store("cells", ids),
        "sheet": store("sheet", (ids > 0).astype(np.uint8)),
    }


@pytest.fixture
def build(make_task, world):
    def make(targets, entry=None, side="train", pseudo=None, **sections):
        changed = {**world, **(entry or {})}
        entry = {key: value for key, value in changed.items() if value is not None}
        placeholder = {n: {"kind": "binary"} for n in ("sheet", "cells") if n in entry}
        dataset = {"normalization": "none", "min_bbox_percent": 0.0, "min_labeled_ratio": 0.0}
        sections = {"patch_size": [6, 7, 8], "split_guard": 4, **sections}
        task = make_task([entry], targets=placeholder, dataset=dataset, **sections)
        volume = task.dataset_config.volume_paths[0].model_copy(update={"pseudo": pseudo or {}})
        update = {"targets": targets, "volume_paths": [volume]}
        config = task.dataset_config.model_copy(update=update)
        task = task.model_copy(update={"dataset_config": config})
        volumes = open_volumes(task)
        split = split_patches(task.tr_params, volumes, search_patches(task, volumes))
        fitted = fit_normalization(task.dataset_config.normalization, volumes, split.train_regions)
        rows, regions = (
            (split.train, split.train_regions)
            if side == "train"
            else (split.val, split.val_regions)
        )
        parts = (Resolved(task, volumes), rows, regions, fitted)
        return augmented_set(*parts, seed=7) if side == "train" else plain_set(*parts)

    return make


def finish(dataset, draws):
    (batch,) = batches(dataset, [draws], workers=0, device=CPU)
    return batch


RIM = Rim(derive="cells", ignore_label=9)


@pytest.mark.parametrize("augment", [[], MOVES], ids=["as it is", "turned"])
@pytest.mark.parametrize("side", ["train", "val"])
def test_a_derived_label_is_that_of_the_whole_region_moved(build, ids, augment, side):
    sheet = BinaryTarget()
    dataset = build({"rim": RIM, "wide": RIM.model_copy(update={"reach": 3}), "sheet": sheet},
                    side=side, augment=augment)  # fmt: skip
    (region,) = dataset._regions
    valid = np.zeros(SHAPE, bool)
    valid[region.slices()] = True
    valid &= ids != 9
    wanted = {"rim": rim_of(ids, valid), "wide": rim_of(ids, valid, 3)}
    turned = 0
    for draw in range(48 if side == "train" else len(dataset)):
        sample = dataset.read(draw, dataset.row(draw))
        assert set(sample.labels) == {"ids of cells but 9", "sheet"}
        batch = finish(dataset, [draw])
        voxels = batch.image.long().numpy()
        for name, whole in wanted.items():
            np.testing.assert_array_equal(batch.labels[name], whole.reshape(-1)[voxels])
            np.testing.assert_array_equal(batch.valid[name], valid.reshape(-1)[voxels])
        np.testing.assert_array_equal(batch.labels["sheet"], ids.reshape(-1)[voxels] > 0)
        turned += not sample.transform.is_identity
    assert (turned > 40) == (bool(augment) and side == "train")
    assert wanted["rim"].mean() > 0.02


KINDS = {
    "binary": BinaryTarget(derive="cells", dilate_label=2),
    "boundary": BoundaryTarget(derive="cells", ignore_label=9, width=1.5),
    "distance": DistanceTarget(derive="cells", clip=4.2, surface_of="instances"),
    "centres": CentresTarget(derive="cells", max_extent=5, keep_cut=True),
    "vector": VectorTarget(derive="cells", max_extent=5, keep_cut=True),
    "normals": NormalsTarget(derive="cells", smoothing_sigma=0.6),
    "affinities": AffinitiesTarget(derive="cells", offsets=((-1, 0, 0), (0, 2, -1))),
}


@pytest.mark.parametrize(
    ("name", "augment"),
    # What a channel of affinities means changes with a turn; the kind's own tests hold that.
    [(name, moves) for name in KINDS for moves in ([], MOVES) if name != "affinities" or not moves],
    ids=lambda value: value if isinstance(value, str) else "turned" if value else "as it is",
)
def test_each_kind_is_that_of_the_whole_region_moved(build, augment, name):
    target = KINDS[name]
    dataset = build({name: target}, augment=augment)
    (region,) = dataset._regions
    volume = dataset._volumes[0]
    label, valid = volume.label(name, target, region).read(volume.inputs[0].box)
    assert np.abs(label).sum() > 50
    for draw in range(12):
        transform = dataset.read(draw, dataset.row(draw)).transform
        batch = finish(dataset, [draw])
        voxels = batch.image[0, 0].long().numpy()
        wanted, counts = (
            torch.from_numpy(a.reshape(len(a), -1)[:, voxels]) for a in (label, valid)
        )
        jacobian = torch.as_tensor(transform.symmetry.matrix, dtype=torch.float32)
        if augment:
            wanted, counts = target.turn(wanted, counts, jacobian, (1.0, 1.0, 1.0))
        assert torch.equal(batch.valid[name][0], counts)
        torch.testing.assert_close(batch.labels[name][0], wanted, rtol=0, atol=2e-5)


def test_a_warped_derived_label_does_not_depend_on_who_shares_its_source(build):
    alone = build({"rim": RIM}, augment=MOVES + FREE)
    shared = build({"rim": RIM, "wide": RIM.model_copy(update={"reach": 4})}, augment=MOVES + FREE)
    one, other = finish(alone, range(8)), finish(shared, range(8))
    assert one.labels["rim"].sum() > 20
    assert (one.labels["rim"] == other.labels["rim"]).float().mean() > 0.999
    assert (one.valid["rim"] == other.valid["rim"]).float().mean() > 0.999


def test_only_targets_that_ignore_the_same_share_their_source(build):
    other = RIM.model_copy(update={"ignore_label": None})
    sample = build({"a": RIM, "b": other, "c": RIM}).read(0, 0)
    assert set(sample.labels) == {"ids of cells but 9", "ids of cells"}


def test_only_on_label_is_asked_of_the_source_after_deriving(build, ids):
    only = RIM.model_copy(update={"loss_only_on_label": True})
    batch = finish(build({"all": RIM, "only": only}), range(4))
    voxels = batch.image.long().numpy()
    np.testing.assert_array_equal(
        batch.valid["only"], batch.valid["all"].numpy() & (ids.reshape(-1)[voxels] > 0)
    )
    kept = batch.valid["only"]
    np.testing.assert_array_equal(batch.labels["only"][kept], batch.labels["all"][kept])
    assert not batch.labels["only"][~kept].any()


def test_a_volume_without_the_source_gives_no_valid_voxel(build):
    batch = finish(build({"rim": RIM}, {"cells": None}), range(4))
    assert batch.labels["rim"].shape == (4, 1, 6, 7, 8)
    assert not batch.valid["rim"].any()


@pytest.mark.parametrize("pseudo", [{"cells": 0.25}, {"rim": 0.25}], ids=["source", "target"])
def test_a_pseudo_label_has_its_weight_and_counts_in_no_validation(build, pseudo):
    targets = {"rim": RIM, "sheet": BinaryTarget()}
    training = finish(build(targets, pseudo=pseudo), range(3))
    assert training.weight["sheet"] is None
    assert training.weight["rim"].flatten().tolist() == [0.25] * 3
    assert training.weight["rim"].shape == (3, 1, 1, 1, 1)
    assert training.valid["rim"].any()
    validation = finish(build(targets, pseudo=pseudo, side="val"), range(2))
    assert not validation.valid["rim"].any()
    assert validation.valid["sheet"].all()


def test_any_box_of_a_derived_label_is_the_crop_of_the_whole(store, ids):
    array = open_volume(store("cells", ids), key="cells")
    region = Box((1, 0, 2), (12, 18, 40))
    label = Label(RIM, StoredLabel("v", array, region), (1.0, 1.0, 1.0))
    whole, valid = label.read(array.box)
    inside = np.zeros(SHAPE, bool)
    inside[region.slices()] = True
    np.testing.assert_array_equal(valid[0], inside & (ids != 9))
    np.testing.assert_array_equal(whole[0], rim_of(ids, valid[0]))
    for box in (Box((0, 3, 30), (5, 6, 14)), Box((7, 8, 9), (1, 1, 1)), Box((20, 0, 0), (2, 3, 4))):
        part, counts = label.read(box)
        inner = box.intersect(array.box)
        at = (0, *inner.slices(within=box))
        np.testing.assert_array_equal(part[at], whole[0][inner.slices()])
        np.testing.assert_array_equal(counts[at], valid[0][inner.slices()])
        assert counts.sum() == valid[0][inner.slices()].sum()


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64]),
        (1, 3, 4, 5),
        elements={"min_value": 0},
    )
)
def test_ids_keep_what_is_equal_and_what_is_zero(stored):
    ids, valid = read_ids(stored, ())
    assert ids.dtype == np.float32
    assert valid.all()
    np.testing.assert_array_equal(ids == 0, stored == 0)
    pairs = set(zip(ids.ravel().tolist(), stored.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(ids)) == len(np.unique(stored))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float32, np.float64])
def test_masks_of_any_dtype_are_ids(dtype):
    stored = np.array([0, 1, 1, 0], dtype).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(read_ids(stored, ())[0], stored.astype(np.float32))


def test_ignored_and_unknown_voxels_hold_no_id():
    stored = np.array([[[[0, -1, 2.0**40, np.nan, 7, np.inf, 2.0**40 + 1]]]])
    ids, valid = read_ids(stored, (-1, 7))
    assert valid.ravel().tolist() == [True, False, True, False, False, False, True]
    assert ids.ravel().tolist() == [0, 0, 1, 0, 0, 0, 2]


@pytest.mark.parametrize(("value", "dtype"), [(-3, np.int64), (0.5, np.float32)])
def test_what_is_no_id_is_named_with_its_place(store, value, dtype):
    stored = np.zeros(SHAPE, dtype)
    stored[5, 6, 7] = value
    with pytest.raises(LabelError, match="whole numbers, 0 or more"):
        read_ids(stored[None], ())
    array = open_volume(store("cells", stored), key="volume_paths.0.cells")
    label = Label(RIM, StoredLabel("scroll", array, array.box), (1.0, 1.0, 1.0))
    found = rf"volume_paths.0.cells: volume scroll holds {value} at \(z, y, x\) = \(5, 6, 7\)"
    with pytest.raises(RunError, match=found):
        label.read(Box((4, 4, 4), (3, 3, 3)))


def test_a_volume_of_pseudo_labels_alone_is_trained_on_whole(make_task, world):
    targets = {"sheet": {"kind": "binary"}, "cells": {"kind": "binary"}}
    true = {**world, "name": "true", "pseudo": {"sheet": 0.5}}
    guessed = {**true, "name": "guessed", "pseudo": {"sheet": 0.5, "cells": 1}}
    volumes = open_volumes(make_task([true, guessed], targets))
    assert [v.split for v in volumes] == [None, "train"]
    assert [v.pseudo for v in volumes] == [{"sheet": 0.5}, {"sheet": 0.5, "cells": 1.0}]


def test_the_reference_is_ignored_as_its_target_says(make_task, world):
    derived = {"kind": "binary", "derive": "cells", "ignore_label": 9}
    own = {"kind": "binary", "ignore_label": 3}
    for targets, about in (
        ({"grown": derived}, "grown"),
        ({"grown": derived, "cells": own}, "cells"),
        ({"cells": own, "grown": derived}, "cells"),
    ):
        entry = {k: v for k, v in world.items() if k != "sheet"} | {"ref_label": "cells"}
        task = make_task([entry], targets)
        (volume,) = open_volumes(task)
        assert volume.ref_target == about
        assert volume.ref is volume.labels["cells"]
        search_patches(task, [volume])
