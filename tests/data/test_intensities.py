"""What a checkpoint keeps of the values of its training, and which inputs are of another scale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcmodels.data import intensities
from vcmodels.data.intensities import ChannelValues, channel_names, measure, notes
from vcmodels.data.normalization import Normalization
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import ArrayVolume, open_volume

SHAPE = (70, 90, 130)
GLOBAL = Normalization("zscore")


def scan(seed=0, shape=SHAPE):
    """Dark with noise, an object in its middle, and a few bright specks: float64 in 0..255."""
    rng = np.random.default_rng(seed)
    values = rng.normal(20, 6, shape)
    values[tuple(slice(n // 4, 3 * n // 4) for n in shape)] += 100
    values[rng.random(shape) < 0.02] += 90
    return values.clip(0, 255)


def volume(values, name="scan"):
    return ArrayVolume.of(values, (1.0, 1.0, 1.0), name)


def measured(*channels, region=None):
    inputs = [volume(values) for values in channels]
    return measure([(inputs, region or inputs[0].box)])


def said(found, trained, normalization=GLOBAL):
    return list(notes(found, trained, normalization, "raw"))


@pytest.fixture(scope="module")
def trained():
    return measured(scan().astype(np.uint8))


def test_the_figures_are_those_of_all_values_where_all_are_looked_at():
    first, second = scan(1, (9, 20, 31)).astype(np.uint8), scan(2, (9, 20, 31)) * 1000 - 5
    region = Box((1, 2, 3), (7, 9, 20))
    for found, values, dtype in zip(
        measured(first, second, region=region), (first, second), ("uint8", "float64"), strict=True
    ):
        inside = values[region.slices()].astype(np.float64)
        assert (found.dtype, found.values) == (dtype, inside.size)
        assert (found.minimum, found.maximum) == (inside.min(), inside.max())
        np.testing.assert_allclose((found.mean, found.sd), (inside.mean(), inside.std()))
        np.testing.assert_allclose(found.range, np.percentile(inside, (0.5, 99.5)))
        np.testing.assert_allclose(found.reach, np.percentile(inside, (0.01, 99.99)))
        assert ChannelValues.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_large_volume_is_looked_at_in_a_few_places_always_the_same(monkeypatch):
    read = []
    original = ArrayVolume._read_inside

    def _read_inside(self, box):
        read.append(box)
        return original(self, box)

    monkeypatch.setattr(ArrayVolume, "_read_inside", _read_inside)
    values = np.broadcast_to(np.arange(2000, dtype=np.uint16), (500, 1000, 2000))
    (found,) = measured(values)
    assert len(read) <= intensities.WINDOWS
    assert found.values < 2 * intensities.WINDOWS * intensities.VALUES
    assert len({box.origin[2] for box in read}) > 4, "not all from one place"
    assert measured(values) == (found,)
    many = [([volume(values)], Box((0, 0, n), (100, 100, 100))) for n in range(100)]
    read.clear()
    measure(many)
    assert len(read) <= intensities.WINDOWS


def test_the_empty_part_of_a_volume_does_not_count_stored_or_not(store):
    values = np.zeros((192, 192, 256), np.uint8)
    values[64:128, 64:128, 128:192] = scan(0, (64, 64, 64))
    raw = open_volume(store("sparse", values, chunks=(64, 64, 64)))
    assert len(list(raw.stored_blocks())) == 1
    (found,) = measure([([raw], raw.box)])
    assert found.percentiles[2] > 0
    (dense,) = measured(values)
    assert replace(dense, name="sparse") == found


@pytest.mark.parametrize(("offset", "count"), [(0, 0), (40, 0), (130, 1), (-170, 1)])
def test_an_input_that_is_clipped_to_one_value_is_told(offset, count):
    image = np.random.default_rng(9).uniform(100, 200, SHAPE)
    training = volume(image)
    stats = Normalization("ct").of_volume([training], training.box)
    lines = said(measured(image + offset), measured(image), Normalization("ct", channels=stats))
    assert ["to which they are clipped" in line for line in lines] == [True] * count


def test_values_that_are_not_finite_and_damaged_chunks_are_left_out(store):
    values = scan(3, (16, 20, 128)).astype(np.float32)
    values[0, 0, 0], values[0, 0, 1] = np.nan, -np.inf
    location = store("damaged", values, chunks=(16, 20, 64))
    raw = open_volume(location)
    (found,) = measure([([raw], raw.box)])
    assert found.values == values.size - 2
    np.testing.assert_allclose(found.mean, values[np.isfinite(values)].mean(dtype=np.float64))
    first, second = sorted(p for p in Path(location, "c").rglob("*") if p.is_file())
    second.write_bytes(b"damaged")
    (found,) = measure([([raw], raw.box)])
    assert found.values == values.size // 2 - 2
    first.write_bytes(b"damaged")
    assert measure([([raw], raw.box)]) == ()


SAME_SCALE = {
    "the same": lambda values: values.astype(np.uint8),
    "20 % brighter": lambda values: (values * 1.2).clip(0, 255).astype(np.uint8),
    "20 % darker": lambda values: (values / 1.2).astype(np.uint8),
    "another type": lambda values: values.astype(np.float32),
    "another part": lambda values: values.astype(np.uint8)[30:, :50, 20:80],
    "background but for specks": lambda values: values.astype(np.uint8)[:17],
    "nearly all masked": lambda values: np.where(
        np.random.default_rng(5).random(SHAPE) < 0.002, values, 0
    ).astype(np.uint8),
}


@pytest.mark.parametrize("change", SAME_SCALE)
def test_a_scan_like_the_trainings_gets_no_note(trained, change):
    assert said(measured(SAME_SCALE[change](scan(4))), trained) == []


OTHER_SCALE = {
    "x 20 - 1000": (lambda values: (values * 20 - 1000).astype(np.int16), "-902 .. "),
    "uint16 for uint8": (lambda values: (values * 257).astype(np.uint16), " .. "),
    "0..1 for 0..255": (lambda values: (values / 255).astype(np.float32), "0.0"),
    "normalised": (lambda values: (values - values.mean()) / values.std(), "-"),
    "below all": (lambda values: values - 1000, "-9"),
}


@pytest.mark.parametrize("change", OTHER_SCALE)
def test_another_scale_is_told_with_the_figures_of_both(trained, change):
    transform, start = OTHER_SCALE[change]
    found = measured(transform(scan(4)))
    (line,) = said(found, trained)
    assert line.startswith("note: raw: values of channel 0 (scan) lie in ")
    low, high = found[0].range
    before = trained[0].range
    assert f"lie in {low:.6g} .. {high:.6g} (0.5 and 99.5 %), those of the training in" in line
    assert f" in {before[0]:.6g} .. {before[1]:.6g}; check the file, or train on such data" in line
    assert start in line


def test_an_object_after_a_training_of_nearly_pure_background_gets_no_note():
    dark = np.random.default_rng(6).normal(20, 6, SHAPE)
    dark[np.random.default_rng(7).random(SHAPE) < 0.002] = 140  # 99.5 % is darker, 99.99 % is not
    bright = scan(4).clip(0, 139)
    before = measured(dark)
    assert before[0].range[1] < 50 < measured(bright)[0].range[1]
    assert said(measured(bright), before) == []


@pytest.mark.parametrize(("low", "high", "count"), [(150, 290, 0), (210, 290, 1), (10, 90, 1)])
def test_values_next_to_the_range_of_the_training_are_of_another_scale(low, high, count):
    rng = np.random.default_rng(8)
    before = measured(rng.uniform(100, 200, SHAPE))
    assert len(said(measured(rng.uniform(low, high, SHAPE)), before)) == count


def test_uint8_for_uint16_is_another_scale():
    before = measured((scan() * 257).astype(np.uint16))
    (line,) = said(measured(scan(1).astype(np.uint8)), before)
    assert "channel 0" in line


def test_swapped_channels_are_told_for_both_with_the_order():
    one, other = scan().astype(np.uint8), (scan(1) * 200).astype(np.uint16)
    before = measured(one, other)
    assert said(measured(one, other), before) == []
    lines = said(measured(other, one), before)
    assert ["channel 0" in lines[0], "channel 1" in lines[1], len(lines)] == [True, True, 2]
    assert "check the files and their order (scan, scan)" in lines[0]


@pytest.mark.parametrize("per", ["volume", "patch"])
def test_the_scale_is_no_matter_where_each_input_is_measured(trained, per):
    other = measured((scan(4) * 20 - 1000).astype(np.int16))
    relative = Normalization("zscore", per)
    assert said(other, trained, relative) == []
    assert len(said(other, trained, replace(relative, scheme="none"))) == 1


@pytest.mark.parametrize("per", ["global", "volume"])
def test_values_that_were_cut_off_are_told_for_any_normalisation(per):
    whole = (scan() * 20).astype(np.uint16)
    cut = whole.clip(0, 255).astype(np.uint8)
    (line,) = said(measured(cut), measured(whole), Normalization("zscore", per))
    assert "5 % and more are 255, the largest of uint8, and the training had uint16" in line
    assert said(measured(cut), measured(cut), Normalization("zscore", per)) == []


def test_a_constant_input_is_told_unless_the_training_was_constant(trained):
    constant = measured(np.full((5, 6, 7), 3, np.uint8))
    (line,) = said(constant, trained, Normalization("zscore", "patch"))
    assert line.startswith(
        "note: raw: values of channel 0 (scan): all 210 that were looked at are 3"
    )
    assert said(constant, constant) == []


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_channels_are_called_by_their_labels_or_else_by_their_arrays(store, tmp_path, zarr_format):
    omero = {"omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}}
    plain = open_volume(store("ct", np.zeros((2, 4, 5), np.uint8)))
    two = volume(np.zeros((2, 3, 4, 5), np.uint8), "a/scan.ome.zarr/0")
    assert channel_names([plain, two]) == ["ct", "scan:0", "scan:1"]
    group = tmp_path / "scan.ome.zarr"
    group.mkdir()
    if zarr_format == 2:
        (group / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zattrs").write_text(json.dumps(omero))
    else:
        node = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": omero}}
        (group / "zarr.json").write_text(json.dumps(node))
    labelled = replace(two, location=f"{group}/s0")
    assert channel_names([labelled, plain]) == ["DAPI", "GFP", "ct"]
    assert channel_names([replace(plain, location=f"{group}/s0")]) == ["scan"], "of another count"


def test_the_same_names_in_another_order_are_told(trained):
    before = [replace(trained[0], name=name) for name in ("ct", "dose")]
    assert said(before, before) == []
    assert said([replace(one, name=f"{one.name}2") for one in before], before) == []
    assert said(before[::-1], before) == [
        "note: raw: the channels are dose, ct, those of the training ct, dose; check their order"
    ]
