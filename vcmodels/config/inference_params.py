"""The section `inference_params`, and the blocks in it."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.augment.geometric import Axes, Plane
from vcmodels.config.tracking import WandbConfig
from vcmodels.config.values import (
    AxisIndex,
    BatchSize,
    BoundingBox,
    ChannelChoice,
    Compile,
    Device,
    Location,
    Locations,
    Overlap,
    StoredAxes,
    VolumeChoice,
    VoxelSize,
    WorkerCount,
)
from vcmodels.errors import FaultError
from vcmodels.geometry.grid import Window
from vcmodels.section import Amp, PatchShape, Section


class Tta(Section):
    """`tta`: views of each patch, which are predicted, turned back and averaged."""

    flips: Axes = ()
    """Axes that are mirrored, by name."""
    quarter_turns: bool | tuple[Plane, ...] = False
    """Turns by 90 degrees in all planes, or in these, such as [["y", "x"]]; by 180 only where the two
    axes differ in voxel size or patch length."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.flips and not self.quarter_turns:
            raise FaultError("names no view", "give flips or quarter_turns, or null")
        return self


class EnsembleParams(Section):
    """`ensemble`: how several checkpoints are averaged."""

    by: Literal["mean", "variance"] = "mean"
    """`variance`: a checkpoint counts less where its own views disagree; needs `tta`."""
    weights: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)] | None = (
        None
    )
    """Of the checkpoints, in their order, for `mean`; all alike when null."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.by == "variance" and self.weights is not None:
            raise FaultError('weights are for "by": "mean"', "leave them out")
        return self


OutputType = Literal[
    "np.uint8", "np.uint16", "np.float16", "np.float32",
    "uint8", "uint16", "float16", "float32",
]  # fmt: skip


OutputFormat = Literal["zarr", "nifti", "tiff", "dicom-seg", "hdf5"]

OUTPUT_DTYPES = {
    prefix + dtype.name: dtype
    for prefix in ("", "np.")
    for dtype in map(np.dtype, ("uint8", "uint16", "float16", "float32"))
}
"""What `output_type` means: looked up here, nothing in a task file is evaluated."""


class Skip(Section):
    """`skip`: what is neither read nor predicted; nothing is written there."""

    fill: bool = True
    """Chunks that no input has stored."""
    below: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    """Chunks of the first input all of whose stored values, in every channel, are below this."""
    mask: Location | None = None
    """A volume, or file, that is 0 where nothing is wanted; of the input's shape, or coarser by whole
    factors."""


class InferenceParams(Section):
    """`inference_params`: what is predicted, and where the result goes."""

    input_path: Locations | None = None
    """The volume, or file, to predict; a list is stacked as channels, like the `input` of a volume. A `*`
    expands to many volumes, which get a result each, as for `volume_paths`."""
    volumes: VolumeChoice | None = None
    """Predict labelled volumes of the task instead, each as its entry says and into a result of its
    own: `val`, what a run held out or `split` says, `test`, `all`, or a list of names."""
    input_format: Literal["zarr"] = "zarr"
    """Format of the input."""
    level: Annotated[int, Field(ge=0, le=32)] = 0
    """Which level of an OME-Zarr group is read."""
    channel_axis: Literal["first", "last"] | None = None
    """Where the channels of a 4D input are, if its metadata do not tell."""
    axes: StoredAxes | None = None
    """What the stored axes are, as for a volume; {"input": "xyz", "mask": "zyx"} is of each."""
    channels: ChannelChoice | None = None
    """Channels that are used, in this order, as for a volume; all when null."""
    index: AxisIndex = Field(default_factory=dict)
    """What is read of axes other than z, y, x and the channels, as {"t": 5}; {"c": 0} is of the
    mask."""
    spacing: VoxelSize | None = None
    """Voxel size along (z, y, x), if the store does not say it, or not rightly."""
    bbox: BoundingBox | None = None
    """The part to predict, [[z0, z1], [y0, y1], [x0, x1]]; all of it when null."""
    on_missing: Literal["fill", "error"] = "fill"
    """What a chunk of the input that is not stored is: `fill`, left out (`skip.fill`) or read as the
    fill value, or an error."""
    skip: Skip = Skip()
    """What is left out: chunks that are not stored, background, what a mask excludes."""

    output_dir: Location | None = None
    """Folder for the result, local or `s3://`; it may not lie inside an input. The result is
    `<model_name>.zarr` in it; of many volumes, each is `<model_name>/<name of the volume>.zarr`."""
    output_format: OutputFormat = "zarr"
    """Besides the Zarr, write each output as a file next to it, `<result>_<target>.nii.gz`, `.ome.tif`,
    `.seg.dcm` or `.h5`, on the grid and with the header of the input: [export](export.md)."""
    output_type: OutputType = "np.uint8"
    """Stored type. Integers are scaled by one fixed rule for each kind, written as attributes."""
    output_targets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Names of the targets to write."""
    output_zarr_format: Literal[2, 3] = 2
    """Version of the Zarr format that is written."""
    output_chunks: PatchShape | None = None
    """Chunk shape of the output; 128 voxels a side when null."""
    output_shards: PatchShape | None = None
    """Voxels in a file of the output: whole numbers of chunks along each axis; null for a file each.
    Needs `output_zarr_format` 3."""

    pyramid: Literal["auto"] | Annotated[int, Field(ge=0, le=16)] | None = "auto"
    """How many coarser levels viewers get, each half as fine as the one before: `auto` is until one
    chunk holds a level, 0 or null none."""

    checkpoint_path: Locations | None = None
    """The trained network; the best of the run folder when null. Several are an ensemble, of which
    the mean is written."""
    ensemble: EnsembleParams = EnsembleParams()
    """How several checkpoints are averaged."""
    tta: Tta | Literal["auto"] | None = None
    """Test-time augmentation: also predict each patch mirrored and turned, and write the mean. `auto`
    mirrors along every axis for which the data of the training do, see [symmetry](symmetry.md)."""
    uncertainty: bool = False
    """Also write `<target>_uncertainty`: how far views and checkpoints lie apart."""
    patch_size: PatchShape | None = None
    """(z, y, x) in voxels; that of the training when null."""
    overlap: Overlap = 0.25
    """Share of a patch that it has in common with the next, for all axes or (z, y, x)."""
    window: Window = "hann"
    """How patches blend: `hann`, or `gaussian` with patches that are spread evenly, as nnU-Net has it."""
    batch_size: BatchSize | None = None
    """Patches predicted together on a GPU, that of the training when null; always 1 on a CPU, where
    more are slower."""
    num_dataloader_workers: WorkerCount | None = None
    """Threads that read the input; that of the training when null."""
    device: Device = "auto"
    """As in `tr_params`."""
    amp: Amp = "auto"
    """Precision; `auto` takes bf16 or fp16 on CUDA, and on a CPU with native bf16 that for `uint8`
    output, whose steps are coarser than its error; else float32."""
    compile: Compile = "auto"
    """Compile the network; `auto` does on a GPU when the patches are many enough to repay it."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of torch on the CPU, in each process; all cores when null, shared among processes."""
    memory: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6)] = "auto"
    """GB for accumulators, input and output of a process; more saves patches that are predicted
    twice. `auto` is a quarter of the machine's memory, 4 at most."""

    tensorboard_log_dir: Location | None = None
    """Show slices of the prediction in TensorBoard while it is made: into `<model_name>` there, and of
    many volumes into a folder each in it; off when null."""
    wandb: WandbConfig | None = None
    """Send these slices to Weights & Biases, too; off when null."""

    def idle_keys(self) -> Mapping[str, str]:
        if self.volumes is None:
            return {}
        keys = ("input_path", "level", "channel_axis", "axes", "channels", "index", "spacing")
        return dict.fromkeys(keys, "volumes chooses what is predicted, and how it is read")

    @property
    def input_paths(self) -> tuple[str, ...]:
        """The paths of `input_path`, none, one or more."""
        if self.input_path is None:
            return ()
        return (self.input_path,) if isinstance(self.input_path, str) else tuple(self.input_path)

    @property
    def is_pattern(self) -> bool:
        """Whether `input_path` stands for many volumes."""
        return any("*" in path for path in self.input_paths)

    @property
    def is_many(self) -> bool:
        """Whether the results are those of many volumes, each with a name."""
        return self.volumes is not None or self.is_pattern

    @property
    def dtype(self) -> np.dtype:
        """The type that `output_type` names."""
        return OUTPUT_DTYPES[self.output_type]

    @property
    def overlaps(self) -> tuple[float, float, float]:
        """The overlap along (z, y, x)."""
        if isinstance(self.overlap, tuple):
            return self.overlap
        return (self.overlap, self.overlap, self.overlap)
