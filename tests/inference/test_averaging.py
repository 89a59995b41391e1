"""Views of a patch and several networks: turned back right, averaged right, the same bits always."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.augment.resample import turn_tensor
from vcmodels.augment.views import turned_back
from vcmodels.blockwise import Part
from vcmodels.config.inference_params import Tta
from vcmodels.errors import CheckpointError, OutputError, TaskError
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, IDENTITY, mirror
from vcmodels.inference import RunOptions, predict_request, request_of
from vcmodels.inference.network import Averaged, Forward, Member, Moments
from vcmodels.inference.views import choose_views
from vcmodels.reporting import Silent
from vcmodels.targets.affinities import AffinitiesTarget
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.distance import DistanceTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.targets.vector import VectorTarget
from vcmodels.volumes import open_volume

CPU = torch.device("cpu")
CUBIC = (1.0, 1.0, 1.0)
PAIRS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (0, 1, 1))
EIGHT = {"flips": ["z", "y", "x"]}


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def gradient(image):
    """(B, 1, Z, Y, X) -> (B, 3, ...), central differences round the border."""
    return torch.cat([image.roll(-1, a) - image.roll(1, a) for a in (2, 3, 4)], dim=1)


def alike(image):
    """How alike each voxel and its partners are, round the border."""
    moved = [image.roll((-z, -y, -x), (2, 3, 4)) for z, y, x in PAIRS]
    return torch.cat([-(image - partner).abs() for partner in moved], dim=1)


ANALYTIC = {
    "normals": (NormalsTarget(), gradient),
    "axes": (NormalsTarget(orientation="axial"), gradient),
    "displacement": (VectorTarget(), gradient),
    "slope": (VectorTarget(transforms_as="gradient", units="voxels"), gradient),
    "distance": (DistanceTarget(clip=3.0), lambda image: 3 * image),
    "affinities": (AffinitiesTarget(offsets=PAIRS), alike),
}


@pytest.mark.parametrize("view", CUBE_SYMMETRIES, ids=str)
@pytest.mark.parametrize("name", ANALYTIC)
def test_what_a_turned_image_shows_turned_back_is_what_the_image_shows(name, view):
    target, network = ANALYTIC[name]
    image = torch.from_numpy(noise((2, 1, 6, 7, 8)))
    expected = network(image)
    found, known = turned_back(target, network(turn_tensor(view, image)), view, CUBIC)
    if known is None:
        assert torch.equal(found, expected)
        return
    assert known.any()
    where = known.expand(expected.shape)
    assert torch.equal(found[where], expected[where])


def test_affinities_say_nothing_where_a_turned_pair_leaves_the_patch():
    target = AffinitiesTarget()
    _, known = turned_back(target, torch.zeros(1, 3, 6, 7, 8), mirror(0), CUBIC)
    assert not known[0, 0].any()
    assert known[0, 1:].all()
    assert known[1:].all()


class Network(nn.Module):
    """A function of the image for every target."""

    def __init__(self, **functions):
        super().__init__()
        self.functions = functions

    def forward(self, image, targets=None):
        return {name: (function(image),) for name, function in self.functions.items()}


def averaged(targets, views, *networks, weights=None, **options):
    weights = weights or [1 / len(networks)] * len(networks)
    members = [
        Member(Forward(network, targets, CPU, None, 1), weight, 0)
        for network, weight in zip(networks, weights, strict=True)
    ]
    return Averaged(members, views, CUBIC, **options)


def test_the_mean_over_all_views_of_fields_that_turn_with_the_image_is_one_view():
    targets = {name: target for name, (target, _) in ANALYTIC.items()}
    network = Network(**{name: function for name, (_, function) in ANALYTIC.items()})
    patch = noise((1, 1, 5, 5, 5))
    one = Forward(network, targets, CPU, None, 1)(patch)
    every = averaged(targets, CUBE_SYMMETRIES, network, with_uncertainty=True)(patch)
    for name, values in one.items():
        torch.testing.assert_close(every[name], values, atol=1e-6, rtol=0)
        # Of axes the angle comes from 1 - an eigenvalue, which is known to 1e-7 or so.
        largest = 0.1 if name == "axes" else 1e-3
        assert every[f"{name}_uncertainty"].sqrt().max() < largest


def position(image):
    ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).sin()
    return (image * 2 - 1) + ramp.reshape(image[0, 0].shape)


def test_pairs_are_averaged_over_the_views_that_know_them():
    target = AffinitiesTarget(offsets=((-1, 0, 0), (0, 2, 0)))
    network = Network(pairs=lambda image: torch.cat([position(image), position(image).cos()], 1))
    patch = noise((1, 1, 4, 5, 6))
    views = choose_views(Tta(flips=("z", "y")), (4, 5, 6), [CUBIC], Silent())
    found = averaged({"pairs": target}, views, network)(patch)["pairs"][0].numpy()
    total, count = np.zeros((2, 4, 5, 6)), np.zeros((2, 4, 5, 6))
    for flips in ([], [0], [1], [0, 1]):
        turned = torch.from_numpy(np.flip(patch, [a + 2 for a in flips]).copy())
        seen = network(turned)["pairs"][0][0].sigmoid().numpy()
        seen = np.flip(seen, [a + 1 for a in flips])
        for channel, (axis, offset) in enumerate([(0, -1), (1, 2)]):
            values = seen[channel]
            shown = np.ones(values.shape)
            if axis in flips:  # the pair is seen from its other voxel
                values = np.roll(values, -offset, axis)
                edge = [slice(None)] * 3
                edge[axis] = slice(0, -offset) if offset < 0 else slice(-offset, None)
                shown[tuple(edge)] = 0
            total[channel] += values * shown
            count[channel] += shown
    assert count.min() == 1 or count.min() == 2
    np.testing.assert_allclose(found, total / count, atol=1e-6)


def test_moments_are_those_of_all_values():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(3, 1, (5, 1, 2, 3, 4, 5)), rng.random((5, 1, 1, 3, 4, 5)) + 0.1
    weights[2, :, :, 0] = 0
    moments = Moments(with_variance=True)
    for value, weight in zip(values, weights, strict=True):
        moments.add(torch.from_numpy(value), torch.from_numpy(weight))
    mean = np.average(values, axis=0, weights=np.broadcast_to(weights, values.shape))
    spread = np.average(
        (values - mean) ** 2, axis=0, weights=np.broadcast_to(weights, values.shape)
    )
    np.testing.assert_allclose(moments.mean, mean)
    np.testing.assert_allclose(moments.variance, spread)
    halves = Moments(with_variance=True)
    for some in (slice(0, 2), slice(2, 5)):
        part = Moments(with_variance=True)
        for value in values[some]:
            part.add(torch.from_numpy(value))
        halves.add(part.mean, len(values[some]), part.variance)
    np.testing.assert_allclose(halves.mean, values.mean(0))
    np.testing.assert_allclose(halves.variance, values.var(0))


def test_views_that_disagree_weigh_a_network_down():
    target = {"depth": VectorTarget()}
    steady = Network(depth=lambda image: torch.zeros(1, 3, *image.shape[2:]))
    swaying = Network(depth=lambda image: 1 + position(image).repeat(1, 3, 1, 1, 1))
    views = choose_views(Tta(flips=("z", "y", "x")), (4, 4, 4), [CUBIC], Silent())
    patch = noise((1, 1, 4, 4, 4))
    own = averaged(target, views, swaying, with_uncertainty=True)(patch)
    mean = averaged(target, views, steady, swaying)(patch)["depth"]
    torch.testing.assert_close(mean, own["depth"] / 2)
    found = averaged(target, views, steady, swaying, by="variance")(patch)["depth"]
    # s^2 is 0 and v, in the mean v / 2: weights 1 and 1 / (1 + 7 x 2).
    torch.testing.assert_close(found, own["depth"] * (1 / 15) / (16 / 15))
    both = averaged(target, views, steady, steady, by="variance")(patch)["depth"]
    assert torch.equal(both, torch.zeros_like(both))


@pytest.mark.parametrize(
    ("tta", "patch", "spacing", "count"),
    [
        ({"flips": ("z", "y", "x")}, (6, 7, 8), (1, 2, 3), 8),
        ({"flips": ("x",)}, (6, 7, 8), (1, 2, 3), 2),
        ({"quarter_turns": True}, (8, 8, 8), CUBIC, 24),
        ({"flips": ("z", "y", "x"), "quarter_turns": True}, (8, 8, 8), CUBIC, 48),
        ({"quarter_turns": True}, (8, 8, 8), (2.0, 1.0, 1.0), 8),
        ({"quarter_turns": True}, (4, 8, 8), CUBIC, 8),
        ({"quarter_turns": (("y", "x"),)}, (8, 8, 8), CUBIC, 4),
        ({"quarter_turns": True}, (6, 7, 8), CUBIC, 4),
    ],
    ids=str,
)  # fmt: skip
def test_views_are_the_group_that_keeps_voxels_and_patch(tta, patch, spacing, count):
    reporter = Silent()
    views = choose_views(Tta(**tta), patch, [CUBIC, spacing], reporter)
    assert views[0] == IDENTITY
    assert len(set(views)) == len(views) == count
    assert {a @ b for a, b in combinations(views, 2)} <= set(views)
    for view in views:
        assert view.turned_shape(patch) == patch
        assert view.is_lawful(spacing)
    asks_for_all = tta.get("quarter_turns") is True
    assert bool(reporter.lines) == (asks_for_all and (len(set(patch)) > 1 or len(set(spacing)) > 1))


class Position(nn.Module):
    """Depends on the place in the patch, so that every view says something else."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.patches = 0

    def forward(self, image, targets):
        self.patches += 1
        return dict.fromkeys(targets, (self.factor * position(image[:, :1]),))


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image, targets):
        return dict.fromkeys(targets, (torch.full_like(image[:, :1], self.value),))


def ensemble(work, *networks, options=None, shas=None, **inference):
    """Predict with several networks, in this order."""
    task = work.task(**inference)
    shas = shas or range(1, len(networks) + 1)
    members = tuple(
        work.trained(task, module=network.eval(), sha256=f"{sha:064x}")
        for network, sha in zip(networks, shas, strict=True)
    )
    return predict_request(request_of(task, members), RunOptions(**(options or {})))


def test_an_equivariant_network_gives_the_same_bytes_with_views(workplace):
    plain = workplace(noise((9, 10, 12)))
    plain.run(overlap=0.3, patch_size=[6, 6, 6])
    work = workplace(noise((9, 10, 12)))
    report = work.run(
        overlap=0.3, patch_size=[6, 6, 6], tta={**EIGHT, "quarter_turns": True}, uncertainty=True
    )
    assert work.network.patches == 48 * report.patches
    value = {name: hash_ for name, hash_ in work.hashes().items() if name.startswith("value/")}
    assert value == plain.hashes()
    assert not work.read("value_uncertainty").any()


def test_views_and_networks_are_averaged_patch_by_patch(workplace):
    work = workplace(noise((12, 8, 20)), dtype=np.float32)
    ensemble(work, Position(), Position(-0.5), overlap=0, tta=EIGHT, uncertainty=True)
    mean, spread = np.empty(work.values.shape), np.empty(work.values.shape)
    for z, x in ((0, 0), (6, 0), (0, 10), (6, 10)):
        here = np.s_[z : z + 6, 0:8, x : x + 10]
        patch = torch.from_numpy(work.values[here].copy())[None, None]
        seen = [
            factor * position(patch.flip(axes)).flip(axes)[0, 0].numpy()
            for axes in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])
            for factor in (1, -0.5)
        ]
        mean[here], spread[here] = np.mean(seen, axis=0), np.std(seen, axis=0)
    np.testing.assert_allclose(work.read(), mean, atol=1e-6)
    np.testing.assert_allclose(work.read("value_uncertainty"), spread, atol=1e-6)
    group = open_volume(str(work.folder / "out/net.zarr/value_uncertainty/0"), key="x")
    assert group.extent == work.values.shape


@pytest.mark.parametrize(("weights", "expected"), [(None, 4.0), ([1, 3], 5.0)])
def test_constant_networks_give_their_mean(workplace, weights, expected):
    work = workplace(noise((9, 10, 11)))
    ensemble(work, Constant(2.0), Constant(6.0), ensemble={"weights": weights})
    assert np.allclose(work.read(), expected, atol=1e-6)


SETTINGS = {"tta": EIGHT, "uncertainty": True, "overlap": 0.3}


def test_units_parts_and_a_stop_do_not_change_a_bit(workplace):
    def networks():
        return Position(), Position(0.3)

    def fresh():
        return workplace(noise((20, 18, 19)))

    reference, small, parts, stopped = fresh(), fresh(), fresh(), fresh()
    ensemble(reference, *networks(), **SETTINGS, memory=1.0)
    ensemble(small, *networks(), **SETTINGS, memory=6e-4, num_dataloader_workers=0)
    for index in (1, 0):
        ensemble(parts, *networks(), **SETTINGS, options={"part": Part(index, 2)})
    left = iter(range(9))
    report = ensemble(
        stopped, *networks(), **SETTINGS, memory=6e-4,
        options={"should_stop": lambda: next(left, None) is None},
    )  # fmt: skip
    assert not report.is_complete
    assert ensemble(stopped, *networks(), **SETTINGS).is_complete
    assert any(name.startswith("value_uncertainty/") for name in reference.hashes())
    assert reference.hashes() == small.hashes() == parts.hashes() == stopped.hashes()


def test_the_order_of_checkpoints_means_nothing_and_views_do(workplace):
    work = workplace(noise((9, 10, 11)))
    weights = {"weights": [1, 3]}
    ensemble(work, Position(), Constant(1.0), shas=(7, 5), tta=EIGHT, ensemble=weights)
    turned = {"weights": [3, 1]}
    again = ensemble(work, Constant(1.0), Position(), shas=(5, 7), tta=EIGHT, ensemble=turned)
    assert again.was_complete
    with pytest.raises(OutputError, match="ensemble was"):
        ensemble(work, Constant(1.0), Position(), shas=(5, 7), tta=EIGHT)
    with pytest.raises(OutputError, match=r"checkpoint_sha256 was .*ensemble was .*tta was"):
        work.run()


def test_each_network_sees_the_image_in_its_own_normalisation(workplace):
    from vcmodels.data.normalization import ChannelStatistics, Normalization

    work = workplace(noise((9, 10, 11)))
    task = work.task()
    stats = ChannelStatistics(0.5, 0.25, 0, 1, 0, 1, 0.5, 0.25)
    scaled = Normalization("zscore", channels=(stats,))
    other = work.trained(task, normalization=scaled, sha256="1" * 64)
    predict_request(request_of(task, (work.trained(task), other)))
    expected = (work.values + (work.values - 0.5) / 0.25) / 2
    np.testing.assert_allclose(work.read(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sha256": "0" * 64}, "holds the same weights"),
        ({"in_channels": 2}, "takes 2 channels, the first checkpoint 1"),
        ({"spacing": (1.0, 1.0, 2.0)}, r"was trained on voxels of \(1.0, 1.0, 2.0\)"),
        ({"patch": (6, 8, 12)}, r"patches of \(6, 8, 12\)"),
        ({"targets": {}}, 'has no target "value"'),
        ({"targets": {"value": DistanceTarget(clip=2.0)}}, r"target \"value\" has clip=2\.0"),
    ],
)
def test_networks_that_do_not_fit_are_named(workplace, change, match):
    work = workplace(noise((9, 10, 11)))
    task = work.task()
    first = work.trained(task)
    task = task.model_copy(
        update={"inference_params": task.inference_params.model_copy(update={"patch_size": None})}
    )
    other = replace(first, **({"sha256": "1" * 64} | change))
    with pytest.raises(CheckpointError, match=match):
        predict_request(request_of(task, (first, other)))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"uncertainty": True}, "each patch is predicted once"),
        ({"ensemble": {"by": "variance"}, "tta": EIGHT}, "checkpoints: 1, views of each patch: 8"),
        ({"ensemble": {"weights": [1, 2]}}, "2 weights for 1 checkpoints"),
    ],
)
def test_what_there_is_too_little_for_is_refused(workplace, settings, match):
    work = workplace(noise((9, 10, 11)))
    with pytest.raises(TaskError, match=match):
        work.run(**settings)
    assert not (work.folder / "out").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tta": {}}, "names no view"),
        ({"tta": {"flips": ["z", "z"]}}, "name one axis twice"),
        ({"ensemble": {"by": "variance", "weights": [1, 2]}}, "leave them out"),
    ],
)
def test_keys_that_make_no_sense_are_refused(workplace, settings, match):
    with pytest.raises(TaskError, match=match):
        workplace(noise((2, 2, 2))).task(**settings)


def test_the_plan_counts_views_and_networks(workplace):
    work = workplace(noise((9, 10, 11)))
    options = {"dry_run": True}
    plan = ensemble(work, Position(), Position(2.0), tta=EIGHT, options=options).estimate
    assert plan.passes == 16
    assert f"forwards  {16 * plan.patches}, 16 for each patch" in plan.lines()


def test_each_network_has_temperatures_of_its_own_in_every_view():
    targets = {"sheet": BinaryTarget(), "value": RegressionTarget()}
    network = Network(sheet=position, value=position)
    patch = noise((1, 1, 4, 5, 6))
    views = choose_views(Tta(flips=("z",)), (4, 5, 6), [CUBIC], Silent())
    members = [
        Member(Forward(network, targets, CPU, None, 1, {"sheet": t}), 0.5, 0) for t in (2.0, 0.7)
    ]
    found = Averaged(members, views, CUBIC)(patch)
    image, seen = torch.from_numpy(patch), []
    for axes in ([], [2]):
        logits = position(image.flip(axes)).flip(axes)
        seen += [(logits / t).sigmoid() for t in (2.0, 0.7)]
    torch.testing.assert_close(found["sheet"], torch.stack(seen).mean(0))
    plain = averaged(targets, views, network)(patch)
    assert torch.equal(found["value"], plain["value"])
    assert not torch.allclose(found["sheet"], plain["sheet"], atol=1e-3)
