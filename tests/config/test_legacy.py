import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError


def test_the_originals_example_loads_with_a_note_for_each_old_spelling(original):
    task, notes = parse_task(original, "task.json")
    sheet, normals = (task.dataset_config.targets[name] for name in ("sheet", "normals"))
    assert (sheet.kind, normals.kind) == ("binary", "normals")
    assert sheet.loss == {"bce": 0.5, "soft_dice": 0.5}
    assert [term.name for term in normals.losses] == ["cosine"]
    assert sheet.activation == "sigmoid"
    assert task.model.num_levels == 6
    assert task.inference_params.overlaps == (0, 0, 0)
    assert task.dataset_config.normalization.scheme == "ct"
    assert len(task.dataset_config.volume_paths) == 2
    old = ["min_bbox_percent", "n_levels", "load_all", "ct_normalization", "activation",
           "BCEDiceLoss", "MaskedCosineLoss"]  # fmt: skip
    assert all(any(spelling in note for note in notes) for spelling in old)
    assert len(notes) == len(old)
    assert all("\n" not in note for note in notes)


@pytest.mark.parametrize("key", ["min_labeled_ratio", "min_bbox_percent"])
def test_thresholds_under_tr_params_move_to_the_dataset(good, key):
    del good["dataset_config"][key]
    good["tr_params"][key] = 0.33
    task, notes = parse_task(good, "task.json")
    assert getattr(task.dataset_config, key) == 0.33
    assert notes == [f"tr_params.{key} is read as dataset_config.{key}"]


def test_contradicting_thresholds_are_refused(good):
    good["tr_params"]["min_labeled_ratio"] = 0.33
    with pytest.raises(TaskError, match=r"also given as tr_params\.min_labeled_ratio, with"):
        parse_task(good, "task.json")


def test_contradicting_level_counts_are_refused(good):
    good["model_config"]["n_levels"] = 4
    with pytest.raises(TaskError, match=r"model_config\.n_levels: is 4, and num_levels is 3"):
        parse_task(good, "task.json")


def test_volumes_and_targets_may_stand_at_the_top(good):
    inside, _ = parse_task(good, "task.json")
    for key in ("volume_paths", "targets"):
        good[key] = good["dataset_config"].pop(key)
    outside, notes = parse_task(good, "task.json")
    assert outside == inside
    assert notes == []
    good["dataset_config"]["targets"] = {}
    with pytest.raises(TaskError, match=r"dataset_config\.targets: is also given as targets"):
        parse_task(good, "task.json")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"shet": {"activation": "none"}}, r"targets\.shet: is no target of dataset_config"),
        ({"sheet": 1}, r"targets\.sheet: is no object"),
        ({"sheet": {"channels": 2}}, r"targets\.sheet\.channels: is 2, and 1 in"),
        ({"sheet": {"activation": "softmx"}}, r"targets\.sheet\.activation: found \"softmx\""),
        ([], r"inference_params\.targets: unknown key"),
    ],
)
def test_inference_may_override_the_activation_and_nothing_else(good, targets, message):
    good["inference_params"]["targets"] = targets
    with pytest.raises(TaskError, match=message):
        parse_task(good, "task.json")


def test_all_targets_may_be_written_as_a_list(good):
    good["inference_params"]["output_targets"] = ["all"]
    assert parse_task(good, "task.json")[0].inference_params.output_targets == "all"


def test_keys_that_our_own_first_version_wrote_are_read_as_todays(good):
    for key in ("memory", "skip"):
        del good["inference_params"][key]
    good["inference_params"] |= {"memory_gb": 2.5, "skip_empty": False}
    task, notes = parse_task(good, "task.json")
    assert (task.inference_params.memory, task.inference_params.skip.fill) == (2.5, False)
    assert notes == [
        "inference_params.memory_gb is read as memory",
        "inference_params.skip_empty is read as skip.fill",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"memory_gb": 2, "memory": 3}, r"memory_gb: is 2, and memory is 3; keep memory"),
        ({"skip_empty": True, "skip": {"fill": False}}, r"skip_empty: is true, and skip\.fill is"),
    ],
)
def test_an_old_key_that_contradicts_the_new_one_is_refused(good, keys, message):
    good["inference_params"] |= keys
    with pytest.raises(TaskError, match=message):
        parse_task(good, "task.json")
