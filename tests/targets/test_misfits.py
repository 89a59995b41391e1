"""What each kind says of a label that it cannot mean, by the values that the label holds."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from vcmodels.errors import FaultError
from vcmodels.targets import AnyTarget, BinaryTarget
from vcmodels.targets.census import WIDTH, Census, ValueFigures, unstorable
from vcmodels.targets.stored import ForegroundRule

SHAPE = (6, 10, 14)
PARSER = TypeAdapter(AnyTarget)
RNG = np.random.default_rng(0)


def census(stored, is_counted, ignored=(), together=0, **changes):
    """What an index says of a label (S, Z, Y, X), by a plain count of its values."""
    figures, counts = ValueFigures(), {}
    if is_counted:
        values, numbers = np.unique(stored[np.isfinite(stored)], return_counts=True)
        counts = {int(v): int(n) for v, n in zip(values, numbers, strict=True)}
    if not is_counted or len(counts) > 20:
        figures = ValueFigures.of(stored, ignored, is_counted=is_counted)
    if not is_counted:
        zeros = int((stored == 0).all(axis=0).sum())
        counts, together = ({0: zeros} if zeros else {}), figures.voxels
    given = (stored.dtype, len(stored), counts, together, figures, True)
    return Census(*given, **changes)


def misfits(block, stored, is_counted=True):
    target = PARSER.validate_python(block)
    found = list(target.misfits(census(stored, is_counted, target.ignored)))
    return [(misfit.is_fatal, f"{misfit.found}; {misfit.remedy}") for misfit in found]


def only(block, stored, is_counted=True):
    """The one fault, with its remedy."""
    ((is_fatal, text),) = misfits(block, stored, is_counted)
    assert is_fatal
    return text


def mask(*values, dtype=np.uint8):
    return RNG.choice(np.array(values, dtype), (1, *SHAPE))


def slope(most, dtype):
    """Values that rise along y, as a probability does, and are the same along x."""
    rise = np.linspace(0, most, SHAPE[1]).reshape(1, 1, -1, 1) + np.arange(6).reshape(1, -1, 1, 1)
    return np.broadcast_to(rise.round().clip(0, most), (1, *SHAPE)).astype(dtype)


def ids(dtype):
    """Instances of 3 x 5 x 7 voxels, of more than twenty numbers in steps of 9."""
    numbers = np.arange(8).reshape(2, 2, 2) * 9 + 40
    whole = numbers.repeat(3, 0).repeat(5, 1).repeat(7, 2)[None]
    more = np.arange(1, 31).reshape(1, 1, 5, 6)  # of a few voxels, as a border cuts them off
    stored = whole.astype(dtype)
    stored[:, :1, :5, :6] = more
    return stored


@pytest.mark.parametrize(
    ("text", "foreground"),
    [
        (">= 0.5", [0.5, 1, 255]),
        (">0.5", [1, 255]),
        ("== 1, 255", [1, 255]),
        ("!= 0", [0.5, 1, 255, -1]),
        ("< 0", [-1]),
        ("<= 5e-1", [0, 0.5, -1]),
    ],
)
def test_a_comparison_says_which_values_are_foreground(text, foreground):
    values = np.array([0, 0.5, 1, 255, -1, np.nan])
    comparison = ForegroundRule.parse(text)
    assert values[comparison.of(values)].tolist() == sorted(foreground, key=values.tolist().index)
    assert [v for v in values if comparison.meets(v)] == values[comparison.of(values)].tolist()
    assert ForegroundRule.parse(str(comparison)) == comparison


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float16, bool])
def test_a_comparison_holds_for_any_dtype(dtype):
    stored = np.array([[0, 1]], dtype)
    for text, wanted in (
        ("> 0.5", [0, 1]),
        ("== 300", [0, 0]),
        ("< 300", [1, 1]),
        ("!= -1", [1, 1]),
    ):
        assert ForegroundRule.parse(text).of(stored).tolist() == [list(map(bool, wanted))]


@pytest.mark.parametrize("text", ["0.5", "> ", ">= 1, 2", "=> 1", "> nan", "> 1e999", "> 0 or < 1"])
def test_what_is_no_comparison_is_refused(text):
    with pytest.raises(FaultError, match=r"is no comparison|several values|infinity"):
        ForegroundRule.parse(text)
    with pytest.raises(ValueError, match=r"is no comparison|several values|infinity"):
        BinaryTarget(foreground=text)


@pytest.mark.parametrize("kind", ["binary", "boundary", "affinities"])
def test_a_mask_is_read_by_its_foreground(kind):
    target = PARSER.validate_python({"kind": kind, "foreground": ">= 0.5", "ignore_label": 9})
    stored = np.array([0, 0.4, 0.5, 0.9, 9, -2, np.nan], np.float32).reshape(1, 1, 1, -1)
    label, valid = target.read_label(stored.repeat(target.channels, 0))
    assert label[-1].ravel().tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert valid[-1].ravel().tolist() == [1, 1, 1, 1, 0, 1, 0]


MASKS = [{"kind": "binary"}, {"kind": "boundary"}, {"kind": "normals", "derive": "cells"}]


@pytest.mark.parametrize("block", MASKS, ids=lambda block: block["kind"])
def test_soft_masks_need_a_stated_foreground(block):
    soft = RNG.random((1, *SHAPE)).astype(np.float32)
    assert "fractions, from 0.0" in only(block, soft, False)
    assert 'give "foreground": ">= 0.5"' in only(block, soft, False)
    for codes, half in ((slope(255, np.uint8), 128), (slope(65535, np.uint16), 32768),
                        (slope(100, np.uint8), 50), (slope(255, np.float32), 128)):  # fmt: skip
        assert (
            f'as a probability does; every value above 0 would be foreground; give "foreground": ">= {half}"'
            in only(block, codes, False)
        )
    stated = {**block, "foreground": ">= 0.5"}
    assert not misfits(stated, soft, False)
    assert not misfits({**block, "foreground": ">= 128"}, slope(255, np.uint8), False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.float32])
@pytest.mark.parametrize("block", MASKS, ids=lambda block: block["kind"])
def test_ids_are_a_lawful_mask(block, dtype):
    assert not misfits(block, ids(dtype), False)


def test_a_mask_of_a_few_values_gets_a_word():
    assert not misfits({"kind": "binary"}, mask(0, 255))
    assert not misfits({"kind": "binary"}, mask(0, 1, dtype=bool))
    ((is_fatal, text),) = misfits({"kind": "binary"}, mask(0, 1, 2))
    assert (is_fatal, text) == (
        False,
        'holds 1, 2, all of them foreground; give "foreground": "== 1" or "> 0", or "ignore_label"',
    )
    for keys in ({"foreground": "== 1"}, {"foreground": "> 0"}, {"ignore_label": 2}):
        assert not misfits({"kind": "binary", **keys}, mask(0, 1, 2))
    assert "holds -3; a mask or ids are 0 or more" in only(
        {"kind": "binary"}, mask(0, 1, -3, dtype=np.int16)
    )


@pytest.mark.parametrize(
    ("dtype", "code", "ignored"),
    [(np.uint8, 255, -1), (np.uint16, 65535, -1), (np.uint8, 255, 2), (np.int16, 32767, 255)],
)
def test_an_ignored_value_that_is_not_there_next_to_one_that_looks_like_it(dtype, code, ignored):
    block = {"kind": "binary", "ignore_label": ignored}
    text = only(block, mask(0, 1, code, dtype=dtype))
    assert f"holds {code} in" in text
    assert f"but not the ignored {ignored}" in text
    assert (f"which {np.dtype(dtype)} cannot store" in text) == (ignored == -1)
    assert f'give "ignore_label": {code}, or "foreground": "> 0"' in text
    assert not misfits({**block, "ignore_label": code}, mask(0, 1, code, dtype=dtype))
    assert not misfits(
        {**block, "foreground": "> 0", "ignore_label": None}, mask(0, 1, code, dtype=dtype)
    )
    ((is_fatal, text),) = misfits({"kind": "binary"}, mask(0, 1, code, dtype=dtype))
    assert not is_fatal
    assert f'if it means "not annotated", give "ignore_label": {code}' in text


def test_an_ignored_value_that_cannot_be_stored_gets_a_word():
    ((is_fatal, text),) = misfits({"kind": "binary", "ignore_label": -1}, mask(0, 255))
    assert not is_fatal
    assert "uint8, which cannot store the ignored -1" in text
    assert unstorable([-1, 255, 256, 0], np.dtype(np.uint8)) == {-1: 255, 256: 0}
    assert unstorable([-1, 2], np.dtype(bool)) == {-1: 1, 2: 1}
    assert unstorable([-1], np.dtype(np.float32)) == {}


def sides(block, *labels, is_counted=True):
    target = PARSER.validate_python(block)
    censuses = [census(label, is_counted, target.ignored) for label in labels]
    counts = [target.classes_of(one) for one in censuses]
    voxels = {key: sum(count[key] for count in counts) for key in counts[0]}
    return [(m.is_fatal, f"{m.found}; {m.remedy}") for m in target.class_misfits(voxels, censuses)]


def test_a_mask_needs_both_sides():
    two, full = mask(0, 1), mask(1)
    assert not sides({"kind": "binary"}, full, two)
    ((_, text),) = sides({"kind": "binary"}, full)
    assert "all 840 voxels that count are foreground, none background" in text
    ((_, text),) = sides({"kind": "binary", "ignore_label": 0}, mask(0, 1, 2))
    assert text.endswith('give "foreground": "== 1" or correct ignore_label, or remove the target')
    assert not sides({"kind": "binary", "ignore_label": 0, "foreground": "== 1"}, mask(0, 1, 2))
    ((_, text),) = sides({"kind": "binary", "loss_only_on_label": True}, two)
    assert text.endswith("remove loss_only_on_label")
    ((_, text),) = sides({"kind": "binary"}, mask(0))
    assert "no voxel is foreground; all of it is 0" in text
    ((_, text),) = sides({"kind": "binary", "foreground": ">= 2"}, mask(0, 1))
    assert "no voxel is foreground; values go from 0 to 1" in text
    assert not sides(
        {"kind": "binary"}, ids(np.uint16)[:, :, :, :7] * mask(0, 1)[..., :7], is_counted=False
    )


def test_faces_may_be_derived_from_instances_that_fill_a_volume():
    dense = census(ids(np.uint16), is_counted=False)
    for kind in ("boundary", "affinities"):
        assert PARSER.validate_python({"kind": kind, "derive": "cells"}).classes_of(dense) is None
    assert (
        "none background"
        in sides({"kind": "binary", "derive": "cells"}, ids(np.uint16), is_counted=False)[0][1]
    )


def test_values_that_are_no_class_are_named_with_their_number():
    block = {"kind": "multiclass", "channels": 3}
    stored = mask(0, 1, 2)
    assert not misfits(block, stored)
    stored[0, 0, 0, :3] = 9
    text = only(block, stored)
    assert text.startswith("holds 9 in 3 voxels; the classes are 0, 1, 2; correct")
    for keys in (
        {"ignore_label": 9},
        {"remap": {9: 1}},
        {"channels": 4, "label_values": [0, 1, 2, 9]},
    ):
        assert not misfits({**block, **keys}, stored)
    assert "holds 0 in" in only({"kind": "multiclass", "label_values": [1, 2]}, mask(0, 1, 2))
    only_labelled = {"kind": "multiclass", "label_values": [1, 2], "loss_only_on_label": True}
    assert not misfits(only_labelled, mask(0, 1, 2))
    assert "holds fractions" in only(block, RNG.random((1, *SHAPE)), False)
    assert "holds 839" in only(block, np.arange(840, dtype=np.uint16).reshape(1, *SHAPE), False)


def test_classes_without_a_voxel():
    block = {"kind": "multiclass", "channels": 4}
    ((is_fatal, text),) = sides(block, mask(0, 1))
    assert not is_fatal
    assert "no voxel is of class 2, 3, which is not learnt" in text
    assert not sides(block, mask(0, 1), mask(2, 3))
    ((is_fatal, text),) = sides(block, mask(0))
    assert is_fatal
    assert "all voxels that count are of class 0" in text


@pytest.fixture(scope="module")
def normals():
    """Unit vectors, a third of the volume unlabelled."""
    vectors = RNG.normal(size=(3, *SHAPE))
    vectors /= np.linalg.norm(vectors, axis=0)
    vectors[..., 10:] = 0
    return vectors


def test_normals_in_any_usual_encoding_are_fine(normals):
    block = {"kind": "normals"}
    codes = ((normals + 1) / 2 * 255).round()  # the zero vector is 127.5, which is none
    for stored in (normals.astype(np.float32), codes.astype(np.uint8), (normals * 127).round().astype(np.int8),
                   (codes * (normals != 0)).astype(np.uint8), np.where(normals, normals, np.nan)):  # fmt: skip
        assert not misfits(block, stored, False)
    assert not misfits(block, np.full((3, *SHAPE), 3**-0.5), False)  # one direction everywhere


def test_normals_of_another_encoding_or_length(normals):
    block, codes = {"kind": "normals"}, ((normals + 1) / 2 * 255).round() * (normals != 0)
    text = only(block, codes.astype(np.float32), False)
    assert 'not 1; give "encoding": {"scale": 0.0078431373, "offset": -1}' in text
    told = {**block, "encoding": {"scale": 0.0078431373, "offset": -1}}
    assert not misfits(told, codes.astype(np.float32), False)
    halves = np.where(normals, (normals + 1) / 2, 0)
    assert '{"scale": 2, "offset": -1}' in only(block, halves, False)
    assert "holds vectors of length" in only(
        block, (normals * 127).round().astype(np.int8).view(np.uint8), False
    )
    ((is_fatal, text),) = misfits(block, 7 * normals, False)
    assert (is_fatal, text) == (
        False,
        "holds vectors of length 7 to 7, not 1; their directions are used",
    )
    assert "int32, for which normals have no default" in only(
        block, (9 * normals).astype(np.int32), False
    )


@pytest.mark.parametrize("code", [-1, 1])
def test_a_constant_that_is_no_normal(normals, code):
    stored = normals.copy()
    stored[..., 10:] = code
    text = only({"kind": "normals"}, stored, False)
    assert f"holds {code} in 240 voxels (29%)" in text
    assert not misfits({"kind": "normals", "ignore_label": code}, stored, False)
    text = only({"kind": "normals", "encoding": {"zero_code": 5}}, stored, False)
    assert "but not the ignored 5" in text


@pytest.mark.parametrize(
    "block",
    [{"kind": "vector"}, {"kind": "regression", "channels": 3}],
    ids=lambda block: block["kind"],
)
def test_a_sentinel_in_numbers_gets_a_word(normals, block):
    stored = 4 * normals
    assert not misfits(block, stored, False)
    stored[..., 10:] = -9999
    ((is_fatal, text),) = misfits(block, stored, False)
    assert not is_fatal
    assert 'give "ignore_label": -9999' in text
    assert not misfits({**block, "ignore_label": -9999}, stored, False)
    assert "holds -9999" in only({**block, "ignore_label": -1}, stored, False)


def test_numbers_outside_of_what_a_kind_takes():
    far = 8 * RNG.random((1, *SHAPE)) + 1e-3
    assert "and a heat map takes [0, 1]" in only({"kind": "centres"}, far, False)
    assert not misfits({"kind": "centres", "encoding": {"scale": 0.1}}, far, False)
    bce = {"kind": "regression", "activation": "sigmoid", "loss": "bce"}
    assert 'and loss "bce" takes [0, 1]' in only(bce, far, False)
    assert not misfits({"kind": "regression"}, far, False)
    plain = {"kind": "distance", "clip": 4.0, "signed": False}
    assert "a negative distance, and is not signed" in only(plain, far - 4, False)
    assert not misfits({"kind": "distance", "clip": 4.0}, far - 4, False)
    assert not misfits(plain, far, False)


@pytest.mark.parametrize("channels", [1, 3])
def test_figures_add_up_and_are_kept(channels):
    stored = RNG.integers(0, 9, (channels, *SHAPE)).astype(np.float32) / 2
    stored[:, 0, 0, 0] = np.nan
    stored[:, 2:4] = -1
    whole = ValueFigures.of(stored, (7,))
    parts = [ValueFigures.of(stored[:, :, :, part], (7,)) for part in (np.s_[:4], np.s_[4:])]
    both = parts[0] + parts[1]
    for name in ("voxels", "ignored", "unknown", "fractions", "low", "high"):
        assert getattr(both, name) == getattr(whole, name)
    assert both.constants[-1.0] == whole.constants[-1.0] == 280
    again = ValueFigures.from_array(both.to_array())
    assert again.to_array().tobytes() == both.to_array().tobytes()
    assert (again.constants, len(again.sample)) == (both.constants, len(both.sample))
    assert ValueFigures.from_array(np.zeros(WIDTH)) is None
