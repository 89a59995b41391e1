"""The scores of predictions as values: per volume, target and class, with what they are made of.

`Report` is what the file `REPORT` holds; tables, pages and comparisons are made of it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, nan
from statistics import fmean
from typing import Any, Self

from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import Curve, Sense

SCHEMA = 1
REPORT, TABLE, PAGE = "report.json", "scores.csv", "report.html"
"""The files of a report in its folder."""


@dataclass(frozen=True)
class TargetScores:
    """The figures of one target in one volume, or in several together."""

    form: str
    """What was compared, a word of `comparison.Compared`."""
    figures: Mapping[str, float]
    """By name, as from `Target.summarise`: `dice`, and for each class `dice_<class>`; NaN is unknown."""
    better: Mapping[str, Sense]
    """Whether less or more of a figure is better; of the names in `figures`."""
    classes: tuple[str, ...] = ()
    """Names of the classes but the background, in the order of the figures."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Lines by title."""
    slices: Mapping[int, float] = field(default_factory=dict)
    """The first figure of each z slice that has one, by z."""
    notes: tuple[str, ...] = ()
    """What was not measured, and why."""


@dataclass(frozen=True)
class VolumeScores:
    """The figures of one volume."""

    name: str
    prediction: str
    """Where the prediction lies, as it was given."""
    labels: Mapping[str, str]
    """Where the label of each target lies."""
    boxes: tuple[Box, ...]
    """What was scored."""
    spacing: Spacing
    unit: str
    """Of the spacing and of all distances; empty when unknown: then they count voxels."""
    targets: Mapping[str, TargetScores]
    image: tuple[str, ...] = ()
    """Where the image lies, if that is known."""
    group: str | None = None
    split: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """The figures of all volumes, and where they come from."""

    volumes: tuple[VolumeScores, ...]
    pooled: Mapping[str, TargetScores]
    """By target: figures of all voxels of all volumes together, where sums over voxels give them."""
    settings: Mapping[str, Any]
    """What determined the figures, as JSON values: metrics and their options, boxes, kinds."""
    provenance: Mapping[str, Any]
    """When, with which version, of which run and checkpoint, as JSON values."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of all targets, in order."""
        return tuple(dict.fromkeys(name for volume in self.volumes for name in volume.targets))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of all groups, in order."""
        return tuple(dict.fromkeys(v.group for v in self.volumes if v.group is not None))

    def means(self, target: str, group: str | None = None) -> dict[str, float]:
        """The mean of each figure over the volumes where it is known, all or those of a group.

        NaN where no volume has a value.
        """
        found = [
            volume.targets[target].figures
            for volume in self.volumes
            if target in volume.targets and group in (None, volume.group)
        ]
        names = dict.fromkeys(name for figures in found for name in figures)
        known = {n: [f[n] for f in found if isfinite(f.get(n, nan))] for n in names}
        return {name: fmean(values) if values else nan for name, values in known.items()}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; unknown figures are null."""
        document = {"schema": SCHEMA, **_map(asdict(self), lambda v: v if isfinite(v) else None)}
        document["means"] = {
            target: {
                "all": _null(self.means(target)),
                "groups": {group: _null(self.means(target, group)) for group in self.groups},
            }
            for target in self.targets
        }
        return document

    def to_text(self) -> str:
        """As the file `REPORT` holds it."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is of another version, or damaged.
        """
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}, not {SCHEMA}")
        volumes = tuple(map(_volume, document["volumes"]))
        pooled = {name: _target(found) for name, found in document["pooled"].items()}
        return cls(volumes, pooled, document["settings"], document["provenance"])


def _map(value: object, change: Callable[[float], object]) -> Any:  # noqa: ANN401 -- JSON values
    """JSON values with every float changed; names are made text, tuples lists."""
    if isinstance(value, float):
        return change(value)
    if isinstance(value, Mapping):
        return {str(key): _map(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_map(one, change) for one in value]
    return value


def _null(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in figures.items()}


def _figures(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: nan if value is None else value for name, value in found.items()}


def _values(found: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(nan if value is None else value for value in found)


def _target(found: Mapping[str, Any]) -> TargetScores:
    curves = {
        title: Curve(**{**curve, "x": _values(curve["x"]), "y": _values(curve["y"])})
        for title, curve in found["curves"].items()
    }
    slices = {int(z): nan if value is None else value for z, value in found["slices"].items()}
    own = {"figures": _figures(found["figures"]), "curves": curves, "slices": slices}
    lists = {name: tuple(found[name]) for name in ("classes", "notes")}
    return TargetScores(**{**found, **own, **lists})


def _volume(found: Mapping[str, Any]) -> VolumeScores:
    z, y, x = found["spacing"]
    own = {
        "targets": {name: _target(one) for name, one in found["targets"].items()},
        "boxes": tuple(Box(tuple(one["origin"]), tuple(one["shape"])) for one in found["boxes"]),
        "spacing": (z, y, x),
        "image": tuple(found["image"]),
    }
    return VolumeScores(**{**found, **own})
