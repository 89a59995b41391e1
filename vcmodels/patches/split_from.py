"""The division of another run, for volumes of the same names: what is compared is held out alike."""

from collections.abc import Sequence
from pathlib import Path

from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.runs.run import SPLITS, Run, Splits
from vcmodels.volumes import expand_location

KEY = "tr_params.split_from"


def taken_regions(
    named: str, volumes: Sequence[TaskVolume]
) -> tuple[list[Box | None], list[Box | None]]:
    """What another run trains and validates on, of each volume.

    Args:
        named: its folder, or its `splits.json`.
        volumes: of the task; by their names.

    Raises:
        TaskError: there is no such division, it is one of patches, of other volumes, or reaches out
            of what is used of a volume here.
    """
    splits = _splits(named)
    if splits.is_random:
        found = f"{named} divides patches at random, not voxels"
        raise TaskError(KEY, found, 'name one with "split_mode": "spatial"')
    both = zip(splits.train_regions, splits.val_regions, strict=True)
    known = dict(zip(splits.volumes, both, strict=True))
    for volume in volumes:
        if volume.name not in known:
            remedy = f"its volumes are {', '.join(splits.volumes[:8])}: give them the same names"
            raise TaskError(KEY, f"{named} knows no volume {volume.name}", remedy)
        for region in known[volume.name]:
            if region is not None and not volume.region.contains(region):
                found = f"the {region} of {volume.name} there reaches out of what is used here"
                raise TaskError(KEY, found, f"is used here: {volume.region}; give it the same bbox")
    train, val = zip(*(known[volume.name] for volume in volumes), strict=True)
    return list(train), list(val)


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
