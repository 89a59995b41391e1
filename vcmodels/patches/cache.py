"""The patch list as a JSON file, used again while nothing that determines it has changed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EEXIST
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.patches.find import (
    Candidates,
    PatchCriteria,
    PatchList,
    choose_patches,
    search_patches,
)
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.split import rows_inside
from vcmodels.reporting import Reporter, Silent, list_some
from vcmodels.volumes.places import read_json, write_atomic

SCHEMA = 1
LARGEST_BYTES = 1 << 30


class UnusableListError(Exception):
    """Why a cache cannot be used, in words for a person."""


def load_or_find_patches(
    task: Task,
    volumes: Sequence[TaskVolume],
    reporter: Reporter | None = None,
    candidates: Sequence[Candidates] | None = None,
) -> PatchList:
    """The patches of a task, from its cache when that is valid, else found again and cached.

    What was done, and why, is reported in one line. A cache that cannot be written is reported and
    changes nothing else. With `use_cache: false` the file is neither read nor written.

    Args:
        task: the resolved task.
        volumes: all its volumes.
        reporter: shows what was done.
        candidates: to find patches among, as from `survey`, when that was done already.

    Raises:
        TaskError: not one patch qualifies.
        ChunkError: a label chunk cannot be read.
    """
    criteria, reporter = PatchCriteria.of(task), reporter or Silent()

    def find() -> PatchList:
        if candidates is None:
            return search_patches(task, volumes, reporter)
        return choose_patches(candidates, criteria, Indexer.of(task, reporter))

    if not task.dataset_config.use_cache:
        reporter.say("finding patches: use_cache is false")
        return find()
    path, wanted = task.cache_file, fingerprint(criteria, volumes)
    try:
        patches, note = read_list(path, wanted, criteria.patch, volumes)
    except UnusableListError as reason:
        reporter.say(f"finding patches: {reason}")
    else:
        reporter.say(f"{len(patches.rows)} patches from {path}{note}")
        return patches
    patches = find()
    try:
        if path.exists() and not path.is_file():  # /dev/null, which a rename would replace
            raise FileExistsError(EEXIST, "is not a file")
        write_atomic(path, document(patches, wanted, volumes))
    except OSError as error:
        reporter.say(f"the patch list is not kept: {path}: {error.strerror}")
    return patches


def fingerprint(criteria: PatchCriteria, volumes: Sequence[TaskVolume]) -> dict[str, Any]:
    """All that determines the patch list, as JSON values that can be compared and named."""
    return {
        "patch_size": list(criteria.patch),
        "patch_stride": list(criteria.stride),
        "min_bbox_percent": criteria.min_bbox_percent,
        "min_labeled_ratio": criteria.min_labeled_ratio,
        "labeled_ratio_of": criteria.labeled_ratio_of,
        "origins count from": "the volume",  # once from the bbox
        "volumes": [
            {
                "input": volume.inputs[0].identity,
                "region": [list(volume.region.origin), list(volume.region.end)],
                "ref_label": volume.ref.identity if volume.ref else None,
                "label content": volume.ref.fingerprint() if volume.ref else None,
                "ignore_label": list(volume.ref_ignored),
                **({} if volume.labels else {"content": volume.inputs[0].fingerprint()}),
                **({"foreground": str(volume.ref_foreground)} if volume.ref_foreground else {}),
            }
            for volume in volumes
        ],
    }


def document(patches: PatchList, wanted: dict[str, Any], volumes: Sequence[TaskVolume]) -> bytes:
    """The file: readable at the top, the rows in one compact line."""
    head = {
        "schema": SCHEMA,
        "fingerprint": wanted,
        "patch_size": list(patches.patch_size),
        "volumes": [volume.name for volume in volumes],
        "sha256": patches.digest(),
    }
    text = json.dumps(head, indent=1, ensure_ascii=False)
    rows = json.dumps(patches.rows.tolist(), separators=(",", ":"))
    return f'{text[:-2]},\n "patches": {rows}\n}}\n'.encode()


def read_list(
    path: Path, wanted: dict[str, Any], patch: Shape, volumes: Sequence[TaskVolume]
) -> tuple[PatchList, str]:
    """The cached list and a note to show with it.

    Raises:
        UnusableListError: there is none, or it may not be used.
    """
    document = _parse(path)
    if isinstance(document, list):
        rows = _legacy_rows(document, path)
        _check_inside(rows, patch, volumes, path)
        return PatchList(patch, rows), " (a bare list: nothing tells whether it is up to date)"
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UnusableListError(f"{path} is no patch list of schema {SCHEMA}")
    found = document.get("fingerprint")
    if found != wanted:
        raise UnusableListError(f"{path} is out of date ({_difference(found, wanted)})")
    patches = PatchList(patch, read_rows(document.get("patches"), path))
    _check_inside(patches.rows, patch, volumes, path)
    if document.get("patch_size") != list(patch) or document.get("sha256") != patches.digest():
        raise UnusableListError(f"{path} was changed by hand or damaged")
    return patches, ""


def _parse(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():  # /dev/full can be read for ever
            raise UnusableListError(f"{path} is not a file")
        if path.stat().st_size > LARGEST_BYTES:
            raise UnusableListError(f"{path} is absurdly large")
        return read_json(path)
    except FileNotFoundError as error:
        raise UnusableListError(f"there is no {path} yet") from error
    except OSError as error:
        raise UnusableListError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UnusableListError(f"{path} is damaged ({type(error).__name__})") from error


def read_rows(value: object, path: Path) -> np.ndarray:
    """JSON rows as (n, 4) int64."""
    if not isinstance(value, list) or not value:
        raise UnusableListError(f"{path} holds no patches")
    try:
        rows = np.array(value)
    except (ValueError, OverflowError) as error:
        raise UnusableListError(f"{path} holds rows that are not four integers") from error
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 4:
        raise UnusableListError(f"{path} holds rows that are not four integers")
    return rows


def _legacy_rows(items: list[Any], path: Path) -> np.ndarray:
    """Rows of the original's bare list of {"volume_idx", "start_pos"}, sorted, each once."""
    try:
        rows = [[item["volume_idx"], *item["start_pos"]] for item in items]
    except (TypeError, KeyError) as error:
        raise UnusableListError(f"{path} is a list of something else than patches") from error
    return np.unique(read_rows(rows, path), axis=0)


def _check_inside(
    rows: np.ndarray, patch: Shape, volumes: Sequence[TaskVolume], path: Path
) -> None:
    """Every patch must lie in the used part of an existing volume (a thin one is padded)."""
    if rows[:, 0].min() < 0 or rows[:, 0].max() >= len(volumes):
        raise UnusableListError(f"{path} names volumes that the task does not have")
    inside = rows_inside(rows, patch, [volume.region for volume in volumes])
    if not inside.all():
        number, *origin = rows[~inside][0].tolist()
        place = Box(triple(origin), patch)
        raise UnusableListError(f"{path} holds {place}, which is outside of volume {number}")


def _difference(found: object, wanted: object, key: str = "") -> str:
    """The first few values in which two fingerprints differ."""
    return list_some(_differences(found, wanted, key), 3, between="; ") or "unknown reason"


def _differences(found: object, wanted: object, key: str) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(k for k in found if k not in wanted)]
        parts = [(f"{key}.{k}".lstrip("."), found.get(k), wanted.get(k)) for k in keys]
    elif isinstance(found, list) and isinstance(wanted, list) and key == "volumes":
        if len(found) != len(wanted):
            return [f"{len(found)} volumes, now {len(wanted)}"]
        parts = [
            (f"volumes[{i}]", f, w) for i, (f, w) in enumerate(zip(found, wanted, strict=True))
        ]
    elif found == wanted:
        return []
    elif key.endswith("label content"):
        return [f"{key} has changed"]
    else:
        return [f"{key} was {found}, now {wanted}"]
    return [difference for k, f, w in parts for difference in _differences(f, w, k)]


@dataclass(frozen=True)
class StoredPatches:
    """The patch list of a run as it is kept, whether or not it is up to date."""

    volumes: tuple[str, ...]
    """Names; none for a bare list."""
    patch: Shape | None
    rows: np.ndarray
    """(n, 4) int64: number of the volume, and origin along (z, y, x)."""

    def boxes(self, name: str, patch: Shape) -> list[Box]:
        """The patches of a volume.

        Args:
            name: of the volume.
            patch: their shape, for a list that does not say it.
        """
        numbers = [n for n, one in enumerate(self.volumes) if one == name]
        rows = self.rows[np.isin(self.rows[:, 0], numbers)]
        return [Box(triple(origin), self.patch or patch) for origin in rows[:, 1:].tolist()]


def stored_patches(path: Path, names: Sequence[str]) -> StoredPatches:
    """The patch list in a file, to look at.

    Args:
        path: of the file.
        names: of the volumes of the task, for a bare list.

    Raises:
        UnusableListError: there is none, or it is damaged.
    """
    document = _parse(path)
    if isinstance(document, list):
        return StoredPatches(tuple(names), None, _legacy_rows(document, path))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UnusableListError(f"{path} is no patch list of schema {SCHEMA}")
    size, volumes = document.get("patch_size"), document.get("volumes")
    if not isinstance(size, list) or len(size) != 3 or not isinstance(volumes, list):
        raise UnusableListError(f"{path} is damaged (its head)")
    rows = read_rows(document.get("patches"), path)
    return StoredPatches(tuple(map(str, volumes)), triple(map(int, size)), rows)
