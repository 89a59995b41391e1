"""Transforms of albumentations: every class of the library, the scaling, the seeds, the messages."""

import json
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import center_of_mass

from vcmodels.augment import apply_intensity
from vcmodels.augment.albumentation import Albumentation, library, transform_classes
from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import RunError, TaskError
from vcmodels.reporting import Silent
from vcmodels.training import train

ROOT = Path(__file__).parents[2]
SHAPE = (2, 3, 24, 28)
VALUE_ONLY = {
    name: kind
    for name, kind in transform_classes().items()
    if issubclass(kind, library().ImageOnlyTransform)
}
COLOURS, OTHER_DATA = "needs three colours", "needs a second image or other data"
REFUSED = {
    "ChannelDropout": COLOURS,
    "ChannelShuffle": "does nothing to a grey picture",
    "ChromaticAberration": COLOURS,
    "FDA": OTHER_DATA,
    "FromFloat": "makes uint8",
    "HEStain": COLOURS,
    "HistogramMatching": OTHER_DATA,
    "HueSaturationValue": COLOURS,
    "ISONoise": COLOURS,
    "Normalize": "makes values from -2",
    "PixelDistributionAdaptation": OTHER_DATA,
    "PlanckianJitter": COLOURS,
    "RandomFog": COLOURS,
    "RandomGravel": COLOURS,
    "RandomRain": COLOURS,
    "RandomSnow": COLOURS,
    "RandomSunFlare": COLOURS,
    "Spatter": COLOURS,
    "TextImage": OTHER_DATA,
    "ToFloat": "does nothing to a grey picture",
    "ToGray": COLOURS,
    "ToRGB": r"makes float32 \(96, 112, 3\)",
    "ToSepia": "does nothing to a grey picture",
}
ACCEPTED = sorted(VALUE_ONLY.keys() - REFUSED)
FIXED = {"AutoContrast", "Downscale", "Equalize", "InvertImg", "Posterize", "Solarize"}
"""With their default options they draw nothing, or from a range of one value."""
OPTIONS = {
    "CLAHE": {"clip_limit": [1, 3], "tile_grid_size": [1, 1]},
    "ImageCompression": {"quality_range": [10, 90]},
    "Superpixels": {"n_segments": [9, 9]},
}
"""Those that show the draw on slices this small, or take a tenth of the time."""


def textured(shape=SHAPE, seed=0):
    """An image in the manner of a normalised one, channels of unequal range; float32."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=shape), axis=-1) / 2
    return torch.tensor(smooth * np.arange(1, shape[0] + 1)[:, None, None, None] - 3).float()


def alike_slices(shape=SHAPE):
    image = textured((shape[0], 1, *shape[2:]))
    return image.expand(shape).clone()


def change(augmentation, image, seed=0):
    return apply_intensity([augmentation], image, np.random.default_rng(seed))


def use(transform, **keys):
    return Albumentation(p=1.0, transform=transform, **keys)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_reproducible_and_keeps_shape_type_and_range(name):
    image = textured()
    use(name)
    kept = use(name, options=OPTIONS.get(name, {}))
    first, again, other = (change(kept, image, seed) for seed in (1, 1, 2))
    assert first.shape == image.shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in FIXED)
    assert not torch.equal(first, image)
    for channel, before in zip(first, image, strict=True):
        assert before.min() - 1e-3 <= channel.min()
        assert channel.max() <= before.max() + 1e-3


@pytest.mark.parametrize("name", ACCEPTED)
def test_slices_are_drawn_alike_or_each_on_its_own(name):
    image = alike_slices()
    options = OPTIONS.get(name, {})
    alike, each = (
        change(use(name, options=options, slices=slices), image) for slices in ("alike", "each")
    )
    assert torch.equal(alike, alike[:, :1].expand_as(alike))
    assert torch.equal(each, each[:, :1].expand_as(each)) == (name in FIXED)


@pytest.mark.parametrize("name", sorted(VALUE_ONLY.keys() & REFUSED))
def test_what_does_not_fit_is_refused_with_a_sentence(name):
    with pytest.raises(ValidationError, match=f"{name} {REFUSED[name]}"):
        use(name)


def test_the_lists_above_name_what_the_library_has():
    assert REFUSED.keys() <= VALUE_ONLY.keys()
    assert set(ACCEPTED) >= FIXED | OPTIONS.keys()
    assert len(ACCEPTED) == 36


def test_the_page_lists_what_is_accepted():
    page = (ROOT / "docs" / "augmentation.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]*\| (?:float|8 bit) \| (yes|no) \| \d+ \|$", page, re.M)
    assert dict(rows) == {name: "no" if name in FIXED else "yes" for name in ACCEPTED}
    assert f"albumentations {library().__version__} and default options" in page
    assert f"has {len(VALUE_ONLY)} transforms" in page


@pytest.mark.parametrize("name", sorted(transform_classes().keys() - VALUE_ONLY))
def test_what_moves_voxels_is_refused(name):
    with pytest.raises(ValidationError, match=f"{name} .* cannot turn vectors; use flip"):
        use(name)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_values_are_scaled_by_the_range_of_the_channel_and_back(axis):
    image = textured((2, 6, 7, 8))
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(change(use("InvertImg", axis=axis), image), low + high - image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_stacked_along_the_axis(axis):
    ramp = torch.rand(9, generator=torch.Generator().manual_seed(0))
    shape = [1, 1, 1, 1]
    shape[1 + axis] = 9
    image = ramp.view(shape).expand(1, 9, 9, 9).contiguous()
    for along in (0, 1, 2):
        blurred = change(use("Blur", axis=along), image)
        still = torch.allclose(blurred, image, atol=1e-5)
        assert still == (along == axis)  # each slice is constant, or has the ramp in it


def test_options_reach_the_library():
    image = textured()
    assert change(use("Posterize", options={"num_bits": 1}), image)[0].unique().numel() == 2
    flat = change(use("MedianBlur", options={"blur_limit": [7, 7]}), image)
    fine = change(use("MedianBlur", options={"blur_limit": [3, 3]}), image)
    assert flat.diff(dim=-1).abs().mean() < fine.diff(dim=-1).abs().mean()


def test_motion_blur_can_leave_structures_where_their_labels_are():
    image = torch.zeros(1, 1, 41, 41)
    image[..., 20, 20] = 1
    still = {"blur_limit": [3, 9], "allow_shifted": False, "direction_range": [0, 0]}
    moved = {True: [], False: []}
    for seed in range(20):
        for options in (still, {"blur_limit": [3, 9]}):
            blurred = change(use("MotionBlur", options=options), image, seed)[0, 0].numpy()
            off = np.subtract(center_of_mass(blurred), 20)
            moved[options is still].append(np.linalg.norm(off))
    assert max(moved[True]) < 1e-3
    assert max(moved[False]) > 1  # which docs/augmentation.md warns of


def test_channels_get_the_same_draw_unless_each_has_its_own():
    image = textured((1, 3, 24, 28)).expand(2, -1, -1, -1).clone()
    first, second = change(use("SaltAndPepper"), image)
    assert torch.equal(first, second)
    first, second = change(use("SaltAndPepper", per_channel=True), image)
    assert not torch.equal(first, second)


def test_threads_and_copies_change_nothing():
    kept = use("GlassBlur", slices="each")
    copy = pickle.loads(pickle.dumps(kept))
    assert copy == kept
    image = textured()
    expected = [change(kept, image, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: change(copy, image, seed), range(8)))
    assert all(map(torch.equal, drawn, expected))


def test_a_slice_that_is_too_small_stops_the_run_with_a_sentence():
    with pytest.raises(RunError, match=r"GlassBlur fails on a picture of 5 x 7.*larger patches"):
        change(use("GlassBlur"), textured((1, 2, 5, 7)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"transform": "MotionBlurr"}, '"MotionBlurr" is no transform .* mean "MotionBlur"?'),
        ({"transform": "OneOf"}, '"OneOf" is no transform .* docs/augmentation.md lists'),
        ({"options": {"blur_limitt": 3}}, 'no argument "blur_limitt"; did you mean "blur_limit"?'),
        ({"options": {"colour": 3}}, "it takes allow_shifted, angle_range, blur_limit, dir"),
        ({"options": {"strict": True}}, 'MotionBlur has no argument "strict"'),
        ({"options": {"p": 0.2}}, '"p" is no option; give it next to "transform"'),
        ({"options": {"blur_limit": "x"}}, "refuses its options: blur_limit.*valid"),
        ({"options": {"blur_limit": [7, 3]}}, "refuses its options: blur_limit: Invalid range"),
        ({"axis": "w"}, "'z', 'y' or 'x'"),
        ({"slices": "both"}, "'alike' or 'each'"),
    ],
)
def test_a_wrong_block_is_refused_with_the_reason(keys, message):
    with pytest.raises(ValidationError, match=message):
        use(**{"transform": "MotionBlur"} | keys)


def test_a_task_is_refused_with_one_line_that_names_the_key(sheet_task):
    block = {"name": "albumentations", "transform": "MotionBlur", "options": {"blur_limits": 3}}
    sheet_task["augment"] = [{"name": "flip"}, block]
    with pytest.raises(TaskError, match=r'^augment\.1\.options: .* "blur_limits"; did you [^\n]*$'):
        parse_task(sheet_task, "task.json")


def test_training_with_a_worker_is_that_without_to_the_bit(sheet_task, tmp_path):
    sheet_task["augment"] = [
        {"name": "albumentations", "transform": "MotionBlur", "p": 0.7, "axis": "y"},
        {"name": "albumentations", "transform": "GaussNoise", "p": 0.7, "slices": "each"},
    ]

    def weights(folder, augment=True, **settings):
        task = json.loads(json.dumps(sheet_task))
        settings |= {"ckpt_out_base": str(tmp_path / folder), "max_epoch": 1}
        task["tr_params"] |= settings | {"device": "cpu", "max_steps_per_epoch": 2}
        task["augment"] = task["augment"] if augment else []
        train(parse_task(task, "task.json")[0], reporter=Silent())
        return load_checkpoint(tmp_path / folder / "tiny_last.pth").state["model"]

    here = weights("here")
    there = weights("there", num_dataloader_workers=1)
    without = weights("without", augment=False)
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert not all(torch.equal(here[name], without[name]) for name in here)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter():
    image = textured()
    kept = use("MotionBlur", axis="y")
    there = change(kept, image.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), change(kept, image), atol=1e-4, rtol=1e-4)


CHILD = """
import json, runpy, sys, urllib.request as web
from pathlib import Path

def heavy():
    return [name for name in ("albumentations", "cv2") if name in sys.modules]

asked = []
sys.argv = ["vcmodels", "--help"]
try:
    runpy.run_module("vcmodels", run_name="__main__")
except SystemExit:
    pass
assert not heavy(), heavy()
from vcmodels.config import parse_task
task = json.loads(Path(sys.argv_task).read_text())
parse_task(task, "task.json")
assert not heavy(), heavy()
web.urlopen = web.build_opener = lambda *given: asked.append(given)
task["augment"] = [{"name": "albumentations", "transform": "Blur"}]
parse_task(task, "task.json")
assert len(heavy()) == 2
assert not asked, asked
import cv2
assert cv2.getNumThreads() == 1
"""


def test_the_library_is_imported_when_a_task_names_it_and_asks_no_server(sheet_task, task_file):
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    code = CHILD.replace("sys.argv_task", repr(str(task_file(sheet_task))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
