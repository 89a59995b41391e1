"""What `per: "auto"` stands for: each volume by itself, unless intensities mean the same in all."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import zarr
from pydantic import ValidationError

from vcmodels.config.task import NormalizationConfig
from vcmodels.data.choice import Choice, calibration
from vcmodels.data.normalization import (
    Normalization,
    contradiction,
    fit_normalization,
    other_choice,
)
from vcmodels.data.volumes import open_volumes
from vcmodels.reporting import Silent
from vcmodels.volumes import ArrayVolume, open_volume

AUTO = NormalizationConfig()
SHAPE = (20, 30, 40)


def scan(seed=0, gain=1.0, offset=0.0):
    values = np.random.default_rng(seed).normal(100, 20, SHAPE).clip(1, 254)
    return (values * gain + offset).astype(np.float32)


def ct(width=17):
    """Air around a body, in Hounsfield units."""
    rng, body = np.random.default_rng(width), np.zeros(SHAPE, bool)
    body[4:16, 5 : 5 + width, 8:30] = True
    return np.where(body, rng.normal(40, 60, SHAPE), rng.normal(-1000, 8, SHAPE)).astype(np.int16)


def volume(values, name="scan", **attributes):
    return replace(ArrayVolume.of(values, (1.0, 1.0, 1.0), name), attributes=attributes)


@pytest.fixture
def fitted(make_task, store):
    """The normalisation of a task with these images, and what was said."""
    numbers = count()

    def fit(*images):
        names = [f"raw{next(numbers)}" for _ in images]
        paths = [store(n, image, chunks=SHAPE) for n, image in zip(names, images, strict=True)]
        entries = [{"input": path, "sheet": path} for path in paths]
        volumes, reporter = open_volumes(make_task(entries)), Silent()
        found = fit_normalization(AUTO, volumes, [v.region for v in volumes], reporter)
        return found, reporter.lines

    return fit


@pytest.mark.parametrize(
    ("images", "per", "why"),
    [
        ([scan()], "volume", "one training volume does not show"),
        ([scan(0), scan(1)], "volume", "2 training volumes that agree are too few"),
        ([scan(0), scan(1), scan(2)], "global", "3 training volumes agree: means by up to 0.0"),
        ([scan(0), scan(1), scan(2, 1.3)], "volume", "means by up to 1.5 standard deviations"),
        ([scan(0), scan(1), scan(2, 1.0, 5)], "volume", "means by up to 0.2"),
        ([scan(0), scan(1), scan(2, 257)], "volume", "these by a factor of 25"),
        ([ct()], "global", "Hounsfield units (signed whole numbers from -1"),
        ([ct(5), ct(25)], "global", "Hounsfield units"),
        ([ct(), scan()], "volume", "2 training volumes differ"),
    ],
    ids=["one", "two", "three", "gain", "offset", "types", "ct", "two ct", "ct and mri"],
)
def test_the_training_volumes_choose(fitted, images, per, why):
    found, lines = fitted(*images)
    assert (found.per, found.choice.per) == (per, per)
    assert bool(found.volumes) == (per == "volume") != bool(found.channels)
    (line,) = lines
    assert line.startswith(f"normalization: zscore per {per}: ")
    assert why in line
    again = Normalization.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.choice == found.choice


def test_boxes_of_one_scan_are_one_volume_and_have_its_statistics(make_task, store):
    image = scan()
    image[10:] += 300
    path = store("raw", image, chunks=SHAPE)
    boxes = [[[0, 9], [0, 30], [0, 40]], [[9, 20], [0, 30], [0, 40]]]
    task = make_task([{"input": path, "sheet": path, "bbox": box} for box in boxes])
    volumes = open_volumes(task)
    both = fit_normalization(AUTO, volumes, [v.region for v in volumes])
    assert len(both.choice.figures) == 1
    for (found,) in both.volumes.values():
        assert found.mean == pytest.approx(image.mean(), rel=1e-4)
    one_side = fit_normalization(AUTO, volumes, [volumes[0].region, None])
    for (found,) in one_side.volumes.values():  # what is validated on stays unseen
        assert found.mean == pytest.approx(image[:9].mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "attributes", "shown"),
    [
        (ct(), {}, "signed whole numbers from"),
        (ct().astype(np.float32), {}, "signed whole numbers from"),
        (ct().astype(np.float32) + 0.25, {}, None),
        (ct() + 1024, {}, None),
        (ct().clip(-200, 300), {}, None),
        (ct().clip(-200, 300), {"intensity": {"unit": "HU"}}, "attribute intensity.unit"),
        (ct().clip(-200, 300), {"modality": "CT, Hounsfield units"}, "attribute modality"),
        (ct().clip(-200, 300), {"author": "HU Berlin"}, None),
        ((ct().clip(0, 200)).astype(np.uint8), {"made from": "Hounsfield units"}, None),
        (ct() / 1000, {"unit": "HU"}, None),
        (np.random.default_rng(0).integers(-30000, 30000, SHAPE, np.int16), {}, None),
        (scan(), {}, None),
    ],
)
def test_hounsfield_units_show_by_their_name_or_by_air(values, attributes, shown):
    raw = volume(values, **attributes)
    found = calibration([raw], Normalization("zscore").of_volume([raw], raw.box))
    assert (found is not None) == (shown is not None)
    assert found is None or found.startswith(shown)


def test_the_group_around_an_array_may_name_the_unit(store, tmp_path):
    path = store("raw", ct().clip(-200, 300), chunks=SHAPE)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"value_unit": "HU"}}
    (tmp_path / "data.zarr" / "zarr.json").write_text(json.dumps(group))
    raw = open_volume(path)
    stats = Normalization("zscore").of_volume([raw], raw.box)
    assert calibration([raw], stats) == "attribute value_unit"
    assert calibration([raw, volume(scan())], (*stats, *stats)) is None


def test_an_input_that_would_have_turned_the_choice_is_told(fitted):
    three, _ = fitted(scan(0), scan(1), scan(2))
    assert other_choice(three, [volume(scan(3))]) is None
    line = other_choice(three, [volume(scan(3, 1.5), "next")])
    assert line.startswith(
        'note: next: among the training volumes it would have made normalization "'
    )
    assert '"per": "volume", and it is "global": 4 training volumes differ: means by up' in line
    two, _ = fitted(scan(0), scan(1))
    assert '"per": "global", and it is "volume"' in other_choice(two, [volume(scan(3))])
    body, _ = fitted(ct())
    assert other_choice(body, [volume(ct().clip(-200, 300))]) is None
    assert '"per": "volume"' in other_choice(body, [volume(scan())])
    one, _ = fitted(scan())
    assert other_choice(one, [volume(scan(3, 9))]) is None
    assert other_choice(replace(three, choice=None), [volume(scan(3, 9))]) is None


def test_a_constant_volume_does_not_choose():
    figures = {"a": [(5.0, 2.0)], "b": [(5.0, 2.0)], "c": [(0.0, 0.0)]}
    assert "2 training volumes that agree" in Choice.of(figures, None).reason
    with_mask = {name: [*found, (1.0, 0.0)] for name, found in figures.items()} | {
        "d": [(5.01, 2.0), (1.0, 0.0)]
    }
    assert Choice.of(with_mask, None).per == "global"


def test_only_what_a_task_gives_contradicts_a_checkpoint():
    used = Normalization("percentile", "volume", percentiles=(1, 99))
    assert contradiction(NormalizationConfig(), used) is None
    assert contradiction(NormalizationConfig(scheme="percentile", per="auto"), used) is None
    given = NormalizationConfig(scheme="percentile", per="global", percentiles=(0.5, 99.5))
    found = contradiction(given, used)
    assert found.startswith("per is global, the checkpoint has volume; percentiles is (0.5, 99.5)")
    assert contradiction(used.config, used) is None


@pytest.mark.parametrize("percentiles", [(99.5, 0.5), (50, 50)])
def test_percentiles_stand_in_their_order(percentiles):
    with pytest.raises(ValidationError, match="give the lower one first"):
        NormalizationConfig(percentiles=percentiles)


@pytest.mark.parametrize("axis", ["t", "c"])
def test_times_and_channels_of_one_array_are_volumes_of_their_own(make_task, tmp_path, axis):
    images = [scan(seed, gain) for seed, gain in enumerate((1.0, 1.0, 1.3))]
    place = str(tmp_path / "raw")
    array = zarr.create_array(
        place, shape=(3, *SHAPE), chunks=(1, *SHAPE), dtype="f4", dimension_names=[axis, *"zyx"]
    )
    array[...] = np.stack(images)
    entries = [
        {"input": place, "sheet": place, "name": f"v{n}"}
        | ({"index": {"t": n}} if axis == "t" else {"channels": [n], "index": {"c": {"sheet": 0}}})
        for n in range(3)
    ]
    volumes = open_volumes(make_task(entries))
    found = fit_normalization(AUTO, volumes, [v.region for v in volumes])
    assert (len(found.choice.figures), found.per) == (3, "volume")
    for volume, image in zip(volumes, images, strict=True):
        assert found.volumes[volume.name][0].mean == pytest.approx(image.mean(), rel=1e-4)
    twice = [volumes[0], replace(volumes[0], name="again")]
    assert len(fit_normalization(AUTO, twice, [volumes[0].region] * 2).choice.figures) == 1
