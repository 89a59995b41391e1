"""Suggests what to label next: predicts some boxes of unlabelled voxels, and chooses among them.

Only what lies in the candidates is predicted, so a volume of terabytes costs as much as a small one.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams, Task
from vcmodels.config.inference_params import EnsembleParams, Tta
from vcmodels.data.volumes import open_volumes, trained_on
from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.inference.ensemble import find_checkpoints, load_networks
from vcmodels.inference.many import input_keys
from vcmodels.inference.network import Uncertainty, uncertainty_name
from vcmodels.inference.predict import predict_request
from vcmodels.inference.request import Request, RunOptions, require_same_inputs, with_section
from vcmodels.pictures.overlay import slice_boxes, write_predicted
from vcmodels.pictures.slices import predicted_row
from vcmodels.reporting import Reporter, list_some
from vcmodels.results import group_place, open_inputs, open_prediction, volume_root
from vcmodels.runs.run import Run
from vcmodels.suggestions.candidates import Ground, candidates
from vcmodels.suggestions.choice import Candidate, Choice, RuleName, choose
from vcmodels.suggestions.doubt import (
    BoxDoubt,
    doubt_in_dispersion,
    doubt_in_probabilities,
    joined,
)
from vcmodels.targets import AnyTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.volumes import Grid, Place, create_array, open_volume
from vcmodels.volumes.places import obstacle, write_json

FOLDER = "suggestions"
"""In the run folder, while boxes are predicted."""
MASK = "boxes"
MASK_CHUNK = 64


@dataclass(frozen=True)
class SuggestOptions:
    """What is suggested."""

    count: int = 20
    """How many boxes."""
    size: Shape = (64, 64, 64)
    """Of a box, in voxels of the network's grid."""
    candidates: int = 200
    """How many are predicted, of all volumes together, to choose from."""
    rule: RuleName = "uncertain"
    noise: float = 1.0
    """How much chance there is in the choice, see `choose`."""
    seed: int = 0
    volumes: tuple[str, ...] = ()
    """Volumes without labels, to suggest boxes of; those of the task when empty."""
    targets: tuple[str, ...] = ()
    """Whose doubt counts; all that say probabilities when empty, or else all."""


def suggest(
    task: Task,
    options: SuggestOptions,
    output: Path,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> list[Choice] | None:
    """Write boxes to label next, and a picture of each; None after a stop: the same call continues.

    Args:
        task: trained, or with a `checkpoint_path` to predict with.
        options: what is suggested.
        output: `.json`, a list, or `.zarr`, for each volume an array with the number of its box in each
            voxel. Pictures go into a folder of that name without its ending.
        reporter: told what is done.
        should_stop: asked several times a second.

    Raises:
        RefusedError: the output exists or is of another form, nothing is trained, or no box is free.
        RunError: a volume cannot be read or predicted.
    """
    _require_new(output)
    networks = _networks(task)
    grounds = _grounds(task, options, networks, reporter)
    targets = _chosen_targets(networks[0].targets, options)
    drawn = _candidates(grounds, options)
    reporter.say(_summary(grounds, drawn, options))
    folder = task.run_dir / FOLDER / _digest(networks, drawn, targets, task.inference_params)
    found: list[Candidate] = []
    for ground, boxes in zip(grounds, drawn, strict=True):
        if not boxes:
            continue
        place = _Prediction(task, networks, targets, ground, boxes, folder)
        if not place.predict(RunOptions(reporter=reporter, should_stop=should_stop)):
            return None
        found += [Candidate(ground.name, box, place.doubt(box)) for box in boxes]
    rng = np.random.default_rng(options.seed)
    gap = triple(n // 2 for n in options.size)
    chosen = choose(found, options.count, options.rule, options.noise, gap, rng)
    by_name = {ground.name: ground for ground in grounds}
    _draw(chosen, by_name, targets, folder, output.with_suffix(""))
    _write(chosen, by_name, networks, options, output)
    shutil.rmtree(folder)
    with suppress(OSError):  # another call may have its own there
        folder.parent.rmdir()
    return chosen


def _require_new(output: Path) -> None:
    if output.suffix not in (".json", ".zarr"):
        remedy = "give boxes.json or boxes.zarr; view TASK --boxes boxes.json shows them"
        raise RefusedError("--output", f"{output} is neither .json nor .zarr", remedy)
    for path in (output, output.with_suffix("")):
        if path.exists():
            raise RefusedError("--output", f"{path} exists already", "choose another name")
    if found := obstacle(output.absolute().parent):
        raise RefusedError("--output", found, "choose a writable folder")


def _networks(task: Task) -> tuple[TrainedNetwork, ...]:
    """Those of `checkpoint_path`, else the best of the run.

    Raises:
        CheckpointError, VolumeError: there is none, or it cannot be used.
    """
    given = task.inference_params.checkpoint_path
    if not given and not task.run_dir.is_dir():
        Run(task.run_dir, task.tr_params.model_name).require_best()
    sources = [given] if isinstance(given, str) else given or [str(task.run_dir)]
    return load_networks(path for source in sources for path in find_checkpoints(source))


def _grounds(
    task: Task,
    options: SuggestOptions,
    networks: tuple[TrainedNetwork, ...],
    reporter: Reporter,
) -> list[Ground]:
    """The volumes in which boxes may be suggested."""
    prepare = require_same_inputs(task.dataset_config, networks)
    if not options.volumes:
        volumes = [v for v in trained_on(open_volumes(task, reporter)) if v.split != "val"]
        return [Ground(v.name, v.inputs, v.region, v) for v in volumes]
    if prepare is not None or task.dataset_config.region is not None:
        found = "goes with no dataset_config.prepare or region"
        raise RefusedError("--volume", found, "add the volume to the task, with an empty label")
    grounds: list[Ground] = []
    for path in options.volumes:
        inputs = open_inputs([path], task.inference_params, reporter)
        name = "/".join(PurePosixPath(path).parts[-2:]).lstrip("/")  # as volumes of a task
        grounds.append(Ground(name, inputs, inputs[0].box))
    names = [ground.name for ground in grounds]
    if len(set(names)) < len(names):
        named = list_some([name for name in names if names.count(name) > 1], 2)
        raise RefusedError("--volume", f"two are called {named}", "suggest for one at a time")
    return grounds


def _chosen_targets(
    trained: Mapping[str, AnyTarget], options: SuggestOptions
) -> dict[str, AnyTarget]:
    """Those whose doubt counts, classes with their probabilities.

    Raises:
        RefusedError: a name is that of none.
    """
    for name in options.targets:
        if name not in trained:
            remedy = f"choose from {', '.join(trained)}"
            raise RefusedError("--target", f'"{name}" is not in the checkpoint', remedy)
    named = {name: trained[name] for name in options.targets} or dict(trained)
    sure = {name: one for name, one in named.items() if says_probability(one)}
    wanted = named if options.targets else sure or named
    return {
        name: one.changed(output="probabilities") if isinstance(one, MulticlassTarget) else one
        for name, one in wanted.items()
    }


def says_probability(target: AnyTarget) -> bool:
    """Whether a prediction of a target says how sure it is, voxel by voxel."""
    return isinstance(target, MulticlassTarget) or target.least_confidence is not None


def _candidates(grounds: Sequence[Ground], options: SuggestOptions) -> list[list[Box]]:
    """Of each volume its share, by how many voxels it has.

    Raises:
        RefusedError: no box is free.
    """
    rng, gap = np.random.default_rng(options.seed), triple(n // 2 for n in options.size)
    voxels = np.array([ground.region.voxels for ground in grounds], float)
    most = np.maximum(1, np.ceil(options.candidates * voxels / voxels.sum())).astype(int)
    found = [
        candidates(ground, options.size, int(n), gap, rng) or
        candidates(ground, options.size, int(n), (0, 0, 0), rng)
        for ground, n in zip(grounds, most, strict=True)
    ]  # fmt: skip
    if not any(found):
        named = list_some([ground.name for ground in grounds], 3)
        size = "x".join(map(str, options.size))
        remedy = "name volumes without labels by --volume, or take a smaller --size"
        raise RefusedError("suggest", f"no box of {size} without a label in {named}", remedy)
    return found


def _summary(
    grounds: Sequence[Ground], drawn: Sequence[Sequence[Box]], options: SuggestOptions
) -> str:
    counts = [f"{len(boxes)} of {g.name}" for g, boxes in zip(grounds, drawn, strict=True)]
    size = "x".join(map(str, options.size))
    return f"candidates of {size} voxels: {list_some(counts, 4)}"


def _digest(
    networks: Sequence[TrainedNetwork],
    drawn: Sequence[Sequence[Box]],
    targets: Mapping[str, AnyTarget],
    params: InferenceParams,
) -> str:
    """Of all that the predictions follow from: a call that was stopped finds them again."""
    boxes = [[box.pairs for box in one] for one in drawn]
    facts = [[n.sha256 for n in networks], boxes, sorted(targets), params.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Prediction:
    """The candidates of one volume, predicted."""

    task: Task
    networks: tuple[TrainedNetwork, ...]
    targets: Mapping[str, AnyTarget]
    ground: Ground
    boxes: Sequence[Box]
    folder: Path

    @property
    def root(self) -> Place:
        return volume_root(group_place(str(self.folder)), self.ground.name)

    def predict(self, options: RunOptions) -> bool:
        """Predict what lies in the boxes; false after a stop."""
        params = self._params()
        record = with_section(self.task.to_json(), params)
        request = Request(
            self.networks, self.ground.inputs, self.root, params, self.targets, record
        )
        return predict_request(request, options).is_through

    def doubt(self, box: Box) -> BoxDoubt:
        """How unsure the networks are of a box."""
        return joined([self._doubt_of(name, target, box) for name, target in self.targets.items()])

    def _doubt_of(self, name: str, target: AnyTarget, box: Box) -> BoxDoubt:
        if says_probability(target):
            values = target.decode(open_prediction(self.root, name, target).read(box))
            return doubt_in_probabilities(name, target, values)
        stored = open_volume(str(self.root / uncertainty_name(name) / "0"))
        uncertainty = Uncertainty(target)
        return doubt_in_dispersion(name, uncertainty.decode(stored.read(box)), uncertainty.largest)

    def _params(self) -> InferenceParams:
        params, volume = self.task.inference_params, self.ground.volume
        wants_views = not all(says_probability(target) for target in self.targets.values())
        views = params.tta
        if wants_views and views is None and len(self.networks) == 1:
            views = Tta(flips=("z",) if self.ground.inputs[0].extent[0] > 1 else ("y",))
        return params.changed(
            **(input_keys(self.task, volume) if volume is not None else {}),
            volumes=None,
            bbox=tuple(zip(self.ground.region.origin, self.ground.region.end, strict=True)),
            skip=params.skip.changed(mask=self._mask()),
            output_dir=None,
            output_targets=list(self.targets),
            output_type="uint8",
            output_format="zarr",
            pyramid=0,
            checkpoint_path=None,
            ensemble=EnsembleParams(),
            uncertainty=wants_views,
            tta=views,
            compile=False,
        )

    def _mask(self) -> str:
        """A volume that is 1 in the boxes, written if it is not there yet."""
        root = self.folder / f"{volume_root(group_place('masks'), self.ground.name)}"
        if (root / "complete").exists():
            return str(root / MASK)
        shutil.rmtree(root, ignore_errors=True)  # of a call that was killed in between
        extent = self.ground.inputs[0].extent
        chunks = triple(min(MASK_CHUNK, n) for n in extent)
        array = create_array(str(root), MASK, shape=extent, chunks=chunks, dtype=np.uint8)
        for box in self.boxes:
            array.write(box, np.ones((1, *box.shape), np.uint8))
        (root / "complete").touch()
        return str(root / MASK)


def _draw(
    chosen: Sequence[Choice],
    grounds: Mapping[str, Ground],
    targets: Mapping[str, AnyTarget],
    folder: Path,
    pictures: Path,
) -> None:
    """A picture of each box: three slices, and what is predicted there."""
    shown = {n: t for n, t in targets.items() if says_probability(t)}
    for number, one in enumerate(chosen, 1):
        ground, box = grounds[one.candidate.volume], one.candidate.box
        root = volume_root(group_place(str(folder)), ground.name)
        rows: dict[int, np.ndarray] = {}
        for part in slice_boxes(box):
            image = np.nan_to_num(ground.inputs[0].read(part)[0, 0].astype(np.float32))
            predictions = [
                (t, t.decode(open_prediction(root, name, t).read(part))[:, 0])
                for name, t in shown.items()
            ]
            rows[part.origin[0]] = predicted_row(image, predictions)
        titles = [f"{number}: {ground.name}, {one.reason}", *shown]
        write_predicted(pictures / f"{number:03}.png", rows, titles)


def _write(
    chosen: Sequence[Choice],
    grounds: Mapping[str, Ground],
    networks: Sequence[TrainedNetwork],
    options: SuggestOptions,
    output: Path,
) -> None:
    """The list of boxes, in voxels as they are stored, or arrays of their numbers."""
    if output.suffix == ".zarr":
        for name in dict.fromkeys(one.candidate.volume for one in chosen):
            _write_numbers(chosen, grounds[name], str(output))
        return
    rows = [
        {
            "number": number,
            "volume": one.candidate.volume,
            "input": [volume.shown for volume in grounds[one.candidate.volume].inputs],
            "bbox": _as_stored(one, grounds[one.candidate.volume]).pairs,
            "reason": one.reason,
            "doubt": round(one.score, 6),
            "foreground": round(one.candidate.doubt.foreground, 4),
            "picture": f"{output.stem}/{number:03}.png",
        }
        for number, one in enumerate(chosen, 1)
    ]
    how = {"rule": options.rule, "noise": options.noise, "seed": options.seed}
    sources = [network.sha256 for network in networks]
    write_json(output, {"boxes": rows, **how, "checkpoints": sources})


def _write_numbers(chosen: Sequence[Choice], ground: Ground, root: str) -> None:
    """An array, on the stored grid of a volume, of the number of the box in each voxel, 0 elsewhere."""
    first = (ground.volume.as_stored if ground.volume is not None else ground).inputs[0]
    array = create_array(
        root, re.sub(r"[^A-Za-z0-9_.-]+", "_", ground.name), shape=first.extent,
        chunks=triple(min(MASK_CHUNK, n) for n in first.extent), dtype=np.uint16,
        grid=Grid(first.spacing, first.offset, first.unit),
    )  # fmt: skip
    for number, one in enumerate(chosen, 1):
        if one.candidate.volume == ground.name:
            box = _as_stored(one, ground)
            array.write(box, np.full((1, *box.shape), number, np.uint16))


def _as_stored(one: Choice, ground: Ground) -> Box:
    box = one.candidate.box
    return box if ground.volume is None else ground.volume.box_as_stored(box)
