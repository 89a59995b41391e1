"""Statistics depend on values and places alone, and a volume that is mostly empty is not erased."""

import numpy as np
import pytest
import zarr

from vcmodels.data import normalization
from vcmodels.data.normalization import Normalization
from vcmodels.data.oddities import lost_values, odd_statistics
from vcmodels.data.statistics import Accumulator
from vcmodels.volumes import ArrayVolume, Volume, open_volume

SHAPE = (33, 50, 70)
SCHEMES = ("zscore", "ct", "minmax", "percentile")


def specimen(fill=0, dtype="i2", seed=0):
    """Noise in a corner of an empty field."""
    image = np.full(SHAPE, fill, dtype)
    image[:16, :24, :40] = np.random.default_rng(seed).integers(80, 120, (16, 24, 40))
    return image


def in_memory(image):
    return ArrayVolume.of(image, (1.0, 1.0, 1.0), "array")


def measured(volume, scheme="percentile", **how):
    return Normalization(scheme, "volume", **how).of_volume([volume], volume.box)


STORES = {
    "v2, absent": {"zarr_format": 2, "chunks": (16, 16, 16)},
    "v2, stored": {"zarr_format": 2, "chunks": (16, 16, 16), "keep": True},
    "v2, long chunks": {"zarr_format": 2, "chunks": (33, 7, 70)},
    "v3, absent": {"zarr_format": 3, "chunks": (8, 16, 32)},
    "v3, stored": {"zarr_format": 3, "chunks": (8, 16, 32), "keep": True},
    "v3, shards": {"zarr_format": 3, "chunks": (8, 8, 8), "shards": (16, 32, 32)},
    "another fill value": {"zarr_format": 3, "chunks": (16, 16, 16), "fill": 99},
}


@pytest.mark.parametrize("fill", [0, -5, 300])
def test_equal_voxels_have_equal_statistics_however_they_are_stored(tmp_path, fill):
    image = specimen(fill)
    expected = measured(in_memory(image))
    for number, (name, how) in enumerate(STORES.items()):
        place, options = str(tmp_path / f"{number}.zarr"), dict(how)
        array = zarr.create_array(
            place,
            shape=SHAPE,
            dtype=image.dtype,
            fill_value=options.pop("fill", fill),
            config={"write_empty_chunks": options.pop("keep", False)},
            **options,
        )
        array[...] = image
        assert measured(open_volume(place)) == expected, name


def test_a_sample_of_a_large_volume_is_the_same_for_equal_voxels(tmp_path, monkeypatch):
    """Where cubes are drawn: from mostly empty ones, until enough of them hold something."""
    for name, value in {
        "CUBE": 8,
        "COUNTED_CUBES": 6,
        "TRIED_CUBES": 150,
        "READ_AT_ONCE": 3,
    }.items():
        monkeypatch.setattr(normalization, name, value)
    image = specimen()
    found = []
    for number, keep in enumerate((False, True)):
        place, chunks = str(tmp_path / f"{number}.zarr"), ((8, 8, 8), (16, 20, 70))[number]
        array = zarr.create_array(
            place, shape=SHAPE, chunks=chunks, dtype="i2", config={"write_empty_chunks": keep}
        )
        array[...] = image
        volume = open_volume(place)
        found.append(measured(volume))
        looked = sum(1 for _ in normalization.cubes(volume, volume.box, volume.read, 6, 150, 16))
        assert 6 < looked < 5 * 7 * 9
    assert found[0] == found[1] == measured(in_memory(image))
    assert found[0][0].mean == pytest.approx(image[:16, :24, :40].mean(), rel=0.01)


def test_what_is_no_value_does_not_count_stored_or_not(tmp_path):
    image = specimen(0, "f4")
    image[image == 0] = np.nan
    known = image[np.isfinite(image)].astype(np.float64)
    for keep in (False, True):
        place = str(tmp_path / f"{keep}.zarr")
        array = zarr.create_array(
            place, shape=SHAPE, dtype="f4", chunks=(16, 16, 16), fill_value=np.nan,
            config={"write_empty_chunks": keep},
        )  # fmt: skip
        array[...] = image
        (found,) = measured(open_volume(place))
        np.testing.assert_allclose((found.mean, found.sd), (known.mean(), known.std()))


def test_what_is_not_stored_is_not_read(store, monkeypatch):
    image = specimen()
    volume = open_volume(store("raw", image, chunks=(16, 16, 16)))
    monkeypatch.setattr(normalization, "WHOLE_CUBE", 16)
    expected, read, original = measured(in_memory(image)), [], Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, box: read.append(box) or original(self, box))
    assert measured(volume) == expected
    assert len(read) == 1 * 2 * 3 < 3 * 4 * 5


def test_empty_blocks_do_not_count():
    """Whatever share of a volume they are, the object has the same numbers."""
    image = np.zeros((64, 96, 128), np.uint8)
    scan = np.random.default_rng(1).integers(50, 200, (32, 48, 64)).astype(np.uint8)
    image[16:48, 16:64, 32:96] = scan
    small, large = measured(in_memory(image[:48, :64, :96])), measured(in_memory(image))
    for found in (*small, *large):
        assert (found.mean, found.sd) == pytest.approx((scan.mean(), scan.std()))
        assert (found.low, found.high) == tuple(np.percentile(scan, (0.5, 99.5)))
        assert (found.minimum, found.maximum) == (0, scan.max())


def test_regions_of_one_value_count_next_to_a_part_that_varies():
    image = np.zeros((48, 48, 48), np.uint8)
    image[:16], image[16:24] = 100, 200
    image[32:, 32:, 32:] = np.random.default_rng(0).integers(20, 30, (16, 16, 16))
    (found,) = measured(in_memory(image), "minmax")
    out = Normalization("percentile", "volume").apply(image[None], (found,))
    levels = [float(out[0, z, 0, 0]) for z in (40, 0, 20)]
    assert levels[0] < levels[1] < levels[2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.02, 0.2])
def test_sparse_objects_in_a_field_of_one_value_stay_apart(scheme, share):
    rng = np.random.default_rng(2)
    image = np.full((40, 50, 60), 7, np.uint8)
    places = rng.random(image.shape) < share
    image[places] = rng.integers(100, 200, int(places.sum()))
    found = measured(in_memory(image), scheme)
    out = Normalization(scheme, "volume").apply(image[None], found)[0]
    dark, bright = out[image == 7].mean(), out[image > 180]
    middle = out[(image > 120) & (image < 150)].mean()
    assert np.isfinite(out).all()
    assert bright.mean() - dark > 0.3
    assert bright.mean() - middle > 0.1
    if share < 0.1:
        rest = image[places].astype(np.float64)
        assert found[0].background == 7
        assert (found[0].mean, found[0].sd) == pytest.approx((rest.mean(), rest.std()), rel=0.05)
        lines = list(odd_statistics(scheme, found, "raw"))
        assert ["nearly all voxels are 7" in line for line in lines] == [True] * (
            scheme != "minmax"
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_values_stay_apart_however_rare_one_is(scheme):
    image = np.zeros((20, 30, 40), np.float32)
    image[::7, ::9, ::11] = 0.25
    out = Normalization(scheme, "volume").apply(image[None], measured(in_memory(image), scheme))
    assert out.max() - out.min() > 0.5


def test_a_patch_with_few_objects_is_not_clipped_to_one_value():
    patch = np.zeros((1, 20, 20, 20), np.uint8)
    patch[0, 3, 3, 3:8] = (50, 60, 70, 80, 90)
    out = Normalization("percentile", "patch").apply(patch)
    assert len(np.unique(out[0, 3, 3, 3:8])) == 5


def test_a_large_offset_is_no_constant():
    values = 10**9 + np.random.default_rng(0).integers(-100, 100, (10, 20, 30))
    out = Normalization("zscore", "volume").apply(values[None], measured(in_memory(values)))
    assert out.std() == pytest.approx(1, rel=1e-3)


def test_an_object_that_no_draw_meets_is_measured(tmp_path):
    """One chunk of 10^12 voxels, found by the listing."""
    place = str(tmp_path / "huge.zarr")
    array = zarr.create_array(place, shape=(10**4, 10**4, 10**4), chunks=(32, 32, 32), dtype="u1")
    object_ = np.random.default_rng(0).integers(1, 250, (32, 32, 32)).astype(np.uint8)
    array[6400:6432, 320:352, 9600:9632] = object_
    (found,) = measured(open_volume(place))
    assert found.mean == pytest.approx(object_.mean())


def test_constants_and_specks_that_set_the_scale_are_told():
    constant = measured(in_memory(np.full(SHAPE, 3.5)))
    assert list(odd_statistics("zscore", constant, "raw")) == [
        "normalization: raw, channel 0: all voxels looked at are 3.5: they become 0"
    ]
    image = np.random.default_rng(0).normal(100, 10, SHAPE)
    assert list(odd_statistics("zscore", measured(in_memory(image)), "raw")) == []
    image[3, 4, 5:8] = 1e9
    for scheme, count in (("zscore", 1), ("minmax", 1), ("percentile", 0), ("ct", 0)):
        found = measured(in_memory(image))
        assert len(list(odd_statistics(scheme, found, "raw"))) == count, scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_volume_that_other_statistics_erase_is_told(scheme):
    image = np.random.default_rng(0).normal(100, 10, SHAPE)
    whole = measured(in_memory(image))
    for factor, offset, count in ((1, 0, 0), (1.2, 5, 0), (1e-3, 0, 1), (30, 5e3, 1)):
        own = measured(in_memory(image * factor + offset))
        lines = list(lost_values(scheme, whole, own, "raw", "convert it"))
        assert len(lines) == count, (factor, offset)
        assert all(line.endswith("other volumes; convert it") for line in lines)


def test_blocks_of_many_values_take_little_memory():
    accumulator = Accumulator()
    for value in range(5000):
        accumulator.add_block(float(value), 10**6)
    found = accumulator.statistics((0.5, 99.5))
    assert found.mean == pytest.approx(2499.5)
    assert found.low == pytest.approx(25, abs=2)
