"""Which figure of which target a limit is about."""

import pytest

from vcmodels.errors import RefusedError
from vcmodels.evaluation.limits import parse_limits


def meant(name, **known):
    figures = {target: dict.fromkeys(names, "max") for target, names in known.items()}
    (limit,) = parse_limits([f"{name}=0.5"], figures)
    return limit.target, limit.figure


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a")], ids=str)
def test_a_target_whose_name_begins_like_that_of_another_is_found(names):
    known = dict.fromkeys(names, ("dice", "iou"))
    assert meant("a.b.dice", **known) == ("a.b", "dice")
    assert meant("a.iou", **known) == ("a", "iou")


def test_a_class_may_have_a_dot():
    assert meant("a.dice_b.c", **{"a": ("dice", "dice_b.c"), "a.dice_b": ("iou",)}) == (
        "a", "dice_b.c",
    )  # fmt: skip
    assert meant("dice_b.c", a=("dice", "dice_b.c")) == ("a", "dice_b.c")


def test_one_target_need_not_be_named():
    assert meant("dice", a=("dice",)) == ("a", "dice")
    assert meant("a.dice", a=("dice",)) == ("a", "dice")


def test_what_may_be_two_figures_is_refused_with_both():
    known = {"a": ("b.dice",), "a.b": ("dice",)}
    message = 'may be figure "b.dice" of target "a" or figure "dice" of target "a.b"; rename'
    with pytest.raises(RefusedError, match=message):
        meant("a.b.dice", **known)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.dice", '"c.dice" names no target; .* targets are a, a.b'),
        ("a.b.dise", 'no figure "dise" of a.b is measured; choose from dice'),
        ("a.dise", 'no figure "dise" of a is measured; choose from dice, iou'),
    ],
)
def test_what_is_not_known_is_refused_with_the_choices(name, message):
    with pytest.raises(RefusedError, match=message):
        meant(name, **{"a": ("dice", "iou", "dice_b.c"), "a.b": ("dice",)})


def test_the_one_target_is_named_where_its_figure_is_not_known():
    with pytest.raises(RefusedError, match='no figure "dise" of a is measured'):
        meant("dise", a=("dice",))
    with pytest.raises(RefusedError, match='no figure "dise" of a is measured'):
        meant("a.dise", a=("dice",))
