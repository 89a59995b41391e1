import copy
import pickle
import re

import pytest
from torch import nn

from vcmodels.config import parse_task
from vcmodels.config.messages import Fault, dotted, fault_at, nearest, shown
from vcmodels.config.values import check_name, check_target_name
from vcmodels.errors import FaultError, TaskError

TRAINING, INFERENCE = "tr_params", "inference_params"
TARGETS, VOLUMES = "dataset_config.targets", "dataset_config.volume_paths"
REMOVE = object()


def changed(task, path, value):
    """The task with the value at a dotted path replaced, added or removed."""
    task = copy.deepcopy(task)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = task
    for part in parents:
        place = place[part]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return task


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tr_params.batch_size", "64", 'found "64"; give an integer from 1 to 4,096'),
        ("tr_params.batch_size", 64.0, "found 64.0; give an integer"),
        ("tr_params.batch_size", True, "found true; give an integer"),
        ("tr_params.batch_size", 0, "found 0; give an integer from 1"),
        ("tr_params.batch_size", 10**6, "found 1000000; give an integer from 1 to 4,096"),
        ("tr_params.use_cache", True, "unknown key here; move it to dataset_config"),
        ("tr_params.Batch_Size", 2, 'unknown key; did you mean "batch_size"?'),
        ("tr_params.batch-size", 2, 'unknown key; did you mean "batch_size"?'),
        ("tr_params.qqq", 2, 'unknown key; valid keys here are "model_name"'),
        ("tr_params.tr_val_split", 0, "found 0; give a number above 0 and at most 1"),
        ("tr_params.patch_size", [32, 48], "found [32, 48]; give a list of 3: each an integer"),
        ("tr_params.patch_size", [32, 48, 64, 3], "give a list of 3"),
        ("tr_params.patch_size.1", 48.0, "found 48.0; give an integer"),
        ("tr_params.patch_size", 32, "found 32; give a list of 3"),
        ("tr_params.patch_size", [2048, 2048, 2048], "has 8.59e+09 voxels; give at most 1024^3"),
        ("tr_params.patch_size", [32, 46, 62], "46 along y is not a multiple of 4"),
        ("inference_params.patch_size", [30, 46, 62], "30 along z is not a multiple of 4"),
        ("tr_params.ignore_label", "x", "give an integer, or a list: each an integer, or an obj"),
        ("tr_params.ignore_label", [1, "x"], "ignore_label.1: found \"x\"; give an integer"),
        ("tr_params.ignore_label", {"shet": 1}, "ignore_label.shet: is no target; targets are"),
        ("tr_params.optimizer", "adamw", 'found "adamw"; give one of "AdamW", "SGD", "Adam"'),
        ("tr_params.device", "gpu", 'found "gpu"; give "auto", "cpu" or "cuda:0", or an integer'),
        ("inference_params.input_path", [], "found []; give a text, or a list of at least 1"),
        ("inference_params.output_targets", [], 'give "all", or a list of at least 1'),
        ("dataset_config.volume_paths.0.input", [], "found []; give a text, or a list of at"),
        ("tr_params.model_name", REMOVE, "is missing; give a name of 1 to 64"),
        ("tr_params.model_name", None, "found null; give a name of 1 to 64"),
        ("tr_params", REMOVE, 'is missing; give an object with "model_name"'),
        ("tr_params", [], "found []; give an object with"),
        ("dataset_config", REMOVE, ".volume_paths: is missing; give a list of at least 1"),
        ("model_config", 3, "found 3; give an object"),
        ("model_config.name", "unet", 'found "unet"; '),
        ("model_config.num_levels", 4, "f_maps has 3 entries and num_levels is 4"),
        ("inference_params.overlap", 1, "found 1; give a number from 0 to below 1, or a list of 3"),
        ("inference_params.overlap", -0.1, "found -0.1; give a number from 0"),
        ("inference_params.overlap", [0.5, 0.5], "give a number from 0 to below 1, or a list of 3"),
        ("inference_params.overlap.1", 1, "overlap.1: found 1; give a number from 0 to below 1"),
        ("inference_params.output_format", "png", 'found "png"; give one of "zarr", "nifti", "tiff"'),
        ("inference_params.output_targets", ["shet"], '"shet" is no target; targets are "sheet"'),
        ("inference_params.output_targets", ["sheet", "sheet"], "names a target twice"),
        ("inference_params.bbox", [[0, 4], [9, 4], [0, 4]], "[9, 4) is empty along y"),
        ("dataset_config.patch_stride", [16, 49, 16], "exceeds tr_params.patch_size [32, 48, 64]"),
        ("dataset_config.normalization", "zscor", 'found "zscor"; give one of "zscore", "ct"'),
        ("dataset_config.min_bbox_percent", 95, "found 95; give a number from 0 to 1"),
        (f"{TARGETS}", {}, "found an object; give an object"),
        (f"{TARGETS}.sheet.wieght", 1, 'sheet.wieght: unknown key; did you mean "weight"?'),
        (f"{TARGETS}.sheet.vector_order", "xyz", "vector_order: unknown key; valid keys here are"),
        (f"{TARGETS}.sheet.kind", "binry", 'kind: found "binry"; did you mean "binary"? give one'),
        (f"{TARGETS}.sheet.kind", 3, "kind: found 3; give one of"),
        (f"{TARGETS}.sheet.loss", "dice", 'no loss "dice" for this kind; choose from bce'),
        (f"{TARGETS}.sheet.activation", "softmax", 'found "softmax"; give one of "sigmoid"'),
        (f"{TARGETS}.sheet", 1, "found 1; give an object"),
        (f"{TARGETS}.sheet.loss_fn", ["x"], 'loss_fn: found ["x"]; give a text'),
        (f"{TARGETS}.other", {"kind": "binary"}, "no volume has a label for it (labels in volume"),
        (f"{TARGETS}.Sheet", {"kind": "binary"}, "differs from"),
        (f"{TARGETS}.normals", REMOVE, "volume_paths.0.normals: is no target and no key of a vol"),
        (f"{VOLUMES}.0.normals", REMOVE, 'targets.normals: no volume has a label for it'),
        (f"{VOLUMES}.0.inptu", "x", 'is no target and no key of a volume (targets: "sheet", '),
        (f"{VOLUMES}.0.shet", "x", 'did you mean "sheet"?'),
        (f"{VOLUMES}.0.sheet", 3, "volume_paths.0.sheet: found 3; give a text"),
        (f"{VOLUMES}.0.labels", {"sheet": "x"}, "labels: "),
        (f"{VOLUMES}.1.ref_label", "normals", '"normals" is no label of this volume; give one of "sheet"'),
        (f"{VOLUMES}.1.name", "scroll", '"scroll" is also the name of volume_paths.0'),
        (f"{VOLUMES}.1", {"input": "x"}, "volume_paths.1: has no label (targets: "),
        (f"{VOLUMES}.1", 7, 'found 7; give an object with "input", or a text, or an object with'),
        (f"{VOLUMES}.0.split", "trian", 'give one of "train", "val", "test", or an object with "attribute"'),
        (f"{VOLUMES}.1.split", {"atribute": "s"}, 'split.atribute: unknown key; did you mean "attr'),
        (VOLUMES, [], "found []; give a list of at least 1"),
        ("augment.0.name", "flipp", 'found "flipp"; did you mean "flip"? give one of'),
        ("augment.1.scaling", [2, 1], "the low end 2 exceeds the high end 1"),
        ("augment.1", {}, "augment.1.name: is missing; give one of"),
        ("augment", {}, "found an object; give a list"),
        ("volume_path", [], 'did you mean "volume_paths"?'),
    ],
)  # fmt: skip
def test_a_fault_names_its_key_what_was_found_and_the_remedy(good, path, value, message):
    with pytest.raises(TaskError, match=re.escape(message)) as caught:
        parse_task(changed(good, path, value), "task.json")
    text = str(caught.value)
    assert path.rpartition(".")[2] in text or "along" in text or "f_maps" in text
    assert "\n" not in text


def test_a_misspelt_required_key_is_one_fault(good):
    good["tr_params"]["modle_name"] = good["tr_params"].pop("model_name")
    with pytest.raises(TaskError) as caught:
        parse_task(good, "task.json")
    assert str(caught.value) == 'tr_params.modle_name: unknown key; did you mean "model_name"?'


def test_several_faults_make_one_line_that_names_the_other_keys(good):
    good["tr_params"] |= {"batch_size": -1, "amp": "x", "initial_lr": None}
    with pytest.raises(TaskError, match=r"batch_size: found -1; .* \(and 2 more: ") as caught:
        parse_task(good, "task.json")
    assert "tr_params.amp" in str(caught.value)
    assert "tr_params.initial_lr" in str(caught.value)


BAD_NAMES = [
    "../x", "/abs", "a/b", "a\\b", ".", "..", ".hidden", "", "a" * 65, "CON", "con.txt", "lpt1",
    "zarr.json", "input", "ref_label", "Input", "labels", "all", "naïve", "a b", "x.", "a\tb", "a:b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_target_names_are_safe_file_names(good, name):
    config = good["dataset_config"]
    config["targets"][name] = {"kind": "binary"}
    with pytest.raises(TaskError, match=r"reserved|not safe|U\+0009"):
        parse_task(good, "task.json")


@pytest.mark.parametrize(
    "name", sorted({*BAD_NAMES} - {"input", "ref_label", "Input", "labels", "all"})
)
def test_model_names_are_safe_file_names(good, name):
    good["tr_params"]["model_name"] = name
    with pytest.raises(TaskError, match=r"^tr_params\.model_name: "):
        parse_task(good, "task.json")


@pytest.mark.parametrize("name", ["a.b", "keys", "type", "training", "forward", "T_destination"])
def test_names_that_no_part_of_a_network_can_have_are_refused(good, name):
    config = good["dataset_config"]
    config["targets"][name] = {"kind": "binary"}
    config["volume_paths"][0][name] = "x.zarr"
    with pytest.raises(TaskError, match="torch cannot name a part of a network so"):
        parse_task(good, "task.json")


@pytest.mark.parametrize("name", ["sheet", "Keys", "0-9_x", "x" * 64])
def test_plain_names_are_accepted(good, name):
    config = good["dataset_config"]
    config["targets"][name] = {"kind": "binary"}
    config["volume_paths"][0][name] = "x.zarr"
    assert name in parse_task(good, "task.json")[0].dataset_config.targets


def test_paths_and_values_are_shown_on_one_short_line():
    assert dotted(("a", 0, "b-c", "d.e", 'f"')) == 'a.0.b-c."d.e"."f\\""'
    assert shown("x\n") == '"x\\n"'
    assert shown("x" * 500)[-5:] == 'x..."' or len(shown("x" * 500)) <= 64
    assert shown(list(range(500))) == "a list of 500"
    assert shown({"a": 1}) == "an object"


def test_the_nearest_key_disregards_case_and_dashes():
    assert nearest("PATCH-SIZE", ["batch_size", "patch_size"]) == "patch_size"
    assert nearest("zzz", ["batch_size"]) is None


def test_what_a_check_found_and_its_remedy_are_never_cut_apart():
    refused = pickle.loads(pickle.dumps(FaultError("a; b. c", "d; e")))
    assert str(refused) == "a; b. c; d; e"
    assert fault_at(("k", 0), refused, "correct it") == Fault(("k", 0), "a; b. c", "d; e")
    plain = fault_at(("k",), ValueError("a; b. c"), "correct it")
    assert plain == Fault(("k",), "a; b. c", "correct it")


def test_a_target_that_tr_params_does_not_suit_is_told_what_to_change(good):
    config = good["dataset_config"]
    config["targets"] = {"t": {"kind": "boundary", "derive": "ids"}}
    config["volume_paths"] = [{"input": "a.zarr", "ids": "b.zarr"}]
    good["tr_params"] |= {"dilate_label": 2, "ignore_label": None}
    text = 'targets.t: a derived boundary is grown by "width"; leave out dilate_label'
    with pytest.raises(TaskError, match=f"{re.escape(text)}$"):
        parse_task(good, "task.json")


def test_the_remedy_of_a_check_ends_its_message(good):
    good["inference_params"]["bbox"] = [[0, 4], [9, 4], [0, 4]]
    text = r"^inference_params\.bbox: \[9, 4\) is empty along y; give start < end$"
    with pytest.raises(TaskError, match=text):
        parse_task(good, "task.json")


def test_what_torch_uses_itself_names_no_target(good):
    used = [name for name in dir(nn.ModuleDict()) if check_name(name)]
    assert len(used) > 50
    for name in [*used, "_apply"]:
        with pytest.raises(FaultError, match=r"torch cannot name|reserved"):
            check_target_name(name)
    assert check_target_name("_sheet") == "_sheet"
