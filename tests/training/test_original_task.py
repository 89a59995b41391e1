import json
from pathlib import Path

import numpy as np
import zarr

from vcmodels.config import parse_task
from vcmodels.inference import run_inference
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.volumes import open_volume

ORIGINAL = Path(__file__).parents[1] / "config" / "original.json"


def write_original_layout(phantom: Path, root: Path) -> None:
    """The phantom as the original stores it: three v2 arrays, normals uint16 (Z, Y, X, 3)."""
    for name, channels in (("ct", None), ("sheet", None), ("normals", 3)):
        volume = open_volume(str(phantom / name), key=name, channels=channels)
        stored = volume.read(volume.box)
        array = np.moveaxis(stored, 0, -1) if channels else stored[0]
        if name == "sheet":
            array = np.where(array == 1, 255, 0).astype(np.uint8)
        zarr.save_array(str(root / f"{name}.zarr"), array, zarr_format=2)


def test_the_originals_example_trains_and_predicts(phantom, tmp_path):
    write_original_layout(phantom, tmp_path)
    task = json.loads(ORIGINAL.read_text())
    entry = {
        "input": str(tmp_path / "ct.zarr"),
        "sheet": str(tmp_path / "sheet.zarr"),
        "normals": str(tmp_path / "normals.zarr"),
        "ref_label": "sheet",
    }
    task["dataset_config"]["volume_paths"] = [entry]
    # Paths replaced; and smaller, so that it takes seconds: patch, network, steps.
    size = {"patch_size": [16, 16, 16], "batch_size": 2}
    task["tr_params"] |= size | {
        "ckpt_out_base": str(tmp_path / "run"), "tensorboard_log_dir": str(tmp_path / "logs"),
        "max_epoch": 1, "max_steps_per_epoch": 2, "max_val_steps_per_epoch": 1,
        "num_dataloader_workers": 0, "checkpoint_path": None,
    }  # fmt: skip
    task["tr_params"].pop("min_bbox_percent", None)
    task["dataset_config"] |= {"min_bbox_percent": 0.5, "cache_file": str(tmp_path / "cache.json")}
    task["model_config"] |= {"f_maps": [4, 8], "n_levels": 2}
    task["inference_params"] |= size | {
        "checkpoint_path": None, "input_path": entry["input"], "output_dir": str(tmp_path / "out"),
        "num_dataloader_workers": 0,
    }  # fmt: skip
    parsed, notes = parse_task(task, "task.json")
    assert notes  # each old spelling is told
    assert train(parsed, reporter=Silent()) == 0
    report = run_inference(parsed)
    assert report.is_complete
    normals = open_volume(str(report.outputs["normals"]), key="normals", channels=3)
    assert normals.extent == open_volume(entry["input"], key="input").extent
