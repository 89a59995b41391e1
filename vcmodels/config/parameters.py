"""The sections `tr_params` and `inference_params`."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vcmodels.augment import ImageInterpolation
from vcmodels.config.averaging import EnsembleParams, Tta
from vcmodels.config.recipes import (
    DEFAULT_RECIPE,
    EarlyStopping,
    Mixup,
    RecipeName,
    recipe_value,
)
from vcmodels.config.sampling import FoldConfig
from vcmodels.config.tracking import WandbConfig
from vcmodels.config.values import (
    Amp,
    BatchSize,
    BoundingBox,
    Compile,
    Device,
    FileName,
    IgnoreLabel,
    Location,
    Locations,
    Overlap,
    Steps,
    Workers,
)
from vcmodels.section import Fraction, PatchShape, Section

OutputType = Literal[
    "np.uint8", "np.uint16", "np.float16", "np.float32",
    "uint8", "uint16", "float16", "float32",
]  # fmt: skip

OUTPUT_DTYPES = {
    prefix + dtype.name: dtype
    for prefix in ("", "np.")
    for dtype in map(np.dtype, ("uint8", "uint16", "float16", "float32"))
}
"""What `output_type` means: looked up here, nothing in a task file is evaluated."""


class TrainingParams(Section):
    """`tr_params`: how the network is trained."""

    model_name: FileName
    """Name of the run: the first part of its checkpoint files."""
    given_patch_size: PatchShape | None = Field(default=None, alias="patch_size")
    """What the network sees in training, (z, y, x) in voxels; when null, the largest patch with which
    a step fits `memory_gb`, see [planning](planning.md)."""
    given_batch_size: BatchSize | None = Field(default=None, alias="batch_size")
    """Patches per step; when null, 2, or more where a planned patch covers the volumes."""
    memory_gb: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6)] = "auto"
    """GB (10^9 bytes) that a step is planned for; `auto` is 90 % of the CUDA device's memory, or a
    quarter of the machine's on the CPU, but at most what the network's preset is meant for."""

    tr_val_split: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the patches to train on, 1 for no validation; volumes with a `split` of their own
    are not divided."""
    split_mode: Literal["spatial", "random"] = "spatial"
    """`spatial` cuts a volume by a plane, with a guard band between the two sides, so that no
    validation voxel is seen in training; `random` draws patches, which may overlap."""
    split_guard: Annotated[int, Field(ge=0, le=65536)] | None = None
    """Width of the guard band in voxels; one patch length when null."""
    folds: FoldConfig | None = None
    """Cross-validation, see [cross-validation](cross-validation.md)."""
    patch_jitter: bool | Literal["qualifying"] = True
    """Shift the origin of a training patch at random, by up to half a stride; `qualifying`: by whole
    cells of the label index, and only to where the thresholds are met, too."""
    image_interpolation: ImageInterpolation = "linear"
    """How a rotation or warp resamples the image; `cubic` is sharper and, on the CPU, slower."""

    ignore_label: IgnoreLabel | dict[str, IgnoreLabel | None] | None = None
    """Stored value(s) that mean "do not count", for all targets or as {target: value}."""
    loss_only_on_label: bool = False
    """Count only voxels whose stored label is not zero, in every loss."""
    dilate_label: Annotated[int, Field(ge=0, le=64)] | bool = False
    """Grow mask labels by a ball of this radius in voxels; true is 1."""
    label_smoothing: Fraction = 0.0
    """Pull hard labels this far towards uniform in the training loss."""

    recipe: RecipeName = DEFAULT_RECIPE
    """What the keys from `optimizer` to `ema_decay` are when they are left out, see
    [recipes](recipes.md); the defaults shown here are those of `adamw_constant`."""
    optimizer: Literal["AdamW", "SGD", "Adam"] = recipe_value("optimizer")
    """SGD has Nesterov momentum; norms and biases get no weight decay."""
    initial_lr: Annotated[float, Field(gt=0, le=10)] = recipe_value("initial_lr")
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = recipe_value("weight_decay")
    """Decay of the weights, decoupled from the gradient for AdamW."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Of SGD; the others have betas 0.9 and 0.999."""
    scheduler: Literal["poly", "cosine", "constant"] = recipe_value("scheduler")
    """How the learning rate falls over all steps of the run, or that it stays."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = recipe_value("warmup_steps")
    """Steps over which the learning rate rises from zero."""
    gradient_clip: Annotated[float, Field(gt=0, le=1e9)] = recipe_value("gradient_clip")
    """Largest norm of the gradient of all weights together."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = recipe_value("ema_decay")
    """Largest decay per step of the averaged weights that validation and inference use, which cover
    at most the last ninth of the steps; null is off."""
    mixup: Mixup | None = None
    """Train on weighted means of two patches, see [recipes](recipes.md); null is off."""
    loss_balance: Literal["fixed", "uncertainty"] = "fixed"
    """How the losses of several targets are added: `fixed` takes the `weight` of each; `uncertainty`
    learns a factor beside it, which makes losses of any scale pull alike (Kendall et al. 2018). The
    validation loss, which chooses the best checkpoint, takes the fixed weights in both."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    """Batches whose gradients are averaged into one step."""

    max_steps_per_epoch: Steps = 500
    """Optimiser steps in an epoch."""
    max_val_steps_per_epoch: Steps = 25
    """Validation batches after an epoch."""
    max_epoch: Steps = 500
    """Epochs in the run; a learning rate that falls reaches its end with the last one."""
    max_minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Stop after this long, with a checkpoint; the same command continues."""
    best_metric: Annotated[str, Field(min_length=1, max_length=256)] = "val/loss"
    """The curve that says which checkpoint is the best, such as `val/dice_sheet`."""
    early_stopping: EarlyStopping | None = None
    """End the run before `max_epoch` when a curve has stopped improving; null is off."""

    checkpoint_path: Location | None = None
    """Start from this checkpoint instead of from random weights."""
    load_weights_only: bool | Literal["partial"] = False
    """Take only the weights from `checkpoint_path`: epoch 0, fresh optimiser and learning rate. Heads
    and decoders of targets that it lacks start anew, all else must fit; with `partial` whatever does
    not fit starts anew. What starts anew is told."""
    freeze: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=list)
    """Parts of the network that do not learn: beginnings of names of weights such as `encoder`,
    `encoder.levels.0` or `heads.sheet`."""
    freeze_epochs: Steps | None = None
    """Epochs after which these parts learn, too; never when null."""
    ckpt_out_base: Location = "checkpoints/"
    """The run folder: checkpoints, resolved task, patch list, splits and log."""
    save_every: Steps = 1
    """Epochs between the checkpoints that carry their epoch in the name."""
    keep_checkpoints: Annotated[int, Field(ge=0, le=100_000)] = 2
    """How many of those stay; the last and the best always do."""
    tensorboard_log_dir: Location | None = None
    """Where TensorBoard events go: into `<name of the run folder>/<model_name>` there;
    `<run folder>/tensorboard` when null."""
    wandb: WandbConfig | None = None
    """Weights & Biases, beside TensorBoard; off when null."""

    num_dataloader_workers: Workers = 4
    """Processes that read patches; 0 reads in the training process."""
    chunk_cache_gb: Literal["auto"] | Annotated[float, Field(ge=0, le=1e6)] = "auto"
    """GB of decoded chunks that the workers keep, all together, to decode none twice while they fit;
    `auto` keeps all when that takes at most 0.5 GB, else none."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda:0`, an index, or -1 for the CPU."""
    amp: Amp = "auto"
    """Precision of convolutions; `auto` takes bf16 where it is native, else fp16 on CUDA."""
    compile: Compile = "auto"
    """Compile the network; `auto` does when enough steps are left to repay it."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of torch on the CPU; all cores when null."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """All randomness is a function of this, the step and the sample."""

    @property
    def patch_size(self) -> PatchShape:
        """As given, or as planned once the volumes were opened."""
        assert self.given_patch_size is not None, "not planned yet"
        return self.given_patch_size

    @property
    def batch_size(self) -> int:
        """As given, or as planned once the volumes were opened."""
        assert self.given_batch_size is not None, "not planned yet"
        return self.given_batch_size


class Skip(Section):
    """`skip`: what is neither read nor predicted; nothing is written there."""

    fill: bool = True
    """Chunks that no input has stored."""
    below: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    """Chunks of the first input all of whose stored values, in every channel, are below this."""
    mask: Location | None = None
    """A volume that is 0 where nothing is wanted; of the input's shape, or coarser by whole factors."""


class InferenceParams(Section):
    """`inference_params`: what is predicted, and where the result goes."""

    input_path: Locations | None = None
    """The volume to predict; a list is stacked as channels, like the `input` of a volume."""
    input_format: Literal["zarr"] = "zarr"
    """Format of the input."""
    level: Annotated[int, Field(ge=0, le=32)] = 0
    """Which level of an OME-Zarr group is read."""
    channel_axis: Literal["first", "last"] | None = None
    """Where the channels of a 4D input are, if its metadata do not tell."""
    bbox: BoundingBox | None = None
    """The part to predict, [[z0, z1], [y0, y1], [x0, x1]]; all of it when null."""
    skip: Skip = Skip()
    """What is left out: chunks that are not stored, background, what a mask excludes."""

    output_dir: Location | None = None
    """Folder for the result, local or `s3://`; it may not lie inside an input."""
    output_format: Literal["zarr"] = "zarr"
    """Format of the output."""
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
    tta: Tta | None = None
    """Test-time augmentation: also predict each patch mirrored and turned, and write the mean."""
    uncertainty: bool = False
    """Also write `<target>_uncertainty`: how far views and checkpoints lie apart."""
    patch_size: PatchShape | None = None
    """(z, y, x) in voxels; that of the training when null."""
    overlap: Overlap = 0.25
    """Share of a patch that it has in common with the next, for all axes or (z, y, x)."""
    batch_size: BatchSize | None = None
    """Patches predicted together on a GPU, that of the training when null; always 1 on a CPU, where
    more are slower."""
    num_dataloader_workers: Workers | None = None
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
