import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.models import ResidualUNet
from vcmodels.models.plan import Topology, plan_topology

ISOTROPIC = (1.0, 1.0, 1.0)

# (features, stride, kernel, shape) per level; the strides of nnU-Net's planner for the same input.
PLANS = {
    "48^3": (
        (48, 48, 48),
        ISOTROPIC,
        [
            (32, (1, 1, 1), (3, 3, 3), (48, 48, 48)),
            (64, (2, 2, 2), (3, 3, 3), (24, 24, 24)),
            (128, (2, 2, 2), (3, 3, 3), (12, 12, 12)),
            (256, (2, 2, 2), (3, 3, 3), (6, 6, 6)),
        ],
    ),
    "64^3": (
        (64, 64, 64),
        ISOTROPIC,
        [
            (32, (1, 1, 1), (3, 3, 3), (64, 64, 64)),
            (64, (2, 2, 2), (3, 3, 3), (32, 32, 32)),
            (128, (2, 2, 2), (3, 3, 3), (16, 16, 16)),
            (256, (2, 2, 2), (3, 3, 3), (8, 8, 8)),
            (320, (2, 2, 2), (3, 3, 3), (4, 4, 4)),
        ],
    ),
    "128^3": (
        (128, 128, 128),
        ISOTROPIC,
        [
            (32, (1, 1, 1), (3, 3, 3), (128, 128, 128)),
            (64, (2, 2, 2), (3, 3, 3), (64, 64, 64)),
            (128, (2, 2, 2), (3, 3, 3), (32, 32, 32)),
            (256, (2, 2, 2), (3, 3, 3), (16, 16, 16)),
            (320, (2, 2, 2), (3, 3, 3), (8, 8, 8)),
            (320, (2, 2, 2), (3, 3, 3), (4, 4, 4)),
        ],
    ),
    "192^3": (
        (192, 192, 192),
        ISOTROPIC,
        [
            (32, (1, 1, 1), (3, 3, 3), (192, 192, 192)),
            (64, (2, 2, 2), (3, 3, 3), (96, 96, 96)),
            (128, (2, 2, 2), (3, 3, 3), (48, 48, 48)),
            (256, (2, 2, 2), (3, 3, 3), (24, 24, 24)),
            (320, (2, 2, 2), (3, 3, 3), (12, 12, 12)),
            (320, (2, 2, 2), (3, 3, 3), (6, 6, 6)),
        ],
    ),
    "thick sections": (
        (16, 256, 256),
        (5.0, 0.8, 0.8),
        [
            (32, (1, 1, 1), (1, 3, 3), (16, 256, 256)),
            (64, (1, 2, 2), (1, 3, 3), (16, 128, 128)),
            (128, (1, 2, 2), (3, 3, 3), (16, 64, 64)),
            (256, (2, 2, 2), (3, 3, 3), (8, 32, 32)),
            (320, (2, 2, 2), (3, 3, 3), (4, 16, 16)),
            (320, (1, 2, 2), (3, 3, 3), (4, 8, 8)),
            (320, (1, 2, 2), (3, 3, 3), (4, 4, 4)),
        ],
    ),
    "hippocampus": (
        (40, 56, 40),
        ISOTROPIC,
        [
            (32, (1, 1, 1), (3, 3, 3), (40, 56, 40)),
            (64, (2, 2, 2), (3, 3, 3), (20, 28, 20)),
            (128, (2, 2, 2), (3, 3, 3), (10, 14, 10)),
            (256, (2, 2, 2), (3, 3, 3), (5, 7, 5)),
        ],
    ),
}


def rows(topology: Topology):
    return [(level.features, level.stride, level.kernel, level.shape) for level in topology.levels]


@pytest.mark.parametrize(("patch", "spacing", "expected"), PLANS.values(), ids=PLANS)
def test_plan_of_known_patches(patch, spacing, expected):
    assert rows(plan_topology(patch, spacing)) == expected


def test_an_axis_exactly_twice_as_coarse_waits_one_level():
    strides = [level.stride for level in plan_topology((32, 64, 64), (2.0, 1.0, 1.0)).levels]
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]


def test_a_kernel_spans_an_axis_from_the_level_where_it_is_within_twice_the_finest():
    levels = plan_topology((16, 64, 64), (2.5, 1.0, 1.0)).levels
    assert [level.kernel[0] for level in levels] == [1, 3, 3, 3, 3]


def test_a_thin_axis_that_ran_out_does_not_stop_the_others():
    levels = plan_topology((8, 64, 64), ISOTROPIC).levels
    assert [level.stride for level in levels[1:]] == [(2, 2, 2), *[(1, 2, 2)] * 3]


@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([8, 16, 32, 64, 128])] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
)
def test_the_plan_does_not_know_which_axis_is_which(order, patch, spacing):
    def permuted(values):
        return tuple(values[i] for i in order)

    here = plan_topology(patch, spacing).levels
    there = plan_topology(permuted(patch), permuted(spacing)).levels
    for a, b in zip(here, there, strict=True):
        assert [permuted(a.stride), permuted(a.kernel), permuted(a.shape)] == [
            b.stride,
            b.kernel,
            b.shape,
        ]


@given(
    st.tuples(*[st.integers(8, 300)] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.none() | st.integers(2, 4),
)
def test_the_proposed_patch_is_accepted_and_near(patch, spacing, num_levels):
    try:
        topology = plan_topology(patch, spacing, num_levels=num_levels)
    except ValueError as error:
        if "too small for num_levels" in str(error):
            return
        proposal = tuple(int(n) for n in str(error).split("Use [")[1].split("]")[0].split(","))
        topology = plan_topology(proposal, spacing, num_levels=num_levels)
        for n, good, divisor in zip(patch, proposal, topology.divisor, strict=True):
            assert abs(n - good) < divisor
        patch = proposal
    deepest = topology.levels[-1].shape
    assert tuple(d * n for d, n in zip(topology.divisor, deepest, strict=True)) == patch
    assert num_levels is None or len(topology.levels) == num_levels
    assert min(deepest) >= (4 if num_levels is None else 2)


def test_levels_as_asked_may_leave_two_voxels():
    assert plan_topology((32, 32, 32), ISOTROPIC, num_levels=5).levels[-1].shape == (2, 2, 2)


def test_features_as_given_decide_the_levels():
    levels = plan_topology((64, 64, 64), ISOTROPIC, features=(4, 5, 6)).levels
    assert [level.features for level in levels] == [4, 5, 6]


@pytest.mark.parametrize(
    ("patch", "options", "message"),
    [
        ((64, 100, 64), {}, r"100 along y is not a multiple of 16 \(nearest: 96, 112\)"),
        ((64, 100, 65), {}, r"65 along x .*Use \[64, 96, 64\]"),
        ((64, 64, 30), {"num_levels": 3}, r"30 along x is not a multiple of 4 \(nearest: 28, 32\)"),
        ((32, 32, 32), {"num_levels": 6}, "too small for num_levels 6: it allows at most 5"),
        ((7, 7, 7), {}, "too small to be pooled even once"),
    ],
    ids=["one axis", "two axes", "levels asked", "too many levels", "tiny"],
)
def test_a_patch_that_does_not_fit_is_refused_with_the_remedy(patch, options, message):
    with pytest.raises(ValueError, match=message):
        plan_topology(patch, ISOTROPIC, **options)


@pytest.mark.parametrize("spacing", [(0.0, 1, 1), (1, float("nan"), 1), (1, 1, float("inf"))])
def test_a_spacing_that_is_no_length_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing must be positive"):
        plan_topology((32, 32, 32), spacing)


@given(
    st.integers(0, 2),
    st.tuples(*[st.integers(3, 40)] * 3),
    st.tuples(*[st.floats(0.1, 30)] * 3),
)
def test_a_slice_is_neither_pooled_nor_mixed_with_others(axis, quarters, spacing):
    """Its own spacing has no say in the plan: a network for slices is that of their plane."""
    patch = tuple(1 if a == axis else 8 * n for a, n in enumerate(quarters))
    plain = plan_topology(patch, spacing, num_levels=2)
    assert all(level.kernel[axis] == level.stride[axis] == 1 for level in plain.levels)
    other = tuple(s * 100 if a == axis else s for a, s in enumerate(spacing))
    assert plan_topology(patch, other, num_levels=2) == plain


def test_slices_have_kernels_of_1_by_3_by_3():
    levels = plan_topology((1, 64, 48), (1.0, 1.0, 1.0)).levels
    assert {level.kernel for level in levels} == {(1, 3, 3)}
    assert [level.stride for level in levels][:3] == [(1, 1, 1), (1, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("patch", "planned"), [((2, 16, 16), (1, 16, 16)), ((1, 16, 16), (4, 16, 16))]
)
def test_several_slices_at_once_are_refused(patch, planned):
    with pytest.raises(
        ValueError, match=rf"is {patch[0]} along z, the network is planned for {planned[0]}"
    ):
        ResidualUNet().check_patch(patch, (1.0, 1.0, 1.0), planned=planned)
