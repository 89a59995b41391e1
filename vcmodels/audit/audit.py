"""All checks of a data set, and their findings as text and JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vcmodels.audit.base import SEVERITIES, AuditScene, Finding, Severity
from vcmodels.audit.checks import CHECKS
from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Reporter, Silent
from vcmodels.scratch import scratch_folder


@dataclass(frozen=True)
class Audit:
    """What was found, by check."""

    subject: str
    """The task."""
    volumes: int
    findings: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    """By the name of the check, all that ran; the worst first."""
    titles: Mapping[str, str] = field(default_factory=lambda: {c.name: c.title for c in CHECKS})
    """Of the checks."""

    @property
    def every(self) -> list[Finding]:
        """All findings, the worst first."""
        return worst_first([finding for found in self.findings.values() for finding in found])

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.every)

    def reaches(self, severity: Severity) -> bool:
        """Whether a finding is as bad as a severity, or worse."""
        return any(self.count(worse) for worse in SEVERITIES[: SEVERITIES.index(severity) + 1])

    @property
    def summary(self) -> str:
        """The numbers of findings and of volumes in words."""
        counts = [f"{self.count(s)} {s}{'' if self.count(s) == 1 else 's'}" for s in SEVERITIES]
        return f"{self.volumes} volume{'' if self.volumes == 1 else 's'}: {', '.join(counts)}"

    def lines(self) -> Iterator[str]:
        """The findings by check, those with the worst first."""
        order = sorted(self.findings.items(), key=lambda pair: _rank(pair[1]))
        for name, found in order:
            if found:
                yield self.titles[name]
            for finding in found:
                yield f"  {finding.severity}: {finding.subject}: {finding.found}"
                if finding.remedy:
                    yield f"      {finding.remedy}"
        yield self.summary

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = {name: [one.to_dict() for one in every] for name, every in self.findings.items()}
        counts = {severity: self.count(severity) for severity in SEVERITIES}
        return {"subject": self.subject, "volumes": self.volumes, "counts": counts, "checks": found}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def _rank(found: Sequence[Finding]) -> int:
    return min((SEVERITIES.index(finding.severity) for finding in found), default=len(SEVERITIES))


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """The findings by severity, else in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def audit_task(task: Task, subject: str, reporter: Reporter | None = None) -> Audit:
    """Look at the data of a task: a sample of each image, the labels, and how they are stored.

    Nothing is written. Large images are sampled, the same cubes every time.

    Args:
        task: as it was loaded.
        subject: what the result is called by.
        reporter: shows how far it is.

    Raises:
        RefusedError: the volumes cannot be opened, or do not fit the task; as `vcmodels check`.
        ChunkError: a label chunk cannot be read.
    """
    reporter, said = reporter or Silent(), Silent()
    resolved = resolve(task, said, reads_labels=False)
    with scratch_folder() as folder:
        indexer = Indexer(folder, reporter)
        scene = AuditScene(resolved.task, resolved.volumes, said.lines, indexer, reporter)
        findings: dict[str, Sequence[Finding]] = {}
        with reporter.bar("checks", len(CHECKS)) as advance:
            for check in CHECKS:
                findings[check.name] = worst_first(list(check.find(scene)))
                advance(1, check.title)
    return Audit(subject, len(resolved.volumes), findings)


def cheap_findings(
    task: Task, volumes: Sequence[TaskVolume], indexer: Indexer
) -> Iterator[Finding]:
    """What is found without a look at voxels, and was not said while the volumes were opened."""
    scene = AuditScene(task, volumes, (), indexer, Silent())
    for check in CHECKS:
        if check.is_cheap:
            yield from check.find(scene)
