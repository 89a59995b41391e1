"""ONNX: the values of the network for every kind of head, through onnxruntime alone and through our engine."""

import json
import pickle

import numpy as np
import pytest
import torch

from tests.exchange.conftest import EVERY_KIND, PATCH, infer
from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.cli import main
from vcmodels.exchange import FORMS, Exported, load_network, write_model
from vcmodels.exchange.base import MOST_ERROR

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="session")
def errors_and_file(every_kind):
    path = every_kind.parent / "model.onnx"
    return write_model(Exported.of(every_kind), FORMS["onnx"], path), path


@pytest.fixture(scope="session")
def written(errors_and_file):
    return errors_and_file[1]


def test_every_head_is_within_rounding_of_the_network(errors_and_file):
    errors, _ = errors_and_file
    assert set(errors) == set(EVERY_KIND)
    assert max(errors.values()) <= MOST_ERROR
    assert max(errors.values()) > 0  # another program has computed them


@pytest.mark.parametrize("count", [1, 3])
def test_onnxruntime_alone_runs_batches_of_any_size(every_kind, written, count):
    network = build_network(load_checkpoint(every_kind))
    image = torch.randn(count, 2, *PATCH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = network.module(image)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    found = session.run(list(logits), {"image": image.numpy()})
    for (name, (wanted, *_)), given in zip(logits.items(), found, strict=True):
        np.testing.assert_allclose(given, wanted.numpy(), atol=1e-4, err_msg=name)


def test_it_is_valid_onnx_with_the_record_and_without_folders(written):
    model = onnx.load(written)
    onnx.checker.check_model(model)
    texts = {one.key: one.value for one in model.metadata_props}
    record = json.loads(texts["vcmodels"])
    assert set(record["use"]["outputs"]) == {one.name for one in model.graph.output}
    assert b"/exchange/" not in written.read_bytes()
    assert b"/home/somebody" not in written.read_bytes()


def test_inference_gives_the_codes_of_the_checkpoint_within_one(every_kind, written, tmp_path):
    wanted = infer(every_kind, every_kind, tmp_path / "a.zarr")
    found = infer(written, every_kind, tmp_path / "b.zarr")
    for name, codes in wanted.items():
        if name == "organ":  # ids: where two classes are equally likely, either is right
            assert np.mean(found[name] != codes) < 1e-3
        else:
            assert np.abs(found[name] - codes).max() <= 1, name


def test_what_it_knows_is_what_the_checkpoint_knows(every_kind, written):
    wanted, found = build_network(load_checkpoint(every_kind)), load_network(written)
    for name in ("targets", "normalization", "patch", "spacing", "unit", "temperatures"):
        assert getattr(found, name) == getattr(wanted, name), name
    copy = pickle.loads(pickle.dumps(found))
    image = torch.zeros(1, 2, *PATCH)
    assert torch.equal(copy.module(image)["sheet"][0], found.module(image, ["sheet"])["sheet"][0])


def test_what_a_graph_has_no_use_for_is_said(every_kind, written, tmp_path, capsys):
    inputs = [str(every_kind.parent.parent / "in.zarr" / name) for name in ("ct", "dose")]
    keys = ("--set", "inference_params.compile=true", "--set", "inference_params.amp=bf16")
    for options, said in (((), False), (keys, True)):
        where = str(tmp_path / str(said))
        assert main(["infer", str(written), *inputs, "-o", where, *options]) == 0
        out = capsys.readouterr().out
        for key in ("compile", "amp"):
            assert (f"inference_params.{key}: has no effect: an exported graph" in out) is said


def test_another_patch_size_is_refused(every_kind, written, tmp_path, capsys):
    inputs = [str(every_kind.parent.parent / "in.zarr" / name) for name in ("ct", "dose")]
    options = ["-o", str(tmp_path / "out.zarr"), "--set", "inference_params.patch_size=[16,16,16]"]
    assert main(["infer", str(written), *inputs, *options]) == 2
    assert "takes patches of [8, 12, 16] only; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, -1])
def test_a_flipped_bit_is_refused(written, tmp_path, capsys, place):
    data = bytearray(written.read_bytes())
    data[int(len(data) * place) if place > 0 else place] ^= 1
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(data)
    assert main(["infer", str(broken), "in.zarr", "-o", str(tmp_path / "out.zarr")]) == 2
    assert "sha256 differs: the file is damaged" in capsys.readouterr().err


def test_a_file_that_is_cut_or_of_another_program_is_refused(written, tmp_path, capsys):
    for content in (written.read_bytes()[:-7], b"no model at all", b""):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        assert main(["infer", str(path), "in.zarr", "-o", str(tmp_path / "out.zarr")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "has no checksum of vcmodels" in line
