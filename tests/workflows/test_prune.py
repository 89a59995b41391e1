"""`vcmodels prune`: from a trained run to a smaller network in a run of its own."""

import json

import pytest
import torch

from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.cli import main
from vcmodels.models.fused import fused


@pytest.fixture
def run(sheet_task, task_file, tmp_path, monkeypatch):
    """A run of two steps, with a decoder for each target."""
    monkeypatch.chdir(tmp_path)
    sheet_task["model_config"]["f_maps"] = [4, 6]
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 2, "freeze": ["heads.sheet"]}

    def train(**model):
        sheet_task["model_config"] |= model
        assert main(["train", str(task_file(sheet_task))]) == 0
        return tmp_path / "run"

    return train


def logits_of(path):
    torch.manual_seed(0)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        found = build_network(load_checkpoint(path)).module(image)
    return {name: maps[0] for name, maps in found.items()}


def test_a_run_is_pruned_trained_on_continued_and_predicts(run, tmp_path, capsys):
    folder, small = run(), tmp_path / "small"
    words = ["prune", str(folder), "--amount", ".5", "-o", str(small), "--patches", "2"]
    assert main([*words, "--fine-tune", "10", "--set", "tr_params.save_every=1"]) == 0
    lines = capsys.readouterr().out
    assert "sheet dice" in lines
    rows = [row.split() for row in lines.splitlines() if row.split()[:1]]
    counts = {
        row[0]: int(row[1].replace(",", "")) for row in rows if row[0] in ("before", "pruned")
    }
    assert sum(row[:2] == ["trained", "on"] for row in rows) == 1
    # The smaller network is an ordinary one, with a decoder for each target.
    pruned, best = small / "tiny_pruned.pth", small / "tiny_best.pth"
    for path in (pruned, best):
        found = load_checkpoint(path)
        network = build_network(found)
        assert network.task.model.model_dump()["f_maps"] == (2, 3)
        assert [d.levels[0].up.out_channels for d in network.module.decoders.values()] == [2, 2]
        assert found.state["pruned"] | {"from": None} == {
            "amount": 0.5,
            "from": None,
            "from_sha256": load_checkpoint(folder / "tiny_best.pth").sha256,
            "model_config": load_checkpoint(folder / "tiny_best.pth").state["task"]["model_config"],
            "parameters": [counts["before"], counts["pruned"]],
            "importance": "taylor, first order",
            "patches": 2,
        }
        assert found.state["pruned"]["from"] == str(folder / "tiny_best.pth")
    assert counts["pruned"] == sum(p.numel() for p in network.module.parameters())
    # The training began with the pruned weights, at a lower rate, and nothing was frozen.
    settings = json.loads((small / "fine_tune.json").read_text())["tr_params"]
    before = load_checkpoint(folder / "tiny_best.pth").state["task"]["tr_params"]
    assert settings["initial_lr"] == before["initial_lr"] / 2
    assert settings["max_minutes"] == 10
    trained, begun = load_checkpoint(best).state["model"], load_checkpoint(pruned).state["model"]
    assert not torch.equal(trained["heads.sheet.0.weight"], begun["heads.sheet.0.weight"])
    for name, value in begun.items():
        assert (trained[name] - value).abs().max() < 0.05, name
    # It is continued and predicts as any other run.
    assert main(["train", str(small / "fine_tune.json")]) == 0
    assert "already complete" in capsys.readouterr().out
    words = ["inference_params.bbox=[[0,16],[0,16],[0,16]]"]
    assert main(["infer", str(small / "fine_tune.json"), "--set", *words]) == 0
    assert (small / "predictions").exists()


def test_without_a_training_there_is_a_checkpoint_that_predicts(run, tmp_path):
    folder, small = run(decoder="shared"), tmp_path / "small"
    words = ["prune", str(folder / "tiny_last.pth"), "--amount", "0.25", "-o", str(small)]
    assert main([*words, "--patches", "1"]) == 0
    assert sorted(path.name for path in small.iterdir()) == ["fine_tune.json", "tiny_pruned.pth"]
    found, again = (logits_of(small / "tiny_pruned.pth") for _ in range(2))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "sheet": (1, 1, 16, 16, 16),
        "normals": (1, 3, 16, 16, 16),
    }
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert fused(build_network(load_checkpoint(small / "tiny_pruned.pth")).module) is not None


def test_what_cannot_be_pruned_is_refused_before_anything_is_written(run, tmp_path, capsys):
    folder, small = run(), tmp_path / "small"

    def refused(*words: str) -> str:
        assert main(["prune", *words]) == 2
        return capsys.readouterr().err

    for amount in ("0", "1", "1.5", "-.5", "nan"):
        error = refused(str(folder), "-o", str(small), f"--amount={amount}")
        assert error.startswith("error: --amount: ")
        assert error.endswith("give one between 0 and 1, such as .5\n")
    assert "is there already; name another" in refused(str(folder), "-o", str(folder))
    assert "no such file" in refused(str(tmp_path / "none.pth"), "-o", str(small))
    model = tmp_path / "model.safetensors"
    assert main(["export", str(folder), "--to", "safetensors", "-o", str(model)]) == 0
    capsys.readouterr()
    assert "in the form of safetensors, which cannot be trained on; give the checkpoint" in refused(
        str(model), "-o", str(small)
    )
    # Shares that leave two levels alike, where a convolution between them would go.
    error = refused(str(folder), "-o", str(small), "--amount", ".9")
    assert "residual_unet cannot be pruned so: with fewer channels it has other weights" in error
    assert not small.exists()
