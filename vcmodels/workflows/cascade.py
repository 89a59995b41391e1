"""The regions of a task's volumes; a network that finds them runs on each volume once."""

from collections.abc import Sequence
from pathlib import Path

from vcmodels.config import Task
from vcmodels.data.regions import region_of
from vcmodels.data.volumes import open_volumes
from vcmodels.inference.predict import predict_request
from vcmodels.inference.request import RunOptions
from vcmodels.inference.segment import Segmenter
from vcmodels.regions.base import Region
from vcmodels.reporting import Reporter, Silent


def find_regions(
    task: Task, reporter: Reporter, carriers: Sequence[Path] = ()
) -> dict[str, Region]:
    """The region of each volume of a task, as training and evaluation will take it.

    What a network found is kept, and other commands only read it: this comes before them.

    Args:
        task: the resolved task; without `region` there is nothing to find.
        reporter: told what is found.
        carriers: checkpoints of the task, which may carry the networks.

    Returns:
        By the name of the volume, on the grid of its arrays as they are stored.

    Raises:
        RefusedError: a volume or a network does not fit, or nothing is found in a volume.
        RunError: a network failed on the way; the same call continues.
    """
    config = task.dataset_config.region
    if config is None:
        return {}
    plain = task.with_values(dataset_config={"region": None, "prepare": None})
    options = RunOptions(reporter=reporter)
    segment = Segmenter(carriers, task.inference_params.device, predict_request, options)
    return {
        one.name: region_of(config, one.name, one.inputs, one.labels, reporter, segment)
        for one in open_volumes(plain, Silent())
    }
