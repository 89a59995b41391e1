"""Tables and folders of cases in the place of `volume_paths`: read, and put there as entries."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from vcmodels.cohorts.base import CaseList
from vcmodels.cohorts.bids import ROOT_FILE, BidsCases, read_bids
from vcmodels.cohorts.entries import Source, entries_of
from vcmodels.cohorts.folder import is_paired, read_folder
from vcmodels.cohorts.table import read_table
from vcmodels.config.messages import (
    Block,
    Fault,
    KeyPath,
    as_list,
    as_object,
    dotted,
    listed,
    nearest,
    shown,
    task_error,
)
from vcmodels.config.read import checked, read_text
from vcmodels.config.values import VOLUME_KEYS, Location
from vcmodels.errors import TaskError, VolumeError
from vcmodels.section import Section
from vcmodels.volumes.location import expand_location, is_remote

MAX_TABLE_BYTES = 64 * 2**20
OF_ONE = ("input", "name", "bbox")
"""Keys of an entry that are about one volume: those of a table or folder cannot share them."""
OF_TRAINING = ("ref_label", "weight")
SHARED = tuple(key for key in VOLUME_KEYS if key not in OF_ONE)
"""Keys that all cases of a table or folder may have in common."""
VOLUMES: KeyPath = ("dataset_config", "volume_paths")
Found = tuple[str, CaseList, Block]
"""A location as it was given, its cases, and the keys that they share."""


class CaseTable(Section):
    """A table of cases, or a folder with images and labels, and what its cases have in common."""

    cases: Location
    """A CSV file, or a folder in the manner of nnU-Net."""


class CaseSource(Section):
    """Where volumes came from."""

    source: str
    """As it was given."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the table, or of the listed paths."""
    volumes: Annotated[int, Field(ge=0)]
    """How many it gave."""


def read_cases(document: Block) -> list[str]:
    """Put entries in the place of each table or folder that `volume_paths` names, in place.

    What was read is recorded under `cases`.

    Returns:
        A line for each of them, and what a person should know of how it was read.

    Raises:
        TaskError: a table or folder cannot be read, or is not valid.
    """
    config = as_object(document.get("dataset_config")) or {}
    given = config.get("volume_paths")
    items = as_list(given)
    blocks = [given] if items is None else items
    if not any(_is_source(block) for block in blocks):
        return []
    targets = as_object(config.get("targets")) or {}
    paths: dict[int, KeyPath] = {
        number: (*VOLUMES, *([] if items is None else [number]))
        for number, block in enumerate(blocks)
        if _is_source(block)
    }
    found = {n: _read(blocks[n], path, label_names(targets)) for n, path in paths.items()}
    config["volume_paths"] = checked(_entries(blocks, found), VOLUMES)
    document["cases"] = [
        {"source": source, "sha256": cases.identity, "volumes": len(cases.cases)}
        for source, cases, _ in found.values()
    ]
    notes = list[str]()
    for number, (source, cases, _) in found.items():
        count = len(cases.cases)
        notes += [f"{dotted(paths[number])}: {count} volumes from {source}", *cases.notes]
    return notes


def _entries(blocks: Sequence[object], found: Mapping[int, Found]) -> list[object]:
    """The blocks, with the entries of each source in its place."""
    sources = [_source(*one) for one in found.values()]
    of_source = dict(zip(found, entries_of(sources), strict=True))
    entries = list[object]()
    for number, block in enumerate(blocks):
        if number in found:
            shared = found[number][2]
            entries += [_with_shared(entry, shared) for entry in of_source[number]]
        else:
            entries.append(block)
    return entries


def _source(place: str, cases: CaseList, shared: Block) -> Source:
    cohort = shared.get("cohort")
    return Source(
        cases,
        os.path.realpath(expand_location(place)),
        cohort if isinstance(cohort, str) else None,
        shared.get("group") is not None,
    )


def _with_shared(entry: Block, shared: Block) -> Block:
    """An entry with what all have in common; of a volume for testing, without what training takes."""
    found = {**shared, **entry}
    if found.get("split") == "test":
        found = {k: v for k, v in found.items() if k in entry or k not in OF_TRAINING}
    return found


def label_names(targets: Block) -> list[str]:
    """The labels that volumes may have: of targets, or what these are derived from."""
    blocks = {name: as_object(target) or {} for name, target in targets.items()}
    sources = [block.get("derive") for block in blocks.values()]
    stored = [name for name, block in blocks.items() if block.get("derive") is None]
    return list(dict.fromkeys([*stored, *(s for s in sources if isinstance(s, str))]))


def _is_source(block: object) -> bool:
    return isinstance(block, str) or not {"cases", "bids"}.isdisjoint(as_object(block) or {})


def _read(block: object, path: KeyPath, names: Sequence[str]) -> Found:
    """The location as it was given, the cases, and the keys that they share."""
    keys = {"cases": block} if isinstance(block, str) else dict(as_object(block) or {})
    kind = BidsCases if "bids" in keys else CaseTable
    own = {key: keys.pop(key) for key in list(keys) if key in kind.model_fields}
    _refuse_unknown(keys, [*kind.model_fields, *SHARED], path)
    try:
        wanted = kind.model_validate_json(json.dumps(own))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = Fault((*path, *first["loc"]), first["msg"].lower(), "correct it")
        raise task_error([fault]) from error
    if isinstance(wanted, BidsCases):
        for name in wanted.labels:
            if name not in names:
                found = f"is no label of the task (it has {listed(names)})"
                raise task_error([Fault((*path, "labels", name), found, "name one of them")])
        place = _local(wanted.bids, path)
        return wanted.bids, read_bids(wanted, place, wanted.bids), keys
    return wanted.cases, _table(wanted.cases, path, names), keys


def _refuse_unknown(keys: Block, known: Sequence[str], path: KeyPath) -> None:
    for key in keys:
        if key not in known:
            guess = nearest(key, known)
            remedy = f"did you mean {shown(guess)}?" if guess else f"give some of {listed(known)}"
            raise task_error([Fault((*path, key), "is no key of a table of cases", remedy)])


def _table(source: str, path: KeyPath, names: Sequence[str]) -> CaseList:
    place = _local(source, path)
    if not place.is_dir():
        text = read_text(Path(expand_location(source)), MAX_TABLE_BYTES)
        return read_table(text, source, str(place.parent), names)
    if is_paired(place):
        return read_folder(place, source, names)
    if (place / ROOT_FILE).is_file():
        found = f"{source} is a BIDS data set, and does not say which of its files are meant"
        remedy = 'give {"bids": folder, "input": "T2w", "labels": {"cord": "label-SC_mask"}}'
        raise TaskError(dotted(path), found, remedy)
    found = f"{source} is a folder without imagesTr or images in it"
    raise TaskError(dotted(path), found, "name a CSV file, or give volumes with a * in their paths")


def _local(source: str, path: KeyPath) -> Path:
    """A local path as it was given: what is in it lies relative to where that does."""
    if is_remote(source):
        raise TaskError(dotted(path), f"{source} is a URL", "copy the table to a local file")
    try:
        place = Path(expand_location(source))
    except VolumeError as error:
        raise TaskError(dotted(path), error.found, error.remedy) from error
    if not place.exists():
        raise TaskError(dotted(path), f"{source} is not there", "correct the path")
    return Path(source) if Path(source).exists() else place
