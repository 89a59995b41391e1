"""Convolutions and a whole window in int8 next to float32, on the CPU that runs this.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/int8.py [CHECKPOINT] [--repeats N]

One thread; each time is the least of some repeats, taken in turn, and only ratios of one run mean
anything. The first table has a 3x3x3 convolution of each level of a network of 16 to 128 features in a
window of 64^3: float32 as the prediction runs it (channels-last, oneDNN), and the quantized ones of
torch, of tensors that are int8 already. The second has the whole network: as the prediction runs it
(`models/fused.py`), with each wide convolution of torch in int8 between the float32 norms, and as an
ONNX graph that onnxruntime runs in float32 and quantized after training (QDQ, for each channel of the
weights, calibrated on windows). With a CHECKPOINT, which must be of one channel, its network and
windows of its own training volumes are taken, and the mean error of probabilities and the change of the Dice are
those of its masks; without one, the weights and the windows are random, and errors say little.
"""

import argparse
import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.devices import place
from vcmodels.machine import instruction_sets
from vcmodels.models import ResidualUNet
from vcmodels.models.blocks import InstanceNorm
from vcmodels.models.fused import FusedNorm, OneDnnConvolution, fused
from vcmodels.workflows.prune import PatchRun

LEVELS = ((16, 64), (32, 32), (64, 16), (128, 8))
"""Features, and length of a window there."""
EDGE = 64
CALIBRATION_WINDOWS = 4
FEWEST_FEATURES = 8
"""Of a convolution that is worth int8: the first one reads a single channel."""
CPU = torch.device("cpu")

INPUT, FUSED = "image", "float32, as predicted"
JUDGED_WINDOWS = 8

Run = Callable[[], object]
"""One pass."""
Network = Callable[[Tensor], Mapping[str, Tensor]]
"""(1, C, Z, Y, X) -> the logits of each head."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="int8 next to float32 on this CPU.")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    show(f"{instructions()}; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    with torch.inference_mode():
        convolution_table(given.repeats)
        window_table(subject_of(given.checkpoint), given.repeats)


def show(line: str) -> None:
    """One line of a table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def instructions() -> str:
    """Of the CPU, and what torch uses of them."""
    used = torch.backends.cpu.get_cpu_capability()
    return f"instructions {' '.join(instruction_sets()) or 'unknown'}, torch uses {used}"


def best_times(runs: Mapping[str, Run], repeats: int) -> dict[str, float]:
    """The least seconds of each, taken in turn so that a busy machine hurts all alike."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first prepares weights
                best[name] = min(best[name], time.perf_counter() - begun)
    return best


def engines() -> list[str]:
    """The ways in which torch runs quantized convolutions on a server's CPU."""
    known = torch.backends.quantized.supported_engines
    return [name for name in ("fbgemm", "onednn") if name in known]


def convolution_table(repeats: int) -> None:
    """One convolution of each level."""
    show("\nconvolution 3x3x3        float32 ms  " + "  ".join(f"{e} x" for e in engines()))
    for features, length in LEVELS:
        conv = nn.Conv3d(features, features, 3, padding=1, bias=False)
        place(conv, CPU)
        image, plain = windows_of(features, length), OneDnnConvolution.of(conv)
        runs: dict[str, Run] = {"float32": lambda plain=plain, image=image: plain(image)}
        for engine in engines():
            quantized = Int8Convolution(conv, 0.05, 0.05, engine)
            stored = torch.quantize_per_tensor(image, 0.05, 64, torch.quint8)
            runs[engine] = lambda quantized=quantized, stored=stored: quantized.multiply(stored)
        times = best_times(runs, repeats)
        ratios = "  ".join(f"{times['float32'] / times[e]:{len(e) + 2}.2f}" for e in engines())
        show(f"{features:4} features, {length:2}^3 {times['float32'] * 1e3:16.2f}  {ratios}")


def windows_of(channels: int, length: int) -> Tensor:
    """(1, C, Z, Y, X) float32 in channels-last order."""
    image = torch.randn(1, channels, *[length] * 3)
    return in_order(image)


class Int8Convolution(nn.Module):
    """A convolution of quantized values between float32 neighbours, by torch."""

    def __init__(self, conv: nn.Conv3d, scale: float, output_scale: float, engine: str) -> None:
        super().__init__()
        self.scale, self.output_scale, self.engine = scale, output_scale, engine
        torch.backends.quantized.engine = engine
        # fbgemm adds two products in 16 bits where there is no VNNI, so weights have 7 bits there.
        widest = 63 if engine == "fbgemm" else 127
        scales = (conv.weight.abs().amax((1, 2, 3, 4)) / widest).clamp_min(1e-8).double()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        weight = torch.quantize_per_channel(conv.weight.detach(), scales, zeros, 0, torch.qint8)
        args = (weight, None, list(conv.stride), list(conv.padding), list(conv.dilation), 1)
        self.packed = torch.ops.quantized.conv3d_prepack(*args)

    def multiply(self, stored: Tensor) -> Tensor:
        """Quantized to quantized."""
        torch.backends.quantized.engine = self.engine
        return torch.ops.quantized.conv3d(stored, self.packed, self.output_scale, 128)

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, Z, Y, X) -> (1, outputs, Z', Y', X'), float32 both."""
        stored = torch.quantize_per_tensor(x, self.scale, 128, torch.quint8)
        found = self.multiply(stored).dequantize()
        return found.contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True)
class Subject:
    """A network, windows to calibrate on, and windows to judge by."""

    network: nn.Module
    """(1, 1, Z, Y, X) -> the logits of its heads by name."""
    calibration: list[Tensor]
    judged: list[tuple[Tensor, dict[str, Tensor]]]
    """With the masks that should be found there, where they are known."""
    masks: tuple[str, ...]
    """Heads of which the probabilities are compared."""


def subject_of(path: Path | None) -> Subject:
    """What is measured: a checkpoint's network, or one of random weights."""
    if path is not None:
        return trained_subject(path)
    model = ResidualUNet(f_maps=tuple(features for features, _ in LEVELS), decoder="shared")
    network = model.build(1, {"mask": 1}, (EDGE, EDGE, EDGE), (1.0, 1.0, 1.0)).eval()
    images = [windows_of(1, EDGE) for _ in range(CALIBRATION_WINDOWS + 2)]
    judged = [(image, dict[str, Tensor]()) for image in images[CALIBRATION_WINDOWS:]]
    return Subject(network, images[:CALIBRATION_WINDOWS], judged, ("mask",))


def trained_subject(path: Path) -> Subject:
    """A checkpoint's network, windows that it was trained on, and windows that were held out."""
    checkpoint = load_checkpoint(path)
    trained = build_network(checkpoint)
    masks = tuple(name for name, one in trained.targets.items() if one.kind == "binary")
    run = PatchRun.of(checkpoint, trained.task)
    assert run.validation is not None, "a task with validation patches"
    calibration = [in_order(one.image) for one in run.first(run.training, CALIBRATION_WINDOWS)]
    judged = [
        (in_order(one.image), {name: one.labels[name] for name in masks})
        for one in run.first(run.validation, JUDGED_WINDOWS)
    ]
    return Subject(trained.module, calibration, judged, masks)


def in_order(image: Tensor) -> Tensor:
    """Channels-last."""
    return image.contiguous(memory_format=torch.channels_last_3d)


def of_torch(network: nn.Module) -> Network:
    """The logits of a network of torch."""
    return lambda image: {name: maps[0] for name, maps in network(image).items()}


def of_session(graph: Path) -> Network:
    """The logits of a graph, by onnxruntime in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]

    def run(image: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {INPUT: image.contiguous().numpy()})
        return {name: torch.from_numpy(one) for name, one in zip(names, found, strict=True)}

    return run


class Traced(nn.Module):
    """A network as a function of tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(maps[0] for maps in self.network(image).values())


class Windows(CalibrationDataReader):
    """Windows that a graph is calibrated on."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.left = iter(images)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next one."""
        image = next(self.left, None)
        return None if image is None else {INPUT: image.contiguous().numpy()}


def graphs(subject: Subject, folder: Path) -> tuple[Path, Path]:
    """The network as ONNX in float32, and with its wide convolutions in int8."""
    raw, plain, small = (folder / f"{name}.onnx" for name in ("raw", "plain", "small"))
    image = subject.calibration[0].contiguous()
    names = list(subject.network(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.onnx.export(
            Traced(subject.network), (image,), input_names=[INPUT], output_names=names,
            dynamo=True, opset_version=20, external_data=False, verbose=False,
        )  # fmt: skip
    assert found is not None
    found.save(raw)
    quant_pre_process(raw, plain)
    quantize_static(
        plain, small, Windows(subject.calibration), quant_format=QuantFormat.QDQ, per_channel=True,
        # Two products are added in 16 bits where there is no VNNI.
        reduce_range="VNNI" not in instructions(), op_types_to_quantize=["Conv"],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        nodes_to_exclude=narrow_convolutions(plain),
    )  # fmt: skip
    return plain, small


def narrow_convolutions(graph: Path) -> list[str]:
    """Those that stay in float32: of few channels, and the heads."""
    model = onnx.load(graph)
    shapes = {one.name: one.dims for one in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions if min(shapes[node.input[1]][:2]) < FEWEST_FEATURES]


def with_int8(subject: Subject, engine: str) -> nn.Module:
    """The network with each wide convolution of its blocks in int8, between norms of one sample."""
    network = copy.deepcopy(subject.network)
    wide = {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, nn.Conv3d) and min(part.weight.shape[:2]) >= FEWEST_FEATURES
    }
    scales = dict.fromkeys(wide, (0.0, 0.0))
    hooks = []
    for name, part in wide.items():

        def widen(_: nn.Module, given: tuple[Tensor, ...], found: Tensor, name: str = name) -> None:
            now = (float(given[0].abs().max()), float(found.abs().max()))
            scales[name] = (max(scales[name][0], now[0]), max(scales[name][1], now[1]))

        hooks.append(part.register_forward_hook(widen))
    for image in subject.calibration:
        network(image)
    for hook in hooks:
        hook.remove()
    for name, part in wide.items():
        scale, output_scale = (widest / 127 for widest in scales[name])
        replace_part(network, name, Int8Convolution(part, scale, output_scale, engine))
    for name, part in list(network.named_modules()):
        if isinstance(part, InstanceNorm):
            replace_part(network, name, FusedNorm(part))
    return network


def replace_part(network: nn.Module, name: str, part: nn.Module) -> None:
    """Put another module in the place of one."""
    outer, _, last = name.rpartition(".")
    setattr(network.get_submodule(outer), last, part)


def errors(reference: Network, run: Network, subject: Subject) -> str:
    """The mean error of the probabilities of masks, and the change of their Dice, in words."""
    off, dice = [], []
    for image, labels in subject.judged:
        wanted, found = (
            {name: torch.sigmoid(logits[name].float()) for name in subject.masks}
            for logits in (reference(image), run(image))
        )
        for name in subject.masks:
            off.append(float((found[name] - wanted[name]).abs().mean()))
            if name in labels:
                dice.append(
                    dice_of(found[name], labels[name]) - dice_of(wanted[name], labels[name])
                )
    change = f"{np.mean(dice):+.4f}" if dice else "-"
    return f"{np.mean(off):.4f}  {change:>7}"


def dice_of(probability: Tensor, label: Tensor) -> float:
    """Of a mask from one half on."""
    mask, truth = probability[0] >= 0.5, label > 0.5
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()).clamp_min(1))


def window_table(subject: Subject, repeats: int) -> None:
    """The whole network."""
    image = subject.judged[0][0]
    place(subject.network, CPU)
    networks: dict[str, Network] = {FUSED: of_torch(fused(subject.network))}
    for engine in engines():
        networks[f"torch int8, {engine}"] = of_torch(with_int8(subject, engine))
    with tempfile.TemporaryDirectory() as folder:
        plain, small = graphs(subject, Path(folder))
        networks["onnxruntime float32"] = of_session(plain)
        networks["onnxruntime int8"] = of_session(small)
    times = best_times({k: lambda run=run: run(image) for k, run in networks.items()}, repeats)
    shape = "x".join(map(str, image.shape[2:]))
    show(f"\n{'window ' + shape:22}      ms     x   error     Dice")
    for name, run in networks.items():
        found = errors(networks[FUSED], run, subject)
        show(f"{name:22}{times[name] * 1e3:8.1f} {times[FUSED] / times[name]:5.2f}  {found}")


if __name__ == "__main__":
    main()
