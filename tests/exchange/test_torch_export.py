"""Programs of torch.export: run by torch alone, read by us without running anything."""

import zipfile

import pytest
import torch

from tests.exchange.conftest import EVERY_KIND, PATCH
from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.cli import main
from vcmodels.exchange import FORMS, Exported, load_network, write_model
from vcmodels.exchange.base import MOST_ERROR
from vcmodels.exchange.graph import quiet


@pytest.fixture(scope="module")
def errors_and_file(every_kind):
    path = every_kind.parent / "model.pt2"
    return write_model(Exported.of(every_kind), FORMS["torch_export"], path), path


def test_every_head_is_within_rounding_of_the_network(errors_and_file):
    errors, _ = errors_and_file
    assert set(errors) == set(EVERY_KIND)
    assert max(errors.values()) <= MOST_ERROR


def test_torch_alone_runs_a_batch(every_kind, errors_and_file):
    image = torch.randn(3, 2, *PATCH, generator=torch.Generator().manual_seed(1))
    with quiet(), errors_and_file[1].open("rb") as file:
        program = torch.export.load(file).module()
    with torch.inference_mode():
        wanted = build_network(load_checkpoint(every_kind)).module(image)
        found = program(image)
    for (name, (logits, *_)), given in zip(wanted.items(), found, strict=True):
        torch.testing.assert_close(given, logits, atol=1e-4, rtol=0, msg=name)


def test_the_weights_are_those_of_the_checkpoint(every_kind, errors_and_file, monkeypatch):
    def refuse(*_given, **_named):
        raise AssertionError("an archive may run code when torch loads it")

    monkeypatch.setattr(torch.export, "load", refuse)
    wanted = build_network(load_checkpoint(every_kind))
    found = load_network(errors_and_file[1])
    for name, tensor in wanted.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor)
    assert found.temperatures == wanted.temperatures


def test_what_is_damaged_or_packed_is_refused(errors_and_file, tmp_path, capsys):
    data = bytearray(errors_and_file[1].read_bytes())
    with zipfile.ZipFile(errors_and_file[1]) as archive:
        weight = archive.read(next(n for n in archive.namelist() if n.endswith("weight_0")))
        packed = tmp_path / "packed.pt2"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
            other.writestr("model/extra/vcmodels.json", b" " * 10_000_000)
    data[data.find(weight)] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(data)
    (tmp_path / "cut.pt2").write_bytes(data[:-100])
    for name, found in (("flipped", "damaged"), ("cut", "damaged"), ("packed", "is packed")):
        path = tmp_path / f"{name}.pt2"
        assert main(["infer", str(path), "in.zarr", "-o", str(tmp_path / "out.zarr")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert found in line
