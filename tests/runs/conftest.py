import json

import pytest

from vcmodels.runs.run import TRAILER, add_start, end_start

TAGS = {"val/dice_sheet": 0.1, "val/iou_sheet": 0.05, "val/angle_deg_normals": 40.0}


@pytest.fixture
def make_run(tmp_path):
    """Writes what `vcmodels runs` reads of a run of some epochs; the third loss is the best."""

    def write(name, *, epochs=4, outcome="complete", lr=0.001, device="cpu"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        targets = {"sheet": {"kind": "binary"}, "normals": {"kind": "normals"}}
        task = {
            "tr_params": {
                "model_name": "m",
                "max_epoch": 4,
                "initial_lr": lr,
                "ckpt_out_base": str(folder),
            },
            "dataset_config": {"targets": targets},
        }
        (folder / "task.json").write_text(json.dumps(task))
        (folder / "splits.json").write_text("{}")
        lines = [
            {
                "step": 10 * epoch,
                "epoch": float(epoch),
                "val/loss": abs(epoch - 3) + 0.5,
                "val/loss_sheet": 0.25,
                "speed/epoch_minutes": 1.5,
                "speed/patches_per_s": 40.25,
                **{tag: value * epoch for tag, value in TAGS.items()},
            }
            for epoch in range(1, epochs + 1)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for checkpoint in ("m_last.pth", "m_best.pth"):
            (folder / checkpoint).write_bytes(b"weights" + TRAILER + bytes(32))
        add_start(folder, {"device": device, "metrics": {"sheet": "dice"}})
        if outcome:
            end_start(folder, outcome)
        return folder

    return write
