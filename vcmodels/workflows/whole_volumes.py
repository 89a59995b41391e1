"""Whole volumes predicted with one network and scored: in the middle of a training, or next to it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vcmodels.blockwise.engines import ShouldStop
from vcmodels.checkpoint import Checkpoint, TrainedNetwork, build_network
from vcmodels.config import InferenceParams, Task
from vcmodels.config.inference_params import EnsembleParams
from vcmodels.config.task import OF_VOLUMES, volume_metrics
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RefusedError, RunError
from vcmodels.evaluation.evaluate import ScoredRegion
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredVolume, score_volumes
from vcmodels.evaluation.task import ScoredPart, TaskScores, open_predictions, scored_part
from vcmodels.evaluation.written import RECORD
from vcmodels.geometry.boxes import Box
from vcmodels.inference.many import input_keys
from vcmodels.inference.predict import predict_request
from vcmodels.inference.request import (
    Request,
    RunOptions,
    check_inputs,
    choose_targets,
    require_storable,
    with_section,
)
from vcmodels.metrics.base import Metrics
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import group_place, volume_root
from vcmodels.targets import AnyTarget
from vcmodels.training.validation import HeldOutVolumes

Keep = Callable[[Report, Sequence[ScoredVolume]], None]


@dataclass(frozen=True)
class PredictedPart:
    """A part of a labelled volume that is predicted and scored."""

    volume: TaskVolume
    box: Box
    split: str | None = "val"

    def has_label(self, targets: Mapping[str, AnyTarget]) -> bool:
        """Whether any target has a label here that a network did not make."""
        return any(self.region.label(name, target) for name, target in targets.items())

    @property
    def region(self) -> ScoredRegion:
        """The part, as evaluation reads its labels."""
        return ScoredRegion(self.volume, self.box)

    def scored(self, folder: Path) -> ScoredPart:
        """The part and the result that is scored, which lies in `folder`."""
        root = volume_root(group_place(str(folder)), self.volume.name)
        return ScoredPart(self.region, root, self.volume.name, self.volume.scored_with, self.split)

    def request(
        self, task: Task, network: TrainedNetwork, device: torch.device, folder: Path
    ) -> Request:
        """What is predicted of it: as `infer` would, into `folder`."""
        params = params_of(task, self, device)
        record = with_section(task.to_json(), params)
        root = self.scored(folder).root
        targets = task.dataset_config.targets
        return Request((network,), self.volume.inputs, root, params, targets, record)


def params_of(task: Task, part: PredictedPart, device: torch.device) -> InferenceParams:
    """How a part is predicted: as the task says, but for what is of one volume, result or machine."""
    params = task.inference_params
    return params.changed(
        **input_keys(task, part.volume),
        volumes=None,
        bbox=tuple(zip(part.box.origin, part.box.end, strict=True)),
        skip=params.skip.changed(mask=None),
        output_dir=None,
        output_targets="all",
        pyramid=0,
        checkpoint_path=None,
        ensemble=EnsembleParams(),
        uncertainty=False,
        device=str(device),
        compile=False,  # it takes longer than it saves, and anew for each set of weights
        threads=None,
    )


def score_network(
    task: Task,
    network: TrainedNetwork,
    parts: Sequence[PredictedPart],
    metrics: Mapping[str, Metrics],
    *,
    folder: Path,
    device: torch.device,
    about: Mapping[str, Any],
    reporter: Reporter,
    should_stop: ShouldStop = lambda: False,
    keep: Keep = lambda _report, _volumes: None,
) -> Report | None:
    """Predict parts of labelled volumes with one network and score them; None after a stop.

    Args:
        task: says how it is predicted.
        network: the one.
        parts: of volumes with a label.
        metrics: of each target.
        folder: for predictions and what is measured. After a stop or a kill the same call continues
            with what is there; what other weights, parts or settings left there is deleted. All of
            it is, once the report is made.
        device: where the network runs.
        about: JSON values for the report.
        reporter: gets notes and progress.
        should_stop: asked several times a second.
        keep: called with the report while the predictions are still there.

    Raises:
        RefusedError: as for `predict_request`.
        RunError: a volume cannot be predicted, or a label holds what its kind cannot have.
    """
    targets = task.dataset_config.targets
    place = folder / _digest(task, network, parts, device)
    clear(folder, but=place.name)
    for part in parts:
        options = RunOptions(reporter=reporter, should_stop=should_stop)
        if not predict_request(part.request(task, network, device, place), options).is_through:
            return None
    scored = [part.scored(place) for part in parts]
    volumes = [
        scored_part(one, open_predictions(one, _labelled(one, targets)), targets, metrics)
        for one in scored
    ]
    report = score_volumes(
        volumes, record=place / RECORD, provenance=about, reporter=reporter, should_stop=should_stop
    )
    if report is not None:
        keep(report, volumes)
        clear(folder)
    return report


def _labelled(part: ScoredPart, targets: Mapping[str, AnyTarget]) -> dict[str, AnyTarget]:
    return {name: one for name, one in targets.items() if part.region.label(name, one)}


def _digest(
    task: Task, network: TrainedNetwork, parts: Sequence[PredictedPart], device: torch.device
) -> str:
    """A name for all that determines the predictions."""
    ways = [params_of(task, part, device).model_dump(mode="json") for part in parts]
    inputs = [image.fingerprint() for part in parts for image in part.volume.inputs]
    weights = [network.sha256, dict(network.temperatures)]
    text = json.dumps([weights, task.to_json()["dataset_config"], ways, inputs])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clear(folder: Path, but: str = "") -> None:
    """Remove a folder of ours, or what is in it but for one name."""
    for found in folder.iterdir() if folder.is_dir() else ():
        if found.name != but:
            shutil.rmtree(found)
    if not but and folder.is_dir():
        folder.rmdir()


def curve_points(report: Report) -> dict[str, float]:
    """The figures of a report, by the name of their curve."""
    return {
        f"{OF_VOLUMES}{figure}_{target}": value
        for target, figures in TaskScores(report).items()
        for figure, value in figures.items()
    }


class WholeVolumes:
    """Validates a training on whole volumes; a `VolumeValidation`.

    Args:
        held_out: what is predicted, and where.
    """

    def __init__(self, held_out: HeldOutVolumes) -> None:
        self.held_out = held_out
        task = held_out.task
        targets = task.dataset_config.targets
        self.metrics = volume_metrics(targets, task.tr_params.validation)
        every = [PredictedPart(volume, box) for volume, box in held_out.parts]
        self.parts = [part for part in every if part.has_label(targets)]

    def check(self, state: Mapping[str, Any]) -> None:
        """As for `VolumeValidation`."""
        held_out = self.held_out
        with _random_state_kept(held_out.device):
            network = _network_of(state)
            for part in self.parts:
                request = part.request(held_out.task, network, held_out.device, held_out.folder)
                targets = choose_targets(request.targets, network, request.params)
                require_storable(targets, request.params.dtype)
                check_inputs(request.inputs, network, Silent())

    def __call__(
        self, state: Mapping[str, Any], should_stop: ShouldStop
    ) -> dict[str, float] | None:
        """As for `VolumeValidation`."""
        held_out = self.held_out
        try:
            with _random_state_kept(held_out.device):
                report = score_network(
                    held_out.task,
                    _network_of(state),
                    self.parts,
                    self.metrics,
                    folder=held_out.folder,
                    device=held_out.device,
                    about={},
                    reporter=Silent(),
                    should_stop=should_stop,
                )
        except RefusedError as error:  # in the middle of a run it is a failure of the run
            raise RunError(error.subject, error.found, error.remedy) from error
        return None if report is None else curve_points(report)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were: building a network draws its first weights."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _network_of(state: Mapping[str, Any]) -> TrainedNetwork:
    """A copy of the network of a training, from what its checkpoint would hold."""
    digest = hashlib.sha256()
    for name, tensor in state["model"].items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return build_network(Checkpoint(Path("the training"), digest.hexdigest(), dict(state)))
