"""Volume entries: labels stand beside the other keys in the file, under `labels` in a section."""

from typing import Any

from vcmodels.config.explain import unknown_key
from vcmodels.config.messages import Fault, KeyPath, listed, shown
from vcmodels.config.plain import as_list, as_object
from vcmodels.config.schema_walk import Schema
from vcmodels.config.values import VOLUME_KEYS


def fold_labels(task: dict[str, Any], schema: Schema) -> list[Fault]:
    """Gather the label keys of every volume entry under `labels`, in place.

    A label of null is left out: the volume lacks that target.

    Returns:
        A fault for each key that is neither a key of a volume, nor a target, nor what a target is
        derived from.
    """
    config = as_object(task.get("dataset_config")) or {}
    targets = as_object(config.get("targets"))
    sources = _sources(targets or {})
    names = list(dict.fromkeys([*(targets or ()), *sources]))
    faults: list[Fault] = []
    for index, entry in enumerate(as_list(config.get("volume_paths")) or []):
        block = as_object(entry)
        if block is not None:
            path = ("dataset_config", "volume_paths", index)
            if targets:
                faults += _unknown(block, path, schema, names, sources)
            _fold(block)
    return faults


def _sources(targets: dict[str, Any]) -> dict[str, str]:
    """By what they are derived from, the targets; no text is told by the validation."""
    blocks = {name: as_object(target) or {} for name, target in targets.items()}
    return {
        source: name
        for name, block in blocks.items()
        if isinstance(source := block.get("derive"), str)
    }


def _unknown(
    block: dict[str, Any], path: KeyPath, schema: Schema, names: list[str], sources: dict[str, str]
) -> list[Fault]:
    """Faults of keys that name nothing; both lists are told, as either may be what is wrong."""
    strange = [key for key in block if key not in VOLUME_KEYS and key not in names]
    labels = [key for key in block if key not in VOLUME_KEYS]
    faults: list[Fault] = []
    for key in strange:
        fault = unknown_key((*path, key), schema, [*VOLUME_KEYS, *names])
        found = (
            f"is no target and no key of a volume (targets: {listed(names)}, "
            f"labels of this volume: {listed(labels)})"
        )
        remedy = fault.remedy
        if fault.meant in sources and fault.meant not in block:
            derived = f"dataset_config.targets.{sources[fault.meant]}"
            remedy = f"did you mean {shown(fault.meant)}, which {derived} is derived from?"
        faults.append(Fault(fault.path, found, remedy))
    return faults


def _fold(block: dict[str, Any]) -> None:
    labels = {
        key: block.pop(key) for key in list(block) if key not in VOLUME_KEYS and key != "labels"
    }
    labels = {key: value for key, value in labels.items() if value is not None}
    block["labels"] = labels
