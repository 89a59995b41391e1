"""What a check of a data set sees and says; a check is one file, named in `vcmodels.audit.checks`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from vcmodels.audit.looks import VolumeLook, look_at
from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.misfits import CensusPlan, TaskCensuses, task_censuses
from vcmodels.reporting import Reporter, list_some

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Worst first: training fails or learns what nobody wants; it costs time or quality; good to know."""
MOST_NAMES = 4


@dataclass(frozen=True)
class Finding:
    """One thing that is odd about the data, with what to do about it."""

    severity: Severity
    subject: str
    """The dotted key, or the volume, that it is about."""
    found: str
    remedy: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by name: what the words rest on."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        words = {"severity": self.severity, "subject": self.subject, "found": self.found}
        return words | {"remedy": self.remedy, "figures": dict(self.figures)}


@dataclass
class AuditScene:
    """The data set that is looked at. What several checks need is read once, when one asks for it."""

    task: Task
    """With its patch size."""
    volumes: Sequence[TaskVolume]
    lines: Sequence[str]
    """What was said while they were opened."""
    indexer: Indexer
    """Gives the label indexes."""
    reporter: Reporter

    @cached_property
    def censuses(self) -> TaskCensuses:
        """What the labels hold, by target; of a large label parts are looked at."""
        plan = CensusPlan.of(self.task, self.indexer, reads_reference=False)
        targets = self.task.dataset_config.targets
        return task_censuses(targets, self.volumes, plan, self.reporter)

    @cached_property
    def looks(self) -> Sequence[VolumeLook]:
        """A sample of the images of each volume, in the order of the volumes."""
        found = []
        with self.reporter.bar("images", len(self.volumes)) as advance:
            for volume in self.volumes:
                found.append(look_at(volume))
                advance(1, volume.name)
        return found


@dataclass(frozen=True)
class Check:
    """One sort of findings."""

    name: str
    title: str
    """Heads its findings."""
    find: Callable[[AuditScene], Iterator[Finding]]
    is_cheap: bool = False
    """Whether `vcmodels check` runs it, too: it reads no voxel, and repeats nothing of `check`."""


def listed(names: Iterable[str]) -> str:
    """The first few of some names, each once, and how many more there are."""
    return list_some(dict.fromkeys(names), MOST_NAMES)
