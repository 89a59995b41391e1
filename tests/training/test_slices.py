"""From a task of slices to a prediction with its checkpoint, the patch size left to the planner."""

import numpy as np

from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.config import parse_task
from vcmodels.geometry.boxes import Box
from vcmodels.inference import load_predictor
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.volumes import create_array

SHAPE = (20, 24, 28)


def test_a_stack_is_learnt_from_and_is_in_the_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, SHAPE).astype(np.float32)
    for name, values in (("raw", image), ("sheet", (image > 110).astype(np.uint8))):
        array = create_array(
            str(tmp_path / "d.zarr"), name, shape=SHAPE, chunks=(8, 8, 8), dtype=values.dtype
        )
        array.write(Box((0, 0, 0), SHAPE), values[None])
    document = {
        "tr_params": {
            "model_name": "m", "max_epoch": 1, "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1,
            "num_dataloader_workers": 0, "ckpt_out_base": str(tmp_path / "run"), "device": "cpu",
        },
        "model_config": {"f_maps": [4, 8]},
        "inference_params": {"device": "cpu", "num_dataloader_workers": 0},
        "dataset_config": {
            "volume_paths": [
                {"input": str(tmp_path / "d.zarr/raw"), "sheet": str(tmp_path / "d.zarr/sheet")}
            ],
            "targets": {"sheet": {"kind": "binary"}},
            "normalization": {"per": "global"},
            "stack": {"axis": "y", "offsets": [-2, 0]},
            "index_dir": str(tmp_path / "index"),
        },
    }  # fmt: skip
    task, _ = parse_task(document, "test")
    train(task, reporter=Silent())
    path = tmp_path / "run" / "m_best.pth"
    network = build_network(load_checkpoint(path))
    assert network.patch == (20, 1, 28)
    assert (network.in_channels, network.stored_channels) == (2, 1)
    assert all(one.axes == ("z", "x") for one in network.task.augment if one.name == "flip")
    other = image.copy()
    other[:, 9] = 90.0
    before, after = (
        load_predictor(path).predict(one, reporter=Silent())["sheet"] for one in (image, other)
    )
    assert before.shape == SHAPE
    assert np.flatnonzero((before != after).any((0, 2))).tolist() == [9, 11]
