from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcmodels.audit import audit_task, duplicates
from vcmodels.audit.duplicates import fine_correlation, mirrored, thumbnail

SHAPE = (24, 30, 36)


def scan(seed, anatomy=0):
    """Smooth anatomy that is the same for all seeds, and noise that is not."""
    smooth = gaussian_filter(np.random.default_rng(anatomy).normal(size=SHAPE), 4)
    noise = np.random.default_rng(seed + 1).normal(size=SHAPE)
    return (120 + 40 * smooth / smooth.std() + 5 * noise).clip(0, 255).astype(np.uint8)


def altered(image):
    gamma = (255 * (image / 255.0) ** 0.7).round().astype(np.uint8)
    inverted, cropped = 255 - image, image[1:, :-2, 2:]
    return {"gamma": gamma, "inverted": inverted, "cropped": cropped, "noisy": scan_noise(image)}


def scan_noise(image):
    return (image + np.random.default_rng(9).normal(size=image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("flip", list(product((1, -1), repeat=3)), ids=str)
@pytest.mark.parametrize("how", ["gamma", "inverted", "cropped", "noisy"])
def test_the_fine_structure_of_an_altered_copy_is_the_same(how, flip):
    image = scan(0)
    other = altered(image)[how]
    assert fine_correlation(image.astype(float), mirrored(other, flip).astype(float), flip) > 0.8


def test_the_fine_structure_of_other_scans_of_one_anatomy_is_not():
    one, other = scan(0).astype(float), scan(5).astype(float)
    assert abs((thumbnail(one) * thumbnail(other)).sum()) > 0.95
    assert fine_correlation(one, other, (1, 1, 1)) < 0.45


@pytest.mark.parametrize(("left", "right"), [("train", "val"), (None, None), ("train", "train")])
def test_an_altered_copy_in_training_and_validation_is_found(store, make_task, left, right):
    copy = mirrored(altered(scan(0))["gamma"], (1, -1, 1))
    images = {"a": (scan(0), left), "b": (copy, right), "c": (scan(3), right), "d": (scan(4), left)}
    label = (scan(0) > 130).astype(np.uint8)
    entries = [
        {
            "input": store(f"{name}/ct", np.ascontiguousarray(image)),
            "sheet": store(f"{name}/sheet", label),
            "ref_label": "sheet",
            "name": name,
            **({"split": split} if split else {}),
        }
        for name, (image, split) in images.items()
    ]
    if left == right == "train":
        entries.append({**entries[2], "name": "e", "split": "val"})
    found = audit_task(make_task(entries), "t").findings["duplicates"]
    if left == right == "train":
        assert found == []
        return
    assert [f.figures["volumes"] for f in found] == [["a", "b"]]
    assert found[0].figures["mirrored"] == ["y"]


def test_a_hundred_thousand_volumes_of_one_side_are_not_compared_pair_by_pair(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_TRIED", 50)
    asked = []

    def may_part(*pair):
        asked.append(pair)
        return False

    monkeypatch.setattr(duplicates, "_may_part", may_part)
    large = SimpleNamespace(region=SimpleNamespace(voxels=duplicates.MOST_VOXELS + 1))
    scene = SimpleNamespace(volumes=[large] * 1000)
    assert not list(duplicates.CHECK.find(scene))
    assert len(asked) == 50
