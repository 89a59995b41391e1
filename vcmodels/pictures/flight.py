"""Slices of a volume with what was predicted and labelled over them: a PNG of some, a film of all.

A film goes along an axis. As MP4 it is H.264, which every browser and slide program shows; GIF needs no
package, and is larger.
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vcmodels.errors import OutputError, RefusedError, RunError
from vcmodels.geometry.symmetries import AXES
from vcmodels.pictures.layers import DrawnLayer, SliceSource, SliceValues, Subject
from vcmodels.pictures.overlay import compose, edges_of
from vcmodels.pictures.planes import View, level_for, read_planes, readable_levels
from vcmodels.pictures.slices import (
    LABEL_COLOUR,
    PREDICTION_COLOUR,
    Drawing,
    Panel,
    as_predicted,
    draw_panel,
    joint_panel,
    pair_of,
    shade_of,
    single_panel,
    window_of,
)
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume
from vcmodels.volumes.places import refuse_in_store, whole_file

MOST_PIXELS = {".png": 512, ".mp4": 1024, ".gif": 400}
"""Of the longer edge of a panel, where nothing is said."""
LEAST_PIXELS = {".png": 240, ".mp4": 480, ".gif": 240}
"""Smaller slices are enlarged by a whole factor."""
MOST_FRAMES = {".mp4": 2000, ".gif": 150}
"""Of a film, where nothing is said."""
GIF_BYTES = 512 << 20
"""Pixels of all pictures of a GIF, which are held in memory: more are refused."""
SAMPLES = 9
"""Slices from which the contrast of an image, and the scale of values, is taken: one for all."""
GAP = 4


def write_slices(path: Path, subject: Subject, view: View, at: Sequence[int]) -> None:
    """Draw some slices into a PNG, a row each: the image, and each layer over it.

    Args:
        path: its folder is made.
        subject: what is drawn.
        view: the pixels.
        at: positions along the axis of the view, ascending.

    Raises:
        OutputError: the path is in a store.
    """
    refuse_in_store("-o", path)
    letter, (subject, titles) = AXES[view.axis], _on_one_scale(subject, view, at)
    rows = [panels for _, panels in _panels(subject, view, at)]
    captions = [*map(_legend, subject.layers)]
    places = f"{letter} = {', '.join(map(str, at))}"
    down, right = view.in_plane
    if subject.image is None:
        captions[0] = f"{places}; {captions[0]}"
    else:
        titles.insert(0, places)
        captions.insert(0, f"{AXES[down]} down, {AXES[right]} to the right")
    sheet = compose(rows, titles, captions, edges_of(subject.image, view.axis))
    with whole_file(path) as file:
        sheet.save(file, "PNG")


def write_flight(
    path: Path, subject: Subject, view: View, at: Sequence[int], fps: int, reporter: Reporter
) -> None:
    """Draw slices along an axis as a film, one layer next to the other.

    Args:
        path: an MP4 or a GIF; its folder is made.
        subject: what is drawn.
        view: the pixels of a panel.
        at: positions along the axis, ascending.
        fps: pictures a second.
        reporter: gets a bar.

    Raises:
        OutputError: the path is in a store.
        RefusedError: the package that writes MP4 is not installed, or a GIF would be too large.
        RunError: the film cannot be written.
    """
    refuse_in_store("-o", path)
    if path.suffix.lower() == ".gif":
        _require_small(view, len(at) * len(subject.layers))
    subject, names = _on_one_scale(subject, view, at)
    if len(names) == 1 and subject.layers[0].name == names[0]:
        names = []  # a single layer is not named
    with (
        reporter.bar(f"draw {path.name}", len(at)) as advance,
        whole_file(path) as file,
        _film(path, file, fps) as show,
    ):
        for position, panels in _panels(subject, view, at):
            layers = panels if subject.image is None else panels[1:]
            show(_frame(layers, names, f"{AXES[view.axis]} = {position}"))
            advance(1, "")


def frame_count(view: View, most: int) -> int:
    """How many slices lie as far apart as pixels do: `most` of them or fewer."""
    return min(round(view.box.shape[view.axis] / max(view.step, 1.0)) or 1, most)


def positions(view: View, count: int) -> list[int]:
    """Where `count` slices lie, evenly spaced; all where there are no more."""
    start, length = view.box.origin[view.axis], view.box.shape[view.axis]
    count = min(count, length)
    return [start + (2 * i + 1) * length // (2 * count) for i in range(count)]


def _on_one_scale(subject: Subject, view: View, at: Sequence[int]) -> tuple[Subject, list[str]]:
    """The same with one scale for all slices, and the names of the layers.

    The scale of a layer without one of its own spans some of the slices; its name states it.
    """
    layers, names = [], []
    for layer in subject.layers:
        if layer.drawing.has_scale:
            layers.append(layer)
            names.append(layer.name)
            continue
        drawing = layer.drawing.on_scale_of(_sampled(layer, view, _samples(at), _step(at)))
        low, high = drawing.value_range or (0.0, 1.0)
        layers.append(replace(layer, drawing=drawing))
        names.append(f"{layer.name} {low:.4g} to {high:.4g}")
    return replace(subject, layers=tuple(layers)), names


def _sampled(layer: DrawnLayer, view: View, at: Sequence[int], step: float) -> np.ndarray:
    """(P, slices, H, W) of the prediction and of the label, NaN where that does not count."""
    found: list[np.ndarray] = []
    if layer.prediction is not None:
        found += [one.values for one in _stored_values(layer.prediction, view, at, step)]
    if layer.label is not None:
        found += [
            np.where(one.counts, as_predicted(layer.drawing, one.values), np.float32(np.nan))
            for one in _stored_values(layer.label, view, at, step)
        ]
    return np.stack(found, axis=1)


def _samples(at: Sequence[int]) -> list[int]:
    """A few positions among many, the first and the last with them."""
    return sorted({at[i] for i in np.linspace(0, len(at) - 1, SAMPLES).round().astype(int)})


def _step(at: Sequence[int]) -> int:
    """The least distance from one slice to the next."""
    return min((b - a for a, b in pairwise(at)), default=1)


def _panels(subject: Subject, view: View, at: Sequence[int]) -> Iterator[tuple[int, list[Panel]]]:
    """Each slice: its position, the panel of the image if there is one, and one of each layer."""
    step = _step(at)
    images = _images(subject.image, view, at, step)
    streams = [
        (layer.drawing, *(_values(one, view, at, step) for one in (layer.prediction, layer.label)))
        for layer in subject.layers
    ]
    for position in at:
        image = next(images)
        panels = [] if image is None else [Panel(image)]
        panels += [_layer_panel(d, image, next(found), next(truth)) for d, found, truth in streams]
        yield position, panels


def _images(
    image: Volume | None, view: View, at: Sequence[int], step: float
) -> Iterator[np.ndarray | None]:
    """The image of each slice as (H, W, 3) in [0, 1], of one contrast; None without an image."""
    if image is None:
        while True:
            yield None
    level = level_for(readable_levels(image), view, step)
    grey = [np.nan_to_num(plane[0]) for plane in read_planes(level, view, _samples(at))]
    window = window_of(np.stack(grey))
    for plane in read_planes(level, view, at):
        yield shade_of(np.nan_to_num(plane[0]), window)


def _values(
    source: SliceSource | None, view: View, at: Sequence[int], step: float
) -> Iterator[SliceValues | None]:
    """What a source holds on each slice; None without one."""
    if source is None:
        yield from [None] * len(at)
    else:
        yield from _stored_values(source, view, at, step)


def _stored_values(
    source: SliceSource, view: View, at: Sequence[int], step: float
) -> Iterator[SliceValues]:
    """What a source holds on each slice."""
    for plane in read_planes(level_for(source.levels, view, step), view, at):
        yield source.values(plane)


def _layer_panel(
    drawing: Drawing,
    image: np.ndarray | None,
    prediction: SliceValues | None,
    label: SliceValues | None,
) -> Panel:
    """A layer over the image, or over black."""
    if label is None:
        assert prediction is not None, "a layer has a prediction or a label"
        return single_panel(drawing, prediction.values, image, PREDICTION_COLOUR)
    if prediction is None:
        known = np.where(label.counts, label.values, np.zeros_like(label.values))
        return single_panel(drawing, as_predicted(drawing, known), image, LABEL_COLOUR)
    shape = (*label.counts.shape, 3)
    ground = np.zeros(shape, np.float32) if image is None else image
    pair = pair_of(drawing, label.values, prediction.values, label.counts)
    return joint_panel(pair, ground)


def _legend(layer: DrawnLayer) -> str:
    if layer.label is None or layer.prediction is None:
        return "label" if layer.prediction is None else "prediction"
    if layer.drawing.drawn_as == "outlines":
        return "filled: label; line: prediction"
    return "prediction; dark: unlabelled"


def _frame(panels: Sequence[Panel], names: Sequence[str], place: str) -> np.ndarray:
    """Panels side by side with their names and the position, (H, W, 3) uint8 of even edges."""
    drawn = [np.pad(draw_panel(p, 1), ((0, 0), (0, GAP), (0, 0))) for p in panels]
    pixels = np.round(255 * np.concatenate(drawn, axis=1)[:, :-GAP]).astype(np.uint8)
    # H.264 halves the colours along both axes: edges are even.
    even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
    picture = Image.fromarray(even)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    width = panels[0].background.shape[1] + GAP
    for number, text in enumerate([*names] or [""]):
        said = f"{text}  {place}".strip() if number == 0 else text
        draw.text((number * width + 6, 4), said, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


@contextmanager
def _film(path: Path, file: Path, fps: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a picture to a film, which is whole when the context ends.

    Args:
        path: its ending says which film; for messages.
        file: is written.
        fps: pictures a second.
    """
    if path.suffix.lower() == ".gif":
        frames: list[Image.Image] = []
        yield lambda pixels: frames.append(_reduced(pixels))
        duration = max(20, round(1000 / fps))  # browsers slow down what is faster
        frames[0].save(
            file, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0
        )
        return
    encoder = _Encoder(path, file, fps)
    try:
        yield encoder.add
        encoder.finish()
    finally:
        encoder.stop()


class _Encoder:
    """A process of ffmpeg that is fed with pictures of one size."""

    def __init__(self, path: Path, file: Path, fps: int) -> None:
        self._path, self._file, self._fps = path, file, fps
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- `stop` closes it

    def add(self, pixels: np.ndarray) -> None:
        """Write a picture (H, W, 3) uint8."""
        if self._process is None:
            self._process = self._start(*pixels.shape[:2])
        assert self._process.stdin
        try:
            self._process.stdin.write(np.ascontiguousarray(pixels).data)
        except BrokenPipeError:
            self.finish()

    def _start(self, height: int, width: int) -> "subprocess.Popen[bytes]":
        command = [
            _encoder().get_ffmpeg_exe(), "-y", "-loglevel", "error",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self._fps),
            "-i", "-", "-an", "-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p",
            "-movflags", "+faststart", "-f", "mp4", str(self._file),
        ]  # fmt: skip
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said
        )

    def finish(self) -> None:
        """Wait until the film is written.

        Raises:
            RunError: it cannot be, as on a full disk.
        """
        assert self._process, "a film has a picture"
        with suppress(BrokenPipeError):
            self._process.communicate()
        if self._process.returncode:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            found = f"cannot be written: {lines[-1] if lines else 'ffmpeg ended'}"
            raise RunError(str(self._path), found, "make room, or choose another folder")

    def stop(self) -> None:
        """End the process, whatever it has written."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._said.close()


def _reduced(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).quantize(128, dither=Image.Dither.NONE)


def _require_small(view: View, panels: int) -> None:
    """Refuse a GIF that memory might not hold."""
    if (size := panels * view.height * view.width) > GIF_BYTES:
        found = f"{size >> 20} MiB are too many for a GIF ({GIF_BYTES >> 20} MiB)"
        raise RefusedError("-o", found, "name an .mp4, or give a smaller --size or --count")


def require_writable_film(path: Path) -> None:
    """Refuse a film that cannot be written, before anything is read.

    Raises:
        RefusedError: the package that writes MP4 is not installed.
        OutputError: the path ends in nothing that is written.
    """
    refuse_in_store("-o", path)
    if path.suffix.lower() not in MOST_PIXELS:
        raise OutputError(str(path), "is no .png, .mp4 or .gif", "name it so")
    if path.suffix.lower() == ".mp4":
        _encoder()


def _encoder() -> Any:  # noqa: ANN401 - a package that need not be there
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        found = f"writing MP4 needs {error.name}, which is not installed"
        remedy = 'pip install "vcmodels[view]", or name a .gif'
        raise RefusedError("-o", found, remedy) from error
    return imageio_ffmpeg
