"""What is to be predicted, with which networks, from where, to where and how; and the run's options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import WHOLE, Part
from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams, NormalizationConfig, Task
from vcmodels.config.slices import SliceStack
from vcmodels.config.task import DatasetConfig
from vcmodels.data.intensities import measure, notes
from vcmodels.data.normalization import contradiction, other_choice
from vcmodels.data.placing import require_one_place
from vcmodels.data.volumes import metadata_notes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.formats import location_name
from vcmodels.geometry.boxes import Box
from vcmodels.postprocess import AnyStep
from vcmodels.postprocess.tuning import values_for, with_tuned
from vcmodels.prepare.plan import KEY as PREPARE
from vcmodels.prepare.section import Prepare
from vcmodels.regions.find import KEY as REGION
from vcmodels.regions.section import RegionConfig
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import open_inputs, result_root
from vcmodels.targets import AnyTarget
from vcmodels.targets.differences import trained_differences
from vcmodels.volumes import Place, Volume
from vcmodels.volumes.spacing import in_unit

MOST_LENGTH = 10**7
"""Voxels along an axis; more are damaged metadata, and even the list of their patches would fill the memory."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class RunOptions:
    """How a run is done; the voxels that come out do not depend on it."""

    part: Part = WHOLE
    """Which of several workers this is; they write to one output, at once or one by one."""
    overwrite: bool = False
    """Delete an earlier result of vcmodels at the output first."""
    verify: bool = False
    """Read all that is stored, and predict what is damaged or missing."""
    dry_run: bool = False
    """Only report what would be done; nothing is written."""
    preview: Path | None = None
    """A PNG of three slices, drawn while the result is made, each as soon as it is there; of many
    volumes, a folder for them."""
    reporter: Reporter = field(default_factory=Silent)
    """Told lines and progress."""
    should_stop: Callable[[], bool] = _never
    """Asked after every batch; once it says yes, what is finished is written, and the report says
    that the run is not complete."""

    def require_whole(self) -> None:
        """Refuse a part that would spoil what the other parts do.

        Raises:
            TaskError: naming the option.
        """
        if (self.overwrite or self.verify) and self.part != WHOLE:
            option = "--overwrite" if self.overwrite else "--verify"
            remedy = f"run once with {option} alone, then start the parts"
            found = f"is for the whole, part {self.part} would spoil the others"
            raise TaskError(option, found, remedy)


@dataclass(frozen=True)
class Request:
    """What is predicted and where the result goes."""

    networks: tuple[TrainedNetwork, ...]
    """Their predictions are averaged."""
    inputs: tuple[Volume, ...]
    """Stacked as channels."""
    output: Place
    """The output group."""
    params: InferenceParams
    """How; the paths in it are not read, except for that of the mask."""
    targets: Mapping[str, AnyTarget]
    """As they are to be written: they may differ from the trained ones in what does not change the
    logits, such as the encoding."""
    record: Mapping[str, Any]
    """The task as JSON, which the result keeps."""
    steps: tuple[AnyStep, ...] = ()
    """What is made of the predictions, once all of them are there."""
    prepare: Prepare | None = None
    """What is done to the inputs, which are as they are stored, and undone on the result."""
    region: RegionConfig | None = None
    """Which part of the inputs is predicted; it is found first."""
    name: str = ""
    """Of the input, for messages and for `{name}` in `region`; taken from its location if empty."""

    @property
    def shown(self) -> str:
        """What the input is called."""
        return self.name or location_name(self.inputs[0].shown)

    def with_params(self, **changes: object) -> "Request":
        """The same with other `inference_params`, which the record then has, too."""
        params = self.params.changed(**changes)
        return replace(self, params=params, record=with_section(self.record, params))


def with_section(record: Mapping[str, Any], params: InferenceParams) -> dict[str, Any]:
    """A task as JSON, with these as its `inference_params`."""
    return {**record, "inference_params": params.model_dump(mode="json", by_alias=True)}


def request_of(
    task: Task,
    networks: tuple[TrainedNetwork, ...],
    output: Place | None = None,
    reporter: Reporter | None = None,
    name: str = "",
) -> Request:
    """What a task asks for, with the networks of its checkpoints.

    Args:
        task: of one volume.
        networks: whose predictions are averaged.
        output: the group of the result; `<output_dir>/<model_name>.zarr` when None.
        reporter: told when a file is imported.
        name: of the volume, if it has one.

    Raises:
        TaskError: no input or output is named, or the task contradicts the checkpoint.
        VolumeError: an input does not exist.
    """
    params, config = task.inference_params, task.dataset_config
    prepare = require_same_inputs(config, networks)
    inputs = open_inputs(params.input_path, params, reporter)
    root = output or result_root(params.output_dir, task.tr_params.model_name)
    steps = with_tuned(task.postprocess, _tuned_values(task.postprocess, networks))
    record = {**task.to_json(), "postprocess": [one.model_dump(mode="json") for one in steps]}
    record["dataset_config"]["prepare"] = prepare and prepare.model_dump(mode="json", by_alias=True)
    return Request(
        networks, inputs, root, params, config.targets, record, steps, prepare, config.region, name
    )


def require_same_inputs(
    config: DatasetConfig, networks: Sequence[TrainedNetwork]
) -> Prepare | None:
    """How the networks want their inputs to be made, which is as the task makes them.

    Raises:
        TaskError: a network was trained with another `normalization`, `prepare`, `stack`,
            `coordinates` or `region` than the task gives.
    """
    _refuse_other_normalization(config.normalization, networks[0])
    prepare = prepare_of(networks)
    _refuse_other_prepare(config.prepare, prepare)
    _refuse_other_stack(config.stack, networks[0])
    _refuse_other_coordinates(networks[0], has_coordinates=config.coordinates)
    _refuse_other_region(config.region, networks)
    return prepare


def prepare_of(networks: Sequence[TrainedNetwork]) -> Prepare | None:
    """How the networks want their inputs to be made.

    Raises:
        TaskError: one wants them otherwise than another.
    """
    every = [network.task.dataset_config.prepare for network in networks]
    if any(one != every[0] for one in every):
        found = "the checkpoints were trained with different dataset_config.prepare"
        remedy = "predict with each, or average networks of one task"
        raise TaskError("inference_params.checkpoint_path", found, remedy)
    return every[0]


def _refuse_other_region(wanted: RegionConfig | None, networks: Sequence[TrainedNetwork]) -> None:
    """Refuse a region of another make than a network was trained in; its sources may be others."""
    remedy = "restore it: the network knows only such regions"
    for network in networks:
        trained = network.task.dataset_config.region
        if (wanted is None) != (trained is None):
            found, how = ("is given", "without") if wanted else ("is not given", "with")
            raise TaskError(REGION, f"{found}, and the checkpoint was trained {how} it", remedy)
        if wanted is not None and trained is not None and (key := wanted.contradiction(trained)):
            now, before = getattr(wanted, key), getattr(trained, key)
            found = f"is {now}, the checkpoint was trained with {before}"
            raise TaskError(f"{REGION}.{key}", found, remedy)


def _refuse_other_prepare(wanted: Prepare | None, trained: Prepare | None) -> None:
    if wanted is None and trained is None:
        return
    remedy = "restore it: the network knows only volumes that were made like that"
    if wanted is None or trained is None:
        found = "is given" if wanted else "is not given"
        how = "without" if wanted else "with"
        raise TaskError(PREPARE, f"{found}, and the checkpoint was trained {how} it", remedy)
    if key := wanted.contradiction(trained):
        given, was = (one.model_dump(mode="json", by_alias=True)[key] for one in (wanted, trained))
        raise TaskError(f"{PREPARE}.{key}", f"is {given}, the checkpoint has {was}", remedy)


def _tuned_values(
    steps: Sequence[AnyStep], networks: Sequence[TrainedNetwork]
) -> dict[str, dict[str, float]]:
    """What was chosen for the steps when the networks were trained.

    Raises:
        TaskError: something else for one network than for another.
    """
    every = [values_for(steps, network.tuned) for network in networks]
    if any(values != every[0] for values in every):
        found = "the checkpoints were tuned to different values"
        raise TaskError("postprocess", found, 'give numbers in the place of "tuned"')
    return every[0]


def _refuse_other_normalization(wanted: NormalizationConfig, network: TrainedNetwork) -> None:
    if found := contradiction(wanted, network.normalization):
        remedy = "restore it, or leave it out: another normalisation gives wrong predictions"
        raise TaskError("dataset_config.normalization", found, remedy)


def _refuse_other_stack(wanted: SliceStack | None, network: TrainedNetwork) -> None:
    trained = network.task.dataset_config.stack
    if wanted != trained:
        found = f"is {_in_json(wanted)}, the checkpoint was trained with {_in_json(trained)}"
        raise TaskError("dataset_config.stack", found, "restore it: it says what the channels are")


def _refuse_other_coordinates(network: TrainedNetwork, *, has_coordinates: bool) -> None:
    if has_coordinates != network.task.dataset_config.coordinates:
        wanted, trained = ("true", "false") if has_coordinates else ("false", "true")
        found = f"is {wanted}, the checkpoint was trained with {trained}"
        remedy = "restore it: it says what the channels are"
        raise TaskError("dataset_config.coordinates", found, remedy)


def _in_json(stack: SliceStack | None) -> str:
    return "null" if stack is None else stack.model_dump_json()


def check_inputs(inputs: Sequence[Volume], network: TrainedNetwork, reporter: Reporter) -> None:
    """Refuse inputs that the network cannot take, and report another voxel size.

    Raises:
        VolumeError: their shapes, places or channels do not fit.
    """
    first, key = inputs[0], inputs[0].key
    if max(first.extent) > MOST_LENGTH:
        found = f"{first.shown} has shape {first.extent}"
        raise VolumeError(key, found, f"correct its metadata; at most {MOST_LENGTH} along an axis")
    for volume in inputs[1:]:
        if volume.extent != first.extent:
            found = f"{volume.shown} has shape {volume.extent}, the first {first.extent}"
            remedy = (
                "give arrays of one shape; to predict each, quote a pattern such as 'scans/*.zarr'"
            )
            raise VolumeError(key, found, remedy)
    require_one_place(inputs)
    for volume in inputs:
        for note in metadata_notes(volume):
            reporter.say(note)
    _check_channels(inputs, network, reporter)
    _report_spacing(first, network, reporter)


def _report_spacing(first: Volume, network: TrainedNetwork, reporter: Reporter) -> None:
    spacing = in_unit(first.spacing, first.unit, network.unit)
    ratios = [a / b for a, b in zip(spacing, network.spacing, strict=True)]
    unit = f" {network.unit}" if first.unit and network.unit else ""
    trained = f"{network.spacing}{unit}" if network.has_spacing else "unknown"
    if first.has_spacing and not all(0.8 < ratio < 1.25 for ratio in ratios):
        reporter.say(
            f"note: voxels of {first.shown} are {spacing}{unit}, those of the training were {trained}"
        )
    elif network.has_spacing and not first.has_spacing:
        found = f"the voxel size of {first.shown} is unknown, that of the training was {trained}"
        reporter.say(f'note: {found}; give "spacing"')


def _check_channels(inputs: Sequence[Volume], network: TrainedNetwork, reporter: Reporter) -> None:
    """Refuse another number of channels, and report those that were chosen in training only."""
    channels, trained = sum(volume.channels for volume in inputs), network.stored_channels
    chosen = network.task.dataset_config.volume_paths[0].channels
    if channels != trained:
        found = f"{channels} channels, the network was trained with {trained}"
        remedy = "give the same channels in the same order"
        if chosen or channels > trained:
            example = chosen or list(range(trained))
            remedy += f', as in "channels": {example}' + (", as in the training" if chosen else "")
        raise VolumeError(inputs[0].key, found, remedy)
    is_prepared = network.task.dataset_config.prepare is not None  # what was chosen is gone then
    if chosen and not is_prepared and all(volume.axes.chosen is None for volume in inputs):
        reporter.say(
            f"note: the training chose channels {chosen}; all {channels} of "
            f"{inputs[0].shown} are used, in their order"
        )


def report_values(
    inputs: Sequence[Volume], region: Box, network: TrainedNetwork, reporter: Reporter
) -> None:
    """Report inputs whose values are of another scale than those that the network was trained on.

    A small sample of the region is read; nothing is where the checkpoint does not say its values.
    """
    trained = network.intensities
    found = measure([(inputs, region)]) if trained else ()
    if len(found) == len(trained):
        for line in notes(found, trained, network.normalization, inputs[0].shown):
            reporter.say(line)
    if line := other_choice(network.normalization, inputs):
        reporter.say(line)


def choose_targets(
    wanted: Mapping[str, AnyTarget], network: TrainedNetwork, params: InferenceParams
) -> dict[str, AnyTarget]:
    """The targets to write, as they are wanted where the checkpoint leaves that open.

    Raises:
        TaskError: a name that the checkpoint does not have, or a target that it learnt differently.
    """
    known = ", ".join(network.targets)
    names = list(network.targets) if params.output_targets == "all" else params.output_targets
    chosen: dict[str, AnyTarget] = {}
    for name in names:
        if name not in network.targets:
            key = "inference_params.output_targets"
            raise TaskError(key, f'"{name}" is not in the checkpoint', f"choose from {known}")
        trained = network.targets[name]
        chosen[name] = wanted.get(name, trained)
        _require_same(name, trained, chosen[name])
    return chosen


def _require_same(name: str, trained: AnyTarget, target: AnyTarget) -> None:
    for key, before, now in trained_differences(trained, target):
        raise TaskError(
            f"dataset_config.targets.{name}.{key}",
            f"is {now!r}, the checkpoint was trained with {before!r}",
            "restore it, or use another checkpoint",
        )


def require_storable(targets: Mapping[str, AnyTarget], dtype: np.dtype) -> None:
    """Refuse an `output_type` that a target cannot be stored as.

    Raises:
        TaskError: naming the target, and the types that it can have.
    """
    for name, target in targets.items():
        try:
            target.output_channels(dtype)
        except ValueError as error:
            key = "inference_params.output_type"
            raise TaskError(key, f'target "{name}" {error}') from error
