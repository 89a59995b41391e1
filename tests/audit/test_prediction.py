import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter

from vcmodels.audit.prediction import Emptiness, audit_prediction
from vcmodels.audit.support import OFFSETS, Support, border_of, edges_of, gradient_of, support_of
from vcmodels.cli import main
from vcmodels.geometry.boxes import Box
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import ArrayVolume, open_volume

SHAPE = (40, 72, 56)


def scan():
    """Blobs in an image of which one end is void, and their mask."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=SHAPE), 4)
    mask = smooth > 0.7 * smooth.std()
    image = 60 + 90 * gaussian_filter(mask.astype(float), 0.7) + rng.normal(size=SHAPE) * 4
    image[:, :, 40:] = 0
    image[20, 30, 20] = 0
    return image.round().astype(np.uint8), mask.astype(np.uint8)


def volume(array, name="v"):
    return ArrayVolume.of(array, (2.0, 2.0, 2.0), name)


def empty_in(image):
    """Slow and obvious: voxels in a cube of 27 voxels that are all 0, also where the image ends."""
    padded = np.pad(image, 2, mode="edge") == 0
    full = np.zeros(padded.shape, bool)
    for place in np.ndindex(*(n - 2 for n in padded.shape)):
        cube = tuple(slice(p, p + 3) for p in place)
        if padded[cube].all():
            full[cube] = True
    return full[2:-2, 2:-2, 2:-2]


def findings(image, mask, **keys):
    audit = audit_prediction(volume(mask, "mask"), volume(image, "ct"), **keys)
    return {name: found[0] for name, found in audit.findings.items() if found}


def test_foreground_in_the_void_is_counted_and_single_voxels_of_its_value_are_not():
    image, mask = scan()
    expected = int((empty_in(image) & (mask > 0)).sum())
    found = findings(image, mask)["empty"]
    assert found.severity == "warning"
    assert (found.figures["foreground"], found.figures["empty"]) == (int(mask.sum()), expected)


def test_emptiness_does_not_depend_on_the_blocks():
    image = (np.random.default_rng(3).random(SHAPE) > 0.9).astype(np.uint8)
    whole = Emptiness(None, 0.0).of(volume(image), Box((0, 0, 0), SHAPE))
    np.testing.assert_array_equal(whole, empty_in(image))
    for box in (Box((3, 20, 31), (9, 17, 12)), Box((0, 5, 39), (40, 1, 17))):
        part = Emptiness(None, 0.0).of(volume(image), box)
        np.testing.assert_array_equal(part, whole[box.slices()])


def test_nothing_is_called_void_in_an_image_without_it():
    image, mask = scan()
    noise = np.random.default_rng(1).integers(1, 255, SHAPE, np.uint8)
    found = findings(np.maximum(image, noise), mask)["empty"]
    assert "stands for void" in found.found
    rule = ForegroundRule.parse("<= 70")
    found = findings(image, mask, empty=rule)["empty"]
    assert found.figures["empty"] == int(((image <= 70) & (mask > 0)).sum())


def test_the_shares_are_those_of_all_distances():
    rng = np.random.default_rng(3)
    image, part = rng.normal(size=SHAPE), rng.random((8, 6, 7)) > 0.5
    cube, spacing, radii, threshold = (
        Box((8, 24, 8), (6, 4, 5)),
        (2.0, 1.0, 3.0),
        [0.0, 1.0],
        0.05,
    )
    found = support_of(volume(image), part, cube, threshold, radii, spacing)
    edges = np.argwhere(edges_of(gradient_of(image), threshold))
    border = np.argwhere(border_of(part)[1:-1, 1:-1, 1:-1]) + cube.origin
    assert len(border) > 20
    for number, offset in enumerate(((0, 0, 0), *OFFSETS)):
        inside = [p for p in border + offset if (p >= 0).all() and (p < SHAPE).all()]
        assert found.points[number] == len(inside)
        for column, radius in enumerate(radii):
            near = [
                np.sqrt((((edges - p) * spacing) ** 2).sum(axis=1)).min() <= radius for p in inside
            ]
            assert found.hits[number, column] == sum(near)


def test_edges_are_where_the_gradient_is_largest():
    image = np.zeros((9, 10, 24))
    image[:, :, 8:15] = 50.0
    edges = edges_of(gradient_of(image), 1.0)
    faces = edges[:, :, 7] | edges[:, :, 8], edges[:, :, 14] | edges[:, :, 15]
    assert all(side.all() for side in faces)
    assert set(np.argwhere(edges)[:, 2].tolist()) <= {
        7,
        8,
        14,
        15,
    }  # two are alike but for rounding
    assert not edges_of(gradient_of(image), 1e3).any()


def test_the_excess_is_1_where_all_is_hit_and_0_for_what_moving_reaches():
    moved = len(OFFSETS)
    hits = np.array([[80, 40], *[[60, 40]] * moved])
    support = Support(np.full(1 + moved, 80), hits)
    np.testing.assert_allclose(support.null, [0.75, 0.5])
    np.testing.assert_allclose(support.excess, [1.0, 0.0])
    np.testing.assert_array_equal((support + support).hits, 2 * hits)


def test_a_mask_of_its_image_has_an_excess_and_one_of_another_has_none():
    image, mask = scan()
    image = np.maximum(image, 50)
    found = findings(image, mask)["support"]
    assert found.severity == "note"
    assert found.figures["radii"][1]["excess"] > 0.5
    other = uniform_filter(np.random.default_rng(7).normal(size=SHAPE), 7) > 0.02
    found = findings(image, other.astype(np.uint8))["support"]
    assert found.severity == "warning"
    assert max(row["excess"] for row in found.figures["radii"]) < 0.1
    assert found.figures["radii"][2]["share"] > 0.3


def test_the_masked_copy_is_0_where_the_image_is_empty(store, tmp_path, capsys):
    image, mask = scan()
    mask = mask * 7
    places = store("mask", mask, (16, 24, 20)), store("ct", image, (16, 16, 16))
    out = tmp_path / "masked.zarr"
    code = main(["audit", places[0], "--image", places[1], "--mask", str(out), "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["checks"]["empty"][0]["severity"] == "warning"
    written = open_volume(str(out))
    expected = np.where(empty_in(image), 0, mask)
    np.testing.assert_array_equal(written.read(written.box)[0], expected)
    assert (written.dtype, written.chunks) == (np.uint8, (16, 24, 20))
    assert main(["audit", places[0], "--image", places[1], "--mask", str(out)]) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, m: (i[:-1], m), "the image (39, 72, 56)"),
        (lambda i, m: (i, i), "--foreground"),
        (lambda i, m: (i, m / 3), "--foreground"),
    ],
    ids=["extent", "many values", "fractions"],
)
def test_what_cannot_be_compared_is_refused(store, capsys, change, words):
    image, mask = change(*scan())
    places = store("mask", mask, (16, 24, 20)), store("ct", image, (16, 16, 16))
    assert main(["audit", places[0], "--image", places[1]]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--mask", "x"],
        ["--empty", "== 0"],
        ["--foreground", "> 0"],
        ["--image", "y", "--set", "a=1"],
        ["--image", "y", "--empty", "few"],
    ],
    ids=" ".join,
)
def test_options_without_effect_are_refused(tmp_path, capsys, words):
    assert main(["audit", str(tmp_path / "task.json"), *words]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_mask_without_a_void_is_refused_and_nothing_written(store, tmp_path, capsys):
    image, mask = scan()
    noise = np.random.default_rng(1).integers(1, 255, SHAPE, np.uint8)
    places = store("mask", mask, (16, 24, 20)), store("ct", np.maximum(image, noise), (16, 16, 16))
    out = tmp_path / "masked.zarr"
    assert main(["audit", places[0], "--image", places[1], "--mask", str(out)]) == 2
    assert "give --empty" in capsys.readouterr().err
    assert not out.exists()
    assert (
        main(["audit", places[0], "--image", places[1], "--mask", str(out), "--empty", "< 9"]) == 0
    )
    assert out.exists()


def test_a_mask_with_nothing_in_it_is_an_error():
    image, mask = scan()
    assert findings(image, mask * 0)["empty"].severity == "error"
