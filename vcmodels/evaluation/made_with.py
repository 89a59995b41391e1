"""Which checkpoints the scored results were made with, and what has changed since."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vcmodels.evaluation.report import REPORT
from vcmodels.reporting import list_some
from vcmodels.results import our_attributes
from vcmodels.runs.run import seal
from vcmodels.volumes import Place

MOST_NAMED = 3


def made_with(roots: Iterable[Place]) -> dict[str, Any]:
    """What a report says of the results that it scores, as JSON values.

    Args:
        roots: groups of results; each counts once.

    Returns:
        `checkpoints`: path and sha256 of each, of an ensemble lists of them, as results note them;
        `results_sha256`: a digest of all that determined the voxels.
    """
    checkpoints: dict[str, Any] = {}
    digest = hashlib.sha256()
    for root in dict.fromkeys(roots):
        noted = our_attributes(root)
        manifest = noted.get("manifest", {})
        one = {
            "path": noted.get("provenance", {}).get("checkpoint"),
            "sha256": manifest.get("checkpoint_sha256"),
        }
        checkpoints.setdefault(json.dumps(one), one)
        digest.update(json.dumps(manifest, sort_keys=True).encode())
    return {"checkpoints": list(checkpoints.values()), "results_sha256": digest.hexdigest()}


def changed_checkpoints(made: Mapping[str, Any]) -> Iterator[str]:
    """The paths of checkpoints that hold other weights now than when they predicted.

    One that is not there any more is left out, and so is one that cannot be read.

    Args:
        made: as from `made_with`.
    """
    for one in made["checkpoints"]:
        known = _each(one["sha256"])
        for path in _each(one["path"]):
            if (now := _seal(path)) is not None and now not in known:
                yield path


def replaced_report(folder: Path, made: Mapping[str, Any]) -> str | None:
    """In words, what the report in a folder scored, where that are other results; else None.

    Args:
        folder: where the next report goes; it may be missing.
        made: of the next one, as from `made_with`.
    """
    try:
        before = json.loads((folder / REPORT).read_text())["provenance"]
        time, checkpoints = before["time"], before["checkpoints"]
        scored, digest = _shown(checkpoints), before.get("results_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or of two arrays, or of another version
    if checkpoints != made["checkpoints"]:
        now = _shown(made["checkpoints"])
        return f"the report of {time} scored what {scored} predicted, this one {now}"
    if digest not in (None, made["results_sha256"]):
        return f"the report of {time} scored other results of the same checkpoint"
    return None


def _seal(path: str) -> str | None:
    try:
        return seal(Path(path))
    except OSError:
        return None


def _each(found: str | list[str] | None) -> list[str]:
    return [found] if isinstance(found, str) else found or []


def _shown(checkpoints: Iterable[Mapping[str, Any]]) -> str:
    """Paths, each with the beginning of its sha256."""
    texts = [
        f"{' + '.join(_each(one['path'])) or 'an unknown checkpoint'}"
        f" ({' + '.join(digest[:8] for digest in _each(one['sha256'])) or 'unknown'})"
        for one in checkpoints
    ]
    return list_some(texts, MOST_NAMED)
