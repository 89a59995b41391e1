"""What a student learns besides its labels: what trained networks say of the image that it sees.

Hinton et al. 2015, "Distilling the knowledge in a neural network" (arXiv:1503.02531): the teachers run
on the very patch that the student gets, after all augmentation, so that no direction has to be
turned. Their mean is taken as inference takes that of an ensemble, and is compared by the measure of
each kind (`Target.disagreement`). A patch without labels has this loss alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vcmodels.checkpoint import Checkpoint, TrainedNetwork, build_network, load_checkpoint
from vcmodels.config.train_params import DistillParams
from vcmodels.data.normalization import Conversion, Normalization, conversion
from vcmodels.data.task_volume import TaskVolume
from vcmodels.devices import autocast, choose_amp, place
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.coordinates import COORDINATES
from vcmodels.geometry.symmetries import SPACING_TOLERANCE
from vcmodels.losses.agreement import sure_mean
from vcmodels.models.base import Logits
from vcmodels.samples.loader import Batch
from vcmodels.section import Amp
from vcmodels.targets import AnyTarget
from vcmodels.targets.differences import trained_differences
from vcmodels.volumes import expand_location
from vcmodels.volumes.spacing import in_unit

KEY = "tr_params.distill.teachers"


class Lesson(Protocol):
    """A loss that needs no label: it compares outputs with what is known of the image."""

    @property
    def name(self) -> str:
        """First part of its curves, `train/<name>_<target>`."""
        ...

    @property
    def targets(self) -> Mapping[str, AnyTarget]:
        """Those that it has a loss of."""
        ...

    def weight(self, step: int) -> float:
        """Factor of the loss in a step, 0-based; the weight of each target comes on top."""
        ...

    def losses(self, batch: Batch, outputs: Logits) -> dict[str, Tensor]:
        """Per target (B,) float32: the loss of each sample, in the mean over all its voxels.

        Args:
            batch: what the network has seen.
            outputs: its logits for that, full resolution first, with their gradient.
        """
        ...


@dataclass(frozen=True)
class Teacher:
    """A trained network that stays as it is."""

    module: nn.Module
    """On the device, in eval mode; its weights get no gradient."""
    temperatures: Mapping[str, float]
    images: Mapping[str, Conversion]
    """By volume, what makes an image for it of one for the student; none for those it takes as is."""

    def sees(self, batch: Batch) -> Tensor:
        """The images of a batch (B, C, Z, Y, X), as it was trained on them."""
        if not self.images:
            return batch.image
        rows = [self.images[place.volume] for place in batch.places]
        factor = batch.image.new_tensor([row.factors for row in rows])
        shift = batch.image.new_tensor([row.shifts for row in rows])
        return batch.image * factor[..., None, None, None] + shift[..., None, None, None]


@dataclass(frozen=True)
class Distillation:
    """The loss against the mean of some teachers; a `Lesson`."""

    teachers: Sequence[Teacher]
    targets: Mapping[str, AnyTarget]
    settings: DistillParams
    device: torch.device
    amp: torch.dtype | None
    name: str = "distill"

    def weight(self, step: int) -> float:
        """The same in all steps."""
        del step
        return self.settings.weight

    def losses(self, batch: Batch, outputs: Logits) -> dict[str, Tensor]:
        """As `Lesson.losses`; voxels of which the teachers are not sure count as 0."""
        taught = self.predictions(batch)
        return {
            name: sure_mean(
                target.disagreement(outputs[name][0].float(), taught[name]),
                target.certainty(taught[name]),
                self.settings.confidence,
            )
            for name, target in self.targets.items()
        }

    @torch.no_grad()
    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """Per target (B, A, Z, Y, X) float32: the mean of what the teachers say of a batch."""
        found: dict[str, Tensor] = {}
        for teacher in self.teachers:
            image = teacher.sees(batch).contiguous(memory_format=torch.channels_last_3d)
            with autocast(self.device, self.amp):
                logits: Logits = teacher.module(image)
            for name, target in self.targets.items():
                own = logits[name][0].float() / teacher.temperatures.get(name, 1.0)
                share = target.blendable(own) / len(self.teachers)
                found[name] = found[name] + share if name in found else share
        return found


def load_teachers(settings: DistillParams | None) -> list[Checkpoint]:
    """The checkpoints of a task's teachers; none without `distill`.

    Raises:
        CheckpointError: one cannot be read.
    """
    paths = [] if settings is None else settings.teachers
    return [load_checkpoint(Path(expand_location(path))) for path in paths]


def check_teachers(
    checkpoints: Sequence[Checkpoint],
    targets: Mapping[str, AnyTarget],
    first: TaskVolume,
    patch: Shape,
    resumed: Checkpoint | None,
) -> list[TrainedNetwork]:
    """The networks of teachers that can say something of a student's images.

    Args:
        checkpoints: of the teachers.
        targets: of the student.
        first: its first volume.
        patch: what it sees.
        resumed: the checkpoint of the run that goes on, if there is one.

    Raises:
        TaskError: a teacher takes other images, or none shares a target; or they are not those that
            the run was begun with.
        CheckpointError: one lacks what a prediction needs.
    """
    found = [build_network(one) for one in checkpoints]
    known = [one.sha256 for one in found]
    before = known if resumed is None else resumed.state.get("teachers", [])
    if before != known:
        what = "have changed since the run was saved"
        raise TaskError(KEY, what, "restore them, choose another ckpt_out_base, or --restart")
    for teacher in found:
        if reason := _reason(teacher, first, patch):
            raise TaskError(KEY, f"{teacher.path} {reason}", "use another teacher")
    shared = _shared(found, targets)
    if not shared:
        names = ", ".join(targets)
        raise TaskError(KEY, f"no target ({names}) is one of all of them", "use other teachers")
    _refuse_other_meanings(found, shared)
    return found


def _shared(
    teachers: Sequence[TrainedNetwork], targets: Mapping[str, AnyTarget]
) -> dict[str, AnyTarget]:
    """The targets that every teacher has, too."""
    return {n: t for n, t in targets.items() if all(n in one.targets for one in teachers)}


def _reason(teacher: TrainedNetwork, first: TaskVolume, patch: Shape) -> str | None:
    """Why a teacher can say nothing of the images of a student, in words."""
    config = teacher.task.dataset_config
    if teacher.in_channels != first.channels:
        return f"takes {teacher.in_channels} channels, the student {first.channels}"
    if config.stack != first.stack or config.coordinates != first.coordinates:
        return "sees other slices or coordinates as channels than the student"
    spacing = in_unit(teacher.spacing, teacher.unit, first.unit)
    pairs = zip(spacing, first.spacing, strict=True)
    if any(abs(a - b) > SPACING_TOLERANCE * max(a, b) for a, b in pairs):
        return f"was trained on voxels of {spacing}, the student's are {first.spacing}"
    try:
        teacher.check_patch(patch)
    except ValueError as error:
        return f"cannot take patches of {list(patch)}: {error}"
    return None


def _refuse_other_meanings(
    teachers: Sequence[TrainedNetwork], targets: Mapping[str, AnyTarget]
) -> None:
    """Refuse a teacher one of whose targets means something else by the same name.

    Raises:
        TaskError: naming the key that differs.
    """
    for teacher in teachers:
        for name, target in targets.items():
            for key, was, now in trained_differences(teacher.targets[name], target):
                found = f'{teacher.path}: target "{name}" has {key}={was!r}, the student {now!r}'
                raise TaskError(KEY, found, "give the student the same, or use another teacher")


def distillation(
    networks: Sequence[TrainedNetwork],
    targets: Mapping[str, AnyTarget],
    settings: DistillParams,
    normalization: Normalization,
    volumes: Sequence[TaskVolume],
    device: torch.device,
    amp: Amp,
) -> Distillation:
    """The lesson of teachers that `check_teachers` has let pass.

    Args:
        networks: of the teachers.
        targets: of the student.
        settings: of the task.
        normalization: of the images that the student sees.
        volumes: that these are of.
        device: where they run.
        amp: in which precision.

    Raises:
        TaskError: a teacher normalises so that its images cannot be had from the student's.
    """
    teachers = [
        Teacher(
            place(_frozen(one.module), device),
            one.temperatures,
            _images(one, normalization, volumes),
        )
        for one in networks
    ]
    shared = _shared(networks, targets)
    return Distillation(teachers, shared, settings, device, choose_amp(amp, device))


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def _images(
    teacher: TrainedNetwork, normalization: Normalization, volumes: Sequence[TaskVolume]
) -> dict[str, Conversion]:
    """By volume, how its images become the teacher's; {} where all are.

    Raises:
        TaskError: there is no such way.
    """
    found: dict[str, Conversion] = {}
    for volume in volumes:
        made = conversion(normalization, teacher.normalization, volume.name, volume.stored_channels)
        if made is None or (volume.stack is not None and not made.is_identity):
            way, own = teacher.normalization, normalization
            why = (
                f"{teacher.path} was trained with normalization {way.scheme} per {way.per}, the "
                f"student has {own.scheme} per {own.per}, and no image can be had from another"
            )
            remedy = "leave the student's normalization out, or give both one per volume"
            raise TaskError(KEY, why, remedy)
        same = COORDINATES * volume.coordinates
        found[volume.name] = replace(
            made, factors=(*made.factors, *(1.0,) * same), shifts=(*made.shifts, *(0.0,) * same)
        )
    return {} if all(one.is_identity for one in found.values()) else found
