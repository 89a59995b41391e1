"""nnU-Net as far as a prediction needs it, once more: plain torch and scikit-image, nothing of ours.

Written after the public sources of nnunetv2 2.8 and dynamic-network-architectures 0.4, with the names of
their weights; the oracle of `test_nnunet`.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.transform import resize
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """`ConvDropoutNormReLU`, with its modules held twice."""

    def __init__(self, dims, inputs, outputs, kernel, stride, *, bias=True, nonlin=True):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
        padding = [(k - 1) // 2 for k in kernel]
        self.conv = conv(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = norm(outputs, eps=1e-5, affine=True)
        last = [nn.LeakyReLU(0.01)] if nonlin else []
        self.all_modules = nn.Sequential(self.conv, self.norm, *last)

    def forward(self, x):
        return self.all_modules(x)


class Stack(nn.Module):
    """`StackedConvBlocks`."""

    def __init__(self, dims, count, inputs, outputs, kernel, stride):
        super().__init__()
        one = [1] * dims
        blocks = [
            Block(dims, outputs if i else inputs, outputs, kernel, one if i else stride)
            for i in range(count)
        ]
        self.convs = nn.Sequential(*blocks)

    def forward(self, x):
        return self.convs(x)


class BasicBlockD(nn.Module):
    def __init__(self, dims, inputs, outputs, kernel, stride):
        super().__init__()
        one = [1] * dims
        self.conv1 = Block(dims, inputs, outputs, kernel, stride)
        self.conv2 = Block(dims, outputs, outputs, kernel, one, nonlin=False)
        skip = []
        if stride != one:
            skip.append((nn.AvgPool3d if dims == 3 else nn.AvgPool2d)(stride, stride))
        if inputs != outputs:
            skip.append(Block(dims, inputs, outputs, one, one, bias=False, nonlin=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x):
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class ResidualStage(nn.Module):
    def __init__(self, dims, count, inputs, outputs, kernel, stride):
        super().__init__()
        blocks = [
            BasicBlockD(
                dims, outputs if i else inputs, outputs, kernel, [1] * dims if i else stride
            )
            for i in range(count)
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x)


class Encoder(nn.Module):
    def __init__(self, keys, inputs, *, residual):
        super().__init__()
        dims = 2 if keys["conv_op"].endswith("2d") else 3
        features, kernels = keys["features_per_stage"], keys["kernel_sizes"]
        if residual:
            self.stem = Stack(dims, 1, inputs, features[0], kernels[0], [1] * dims)
            inputs = features[0]
        stages, counts = [], keys["n_blocks_per_stage" if residual else "n_conv_per_stage"]
        for count, outputs, kernel, stride in zip(
            counts, features, kernels, keys["strides"], strict=True
        ):
            arguments = (dims, count, inputs, outputs, kernel, stride)
            stages.append(
                ResidualStage(*arguments) if residual else nn.Sequential(Stack(*arguments))
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, x):
        x = self.stem(x) if hasattr(self, "stem") else x
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    def __init__(self, encoder, keys, outputs):
        super().__init__()
        self.encoder = encoder  # the weights of the encoder are stored a second time for it
        dims = 2 if keys["conv_op"].endswith("2d") else 3
        up, conv = (nn.ConvTranspose3d, nn.Conv3d) if dims == 3 else (nn.ConvTranspose2d, nn.Conv2d)
        features, kernels, strides = (
            keys["features_per_stage"],
            keys["kernel_sizes"],
            keys["strides"],
        )
        stages, transposed, heads = [], [], []
        for s in range(1, len(features)):
            below, skip, stride = features[-s], features[-s - 1], strides[-s]
            transposed.append(up(below, skip, stride, stride, bias=keys["conv_bias"]))
            count = keys["n_conv_per_stage_decoder"][s - 1]
            stages.append(Stack(dims, count, 2 * skip, skip, kernels[-s - 1], [1] * dims))
            heads.append(conv(skip, outputs, 1))
        self.stages, self.transpconvs = nn.ModuleList(stages), nn.ModuleList(transposed)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, skips):
        x = skips[-1]
        for s, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat([up(x), skips[-s - 2]], 1))
        return self.seg_layers[-1](x)


class Network(nn.Module):
    """`PlainConvUNet`, `ResidualEncoderUNet`: (B, C, ...) -> (B, heads, ...)."""

    def __init__(self, configuration, inputs, outputs):
        super().__init__()
        given = configuration["architecture"]
        residual = given["network_class_name"].endswith("ResidualEncoderUNet")
        self.encoder = Encoder(given["arch_kwargs"], inputs, residual=residual)
        self.decoder = Decoder(self.encoder, given["arch_kwargs"], outputs)
        for module in self.modules():  # as after a training: nothing is as it begins
            if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.normal_(module.bias)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def preprocess(image, spacing, plans, configuration):
    """(C, Z, Y, X) as stored -> the cropped, normalised, resampled array, and where the crop was."""
    image = image.transpose(0, *(1 + a for a in plans["transpose_forward"])).astype(np.float32)
    spacing = [spacing[a] for a in plans["transpose_forward"]]
    places = np.argwhere((image != 0).any(0))
    low, high = places.min(0), places.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    image = image[(slice(None), *box)].copy()
    mask = (image != 0).any(0)
    for number, channel in enumerate(image):
        channel[...] = normalise(channel, mask, number, plans, configuration)
    wanted = configuration["spacing"]
    wanted = wanted if len(wanted) == 3 else [spacing[0], *wanted]
    shape = [round(i / j * k) for i, j, k in zip(spacing, wanted, image.shape[1:], strict=True)]
    return resampled(image, shape, spacing, wanted, 3), box


def normalise(channel, mask, number, plans, configuration):
    match configuration["normalization_schemes"][number]:
        case "ZScoreNormalization" if configuration["use_mask_for_norm"][number]:
            inner = channel[mask]
            return np.where(mask, (channel - inner.mean()) / inner.std(), channel)
        case "ZScoreNormalization":
            return (channel - channel.mean()) / channel.std()
        case "CTNormalization":
            found = plans["foreground_intensity_properties_per_channel"][str(number)]
            cut = channel.clip(found["percentile_00_5"], found["percentile_99_5"])
            return (cut - found["mean"]) / found["std"]
    return channel


def resampled(image, shape, old, new, order):
    """`resample_data_or_seg`, with `order_z` 0."""
    if list(image.shape[1:]) == list(shape):
        return image
    axis = None
    for sides in (old, new):
        if max(sides) / min(sides) > 3:
            thick = [a for a in range(3) if sides[a] == max(sides)]
            axis = thick[0] if len(thick) == 1 else None
            break
    keys = {"order": order, "mode": "edge", "anti_aliasing": False}
    if axis is None:
        return np.stack([resize(channel, shape, **keys) for channel in image])
    found = []
    for channel in image:
        flat = [n for a, n in enumerate(shape) if a != axis]
        slices = [resize(one, flat, **keys) for one in np.moveaxis(channel, axis, 0)]
        stack = np.stack(slices)
        scale = stack.shape[0] / shape[axis]
        places = scale * (np.arange(shape[axis]) + 0.5) - 0.5
        grid = np.meshgrid(places, *map(np.arange, flat), indexing="ij")
        found.append(np.moveaxis(map_coordinates(stack, grid, order=0, mode="nearest"), 0, axis))
    return np.stack(found)


def predict(image, spacing, plans, dataset, networks, name, mirrored):
    """(C, Z, Y, X) -> the label map (Z, Y, X)."""
    configuration = plans["configurations"][name]
    ready, box = preprocess(image, spacing, plans, configuration)
    logits = sum(
        slide(ready, network, configuration["patch_size"], mirrored) for network in networks
    )
    forward = plans["transpose_forward"]
    old = [spacing[a] for a in forward]
    shape = [s.stop - s.start for s in box]
    wanted = (
        configuration["spacing"]
        if len(configuration["spacing"]) == 3
        else [old[0], *configuration["spacing"]]
    )
    logits = resampled(logits / len(networks), shape, wanted, old, 1)
    whole = np.zeros([image.shape[1 + a] for a in forward], np.uint8)
    if dataset.get("regions_class_order"):
        part = np.zeros(shape, np.uint8)
        for number, value in enumerate(dataset["regions_class_order"]):
            part[logits[number] > 0] = value
    else:
        part = logits.argmax(0)
    whole[box] = part
    return whole.transpose(plans["transpose_backward"])


def slide(image, network, patch, mirrored):
    """`predict_sliding_window_return_logits`: zeros around what is too small, a Gaussian, mirrors."""
    flat = len(patch) == 2
    tile = [1, *patch] if flat else [*patch]
    lack = [max(t - n, 0) for t, n in zip(tile, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in lack)])
    point = np.zeros(patch)
    point[tuple(n // 2 for n in patch)] = 1
    weight = gaussian_filter(point, [n / 8 for n in patch], mode="constant")
    weight = np.maximum(weight, weight[weight > 0].min())
    sums, weights = 0.0, np.zeros(padded.shape[1:])
    origins = []
    for n, t in zip(padded.shape[1:], tile, strict=True):
        count = int(np.ceil((n - t) / (t * 0.5 if t > 1 else 1))) + 1
        step = (n - t) / max(count - 1, 1)
        origins.append([round(step * i) for i in range(count)])
    for corner in itertools.product(*origins):
        at = tuple(slice(o, o + t) for o, t in zip(corner, tile, strict=True))
        x = torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *at)])).float()[None]
        x = x[:, :, 0] if flat else x
        views = [v for n in range(len(mirrored) + 1) for v in itertools.combinations(mirrored, n)]
        with torch.inference_mode():
            found = sum(
                torch.flip(network(torch.flip(x, [2 + a for a in v])), [2 + a for a in v])
                for v in views
            )
        found = (found[0] / len(views)).double().numpy()
        if isinstance(sums, float):
            sums = np.zeros((len(found), *padded.shape[1:]))
        sums[(slice(None), *at)] += (found * weight).reshape(len(found), *tile)
        weights[at] += weight.reshape(tile)
    inner = tuple(slice(n // 2, n // 2 + m) for n, m in zip(lack, image.shape[1:], strict=True))
    return (sums / weights)[(slice(None), *inner)]


def write_folder(place: Path, plans, dataset, networks, name, mirrored, **others):
    """A result folder as nnU-Net leaves it."""
    (place / "plans.json").write_text(json.dumps(plans))
    (place / "dataset.json").write_text(json.dumps(dataset))
    for number, network in enumerate(networks):
        fold = place / f"fold_{number}"
        fold.mkdir()
        state = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": name, "fold": number, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirrored,
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [0.01]},
            "_best_ema": np.float32(0.5),
        }
        torch.save(state | others, fold / "checkpoint_final.pth")
    return place
