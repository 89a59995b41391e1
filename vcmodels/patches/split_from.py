"""The division of another run, for volumes of the same names: what is compared is held out alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.runs.run import SPLITS, Run, Splits
from vcmodels.volumes import expand_location

KEY = "tr_params.split_from"


def grid_note(volume: TaskVolume) -> dict[str, Any]:
    """JSON values that say which voxels the boxes of a volume are of, and which box all of it is."""
    return {**volume.grid.to_json(), "region": volume.region.pairs}


def taken_regions(
    named: str, volumes: Sequence[TaskVolume]
) -> tuple[list[Box | None], list[Box | None]]:
    """What another run trains and validates on, of each volume.

    Args:
        named: its folder, or its `splits.json`.
        volumes: of the task; by their names.

    Raises:
        TaskError: there is no such division, it is one of patches, of other volumes or of parts of
            volumes on another grid, reaches out of what is used of a volume here, or contradicts
            the `split` of one.
    """
    splits = _splits(named)
    if splits.is_random:
        found = f"{named} divides patches at random, not voxels"
        raise TaskError(KEY, found, 'name one with "split_mode": "spatial"')
    known = _known(splits)
    for volume in volumes:
        if volume.name not in known:
            remedy = f"its volumes are {', '.join(splits.volumes[:8])}: give them the same names"
            raise TaskError(KEY, f"{named} knows no volume {volume.name}", remedy)
    every = [_sides(volume, known[volume.name], named) for volume in volumes]
    return [train for train, _ in every], [val for _, val in every]


@dataclass(frozen=True)
class _Known:
    """How another run divides one volume."""

    train: Box | None
    val: Box | None
    grid: Mapping[str, Any]
    """As `grid_note`; {} where the run did not keep it."""


def _known(splits: Splits) -> dict[str, _Known]:
    grids = splits.document.get("grids") or [{}] * len(splits.volumes)
    every = zip(splits.volumes, splits.train_regions, splits.val_regions, grids, strict=True)
    return {name: _Known(train, val, grid) for name, train, val, grid in every}


def _sides(volume: TaskVolume, known: _Known, named: str) -> tuple[Box | None, Box | None]:
    """The two parts of a volume."""
    here = grid_note(volume)
    train, val = known.train, known.val
    whole, grid = known.grid.get("region"), {k: v for k, v in known.grid.items() if k != "region"}
    if grid and any(here[key] != value for key, value in grid.items()):
        parts = [box for box in (train, val) if box is not None]
        if any(box.pairs != whole for box in parts):
            found = f"{named} cuts {volume.name} on another grid (prepare, region or level differ)"
            remedy = 'give volumes a "split" there, so that none is cut, or restore those keys'
            raise TaskError(KEY, found, remedy)
        train, val = (box and volume.region for box in (train, val))
    for side, part in (("train", val), ("val", train)):
        if part is not None and volume.split == side:
            other = "val" if side == "train" else "train"
            found = f'is "{side}", and {named} has it in {other}'
            raise TaskError(f"{volume.key}.split", found, f"leave it out, or {KEY}")
    for part in (train, val):
        if part is not None and not volume.region.contains(part):
            found = f"the {part} of {volume.name} there reaches out of what is used here"
            raise TaskError(KEY, found, f"is used here: {volume.region}; give it the same bbox")
    return train, val


def _splits(named: str) -> Splits:
    try:
        path = Path(expand_location(named))
    except VolumeError as error:
        raise TaskError(KEY, error.found, error.remedy) from error
    folder = path.parent if path.name == SPLITS else path
    found = Run(folder).splits()
    if found is None:
        raise TaskError(KEY, f"{folder / SPLITS} is not there", "name the folder of a run")
    return found
