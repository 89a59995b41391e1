"""Training on volumes in an S3 store: the same network comes out as from the disk."""

import torch

from vcmodels.checkpoint import load_checkpoint
from vcmodels.config import parse_task
from vcmodels.reporting import Silent
from vcmodels.training import train


def weights_of(task: dict, folder) -> dict[str, torch.Tensor]:
    task["tr_params"]["ckpt_out_base"] = str(folder)
    parsed, _ = parse_task(task, "task.json")
    train(parsed, reporter=Silent())
    return load_checkpoint(folder / "tiny_last.pth").state["model"]


def test_a_network_trained_from_s3_is_the_one_trained_from_disk(s3, sheet_task, phantom, tmp_path):
    sheet_task["tr_params"]["max_epoch"] = 1
    expected = weights_of(sheet_task, tmp_path / "local")
    s3.upload(phantom, f"{s3.bucket}/scroll.zarr")
    volume = sheet_task["dataset_config"]["volume_paths"][0]
    for key in ("input", "sheet", "normals"):
        volume[key] = volume[key].replace(str(phantom), f"s3://{s3.bucket}/scroll.zarr")
    sheet_task["tr_params"]["num_dataloader_workers"] = 1
    found = weights_of(sheet_task, tmp_path / "remote")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
