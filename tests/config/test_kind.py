import pytest
from pydantic import TypeAdapter, ValidationError

from vcmodels.config.legacy import KINDS, infer_kind
from vcmodels.errors import TaskError
from vcmodels.targets import AnyTarget, BinaryTarget, MulticlassTarget, NormalsTarget

ANY = TypeAdapter(AnyTarget)


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("anything", {"kind": "regression", "activation": "none"}, "regression"),
        ("sheet", {"loss_fn": "BCEDiceLoss"}, "binary"),
        ("field", {"channels": 3, "loss_fn": "MaskedCosineLoss"}, "normals"),
        ("distance", {"channels": 1, "loss": "smooth_l1"}, "regression"),
        ("distance", {"loss": {"l1": 1.0, "l2": 0.5}}, "regression"),
        ("mask", {"loss": {"bce": 1.0, "soft_jaccard": 1.0}}, "binary"),
        ("mask", {"channels": 3, "loss": "soft_dice"}, "multiclass"),
        ("classes", {"channels": 3, "loss": "ce"}, "multiclass"),
        ("field", {"channels": 3, "loss": "cosine"}, "normals"),
        ("mask", {"channels": 1, "activation": "sigmoid"}, "binary"),
        ("classes", {"channels": 3, "activation": "softmax"}, "multiclass"),
        ("normals", {"channels": 3, "activation": "none"}, "normals"),
        ("Normal", {}, "normals"),
        ("sheet", {"channels": 1, "activation": "none"}, "binary"),
        ("sheet", {}, "binary"),
    ],
)
def test_the_kind_is_told_from_what_the_block_says(name, block, kind):
    before = dict(block)
    found, _ = infer_kind(name, block)
    assert found["kind"] == kind
    assert ANY.validate_python(found).kind == kind
    assert block == before


def test_the_originals_example_targets_load():
    sheet = {
        "channels": 1,
        "activation": "none",
        "weight": 1,
        "loss_fn": "BCEDiceLoss",
        "loss_kwargs": {"alpha": 0.3, "beta": 0.7},
    }
    block, notes = infer_kind("sheet", sheet)
    assert ANY.validate_python(block) == BinaryTarget(loss={"bce": 0.3, "soft_dice": 0.7})
    assert len(notes) == 2
    assert notes[0].startswith('dataset_config.targets.sheet.loss_fn: "BCEDiceLoss" is read as')
    assert '"none" is read as "sigmoid"' in notes[1]
    normals = {"channels": 3, "activation": "none", "weight": 1, "loss_fn": "MaskedCosineLoss"}
    block, notes = infer_kind("normals", normals)
    assert ANY.validate_python(block) == NormalsTarget()
    assert len(notes) == 1


def test_an_explicit_kind_keeps_its_activation():
    block, notes = infer_kind("sheet", {"kind": "binary", "activation": "none"})
    assert (block["activation"], notes) == ("none", [])


def test_capitals_of_an_activation_are_forgiven_with_a_note():
    block, notes = infer_kind("classes", {"channels": 4, "activation": "Softmax"})
    assert ANY.validate_python(block) == MulticlassTarget(channels=4)
    assert notes == ['dataset_config.targets.classes.activation: read as "softmax"']


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"channels": 5}, r'targets\.t: 5 channels with activation "none" .*; add "kind": one of'),
        ({"channels": 3, "activation": "sigmoid"}, '3 channels .* add "kind"'),
        ({"loss_fn": "Tversky"}, r't\.loss_fn: "Tversky" is not one of BCEDiceLoss, .* use "loss"'),
        (
            {"loss_fn": "BCEDiceLoss", "loss_kwargs": {"alpha": 1, "gamma": 1}},
            "loss_kwargs: BCEDiceLoss is read with alpha and beta, got alpha, gamma",
        ),
        (
            {"loss_fn": "MaskedCosineLoss", "loss_kwargs": {"eps": 1}},
            "loss_kwargs: .* with none, got eps; leave them out",
        ),
        ({"loss_kwargs": {"alpha": 1}}, r"loss_kwargs: there is no loss_fn"),
        ({"loss_fn": "BCEDiceLoss", "loss": "bce"}, 'loss_fn: given beside "loss"; keep one'),
        (
            {"kind": "regression", "loss_fn": "BCEDiceLoss"},
            'trains kind "binary", not "regression"',
        ),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_remedy(block, message):
    with pytest.raises(TaskError, match=message):
        infer_kind("t", block)


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ValidationError, match="'binary', 'multiclass', 'regression', 'normals'"):
        ANY.validate_python({"kind": "edges"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_dumped_target_parses_to_the_same(kind):
    keys = {"encoding": {"scale": 0.5}} if kind in ("normals", "regression") else {}
    keys |= {"clip": 5.0} if kind == "distance" else {}
    target = ANY.validate_python({"kind": kind, "ignore_label": [2, 3], **keys})
    assert ANY.validate_python(target.model_dump()) == target
    assert ANY.validate_json(target.model_dump_json()) == target


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_documented(kind):
    properties = ANY.json_schema()["$defs"][KINDS[kind].__name__]["properties"]
    assert [name for name, schema in properties.items() if "description" not in schema] == []
