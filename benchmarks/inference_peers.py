"""MONAI or nnU-Net predict a volume in memory with a given network, as one process.

    PYTHON benchmarks/inference_peers.py monai|nnunet NETWORK.pt2 VOLUME.npy PATCH OVERLAP

Run by `benchmarks/inference.py peers` with a Python that has torch and the two; it needs nothing of
vcmodels. The network is an exported program that gives a dictionary of logits. Both run with what they
do by default on a CPU (float32, eager), with the same windows: nnU-Net without its mirroring, which would
take eight times as long. Nothing is read or written on the way. Prints one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

Network = Callable[[Tensor], dict[str, Tensor]]


def monai(network: Network, volume: Tensor, patch: int, overlap: float) -> None:
    """A window at a time, each head on its own."""
    inferers = import_module("monai.inferers")
    inferers.sliding_window_inference(volume[None], (patch,) * 3, 1, network, overlap=overlap)


def nnunet(network: Network, volume: Tensor, patch: int, overlap: float) -> None:
    """The inside of its predictor, which has one head: here the channels of all together."""
    inference = import_module("nnunetv2.inference.predict_from_raw_data")

    class Stacked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat(list(network(image).values()), dim=1)

    predictor = inference.nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    predictor.network = Stacked()
    predictor.configuration_manager = SimpleNamespace(patch_size=(patch,) * 3)
    channels = predictor.network(torch.zeros(1, 1, *(patch,) * 3)).shape[1]
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=channels)
    predictor.predict_sliding_window_return_logits(volume)


def main() -> None:
    """Predict, and say how long that took after the imports and a first window."""
    peer, network_path, volume_path, patch, overlap = sys.argv[1:]
    torch.set_num_threads(1)
    module = torch.export.load(network_path).module()
    predict = {"monai": monai, "nnunet": nnunet}[peer]
    windows = 0

    def network(image: Tensor) -> dict[str, Tensor]:
        nonlocal windows
        windows += 1
        return module(image)

    with torch.inference_mode():
        side = int(patch)
        predict(network, torch.zeros(1, side, side, side), side, float(overlap))
        windows = 0
        cpu = time.process_time()
        predict(network, torch.from_numpy(np.load(volume_path))[None], side, float(overlap))
        cpu = time.process_time() - cpu
    windows -= peer == "nnunet"  # it is asked for its channels
    sys.stdout.write(json.dumps({"windows": windows, "cpu_s": cpu}) + "\n")


if __name__ == "__main__":
    main()
