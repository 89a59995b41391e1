import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vcmodels.targets import NormalsTarget, normals

SHAPE = (6, 7, 8)
SYMMETRIES = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def random_units(seed=0, shape=SHAPE):
    vectors = np.random.default_rng(seed).normal(size=(3, *shape)).astype(np.float32)
    return vectors / np.sqrt((vectors**2).sum(0))


def turn_volume(volume, axes, signs):
    """Output axis j is input axis axes[j], read backwards where signs[j] is -1."""
    moved = np.moveaxis(volume, [volume.ndim - 3 + a for a in axes], [-3, -2, -1])
    return np.flip(moved, [j - 3 for j in range(3) if signs[j] < 0]).copy()


def jacobian(axes, signs):
    """d input position / d output position."""
    matrix = torch.zeros(3, 3)
    for j in range(3):
        matrix[axes[j], j] = signs[j]
    return matrix


def turn(target, label, jacobian):
    valid = torch.ones(1, *label.shape[1:], dtype=torch.bool)
    return target.turn(label, valid, jacobian, (1.0, 1.0, 1.0))[0]


@pytest.mark.parametrize(("axes", "signs"), SYMMETRIES, ids=str)
def test_turned_normals_are_the_normals_of_the_turned_volume(axes, signs):
    field = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    gradient = np.stack(np.gradient(field))
    moved = torch.from_numpy(turn_volume(gradient, axes, signs))
    turned = turn(NormalsTarget(), moved, jacobian(axes, signs))
    wanted = np.stack(np.gradient(turn_volume(field, axes, signs)))
    np.testing.assert_array_equal(turned.numpy(), wanted)


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
@pytest.mark.parametrize("as_field", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_normals_follow_a_linear_map_of_an_analytic_surface(orientation, as_field, seed):
    """f'(q) = f(M q): the normals of an ellipsoid's level sets, against the chain rule by hand."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + 0.5 * rng.normal(size=(3, 3))
    form = np.diag(rng.uniform(0.5, 2, 3))
    q = np.stack(np.meshgrid(*(np.linspace(0.5, 2, n) for n in SHAPE), indexing="ij"))

    def sampled(quadratic, p):
        """Unit gradient of p -> p . quadratic p / 2."""
        gradient = np.einsum("ij,jzyx->izyx", quadratic, p)
        return gradient / np.sqrt((gradient**2).sum(0))

    before = torch.from_numpy(sampled(form, np.einsum("ij,jzyx->izyx", matrix, q))).float()
    wanted = sampled(matrix.T @ form @ matrix, q)
    j = torch.from_numpy(matrix)
    j = j[..., None, None, None].expand(3, 3, *SHAPE) if as_field else j
    turned = turn(NormalsTarget(orientation=orientation), before, j)
    assert (turned.numpy() * wanted).sum(0).min() > 1 - 1e-5


def test_normals_follow_a_warp_with_a_jacobian_that_varies():
    """A plane z = const, sampled at p = q + (0.2 sin(y), 0, 0): the surface z + 0.2 sin y."""
    y = np.broadcast_to(np.linspace(0, 3, SHAPE[1])[None, :, None], SHAPE)
    field = np.zeros((3, 3, *SHAPE), np.float32)
    field[[0, 1, 2], [0, 1, 2]] = 1
    field[0, 1] = 0.2 * np.cos(y)
    plane = torch.zeros(3, *SHAPE)
    plane[0] = 1
    turned = turn(NormalsTarget(), plane, torch.from_numpy(field))
    wanted = np.stack([np.ones(SHAPE), 0.2 * np.cos(y), np.zeros(SHAPE)])
    wanted /= np.sqrt((wanted**2).sum(0))
    np.testing.assert_allclose(turned, wanted, atol=1e-6)


def test_a_turn_leaves_unlabelled_voxels_zero():
    label = torch.from_numpy(random_units())
    label[:, 2] = 0
    turned = turn(NormalsTarget(), label, torch.randn(3, 3))
    assert (turned[:, 2] == 0).all()
    assert (turned[:, 3].norm(dim=0) - 1).abs().max() < 1e-6


# --- reading


@pytest.mark.parametrize("order", ["xyz", "zyx"])
@pytest.mark.parametrize(
    ("dtype", "code", "step"),
    [
        (np.uint16, lambda v: np.rint((v + 1) * 32767.5), 1 / 32767.5),
        (np.uint8, lambda v: np.rint((v + 1) * 127.5), 1 / 127.5),
        (np.int16, lambda v: np.rint(v * 32767), 1 / 32767),
        (np.int8, lambda v: np.rint(v * 127), 1 / 127),
        (np.float32, lambda v: v, 1e-6),
        (np.float16, lambda v: v, 1e-3),
        (np.float64, lambda v: 7 * v, 1e-6),
    ],
)
def test_labels_are_read_by_dtype_in_their_order(order, dtype, code, step):
    wanted = random_units()
    stored = code(wanted[::-1] if order == "xyz" else wanted).astype(dtype)
    label, valid = NormalsTarget(vector_order=order).read_label(stored)
    assert label.dtype == np.float32
    assert valid.shape == (1, *SHAPE)
    assert valid.all()
    np.testing.assert_allclose(label, wanted, atol=1.5 * step)
    np.testing.assert_allclose((label**2).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "nothing"),
    [
        (np.uint16, [0, 0, 0]),
        (np.uint16, [32767, 32768, 32768]),  # a zero vector that was rounded
        (np.uint8, [127, 128, 127]),
        (np.int8, [0, 0, 0]),
        (np.float32, [0, 0, 0]),
        (np.float32, [1e-8, 0, 0]),
        (np.float32, [np.nan, 1, 0]),
        (np.float32, [np.inf, 1, 0]),
        (np.float32, [3e38, 3e38, 0]),
        (np.float64, [1e300, 0, 0]),
    ],
)
def test_a_label_without_a_direction_is_not_valid(dtype, nothing):
    stored = np.full((3, *SHAPE), 100, dtype)
    stored[:, 1, 2, 3] = nothing
    label, valid = NormalsTarget().read_label(stored)
    assert not valid[0, 1, 2, 3]
    assert valid.sum() == valid.size - 1
    assert (label[:, 1, 2, 3] == 0).all()
    assert np.isfinite(label).all()


def test_a_declared_encoding_and_zero_code_are_used():
    target = NormalsTarget(encoding={"scale": 0.01, "offset": -1.0, "zero_code": 100})
    stored = np.full((3, *SHAPE), 200, np.int32)
    stored[:, 0, 0, 0] = 100
    stored[:, 0, 0, 1] = 0
    stored[:, 0, 0, 2] = (100, 100, 200)
    label, valid = target.read_label(stored)
    assert valid[0, 0, 0, :3].tolist() == [False, False, True]
    np.testing.assert_allclose(label[:, 0, 0, 2], (1, 0, 0), atol=1e-6)
    np.testing.assert_allclose(label[:, 3, 3, 3], np.full(3, 3**-0.5), atol=1e-6)


@pytest.mark.parametrize("slab", [1, 60, 10**6])
@pytest.mark.parametrize("scale", [-0.25, 3e-5, 2.0])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_labels_are_the_linear_codes_of_the_specification(dtype, scale, slab, monkeypatch):
    """component = stored * scale + offset, in double precision, however much is read at once."""
    monkeypatch.setattr(normals, "SLAB_VOXELS", slab)
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 100, (3, 5, 7, 4)).astype(dtype)
    offset = -50.5 * scale
    components = stored[::-1].astype(np.float64) * scale + offset
    length = np.sqrt((components**2).sum(0, keepdims=True))
    label, valid = NormalsTarget(encoding={"scale": scale, "offset": offset}).read_label(stored)
    least = 1e-6 if dtype == "float32" else abs(scale)
    assert (valid == (stored != 0).any(0) & (length >= least)).all()
    np.testing.assert_allclose(label, np.where(valid, components / length, 0), atol=1e-5)


def test_a_dtype_without_an_encoding_is_refused():
    with pytest.raises(ValueError, match=r'normals of dtype int64.*give "encoding"'):
        NormalsTarget().read_label(np.ones((3, *SHAPE), np.int64))


def test_an_ignored_code_must_fill_all_components():
    stored = np.full((3, *SHAPE), 200, np.uint8)
    stored[:, 0, 0, 0] = 255
    stored[0, 0, 0, 1] = 255
    _, valid = NormalsTarget(ignore_label=255).read_label(stored)
    assert valid[0, 0, 0, :2].tolist() == [False, True]


# --- blending


def test_oriented_predictions_average_as_vectors():
    logits = torch.tensor([[3.0, 0, 0], [0, 5.0, 0]]).view(2, 3, 1, 1, 1)
    target = NormalsTarget()
    blended = target.blendable(logits).mean(0)
    assert len(blended) == target.blend_channels == 3
    np.testing.assert_allclose(target.unblend(blended).flatten(), (0.5**0.5, 0.5**0.5, 0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_axial_predictions_blend_whatever_their_signs(seed):
    rng = np.random.default_rng(seed)
    axes = torch.from_numpy(random_units(seed))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (4, 1, *SHAPE))).float()
    target = NormalsTarget(orientation="axial")
    blended = target.blendable(signs * axes * 5).mean(0)
    assert len(blended) == target.blend_channels == 6
    assert (target.unblend(blended) * axes).sum(0).abs().min() > 1 - 1e-6


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
def test_what_was_never_predicted_stays_zero(orientation):
    target = NormalsTarget(orientation=orientation)
    blended = torch.zeros(2, target.blend_channels, *SHAPE)
    assert (target.unblend(blended) == torch.zeros(2, 3, *SHAPE)).all()


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
def test_opposite_vectors_are_0_or_180_degrees_apart(orientation):
    target = NormalsTarget(orientation=orientation)
    label = torch.from_numpy(random_units())[None]
    valid = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    found = target.summarise(target.measure(-label, label, valid))
    axial = orientation == "axial"
    assert found["angle_deg"] == pytest.approx(0 if axial else 180, abs=1e-3)
    assert found["within_10_deg"] == (1 if axial else 0)
    assert [t.name for t in target.losses] == ["axial_cosine" if axial else "cosine"]
    assert target.interpolation == ("nearest" if axial else "linear")
    wanted = 0 if axial else 2
    assert target.compute_loss(-label, label, valid).item() == pytest.approx(wanted, abs=1e-5)


def test_the_angle_of_axes_is_that_of_the_nearer_ends():
    target, label = NormalsTarget(orientation="axial"), torch.from_numpy(random_units())[None]
    prediction = torch.from_numpy(random_units(1))[None]
    valid = torch.rand(1, 1, *SHAPE) > 0.3
    cosine = (prediction * label).sum(1, keepdim=True).abs().double()
    wanted = torch.rad2deg(torch.acos(cosine))[valid]
    found = target.summarise(target.measure(prediction, label, valid))
    assert found["angle_deg"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert found["within_10_deg"] == pytest.approx(float((wanted <= 10).double().mean()))


# --- encoding on disk


@pytest.mark.parametrize("order", ["xyz", "zyx"])
@pytest.mark.parametrize("name", ["uint8", "uint16", "int8", "int16", "float16", "float32"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_decoding_undoes_encoding_to_half_a_step(order, name, seed):
    dtype = np.dtype(name)
    target = NormalsTarget(vector_order=order)
    wanted = random_units(seed)
    wanted[:, 0] = 0
    stored = target.encode(torch.from_numpy(wanted), dtype)
    step = 1e-3 if name == "float16" else target.encoding(dtype)["scale"]
    half_step = 1e-6 if name == "float32" else 0.5 * step + 1e-6
    assert stored.dtype == dtype
    assert (stored[:, 0] == 0).all()
    assert (stored[:, 1:] != 0).any(0).all()
    decoded = target.decode(stored)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, wanted, atol=half_step)
    attributes = target.encoding(dtype)
    by_attributes = stored * attributes["scale"] + attributes["offset"]
    by_attributes = by_attributes[::-1] if attributes["vector_order"] == "xyz" else by_attributes
    np.testing.assert_allclose(by_attributes[:, 1:], wanted[:, 1:], atol=half_step)


def test_predictions_can_be_read_back_as_labels():
    target = NormalsTarget()
    wanted = random_units()
    wanted[:, 2, 3] = 0
    label, valid = target.read_label(target.encode(torch.from_numpy(wanted), np.dtype("uint8")))
    np.testing.assert_array_equal(valid[0], (wanted != 0).any(0))
    np.testing.assert_allclose(label, wanted, atol=0.01)


@pytest.mark.parametrize("name", ["uint8", "uint16", "int8"])
def test_bad_predictions_are_stored_as_missing_and_never_wrap(name):
    vectors = torch.tensor([[torch.nan, 0, 1], [torch.inf, 0, 0], [3, 0, 0], [-1, -1, -1]])
    stored = NormalsTarget(vector_order="zyx").encode(
        vectors.T.reshape(3, 1, 1, 4).float(), np.dtype(name)
    )
    assert (stored[:, 0, 0, :2] == 0).all()
    assert stored[0, 0, 0, 2] == np.iinfo(name).max
    assert (stored[:, 0, 0, 3] != 0).all()


def test_original_uint16_normals_encode_as_it_documents():
    """round((n + 1) / 2 * 65535), components x, y, z."""
    x_axis = torch.tensor([0.0, 0, 1]).view(3, 1, 1, 1)
    stored = NormalsTarget().encode(x_axis, np.dtype("uint16"))
    assert stored.flatten().tolist() == [65535, 32768, 32768]


def test_output_dtypes():
    assert NormalsTarget().output_channels(np.dtype("uint8")) == 3
    with pytest.raises(ValueError, match="cannot be stored as int64; use uint8, uint16"):
        NormalsTarget().output_channels(np.dtype("int64"))


def test_pictures_show_x_as_red_and_nothing_as_black():
    vectors = np.zeros((3, 1, 3), np.float32)
    vectors[2, 0, 0] = 1
    vectors[2, 0, 1] = -1
    picture = NormalsTarget().picture(vectors)
    np.testing.assert_allclose(picture, [[(1, 0.5, 0.5), (0, 0.5, 0.5), (0, 0, 0)]])
    picture = NormalsTarget(orientation="axial").picture(vectors)
    np.testing.assert_allclose(picture, [[(1, 0, 0), (1, 0, 0), (0, 0, 0)]])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 2}, "greater than or equal to 3"),
        ({"loss": "bce"}, 'no loss "bce" for this kind; choose from axial_cosine, cosine'),
        ({"loss": "axial_cosine"}, 'orientation "oriented" is trained with loss "cosine"'),
        ({"orientation": "axial", "loss": "cosine"}, 'with loss "axial_cosine"'),
        ({"loss": "unit_length"}, 'with loss "cosine", beside which "unit_length" may stand'),
        ({"loss": {"cosine": -1.0}}, "loss weights must be 0 or more and not all 0"),
        ({"loss": {}}, "loss weights must be 0 or more and not all 0"),
        ({"activation": "sigmoid"}, "Input should be 'none'"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        NormalsTarget(**keys)


def test_a_length_of_1_may_be_asked_for_beside_the_direction():
    target = NormalsTarget(orientation="axial", loss={"axial_cosine": 1.0, "unit_length": 0.1})
    logits = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1, 1)
    label = torch.tensor([-1.0, 0, 0]).view(1, 3, 1, 1, 1)
    found = target.compute_loss(logits, label, label[:, :1] < 0)
    assert found.item() == pytest.approx(0.1 * (3 - 1) ** 2)
