"""The networks that find the regions of a task: which file each of them is."""

from pathlib import Path

from vcmodels.config.task import Task
from vcmodels.errors import TaskError, VolumeError
from vcmodels.runs.run import Run, seal
from vcmodels.volumes.location import expand_location

KEY = "dataset_config.region.from"


def fill_networks(task: Task) -> Task:
    """The task with the sha256 of each checkpoint that finds regions, where it is not written yet.

    A checkpoint that is not there, as it is not trained yet, is missed where it is needed.

    Raises:
        TaskError: a location holds a variable that is not set, or a file cannot be read.
    """
    region = task.dataset_config.region
    if region is None:
        return task
    sources = [
        source.changed(sha256=_sha256(source.checkpoint, f"{KEY}.{number}.checkpoint"))
        if source.checkpoint is not None and source.sha256 is None
        else source
        for number, source in enumerate(region.sources)
    ]
    return task.with_values(dataset_config={"region": region.changed(sources=sources)})


def _sha256(named: str, key: str) -> str | None:
    try:
        return seal(network_file(named))
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error
    except OSError as error:
        raise TaskError(key, f"{named} cannot be read ({error.strerror})", "check it") from error


def network_file(named: str) -> Path:
    """The checkpoint at a location; of a run folder, the best one.

    Raises:
        VolumeError: the location holds a variable that is not set.
    """
    path = Path(expand_location(named))
    if not path.is_dir():
        return path
    run = Run(path)
    watched, found = run.watched_best(), list(path.glob("*_best.pth"))
    if watched is not None:
        return watched.path
    return found[0] if len(found) == 1 else run.best
