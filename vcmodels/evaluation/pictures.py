"""Pictures of the slices that a report shows: the image, the label, the prediction, and both.

They are kept next to the page, so that it can be made again where the volumes are out of reach.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vcmodels.errors import VcmodelsError
from vcmodels.evaluation.scoring import ScoredVolume
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import Pair
from vcmodels.pictures.forms import FormDrawing
from vcmodels.pictures.overlay import middle_of
from vcmodels.pictures.slices import (
    Panel,
    PicturePair,
    draw_panels,
    joint_panel,
    pair_of,
    separate_panels,
    shade_of,
    window_of,
)
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume, open_volume
from vcmodels.volumes.places import write_atomic

MOST = 1024
"""Voxels along an edge of what is read of a slice: its middle, where it is larger."""
PANEL = 320
"""Pixels of the longer edge of a panel at most: 12 pictures of four panels are to stay small."""
SHORTEST = 192
"""Pixels of the longer edge at least: small slices are enlarged by a whole factor."""
GAP = 4
QUALITY = 82
"""Of the WebP: four panels of a slice with noise take about 40 kB then."""
FOLDER = "pictures"
"""Next to the page."""

Picture = Callable[[str, str, int], bytes | None]
"""(name of a volume, target, z) -> a WebP; None where there is nothing to draw from."""
ReadImage = Callable[[Box], np.ndarray]
"""Of an image: (Z, Y, X) of its first channel in a box."""


@dataclass(frozen=True)
class PairPictures:
    """A `Picture` of the pairs that were scored."""

    pairs: Mapping[tuple[str, str], Pair]
    """By volume and target."""
    images: Mapping[str, ReadImage]
    """By volume, where the image is known."""

    def __call__(self, volume: str, target: str, z: int) -> bytes | None:
        """Panels next to each other; None where there is no such pair or slice."""
        pair = self.pairs.get((volume, target))
        if pair is None or not pair.box.origin[0] <= z < pair.box.end[0]:
            return None
        return as_webp(draw_slice(pair, z, self.images.get(volume)))


@dataclass(frozen=True)
class KeptPictures:
    """A `Picture` of the files of a folder; with `draw`, they are drawn and written first."""

    folder: Path
    draw: Picture | None = None
    used: set[Path] = field(default_factory=set)
    """Files that were asked for."""

    def __call__(self, volume: str, target: str, z: int) -> bytes | None:
        """The picture; None where there is none to read or to draw."""
        path = self.folder / picture_name(volume, target, z)
        if self.draw is None:
            return path.read_bytes() if path.is_file() else None
        drawn = self.draw(volume, target, z)
        if drawn is not None:
            self.used.add(path)
            write_atomic(path, drawn)
        return drawn

    def sweep(self) -> None:
        """Delete pictures of ours that were not asked for: those of an earlier report."""
        for path in self.folder.glob("*.webp") if self.draw else ():
            if path not in self.used and re.search(r"-z\d+-[0-9a-f]{8}\.webp$", path.name):
                path.unlink()


def picture_name(volume: str, target: str, z: int) -> str:
    """A file name for a slice: readable, and unlike that of any other slice."""
    digest = hashlib.sha256(f"{volume}\0{target}".encode()).hexdigest()[:8]
    words = "-".join(
        re.sub(r"[^a-zA-Z0-9.]+", "_", text).lstrip(".")[:60] for text in (volume, target)
    )
    return f"{words}-z{z}-{digest}.webp"


def as_webp(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()


def pair_pictures(volumes: Iterable[ScoredVolume], reporter: Reporter) -> PairPictures:
    """What draws the slices of scored volumes.

    An image that cannot be opened, or is of another extent than the labels, is not drawn, and that
    is said: figures do not depend on it.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    images: dict[str, ReadImage] = {}
    for volume in volumes:
        pairs |= {(volume.name, target.name): target.pair for target in volume.targets}
        boxes = [target.pair.box for target in volume.targets]
        try:
            image = open_volume(volume.image[0], channels="any") if volume.image else None
        except VcmodelsError as error:
            reporter.say(f"note: pictures of {volume.name} have no image: {error}")
            continue
        if image is None:
            continue
        if all(image.box.contains(box) for box in boxes):
            images[volume.name] = _first_channel(image)
        else:
            reporter.say(f"note: pictures of {volume.name} have no image: it is of another extent")
    return PairPictures(pairs, images)


def _first_channel(image: Volume) -> ReadImage:
    return lambda box: image.read(box)[0]


def draw_slice(pair: Pair, z: int, read_image: ReadImage | None) -> np.ndarray:
    """A slice of a pair: the image if there is one, label, prediction and both, (H, W, 3) uint8.

    A slice that is larger than `MOST` is cut to its middle.
    """
    box = middle_of(pair.box.cut(0, z, z + 1), MOST)
    step = max(1, -(-max(box.shape) // PANEL))
    prediction, label, valid = (_thinned(a, step) for a in pair.read(box))
    if pair.form == "instances":
        prediction, label = prediction.astype(np.int64), label.astype(np.int64)
    shape = label.shape[1:]
    image = np.zeros((*shape, 3), np.float32)
    if read_image is not None:
        grey = np.nan_to_num(read_image(box)[0].astype(np.float32))[::step, ::step]
        image = shade_of(grey, window_of(grey))
    drawing = FormDrawing(pair.form, len(prediction))
    drawn = pair_of(drawing, label, prediction, np.logical_or.reduce(valid))
    return _row(_panels(drawn, image, has_image=read_image is not None))


def _thinned(values: np.ndarray, step: int) -> np.ndarray:
    """Every `step`-th voxel of one slice: (C, 1, Y, X) -> (C, H, W)."""
    return np.ascontiguousarray(values[:, 0, ::step, ::step])


def _panels(pair: PicturePair, image: np.ndarray, *, has_image: bool) -> list[Panel]:
    label, prediction = separate_panels(pair, image)
    both = joint_panel(pair, image)
    if not has_image:  # over black a mixture is only darker
        return [label, prediction, both] if pair.regions else [label, prediction]
    return [Panel(image), label, prediction, both]


def _row(panels: list[Panel]) -> np.ndarray:
    """Panels side by side on white, as uint8."""
    drawn = draw_panels(panels, SHORTEST)
    padded = [np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=1) for p in drawn]
    return np.round(255 * np.concatenate(padded, axis=1)[:, :-GAP]).astype(np.uint8)
