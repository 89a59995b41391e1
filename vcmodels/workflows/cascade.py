"""Regions that a network finds: it runs on each volume once, before anything else is done there."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task
from vcmodels.config.regions import KEY
from vcmodels.data.predictions import prediction_notes, writer_of
from vcmodels.data.regions import region_of, regions_folder
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RunError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.inference.predict import predict_volume
from vcmodels.inference.predictor import Predictor
from vcmodels.inference.request import RunOptions
from vcmodels.regions.base import Region
from vcmodels.regions.find import Scan
from vcmodels.regions.section import RegionSource
from vcmodels.reporting import Reporter, Silent
from vcmodels.stages import stage_network
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume, open_volume


def find_regions(
    task: Task, reporter: Reporter, carriers: Sequence[Path] = ()
) -> dict[str, Region]:
    """The region of each volume of a task; a network that finds it runs, unless it has before.

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
    segment = Segmenter(carriers, task.inference_params.device, reporter)
    return {
        volume.name: region_of(config, volume.name, volume.inputs, volume.labels, reporter, segment)
        for volume in open_volumes(plain, Silent())
    }


@dataclass(frozen=True)
class Segmenter:
    """Runs the networks of sources, and gives the probability of their object."""

    carriers: tuple[Path, ...]
    """Checkpoints that may carry the networks."""
    device: str | int
    reporter: Reporter
    should_stop: Callable[[], bool] = lambda: False

    @cached_property
    def _loaded(self) -> dict[str, TrainedNetwork]:
        return {}

    def network(self, source: RegionSource) -> TrainedNetwork:
        """The network of a source, loaded once."""
        key = str(source.sha256)
        if key not in self._loaded:
            self._loaded[key] = stage_network(source, self.carriers)
        return self._loaded[key]

    def __call__(self, source: RegionSource, scan: Scan) -> Iterator[tuple[Box, np.ndarray]]:
        """The probability of the object, block by block, where anything is predicted.

        The prediction is kept while it is made, so that the same call continues after a kill.

        Raises:
            RefusedError: the volume does not fit the network.
            RunError: it was stopped, or failed on the way.
        """
        network = self.network(source)
        name = object_of(source, network)
        digest = "-".join(volume.fingerprint()[:16] for volume in scan.inputs)
        folder = regions_folder() / f"{digest}-{str(source.sha256)[:16]}.zarr"
        self.reporter.say(f"{scan.name}: finding {name} with {source.checkpoint}")
        volume, target = self._predicted(network, name, scan, folder)
        for box in volume.stored_blocks():
            yield box, _probability(target, volume.read(box))
        shutil.rmtree(folder, ignore_errors=True)

    def _predicted(
        self, network: TrainedNetwork, name: str, scan: Scan, folder: Path
    ) -> tuple[Volume, Target]:
        predictor = Predictor((network,))
        params = predictor.params.changed(
            output_targets=[name], device=self.device, pyramid=0, output_type="np.uint8"
        )
        options = RunOptions(reporter=self.reporter, should_stop=self.should_stop)
        report = predict_volume(predictor, scan.inputs, folder, params, options)
        if not report.is_complete:
            raise RunError(scan.name, "stopped", "the same command continues")
        volume = open_volume(f"{report.outputs[name]}/0", key=name, channels="any")
        notes = prediction_notes(volume)
        assert notes is not None, "we wrote it"
        return volume, writer_of(notes["encoding"], volume)


def object_of(source: RegionSource, network: TrainedNetwork) -> str:
    """The target of a network that is the object of a source.

    Raises:
        TaskError: there is no such target, it is no mask, or it is not said which one.
    """
    masks = [name for name, one in network.targets.items() if one.kind in ("binary", "multiclass")]
    name = source.target or (masks[0] if len(masks) == 1 else None)
    if name not in masks:
        found = f'"{name}" is no mask' if name else "it is not said which of its masks is meant"
        known = ", ".join(masks) or "none"
        raise TaskError(f"{KEY}.target", f"{found} of {source}", f"its masks are {known}")
    return name


def _probability(target: Target, stored: np.ndarray) -> np.ndarray:
    """(Z, Y, X): of the mask, or of all classes but the first."""
    values = target.decode(stored)
    return values[0] if target.kind_name == "binary" else 1 - values[0]
