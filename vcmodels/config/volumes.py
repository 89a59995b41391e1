"""Volume entries: in the file the labels stand beside the other keys, in a section under `labels`."""

from typing import Any, cast

from vcmodels.config.messages import Fault, Path, Schema, listed, unknown_key
from vcmodels.config.values import VOLUME_KEYS


def fold_labels(task: dict[str, Any], schema: Schema) -> list[Fault]:
    """Gather the label keys of every volume entry under `labels`, in place.

    A label of null is left out: the volume lacks that target.

    Returns:
        A fault for each key that is neither a key of a volume nor a target.
    """
    dataset = task.get("dataset_config")
    config = cast(dict[str, Any], dataset) if isinstance(dataset, dict) else {}
    entries, targets = config.get("volume_paths"), config.get("targets")
    faults: list[Fault] = []
    if not isinstance(entries, list):
        return faults
    for index, entry in enumerate(cast(list[object], entries)):
        if isinstance(entry, dict):
            block = cast(dict[str, Any], entry)
            path = ("dataset_config", "volume_paths", index)
            if isinstance(targets, dict) and targets:
                faults += _unknown(block, path, schema, list(cast(dict[str, Any], targets)))
            _fold(block)
    return faults


def _unknown(block: dict[str, Any], path: Path, schema: Schema, targets: list[str]) -> list[Fault]:
    """Faults of keys that name nothing; both lists are told, as either may be what is wrong."""
    strange = [key for key in block if key not in VOLUME_KEYS and key not in targets]
    labels = [key for key in block if key not in VOLUME_KEYS]
    faults: list[Fault] = []
    for key in strange:
        fault = unknown_key((*path, key), schema, [*VOLUME_KEYS, *targets])
        found = (
            f"is no target and no key of a volume (targets: {listed(targets)}; "
            f"labels of this volume: {listed(labels)})"
        )
        faults.append(Fault(fault.path, found.replace("; ", ", "), fault.remedy))
    return faults


def _fold(block: dict[str, Any]) -> None:
    labels = {
        key: block.pop(key) for key in list(block) if key not in VOLUME_KEYS and key != "labels"
    }
    labels = {key: value for key, value in labels.items() if value is not None}
    block["labels"] = labels
