import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from tests.symmetry.phantoms import SHAPE, blobs, find, texture, tiles, volume_of
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, IDENTITY, mirror, quarter_turn
from vcmodels.symmetry.find import closed_group
from vcmodels.symmetry.findings import SymmetryVerdict
from vcmodels.targets import BinaryTarget, MulticlassTarget, NormalsTarget

PATCH = (10, 11, 12)


def turns(found):
    names = {"zy": (0, 1), "zx": (0, 2), "yx": (1, 2)}
    return {name for name, plane in names.items() if quarter_turn(*plane) in set(found.group)}


def test_a_place_of_its_own_leaves_no_mirror():
    found = find(blobs(lambda rng: (0.05, 0.4, 0.7)))
    assert found.group == (IDENTITY,)
    assert "label mask: told apart in" in found.verdicts[str(mirror(2))].reason


@pytest.mark.parametrize("count", [13, 14, 15, 17])
def test_several_windows_of_some_volumes_refute_a_mirror(count):
    """Two windows of each volume, with a ball at one place in each."""
    volumes = blobs(lambda rng: (0.05, 0.4, 0.7), count=count)
    both = [np.concatenate([v.inputs[0].read(v.region)[0]] * 2) for v in volumes]
    marked = [np.concatenate([v.labels["mask"].read(v.region)[0]] * 2) for v in volumes]
    volumes = [
        volume_of(n, i, {"mask": m}) for n, (i, m) in enumerate(zip(both, marked, strict=True))
    ]
    rows = np.array([(n, z, 0, 0) for n in range(count) for z in (0, SHAPE[0])])
    assert find(volumes, rows=rows).mirrors == ()


def test_one_mirror_holds_where_only_one_axis_has_no_side():
    found = find(blobs(lambda rng: (0.2, 0.4, rng.uniform(0.3, 0.7))))
    assert set(found.group) == {IDENTITY, mirror(2)}


def test_a_plane_without_a_side_is_mirrored_and_turned():
    found = find(blobs(lambda rng: (0.25, *rng.uniform(0.3, 0.7, 2)), count=40))
    assert found.mirrors == ("y", "x")
    assert turns(found) == {"yx"}
    assert len(found.group) == 8


def test_all_holds_where_nothing_has_a_side():
    found = find(blobs(lambda rng: rng.uniform(0.3, 0.7, 3), count=40))
    assert len(found.group) == 48
    assert "not refuted" in found.verdicts[str(mirror(0))].reason


def test_axes_of_other_voxels_are_not_exchanged():
    found = find(blobs(lambda rng: rng.uniform(0.3, 0.7, 3), spacing=(3.0, 1.0, 1.0)))
    assert found.mirrors == ("z", "y", "x")
    assert turns(found) == {"yx"}
    assert "voxels are 3, 1 long along z, x" in found.verdicts[str(quarter_turn(0, 2))].reason


def test_a_texture_has_no_side_in_one_volume():
    """Of one specimen, whose fibres run one way: that way is its own."""
    image = texture((48, 56, 64), sigma=(1.5, 1.5, 1.8))
    image = np.roll(image, 3, 1) + image  # stripes aslant
    volume = volume_of(0, image, {"mask": (image > 0.7).astype(np.uint8)})
    found = find([volume], patch=(16, 16, 16), rows=tiles(image.shape, (16, 16, 16)))
    assert found.windows > 32
    assert len(found.group) == 48


def sawtooth(rng, shape=(40, 44, 48)):
    """Fades along z and ends sharply, at random heights."""
    base = gaussian_filter(rng.normal(size=shape), 1.2)
    decay = 0.7 ** np.arange(8)
    faded = np.apply_along_axis(
        lambda line: np.convolve(np.maximum(line, 0), decay)[: len(line)], 0, base
    )
    return (faded / faded.std()).astype(np.float32)


def test_an_image_that_fades_to_one_side_has_that_side_alone():
    image = sawtooth(np.random.default_rng(0))
    label = (texture(image.shape, 1) > 1).astype(np.uint8)
    found = find(
        [volume_of(0, image, {"mask": label})], patch=PATCH, rows=tiles(image.shape, PATCH)
    )
    assert found.mirrors == ("y", "x")
    assert turns(found) == {"yx"}
    assert "edges of the image" in found.verdicts[str(mirror(0))].reason


def test_a_label_that_lies_beside_what_it_marks_has_a_side():
    image = texture((40, 44, 48))
    label = (np.roll(image, 2, axis=1) > 0.7).astype(np.uint8)
    found = find(
        [volume_of(0, image, {"mask": label})], patch=PATCH, rows=tiles(image.shape, PATCH)
    )
    assert found.mirrors == ("z", "x")
    assert "image around mask" in found.verdicts[str(mirror(1))].reason


def test_an_axis_that_is_blurred_is_mirrored_and_not_exchanged():
    image = gaussian_filter1d(texture((40, 44, 48), sigma=(1, 1, 1)), 2.5, axis=0)
    label = (image > image.std()).astype(np.uint8)
    found = find(
        [volume_of(0, image, {"mask": label})], patch=PATCH, rows=tiles(image.shape, PATCH)
    )
    assert found.mirrors == ("z", "y", "x")
    assert turns(found) == {"yx"}
    assert "times as strong along y as along z" in found.verdicts[str(quarter_turn(0, 1))].reason


def two_sided(ball, middle):
    """Class 1 on the low side of x, class 2 on the other."""
    return (ball * (1 if middle[2] < (SHAPE[2] - 1) / 2 else 2)).astype(np.uint8)


@pytest.mark.parametrize(
    ("pairs", "mirrors"), [({}, ("z", "y")), ({"x": [(1, 2)]}, ("z", "y", "x"))]
)
def test_a_left_and_a_right_class_are_alike_where_they_are_a_pair(pairs, mirrors):
    volumes = blobs(lambda rng: rng.uniform(0.25, 0.75, 3), count=60, label=two_sided)
    target = MulticlassTarget(channels=3, mirror_pairs=pairs)
    found = find(volumes, {"mask": target})
    assert found.mirrors == mirrors
    assert turns(found) == {"zy"}
    reason = found.verdicts[str(quarter_turn(1, 2))].reason
    assert ("mirror_pairs along x" in reason) == bool(pairs)


def sheets(way, lit=False, count=40, seed=0, joined=False):
    """Volumes with one plane sheet each, alike from both sides unless it is lit, and its normals.

    Where they are `joined`, they are one volume.
    """
    rng, volumes = np.random.default_rng(seed), []
    shape = (24, 24, 24)
    for _ in range(count):
        normal = way(rng)
        place = np.indices(shape) - rng.uniform(10, 13, 3)[:, None, None, None]
        height = np.tensordot(normal, place, 1)
        image = 5 * np.exp(-(height**2) / 4) + rng.normal(0, 0.3, shape)
        image += 1.5 * (height > 0) if lit else 0
        inside = (np.abs(height) < 1.5).astype(np.float32)
        labels = {"normals": normal[:, None, None, None] * inside}
        volumes.append((image.astype(np.float32), labels["normals"]))
    if joined:
        volumes = [tuple(np.concatenate(parts, -3) for parts in zip(*volumes, strict=True))]
    rows = [(n, z, 0, 0) for n, v in enumerate(volumes) for z in range(0, len(v[0]), shape[0])]
    opened = [volume_of(n, image, {"normals": v}) for n, (image, v) in enumerate(volumes)]
    target = NormalsTarget(vector_order="zyx")
    return find(opened, {"normals": target}, patch=shape, rows=np.array(rows))


def anywhere(rng):
    normal = rng.normal(size=3)
    return normal / np.linalg.norm(normal)


def upwards(rng):
    normal = np.array([3.0, *rng.normal(size=2)])
    return normal / np.linalg.norm(normal)


def test_a_sign_that_nothing_tells_is_no_sign():
    found = sheets(anywhere)
    sign = found.signs["normals"]
    assert len(found.group) == 48
    assert sign.by_image < 0.65
    assert sign.along < 0.75
    assert '"orientation": "axial"' in sign.remedy


def test_a_common_direction_tells_the_sign_and_leaves_that_mirror_out():
    found = sheets(upwards)
    sign = found.signs["normals"]
    assert found.mirrors == ("y", "x")
    assert turns(found) == {"yx"}
    assert "label normals" in found.verdicts[str(mirror(0))].reason
    assert sign.by_image < 0.65
    assert sign.along > 0.95
    assert not sign.remedy


def test_a_common_direction_of_one_volume_is_spoken_of():
    """Whatever it is in others: here nothing else tells the sign, so that its mirror stays out."""
    found = sheets(upwards, joined=True)
    sign = found.signs["normals"]
    assert found.volumes == 1
    assert found.mirrors == ("y", "x")
    assert sign.by_direction
    assert '"orientation": "axial"' in sign.remedy


def test_a_common_direction_of_one_volume_refutes_nothing_where_the_image_tells_the_sign():
    found = sheets(upwards, lit=True, joined=True)
    assert "label normals" not in "".join(one.reason for _, one in found.shown())
    assert not found.signs["normals"].remedy
    assert mirror(0) in sheets(anywhere, lit=True, joined=True).group


@pytest.mark.parametrize(
    "drift", [lambda x: 2 * x - 1, lambda x: np.cos(np.pi * x)], ids=["linear", "bent"]
)
def test_a_brightness_that_drifts_across_one_volume_refutes_nothing(drift):
    image = texture((48, 56, 120))
    label = (image > 0.7).astype(np.uint8)
    image += drift(np.linspace(0, 1, 120)).astype(np.float32)
    patch = (20, 20, 20)
    found = find(
        [volume_of(0, image, {"mask": label})], patch=patch, rows=tiles(image.shape, patch)
    )
    assert len(found.group) == 48


def test_an_image_that_tells_the_sign_leaves_all_mirrors():
    found = sheets(anywhere, lit=True)
    sign = found.signs["normals"]
    assert len(found.group) == 48
    assert sign.by_image > 0.95
    assert not sign.remedy


def test_axes_have_no_sign_and_refute_nothing():
    axial = NormalsTarget(vector_order="zyx", orientation="axial")
    image = texture((40, 44, 48))
    labels = {"normals": np.ones((3, *image.shape), np.float32)}
    found = find(
        [volume_of(0, image, labels)], {"normals": axial}, PATCH, rows=tiles(image.shape, PATCH)
    )
    assert len(found.group) == 48
    assert not found.signs


def test_findings_are_the_same_for_one_seed():
    volumes = blobs(lambda rng: (0.3, *rng.uniform(0.3, 0.7, 2)))
    assert find(volumes, seed=3) == find(volumes, seed=3)


def test_few_volumes_refute_nothing_and_none_at_all_neither():
    volumes = blobs(lambda rng: (0.2, 0.2, 0.8), count=3)
    assert len(find(volumes, {"mask": BinaryTarget()}).group) == 48
    nothing = find(volumes, rows=np.zeros((0, 4), np.int64))
    assert len(nothing.group) == 48
    reason = nothing.verdicts[str(mirror(0))].reason
    assert reason == "taken to hold: 0 windows are too few to refute it"


@settings(max_examples=25)
@given(st.sets(st.sampled_from(CUBE_SYMMETRIES[1:]), max_size=20))
def test_what_is_kept_is_a_group_without_anything_refuted(refuted):
    others = CUBE_SYMMETRIES[1:]
    verdicts = {one: SymmetryVerdict(one not in refuted, "", 0.5) for one in others}
    kept = closed_group(verdicts)
    assert IDENTITY in kept
    assert not kept & refuted
    assert {a @ b for a in kept for b in kept} == kept
    if not refuted:
        assert len(kept) == 48
