"""The network of a region's source, run on a volume: where its object is."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config.regions import KEY
from vcmodels.data.predictions import prediction_notes, writer_of
from vcmodels.data.regions import regions_folder
from vcmodels.devices import choose_amp, choose_device
from vcmodels.errors import RunError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.inference.predictor import Predictor
from vcmodels.inference.request import Request, RunOptions, with_section
from vcmodels.regions.find import SearchedVolume
from vcmodels.regions.section import RegionSource
from vcmodels.results import group_place
from vcmodels.stages import stage_network
from vcmodels.targets.base import Target
from vcmodels.volumes import Place, open_volume
from vcmodels.volumes.locks import FileLock


class Predicted(Protocol):
    """What is read of the report of a prediction."""

    @property
    def outputs(self) -> dict[str, Place]: ...
    @property
    def is_complete(self) -> bool: ...


@dataclass(frozen=True)
class Segmenter:
    """Runs the networks of sources, each loaded once; a `Segment`."""

    carriers: Sequence[Path]
    """Checkpoints that may carry the networks."""
    device: str | int
    predict: Callable[[Request, RunOptions], Predicted]
    """Makes the result of a request, or continues it."""
    options: RunOptions
    """Its reporter and `should_stop` are used."""
    _loaded: dict[str, TrainedNetwork] = field(default_factory=dict, repr=False)

    def __call__(
        self, source: RegionSource, scan: SearchedVolume
    ) -> Iterator[tuple[Box, np.ndarray]]:
        """The probability of the object, block by block, where anything was predicted.

        The prediction lies in the cache while it is made, so that the same call continues after a
        kill; it goes once it is read, or not wanted any more. Of several processes one at a time makes it.

        Raises:
            RefusedError: the volume does not fit the network.
            RunError: it was stopped, or failed on the way.
        """
        network = self._network(source)
        name = object_of(source, network)
        self.options.reporter.say(f"{scan.name}: looking for {name} with {source.checkpoint}")
        folder = regions_folder() / f"{self._digest(source, network, name, scan)}.zarr"
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.stem}.lock"), waits=True)
        try:
            report = self.predict(self._request(network, name, scan, folder), self._own_options())
            if not report.is_complete:
                raise RunError(scan.name, "stopped", "the same command continues")
            try:
                yield from _read(report.outputs[name], name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.close(delete=True)

    def _digest(
        self, source: RegionSource, network: TrainedNetwork, name: str, scan: SearchedVolume
    ) -> str:
        """Of all by which a prediction is continued, or refused as another one."""
        device = choose_device(self.device, "inference_params.device")
        amp = Predictor((network,)).params.amp
        parts = [
            [source.sha256, name],
            [[volume.fingerprint(), volume.shown] for volume in scan.inputs],
            [device.type, str(choose_amp(amp, device)), torch.get_num_threads()],
            [torch.__version__, version("vcmodels")],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    def _network(self, source: RegionSource) -> TrainedNetwork:
        key = str(source.sha256)
        if key not in self._loaded:
            self._loaded[key] = stage_network(source, self.carriers)
        return self._loaded[key]

    def _request(
        self, network: TrainedNetwork, name: str, scan: SearchedVolume, folder: Path
    ) -> Request:
        """The prediction of one target, as its own task predicts."""
        params = Predictor((network,)).params.changed(
            output_targets=[name],
            device=self.device,
            pyramid=0,
            output_type="np.uint8",
            output_zarr_format=2,
            output_shards=None,
            input_path=[volume.location for volume in scan.inputs],
        )
        return Request(
            networks=(network,),
            inputs=scan.inputs,
            output=group_place(str(folder)),
            params=params,
            targets=network.targets,
            record=with_section(network.task.to_json(), params),
            prepare=network.task.dataset_config.prepare,
            region=network.task.dataset_config.region,
            name=scan.name,
        )

    def _own_options(self) -> RunOptions:
        return RunOptions(reporter=self.options.reporter, should_stop=self.options.should_stop)


def object_of(source: RegionSource, network: TrainedNetwork) -> str:
    """The target of a network that is the object of a source.

    Raises:
        TaskError: there is no such target, it is no mask, or it is not said which one.
    """
    masks = [name for name, one in network.targets.items() if one.kind in ("binary", "multiclass")]
    name = source.target or (masks[0] if len(masks) == 1 else None)
    if name is None or name not in masks:
        found = f'"{name}" is no mask' if name else "it is not said which of its masks is meant"
        known = ", ".join(masks) or "none"
        raise TaskError(f"{KEY}.target", f"{found} of {source}", f"its masks are {known}")
    return name


def _read(place: Place, name: str) -> Iterator[tuple[Box, np.ndarray]]:
    """The probability in each stored block of a prediction."""
    volume = open_volume(f"{place}/0", key=name, channels="any")
    notes = prediction_notes(volume)
    assert notes is not None, "we wrote it"
    target = writer_of(notes["encoding"], volume)
    for box in volume.stored_blocks():
        yield box, _probability(target, volume.read(box))


def _probability(target: Target, stored: np.ndarray) -> np.ndarray:
    """(Z, Y, X): of the mask, or of all classes but the first."""
    values = target.decode(stored)
    return values[0] if target.kind_name == "binary" else 1 - values[0]
