from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.models import ResidualUNet
from vcmodels.models.plan import (
    BATCH_SIZE,
    candidates,
    length_at_least,
    length_at_most,
    plan_batch,
    plan_patch,
)

CUBIC = (1.0, 1.0, 1.0)
extents = st.tuples(*[st.integers(1, 20_000)] * 3)
spacings = st.tuples(*[st.floats(0.1, 30)] * 3)
networks = st.builds(
    ResidualUNet,
    preset=st.sampled_from("SML"),
    decoder=st.sampled_from(["separate", "shared"]),
    num_levels=st.none() | st.integers(2, 6),
    deep_supervision=st.booleans(),
)


def plan(model, extent, spacing=CUBIC, gigabytes=8.0, heads=1, value_bytes=2):
    """What is tried and planned for two patches of one channel, with `heads` heads of one."""

    def needed(patch):
        try:
            memory = model.estimate(1, {str(n): 1 for n in range(heads)}, patch, spacing)
        except ValueError:
            return None
        return memory.step_bytes(BATCH_SIZE, value_bytes)

    z, y, x = map(length_at_least, extent)
    return plan_patch((z, y, x), spacing, int(gigabytes * 1e9), needed)


def planned(*arguments, **options):
    return plan(*arguments, **options)[-1].patch


@pytest.mark.parametrize(
    ("preset", "gigabytes", "value_bytes", "nnunet", "expected"),
    [
        ("S", 8, 2, 128, 128),
        ("S", 24, 2, 192, 192),
        ("M", 8, 2, 128, 112),
        ("L", 24, 2, 192, 160),
        ("S", 8, 4, 128, 112),
        ("S", 24, 4, 192, 160),
    ],
)
def test_isotropic_volumes_get_the_patches_of_nnunet(
    preset, gigabytes, value_bytes, nnunet, expected
):
    """nnU-Net 2.8.1 plans 128^3 at 8 GB (default, ResEnc M) and 192^3 at 24 GB (ResEnc L)."""
    model = ResidualUNet(preset=preset)
    patch = planned(model, (512, 512, 512), gigabytes=gigabytes, value_bytes=value_bytes)
    assert patch == (expected,) * 3
    (step,) = set(model.plan((nnunet,) * 3, CUBIC).divisor)
    assert abs(expected - nnunet) <= step == 32


@pytest.mark.parametrize(
    ("extent", "spacing", "patch"),
    [
        ((128, 512, 512), (4.0, 1.0, 1.0), (48, 192, 192)),  # nnU-Net, isotropic: 56 x 224 x 192
        ((128, 512, 512), CUBIC, (128, 128, 128)),
        ((36, 50, 35), CUBIC, (40, 56, 40)),  # nnU-Net for the hippocampus: the same
        ((1, 700, 900), CUBIC, (1, 768, 1024)),
        ((9, 700, 900), (5.0, 1.0, 1.0), (10, 384, 384)),
        ((14000, 9000, 9000), CUBIC, (128, 128, 128)),
        ((5, 5, 8), CUBIC, (5, 5, 8)),
    ],
)
def test_other_volumes_get_sane_patches(extent, spacing, patch):
    assert planned(ResidualUNet(), extent, spacing) == patch


def test_every_head_makes_the_patch_smaller_unless_the_decoder_is_shared():
    sizes = [prod(planned(ResidualUNet(), (512,) * 3, heads=n)) for n in (1, 3, 9)]
    assert sizes[0] > sizes[1] > sizes[2]
    shared = ResidualUNet(decoder="shared")
    assert planned(shared, (512,) * 3, heads=9) == planned(shared, (512,) * 3)


@settings(deadline=None, max_examples=150)
@given(networks, extents, spacings, st.floats(0.2, 100))
def test_a_plan_is_accepted_fits_and_covers_no_more_than_the_volume(
    model, extent, spacing, gigabytes
):
    tried = plan(model, extent, spacing, gigabytes)
    if not tried:  # no axis is long enough for the levels that are asked for
        assert model.num_levels is not None or max(extent) < 8
        return
    *larger, last = tried
    model.check_patch(last.patch, spacing)
    assert all(p <= length_at_least(n) for p, n in zip(last.patch, extent, strict=True))
    assert all(one.step_bytes > gigabytes * 1e9 for one in larger)
    if last.step_bytes > gigabytes * 1e9:
        assert max(last.patch) <= 8 * 2 ** ((model.num_levels or 2) - 1)  # the smallest there is


@settings(deadline=None, max_examples=100)
@given(networks, extents, spacings, st.floats(0.2, 50), st.floats(1, 10))
def test_more_memory_shortens_no_axis(model, extent, spacing, gigabytes, factor):
    less = plan(model, extent, spacing, gigabytes)
    if less:
        more = plan(model, extent, spacing, gigabytes * factor)
        assert all(a <= b for a, b in zip(less[-1].patch, more[-1].patch, strict=True))


@given(st.integers(1, 65_536))
def test_good_lengths_are_those_that_the_network_halves_evenly(extent):
    """Of an odd part up to 7, so that 4 to 7 voxels are left."""
    above, below = length_at_least(extent), length_at_most(extent)
    for length in (above, below):
        while length >= 8:
            assert length % 2 == 0
            length //= 2
    capped = min(extent, 1024)
    assert below <= capped <= above
    assert above <= max(1.25 * capped, below)


@given(extents, spacings)
def test_candidates_shrink_from_the_cover_and_stay_physically_cubic(extent, spacing):
    z, y, x = map(length_at_least, extent)
    found = list(candidates((z, y, x), spacing))
    assert found[0] == (z, y, x)
    for larger, smaller in pairwise(found):
        cut = [a for a in range(3) if smaller[a] < larger[a]]
        edges = [n * s for n, s in zip(larger, spacing, strict=True)]
        assert cut
        assert all(p >= q for p, q in zip(larger, smaller, strict=True))
        able = [edges[a] for a in range(3) if larger[a] > 8]
        assert all(edges[a] >= 0.99 * max(able) for a in cut)
    assert all(
        (p <= max(8, n) and p <= 8) or p == n for p, n in zip(found[-1], (z, y, x), strict=True)
    )


@pytest.mark.parametrize(
    ("budget", "most", "expected"),
    [(1000, 99, 9), (1000, 5, 5), (1099, 99, 9), (100, 99, 2), (10_000, 0, 2)],
)
def test_a_batch_fills_the_memory_within_its_bounds(budget, most, expected):
    assert plan_batch(100, 100, budget, most) == expected
