"""Weights as safetensors: to the bit the network of the checkpoint, and nothing that is damaged."""

import json
import sys

import numpy as np
import pytest
import torch

from tests.exchange.conftest import infer
from vcmodels.checkpoint import build_network, load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.exchange import FORMS, Exported, load_network, write_model
from vcmodels.exchange.record import without_folders

safetensors = pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def written(every_kind):
    path = every_kind.parent / "model.safetensors"
    write_model(Exported.of(every_kind, "CC-BY-4.0"), FORMS["safetensors"], path)
    return path


def metadata(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def test_the_file_holds_the_averaged_weights_and_all_that_a_prediction_needs(every_kind, written):
    wanted, found = build_network(load_checkpoint(every_kind)), load_network(written)
    for name, tensor in wanted.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor)
    for name in (
        "targets", "normalization", "patch", "spacing", "in_channels", "unit", "temperatures",
        "intensities", "tuned", "symmetry",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(wanted, name), name
    assert not found.is_fixed
    assert found.sha256 != wanted.sha256


def test_inference_gives_the_codes_of_the_checkpoint(every_kind, written, tmp_path):
    wanted = infer(every_kind, every_kind, tmp_path / "a.zarr")
    found = infer(written, every_kind, tmp_path / "b.zarr")
    assert len(wanted) == 7
    for name, codes in wanted.items():
        np.testing.assert_array_equal(found[name], codes)


def test_the_metadata_say_what_others_need_and_name_no_folder(written):
    text = metadata(written)["vcmodels"]
    record = json.loads(text)
    assert record["licence"] == "CC-BY-4.0"
    assert "/home/somebody" not in text
    assert record["use"]["tiling"]["patch"] == [8, 12, 16]
    sheet, normals = (record["use"]["outputs"][name] for name in ("sheet", "normals"))
    assert (sheet["activation"], sheet["temperature"]) == ("sigmoid", 1.5)
    assert normals["components"] == ["z", "y", "x"]
    assert record["use"]["outputs"]["organ"]["class_names"] == ["2", "7"]


def test_the_test_tensors_are_those_of_the_network(every_kind, written):
    network = build_network(load_checkpoint(every_kind))
    with np.load(written.with_name("model.safetensors.test.npz"), allow_pickle=False) as tensors:
        with torch.inference_mode():
            logits = network.module(torch.from_numpy(tensors["image"]))
        for name, (found, *_) in logits.items():
            np.testing.assert_allclose(tensors[name], found.numpy(), atol=1e-5)


@pytest.mark.parametrize("place", [0.3, 0.7, 0.99])
def test_a_flipped_bit_is_refused(written, tmp_path, capsys, place):
    data = bytearray(written.read_bytes())
    data[int(len(data) * place)] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    assert main(["infer", str(broken), "in.zarr", "-o", str(tmp_path / "out.zarr")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(broken) in line
    assert not (tmp_path / "out.zarr").exists()


def test_a_file_that_is_cut_or_of_another_program_is_refused(written, tmp_path, capsys):
    from safetensors.torch import save

    foreign = save({"weight": torch.zeros(3)})
    for content, found in ((written.read_bytes()[:-7], "damaged"), (foreign, "no record")):
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        assert main(["infer", str(path), "in.zarr", "-o", str(tmp_path / "out.zarr")]) == 2
        assert found in capsys.readouterr().err


def test_a_run_folder_is_exported_with_its_best_checkpoint(trained, tmp_path, capsys):
    output = tmp_path / "best.safetensors"
    assert main(["export", str(trained), "--to", "safetensors", "-o", str(output)]) == 0
    assert "sheet: largest error 0.0e+00, of at most 0.0001" in capsys.readouterr().out
    record = json.loads(metadata(output)["vcmodels"])
    assert record["made_from"]["file"] == "tiny_best.pth"
    assert record["made_from"]["sha256"] == load_checkpoint(trained / "tiny_best.pth").sha256


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--to", "tflite", "-o", "m.tflite"], 'found "tflite"; choose from'),
        (["--to", "safetensors", "-o", "m.onnx"], "no name of a file of safetensors"),
        (["--to", "safetensors", "-o", "there.safetensors"], "is there already"),
        (["--to", "safetensors", "-o", "s3://bucket/m.safetensors"], "is a URL"),
        (["--to", "safetensors", "-o", "there.safetensors/m.safetensors"], "there.safetensors"),
        (["--to", "safetensors", "-o", "m.safetensors", "--threshold", "1"], "--threshold: goes"),
        (["-o", "m.safetensors"], "is a checkpoint; give the form"),
        (["-o", "m.nii.gz", "--license", "MIT"], "--license: goes with --to"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(
    every_kind, tmp_path, monkeypatch, capsys, options, found
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert main(["export", str(every_kind), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert found in line
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]


def test_a_checkpoint_that_carries_another_network_is_refused(tmp_path, every_kind, capsys):
    state = load_checkpoint(every_kind).state
    path = tmp_path / "stages.pth"
    save_checkpoint(path, {**state, "stages": {"0": {"schema": 1}}})
    output = tmp_path / "m.safetensors"
    assert main(["export", str(path), "--to", "safetensors", "-o", str(output)]) == 2
    assert "only a checkpoint carries" in capsys.readouterr().err
    assert not output.exists()


def test_a_missing_library_is_named_with_what_installs_it(
    every_kind, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    output = tmp_path / "m.safetensors"
    assert main(["export", str(every_kind), "--to", "safetensors", "-o", str(output)]) == 2
    assert 'pip install "vcmodels[exchange]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_other_values_is_not_written(every_kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vcmodels.exchange.base.MOST_ERROR", -1.0)
    output = tmp_path / "m.safetensors"
    assert main(["export", str(every_kind), "--to", "safetensors", "-o", str(output)]) == 2
    assert "differs by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_folders_are_left_out_of_a_record():
    record = {
        "/data/x/scan.zarr/ct": 1,
        "path": "~/a/b/c",
        "url": "s3://k:s@h/b/c.zarr?t=1",
        "n": [2.5],
    }
    found = without_folders({**record, "relative": "masks/{name}.zarr", "none": None})
    assert found == {
        "scan.zarr/ct": 1, "path": "b/c", "url": "b/c.zarr", "n": [2.5],
        "relative": "masks/{name}.zarr", "none": None,
    }  # fmt: skip
    assert without_folders({"/a/x/y": 1, "/b/x/y": 2}) == {"/a/x/y": 1, "/b/x/y": 2}
