"""Pictures of a prediction while it is made: three slices, each as soon as its voxels are there.

They are read from the output, by the process that was started: how many others predict, and on which
devices, makes no difference, and neither does what becomes of a picture.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from vcmodels.boards import Board, CurveSink, EventWriter, WandbWriter, require_wandb
from vcmodels.config import InferenceParams
from vcmodels.errors import RefusedError, TaskError, VcmodelsError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.inference.job import Job
from vcmodels.inference.output import level_key
from vcmodels.inference.request import Request, RunOptions
from vcmodels.pictures.overlay import slice_boxes, write_predicted
from vcmodels.pictures.slices import predicted_row
from vcmodels.reporting import Reporter
from vcmodels.results import file_name
from vcmodels.targets.base import Target
from vcmodels.volumes import LocalPlace, expand_location, is_remote, open_volume
from vcmodels.volumes.places import refuse_in_store

SECONDS = 5.0
"""Between two looks at what is finished; longer where a look takes long."""
SHARE = 0.05
"""Of the time, that looking may take."""
NAME = "preview.png"


@dataclass
class Preview:
    """What is drawn of one prediction, and where that goes."""

    job: Job
    board: Board
    path: Path | None
    """The PNG."""
    reporter: Reporter
    drawn: dict[Box, np.ndarray] = field(default_factory=dict)
    has_failed: bool = False

    def look(self, *, is_whole: bool = False) -> None:
        """Draw the slices whose voxels have come since the last look.

        Args:
            is_whole: nothing is missing any more.
        """
        new = [box for box in self.missing() if is_whole or self._is_there(box)]
        if not new:
            return
        for box in new:
            self.drawn[box] = self._draw(box)
        rows = {box.origin[0]: self.drawn[box] for box in sorted(self.drawn)}
        pictures = {f"prediction/z{z}": row for z, row in rows.items()}
        self.board.pictures(pictures, len(self.drawn))
        self.board.flush()
        if self.path is not None:
            write_predicted(self.path, rows, ["image", *self._targets])

    def missing(self) -> list[Box]:
        """The slices that are not drawn yet."""
        return [box for box in slice_boxes(self.job.pipeline.whole.region) if box not in self.drawn]

    def _is_there(self, box: Box) -> bool:
        """Whether nothing is left to predict that a slice shows."""
        left = self.job.pipeline.whole.units(self.job.journal().done())
        return not any(unit.box.intersect(box).voxels for unit in left)

    @property
    def _targets(self) -> Mapping[str, Target]:
        specs = self.job.pipeline.specs.items()
        return {name: spec for name, spec in specs if isinstance(spec, Target)}

    def _draw(self, box: Box) -> np.ndarray:
        """The image and each prediction next to it: (H, W, 3) float32 in [0, 1]."""
        image = self.job.pipeline.inputs[0].read(box)[0, 0]
        found: dict[str, tuple[Target, np.ndarray]] = {}
        for name, target in self._targets.items():
            place = str(self.job.root / level_key(name, 0))
            array = open_volume(place, key=place, channels="any")
            found[name] = target, target.decode(array.read(box))[:, 0]
        return predicted_row(np.nan_to_num(image.astype(np.float32)), list(found.values()))


@contextmanager
def previewing(job: Job, request: Request, options: RunOptions) -> Iterator[Callable[[], None]]:
    """Draw while the block predicts; gives what is called once nothing is missing.

    A failure of a picture is reported, and ends them; it never ends the prediction.

    Args:
        job: what is predicted; its output is there when the block begins.
        request: whose `inference_params` name the boards.
        options: name the PNG, and who is told what fails.
    """
    path, reporter = options.preview, options.reporter
    sinks = _sinks(request, job)
    if path is None and not sinks:
        yield lambda: None
        return
    stop = threading.Event()
    with Board(sinks, reporter.say) as board:
        preview = Preview(job, board, path, reporter)
        thread = threading.Thread(target=_watch, args=(preview, stop), name="preview", daemon=True)
        thread.start()

        def end() -> None:
            stop.set()
            thread.join()
            if not preview.has_failed:
                _guarded(preview, partial(preview.look, is_whole=True))

        try:
            yield end
        finally:
            stop.set()
            thread.join()
            if preview.path is not None and preview.drawn:
                reporter.say(f"slices: {preview.path}")


def _watch(preview: Preview, stop: threading.Event) -> None:
    """Look again and again until all is drawn, or the block ends."""
    pause = SECONDS
    while not stop.wait(pause):
        begun = time.monotonic()
        if not _guarded(preview, preview.look) or not preview.missing():
            return
        pause = max(SECONDS, (time.monotonic() - begun) / SHARE)


def _guarded(preview: Preview, look: Callable[[], None]) -> bool:
    """Look, and say what failed; whether it went well."""
    try:
        look()
    except (OSError, VcmodelsError) as error:
        found = str(error)
    except Exception as error:  # noqa: BLE001 -- no picture is worth a prediction
        found = f"{type(error).__name__}: {error}"  # a fault of ours, so its name helps
    else:
        return True
    preview.has_failed = True
    preview.reporter.say(f"note: no more pictures: {' '.join(found.split())}")
    return False


def preview_path(text: Path, name: str | None = None) -> Path:
    """The PNG that `--preview` names: itself, or one in a folder.

    Args:
        text: a PNG, or a folder that may be missing.
        name: of the volume, where there are many: each has a PNG in the folder, with `/` as `%2F`.

    Raises:
        RefusedError: it is another file, one PNG for many volumes, or lies in a Zarr store.
    """
    is_folder = text.is_dir() or not text.suffix
    if name is not None and not is_folder:
        raise RefusedError("--preview", f"{text} is one picture of many volumes", "name a folder")
    path = text / (NAME if name is None else f"{file_name(name)}.png") if is_folder else text
    if path.suffix.lower() != ".png":
        raise RefusedError("--preview", f'found "{text}"', "name a PNG or a folder")
    refuse_in_store("--preview", path)
    return path


def require_places(request: Request, options: RunOptions) -> None:
    """Refuse pictures that have no place, before anything is written.

    Raises:
        RefusedError: wandb is not installed, a folder is none, or the PNG would lie in the result.
    """
    require_wandb(request.params.wandb, "inference_params.wandb")
    if request.params.tensorboard_log_dir is not None:
        board_folder(request.params)
    root, path = request.output, options.preview
    if path is None or not isinstance(root, LocalPlace):
        return
    if root.path.resolve() in path.resolve().parents:
        raise RefusedError("--preview", f"{path} lies in the result", "choose another place")


def without_boards(request: Request) -> Request:
    """The request for one of several processes, of which another draws."""
    params = request.params.changed(tensorboard_log_dir=None, wandb=None)
    return replace(request, params=params)


def _sinks(request: Request, job: Job) -> list[CurveSink]:
    """The boards that a request names."""
    params, name = request.params, job.root.name.removesuffix(".zarr")
    sinks: list[CurveSink] = []
    if params.tensorboard_log_dir is not None:
        facts = {"document": request.record, "parameters": {}, "metrics": []}
        model = request.record["tr_params"]["model_name"]
        folder = board_folder(params) / model
        own = folder if name == model else folder / name
        events = partial(EventWriter, own, 0, **facts)
        sinks.append(CurveSink("TensorBoard", events))
    if params.wandb is not None:
        beside = job.root.path.parent if isinstance(job.root, LocalPlace) else Path.cwd()
        folder = beside / f"{name}.wandb"
        begin = partial(_begin_wandb, params, folder, name, request)
        sinks.append(CurveSink("Weights & Biases", begin, (Exception,)))
    return sinks


def _begin_wandb(params: InferenceParams, folder: Path, name: str, request: Request) -> WandbWriter:
    assert params.wandb is not None
    folder.mkdir(parents=True, exist_ok=True)
    return WandbWriter(params.wandb, folder, name, request.record)


def board_folder(params: InferenceParams) -> Path:
    """The folder that `tensorboard_log_dir` names, absolute.

    Raises:
        TaskError: it is a URL, or holds a variable that is not set.
    """
    key, text = "inference_params.tensorboard_log_dir", str(params.tensorboard_log_dir)
    if is_remote(text):
        raise TaskError(key, f"{text} is a URL", "give a local folder")
    try:
        return Path(expand_location(text))
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error
