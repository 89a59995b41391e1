# %% [markdown]
# # Train in one's own loop on the patches of vcmodels
#
# Run it as a script, or cell by cell in an editor that knows `# %%`. It writes a small made-up scroll,
# trains a network of a few lines on its sheet, and scores what vcmodels itself learns in as many steps.

# %%
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import vcmodels
from vcmodels.phantom import write_phantom

folder = Path(tempfile.mkdtemp())
scroll = folder / "scroll.zarr"
write_phantom(str(scroll), shape=(32, 128, 96), seed=0, chunks=(32, 32, 32))

# %% [markdown]
# ## The task says what is learnt from what

# %%
task = vcmodels.load_task(
    {
        "tr_params": {
            "model_name": "sheet",
            "patch_size": [32, 32, 32],
            "batch_size": 2,
            "max_epoch": 2,
            "max_steps_per_epoch": 20,
            "ckpt_out_base": str(folder / "run"),
        },
        "model_config": {"f_maps": [8, 16]},
        "dataset_config": {
            "min_bbox_percent": 0.1,
            "min_labeled_ratio": 0.01,
            "volume_paths": [
                {
                    "input": str(scroll / "ct"),
                    "sheet": str(scroll / "sheet"),
                    "ref_label": "sheet",
                }
            ],
            "targets": {"sheet": {"kind": "binary", "ignore_label": 2}},
        },
    }
)

# %% [markdown]
# ## One's own network and loop
#
# `valid` is false where the label does not count: those voxels have no say in the loss.

# %%
network = nn.Sequential(
    nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(),
    nn.Conv3d(8, 1, 1),
)  # fmt: skip
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
dataset = vcmodels.training_set(task)
for epoch in range(2):
    draws = range(20 * 2 * epoch, 20 * 2 * (epoch + 1))  # a draw of its own for each sample
    for batch in DataLoader(dataset, batch_size=2, sampler=draws):
        logits = network(batch["image"])
        label, valid = batch["labels"]["sheet"], batch["valid"]["sheet"]
        loss = nn.functional.binary_cross_entropy_with_logits(logits[valid], label[valid])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"own loop, epoch {epoch + 1}: loss {loss.item():.3f}")

# %% [markdown]
# ## The same with vcmodels, predicted and scored

# %%
run = vcmodels.train(task)
predictor = vcmodels.load_predictor(run.best)
ct, label = vcmodels.open_volume(scroll / "ct"), vcmodels.open_volume(scroll / "sheet")
probability = predictor.predict(ct.read(ct.box))["sheet"]
print(vcmodels.score(probability, label, task.dataset_config.targets["sheet"]))
