"""What must agree between targets, what they are derived from, and the labels of the volumes."""

from collections.abc import Iterator, Mapping, Sequence

from vcmodels.augment import AnyAugmentation
from vcmodels.augment.base import ElasticAugmentation, LinearAugmentation
from vcmodels.config.messages import Fault, listed, nearest, shown
from vcmodels.config.task import DatasetConfig
from vcmodels.config.values import check_target_name
from vcmodels.targets import AnyTarget


def derive_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Faults of `derive`: it names a stored label that is a mask or holds ids."""
    for name, target in config.targets.items():
        if target.derive is not None:
            found = _source_fault(target.derive, config)
            if found:
                path = ("dataset_config", "targets", name, "derive")
                yield Fault(path, *found)
                continue
            yield from _stored_too(name, target, config)


def _source_fault(source: str, config: DatasetConfig) -> tuple[str, str] | None:
    """What is wrong with a source, and what to do."""
    other = config.targets.get(source)
    if other is None:
        try:
            check_target_name(source)
        except ValueError as error:
            return f"{shown(source)} can be no label: {error}", "give the label another name"
    elif other.derive is not None:
        return f"{shown(source)} is itself derived", "derive from a label that is stored"
    elif other.stored_channels is not None:
        found = f"{shown(source)} of kind {shown(other.kind)} is no mask and holds no ids"
        return found, "derive from a label with one whole number for each voxel"
    labels = {name for volume in config.volume_paths for name in volume.labels}
    if source not in labels:
        guess = nearest(source, labels)
        remedy = f"did you mean {shown(guess)}?" if guess else f'add "{source}": path to a volume'
        return f"no volume has a label {shown(source)} (they have {listed(sorted(labels))})", remedy
    return None


def _stored_too(name: str, target: AnyTarget, config: DatasetConfig) -> Iterator[Fault]:
    """Faults of stored labels of a derived target: which of the two is meant is not guessed."""
    for index, volume in enumerate(config.volume_paths):
        if name in volume.labels:
            found = f"dataset_config.targets.{name} is derived from {shown(target.derive)}"
            remedy = "remove this path, or that derive"
            yield Fault(("dataset_config", "volume_paths", index, name), found, remedy)


def pseudo_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Faults of `pseudo`: it names labels of its volume, and leaves some to validate against."""
    for index, volume in enumerate(config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        derived = {
            name: target.derive
            for name, target in config.targets.items()
            if target.derive in volume.labels
        }
        for name in volume.pseudo:
            if name not in volume.labels and name not in derived:
                found, remedy = "is no label of this volume", f"it has {listed(volume.labels)}"
                yield Fault((*path, "pseudo", name), found, remedy)
        stored = [name for name in volume.labels if name in config.targets]
        labels = {**derived, **dict.fromkeys(stored, "")}
        are_pseudo = all({n, source} & volume.pseudo.keys() for n, source in labels.items())
        if volume.split == "val" and labels and are_pseudo:
            found = "all labels of this volume are pseudo-labels, which are not validated against"
            yield Fault((*path, "split"), found, 'give "train", or true labels')


def turn_faults(
    targets: Mapping[str, AnyTarget], augment: Sequence[AnyAugmentation]
) -> Iterator[Fault]:
    """Faults of labels that may be mirrored and turned, but that the list rotates or warps."""
    names = [a.name for a in augment if isinstance(a, LinearAugmentation | ElasticAugmentation)]
    for name, target in targets.items():
        if names and not target.turns_freely:
            found = f"a stored label of kind {shown(target.kind)} cannot follow {listed(names)}"
            remedy = f'give "derive": the ids it comes from, or take {listed(names)} out of augment'
            yield Fault(("dataset_config", "targets", name), found, remedy)
