"""One small network overfits four patches of every kind of target, all of them at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from vcmodels.config import parse_task
from vcmodels.geometry.boxes import Box
from vcmodels.phantom.write import UNLABELLED, make_phantom
from vcmodels.samples.loader import Batch
from vcmodels.targets import KINDS
from vcmodels.training.learner import Learner

PATCH, SPACING = (16, 16, 16), (2.0, 1.0, 1.0)
PLACES = [(8, 24, 8), (8, 56, 24), (16, 40, 32), (24, 72, 24)]
STEPS = 200

TARGETS = {
    "sheet": {"kind": "binary", "ignore_label": UNLABELLED},
    "sides": {"kind": "multiclass", "channels": 3, "label_values": [0, 3, 7]},
    "density": {"kind": "regression", "encoding": {"scale": 1 / 255}, "loss": "l1", "weight": 10.0},
    "normals": {"kind": "normals"},
    "fibre": {"kind": "normals", "orientation": "axial"},
    "push": {"kind": "vector"},
    "way": {"kind": "vector", "derive": "cells", "max_extent": 8, "loss_only_on_label": True},
    "middle": {"kind": "centres", "derive": "cells", "max_extent": 8, "sigma": 1.5},
    "depth": {"kind": "distance", "derive": "cells", "clip": 4.0},
    "rim": {"kind": "boundary", "derive": "cells"},
    "links": {"kind": "affinities", "derive": "cells"},
}
FIGURES = {
    "sheet": ("dice", 0.95),
    "sides": ("dice", 0.92),
    "density": ("mae", 0.03),
    "normals": ("angle_deg", 16),
    "fibre": ("angle_deg", 18),
    "push": ("endpoint_error", 0.6),
    "way": ("endpoint_error", 1.0),
    "middle": ("correlation", 0.85),
    "depth": ("mae", 0.6),
    "rim": ("dice", 0.85),
    "links": ("dice", 0.7),
}
"""The least score of what falls short of 1, the largest error of what should be 0."""
HIGHER_IS_BETTER = {"dice", "correlation"}


def make_task(targets, f_maps=(24, 48), **settings):
    entry = {"input": ["ct", "cells_picture"], "cells": "cells"}
    stored = {name: name for name, block in targets.items() if "derive" not in block}
    task, _ = parse_task(
        {
            "tr_params": {
                "model_name": "kinds", "patch_size": list(PATCH), "batch_size": 4,
                "initial_lr": 0.01, "warmup_steps": 5, "ema_decay": None, "amp": "off",
                "device": "cpu", **settings,
            },
            "model_config": {"name": "residual_unet", "f_maps": [*f_maps], "decoder": "shared"},
            "dataset_config": {"volume_paths": [{**entry, **stored}], "targets": targets},
        },
        "test",
    )  # fmt: skip
    return task


def make_learner(task):
    torch.manual_seed(0)
    heads = {name: target.channels for name, target in task.dataset_config.targets.items()}
    network = task.model.build(2, heads, PATCH, SPACING)
    return Learner(network, task.dataset_config.targets, task.tr_params, torch.device("cpu"))


def cells(rng, shape):
    """Ids of touching cells of up to 7 voxels, and a picture of them."""
    seeds = np.zeros(shape, np.int64)
    seeds[tuple(rng.integers(0, n, 150) for n in shape)] = np.arange(1, 151)
    far, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    ids = seeds[tuple(nearest)] * (far < 3.3)
    return ids, np.exp(-(far**2) / 8) + 0.05 * rng.normal(size=shape)


def patch_of(place, targets, seed):
    """The image (2, *PATCH) of a place of the phantom, and its labels by target."""
    rng = np.random.default_rng(seed)
    scroll = make_phantom((48, 112, 72), Box(place, PATCH))
    whole, picture = cells(rng, tuple(n + 40 for n in PATCH))
    inside = (slice(20, 20 + PATCH[0]),) * 3
    image = np.stack([(scroll.ct[0] - 90.0) / 50, 2 * picture[inside]])
    outward = scroll.normals[:1] > 32767
    stored = {
        "sheet": scroll.sheet,
        "sides": np.where(scroll.sheet == 1, np.where(outward, 7, 3), 0),
        "density": ndimage.gaussian_filter(scroll.ct.astype(np.float32), (0, 1, 1, 1)),
        "normals": scroll.normals,
        "fibre": scroll.normals,
        "push": np.where(scroll.normals.any(0), 3 * (scroll.normals / 32767.5 - 1), np.nan),
    }
    labels = {}
    for name, target in targets.items():
        if target.derive is None:
            labels[name] = [torch.from_numpy(a) for a in target.read_label(stored[name])]
            continue
        margin = target.source_margin(SPACING)
        crop = tuple(slice(20 - m, 20 + PATCH[0] + m) for m in margin)
        source = torch.from_numpy(whole[crop].astype(np.float32))[None]
        known = torch.ones_like(source, dtype=torch.bool)
        labels[name] = target.derive_label(source, known, SPACING)
    return torch.from_numpy(image).float(), labels


def make_batch(targets):
    patches = [patch_of(place, targets, seed) for seed, place in enumerate(PLACES)]
    return Batch(
        torch.stack([image for image, _ in patches]),
        {name: torch.stack([labels[name][0] for _, labels in patches]) for name in targets},
        {name: torch.stack([labels[name][1] for _, labels in patches]) for name in targets},
        (),
    )


def scores(learner, batch):
    with torch.inference_mode():
        outputs = learner.network.eval()(batch.image)
    found = {}
    for name, target in learner.targets.items():
        prediction = target.unblend(target.blendable(outputs[name][0]))
        sums = target.measure(prediction, batch.labels[name], batch.valid[name])
        found[name] = target.summarise(sums)[FIGURES[name][0]]
    return found


@pytest.fixture(scope="module")
def batch():
    """Of all targets; never changed by a test."""
    return make_batch(make_task(TARGETS).dataset_config.targets)


@pytest.fixture(scope="module")
def learnt(batch):
    learner = make_learner(make_task(TARGETS))
    before = scores(learner, batch)
    for _ in range(STEPS):
        assert learner.train_step([batch]).read().is_applied
    return before, scores(learner, batch)


def test_every_kind_has_a_figure():
    assert {block["kind"] for block in TARGETS.values()} == set(KINDS)
    assert TARGETS.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_a_network_of_all_kinds_overfits_four_patches_to_the_stated_figure(learnt, name):
    (metric, figure), (before, after) = FIGURES[name], learnt
    if metric in HIGHER_IS_BETTER:
        assert before[name] < figure < after[name]
    else:
        assert before[name] > figure > after[name]


@pytest.mark.parametrize("missing", TARGETS)
def test_a_volume_without_a_label_trains_the_other_heads(batch, missing):
    """The head whose label is missing keeps its weights to the bit."""
    learner = make_learner(make_task(TARGETS, (4, 8), weight_decay=0.0, warmup_steps=0))
    nowhere = torch.zeros_like(batch.valid[missing])
    batch = replace(batch, valid={**batch.valid, missing: nowhere})
    before = {key: value.clone() for key, value in learner.network.state_dict().items()}
    first, second = (learner.train_step([batch]).read().losses for _ in range(2))
    assert first.keys() == TARGETS.keys() - {missing}
    assert sum(second.values()) < sum(first.values())
    changed = {k for k, v in learner.network.state_dict().items() if not torch.equal(v, before[k])}
    heads = {name: {k for k in changed if f".{name}." in f".{k}."} for name in TARGETS}
    assert {name for name, keys in heads.items() if not keys} == {missing}
