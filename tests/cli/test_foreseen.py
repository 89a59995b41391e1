"""What `check` and the start of `train` say of what comes later: inference, outputs, devices."""

import json
import shutil

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.volumes import Volume


@pytest.fixture
def said(sheet_task, task_file, capsys):
    """Exit code and output of a command on the task with other keys, section by section."""

    def run(command, *arguments, **sections):
        task = json.loads(json.dumps(sheet_task))
        for name, keys in sections.items():
            task[name] |= keys
        capsys.readouterr()
        code = main([command, str(task_file(task)), *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out + out.err

    return run


def test_a_task_without_fault_gets_no_note(said):
    code, text = said("check")
    assert code == 0
    assert "note:" not in text


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"input_path": "typo.zarr"}, "typo.zarr does not exist"),
        ({"input_path": "FILE"}, "is a file, not a zarr array"),
        ({"input_path": ["CT", "CT"]}, "input_path: 2 channels, 1 are trained on"),
        ({"input_path": ["CT", "SMALL"]}, "the arrays have shapes"),
        ({"input_path": "$NO_SUCH_VARIABLE/x"}, "input_path: $NO_SUCH_VARIABLE is not set"),
        ({"checkpoint_path": "gone.pth"}, "gone.pth is not there"),
        ({"checkpoint_path": ["FILE"]}, "is cut, or no checkpoint"),
        ({"output_dir": "FILE/below"}, "file is a file"),
        ({"output_dir": "LINK"}, "link is a link to nothing"),
        ({"device": "cuda"}, "inference_params.device: cuda was asked for"),
    ],
)
def test_what_inference_would_be_refused_for_is_said(said, phantom, tmp_path, params, words):
    if torch.cuda.is_available() and "device" in params:
        pytest.skip("it is there")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    shutil.copytree(phantom / "ct", tmp_path / "small")
    for name in (".zarray", "zarr.json"):
        if (path := tmp_path / "small" / name).exists():
            path.write_text(path.read_text().replace("96", "48", 1))
    names = {"FILE": tmp_path / "file", "LINK": tmp_path / "link", "CT": phantom / "ct"}
    text = json.dumps(params)
    for name, path in {**names, "SMALL": tmp_path / "small"}.items():
        text = text.replace(name, str(path)) if name in text else text
    code, output = said("check", inference_params=json.loads(text))
    assert code == 0  # training needs none of it
    notes = [line for line in output.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert words in notes[0]


def test_training_says_it_before_its_first_step(said):
    code, text = said(
        "train", "--set", "tr_params.max_epoch=1", inference_params={"input_path": "typo.zarr"}
    )
    assert code == 0
    assert text.index("typo.zarr does not exist") < text.index("epoch 1/1")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("tr_params", "tensorboard_log_dir"),
        ("dataset_config", "cache_file"),
        ("dataset_config", "index_dir"),
    ],
)
def test_what_cannot_be_kept_is_said(said, tmp_path, section, key):
    (tmp_path / "file").write_text("x")
    code, text = said("check", **{section: {key: str(tmp_path / "file" / "below")}})
    assert code == 0
    assert f"note: {section}.{key}: {tmp_path}/file is a file; it will not be kept" in text


def test_a_run_folder_that_cannot_be_made_is_refused(said, tmp_path):
    (tmp_path / "file").write_text("x")
    code, text = said("check", tr_params={"ckpt_out_base": str(tmp_path / "file" / "run")})
    assert code == 2
    assert "tr_params.ckpt_out_base" in text
    assert "file is a file" in text


def test_a_device_that_is_not_there_is_said(said):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    sizes = {"device": "cuda", "patch_size": [16, 16, 16], "batch_size": 2}
    code, text = said("check", tr_params=sizes)
    assert code == 0
    assert "on this machine it would be refused: tr_params.device: cuda was asked for" in text


def test_a_checkpoint_to_start_from_is_looked_at(said, sheet_task, tmp_path):
    code, text = said("check", tr_params={"checkpoint_path": "gone.pth"})
    assert code == 2
    assert "gone.pth: no such file" in text
    assert said("train", "--set", "tr_params.max_epoch=1")[0] == 0
    last = tmp_path / "run" / "tiny_last.pth"
    other = {"ckpt_out_base": str(tmp_path / "other"), "checkpoint_path": str(last)}
    assert said("check", tr_params={**other, "load_weights_only": True})[0] == 0
    larger = {"f_maps": [4, 12]}
    code, text = said("check", tr_params=other, model_config=larger)
    assert code == 2
    assert "tensors do not fit the network" in text
    state = load_checkpoint(last).state
    save_checkpoint(last, state | {"spacing": "x"})
    code, text = said("check", tr_params=other)
    assert code == 2
    assert 'spacing is "x"' in text


def test_volumes_that_share_voxels_across_their_own_splits_are_refused(said, sheet_task, tmp_path):
    volume = sheet_task["dataset_config"]["volume_paths"][0]
    (tmp_path / "link").symlink_to(volume["input"])
    other = {**volume, "input": str(tmp_path / "link"), "split": "val", "name": "other"}
    volumes = [{**volume, "split": "train"}, other]
    code, text = said("check", dataset_config={"volume_paths": volumes})
    assert code == 2
    assert "its training part shares voxels with the validation part of other" in text


def test_infer_refuses_an_output_before_it_looks_at_its_input(said, tmp_path, monkeypatch):
    assert said("train", "--set", "tr_params.max_epoch=1")[0] == 0
    (tmp_path / "file").write_text("x")

    def read(*_):
        raise AssertionError("nothing may be read yet")

    monkeypatch.setattr(Volume, "_read_inside", read)
    code, text = said("infer", "-o", tmp_path / "file" / "out")
    assert code == 2
    assert f"inference_params.output_dir: {tmp_path}/file is a file" in text
    assert not (tmp_path / "file" / "out").exists()
