"""From scans of two orientations to a checkpoint, and from it alone to a mask on a third scan's grid."""

import json
import re

import nibabel
import numpy as np
import pytest

from tests.balls import ball
from tests.prepare.conftest import affine_with
from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.volumes import open_volume
from vcmodels.volumes.world import world_affine

TURNED = np.array([[0, -1.0, 0, 3], [0, 0, 1.0, -20], [1.0, 0, 0, 50], [0, 0, 0, 1]])


@pytest.fixture
def run(folder):
    task = {
        "tr_params": {
            "model_name": "net", "patch_size": [16, 16, 16], "batch_size": 2, "max_epoch": 1,
            "max_steps_per_epoch": 160, "max_val_steps_per_epoch": 1, "initial_lr": 0.02, "device": "cpu",
            "num_dataloader_workers": 0, "ckpt_out_base": f"{folder}/run", "tr_val_split": 1.0,
            "tensorboard_log_dir": None,
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8]},
        "dataset_config": {
            "prepare": {"orientation": "RPI", "spacing": "median", "standardize": {"method": "zscore"}},
            "normalization": "none",
            "min_bbox_percent": 0.0,
            "volume_paths": [
                {"input": f"{folder}/{n}.zarr", "cord": f"{folder}/{n}_seg.zarr", "name": n,
                 "ref_label": "cord"} for n in "ab"
            ],
            "targets": {"cord": {"kind": "binary"}},
        },
        "augment": [],
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    assert main(["train", str(folder / "task.json")]) == 0
    return folder


@pytest.mark.slow
def test_results_lie_on_the_grid_of_their_input(run, tmp_path, monkeypatch, capsys):
    require_scored_as_stored(run, capsys)
    require_checkpoint_is_enough(run, tmp_path, monkeypatch, capsys)


def require_scored_as_stored(run, capsys):
    settings = ['volumes="all"', f'output_dir="{run}/out"', "device=cpu"]
    options = [part for one in settings for part in ("--set", f"inference_params.{one}")]
    capsys.readouterr()
    assert main(["infer", str(run / "task.json"), *options]) == 0
    assert "preparing" not in capsys.readouterr().out, "as they were for the training"
    found = open_volume(str(run / "out/net/b.zarr/cord/0"), channels="any")
    assert found.extent == (12, 50, 44)
    choice = ["--set", 'evaluation.volumes="all"']
    assert main(["evaluate", str(run / "task.json"), *options, *choice]) == 0
    lines = capsys.readouterr().out
    assert float(re.search(r"cord: dice ([\d.]+)", lines)[1]) > 0.9


def require_checkpoint_is_enough(run, tmp_path, monkeypatch, capsys):
    checkpoint = next((run / "run").rglob("net_last.pth"))
    recorded = load_checkpoint(checkpoint).state["task"]["dataset_config"]["prepare"]
    assert recorded["spacing"] == [2.0, 0.9, 0.9]
    place = tmp_path / "clinic"
    place.mkdir()
    checkpoint.rename(place / "net.pth")
    monkeypatch.chdir(place)
    shape, spacing = (40, 16, 36), (0.9, 2.5, 0.9)
    mask = ball(shape, spacing, (17, 20, 15), 9.0)
    scan = (mask * 300 + np.random.default_rng(1).normal(80, 6, shape)).astype(np.int16)
    affine = affine_with(spacing, TURNED)
    nibabel.save(nibabel.Nifti1Image(scan.T, affine), "case.nii.gz")
    cpu = ["--set", "inference_params.device=cpu"]
    command = ["infer", "net.pth", "case.nii.gz", "-o", "seg.zarr", *cpu]
    assert main(command) == 0
    found = open_volume("seg.zarr/cord/0", channels="any")
    assert found.extent == shape
    assert found.spacing == pytest.approx(spacing)
    np.testing.assert_allclose(world_affine(found), affine, atol=1e-4)
    predicted = found.read(found.box)[0] > 127
    dice = 2 * (predicted & mask).sum() / (predicted.sum() + mask.sum())
    assert dice > 0.9
    assert main(command) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(["reproduce", "seg.zarr"]) == 0
    assert "identical" in capsys.readouterr().out
