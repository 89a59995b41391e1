"""Which keys differ between a run and the task that is to continue it."""

from vcmodels.runs.run import add_start
from vcmodels.training.run_folder import changed_keys, listed_changes


def test_only_whole_keys_are_free_to_change():
    old = {"tr_params": {"device": "cpu", "device_x": 1, "seed": 0}, "inference_params": {"a": 1}}
    new = {"tr_params": {"device": "cuda", "device_x": 2, "seed": 0}, "inference_params": {"a": 2}}
    assert [key for key, _, _ in changed_keys(old, new)] == ["tr_params.device_x"]


def test_the_changed_volume_of_a_list_is_named():
    old, new = (
        {"dataset_config": {"volume_paths": [{"input": "a"}, {"input": "b", "weight": weight}]}}
        for weight in (1, 2)
    )
    assert changed_keys(old, new) == [("dataset_config.volume_paths.1.weight", "1", "2")]


def test_other_words_for_the_same_places_are_no_change(tmp_path, monkeypatch):
    """As when a run folder is given from another working directory, and the task file after that."""

    def task(location, rate=0.1):
        volumes = [{"input": location, "sheet": "/labels"}]
        return {"tr_params": {"initial_lr": rate}, "dataset_config": {"volume_paths": volumes}}

    absolute = str(tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    assert changed_keys(task("a.zarr"), task(absolute), tmp_path) != []  # nothing says from where
    add_start(tmp_path, {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert changed_keys(task("a.zarr"), task(absolute), tmp_path) == []
    assert changed_keys(task("a.zarr"), task("../a.zarr"), tmp_path) != []
    changed = changed_keys(task("a.zarr"), task(absolute, 0.2), tmp_path)
    assert [key for key, _, _ in changed] == ["tr_params.initial_lr"]
    add_start(tmp_path, {})  # started here with absolute paths, and then there as at first
    monkeypatch.chdir(tmp_path)
    assert changed_keys(task(absolute), task("a.zarr"), tmp_path) == []


def test_of_many_changed_keys_some_are_named_and_the_others_counted():
    changed = [(f"k{n}", "1", "2") for n in range(7)]
    assert listed_changes(changed, 2) == "k0 was 1, is 2; k1 was 1, is 2; and 5 more"
    assert listed_changes(changed[:2]) == "k0 was 1, is 2; k1 was 1, is 2"


def test_a_record_whose_settings_are_no_object_differs_in_them():
    found = changed_keys({"tr_params": [1]}, {"tr_params": {"batch_size": 2}})
    assert any(key.startswith("tr_params") for key, _, _ in found)
