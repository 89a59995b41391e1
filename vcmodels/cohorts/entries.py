"""Cases of tables and folders as entries of `volume_paths`: their names and groups."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcmodels.cohorts.base import Case, CaseList
from vcmodels.errors import TaskError

KEY = "dataset_config.volume_paths"


@dataclass(frozen=True)
class Source:
    """A table or folder, and what is said next to it of all its cases."""

    cases: CaseList
    place: str = ""
    """Where it is; the subjects of one place are the same people."""
    cohort: str | None = None
    has_group: bool = False


def entries_of(sources: Sequence[Source]) -> list[list[dict[str, Any]]]:
    """Entries of `volume_paths` for each source: named by subject, those of a subject in one group.

    Raises:
        TaskError: sources of different places have a subject in common, and no cohorts of their own.
    """
    sources = list(_told_apart(sources))
    every = [case for source in sources for case in source.cases.cases]
    counts = Counter(case.subject for case in every)
    # One row that says the group says it of its subject: the others must not be on the other side.
    groups = {case.subject: case.group for case in every if case.subject and case.group}
    used = set[str]()
    return [
        [
            replace(
                case,
                name=_free_name(case.name or case.subject, used),
                group=case.group
                or groups.get(case.subject or "")
                or _own_group(case, source, counts),
            ).entry()
            for case in source.cases.cases
        ]
        for source in sources
    ]


def _own_group(case: Case, source: Source, counts: Counter[str | None]) -> str | None:
    """A subject as a group, if it has several cases and nothing else is said."""
    is_group = source.cases.has_subjects or counts[case.subject] > 1
    return case.subject if is_group and not source.has_group else None


def _told_apart(sources: Sequence[Source]) -> Iterator[Source]:
    """The sources, with the cohort before a subject that another place has, too.

    A number would do for the names. But whether the two are one person, who must not be on both
    sides of a split, only the task can say.
    """
    places: dict[str, dict[str, Source]] = {}
    for source in sources:
        for case in source.cases.cases:
            if case.subject:
                places.setdefault(case.subject, {}).setdefault(source.place, source)
    shared = {subject: list(there.values()) for subject, there in places.items() if len(there) > 1}
    for subject, there in shared.items():
        _require_cohorts(subject, there)
    first = {one.place: one.cohort for there in shared.values() for one in there}
    for source in sources:
        cases = tuple(
            _with_cohort(case, first[source.place]) if case.subject in shared else case
            for case in source.cases.cases
        )
        yield replace(source, cases=replace(source.cases, cases=cases))


def _with_cohort(case: Case, cohort: str | None) -> Case:
    name = None if case.name is None else f"{cohort}_{case.name}"
    return replace(case, subject=f"{cohort}_{case.subject}", name=name)


def _require_cohorts(subject: str, sources: Sequence[Source]) -> None:
    cohorts = [source.cohort for source in sources]
    if None in cohorts or len({*cohorts}) < len(cohorts):
        found = f"subject {subject} is in {' and in '.join(one.place for one in sources)}"
        remedy = (
            'give each a "cohort" of its own where these are different people, as in '
            '{"cases": "oslo.csv", "cohort": "Oslo"}, or put the rows of both in one table'
        )
        raise TaskError(KEY, found, remedy)


def _free_name(subject: str | None, used: set[str]) -> str | None:
    """A subject as a name of a volume, with a number where an earlier one has it."""
    if subject is None:
        return None
    plain = re.sub(r"[^A-Za-z0-9_.\-]+", "_", subject).lstrip(".-")[:56].rstrip(".") or "case"
    name, number = plain, 1
    while name.lower() in used:
        number += 1
        name = f"{plain}_{number}"
    used.add(name.lower())
    return name
