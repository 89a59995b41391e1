import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError

TARGETS = {"sheet": {"kind": "binary"}, "grown": {"kind": "binary", "derive": "sheet"}}


def parsed(targets=None, volume=None, **settings):
    return parse_task(task_of(targets, volume, **settings), "task.json")[0]


def task_of(targets=None, volume=None, **settings):
    entry = {"input": "a.zarr", "sheet": "b.zarr", **(volume or {})}
    return {
        "tr_params": {"model_name": "m", "patch_size": [16, 16, 16], **settings},
        "model_config": {"f_maps": [4, 8]},
        "dataset_config": {
            "volume_paths": [{key: value for key, value in entry.items() if value is not None}],
            "targets": TARGETS | (targets or {}),
        },
    }


def test_a_target_may_be_derived_from_another_or_from_a_label_that_is_none():
    cells = {"kind": "binary", "derive": "cells"}
    task = parsed({"cell": cells}, {"cells": "c.zarr", "ref_label": "cells"})
    (volume,) = task.dataset_config.volume_paths
    assert volume.labels == {"sheet": "b.zarr", "cells": "c.zarr"}
    assert volume.ref_label == "cells"
    assert task == parse_task(task.to_json(), "again")[0]


KEY = r"dataset_config\.targets\.t\.derive: "


@pytest.mark.parametrize(
    ("derive", "message"),
    [
        ("grown", KEY + '"grown" is itself derived; derive from a label that is stored'),
        ("t", KEY + '"t" is itself derived'),
        ("shet", KEY + r'no volume has a label "shet" \(they have "sheet"\); did you mean "sheet"'),
        ("cells", KEY + 'no volume has a label "cells" .*; add "cells": path to a volume'),
        ("weight", KEY + '"weight" can be no label: the name is reserved'),
        ("a b", KEY + '"a b" can be no label: the name is not safe'),
        ("", KEY + 'found ""'),
        (3, KEY + "found 3"),
    ],
)
def test_a_source_that_cannot_be_is_named(derive, message):
    with pytest.raises(TaskError, match=message):
        parsed({"t": {"kind": "binary", "derive": derive}})


def test_vectors_are_no_source():
    targets = {"flow": {"kind": "normals"}, "t": {"kind": "binary", "derive": "flow"}}
    message = KEY + '"flow" of kind "normals" is no mask and holds no ids'
    with pytest.raises(TaskError, match=message):
        parsed(targets, {"flow": "c.zarr"})


def test_a_kind_that_cannot_be_derived_says_so():
    with pytest.raises(TaskError, match=r"targets.t.* cannot be derived from another label"):
        parsed({"t": {"kind": "multiclass", "derive": "sheet"}})


def test_a_derived_target_has_no_label_of_its_own():
    message = (
        r'volume_paths\.0\.grown: dataset_config\.targets\.grown is derived from "sheet"; '
        "remove this path, or that derive"
    )
    with pytest.raises(TaskError, match=message):
        parsed(volume={"grown": "c.zarr"})


def test_a_misspelt_source_key_of_a_volume_is_told():
    with pytest.raises(TaskError, match=r'volume_paths\.0\.cels: .* did you mean "cells"'):
        parsed({"t": {"kind": "binary", "derive": "cells"}}, {"cels": "c.zarr"})


def test_a_reference_is_a_label_of_the_volume():
    with pytest.raises(
        TaskError, match=r'ref_label: "grown" is no label of this volume; .*"sheet"'
    ):
        parsed(volume={"ref_label": "grown"})


@pytest.mark.parametrize(
    ("own", "source", "everywhere", "ignored"),
    [
        (None, None, None, None),
        (None, 2, None, 2),
        (None, 2, 9, 2),
        (None, 2, {"sheet": 9}, 2),
        (None, None, 9, 9),
        (None, None, {"sheet": 9}, 9),
        (None, 2, {"grown": 9}, 9),
        (None, None, {"sheet": 8, "grown": 9}, 9),
        (3, 2, {"grown": 9}, 3),
        ([3, 4], 2, 9, [3, 4]),
    ],
)
def test_the_ignored_values_are_those_of_the_source(own, source, everywhere, ignored):
    targets = {
        "sheet": {"kind": "binary", "ignore_label": source},
        "grown": {"kind": "binary", "derive": "sheet", "ignore_label": own},
    }
    task = parsed(targets, ignore_label=everywhere)
    assert task.dataset_config.targets["grown"].ignore_label == ignored


def test_ignored_values_of_a_label_that_is_no_target_reach_what_is_derived_from_it():
    targets = {name: {"kind": "binary", "derive": "cells"} for name in "ab"}
    task = parsed(targets, {"cells": "c.zarr"}, ignore_label={"cells": [4, 5]})
    assert [task.dataset_config.targets[n].ignored for n in "ab"] == [(4, 5)] * 2


def test_pseudo_labels_are_named_with_a_weight():
    task = parsed(volume={"pseudo": {"sheet": 0.3, "grown": 1}})
    assert task.dataset_config.volume_paths[0].pseudo == {"sheet": 0.3, "grown": 1.0}


@pytest.mark.parametrize(
    ("pseudo", "message"),
    [
        ({"shet": 0.3}, 'volume_paths.0.pseudo.shet: is no label of this volume; it has "sheet"'),
        (
            {"sheet": 0},
            r"volume_paths.0.pseudo.sheet: found 0; give a number above 0 and at most 1",
        ),
        ({"sheet": 1.5}, r"volume_paths.0.pseudo.sheet: found 1.5; give a number above 0"),
        (["sheet"], "volume_paths.0.pseudo: found"),
    ],
)
def test_a_pseudo_label_that_cannot_be_is_named(pseudo, message):
    with pytest.raises(TaskError, match=message):
        parsed(volume={"pseudo": pseudo})


def test_a_volume_of_pseudo_labels_cannot_validate():
    volume = {"pseudo": {"sheet": 0.3}, "split": "val"}
    with pytest.raises(TaskError, match=r'volume_paths.0.split: .* pseudo.* give "train"'):
        parsed(volume=volume)
    parsed(volume={**volume, "split": "train"})
    parsed(volume={"pseudo": {"grown": 0.3}, "split": "val"})


def test_the_kind_of_what_is_derived_is_its_name():
    task = parsed({"Binary": {"derive": "sheet"}})
    assert task.dataset_config.targets["Binary"].kind == "binary"
    with pytest.raises(TaskError, match=r"targets\.edge: .* several kinds.* one of .*binary"):
        parsed({"edge": {"derive": "sheet"}})


AFFINITIES = {"t": {"kind": "affinities"}}


def test_stored_affinities_are_not_rotated_or_warped():
    message = (
        r'dataset_config\.targets\.t: a stored label of kind "affinities" cannot follow "affine", '
        r'"elastic"; give "derive": the ids it comes from, or take'
    )
    with pytest.raises(TaskError, match=message):
        parsed(AFFINITIES, {"t": "t.zarr"})


def test_affinities_that_are_derived_or_only_mirrored_are_trained():
    assert parsed({"t": {"kind": "affinities", "derive": "sheet"}})
    flips = parse_task(task_of(AFFINITIES, {"t": "t.zarr"}) | {"augment": [{"name": "flip"}]}, "a")
    assert not flips[0].dataset_config.targets["t"].turns_freely
