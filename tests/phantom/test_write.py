import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.phantom import make_phantom, write_phantom
from vcmodels.phantom.scroll import PressedWinding
from vcmodels.volumes import open_volume

SHAPE = (30, 75, 66)


def read(path):
    volumes = [
        open_volume(f"{path}/{name}", key=name, channels=channels)
        for name, channels in (("ct", None), ("sheet", None), ("normals", 3), ("wraps", None))
    ]
    return [volume.read(volume.box) for volume in volumes]


@pytest.mark.parametrize(
    ("chunks", "zarr_format", "spacing"),
    [((7, 70, 11), 2, None), ((16, 16, 16), 3, (2, 6)), ((80, 80, 80), 2, (3, 4))],
)
def test_the_voxels_do_not_depend_on_the_chunks(tmp_path, chunks, zarr_format, spacing):
    path = tmp_path / "a.zarr"
    write_phantom(
        str(path), shape=SHAPE, seed=4, spacing=spacing, chunks=chunks, zarr_format=zarr_format
    )
    winding = () if spacing is None else (PressedWinding.between(*spacing),)
    at_once = make_phantom(SHAPE, Box((0, 0, 0), SHAPE), 4, *winding)
    for stored, expected in zip(read(path), at_once, strict=True):
        np.testing.assert_array_equal(stored, expected)


def test_another_seed_is_another_scroll():
    first, second = (make_phantom(SHAPE, Box((0, 0, 0), SHAPE), seed) for seed in (0, 1))
    for a, b in zip(first, second, strict=True):
        assert np.mean(a != b) > 0.1


def best_dice(image, sheet):
    """Of the best global threshold, chosen on the labels themselves."""
    known = sheet != 2
    values, truth = image[known], sheet[known] == 1
    order = np.argsort(-values)
    hits = np.cumsum(truth[order])
    return (2 * hits / (np.arange(1, truth.size + 1) + truth.sum())).max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_global_threshold_finds_the_sheet(seed):
    shape = (40, 144, 128)
    ct, sheet, *_ = make_phantom(shape, Box((0, 0, 0), shape), seed)
    image = ct[0].astype(np.float32)
    for sigma in (0, 1):
        assert 0.5 < best_dice(gaussian_filter(image, sigma), sheet[0]) < 0.75
    assert np.mean((ct == 0) | (ct == 255)) < 0.01


def test_labels_and_normals_agree():
    _, sheet, codes, wraps = make_phantom((48, 96, 96), Box((0, 0, 0), (48, 96, 96)))
    np.testing.assert_array_equal(wraps == 65535, sheet == 2)
    np.testing.assert_array_equal(wraps == 0, sheet == 0)
    known = (codes != 0).any(axis=0)
    assert known[sheet[0] == 1].mean() > 0.999
    assert not known[sheet[0] == 2].any()
    assert set(np.unique(sheet)) == {0, 1, 2}
    assert 0.15 < np.mean(sheet == 1) < 0.4
    vectors = codes[:, known] / 32767.5 - 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), 1, atol=1e-4)


def test_normals_are_those_of_the_stored_sheet():
    """Seen from the labels alone: across the sheet's outer face, the mask falls along the normal."""
    shape = (48, 96, 96)
    _, sheet, codes, _ = make_phantom(shape, Box((0, 0, 0), shape))
    smooth = gaussian_filter((sheet[0] == 1).astype(np.float64), 1.5)
    x, y, z = codes / 32767.5 - 1
    slope = np.stack(np.gradient(smooth))
    steepness = np.sqrt((slope**2).sum(axis=0))
    face = (codes != 0).any(axis=0) & (steepness > 0.1)
    cosine = (slope * np.stack([z, y, x])).sum(axis=0)[face] / steepness[face]
    assert np.median(np.abs(cosine)) > 0.985


def test_spacing_and_unit_are_stored(tmp_path):
    write_phantom(str(tmp_path / "a.zarr"), shape=(8, 24, 20), chunks=(8, 8, 8))
    for name in ("ct", "sheet"):
        volume = open_volume(f"{tmp_path}/a.zarr/{name}", key=name)
        assert (volume.spacing, volume.unit) == ((7.91, 7.91, 7.91), "micrometer")
        assert volume.chunks == (8, 8, 8)
    normals = open_volume(f"{tmp_path}/a.zarr/normals", key="normals", channels=3)
    assert normals.attributes["vector_order"] == "xyz"
    assert (normals.dtype, normals.axes.channel) == (np.uint16, 0)


def test_progress_reaches_the_total_and_nothing_half_made_stays(tmp_path):
    seen = []
    (tmp_path / ".a.zarr.partial").mkdir()
    (tmp_path / ".a.zarr.partial" / "litter").touch()
    write_phantom(
        str(tmp_path / "a.zarr"), shape=(70, 24, 20), chunks=(10, 8, 8),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(70 * 24 * 20, 70 * 24 * 20)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert not (tmp_path / "a.zarr" / "litter").exists()


def test_an_existing_path_is_never_touched(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_phantom(str(tmp_path / "a.zarr"), shape=(8, 8, 8))
    assert not list((tmp_path / "a.zarr").iterdir())


@pytest.mark.parametrize("wrong", [{"shape": (8, 8)}, {"shape": (8, 0, 8)}, {"chunks": (8, 8, -8)}])
def test_sizes_that_are_none_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="three positive numbers"):
        write_phantom(str(tmp_path / "a.zarr"), **wrong)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_volume(tmp_path):
    def peak(depth):
        tracemalloc.start()
        write_phantom(str(tmp_path / f"{depth}.zarr"), shape=(depth, 64, 64), chunks=(32, 32, 32))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(256) < 1.15 * peak(64)
