"""A student of trained networks: taught while it trains, or round by round with pseudo-labels.

Taught: the ordinary training, with the teachers in the task (`tr_params.distill`).

Rounds (self-training; Xie et al. 2020, "Self-training with Noisy Student", arXiv:1911.04252): what the
teachers predict of the volumes without labels, and are sure of, is learnt as pseudo-labels; what has
learnt it teaches the next round. Each round is a folder with a task file that `train` takes by itself,
and says where its labels are from. What is whole is not made again, so that the same call continues
after a kill.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise.engines import ShouldStop
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task, load_task, parse_task
from vcmodels.config.load import anchor
from vcmodels.data.predictions import PredictedLabel
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import OutputError, RefusedError, RunError, TaskError
from vcmodels.geometry.boxes import cut_block
from vcmodels.inference import RunOptions, predict_request, request_of
from vcmodels.inference.ensemble import check_networks, find_checkpoints, load_networks
from vcmodels.inference.many import input_keys
from vcmodels.reporting import Reporter, Silent, StopSignals
from vcmodels.results import group_place, volume_root
from vcmodels.runs.run import Run
from vcmodels.runs.survey import read_status
from vcmodels.targets import AnyTarget, MulticlassTarget
from vcmodels.training import train
from vcmodels.volumes.places import read_json, write_json
from vcmodels.workflows.cascade import find_regions
from vcmodels.workflows.whole_volumes import WholeVolumes

PLAN, TASK, ORIGIN, RUN, PREDICTED = "distill.json", "task.json", "pseudo.json", "run", "predicted"
"""In the folder of a distillation; the others in that of each round."""
PIECE_VOXELS = 1 << 24


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    task: str
    """The task file."""
    teachers: tuple[str, ...]
    """Checkpoints, or run folders."""
    folder: Path
    rounds: int = 0
    """Of pseudo-labels; 0 is taught while it trains."""
    confidence: float | None = None
    weight: float = 1.0
    unlabelled: tuple[str, ...] = ()
    """Inputs without labels, besides the volumes of the task that have none."""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pseudo:
    """A pseudo-label and where it is from; JSON values."""

    volume: str
    target: str
    path: str
    checkpoints: list[dict[str, str]]
    """Path and sha256 of each network that made it."""
    confidence: float | None
    """Voxels of which they were less sure do not count."""
    kept: float
    """The share of voxels that does."""


@dataclass(frozen=True)
class RoundReport:
    """One round: its best figures and what it was taught."""

    number: int
    folder: Path
    figures: Mapping[str, float | None]
    """At its best epoch, by target and metric."""
    labels: Sequence[Pseudo] = field(default_factory=list[Pseudo])


def distill(wish: Wish, reporter: Reporter) -> int:
    """Train a student, or continue doing so.

    Args:
        wish: what is asked for; the same call continues.
        reporter: told lines and progress.

    Returns:
        0, or 128 + signal after one.

    Raises:
        RefusedError: the task, its volumes or the teachers do not allow it, or the folder holds
            another distillation.
        RunError: a failure on the way; the same call continues.
    """
    teachers = [path for one in wish.teachers for path in find_checkpoints(one)]
    task = _taught(wish, teachers, reporter)
    networks = load_networks(teachers)
    _refuse(wish, task)
    _claim(wish, task, networks)
    if wish.rounds == 0:
        document = _with(task, ckpt_out_base=str(wish.folder / RUN))
        _write(wish.folder / TASK, document)
        return _train(document, wish.folder / TASK, reporter)
    for number in range(1, wish.rounds + 1):
        code = _round(wish, task, number, teachers, reporter)
        if code:
            return code
        teachers = [run_of(wish.folder, task, number).require_best()]
    return 0


def run_of(folder: Path, task: Task, number: int) -> Run:
    """The run of a round, counted from 1."""
    return Run(folder / f"round_{number}" / RUN, task.tr_params.model_name)


def rounds(folder: Path) -> Iterator[RoundReport]:
    """How the rounds of a distillation ended, those that have begun to train."""
    for number in range(1, 1 + len(list(folder.glob("round_*")))):
        place = folder / f"round_{number}"
        if not Run(place / RUN).is_begun():
            return
        found = read_status(place / RUN).figures
        figures = {f"{name} {one.metric}": one.best for name, one in found.items()}
        labels = [Pseudo(**one) for one in read_json(place / ORIGIN)]
        yield RoundReport(number, place, figures, labels)


def _taught(wish: Wish, teachers: Sequence[Path], reporter: Reporter) -> Task:
    """The task with its teachers and the volumes without labels; all paths are absolute."""
    given = {"teachers": [str(path.absolute()) for path in teachers], "weight": wish.weight}
    given |= {} if wish.confidence is None else {"confidence": wish.confidence}
    lines = [*wish.overrides, f"tr_params.distill={json.dumps(given)}"]
    loaded = load_task(wish.task, lines)
    for note in loaded.notes:
        reporter.say(f"note: {note}")
    document = loaded.task.to_json()
    document["overrides"] = list(wish.overrides)
    document["dataset_config"]["volume_paths"] += [{"input": one} for one in wish.unlabelled]
    anchor(document, Path.cwd())
    return parse_task(document, wish.task)[0]


def _refuse(wish: Wish, task: Task) -> None:
    """Refuse what no round could do.

    Raises:
        RefusedError: naming it.
    """
    if task.tr_params.folds is not None:
        raise TaskError("tr_params.folds", "is set, and a student is one run", "leave it out")
    if wish.rounds == 0:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = "rounds predict and train in one process"
        raise RefusedError("--rounds", found, "leave torchrun out, or give --rounds 0")
    if not _stored(task):
        found = "each is derived from a label that no network predicts"
        raise TaskError("dataset_config.targets", found, "give --rounds 0")
    if all(entry.labels for entry in task.dataset_config.volume_paths):
        found = "there is no volume without labels, of which pseudo-labels could be made"
        raise TaskError("dataset_config.volume_paths", found, "give one by --unlabelled")


def _stored(task: Task) -> dict[str, AnyTarget]:
    """The targets whose predictions can be labels, as they are to be written."""
    return {
        name: target.changed(output="probabilities")
        if isinstance(target, MulticlassTarget)
        else target
        for name, target in task.dataset_config.targets.items()
        if target.derive is None
    }


def _claim(wish: Wish, task: Task, networks: Sequence[TrainedNetwork]) -> None:
    """Note in the folder what it is for; more rounds may be asked for later.

    Raises:
        OutputError: it is for something else, or cannot be written.
    """
    document = task.to_json()
    for key in ("inference_params", "evaluation", "postprocess"):
        document.pop(key)
    plan = {
        "teachers": [one.sha256 for one in networks],
        "is_rounds": wish.rounds > 0,
        "task": document,
    }
    place, elsewhere = wish.folder / PLAN, "name another folder, or repeat its command"
    try:
        before = read_json(place) if place.exists() else None
        if before is None and wish.folder.is_dir() and any(wish.folder.iterdir()):
            raise OutputError(str(wish.folder), "holds other files", "name another folder")
        if before is not None and before != json.loads(json.dumps(plan)):
            found = "holds a distillation of another task, or from other teachers"
            raise OutputError(str(wish.folder), found, elsewhere)
        wish.folder.mkdir(parents=True, exist_ok=True)
        write_json(place, plan)
    except (OSError, ValueError) as error:
        found = f"cannot be used ({error})"
        raise OutputError(str(wish.folder), found, "name another folder") from error


def _with(task: Task, **settings: object) -> dict[str, Any]:
    """The task as JSON with other `tr_params`."""
    document = task.to_json()
    document["tr_params"] |= settings
    return document


def _write(place: Path, document: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, document)


def _train(document: Mapping[str, Any], place: Path, reporter: Reporter) -> int:
    task, _ = parse_task(document, str(place))
    find_regions(task, reporter)
    return train(task, reporter=reporter, whole_volumes=WholeVolumes)


def _round(
    wish: Wish, task: Task, number: int, teachers: Sequence[Path], reporter: Reporter
) -> int:
    """One round, or what is left of it; the exit code."""
    folder, run = wish.folder / f"round_{number}", run_of(wish.folder, task, number)
    if run.is_begun() and read_status(run.folder).state == "complete":
        reporter.say(f"round {number}: complete")
        return 0
    reporter.say(f"round {number} of {wish.rounds}: {folder}")
    if not (folder / ORIGIN).exists():
        with StopSignals() as stop:
            labels = predicted(task, teachers, folder, wish, reporter, stop.should_stop)
            if labels is None:
                reporter.say("stopped; the same command continues")
                return stop.exit_code
        for one in labels:
            share = f"{100 * one.kept:.1f} % of the voxels are kept"
            reporter.say(f"round {number}: {one.volume}, {one.target}: {share}")
        if not any(one.kept for one in labels):
            found = f"the teachers are {wish.confidence or 0:g} sure of no voxel"
            raise RunError(str(folder), found, "lower --confidence, in another folder")
        _write(folder / ORIGIN, [asdict(one) for one in labels])
    document = round_task(task, folder, wish, teachers)
    _write(folder / TASK, document)
    return _train(document, folder / TASK, reporter)


def predicted(
    task: Task,
    teachers: Sequence[Path],
    folder: Path,
    wish: Wish,
    reporter: Reporter,
    should_stop: ShouldStop,
) -> list[Pseudo] | None:
    """What teachers say of the volumes without labels, written into a folder; None after a stop.

    Raises:
        RefusedError, RunError: as for `predict_request`.
    """
    networks, targets = load_networks(teachers), _stored(task)
    check_networks(networks, targets, task.inference_params.patch_size)
    made_by = [{"path": str(one.path), "sha256": one.sha256} for one in networks]
    options = RunOptions(reporter=reporter, should_stop=should_stop)
    found: list[Pseudo] = []
    for volume in unlabelled(task):
        root = volume_root(group_place(str(folder / PREDICTED)), volume.name)
        one = _inferring(task, volume, targets)
        report = predict_request(
            request_of(one, networks, root, reporter, name=volume.name), options
        )
        if not report.is_through:
            return None
        for name, target in targets.items():
            path = str(report.outputs[name])
            least = _least(target, wish.confidence)
            share = partial(Pseudo, volume.name, name, path, made_by, least)
            found.append(share(kept_share(task, volume, name, path, least)))
    return found


def unlabelled(task: Task) -> list[TaskVolume]:
    """The volumes of a task that have no label."""
    return [volume for volume in open_volumes(task, Silent()) if not volume.labels]


def _least(target: AnyTarget, confidence: float | None) -> float | None:
    """The confidence that is asked of a label; None for kinds whose predictions say nothing of it."""
    floor = target.least_confidence
    return None if floor is None or confidence is None or confidence <= floor else confidence


def _inferring(task: Task, volume: TaskVolume, targets: Mapping[str, AnyTarget]) -> Task:
    """The task that predicts a volume, and no more of it than its `bbox`."""
    stored = volume.as_stored
    box = stored.region
    keys: dict[str, Any] = {
        "volumes": None,
        **input_keys(task, volume),
        "bbox": tuple(zip(box.origin, box.end, strict=True)),
        "checkpoint_path": None,
        "output_dir": None,
        "output_format": "zarr",
        "output_type": "float16",
        "output_targets": list(targets),
        "pyramid": 0,
        "uncertainty": False,
        "tensorboard_log_dir": None,
        "wandb": None,
    }
    every = {**task.dataset_config.targets, **targets}
    one = task.with_values(inference_params=keys, dataset_config={"targets": every})
    return one.changed(postprocess=())


def kept_share(task: Task, volume: TaskVolume, name: str, path: str, least: float | None) -> float:
    """The share of voxels of a pseudo-label that count, by reading it as a training does."""
    document = task.to_json()
    entry = _entry(task, volume)
    entry[name], entry["pseudo"] = path, {name: _asked(1.0, least)}
    document["dataset_config"]["volume_paths"] = [entry]
    document["dataset_config"] |= {"prepare": None, "region": None}
    opened = open_volumes(parse_task(document, "a pseudo-label", is_record=True)[0], Silent())[0]
    label, target = opened.labels[name], task.dataset_config.targets[name]
    assert isinstance(label, PredictedLabel)
    counted = 0.0
    for box in cut_block(opened.region, label.storage_unit, PIECE_VOXELS):
        _, valid = target.read_label(label.read(box))
        counted += float(np.mean(valid)) * box.voxels
    return counted / opened.region.voxels


def _asked(weight: float, least: float | None) -> dict[str, float]:
    return {"weight": weight, **({} if least is None else {"min_confidence": least})}


def _entry(task: Task, volume: TaskVolume) -> dict[str, Any]:
    """The entry of one volume, which may be one of many that its pattern stands for."""
    number = int(volume.key.rpartition(".")[2])
    entry = dict(task.to_json()["dataset_config"]["volume_paths"][number])
    inputs = [image.location for image in volume.as_stored.inputs]
    given = task.dataset_config.volume_paths[number].inputs
    if any("*" in path for path in given):
        entry |= {"input": inputs[0] if len(inputs) == 1 else inputs, "name": None}
    return entry | {"split": "train"}


def round_task(task: Task, folder: Path, wish: Wish, teachers: Sequence[Path]) -> dict[str, Any]:
    """The task of a round as JSON: pseudo-labels in place of teachers, weights of the one before.

    Args:
        task: with the volumes without labels.
        folder: of the round; its pseudo-labels are there.
        wish: what is asked for.
        teachers: whose labels they are; the student begins with the weights of a single one of its
            own shape.
    """
    labels = [Pseudo(**one) for one in read_json(folder / ORIGIN)]
    document = _with(task, distill=None, ckpt_out_base=str(folder / RUN))
    document["tr_params"] |= _beginning(task, teachers)
    entries = document["dataset_config"]["volume_paths"]
    known = [entry for given, entry in _pairs(task, entries) if given.labels]
    for volume in unlabelled(task):
        mine = [one for one in labels if one.volume == volume.name and one.kept]
        entry = _entry(task, volume)
        entry |= {one.target: one.path for one in mine}
        entry["pseudo"] = {one.target: _asked(wish.weight, one.confidence) for one in mine}
        known += [entry] if mine else []
    document["dataset_config"]["volume_paths"] = known
    return document


def _pairs(task: Task, entries: Sequence[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield from zip(task.dataset_config.volume_paths, entries, strict=True)


def _beginning(task: Task, teachers: Sequence[Path]) -> dict[str, Any]:
    """The `tr_params` by which a student begins with the weights of its teacher, if it can."""
    networks = load_networks(teachers)
    if len(networks) != 1 or networks[0].task.model != task.model:
        return {}
    return {"checkpoint_path": str(teachers[0].absolute()), "load_weights_only": True}
