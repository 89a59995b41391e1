"""Keys of a task that have no effect: given, other than their default, and used by nothing.

What a block knows of its own keys it says itself, in `Section.idle_keys`; what depends on other
sections stands here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from pydantic.fields import FieldInfo

from vcmodels.augment.base import ElasticAugmentation, LinearAugmentation
from vcmodels.config.messages import KeyPath, dotted
from vcmodels.config.task import Task
from vcmodels.config.train_params import TrainingParams
from vcmodels.section import Section
from vcmodels.targets import AnyTarget


def effect_notes(task: Task) -> list[str]:
    """A line for each key that is given and has no effect: first what blocks say of their own.

    Args:
        task: as parsed, before anything is filled in: what is given is told from what is not.
    """
    reasons = {**dict(_own_reasons((), task)), **_reasons_between(task)}
    given = set(_given((), task))
    return [
        f"{dotted(path)}: has no effect: {reason}"
        for path, reason in reasons.items()
        if path in given
    ]


def _own_reasons(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, str]]:
    """What every block says of its own keys, by their path."""
    for block, section in _sections(path, value):
        names = {name: _key(name, field) for name, field in type(section).model_fields.items()}
        for name, reason in section.idle_keys().items():
            yield (*block, names.get(name, name)), reason


def _given(path: KeyPath, value: object) -> Iterator[KeyPath]:
    """Paths of the values that the file gives and that are not the default."""
    for block, section in _sections(path, value):
        for name in section.model_fields_set:
            field = type(section).model_fields[name]
            default = field.get_default(call_default_factory=True, validated_data={})
            if getattr(section, name) != default:
                yield (*block, _key(name, field))


def _sections(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, Section]]:
    """Every block in a value, by its path, outermost first."""
    if isinstance(value, Section):
        yield path, value
        for name, field in type(value).model_fields.items():
            yield from _sections((*path, _key(name, field)), getattr(value, name))
    elif isinstance(value, Mapping):
        for key, inner in cast(Mapping[str, object], value).items():
            yield from _sections((*path, key), inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(cast(Sequence[object], value)):
            yield from _sections((*path, index), inner)


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _reasons_between(task: Task) -> dict[KeyPath, str]:
    """Keys that have no effect for what another section says."""
    settings, config = task.tr_params, task.dataset_config
    found: dict[KeyPath, str] = {}
    if not any(isinstance(a, LinearAugmentation | ElasticAugmentation) for a in task.augment):
        found["tr_params", "image_interpolation"] = "augment holds nothing that resamples"
    volumes = config.volume_paths
    fixed = settings.folds is None and all(volume.split is not None for volume in volumes)
    if fixed:
        reason = "every volume has a split of its own"
        keys = ("tr_val_split", "split_mode", "split_guard")
        found |= {("tr_params", key): reason for key in keys}
    is_divided = settings.tr_val_split < 1
    if settings.folds is None and not any(
        is_divided if volume.split is None else volume.split not in ("train", "test")
        for volume in volumes
    ):
        unused = (("max_val_steps_per_epoch",), ("calibrate",), ("validation", "whole_volumes"))
        found |= {("tr_params", *key): "nothing is validated" for key in unused}
    elif settings.validation.every > settings.max_epoch:
        reason = f"every is {settings.validation.every}, max_epoch {settings.max_epoch}"
        found["tr_params", "validation", "whole_volumes"] = reason
    if not any(target.predicts in ("masks", "classes") for target in config.targets.values()):
        found["tr_params", "calibrate"] = "no target is a mask or has classes"
    if config.balance == "cohort" and len({v.cohort for v in volumes if v.split != "test"}) < 2:
        found["dataset_config", "balance"] = "there is one cohort"
    drawn = [n for n, volume in enumerate(volumes) if volume.split != "test"]
    if len(drawn) == 1 and "*" not in volumes[drawn[0]].inputs[0]:
        path = ("dataset_config", "volume_paths", drawn[0], "weight")
        found[path] = "there is no other volume to draw from"
    for number in {*range(len(volumes))} - {*drawn}:
        for key in ("weight", "ref_label"):
            path = ("dataset_config", "volume_paths", number, key)
            found[path] = 'a volume of the split "test" is not trained on'
    for key in ("loss_only_on_label", "label_smoothing", "dilate_label", "ignore_label"):
        if not any(_takes(target, name, key, settings) for name, target in config.targets.items()):
            found["tr_params", key] = "every target has its own, or no use for it"
    return found


def _takes(target: AnyTarget, name: str, key: str, settings: TrainingParams) -> bool:
    """Whether a target takes a label key from `tr_params`.

    In a resolved task it repeats what it took.
    """
    if key not in {"ignore_label", *target.label_keys}:
        return False
    wanted = getattr(settings, key)
    if isinstance(wanted, Mapping):
        wanted = cast(Mapping[str, object], wanted).get(name)
    return wanted is not None and getattr(target, key) in (None, wanted)
