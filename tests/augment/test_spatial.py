"""Geometric augmentation against gradients of the transformed image: it never saw the rule."""

import pickle

import numpy as np
import pytest
import torch
from pydantic import Field

from vcmodels.augment import (
    DEFAULT_AUGMENTATIONS,
    LabelCrop,
    SpatialTransform,
    apply_spatial,
    sample_spatial,
)
from vcmodels.augment.geometric import Affine, Compress, Elastic, Flip, QuarterTurn, Shear, rotation
from vcmodels.augment.resample import read_smooth, turn_tensor
from vcmodels.augment.transform import Lattice
from vcmodels.geometry.boxes import Box, grow_shape
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget

ISOTROPIC = (1.0, 1.0, 1.0)
PATCH = (24, 28, 33)
TARGETS = {
    "normals": NormalsTarget(),
    "sheet": BinaryTarget(),
    "depth": RegressionTarget(channels=3),
}

WARPS = {
    "rotation": ([Affine(p=1, rotation_degrees=(40, 30, 25), scaling=(1, 1))], ISOTROPIC),
    "scaling": ([Affine(p=1, rotation_degrees=0, per_axis_scaling=True)], ISOTROPIC),
    "shear": ([Shear(p=1, slope=0.3)], ISOTROPIC),
    "elastic": ([Elastic(p=1, spacing=16, amplitude=6)], ISOTROPIC),
    "compress": ([Compress(p=1, factor=(0.7, 1.5))], ISOTROPIC),
    "compress along y": ([Compress(p=1, factor=(0.7, 1.5), direction="y")], (0.4, 0.2, 0.3)),
    "all": (
        [Flip(p=0.5), QuarterTurn(p=1), Affine(p=1, per_axis_scaling=True), Elastic(p=1)],
        ISOTROPIC,
    ),
    "thick slices": (
        [
            Flip(),
            QuarterTurn(p=1),
            Affine(p=1, rotation_degrees=(180, 20, 20), scaling=(0.9, 1.1)),
            Elastic(p=1, spacing=20, amplitude=6),
        ],
        (2.5, 1.0, 1.0),
    ),
    "three spacings": (
        [
            Flip(),
            QuarterTurn(p=1),
            Affine(p=1, per_axis_scaling=True),
            Shear(p=1),
            Elastic(p=1, spacing=20, amplitude=4),
        ],
        (0.4, 0.2, 0.3),
    ),
}


def waves(shape, spacing):
    """A sum of long plane waves (1, *shape) and its analytic unit gradient (3, *shape)."""
    rng = np.random.default_rng(3)
    place = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*place, indexing="ij")
    image, gradient = np.zeros(shape), np.zeros((3, *shape))
    for _ in range(3):
        wave = rng.normal(size=3)
        wave *= 2 * np.pi / (40 * min(spacing)) / np.linalg.norm(wave)
        phase = wave[0] * z + wave[1] * y + wave[2] * x + rng.uniform(0, 6)
        image += np.sin(phase)
        gradient += np.cos(phase) * wave[:, None, None, None]
    normals = gradient / np.linalg.norm(gradient, axis=0)
    return torch.tensor(image[None], dtype=torch.float32), torch.tensor(
        normals, dtype=torch.float32
    )


def angles_to_image_gradient(image, normals, spacing):
    """Degrees between normals and the gradient of the image where that is not tiny; inner voxels."""
    gradient = np.stack(np.gradient(image[0].double().numpy(), *spacing))
    length = np.linalg.norm(gradient, axis=0)
    strong = length > 0.5 * np.sqrt((length**2).mean())
    cosine = (gradient * normals.numpy()).sum(0) / np.maximum(length, 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    inner = (slice(2, -2),) * 3
    return angle[inner][strong[inner]]


def all_valid(labels):
    return {
        name: torch.ones(1, *label.shape[1:], dtype=torch.bool) for name, label in labels.items()
    }


def apply(transform, image, labels, valid=None, patch=PATCH, spacing=ISOTROPIC, targets=TARGETS):
    valid = valid or all_valid(labels)
    crops = {name: LabelCrop(label, valid[name], targets[name]) for name, label in labels.items()}
    image, moved = apply_spatial(transform, image, crops, patch, spacing)
    labels = {name: label.values for name, label in moved.items()}
    return image, labels, {name: label.valid for name, label in moved.items()}


def positions(shape):
    """The (z, y, x) index of each voxel, (3, *shape) float32: its own sampling map."""
    return torch.tensor(np.indices(shape), dtype=torch.float32)


class Recorder(RegressionTarget):
    """A target that keeps its label and remembers the Jacobian."""

    channels: int = 3
    jacobians: list = Field(default_factory=list)

    def turn(self, label, valid, jacobian, spacing):
        self.jacobians.append(jacobian)
        return label, valid


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_turned_normals_are_the_gradient_of_the_turned_image_bit_by_bit(symmetry):
    field = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    gradient = np.stack(np.gradient(field))
    transform = SpatialTransform(symmetry)
    patch = symmetry.turned_shape((6, 7, 8))
    image, labels, valid = apply(
        transform,
        torch.from_numpy(field[None].copy()),
        {"normals": torch.from_numpy(gradient), "sheet": torch.from_numpy(field[None].copy())},
        patch=patch,
    )
    np.testing.assert_array_equal(image[0], symmetry(field))
    np.testing.assert_array_equal(labels["sheet"][0], symmetry(field))
    np.testing.assert_array_equal(labels["normals"], np.stack(np.gradient(symmetry(field))))
    assert valid["normals"].shape == (1, *patch)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", WARPS, ids=str)
def test_normals_follow_the_gradient_of_the_warped_image(case, seed):
    augmentations, spacing = WARPS[case]
    transform = sample_spatial(augmentations, np.random.default_rng(seed), PATCH, spacing)
    image, normals = waves(transform.input_shape(PATCH, spacing), spacing)
    image, labels, _ = apply(transform, image, {"normals": normals}, spacing=spacing)
    angle = angles_to_image_gradient(image, labels["normals"], spacing)
    assert angle.size > 5000
    assert angle.mean() < 0.6
    assert np.percentile(angle, 99) < 3  # trilinear interpolation has kinks at voxel borders
    np.testing.assert_allclose(labels["normals"].norm(dim=0), 1, atol=1e-5)


@pytest.mark.parametrize("spacing", [ISOTROPIC, (2.0, 1.0, 1.5)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_radial_field_is_invariant_under_rotation_and_turns(seed, spacing):
    augmentations = [Flip(), QuarterTurn(), Affine(p=1, rotation_degrees=(60, 60, 60))]
    transform = sample_spatial(augmentations, np.random.default_rng(seed), PATCH, spacing)

    def radial(shape):
        side = np.asarray(spacing)[:, None, None, None]
        offset = (np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2) * side
        return offset / np.maximum(np.linalg.norm(offset, axis=0), 1e-9)

    crop = transform.input_shape(PATCH, spacing)
    label = torch.tensor(radial(crop), dtype=torch.float32)
    _, labels, _ = apply(transform, torch.zeros(1, *crop), {"normals": label}, spacing=spacing)
    cosine = (labels["normals"].numpy() * radial(PATCH)).sum(0)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    far = np.linalg.norm(
        np.indices(PATCH) - np.array([11.5, 13.5, 16])[:, None, None, None], axis=0
    )
    assert angle[far > 6].mean() < 0.2


@pytest.mark.parametrize("case", WARPS, ids=str)
def test_image_labels_and_masks_are_read_at_the_same_place(case):
    augmentations, spacing = WARPS[case]
    transform = sample_spatial(augmentations, np.random.default_rng(5), PATCH, spacing)
    crop = transform.input_shape(PATCH, spacing)
    place = positions(crop)
    index = torch.arange(np.prod(crop), dtype=torch.float32).view(1, *crop)
    stripes = (index.long() % 3 != 0) & (place[:1] > 2)
    linear = {"depth": place, "sheet": index}
    valid = all_valid(linear) | {"sheet": stripes}
    image, labels, masks = apply(transform, place, linear, valid, spacing=spacing)
    torch.testing.assert_close(labels["depth"], image, atol=1e-4, rtol=0)

    # The nearest voxel, named by its index, is where the image was read, to half a voxel.
    nearest = np.stack(np.unravel_index(labels["sheet"][0].long().numpy(), crop))
    assert np.abs(nearest - image.numpy()).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(masks["sheet"][0], stripes[0].numpy()[tuple(nearest)])
    assert masks["depth"].all()


@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_jacobian_is_the_derivative_of_where_the_image_was_read(case):
    augmentations, spacing = WARPS[case]
    transform = sample_spatial(augmentations, np.random.default_rng(6), PATCH, spacing)
    transform = SpatialTransform(matrix=transform.matrix, lattices=transform.lattices)
    recorder = Recorder()
    place = positions(transform.input_shape(PATCH, spacing))
    read, _, _ = apply(
        transform, place, {"depth": place}, spacing=spacing, targets={"depth": recorder}
    )
    (jacobian,) = recorder.jacobians
    side = np.asarray(spacing)
    physical = read.double().numpy() * side[:, None, None, None]
    slope = np.stack([np.gradient(component, *spacing) for component in physical])
    expected = jacobian.reshape(3, 3, *([1, 1, 1] if jacobian.ndim == 2 else PATCH)).numpy()
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    expected = np.broadcast_to(expected, slope.shape)
    np.testing.assert_allclose(slope[inner], expected[inner], atol=0.02)
    assert (np.linalg.det(np.moveaxis(expected, (0, 1), (-2, -1))) > 0).all()


def test_a_label_with_holes_is_averaged_over_its_valid_voxels_alone():
    transform = SpatialTransform(matrix=rotation(0, 20) @ rotation(2, 30))
    crop = transform.input_shape(PATCH, ISOTROPIC)
    valid = torch.rand(1, *crop, generator=torch.Generator().manual_seed(0)) > 0.4
    label = torch.where(valid, torch.tensor([5.0, -2.0, 1.0]).view(3, 1, 1, 1), 0.0)
    _, labels, masks = apply(transform, torch.zeros(1, *crop), {"depth": label}, {"depth": valid})
    mask = masks["depth"][0]
    assert 0.5 < mask.float().mean() < 0.7
    inside = labels["depth"][:, mask]
    expected = torch.tensor([[5.0], [-2.0], [1.0]]).expand_as(inside)
    torch.testing.assert_close(inside, expected, atol=1e-4, rtol=0)
    assert (labels["depth"][:, ~mask] == 0).all()


def test_a_sample_without_labels_or_with_an_empty_mask_is_fine():
    transform = SpatialTransform(matrix=rotation(1, 20))
    crop = transform.input_shape(PATCH, ISOTROPIC)
    image = torch.ones(2, *crop)
    turned, labels, valid = apply(transform, image, {})
    assert (turned.shape, labels, valid) == ((2, *PATCH), {}, {})
    nothing = {"normals": torch.zeros(1, *crop, dtype=torch.bool)}
    _, labels, valid = apply(transform, image, {"normals": torch.zeros(3, *crop)}, nothing)
    assert not valid["normals"].any()
    assert (labels["normals"] == 0).all()


@pytest.mark.parametrize("patch", [PATCH, (8, 40, 33), (1, 24, 25)], ids=str)
@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_crop_is_enough_but_no_larger_than_the_sample_needs(case, patch):
    augmentations, spacing = WARPS[case]
    for seed in range(4):
        transform = sample_spatial(augmentations, np.random.default_rng(seed), patch, spacing)
        crop = transform.input_shape(patch, spacing)
        shape = transform.warped_shape(patch)
        assert all((a - b) % 2 == 0 for a, b in zip(crop, shape, strict=True))
        read = read_positions(transform, shape, spacing)
        half = (np.array(crop) - 1) / 2
        excess = half - np.abs(read).max(axis=(1, 2, 3))
        assert (excess > -1e-3).all()
        slack = sum(0.15 * np.abs(lattice.offsets).max() for lattice in transform.lattices)
        assert (excess < 1 + slack).all()


@pytest.mark.parametrize("margin", [(3, 5, 0), (9, 9, 9)], ids=str)
@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_inner_part_of_a_label_with_a_margin_is_the_label_without(case, margin):
    augmentations, spacing = WARPS[case]
    transform = sample_spatial(augmentations, np.random.default_rng(7), PATCH, spacing)
    grown = grow_shape(PATCH, margin)
    small, large = (transform.input_shape(shape, spacing) for shape in (PATCH, grown))
    around = torch.tensor(np.random.default_rng(0).normal(size=(3, *large)), dtype=torch.float32)
    middle = tuple(slice((n - m) // 2, (n + m) // 2) for n, m in zip(large, small, strict=True))
    labels = {}
    for name, target in {**TARGETS, "ids": None}.items():
        values = around[:1] if name in ("ids", "sheet") else around
        holes = around[2:] > -1
        values = torch.where(holes, values, 0.0)
        labels[name] = LabelCrop(values[:, *middle], holes[:, *middle], target)
        labels[name + " around"] = LabelCrop(values, holes, target, margin)
    _, moved = apply_spatial(transform, torch.zeros(1, *small), labels, PATCH, spacing)
    inner = tuple(slice(m, m + n) for m, n in zip(margin, PATCH, strict=True))
    for name in ("normals", "sheet", "depth", "ids"):
        wide, narrow = moved[name + " around"], moved[name]
        assert wide.values.shape[1:] == grown
        # Some voxels lie half way between two; a sample at a corner of the small crop may be clamped.
        differ = wide.valid[:, *inner] != narrow.valid
        differ = differ | ((wide.values[:, *inner] - narrow.values).abs() > 1e-3)
        assert differ.float().mean() < 2e-3, name


@pytest.mark.parametrize("case", WARPS, ids=str)
def test_with_cubic_interpolation_no_border_shows_either(case):
    augmentations, spacing = WARPS[case]
    drawn = sample_spatial(augmentations, np.random.default_rng(3), PATCH, spacing, "cubic")
    crop, large = (
        drawn.input_shape(shape, spacing) for shape in (PATCH, grow_shape(PATCH, (9,) * 3))
    )
    volume = torch.tensor(np.random.default_rng(0).normal(size=(1, *large)), dtype=torch.float32)
    middle = tuple(slice((n - m) // 2, (n + m) // 2) for n, m in zip(large, crop, strict=True))
    image, _, _ = apply(drawn, volume[:, *middle].contiguous(), {}, spacing=spacing)
    offset = read_positions(drawn, drawn.warped_shape(PATCH), spacing)
    position = torch.tensor(offset + (np.array(large)[:, None, None, None] - 1) / 2).float()
    (expected,) = read_smooth([volume], position, "cubic")
    torch.testing.assert_close(image, turn_tensor(drawn.symmetry, expected), atol=2e-3, rtol=0)


def test_the_crop_is_enough_where_the_peak_lies_between_the_places_looked_at():
    offsets = np.zeros((3, 5, 3, 3), np.float32)
    offsets[:, 2, 1, 1] = 3000
    transform = SpatialTransform(lattices=(Lattice(offsets, (8000.0,) * 3),))
    patch = (8001, 1, 1)
    half = (np.array(transform.input_shape(patch, ISOTROPIC)) - 1) / 2
    assert (half >= read_positions(transform, patch, ISOTROPIC).max(axis=(1, 2, 3))).all()


def read_positions(transform, shape, spacing):
    """Slow oracle: offsets from the crop's centre that a warp reads, splines by SciPy."""
    from scipy.ndimage import map_coordinates

    offset = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    side = np.asarray(spacing)
    matrix = np.eye(3) if transform.matrix is None else transform.matrix
    read = np.einsum("ij,jzyx->izyx", np.diag(1 / side) @ matrix @ np.diag(side), offset)
    for lattice in transform.lattices:
        points = np.array(lattice.offsets.shape[1:])
        knots = [
            offset[axis] / lattice.distance[axis] + (points[axis] - 1) / 2 for axis in range(3)
        ]
        read += np.stack(
            [
                map_coordinates(c.astype(float), knots, order=3, prefilter=False)
                for c in lattice.offsets
            ]
        )
    return read


@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_image_is_read_where_the_slow_oracle_says(case):
    augmentations, spacing = WARPS[case]
    drawn = sample_spatial(augmentations, np.random.default_rng(8), PATCH, spacing)
    transform = SpatialTransform(matrix=drawn.matrix, lattices=drawn.lattices)
    crop = transform.input_shape(PATCH, spacing)
    read, _, _ = apply(transform, positions(crop), {}, spacing=spacing)
    centre = (np.array(crop)[:, None, None, None] - 1) / 2
    np.testing.assert_allclose(
        read.numpy() - centre, read_positions(transform, PATCH, spacing), atol=1e-3
    )


@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_crop_is_placed_about_the_centre_of_the_patch(case):
    augmentations, spacing = WARPS[case]
    place = Box((30, 31, 32), (23, 25, 27))
    transform = sample_spatial(augmentations, np.random.default_rng(2), place.shape, spacing)
    linear = SpatialTransform(transform.symmetry, transform.matrix)
    crop = linear.input_box(place, spacing)
    volume = positions((90, 90, 90)) - 0.0
    read, _, _ = apply(
        linear, volume[(slice(None), *crop.slices())], {}, patch=place.shape, spacing=spacing
    )
    np.testing.assert_allclose(read[:, 11, 12, 13], [41, 43, 45], atol=1e-3)


@pytest.mark.parametrize("spacing", [ISOTROPIC, (2.0, 1.0, 1.5)], ids=str)
@pytest.mark.parametrize("direction", ["random", "z", "x"])
@pytest.mark.parametrize("seed", range(3))
def test_compression_stays_within_its_factors_and_never_folds(direction, seed, spacing):
    low, high = 0.4, 3.0
    press = [Compress(p=1, factor=(low, high), spacing=6, direction=direction)]
    transform = sample_spatial(press, np.random.default_rng(seed), PATCH, spacing)
    recorder, crop = Recorder(), transform.input_shape(PATCH, spacing)
    place = positions(crop)
    apply(transform, place, {"depth": place}, spacing=spacing, targets={"depth": recorder})
    jacobian = np.moveaxis(recorder.jacobians[-1].double().numpy(), (0, 1), (-2, -1))
    jacobian = jacobian.reshape(-1, 3, 3)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > low - 1e-4
    assert determinant.max() < high + 1e-4
    assert determinant.max() / determinant.min() > 1.5
    # All of it lies along one direction: what is left is a matrix of rank 1.
    singular = np.linalg.svd(jacobian - np.eye(3), compute_uv=False)
    assert np.abs(singular[:, 1]).max() < 1e-4


def test_compression_brings_layers_closer_by_its_factor():
    press = Compress(p=1, factor=(2, 2), direction="z")
    transform = sample_spatial([press], np.random.default_rng(0), PATCH, ISOTROPIC)
    crop = transform.input_shape(PATCH, ISOTROPIC)
    assert crop[1:] == PATCH[1:]
    read, _, _ = apply(transform, positions(crop), {})
    np.testing.assert_allclose(np.diff(read[0].numpy(), axis=0), 2, atol=1e-3)
    np.testing.assert_allclose(np.diff(read[1].numpy(), axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES[:8], ids=str)
def test_an_exact_move_reads_no_more_than_the_patch(symmetry):
    transform = SpatialTransform(symmetry)
    assert transform.is_exact
    assert transform.input_box(Box((5, 6, 7), PATCH), ISOTROPIC) == Box((5, 6, 7), PATCH)


def test_rotation_keeps_physical_lengths_on_anisotropic_voxels():
    spacing = (3.0, 1.0, 2.0)
    only_turned = [Affine(p=1, rotation_degrees=(90, 90, 90), scaling=(1, 1))]
    transform = sample_spatial(only_turned, np.random.default_rng(0), PATCH, spacing)
    voxel = transform.voxel_matrix(spacing)
    step = np.random.default_rng(1).normal(size=(3, 50))
    side = np.array(spacing)[:, None]
    moved = np.linalg.norm(voxel @ step * side, axis=0)
    np.testing.assert_allclose(moved, np.linalg.norm(step * side, axis=0), rtol=1e-12)


def test_magnification_above_one_makes_things_grow():
    transform = sample_spatial(
        [Affine(p=1, rotation_degrees=0, scaling=(2, 2))],
        np.random.default_rng(0),
        PATCH,
        ISOTROPIC,
    )
    crop = transform.input_shape(PATCH, ISOTROPIC)
    ball = (positions(crop) - (torch.tensor(crop).view(3, 1, 1, 1) - 1) / 2).norm(dim=0)[None] < 4
    grown, _, _ = apply(transform, ball.float(), {})
    assert float(grown.sum()) == pytest.approx(8 * int(ball.sum()), rel=0.1)
    assert crop < PATCH


def test_probability_zero_is_the_identity_and_one_is_always():
    never = [Flip(p=0), QuarterTurn(p=0), Affine(p=0), Elastic(p=0)]
    always = [Flip(p=1), QuarterTurn(p=1), Affine(p=1), Elastic(p=1)]
    image, label = torch.rand(1, *PATCH), torch.rand(3, *PATCH)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        still = sample_spatial(never, rng, PATCH, ISOTROPIC)
        assert still.is_identity
        turned = sample_spatial(always, rng, PATCH, ISOTROPIC)
        assert turned.matrix is not None
        assert len(turned.lattices) == 1
        assert not sample_spatial(always[1:2], rng, PATCH, ISOTROPIC).symmetry.is_identity
        assert sample_spatial(always[:1], rng, PATCH, ISOTROPIC).symmetry.flips == (True,) * 3
    same, labels, _ = apply(SpatialTransform.IDENTITY, image, {"normals": label})
    assert torch.equal(same, image)
    assert torch.equal(labels["normals"], label)


def test_augmentations_of_one_family_are_composed_in_the_order_of_the_list():
    moves = [Flip(p=1, axes=("z",)), QuarterTurn(p=1, planes=(("z", "y"),)), Flip(p=1, axes=("x",))]
    array = np.random.default_rng(0).normal(size=(3, 4, 5))
    for seed in range(8):
        drawn = sample_spatial(moves, np.random.default_rng(seed), PATCH, ISOTROPIC).symmetry
        rng, expected = np.random.default_rng(seed), array
        for move in moves:
            expected = move.sample_symmetry(rng, ISOTROPIC)(expected)
        np.testing.assert_array_equal(drawn(array), expected)

    maps = [Affine(p=1, rotation_degrees=40), Affine(p=1, per_axis_scaling=True)]
    drawn = sample_spatial(maps, np.random.default_rng(3), PATCH, ISOTROPIC).matrix
    rng = np.random.default_rng(3)
    parts = []
    for linear in maps:
        assert linear.happens(rng)
        parts.append(linear.sample_matrix(rng, PATCH, ISOTROPIC))
    np.testing.assert_array_equal(drawn, parts[0] @ parts[1])


def test_an_even_magnification_of_one_changes_nothing_but_rounding():
    transform = SpatialTransform(matrix=np.eye(3))
    image = torch.rand(1, *PATCH)
    assert transform.input_shape(PATCH, ISOTROPIC) == PATCH
    torch.testing.assert_close(apply(transform, image, {})[0], image, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_sample_and_survives_pickling():
    shapes, results = [], []
    for seed in (4, 4, 5):
        drawn = sample_spatial(
            [Flip(), QuarterTurn(), Affine(p=1), Elastic(p=1)],
            np.random.default_rng(seed),
            PATCH,
            ISOTROPIC,
        )
        wire = pickle.dumps(drawn)
        assert len(wire) < 20_000
        transform = pickle.loads(wire)
        shapes.append(transform.input_shape(PATCH, ISOTROPIC))
        results.append(apply(transform, positions(shapes[-1]), {})[0])
    assert shapes[0] == shapes[1]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_inputs_are_not_written_and_global_random_states_not_used():
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    for seed in range(4):
        transform = sample_spatial(
            [Flip(), QuarterTurn(), Affine(), Elastic(p=0.5)],
            np.random.default_rng(seed),
            PATCH,
            ISOTROPIC,
        )
        crop = transform.input_shape(PATCH, ISOTROPIC)
        image, label = positions(crop), positions(crop) / 40
        copies = image.clone(), label.clone()
        apply(transform, image, {"normals": label})
        assert torch.equal(image, copies[0])
        assert torch.equal(label, copies[1])
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_crop_of_another_shape_is_refused():
    transform = SpatialTransform(matrix=rotation(0, 30))
    with pytest.raises(ValueError, match=r"crop must have shape \(24, 42, 43\)"):
        apply(transform, torch.zeros(1, *PATCH), {})


def test_default_list_on_thick_slices_never_exchanges_or_mixes_unequal_axes():
    spacing = (5.0, 1.0, 1.0)
    for seed in range(60):
        drawn = sample_spatial(DEFAULT_AUGMENTATIONS, np.random.default_rng(seed), PATCH, spacing)
        assert drawn.symmetry.is_lawful(spacing)
        if drawn.matrix is not None:
            assert drawn.matrix[0, 1:].tolist() == drawn.matrix[1:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("spacing", "number"), [(ISOTROPIC, 48), ((5, 1, 1), 16), ((3, 2, 1), 8)], ids=str
)
def test_flips_and_turns_together_reach_every_lawful_symmetry(spacing, number):
    rngs = map(np.random.default_rng, range(600))
    moves = [Flip(), QuarterTurn()]
    reached = {sample_spatial(moves, rng, PATCH, spacing).symmetry for rng in rngs}
    assert reached == {symmetry for symmetry in CUBE_SYMMETRIES if symmetry.is_lawful(spacing)}
    assert len(reached) == number


def test_quarter_turns_reach_every_orientation_equally_often():
    drawn = [
        sample_spatial([QuarterTurn(p=1)], np.random.default_rng(seed), PATCH, ISOTROPIC).symmetry
        for seed in range(2300)
    ]
    counts = {turn: drawn.count(turn) for turn in set(drawn)}
    assert len(counts) == 23
    assert min(counts.values()) > 60
    assert all(round(np.linalg.det(turn.matrix)) == 1 for turn in counts)
    flat = [
        sample_spatial([QuarterTurn(p=1)], np.random.default_rng(seed), PATCH, (5, 1, 1)).symmetry
        for seed in range(100)
    ]
    assert len(set(flat)) == 7  # of the 8 turns of a flat box, half turns of z included


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", WARPS, ids=str)
def test_the_device_does_not_matter(case):
    augmentations, spacing = WARPS[case]
    transform = sample_spatial(augmentations, np.random.default_rng(1), PATCH, spacing)
    image, normals = waves(transform.input_shape(PATCH, spacing), spacing)
    results = []
    for device in ("cpu", "cuda"):
        labels = {"normals": normals.to(device)}
        valid = {"normals": torch.ones_like(image, dtype=torch.bool, device=device)}
        turned = apply(transform, image.to(device), labels, valid, spacing=spacing)
        results.append((turned[0].cpu(), turned[1]["normals"].cpu()))
    torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=0)
