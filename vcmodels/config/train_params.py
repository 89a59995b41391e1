"""The section `tr_params`, and the blocks in it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vcmodels.augment import ImageInterpolation
from vcmodels.config.evaluation_params import MetricChoices
from vcmodels.config.tracking import WandbConfig
from vcmodels.config.values import (
    BatchSize,
    Compile,
    Device,
    FileName,
    IgnoreLabel,
    Location,
    Steps,
    WorkerCount,
)
from vcmodels.errors import TaskError
from vcmodels.section import Amp, Fraction, PatchShape, Section

RecipeName = Literal["adamw_constant", "adamw_poly", "adamw_cosine", "sgd_poly"]
DEFAULT_RECIPE: RecipeName = "adamw_constant"

_ADAMW = {
    "optimizer": "AdamW",
    "initial_lr": 1e-3,
    "weight_decay": 1e-4,
    "warmup_steps": 50,
    "gradient_clip": 5.0,
}
RECIPES: Mapping[RecipeName, Mapping[str, str | float]] = {
    # Averaging over the last ninth of the steps does what a falling rate does (Shamir & Zhang 2013).
    "adamw_constant": {**_ADAMW, "scheduler": "constant", "ema_decay": 0.9999},
    "adamw_poly": {**_ADAMW, "scheduler": "poly", "ema_decay": 0.995},
    "adamw_cosine": {**_ADAMW, "scheduler": "cosine", "ema_decay": 0.995},
    # nnU-Net's (Isensee et al. 2021; nnUNetTrainer.py of its version 2).
    "sgd_poly": {
        "optimizer": "SGD",
        "initial_lr": 1e-2,
        "weight_decay": 3e-5,
        "warmup_steps": 0,
        "gradient_clip": 12.0,
        "scheduler": "poly",
        "ema_decay": 0.995,
    },
}
"""What keys of `tr_params` are when they are left out, by recipe."""


def recipe_value(key: str) -> Any:  # noqa: ANN401 (what pydantic's own `Field` returns)
    """A field whose default is what the section's `recipe`, a field before it, says."""

    def default(given: dict[str, Any]) -> str | float:
        return RECIPES[given.get("recipe", DEFAULT_RECIPE)][key]

    shown: dict[str, Any] = {"default": RECIPES[DEFAULT_RECIPE][key]}
    return Field(default_factory=default, json_schema_extra=shown)


class EarlyStopping(Section):
    """`early_stopping`: end the run when a curve has not improved for a while."""

    metric: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Name of the curve, such as `val/loss` or `val/dice_sheet`; `best_metric` when null."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Epochs without an improvement after which the run ends. An epoch in which the curve has no
    value is one without. Of curves `val_volumes/` only the epochs with their validation count."""
    min_delta: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """What is less than this better does not count as an improvement."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; `auto` knows it of every curve."""


class ValidationParams(Section):
    """`validation`: predict and score whole volumes in the middle of a training."""

    whole_volumes: bool = False
    """Every few epochs, predict what is held out of each volume as `infer` would, and score it as
    `evaluate` does: curves `val_volumes/<figure>_<target>`, see
    [training](training.md#whole-volumes)."""
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Epochs from one of these validations to the next."""
    metrics: MetricChoices = Field(default_factory=dict)
    """By target, which metrics, as in `evaluation.metrics`."""

    def idle_keys(self) -> Mapping[str, str]:
        keys = ("every", "metrics")
        return {} if self.whole_volumes else dict.fromkeys(keys, "whole_volumes is false")

    def is_due(self, epoch: int) -> bool:
        """Whether whole volumes are validated at the end of an epoch, counted from 1."""
        return self.whole_volumes and epoch % self.every == 0


class Mixup(Section):
    """`mixup`: train on weighted means of two patches."""

    alpha: Annotated[float, Field(gt=0, le=100)] = 0.2
    """The share of the first patch is drawn from Beta(alpha, alpha): small values draw shares near 0
    and 1, the value 1 draws all alike."""
    p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the batches that are mixed."""
    manifold: bool = False
    """Mix the image or, as often, the features of any level of the encoder (manifold mixup); false
    mixes the image alone."""


class DistillParams(Section):
    """`distill`: learn from trained networks as well, see [distillation](distillation.md)."""

    teachers: Annotated[list[Location], Field(min_length=1, max_length=64)]
    """Checkpoints. What several of them predict in the mean is learnt, of the targets that they all
    have."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor of the loss against the teachers, next to the loss against the labels."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Voxels of which the teachers are less sure teach nothing: of a mask by the likelier side (0.5 to
    1), of classes by the likeliest, of directions by how well several teachers agree."""


class ConsistencyParams(Section):
    """`consistency`: agree with the averaged weights where nothing is labelled.

    See [unlabelled](unlabelled.md).
    """

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor of its loss at the end of the ramp, next to the loss against the labels."""
    ramp_steps: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Steps over which the factor rises from nearly nothing; a quarter of the run when null."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = 0.8
    """Voxels of which the average is less sure teach nothing: of a mask by the likelier side (0.5 to
    1), of classes by the likeliest; all teach when null."""


class FoldConfig(Section):
    """A cross-validation, or one fold of it, in place of `tr_val_split`."""

    count: Annotated[int, Field(ge=2, le=100)] = 5
    """How many folds there are."""
    index: Annotated[int, Field(ge=0, le=99)] | None = None
    """The one fold that this run is: it validates on it, and trains on the others. When null, each
    fold is a run in a folder `fold_<index>` of `ckpt_out_base`."""
    by: Literal["volume", "group", "slab"] | None = None
    """Divide whole volumes (those of one `group` stay together), groups, or each volume into slabs
    with a guard band (`split_guard`) between, so that the folds hold about equally many labelled
    voxels. When null: whole ones if there are enough."""

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index is not None and self.index >= self.count:
            raise ValueError(f"index must be below count {self.count}, got {self.index}")
        return self


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
    """Width of the guard band in voxels, strictly; when null, one patch length, or a half or a quarter of
    one or none where that would leave less than four fifths of the wanted share to train on."""
    split_from: Location | None = None
    """Divide the volumes as another run does: its folder, or its `splits.json`, where volumes of
    these names are divided."""
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
    distill: DistillParams | None = None
    """Learn what trained networks predict, in labelled volumes and in those without labels; null is
    off."""
    consistency: ConsistencyParams | None = None
    """Learn to predict voxels without a label as the averaged weights predict them in another view, in
    labelled volumes and in those without labels; null is off."""
    loss_balance: Literal["fixed", "uncertainty"] = "fixed"
    """How the losses of several targets are added: `fixed` takes the `weight` of each; `uncertainty`
    learns a factor as well, which makes losses of any scale pull alike (Kendall et al. 2018). The
    validation loss, which chooses the best checkpoint, takes the fixed weights in both."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    """Batches whose gradients are averaged into one step."""

    max_steps_per_epoch: Steps = 500
    """Optimiser steps in an epoch."""
    max_val_steps_per_epoch: Steps = 25
    """Validation batches after an epoch."""
    validation: ValidationParams = ValidationParams()
    """Validation of whole volumes, next to that of patches; off when left out."""
    max_epoch: Steps = 500
    """Epochs in the run; a learning rate that falls reaches its end with the last one."""
    max_minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Stop after this long, with a checkpoint; the same command continues."""
    best_metric: Annotated[str, Field(min_length=1, max_length=256)] = "val/loss"
    """The curve that says which checkpoint is the best, such as `val/dice_sheet`."""
    early_stopping: EarlyStopping | None = None
    """End the run before `max_epoch` when a curve has stopped improving; null is off."""
    calibrate: bool = False
    """Fit a temperature for each head of masks or classes at each validation, and keep it with the
    weights: inference divides the logits by it, so that the probabilities are what they say."""

    checkpoint_path: Location | None = None
    """Start from this checkpoint instead of from random weights."""
    load_weights_only: bool | Literal["partial"] = False
    """Take only the weights from `checkpoint_path`: epoch 0, fresh optimiser and learning rate. Heads
    and decoders of targets that it lacks start again, all else must fit; with `partial` whatever does
    not fit starts again. What starts again is reported."""
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
    keep_unscored: Annotated[int, Field(ge=0, le=100_000)] = 10
    """How many more stay while a watcher (`evaluate RUN --watch`) has not scored them; without one
    none do."""
    tensorboard_log_dir: Location | None = None
    """Where TensorBoard events go: into `<name of the run folder>/<model_name>` there;
    `<run folder>/tensorboard` when null."""
    wandb: WandbConfig | None = None
    """Weights & Biases, next to TensorBoard; off when null."""

    num_dataloader_workers: WorkerCount = 4
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

    def idle_keys(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if self.optimizer != "SGD":
            found["momentum"] = f"the optimizer is {self.optimizer}; it is for SGD"
        if self.given_patch_size is not None:
            found["memory_gb"] = "patch_size is given; it is for a step that is planned"
        if self.folds is not None:
            keys = ("tr_val_split", "split_mode", "split_from")
            found |= dict.fromkeys(keys, "folds divide the volumes")
        elif self.split_from is not None:
            keys = ("tr_val_split", "split_mode", "split_guard")
            found |= dict.fromkeys(keys, "split_from divides the volumes")
        elif self.split_mode == "random":
            found["split_guard"] = 'it is for split_mode "spatial"'
        return found

    @property
    def learns_unlabelled(self) -> bool:
        """Whether volumes without labels are of use."""
        return self.distill is not None or self.consistency is not None

    @property
    def patch_size(self) -> PatchShape:
        """As given, or as planned once the volumes were opened.

        Raises:
            TaskError: neither.
        """
        if self.given_patch_size is None:
            raise _not_planned("patch_size")
        return self.given_patch_size

    @property
    def batch_size(self) -> int:
        """As given, or as planned once the volumes were opened.

        Raises:
            TaskError: neither.
        """
        if self.given_batch_size is None:
            raise _not_planned("batch_size")
        return self.given_batch_size


def _not_planned(key: str) -> TaskError:
    found = "is left out, and is planned where the volumes are opened"
    return TaskError(f"tr_params.{key}", found, "give one, or resolve the task first")
