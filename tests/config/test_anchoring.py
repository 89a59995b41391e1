"""A run folder in place of a task file, read from another working directory."""

import json

import pytest

from vcmodels.config import load_task, task_schema
from vcmodels.config.load import LOCATIONS, anchor
from vcmodels.config.values import VOLUME_KEYS
from vcmodels.errors import TaskError
from vcmodels.runs.run import add_start


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a task file and a run that was started in it."""
    project = tmp_path / "project"
    run = project / "runs" / "x"
    run.mkdir(parents=True)
    monkeypatch.chdir(project)
    task = {
        "tr_params": {
            "model_name": "m",
            "patch_size": [16, 16, 16],
            "ckpt_out_base": "runs/x",
            "tensorboard_log_dir": "boards/x",
        },
        "inference_params": {"input_path": ["a.zarr", "s3://b/c"], "output_dir": "out"},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "sheet": "$LABELS/s.zarr", "weight": 2.0}],
            "targets": {"sheet": {}},
        },
    }
    (project / "task.json").write_text(json.dumps(task))
    resolved = load_task("task.json").task.to_json()
    (run / "task.json").write_text(json.dumps(resolved))
    add_start(run, {})
    return project


def paths(task):
    entry = task.dataset_config.volume_paths[0]
    return entry.input, entry.labels["sheet"], task.inference_params.input_path


def test_where_it_was_started_a_run_reads_as_its_task_file(project):
    assert load_task("runs/x").task == load_task("task.json").task


def test_elsewhere_relative_paths_count_from_where_the_run_was_started(
    project, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for labels in ("labels", "/labels", "s3://labels"):
        monkeypatch.setenv("LABELS", labels)
        task = load_task("project/runs/x").task
        label = "$LABELS/s.zarr" if labels != "labels" else f"{project}/$LABELS/s.zarr"
        assert paths(task) == (f"{project}/a.zarr", label, [f"{project}/a.zarr", "s3://b/c"])
    assert task.run_dir == project / "runs" / "x"
    assert task.tensorboard_dir == project / "boards" / "x" / "x" / "m"
    assert task.inference_params.output_dir == f"{project}/out"


def test_a_moved_run_stays_in_its_own_folder(project):
    (project / "runs" / "x").rename(project / "y")
    task = load_task("y").task
    assert task.run_dir == project / "y"
    assert task.dataset_config.volume_paths[0].input == "a.zarr"


def test_on_another_machine_relative_paths_count_from_the_working_directory(
    project, tmp_path, monkeypatch
):
    moved = tmp_path / "moved"
    project.rename(moved)
    monkeypatch.chdir(moved)
    loaded = load_task("runs/x")
    assert loaded.notes[0] == (
        f"{project}, where the run was started, is gone: relative paths count from here"
    )
    assert loaded.task.dataset_config.volume_paths[0].input == "a.zarr"
    assert loaded.task.run_dir == moved / "runs" / "x"


@pytest.mark.parametrize("content", [None, "task.json"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content:
        (tmp_path / content).write_text("{}")
    with pytest.raises(TaskError, match=r"is a folder, and no run.*name a task file or a run"):
        load_task(tmp_path)


def test_what_is_set_counts_from_the_working_directory(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_task("project/runs/x", ["inference_params.input_path=mine.zarr"])
    assert loaded.task.inference_params.input_path == "mine.zarr"


def locations_of(schema, root, path=()):
    """The keys of all texts that may be 4096 long, which paths alone are."""
    if "$ref" in schema:
        return locations_of(root["$defs"][schema["$ref"].split("/")[-1]], root, path)
    found = {path} if schema.get("maxLength") == 4096 else set()
    items = [schema["items"]] if isinstance(schema.get("items"), dict) else []
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *items):
        found |= locations_of(option, root, path)
    for key, inner in schema.get("properties", {}).items():
        found |= locations_of(inner, root, (*path, key))
    return found


def test_every_path_of_a_task_is_anchored(tmp_path):
    schema = task_schema()
    listed = {(section, key) for section, keys in LOCATIONS.items() for key in keys}
    listed |= {("inference_params", "skip", "mask"), ("dataset_config", "volume_paths", "input")}
    listed |= {("tr_params", "distill", "teachers"), ("model_config", "encoder_weights")}
    del schema["properties"]["volume_paths"]  # never there in a resolved task, nor tables of cases
    volumes = schema["$defs"]["DatasetConfig"]["properties"]["volume_paths"]
    volumes["anyOf"] = [{"items": {"$ref": "#/$defs/VolumeEntry"}}]
    listed |= {("dataset_config", "region", "from", k) for k in ("points", "mask", "checkpoint")}
    assert {place for place in locations_of(schema, schema) if "labels" not in place} == listed
    task = {"inference_params": {"skip": {"mask": "m.zarr"}}, "dataset_config": {}}
    task["dataset_config"]["volume_paths"] = [dict.fromkeys((*VOLUME_KEYS, "sheet"), "x")]
    task |= {"tr_params": {"distill": {"teachers": ["t.pth"]}}}
    task |= {"model_config": {"encoder_weights": "w.safetensors"}}
    anchor(task, tmp_path)
    assert task["inference_params"]["skip"]["mask"] == f"{tmp_path}/m.zarr"
    assert task["tr_params"]["distill"]["teachers"] == [f"{tmp_path}/t.pth"]
    assert task["model_config"]["encoder_weights"] == f"{tmp_path}/w.safetensors"
    changed = task["dataset_config"]["volume_paths"][0].items()
    assert {key for key, value in changed if value != "x"} == {"input", "sheet"}


def test_a_mask_that_is_a_label_of_the_volumes_is_no_path(tmp_path):
    sources = [{"mask": "cord"}, {"mask": "cords.zarr"}, {"heuristic": "symmetry"}]
    sources += [{"points": "p/{name}.json"}, {"checkpoint": "/abs.pth"}]
    document = {
        "dataset_config": {
            "region": {"from": sources},
            "volume_paths": [{"input": "a.zarr", "cord": "b.zarr"}],
        }
    }
    anchor(document, tmp_path)
    masks = [source.get("mask") for source in sources[:2]]
    assert masks == ["cord", f"{tmp_path}/cords.zarr"]
    assert sources[3]["points"] == f"{tmp_path}/p/{{name}}.json"
    assert sources[4]["checkpoint"] == "/abs.pth"
