"""The task file: one JSON object that says what is learnt from what, and predicted where."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from vcmodels.augment import DEFAULT_AUGMENTATIONS, AnyAugmentation
from vcmodels.augment.base import Axis
from vcmodels.augment.slices import in_plane
from vcmodels.config.cases import CaseSource
from vcmodels.config.evaluation_params import EvaluationParams
from vcmodels.config.inference_params import InferenceParams
from vcmodels.config.slices import SliceStack
from vcmodels.config.train_params import TrainingParams, ValidationParams
from vcmodels.config.values import (
    AxisIndex,
    BoundingBox,
    ChannelChoice,
    FileName,
    Location,
    Locations,
    StoredAxes,
    TargetName,
    VoxelSize,
)
from vcmodels.errors import RefusedError, TaskError, VolumeError
from vcmodels.metrics.base import Metrics, Sense
from vcmodels.metrics.choice import measured_metrics
from vcmodels.metrics.registry import volume_senses
from vcmodels.models import AnyModel
from vcmodels.postprocess import AnyStep
from vcmodels.prepare.section import Prepare
from vcmodels.regions.section import RegionConfig
from vcmodels.runs.run import Run, fold_name
from vcmodels.section import Fraction, PatchShape, Section
from vcmodels.targets import AnyTarget
from vcmodels.volumes.location import expand_location, is_remote
from vcmodels.volumes.places import cache_folder

Scheme = Literal["zscore", "ct", "minmax", "percentile", "none"]
Percentile = Annotated[float, Field(ge=0, le=100)]


class NormalizationConfig(Section):
    """How intensities become numbers of about unit size."""

    scheme: Scheme = "zscore"
    """`zscore`: mean 0, deviation 1; `ct`: the same after clipping to the percentiles; `minmax`:
    extremes to 0 and 1; `percentile`: percentiles to 0 and 1, clipped; `none`."""
    per: Literal["auto", "global", "volume", "patch"] = "auto"
    """Statistics over all training data (`global`, stored in the checkpoint), of each volume, or of
    each patch. `auto`: of each volume, unless the training volumes are in Hounsfield units or have
    the same mean and deviation; see [training](training.md#intensities)."""
    per_channel: bool = True
    """Own statistics for each input channel."""
    percentiles: tuple[Percentile, Percentile] = (0.5, 99.5)
    """Low and high percentile for `ct` and `percentile`."""

    @field_validator("percentiles")
    @classmethod
    def _require_order(cls, given: tuple[float, float]) -> tuple[float, float]:
        low, high = given
        if low >= high:
            raise ValueError(f"{low:g} and {high:g}: give the lower one first, as in [0.5, 99.5]")
        return given

    def idle_keys(self) -> Mapping[str, str]:
        if self.scheme == "none":
            return dict.fromkeys(("per", "per_channel", "percentiles"), 'scheme is "none"')
        clips = self.scheme in ("ct", "percentile")
        return {} if clips else {"percentiles": f'scheme "{self.scheme}" has no percentiles'}

    def completed(self, used: Self) -> Self:
        """The same with what was not given, or was left to the volumes, as it was used."""
        given = self.model_fields_set - ({"per"} if self.per == "auto" else set())
        return used.changed(**{name: getattr(self, name) for name in given})


SplitName = Literal["train", "val", "test"]


class SplitAttribute(Section):
    """The split of a volume, read from the volume itself."""

    attribute: Annotated[str, Field(min_length=1, max_length=256)]
    """Attribute, of the array or of the group around it, that says `train`, `val` or `test`."""


class GroupAttribute(Section):
    """The group of a volume, read from the volume itself."""

    attribute: Annotated[str, Field(min_length=1, max_length=256)]
    """Attribute, of the array or of the group around it, whose value is the group."""


PseudoWeight = Annotated[float, Field(gt=0, le=1)]


class PseudoLabel(Section):
    """A label that a network made."""

    weight: PseudoWeight = 1.0
    """How much it counts in the loss."""
    min_confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Voxels of which the network was less sure do not count: of a mask by the likelier side (0.5 to
    1), of classes by the likeliest. For predictions of vcmodels that hold probabilities."""


class VolumeEntry(Section):
    """One labelled volume, or many when its paths hold a `*`.

    In the file the label of each target stands under the target's name, next to these keys.
    """

    input: Locations
    """The image: a path or URL of an array or OME-Zarr group, or a file of another format, such as
    NIfTI, TIFF or HDF5; a list is stacked as channels."""
    labels: dict[str, Location] = Field(default_factory=dict)
    """Label array, or file, of each target that this volume has, or of what targets are derived
    from. A volume without any is of use for `tr_params.distill` and `consistency`."""
    pseudo: dict[str, PseudoWeight | PseudoLabel] = Field(default_factory=dict)
    """Which of these labels a network made, and how much each counts in the loss (0 to 1), or an
    object; none of them is validated against."""
    ref_label: str | None = None
    """Label that decides which patches are worth training on; all patches when null."""
    bbox: BoundingBox | None = None
    """The part to use, [[z0, z1], [y0, y1], [x0, x1]]; all of it when null."""
    split: SplitName | SplitAttribute | None = None
    """Train or validate on the whole volume, or keep it for `evaluate` alone (`test`), fixed or as
    its own attribute says; `tr_val_split` divides it when null."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """How often patches of this volume are drawn, relative to the others."""
    name: FileName | None = None
    """Name in messages and in `splits.json`; taken from the path when null."""
    group: Annotated[str, Field(min_length=1, max_length=256)] | GroupAttribute | None = None
    """What the volume is of, such as a patient: all volumes of one group train, or all validate, or
    all test."""
    cohort: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Where the volume is from, such as a site, a scanner or a disease: each has a row in the scores,
    and `balance` draws alike from all. Unlike a group it may be on both sides of a split."""
    level: Annotated[int, Field(ge=0, le=32)] = 0
    """Which level of OME-Zarr groups is read."""
    channel_axis: Literal["first", "last"] | None = None
    """Where the channels of 4D arrays are, if neither shape nor metadata tell."""
    axes: StoredAxes | None = None
    """What the stored axes are, a letter each such as `tczyx`: of all arrays with as many axes, or
    as {"input": "xyz", "LABEL": "zyx"}. Goes before what the store says."""
    channels: ChannelChoice | None = None
    """Channels of the input that are used, in this order; a list for each of several inputs. All
    when null."""
    index: AxisIndex = Field(default_factory=dict)
    """What is read of axes other than z, y, x and the input's channels, as {"t": 5}; {"c": 0} is of
    labels, and {"c": {"LABEL": 1}} of one of them."""
    spacing: VoxelSize | None = None
    """Voxel size along (z, y, x), if the store does not say it, or not rightly."""

    def pseudo_label(self, name: str) -> PseudoLabel | None:
        """What `pseudo` says of a label; None if it is none."""
        found = self.pseudo.get(name)
        return found if isinstance(found, PseudoLabel | None) else PseudoLabel(weight=found)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input locations, one or more."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


ClassWeight = Annotated[float, Field(ge=0, le=1e6)]


class SamplingConfig(Section):
    """How often a training draws which patches; every patch of a volume equally when left out."""

    foreground: Fraction = 0.33
    """Share of the draws that are made for what they hold, with `classes`, or any label; the others
    take every patch of the list alike."""
    classes: Literal["balanced"] | dict[str, ClassWeight] | None = None
    """How those draws divide among the labelled values: `balanced`, or as {value: weight}. A patch
    is drawn for a value in proportion to its voxels of it."""
    hard: Fraction = 0.0
    """Share of all draws that prefers the patches whose last loss was high; `foreground`, `classes`
    and the weights of volumes hold among those, too."""
    label: str | None = None
    """The label whose values are meant; when null each volume's `ref_label`, or without one the label
    of its only target."""

    def idle_keys(self) -> Mapping[str, str]:
        return dict.fromkeys(("classes", "label"), "foreground is 0") if not self.foreground else {}


class DatasetConfig(Section):
    """`dataset_config`: the data, the targets and how patches are chosen."""

    volume_paths: Annotated[list[VolumeEntry], Field(min_length=1, max_length=100_000)]
    """The labelled volumes: a list of entries; or a table or folder of cases, see
    [cohorts](cohorts.md), which may also stand in the list."""
    targets: Annotated[dict[TargetName, AnyTarget], Field(min_length=1, max_length=256)]
    """What is learnt, by name."""
    pseudo_in_val: bool = False
    """Validate against pseudo-labels, too, by their weight; else only against others."""
    normalization: NormalizationConfig = NormalizationConfig()
    """A scheme by name, or an object."""
    prepare: Prepare | None = None
    """Bring all volumes to one orientation, voxel size, part and scale of values before anything
    else, and results of `infer` back, see [prepare](prepare.md); as they are stored when null."""
    min_bbox_percent: Fraction = 0.95
    """Least share of a patch that the bounding box of its labelled voxels fills (0 to 1)."""
    min_labeled_ratio: Fraction = 0.05
    """Least share of labelled voxels in that box."""
    labeled_ratio_of: Literal["box", "patch"] = "box"
    """Whether `min_labeled_ratio` is a share of that box or of the whole patch."""
    patch_stride: PatchShape | None = None
    """Step between the origins of candidate patches, (z, y, x); half a patch when null."""
    slice_axis: Axis | None = None
    """Learn from slices across this axis: patches are one voxel thick along it, and no layer of the
    network mixes slices. Also meant by a `patch_size` that is 1 along one axis, and by `stack`; see
    [slices](slices.md)."""
    stack: SliceStack | None = None
    """Neighbouring slices as channels next to each slice (2.5D); it alone when null."""
    coordinates: bool = False
    """Three more channels, after all others: where each voxel lies in its volume along z, y and x, from
    -1 to 1; see [slices](slices.md#where-a-voxel-lies-as-channels)."""
    on_missing: Literal["fill", "error"] = "fill"
    """What a chunk of an input that is not stored is: `fill`, read as the fill value, or an error."""
    region: RegionConfig | None = None
    """Train and predict in a part of each volume, which is found first: around points, a mask, what
    another network finds, or by a heuristic; see [cascades](cascade.md). All of it when null."""
    use_cache: bool = True
    """Keep the patch list and reuse it while nothing that determines it has changed."""
    cache_file: Location | None = None
    """Where the patch list is kept; `<run folder>/patches.json` when null."""
    balance: Literal["cohort", "group"] | None = None
    """Draw patches from each cohort, or each group, equally often, however many volumes and patches it
    has; by the number of patches and the `weight` of volumes when null."""
    sampling: SamplingConfig | None = None
    """Draw patches with labels, of rare classes or with a high loss more often, see
    [patch finding](patch-finding.md)."""
    index_dir: Location | None = None
    """Where label indexes are kept for all tasks and runs; `~/.cache/vcmodels` when null."""

    def idle_keys(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if not self.use_cache:
            found |= dict.fromkeys(("cache_file", "index_dir"), "use_cache is false")
        if not any(volume.pseudo for volume in self.volume_paths):
            found["pseudo_in_val"] = "no volume has pseudo-labels"
        if all(volume.ref_label is None for volume in self.volume_paths):
            keys = ("min_bbox_percent", "min_labeled_ratio", "labeled_ratio_of")
            found |= dict.fromkeys(keys, "no volume has a ref_label, so that every patch counts")
        return found


class Task(Section):
    """A whole task file."""

    tr_params: TrainingParams
    """How the network is trained."""
    inference_params: InferenceParams = InferenceParams()
    """What is predicted, and where the result goes."""
    model: AnyModel = Field(alias="model_config")
    """The network."""
    dataset_config: DatasetConfig
    """The data and the targets."""
    augment: list[AnyAugmentation] = Field(default_factory=lambda: list(DEFAULT_AUGMENTATIONS))
    """Transforms for training: intensity first, then one resampling, then flips and turns, each in
    this order; [] for none. The default list mirrors and turns only by what the data do not refute,
    see [symmetry](symmetry.md)."""
    postprocess: tuple[AnyStep, ...] = ()
    """What is made of the predictions after `infer`: steps in order, each of which reads targets, or
    outputs of steps before it, and writes one more array beside them."""
    evaluation: EvaluationParams = EvaluationParams()
    """What is scored, and by which metrics."""
    overrides: list[str] = Field(default_factory=list)
    """What `--set` changed, recorded here; the values above already have it."""
    cases: list[CaseSource] = Field(default_factory=list[CaseSource])
    """Tables and folders that `volume_paths` named, recorded here; the entries above are theirs."""

    @property
    def heads(self) -> dict[str, int]:
        """Channels of the logits, by target."""
        return {name: target.channels for name, target in self.dataset_config.targets.items()}

    @property
    def augmentations(self) -> list[AnyAugmentation]:
        """`augment` as patches get it: slices are mirrored and turned in their plane alone."""
        axis = self.dataset_config.slice_axis
        return self.augment if axis is None else in_plane(self.augment, axis)

    @property
    def run_dir(self) -> Path:
        """The folder of the run, absolute."""
        return _local("tr_params.ckpt_out_base", self.tr_params.ckpt_out_base)

    @property
    def tensorboard_dir(self) -> Path:
        """Where TensorBoard events go, absolute: a folder of the run's name, which is shown there."""
        given = self.tr_params.tensorboard_log_dir
        if not given:
            return self.run_dir / "tensorboard" / self.tr_params.model_name
        # A folder for each run: in one that several share, each would hide the curves of the others.
        folder = _local("tr_params.tensorboard_log_dir", given)
        return folder / self.run_dir.name / self.tr_params.model_name

    @property
    def cache_file(self) -> Path:
        """Where the patch list is kept, absolute."""
        given = self.dataset_config.cache_file
        if given:
            return _local("dataset_config.cache_file", given)
        return Run(self.run_dir).patches

    @property
    def index_dir(self) -> Path:
        """Where label indexes are kept, absolute; not next to labels, which may be read-only."""
        given = self.dataset_config.index_dir
        if given:
            return _local("dataset_config.index_dir", given)
        return _local("XDG_CACHE_HOME", cache_folder())

    def with_values(self, **sections: Mapping[str, Any]) -> Self:
        """The task with other values of some keys, by section; they are not validated again."""
        return self.changed(
            **{name: getattr(self, name).changed(**values) for name, values in sections.items()}
        )

    @property
    def is_cross_validation(self) -> bool:
        """Whether the task is all folds of a cross-validation, and not one of them."""
        folds = self.tr_params.folds
        return folds is not None and folds.index is None

    def fold(self, index: int) -> Self:
        """The task of one fold: whatever it writes lies in a `fold_<index>` of what the task names.

        A task that is this fold already comes back as it is.

        Raises:
            TaskError: the task has no folds, or is another one of them.
            RefusedError: there is no such fold.
        """
        settings, config = self.tr_params, self.dataset_config
        folds, name = settings.folds, fold_name(index)
        if folds is None:
            raise TaskError("tr_params.folds", "is not set", 'give "folds": {"count": 5}')
        if index >= folds.count:
            found = f"there is no fold {index} of {folds.count}"
            raise RefusedError("--fold", found, f"give one from 0 to {folds.count - 1}")
        if folds.index is not None:
            if folds.index == index:
                return self
            found = f"is {folds.index}, and fold {index} is asked for"
            remedy = "remove it: each fold then has a folder"
            raise TaskError("tr_params.folds.index", found, remedy)
        cache = config.cache_file and PurePath(config.cache_file)
        return self.with_values(
            tr_params={
                "folds": folds.changed(index=index),
                "ckpt_out_base": _inside(settings.ckpt_out_base, name),
                "tensorboard_log_dir": _inside(settings.tensorboard_log_dir, self.run_dir.name),
            },
            dataset_config={"cache_file": cache and str(cache.with_stem(f"{cache.stem}.{name}"))},
            inference_params={
                key: _inside(getattr(self.inference_params, key), name)
                for key in ("output_dir", "tensorboard_log_dir")
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The resolved task as it could stand in a file, with every default filled in."""
        task = self.model_dump(mode="json", by_alias=True)
        for volume in task["dataset_config"]["volume_paths"]:
            volume.update(volume.pop("labels"))
        return task


def _inside(folder: str | None, name: str) -> str | None:
    return f"{folder.rstrip('/')}/{name}" if folder else None


def _local(key: str, text: str) -> Path:
    """A local path from the task file, expanded.

    Raises:
        TaskError: it is a URL, or holds a variable that is not set.
    """
    if is_remote(text):
        raise TaskError(key, f"{text} is a URL", "give a local folder")
    try:
        return Path(expand_location(text))
    except VolumeError as error:
        raise TaskError(key, error.found, error.remedy) from error


OF_VOLUMES = "val_volumes/"
"""How the names of the curves of whole volumes begin."""


def volume_metrics(
    targets: Mapping[str, AnyTarget], params: EvaluationParams | ValidationParams
) -> dict[str, Metrics]:
    """What whole volumes are scored by, by target.

    Raises:
        FaultError: a metric or an option that a target has not.
    """
    return {
        name: measured_metrics(target.stored_metrics, params.metrics.get(name))
        for name, target in targets.items()
    }


def volume_curves(
    targets: Mapping[str, AnyTarget], validation: ValidationParams
) -> dict[str, tuple[str, Sense]]:
    """The curves of whole volumes: the target of each, and whether less or more is better.

    Raises:
        FaultError: as for `volume_metrics`.
    """
    return {
        f"{OF_VOLUMES}{figure}_{name}": (name, sense)
        for name, metrics in volume_metrics(targets, validation).items()
        for figure, sense in volume_senses(metrics, targets[name].class_names).items()
    }


def epoch_curves(
    targets: Mapping[str, AnyTarget], validation: ValidationParams | None = None
) -> dict[str, Sense]:
    """Names of the curves of a run, and whether less or more of each is better.

    Those of `val/` have no value in a run without validation patches, those of `val_volumes/` only
    in some epochs.

    Args:
        targets: what is learnt, by name.
        validation: whether there are curves of whole volumes, and by which metrics.

    Raises:
        FaultError: as for `volume_metrics`.
    """
    found: dict[str, Sense] = {"val/loss": "min"}
    for name, target in targets.items():
        found |= {f"val/loss_{name}": "min", f"epoch/train_loss_{name}": "min"}
        found |= {f"val/{figure}_{name}": sense for figure, sense in target.figures.items()}
    if validation is not None and validation.whole_volumes:
        found |= {curve: sense for curve, (_, sense) in volume_curves(targets, validation).items()}
    return found
