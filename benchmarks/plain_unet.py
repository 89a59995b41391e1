"""A plain residual U-Net, quickly written, as the bar for our defaults.

    python benchmarks/plain_unet.py FOLDER MINUTES SEED OUTPUT

FOLDER is one that `defaults.py` makes. Four levels of 16 to 128 features, patches of at most 64 voxels a side, two in a
step, mirrored along all axes, gain and offset jittered, cross-entropy and Dice, AdamW at 2e-3 with a rate that falls to
zero with the time; compiled where that pays, as ours. Nothing of vcmodels is used; all of the training part is trained on, and the last weights predict.
"""

import argparse
import json
import time
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = (16, 32, 64, 128)
DIVISOR = 2 ** (len(FEATURES) - 1)
MOST_PATCH, BATCH = 64, 2
COMPILED_FROM = 15 * 60
"""Seconds; below, compiling costs more than it gains (it took two minutes and a half of one core)."""
RATE, WARM_UP, POWER = 2e-3, 50, 0.9
JITTER = 0.1
IGNORED = 255
SLOPE = 0.01


class Residual(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.InstanceNorm3d(outputs, affine=True) for _ in range(2))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv3d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Z, Y, X) -> (B, outputs, Z', Y', X')."""
        inner = F.leaky_relu(self.norms[0](self.first(x)), SLOPE)
        return F.leaky_relu(self.norms[1](self.second(inner)) + self.shortcut(x), SLOPE)


class Network(nn.Module):
    """The encoder, the decoder, and one head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [1, *FEATURES]
        self.down = nn.ModuleList(Residual(a, b, 1 if a == 1 else 2) for a, b in pairwise(widths))
        pairs = [(b, a) for a, b in pairwise(FEATURES)]
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for b, a in pairs)
        self.mix = nn.ModuleList(Residual(2 * a, a) for _, a in pairs)
        self.head = nn.Conv3d(FEATURES[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, Z, Y, X) -> logits (B, classes, Z, Y, X); lengths that `DIVISOR` divides."""
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        for up, mix, skip in reversed(list(zip(self.up, self.mix, skips[:-1], strict=True))):
            x = mix(torch.cat([up(x), skip], 1))
        return self.head(x)


class Scans:
    """The training part in memory."""

    def __init__(self, folder: Path, seed: int) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.classes: int = about["classes"]
        self.images = [standardised(np.load(f)) for f in sorted(folder.glob("train*_raw.npy"))]
        labels = [np.load(f) for f in sorted(folder.glob("train*_label.npy"))]
        ignored = about["ignored"]
        self.labels = [
            np.where(v == (-1 if ignored is None else ignored), IGNORED, v) for v in labels
        ]
        least = np.min([image.shape for image in self.images], axis=0)
        self.patch = [int(min(MOST_PATCH, max(n // DIVISOR, 1) * DIVISOR)) for n in least]
        self.rng = np.random.default_rng(seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Patches at random: (B, 1, Z, Y, X) float32 and (B, Z, Y, X) int64."""
        images, labels = zip(*(self._sample() for _ in range(BATCH)), strict=True)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        rng, one = self.rng, self.rng.integers(len(self.images))
        image, label = self.images[one], self.labels[one]
        begin = [rng.integers(n - p + 1) for n, p in zip(image.shape, self.patch, strict=True)]
        at = tuple(slice(b, b + p) for b, p in zip(begin, self.patch, strict=True))
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        image, label = np.flip(image[at], axes), np.flip(label[at], axes)
        gain, offset = JITTER * rng.standard_normal(2)
        return (image * (1 + gain) + offset)[None].astype(np.float32), label.astype(np.int64)


def main() -> None:
    """Train, predict all test scans, and write figures."""
    parser = argparse.ArgumentParser(description="The plain network.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    scans = Scans(given.folder, given.seed)
    network = Network(scans.classes)
    steps = fit(network, scans, 60 * given.minutes)
    given.output.mkdir(parents=True, exist_ok=True)
    for file in sorted(given.folder.glob("test*_raw.npy")):
        predicted = predict(network.eval(), standardised(np.load(file)), scans.patch)
        np.save(given.output / file.name.replace("_raw", ""), predicted)
    (given.output / "figures.json").write_text(json.dumps({"steps": steps, "patch": scans.patch}))


def fit(network: Network, scans: Scans, seconds: float) -> int:
    """Steps that were made in that time, compilation included."""
    begun, step = time.monotonic(), 0
    compiled = torch.compile(network) if seconds >= COMPILED_FROM else network
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    while (done := (time.monotonic() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 - done) ** POWER
        image, label = scans.batch()
        loss = cross_entropy_and_dice(compiled(image), label)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimiser.step()
        step += 1
    return step


def cross_entropy_and_dice(logits: Tensor, label: Tensor) -> Tensor:
    """Of classes, ignored voxels left out; the Dice of the batch as one."""
    counts = (label != IGNORED)[:, None]
    if not counts.any():
        return logits.sum() * 0
    shares = logits.softmax(1)[:, 1:] * counts
    wanted = F.one_hot(label * counts[:, 0], logits.shape[1]).movedim(-1, 1)[:, 1:] * counts
    axes = (0, 2, 3, 4)
    overlap = 2 * (shares * wanted).sum(axes) + 1
    dice = overlap / (shares.sum(axes) + wanted.sum(axes) + 1)
    return F.cross_entropy(logits, label, ignore_index=IGNORED) + 1 - dice.mean()


@torch.inference_mode()
def predict(network: nn.Module, image: np.ndarray, patch: list[int]) -> np.ndarray:
    """(Z, Y, X) uint8 classes: the mean over patches that overlap by a quarter at least."""
    short = [(0, max(p - n, 0)) for n, p in zip(image.shape, patch, strict=True)]
    padded = torch.from_numpy(np.pad(image, short, mode="edge"))[None, None]
    total: Tensor | None = None
    for begin in product(*map(origins, padded.shape[2:], patch)):
        at = (..., *(slice(b, b + p) for b, p in zip(begin, patch, strict=True)))
        shares = network(padded[at]).softmax(1)[0]
        total = torch.zeros(len(shares), *padded.shape[2:]) if total is None else total
        total[at] += shares
    assert total is not None
    classes = total.argmax(0).to(torch.uint8).numpy()
    return classes[tuple(slice(n) for n in image.shape)]


def origins(length: int, patch: int) -> list[int]:
    """Evenly spread, a quarter of overlap at least."""
    count = 1 + int(np.ceil((length - patch) / (0.75 * patch)))
    return np.unique(np.linspace(0, length - patch, count).round().astype(int)).tolist()


def standardised(image: np.ndarray) -> np.ndarray:
    """float32 of mean 0 and deviation 1."""
    found = (image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    return found.astype(np.float32)


if __name__ == "__main__":
    main()
