"""Trained networks, ready to predict: loaded from checkpoints, used on arrays in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams, Task, parse_task
from vcmodels.errors import CheckpointError, VolumeError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.inference.cost import Meter
from vcmodels.inference.ensemble import find_checkpoints, load_networks
from vcmodels.inference.job import make_pipeline, output_chunks, output_specs
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.request import (
    PREPARE,
    choose_targets,
    prepare_of,
    report_values,
    require_storable,
)
from vcmodels.inference.stream import predict_units
from vcmodels.inference.writing import Failures, Output
from vcmodels.reporting import Notes, Reporter
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing
from vcmodels.volumes import ArrayVolume

OF_ONE_RUN = (
    "input_path", "volumes", "level", "channel_axis", "axes", "channels", "index", "spacing", "bbox",
    "output_dir", "checkpoint_path", "ensemble", "device",
)  # fmt: skip
"""Keys of `inference_params` that are about one volume, its result, one machine or one choice of
checkpoints, as is `skip.mask`: another prediction with the same checkpoint does not take them over."""
ID_DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "int16", "int32")))
"""Types of the ids of classes that are not encoded: the first that holds all of them."""


@dataclass(frozen=True)
class Predictor:
    """One or several trained networks, whose predictions are averaged."""

    networks: tuple[TrainedNetwork, ...]

    @property
    def targets(self) -> dict[str, AnyTarget]:
        """What the first network has learnt, by name."""
        return self.networks[0].targets

    @property
    def patch(self) -> Shape:
        """The patch of the training, (z, y, x) in voxels."""
        return self.networks[0].patch

    @property
    def spacing(self) -> Spacing:
        """The voxel size of the training along (z, y, x)."""
        return self.networks[0].spacing

    @property
    def params(self) -> InferenceParams:
        """How the task in the first checkpoint predicts, without what is `OF_ONE_RUN`."""
        return self.task_with(()).inference_params

    def task_with(self, overrides: Sequence[str]) -> Task:
        """The task in the first checkpoint, to predict something else.

        Args:
            overrides: `dotted.key=value` lines, as for `load_task`.

        Raises:
            TaskError: an override is not valid.
        """
        record, first = self.networks[0].task.to_json(), self.networks[0]
        params = {k: v for k, v in record["inference_params"].items() if k not in OF_ONE_RUN}
        params["skip"].pop("mask")
        record["inference_params"] = params
        return parse_task(record, str(first.path), overrides, is_record=True)[0]

    def predict(
        self,
        array: np.ndarray | Tensor,
        *,
        spacing: Spacing | None = None,
        params: InferenceParams | None = None,
        encoded: bool = False,
        reporter: Reporter | None = None,
    ) -> dict[str, np.ndarray]:
        """Predict an array, as `predict_volume` predicts a file: with the same code, to the same bits.

        It is normalised, cut into overlapping patches (reflected at its end where it is smaller
        than one), and what the networks give is blended. Two things of a file have no counterpart:
        every voxel counts as stored, and where `skip.below` looks at chunks, those of an array have
        128 voxels a side.

        Args:
            array: (Z, Y, X), or (C, Z, Y, X) if the networks take several channels; numbers of any
                type, as in the volumes that were trained on, on their prepared grid if they had one.
            spacing: voxel size along (z, y, x), in the unit of the training; that of the training
                when None.
            params: how; by default as the checkpoint's task says. `output_targets` chooses targets;
                paths, chunks, levels and format of an output mean nothing here.
            encoded: return the codes that a file holds, in `output_type`.
            reporter: gets notes and progress; by default notes are warnings.

        Returns:
            By target, and by `<target>_uncertainty` if `params.uncertainty`: (Z, Y, X), or
            (S, Z, Y, X) for vectors, probabilities of classes and other kinds with channels. Values
            as float32, such as probabilities and unit vectors; ids of classes as the smallest
            integers that hold them. These are the values in a file of `output_type` float32; with
            `encoded`, the codes in one of that `output_type`. 0 outside of `bbox`.

        Raises:
            RefusedError: the array or the params do not fit the networks.
            RunError: the array holds NaN or infinity, a network gave them, or the memory is too small.
        """
        params, reporter = params or self.params, reporter or Notes()
        if prepare_of(self.networks) is not None:
            how = "an array says no orientation: it is taken as prepared; predict_volume prepares files"
            reporter.say(f"note: the network was trained with {PREPARE}; {how}")
        if not encoded:
            params = params.changed(output_type="float32")
        volume = ArrayVolume.of(_numbers(array), spacing or self.spacing, "array")
        targets = choose_targets(self.targets, self.networks[0], params)
        if encoded:
            require_storable(targets, params.dtype)
        specs = output_specs(targets, params)
        dtypes = {n: params.dtype if encoded else _value_dtype(spec) for n, spec in specs.items()}
        arrays = {n: ArrayInMemory(spec, dtypes[n], volume.extent) for n, spec in specs.items()}
        outputs = {n: Output(spec, arrays[n], dtypes[n]) for n, spec in specs.items()}
        chunks, shards = output_chunks(params, volume.extent)
        pipeline = make_pipeline(
            self.networks, (volume,), targets, params,
            block=shards or chunks,
            stored_bytes=sum(out.channels * out.dtype.itemsize for out in outputs.values()),
            reporter=reporter,
        )  # fmt: skip
        report_values((volume,), pipeline.whole.region, self.networks[0], reporter)
        pipeline.warm_up()
        failures = Failures(reporter)
        with reporter.bar("predict", pipeline.patches) as advance:
            predict_units(
                pipeline, pipeline.mine.units(), outputs, lambda *_boxes: None, failures,
                Meter(advance, reporter.record), lambda: False,
            )  # fmt: skip
        for reason in failures.reasons.values():
            raise reason
        return {name: array.result() for name, array in arrays.items()}


def load_predictor(*sources: str | Path, trust: bool = False) -> Predictor:
    """The networks of checkpoints; nothing else of their training has to be there.

    Args:
        sources: checkpoints, or run folders for the best in each (of a cross-validation, the best of
            each fold), or packages of other programs. Several are averaged.
        trust: let code in packages of others run; without it, none does.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    if not sources:
        raise CheckpointError("load_predictor", "got no checkpoint", "name one, or a run folder")
    paths = (path for source in sources for path in find_checkpoints(source))
    return Predictor(load_networks(paths, trust=trust))


class ArrayInMemory:
    """What is predicted of one target, kept in memory; a `BoxArray`."""

    location = "memory"

    def __init__(self, spec: OutputSpec, dtype: np.dtype, extent: Shape) -> None:
        """For a target that is given out as `dtype`: zeros."""
        channels = spec.output_channels(dtype)
        self.has_channels = channels is not None
        self.values = np.zeros((channels or 1, *extent), dtype)

    def write(self, box: Box, data: np.ndarray) -> None:
        self.values[(slice(None), *box.slices())] = data

    def sync(self, box: Box) -> None:
        """Nothing: memory needs none."""

    def result(self) -> np.ndarray:
        """(S, Z, Y, X), or (Z, Y, X) where the target is stored without channels."""
        return self.values if self.has_channels else self.values[0]


def _numbers(array: np.ndarray | Tensor) -> np.ndarray:
    """(C, Z, Y, X), without a copy where that can be."""
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    values = np.asarray(array)
    if values.ndim not in (3, 4) or values.dtype.kind not in "fiub" or not values.size:
        found = f"has shape {values.shape} and type {values.dtype}"
        raise VolumeError("array", found, "give numbers with axes (Z, Y, X) or (C, Z, Y, X)")
    return values if values.ndim == 4 else values[None]


def _value_dtype(spec: OutputSpec) -> np.dtype:
    """The type of values that are not encoded."""
    for dtype in ID_DTYPES if spec.is_categorical else ():
        try:
            spec.output_channels(dtype)
        except ValueError:
            continue
        return dtype
    return np.dtype(np.float32)
