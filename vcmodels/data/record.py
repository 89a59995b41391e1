"""What the volumes of a training hold, as its checkpoints keep it, and what has changed since."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vcmodels.data.task_volume import TaskVolume
from vcmodels.volumes.content import content_of, difference

DataRecord = list[dict[str, Any]]
"""JSON values: of each volume its name, key, spacing, and the content of each of its arrays."""


class Change(NamedTuple):
    """One array that is other than it was recorded."""

    key: str
    """The dotted key that names it."""
    what: str
    """Which it is, and how it differs, in words."""
    is_replaceable: bool
    """Whether a training can go on with it: it has as many voxels and channels as before."""


def record_of(volumes: Sequence[TaskVolume]) -> DataRecord:
    """What the volumes hold now; parts of one volume count once.

    Raises:
        RunError: a server does not answer.
    """
    known: dict[object, dict[str, Any]] = {}
    return [_of_volume(volume, known) for volume in _whole(volumes)]


def _whole(volumes: Sequence[TaskVolume]) -> list[TaskVolume]:
    """The first part of each volume: folds cut one into several, which share its arrays."""
    return list({id(volume.inputs): volume for volume in reversed(volumes)}.values())[::-1]


def identity_of(record: DataRecord) -> str:
    """A sha256 of what the arrays hold, wherever they are and whenever they were written."""
    fleeting = ("location", "stamps", "stamps_sha256")
    held = [
        [
            {k: v for k, v in array.items() if k not in fleeting}
            for array in volume["arrays"].values()
        ]
        for volume in record
    ]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def changes(before: Sequence[Any], now: DataRecord) -> Iterator[Change]:
    """The arrays that differ, volume by volume in their order.

    Args:
        before: from `record_of`, perhaps out of a file.
        now: from `record_of`.
    """
    for number, volume in enumerate(now):
        old = before[number] if number < len(before) else {}
        arrays = old.get("arrays", {})
        if old.get("spacing") != volume["spacing"]:
            what = f"spacing of {volume['name']} was {old.get('spacing')}, is {volume['spacing']}"
            yield Change(volume["key"], what, False)
        for name in {**volume["arrays"], **arrays}:
            was, found = arrays.get(name, {}), volume["arrays"].get(name, {})
            if words := _difference(was, found):
                alike = bool(was and found) and all(was.get(k) == found[k] for k in _SHAPE)
                key = f"{volume['key']}.{'input' if name.startswith('input ') else name}"
                yield Change(key, f"{name} of {volume['name']}: {words}", alike)
    if len(before) != len(now):
        what = f"there were {len(before)} volumes, and there are {len(now)}"
        yield Change("dataset_config.volume_paths", what, False)


_SHAPE = ("extent", "channels")


def _difference(was: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """As `difference`, of arrays of which one may not be there."""
    if not was or not found:
        return "it was not there" if found else "it is gone"
    return difference(was, found)


def count_moved(before: Sequence[Any], now: DataRecord) -> int:
    """How many arrays are other files than before, of records of the same content."""
    return sum(
        old["arrays"][name].get("stamps_sha256") != found["stamps_sha256"]
        for old, volume in zip(before, now, strict=True)
        for name, found in volume["arrays"].items()
    )


def with_names(volumes: Sequence[TaskVolume], before: Sequence[Any]) -> list[TaskVolume]:
    """The volumes, by the names that they have in a record of as many: splits know them by these."""
    pairs = zip(_whole(volumes), before, strict=True)
    names = {id(volume.inputs): (volume.name, str(old["name"])) for volume, old in pairs}
    return [_renamed(volume, *names[id(volume.inputs)]) for volume in volumes]


def _renamed(volume: TaskVolume, own: str, name: str) -> TaskVolume:
    return replace(volume, name=name + volume.name.removeprefix(own))


def _of_volume(volume: TaskVolume, known: dict[object, dict[str, Any]]) -> dict[str, Any]:
    """The record of one; arrays that others have, too, are looked at once."""
    arrays = {f"input {n}" if n else "input": array for n, array in enumerate(volume.inputs)}
    arrays |= volume.labels
    found = {}
    for name, array in arrays.items():
        key = array.identity
        if key not in known:
            known[key] = content_of(array)
        found[name] = known[key]
    spacing = list(volume.spacing)
    return {"name": volume.name, "key": volume.key, "spacing": spacing, "arrays": found}
