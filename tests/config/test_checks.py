import json

import pytest

from vcmodels.config import load_task, parse_task
from vcmodels.errors import TaskError


@pytest.fixture
def store(tmp_path):
    """A store with an array in a group, whose folders do not end in .zarr."""
    array = tmp_path / "store" / "group" / "ct"
    array.mkdir(parents=True)
    for folder in (array, array.parent, array.parent.parent):
        (folder / "zarr.json").write_text("{}")
    return tmp_path / "store"


@pytest.mark.parametrize(
    "output",
    ["store", "store/", "./store/group", "store/group/ct/out", "other/../store/new", "link/out"],
)
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("inference_params", "output_dir"),
        ("tr_params", "ckpt_out_base"),
        ("tr_params", "tensorboard_log_dir"),
        ("inference_params", "tensorboard_log_dir"),
        ("dataset_config", "cache_file"),
        ("dataset_config", "index_dir"),
    ],
)
def test_nothing_is_written_into_an_input(good, store, output, section, key, monkeypatch):
    monkeypatch.chdir(store.parent)
    (store.parent / "link").symlink_to(store)
    good["dataset_config"]["volume_paths"][0]["input"] = "store/group/ct/"
    good[section][key] = output
    with pytest.raises(TaskError, match=rf"^{section}\.{key}: .* lies in the input .*store \(data"):
        parse_task(good, "task.json")


def test_the_index_is_not_kept_in_an_input_by_default_either(good, store, monkeypatch):
    good["dataset_config"]["volume_paths"][0]["input"] = str(store / "group" / "ct")
    good["dataset_config"].pop("index_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(store))
    with pytest.raises(TaskError, match=r"index_dir: .*store/vcmodels lies in the input"):
        parse_task(good, "task.json")
    good["dataset_config"]["index_dir"] = str(store.parent / "index")
    parse_task(good, "task.json")


def test_a_mask_and_what_a_pattern_matches_are_inputs_too(good, store, monkeypatch):
    monkeypatch.chdir(store.parent)
    good["inference_params"]["output_dir"] = "store/new"
    good["inference_params"]["skip"] = {"mask": "store/group/ct"}
    with pytest.raises(TaskError, match=r"lies in the input .*skip\.mask"):
        parse_task(good, "task.json")
    good["inference_params"].pop("skip")
    entry = good["dataset_config"]["volume_paths"][0]
    for key in ("input", "sheet", "normals"):
        if key in entry:
            entry[key] = "*/group/ct"
    with pytest.raises(TaskError, match=r"lies in the input .*volume_paths\.0"):
        parse_task(good, "task.json")


def test_the_record_of_a_run_is_not_held_to_rules_that_came_later(good, store):
    good["tr_params"]["model_name"] = "-m"
    good["dataset_config"]["index_dir"] = str(store)
    good["dataset_config"]["volume_paths"][0]["input"] = str(store / "group" / "ct")
    parse_task(good, "checkpoint", is_record=True)
    with pytest.raises(TaskError, match=r'model_name: "-m" starts with "-"'):
        parse_task(good, "task.json")


def renamed(good, place, name):
    """The task with one of its names changed."""
    config = good["dataset_config"]
    entries, targets = config["volume_paths"], config["targets"]
    if place == "target":
        good["tr_params"]["ignore_label"] = None
        good["inference_params"]["output_targets"] = "all"
        targets[name] = targets.pop("sheet")
        for entry in entries:
            if "sheet" in entry:
                entry[name] = entry.pop("sheet")
                entry["ref_label"] = name
    elif place == "model":
        good["tr_params"]["model_name"] = name
    elif place == "volume":
        entries[1]["name"] = name
    else:
        entries[0][name] = "a.zarr/ids"
        targets["more"] = {"kind": "distance", "derive": name, "clip": 3}
    return good


@pytest.mark.parametrize("place", ["target", "model", "volume", "source"])
@pytest.mark.parametrize(
    "name", ["-x", "--help", "a/b", "../x", ".x", "", "x" * 65, "a b", "CON", "nul.x", "a\n", "é"]
)
def test_all_names_follow_one_rule(good, place, name):
    with pytest.raises(TaskError):
        parse_task(renamed(good, place, name), "task.json")


@pytest.mark.parametrize("place", ["target", "model", "volume", "source"])
def test_a_name_that_follows_the_rule_is_taken(good, place):
    parse_task(renamed(good, place, "a-1_B"), "task.json")


def test_names_of_volumes_differ_by_more_than_case(good):
    entries = good["dataset_config"]["volume_paths"]
    entries[0]["name"], entries[1]["name"] = "Scan", "scan"
    with pytest.raises(TaskError, match=r'paths\.1\.name: differs from "Scan" only in case'):
        parse_task(good, "task.json")


def test_the_input_of_an_inference_is_guarded_too(good, store, monkeypatch):
    monkeypatch.chdir(store.parent)
    good["inference_params"] |= {"input_path": "store/group/ct", "output_dir": "store"}
    with pytest.raises(TaskError, match=r"\(inference_params\.input_path\)"):
        parse_task(good, "task.json")


@pytest.mark.parametrize("output", ["", "storefront", "other", "s3://bucket/store"])
def test_beside_an_input_is_fine(good, store, output, monkeypatch):
    monkeypatch.chdir(store.parent)
    good["inference_params"] |= {"input_path": "store/group/ct", "output_dir": output or "."}
    parse_task(good, "task.json")


def test_patterns_guard_the_folder_that_they_are_in(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good["inference_params"]["output_dir"] = "data/*.zarr/out"
    with pytest.raises(TaskError, match="lies in the input"):
        parse_task(good, "task.json")


def test_a_variable_that_is_not_set_is_no_fault_before_the_volume_is_opened(good, monkeypatch):
    monkeypatch.delenv("VCMODELS_DATA", raising=False)
    good["dataset_config"]["volume_paths"][0]["input"] = "$VCMODELS_DATA/x.zarr"
    parse_task(good, "task.json")


def test_what_inference_will_refuse_is_said_before_training(good):
    good["dataset_config"]["targets"]["flow"] = {"kind": "vector"}
    good["dataset_config"]["volume_paths"][0]["flow"] = "flow.zarr"
    good["inference_params"] |= {
        "output_dir": "out",
        "output_type": "uint8",
        "output_targets": "all",
    }
    _, notes = parse_task(good, "task.json")
    assert any("inference will refuse dataset_config.targets.flow" in note for note in notes)
    good["inference_params"]["output_type"] = "float32"
    assert not any("refuse" in note for note in parse_task(good, "task.json")[1])


@pytest.mark.parametrize(
    "key",
    [
        "tr_params.ckpt_out_base",
        "tr_params.checkpoint_path",
        "tr_params.tensorboard_log_dir",
        "inference_params.input_path",
        "inference_params.output_dir",
        "inference_params.tensorboard_log_dir",
        "inference_params.checkpoint_path",
        "inference_params.skip.mask",
        "dataset_config.cache_file",
        "dataset_config.index_dir",
        "dataset_config.volume_paths.0.input",
        "dataset_config.volume_paths.0.sheet",
    ],
)
@pytest.mark.parametrize(
    "url", ["https://me:secret@host/x.zarr", "https://secret@host/x.zarr", "s3://b/x?sig=secret"]
)
def test_a_secret_in_a_url_is_refused_before_it_is_recorded_and_not_shown(good, tmp_path, key, url):
    (tmp_path / "task.json").write_text(json.dumps(good))
    with pytest.raises(TaskError, match=rf"^{key}: the URL holds a") as caught:
        load_task(tmp_path / "task.json", [f"{key}={url}"])
    assert "secret" not in str(caught.value)


def test_a_secret_is_refused_in_lists_wrong_values_and_earlier_overrides(good):
    url = "https://me:secret@host/x.zarr"
    for more in (
        {"inference_params": good["inference_params"] | {"input_path": ["a.zarr", url]}},
        {"tr_params": good["tr_params"] | {"batch_size": url}},
        {"overrides": [f"inference_params.input_path={url}"]},
    ):
        with pytest.raises(TaskError, match="the URL holds a password") as caught:
            parse_task(good | more, "task.json")
        assert "secret" not in str(caught.value)


def sampled(good, sampling, refs=(None, None)):
    """The task with both targets labelled in both volumes."""
    for entry, ref in zip(good["dataset_config"]["volume_paths"], refs, strict=True):
        entry |= {"sheet": "a.zarr/sheet", "normals": "a.zarr/normals", "ref_label": ref}
    good["dataset_config"]["sampling"] = sampling
    return parse_task(good, "task.json")


@pytest.mark.parametrize(
    ("sampling", "message", "followed"),
    [
        ({}, r'sampling\.label: is not given.*"sheet", "normals"; give "sheet"', {"label": "sheet"}),
        ({"label": "sheets"}, r'"sheets" is no label .*give one of "sheet"', {"label": "sheet"}),
        ({"classes": {"1": 0}, "label": "sheet"}, "has no weight above 0; give one",
         {"classes": {"1": 1}, "label": "sheet"}),
    ],
)  # fmt: skip
def test_a_sampling_without_what_it_needs_is_refused(good, sampling, message, followed):
    with pytest.raises(TaskError, match=message):
        sampled(good, sampling)
    sampled(good, followed)


def test_volumes_in_which_nothing_is_drawn_for_labels_are_noted(good):
    _, notes = sampled(good, {}, ("sheet", None))
    assert "draws for no label in 1 of 2 volumes" in notes[-1]
    assert not [note for note in sampled(good, {}, ("sheet", "sheet"))[1] if "sampling" in note]
    assert not [note for note in sampled(good, {"foreground": 0})[1] if "draws" in note]
