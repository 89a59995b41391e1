"""Some of the labelled volumes of a task, and what of each: to predict them, or to score them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vcmodels.config.values import VolumeChoice
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Reporter, Silent, list_some
from vcmodels.runs.run import Run

MOST_NAMED = 20


@dataclass(frozen=True)
class ChosenVolume:
    """A volume, and the part of it that is meant."""

    volume: TaskVolume
    box: Box
    split: str | None
    """`val` for what was held out of training, else the volume's own; None for what is divided."""

    def as_stored(self) -> "ChosenVolume":
        """The same in the volume as it is stored, before it was prepared."""
        volume = self.volume
        return ChosenVolume(volume.as_stored, volume.box_as_stored(self.box), self.split)


def choose_volumes(
    volumes: Sequence[TaskVolume],
    choice: VolumeChoice,
    run: Run,
    *,
    key: str,
    reporter: Reporter | None = None,
) -> list[ChosenVolume]:
    """The volumes that a choice means, in the order of the task.

    Args:
        volumes: all of the task.
        choice: as `VolumeChoice`. Of volumes by name, what was held out is meant where something was,
            else as much as is used.
        run: says what was held out.
        key: of the choice, for messages.
        reporter: told where voxels are among them that were trained on.

    Raises:
        TaskError: there are none, or a name is that of no volume.
    """
    reporter = reporter or Silent()
    if choice == "val":
        held_out = held_out_boxes(run, volumes, reporter)
        found = [ChosenVolume(v, held_out[v.name], "val") for v in volumes if v.name in held_out]
    elif choice == "test":
        found = [ChosenVolume(v, v.region, v.split) for v in volumes if v.split == "test"]
    elif choice == "all":
        found = [ChosenVolume(v, v.region, v.split) for v in volumes]
    else:
        found = list(_named(volumes, choice, run, key))
    if not found:
        text = f'is "{choice}", and there is no such volume'
        remedy = 'give "split": "test" to some, or choose others' if choice == "test" else ""
        raise TaskError(key, text, remedy or "choose others, or name them")
    if seen := [one.volume.name for one in found if one.split not in ("val", "test")]:
        reporter.say(
            f"note: voxels that were trained on are among those of {list_some(seen, MOST_NAMED)}"
        )
    return found


def _named(
    volumes: Sequence[TaskVolume], names: Sequence[str], run: Run, key: str
) -> Iterator[ChosenVolume]:
    known = {volume.name: volume for volume in volumes}
    for name in names:
        if name not in known:
            raise TaskError(
                key, f'"{name}" is no volume', f"they are {list_some(known, MOST_NAMED)}"
            )
    splits = run.splits()
    held_out = splits.held_out() if splits is not None else _fixed(volumes)
    for name, volume in known.items():
        if name in names and volume.split != "test" and name in held_out:
            yield ChosenVolume(volume, held_out[name], "val")
        elif name in names:
            yield ChosenVolume(volume, volume.region, volume.split)


def held_out_boxes(run: Run, volumes: Sequence[TaskVolume], reporter: Reporter) -> dict[str, Box]:
    """The validation region of each volume by its name: of a run, else of `"split": "val"`.

    Raises:
        TaskError: no training has divided the volumes, and the task does not; or the record of the
            run is damaged.
    """
    splits = run.splits()
    if splits is None:
        if whole := _fixed(volumes):
            return whole
        remedy = "train first, or give a bbox to score"
        raise TaskError(str(run.splits_file), "is not there", remedy)
    if splits.is_random:
        reporter.say("random split: voxels that were trained on are scored too")
    return splits.held_out()


def _fixed(volumes: Sequence[TaskVolume]) -> dict[str, Box]:
    return {volume.name: volume.region for volume in volumes if volume.split == "val"}


def result_names(volumes: Sequence[TaskVolume]) -> Mapping[str, str]:
    """The name of the result of each volume: that of the first volume with the same inputs.

    Raises:
        TaskError: two differ only in case, and would share a file on many systems.
    """
    first: dict[tuple[str, ...], str] = {}
    found = {v.name: first.setdefault(inputs_of(v), v.name) for v in volumes}
    lowered: dict[str, str] = {}
    for name in first.values():
        if (other := lowered.setdefault(name.lower(), name)) != name:
            volume = next(volume for volume in volumes if volume.name == name)
            text = f"is {name}, which differs from {other} only in case"
            raise TaskError(f"{volume.key}.name", text, "rename one of them")
    return found


def inputs_of(volume: TaskVolume) -> tuple[str, ...]:
    """What is equal for volumes that are parts of the same arrays."""
    return tuple(image.identity for image in volume.inputs)
