"""Surface metrics against SciPy in memory, MONAI, `surface-distance`, and figures by hand."""

import gc
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from tests.metrics.blocks import RegionPair, figures, measured
from vcmodels.fields.surfaces import corner_codes, surfel_areas
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics import METRICS, nearest, surface
from vcmodels.metrics.surface import Distances, SurfaceMetric

VOXELS = SurfaceMetric(compares="masks")
SURFELS = replace(VOXELS, elements="surfels")
SPACINGS = ((1.0, 1.0, 1.0), (2.5, 0.8, 1.1), (0.3, 0.3, 0.9))


def random_regions(shape, seed, count=1):
    """Blobs, a moved and roughened copy of them, and now and then noise."""
    rng = np.random.default_rng(seed)
    sigma = rng.choice([0.0, 1.0, 2.5])
    field = ndimage.gaussian_filter(rng.standard_normal((count, *shape)), (0, sigma, sigma, sigma))
    field /= field.std()
    moved = np.roll(field, tuple(rng.integers(-2, 3, 3)), (1, 2, 3))
    return field > 0.7, moved + 0.3 * rng.standard_normal(field.shape) > rng.uniform(0, 1.5)


def by_scipy(predicted, labelled, spacing):
    """The distances of both directions, from whole distance transforms."""
    one, other = (region & ~ndimage.binary_erosion(region) for region in (predicted, labelled))
    to_other = ndimage.distance_transform_edt(~other, spacing)[one]
    return to_other, ndimage.distance_transform_edt(~one, spacing)[other]


def figures_of(there, back, tolerance):
    together = np.concatenate([there, back])
    return {
        "assd": [together.mean()],
        "hd95": [max(np.percentile(there, 95), np.percentile(back, 95))],
        "hd": [together.max()],
        "surface_dice": [(together <= tolerance * (1 + 1e-9)).mean()],
    }


def assert_equal(found, wanted, rel=1e-9):
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=rel, nan_ok=True), name


@pytest.mark.parametrize("seed", range(30))
def test_any_blocks_give_the_figures_of_scipy_in_memory(seed):
    shape, spacing = (19, 23, 31), SPACINGS[seed % 3]
    predicted, labelled = random_regions(shape, seed)
    wanted = figures_of(*by_scipy(predicted[0], labelled[0], spacing), max(spacing))
    for block in ((19, 23, 31), ((8, 8, 8), (5, 23, 7), (64, 6, 9), (13, 12, 40))[seed % 4]):
        pair = RegionPair(predicted, labelled, spacing, corner=(-5, 100, 3))
        assert_equal(figures(VOXELS, pair, block), wanted)


def elements(region, spacing, kind):
    """Places and weights of the elements of a surface, one voxel or corner after another."""
    axes = [axis for axis in range(3) if region.shape[axis] > 1]
    padded = np.pad(region, [(int(n > 1),) * 2 for n in region.shape])
    if kind == "surfels":
        areas = surfel_areas(spacing)[corner_codes(padded, axes)]
        return np.argwhere(areas) * spacing, areas[areas > 0]
    inner = [v for v in np.argwhere(region) if on_surface(region, v, axes)]
    return np.array(inner).reshape(-1, 3) * spacing, np.ones(len(inner))


def on_surface(region, voxel, axes):
    for axis in axes:
        for step in (-1, 1):
            there = voxel.copy()
            there[axis] += step
            if not 0 <= there[axis] < region.shape[axis] or not region[tuple(there)]:
                return True
    return False


def by_hand(predicted, labelled, spacing, kind):
    """The two tables of distances, from each element to each."""
    (a, weight_a), (b, weight_b) = (elements(r, spacing, kind) for r in (predicted, labelled))
    if not len(a) or not len(b):
        return (np.full(len(a), np.inf), weight_a), (np.full(len(b), np.inf), weight_b)
    apart = cdist(a, b)
    return (apart.min(1), weight_a), (apart.min(0), weight_b)


@st.composite
def pairs(draw):
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9]))
    regions = rng.random((2, 2, *shape)) < share
    origin = tuple(draw(st.integers(-20, 20)) for _ in range(3))
    return RegionPair(*regions, draw(st.sampled_from(SPACINGS)), origin)


@pytest.mark.parametrize("kind", ["voxels", "surfels"])
@settings(max_examples=60, deadline=None)
@given(pair=pairs(), block=st.tuples(*[st.integers(1, 10)] * 3))
def test_every_distance_is_that_to_the_nearest_element_anywhere(kind, pair, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "HALO", 2)
        patch.setattr(nearest, "CELL", 3)
        patch.setattr(nearest, "_KEPT_BYTES", 500)
        joined = measured(replace(VOXELS, elements=kind), pair, block)
    tables = surface._tables(joined)
    for number in range(2):
        wanted = by_hand(pair.predicted[number], pair.labelled[number], pair.spacing, kind)
        for table, (values, weights) in zip(tables[2 * number :], wanted, strict=False):
            by_hand_too = Distances.of(values, weights)
            np.testing.assert_allclose(table.values, by_hand_too.values, rtol=1e-11)
            np.testing.assert_allclose(table.weights, by_hand_too.weights, rtol=1e-11)


@pytest.mark.parametrize("axis", range(3))
def test_a_moved_box_is_as_far_as_it_was_moved_in_the_unit_of_the_spacing(axis):
    spacing = (4.0, 1.5, 0.25)
    labelled = np.zeros((1, 30, 34, 37), bool)
    labelled[0, 4:10, 5:14, 6:18] = True
    # So far that the boxes are apart: a face of one is nearest to the facing face of the other.
    step = 20 - axis
    predicted = np.roll(labelled, step, axis + 1)
    size = (6, 9, 12)
    gap = step - size[axis] + 1
    face = math.prod(n for a, n in enumerate(size) if a != axis)
    rim = face - math.prod(n - 2 for a, n in enumerate(size) if a != axis)
    counts = np.array([face, *[rim] * (size[axis] - 2), face])
    away = np.arange(gap, gap + size[axis]) * spacing[axis]
    found = figures(VOXELS, RegionPair(predicted, labelled, spacing), (7, 8, 9))
    assert found["hd"] == pytest.approx([step * spacing[axis]])
    assert found["assd"] == pytest.approx([(away * counts).sum() / counts.sum()])
    assert found["hd95"] == pytest.approx([np.percentile(np.repeat(away, counts), 95)])
    assert found["surface_dice"] == pytest.approx([counts[away <= 4.0].sum() / counts.sum()])
    near = replace(VOXELS, tolerances=(gap * spacing[axis],))
    found = figures(near, RegionPair(predicted, labelled, spacing), (7, 8, 9))
    assert found["surface_dice"] == pytest.approx([face / counts.sum()])


def as_tensors(*regions):
    return [torch.from_numpy(region)[None].float() for region in regions]


@pytest.mark.filterwarnings("ignore:.*get_mask_edges.always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(13, 17, 19), (1, 17, 19)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_monai(seed, shape):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    spacing = SPACINGS[1]
    regions = random_regions(shape, seed, count=2)
    # MONAI takes a picture for one of two axes.
    pair = [tensor.squeeze(2) for tensor in as_tensors(*regions)]
    options = {"include_background": True, "spacing": spacing[-(pair[0].ndim - 2) :]}
    tolerance = {"class_thresholds": [2.5, 2.5], **options}
    theirs = {
        "assd": compute_average_surface_distance(*pair, symmetric=True, **options),
        "hd95": compute_hausdorff_distance(*pair, percentile=95, **options),
        "hd": compute_hausdorff_distance(*pair, **options),
        "surface_dice": compute_surface_dice(*pair, **tolerance),
    }
    wanted = {name: values[0].tolist() for name, values in theirs.items()}
    ours = replace(VOXELS, tolerances=(2.5,))
    # Its distances and the ranks of its percentiles are float32.
    assert_equal(figures(ours, RegionPair(*regions, spacing), (6, 7, 8)), wanted, rel=1e-5)
    by_area = compute_surface_dice(*pair, use_subvoxels=True, **tolerance)[0].tolist()
    found = figures(replace(SURFELS, tolerances=(2.5,)), RegionPair(*regions, spacing), (6, 7, 8))
    assert found["surface_dice"] == pytest.approx(by_area, rel=1e-5)


@pytest.mark.parametrize("shape", [(13, 17, 19), (1, 17, 19)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_surfels_give_the_figures_of_the_package_surface_distance(seed, shape):
    import surface_distance

    spacing = SPACINGS[1]
    predicted, labelled = random_regions(shape, seed)
    lengths = [length for length, n in zip(spacing, shape, strict=True) if n > 1]
    with warnings.catch_warnings():
        # It calls scipy.ndimage by names that were given up.
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = surface_distance.compute_surface_distances(
            labelled[0].squeeze(), predicted[0].squeeze(), lengths
        )
    there, back = surface_distance.compute_average_surface_distance(theirs)
    area, other_area = (theirs[f"surfel_areas_{name}"].sum() for name in ("gt", "pred"))
    wanted = {
        # It gives the two means; ours is that of both surfaces together.
        "assd": [(there * area + back * other_area) / (area + other_area)],
        "hd95": [surface_distance.compute_robust_hausdorff(theirs, 95)],
        "hd": [surface_distance.compute_robust_hausdorff(theirs, 100)],
        "surface_dice": [surface_distance.compute_surface_dice_at_tolerance(theirs, 2.5)],
    }
    ours = replace(SURFELS, tolerances=(2.5,))
    assert_equal(figures(ours, RegionPair(predicted, labelled, spacing), (6, 7, 8)), wanted)


@pytest.mark.parametrize("metric", [VOXELS, SURFELS], ids=["voxels", "surfels"])
@pytest.mark.parametrize("axis", range(3))
def test_a_picture_has_a_contour_along_whichever_axis_it_is_flat(metric, axis):
    predicted, labelled = random_regions((1, 17, 19), 1)
    spacing = (9.0, 0.8, 1.1)
    turn = (0, *np.roll([1, 2, 3], axis))
    turned = [np.ascontiguousarray(r.transpose(turn)) for r in (predicted, labelled)]
    lengths = tuple(spacing[a - 1] for a in turn[1:])
    found = figures(metric, RegionPair(*turned, lengths), (4, 5, 6))
    assert_equal(found, figures(metric, RegionPair(predicted, labelled, spacing), (1, 20, 20)))
    # The tolerance is the longest edge of a pixel: how thick the picture is says nothing.
    at = replace(metric, tolerances=(1.1,))
    assert found == figures(at, RegionPair(*turned, lengths), (4, 5, 6))
    assert 0 < found["surface_dice"][0] < 1


@pytest.mark.parametrize("metric", [VOXELS, SURFELS], ids=["voxels", "surfels"])
def test_an_empty_region_has_no_distance_and_two_have_no_figure_at_all(metric):
    full, empty = np.ones((1, 5, 6, 7), bool), np.zeros((1, 5, 6, 7), bool)
    for one, other, dice in ((full, empty, 0), (empty, full, 0), (empty, empty, math.nan)):
        found = figures(metric, RegionPair(one, other), (3, 3, 3))
        wanted = {**{name: [math.nan] for name in ("assd", "hd95", "hd")}, "surface_dice": [dice]}
        assert_equal(found, wanted)
    found = figures(metric, RegionPair(full, full), (3, 3, 3))
    assert_equal(found, {"assd": [0], "hd95": [0], "hd": [0], "surface_dice": [1]})


def test_each_class_has_its_own_figures():
    predicted, labelled = random_regions((13, 17, 19), 4, count=3)
    labelled[1] = False
    pair = RegionPair(predicted, labelled, SPACINGS[1])
    found = figures(VOXELS, pair, (6, 7, 8))
    for number in range(3):
        one = RegionPair(predicted[[number]], labelled[[number]], SPACINGS[1])
        wanted = figures(VOXELS, one, (6, 7, 8))
        assert_equal({name: [values[number]] for name, values in found.items()}, wanted)
    assert math.isnan(found["hd"][1])


def test_a_length_is_within_itself_however_it_was_rounded():
    labelled = np.zeros((1, 4, 4, 12), bool)
    labelled[..., :5] = True
    pair = RegionPair(np.roll(labelled, 3, 3), labelled, (0.1, 0.1, 0.1))
    assert 3 * 0.1 > 0.3
    found = figures(replace(VOXELS, tolerances=(0.3, 0.2999)), pair, (4, 4, 4))
    assert found["surface_dice_at_0.3"] == [1.0]
    assert found["surface_dice_at_0.2999"][0] < 1


def test_several_tolerances_have_a_name_each():
    metric = replace(VOXELS, tolerances=(1.0, 2.5))
    names = ["assd", "hd95", "hd", "surface_dice_at_1", "surface_dice_at_2.5"]
    assert list(metric.better) == names
    assert list(metric.better.values()) == ["min"] * 3 + ["max"] * 2
    pair = RegionPair(*random_regions((9, 10, 11), 0), (1.0, 2.0, 3.0))
    found = figures(metric, pair, (20, 20, 20))
    assert list(found) == names
    for name, tolerance in (("surface_dice_at_1", 1.0), ("surface_dice_at_2.5", 2.5)):
        one = figures(replace(VOXELS, tolerances=(tolerance,)), pair, (20, 20, 20))
        assert found[name] == one["surface_dice"]


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, math.nan])
def test_a_tolerance_that_means_nothing_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerances must be 0 or more, got"):
        replace(VOXELS, tolerances=(1.0, tolerance))


def test_unknown_elements_are_refused():
    with pytest.raises(ValueError, match='made of "faces"; choose from voxels, surfels'):
        replace(VOXELS, elements="faces")


def test_parts_join_in_any_order_and_through_files(tmp_path, monkeypatch):
    pair = RegionPair(*random_regions((19, 23, 31), 5, count=2), SPACINGS[1])
    wanted = figures(VOXELS, pair, (50, 50, 50))
    parts = []
    for number, box in enumerate(blocks_of(pair.box, (8, 8, 8))):
        np.savez(tmp_path / f"{number}.npz", **VOXELS.measure(pair, box))
        with np.load(tmp_path / f"{number}.npz") as stored:
            parts.append((box, dict(stored)))
    for most in (1, 100, 1 << 20):
        monkeypatch.setattr(surface, "_MOST_ROWS", most)
        assert_equal(VOXELS.figures(VOXELS.join(iter(parts))), wanted)
        assert_equal(VOXELS.figures(VOXELS.join(iter(parts[::-1]))), wanted)


def test_too_many_different_distances_are_rounded_but_lose_no_voxel(monkeypatch):
    shape, spacing = (19, 23, 31), (1.01, 0.83, 1.17)
    predicted, labelled = random_regions(shape, 5)
    labelled[:, :, :, 8:] = False
    wanted = figures_of(*by_scipy(predicted[0], labelled[0], spacing), max(spacing))
    monkeypatch.setattr(surface, "_MOST_VALUES", 10)
    joined = measured(VOXELS, RegionPair(predicted, labelled, spacing), (8, 8, 8))
    assert len(joined["values"]) > 10
    mantissas = np.frexp(joined["values"])[0] * 2**24
    np.testing.assert_array_equal(mantissas, np.rint(mantissas))
    assert_equal(VOXELS.figures(joined), wanted, rel=1e-7)


def test_the_curve_is_the_surface_dice_at_every_tolerance():
    pair = RegionPair(*random_regions((19, 23, 31), 5, count=2), SPACINGS[1])
    joined = measured(VOXELS, pair, (8, 8, 8))
    curves = VOXELS.curves(joined)
    assert list(curves) == ["surface Dice, 1", "surface Dice, 2"]
    for number, curve in enumerate(curves.values()):
        assert curve.y[-1] == 1.0
        assert 5 < len(curve.x) <= 100
        at = replace(VOXELS, tolerances=curve.x).figures(joined)
        assert curve.y == pytest.approx([at[n][number] for n in at if "dice" in n])
    pair.labelled[:] = False
    joined = measured(VOXELS, RegionPair(pair.predicted, pair.labelled), (9, 9, 9))
    assert VOXELS.curves(joined) == {}


def far_pair():
    """A plane of specks at one end, and little or nothing at the other."""
    predicted, labelled = np.zeros((2, 1, 40, 48, 80), bool)
    predicted[0, ::7, ::7, :10:5] = True
    labelled[0, 3, 4, 77:] = True
    return RegionPair(predicted, labelled, (1.0, 2.0, 0.5))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_far_or_empty_surface_is_searched_for_only_once(is_there, monkeypatch):
    monkeypatch.setattr(nearest, "CELL", 16)
    monkeypatch.setattr(nearest, "HALO", 4)
    if not is_there:  # That a cell is empty is known without keeping anything of it.
        monkeypatch.setattr(nearest, "_KEPT_BYTES", 0)
    pair = far_pair()
    pair.labelled &= is_there
    block = (8, 8, 8)
    found = figures(VOXELS, pair, block)
    if is_there:
        wanted = by_scipy(pair.predicted[0], pair.labelled[0], pair.spacing)
        assert_equal(found, figures_of(*wanted, 2.0))
    # Each block with its margins once, each cell with its own at most once.
    blocks = [box.grow((5, 5, 5)).shape for box in blocks_of(pair.box, block)]
    cells = [box.grow((1, 1, 1)).shape for box in blocks_of(pair.box, (16, 16, 16))]
    assert sum(box.voxels for box in pair.boxes) <= sum(map(math.prod, blocks + cells))
    assert len(pair.boxes) > len(blocks)


def test_what_a_search_keeps_is_bounded_and_forgotten_with_its_pair(monkeypatch):
    monkeypatch.setattr(nearest, "CELL", 8)
    monkeypatch.setattr(nearest, "HALO", 2)
    monkeypatch.setattr(nearest, "_KEPT_BYTES", 5000)
    pair = RegionPair(*random_regions((30, 30, 30), 5))
    pair.labelled[:, :, :, 4:] = False
    before = len(nearest._SEARCHES)
    found = figures(VOXELS, pair, (8, 8, 8))
    assert_equal(found, figures_of(*by_scipy(pair.predicted[0], pair.labelled[0], pair.spacing), 1))
    (search,) = [s for (key, _), s in nearest._SEARCHES.items() if key == id(pair)]
    kept = [nearest._bytes_of(cell) for cell in search._kept.values()]
    assert min(kept) > 0  # An empty cell takes memory too.
    assert 0 < sum(kept) == search._kept_bytes <= 5000
    del pair
    gc.collect()
    assert len(nearest._SEARCHES) == before


def test_threads_share_a_search_and_give_the_same(monkeypatch):
    monkeypatch.setattr(nearest, "CELL", 8)
    monkeypatch.setattr(nearest, "HALO", 2)
    monkeypatch.setattr(nearest, "_KEPT_BYTES", 2000)
    pair = RegionPair(*random_regions((30, 31, 32), 5, count=2), SPACINGS[1])
    pair.labelled[0, :, :, 4:] = False
    boxes = list(blocks_of(pair.box, (8, 8, 8)))
    ready = threading.Barrier(4)

    def measure(box):
        if box in boxes[:4]:
            ready.wait(timeout=30)
        return box, VOXELS.measure(pair, box)

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(measure, boxes))
    wanted = figures(VOXELS, RegionPair(pair.predicted, pair.labelled, pair.spacing), (40, 40, 40))
    assert_equal(VOXELS.figures(VOXELS.join(parts)), wanted)


def test_blocks_without_a_region_are_read_once_and_keep_nothing():
    nothing = np.zeros((1, 20, 20, 20), bool)
    pair = RegionPair(nothing, nothing)
    part = VOXELS.measure(pair, Box((0, 0, 0), (10, 10, 10)))
    assert len(pair.boxes) == 1
    assert part["values"].size == 0
    assert part["rows"].tolist() == [0, 0]


def test_masks_and_classes_are_measured_by_it():
    metric = METRICS["surface"]
    assert isinstance(metric, SurfaceMetric)
    assert metric.fits("masks")
    assert metric.fits("classes")
    assert not metric.fits("values")
