"""Normals that are derived from masks: of the phantom's sheet, of ids, and under rotations."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from vcmodels.augment.apply import LabelCrop, apply_spatial
from vcmodels.augment.transform import SpatialTransform
from vcmodels.geometry.boxes import Box
from vcmodels.phantom.scroll import Scroll
from vcmodels.targets import BinaryTarget, NormalsTarget
from vcmodels.targets.binary import dilate

CUBES = (1.0, 1.0, 1.0)


def angles(one, other, *, axial=False):
    cosine = (one * other).sum(0)
    return np.rad2deg(np.arccos(np.clip(np.abs(cosine) if axial else cosine, -1, 1)))


@pytest.fixture(scope="module")
def sheet():
    return Scroll((48, 160, 160), seed=3).surface(Box((4, 30, 20), (24, 60, 56)))


def test_the_axes_of_the_phantoms_sheet_are_its_normals(sheet):
    target = NormalsTarget(derive="sheet", orientation="axial", smoothing_sigma=1.5)
    margin = target.source_margin(CUBES)
    mask = torch.from_numpy(sheet.mask.astype(np.float32))[None]
    label, valid = target.derive_label(mask, torch.ones_like(mask).bool(), CUBES)
    part = tuple(slice(m, n - m) for m, n in zip(margin, mask.shape[1:], strict=True))
    on_sheet = sheet.mask[part] & sheet.has_normal[part] & valid[0].numpy()
    assert on_sheet.sum() > 1000
    found = angles(label.numpy(), sheet.normals[(slice(None), *part)], axial=True)[on_sheet]
    assert np.median(found) < 8


def test_oriented_normals_point_out_of_both_faces_of_a_sheet(sheet):
    """The phantom's own point outward everywhere: they are equal on its outer faces."""
    target = NormalsTarget(derive="sheet")
    margin = target.source_margin(CUBES)
    mask = torch.from_numpy(sheet.mask.astype(np.float32))[None]
    label, valid = target.derive_label(mask, torch.ones_like(mask).bool(), CUBES)
    part = tuple(slice(m, n - m) for m, n in zip(margin, mask.shape[1:], strict=True))
    found = angles(label.numpy(), sheet.normals[(slice(None), *part)])
    counts = valid[0].numpy() & sheet.has_normal[part]
    for side, wanted in ((sheet.distance[part] > 1, 0), (sheet.distance[part] < -1, 180)):
        assert (counts & side).sum() > 1000
        assert np.median(np.abs(found - wanted)[counts & side]) < 15


@pytest.mark.parametrize("spacing", [CUBES, (2.5, 1.0, 1.0)], ids=["cubes", "slabs"])
@pytest.mark.parametrize("plane", [(1.0, 0, 0), (0, 0, 1.0), (0.3, 0.8, -0.5)], ids=str)
def test_touching_instances_have_the_axis_across_their_common_face(plane, spacing):
    """Everything is foreground: the mask has no surface, the ids have one."""
    normal = np.array(plane) / np.linalg.norm(plane)
    place = np.indices((40, 46, 52)).T * spacing
    depth = ((place - place.reshape(-1, 3).mean(0)) @ normal).T
    ids = torch.from_numpy(np.where(depth > 0, 7, 3).astype(np.float32))[None]
    known = torch.ones_like(ids, dtype=torch.bool)
    keys = {"derive": "cells", "orientation": "axial", "smoothing_sigma": 1.5}
    target = NormalsTarget(surface_of="instances", **keys)
    label, valid = target.derive_label(ids, known, spacing)
    part = (
        slice(m, n - m) for m, n in zip(target.source_margin(spacing), depth.shape, strict=True)
    )
    near = np.abs(depth[*part]) < 0.6 * max(spacing)
    assert valid[0].numpy()[near].all()
    found = angles(label.numpy(), normal[:, None, None, None], axial=True)[near]
    assert np.percentile(found, 95) < 10
    assert not NormalsTarget(**keys).derive_label(ids, known, spacing)[1].any()


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
@pytest.mark.parametrize("spacing", [CUBES, (2.0, 1.0, 1.0)], ids=["cubes", "slabs"])
def test_moving_derived_normals_is_nearly_deriving_them_from_the_moved_mask(orientation, spacing):
    """Under rotations and any scaling; ids are read at the nearest voxel, which is half of one off."""
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag((1.2, 0.9, 1.0))
    transform, patch = SpatialTransform(matrix=matrix), (14, 20, 22)
    keys = {"orientation": orientation, "label_interpolation": "nearest"}
    target = NormalsTarget(derive="mask", smoothing_sigma=2.0, **keys)
    margin = target.source_margin(spacing)
    grown = tuple(n + 2 * m for n, m in zip(patch, margin, strict=True))
    crop, small = transform.input_shape(grown, spacing), transform.input_shape(patch, spacing)
    wide = [n + 2 * m for n, m in zip(crop, margin, strict=True)]
    noise = ndimage.gaussian_filter(rng.normal(size=wide), 5 / np.array(spacing))
    ids = torch.from_numpy((noise > 0).astype(np.float32))[None]
    label, valid = target.derive_label(ids, torch.ones_like(ids).bool(), spacing)
    centre = (
        slice(None),
        *(slice((n - i) // 2, (n + i) // 2) for n, i in zip(crop, small, strict=True)),
    )
    source = ids[(slice(None), *(slice(m, m + n) for m, n in zip(margin, crop, strict=True)))]
    crops = {
        "stored": LabelCrop(label[centre].contiguous(), valid[centre].contiguous(), target),
        "ids": LabelCrop(source.contiguous(), torch.ones_like(source).bool(), None, margin),
    }
    _, moved = apply_spatial(transform, label[centre].contiguous(), crops, patch, spacing)
    wanted, counts = target.derive_label(moved["ids"].values, moved["ids"].valid, spacing)
    both = (counts & moved["stored"].valid)[0].numpy()
    assert both.mean() > 0.3
    stored = moved["stored"].values.numpy()
    found = angles(stored, wanted.numpy(), axial=orientation == "axial")[both]
    assert np.median(found) < 8


def test_a_mask_of_ids_is_grown_as_a_stored_one_would_be():
    ids = np.random.default_rng(0).integers(0, 40, (12, 13, 14)) // 39 * 7
    target = BinaryTarget(derive="cells", dilate_label=2)
    source = torch.from_numpy(ids.astype(np.float32))[None]
    known = torch.ones_like(source).bool()
    known[0, 5, 5, 5] = False
    label, valid = target.derive_label(source, known, CUBES)
    inside = (slice(2, -2),) * 3
    wanted = dilate((ids > 0) & known[0].numpy(), 2)[inside] & valid[0].numpy()
    assert np.array_equal(valid[0], known[0][inside])
    assert np.array_equal(label[0], wanted)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"smoothing_sigma": 2.0}, "smoothing_sigma and surface_of are of use with derive"),
        ({"derive": "a", "surface_of": "instances"}, "no outer side"),
        ({"derive": "a", "encoding": {"scale": 2.0}}, "has no encoding"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        NormalsTarget(**keys)
