"""What was found about the symmetry of a data set, as a run folder and its checkpoints keep it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vcmodels.geometry.symmetries import (
    CUBE_SYMMETRIES,
    IDENTITY,
    Symmetry,
    mirror,
    quarter_turn,
)
from vcmodels.volumes.places import read_json, write_json

AXES = "zyx"
SCHEMA = 1
MIRRORS = tuple(
    symmetry
    for symmetry in CUBE_SYMMETRIES
    if symmetry.permutation == (0, 1, 2) and symmetry != IDENTITY
)
"""Along one axis, two or three."""
PLANES = ((0, 1), (0, 2), (1, 2))
_BY_NAME = {str(symmetry): symmetry for symmetry in CUBE_SYMMETRIES}


def in_words(symmetry: Symmetry) -> str:
    """What a symmetry does, as `mirror z, x`, `quarter turn yx` or the axes that it puts in place."""
    if symmetry.permutation == (0, 1, 2):
        axes = [AXES[axis] for axis in range(3) if symmetry.flips[axis]]
        return f"mirror {', '.join(axes)}" if axes else "as it is"
    for a, b in PLANES:
        if symmetry in (quarter_turn(a, b), quarter_turn(b, a)):
            return f"quarter turn {AXES[a]}{AXES[b]}"
    return f"axes {symmetry}"


@dataclass(frozen=True)
class SymmetryVerdict:
    """Whether one symmetry leaves images and labels alike."""

    holds: bool
    reason: str
    """In words, with the figures."""
    share: float = 0.5
    """Of windows that were told from their images, by what told them best; 0.5 is a guess."""


@dataclass(frozen=True)
class SignVerdict:
    """How the sign of the vectors of a target may be learnt."""

    by_image: float
    """Share of windows in which the image tells a vector from its opposite; 0.5 is a guess."""
    windows: int
    along: float
    """Share of vectors that point the way which all is left as it is by what holds; 0.5 is a toss."""
    along_untouched: float
    """The same without any mirror or turn."""
    mean: tuple[float, float, float]
    """Of the unit vectors, (z, y, x)."""
    remedy: str = ""
    """What to do where nothing tells the sign, or `by_direction` that of few volumes; "" where something
    does, or too little is known."""
    by_direction: bool = False
    """Whether nothing but the way in which the vectors lie tells the sign."""

    @property
    def found(self) -> str:
        """In words."""
        told = f"the image tells it in {self.by_image:.0%} of {self.windows} windows"
        return f"{told}, {self.along:.0%} of the vectors point one way"


@dataclass(frozen=True)
class SymmetryFindings:
    """Of a data set."""

    verdicts: Mapping[str, SymmetryVerdict]
    """By the name of each symmetry of the cube, the identity left out."""
    signs: Mapping[str, SignVerdict]
    """By target, of those with vectors that have a sign."""
    windows: int
    """How many were looked at."""
    window: tuple[int, int, int]
    """Shape of the largest, (z, y, x) in voxels."""
    volumes: int
    """How many they are of."""
    data_sha256: str = ""
    """Of what the volumes hold, see `data.record.identity_of`."""
    task_sha256: str = ""
    """Of what a task looks for, and where, see `follow.question_of`; older files do not say it."""
    schema: int = SCHEMA

    @property
    def group(self) -> tuple[Symmetry, ...]:
        """All that hold, with the identity; a group."""
        held = (_BY_NAME[name] for name, verdict in self.verdicts.items() if verdict.holds)
        return (IDENTITY, *held)

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Axes whose mirror holds."""
        group = set(self.group)
        return tuple(AXES[axis] for axis in range(3) if mirror(axis) in group)

    def refuted(self, symmetries: Collection[Symmetry]) -> list[Symmetry]:
        """Those that do not hold, mirrors of one axis and quarter turns first."""
        held = set(self.group)
        return sorted((s for s in symmetries if s not in held), key=_plainness)

    def why_not(self, symmetry: Symmetry) -> str:
        """In words, what refutes a symmetry."""
        return f"{in_words(symmetry)}: {self.verdicts[str(symmetry)].reason}"

    def shown(self) -> Iterator[tuple[str, SymmetryVerdict]]:
        """What people look at: mirrors and the quarter turn of each plane, in words."""
        turns = [quarter_turn(a, b) for a, b in PLANES]
        for symmetry in (*sorted(MIRRORS, key=_plainness), *turns):
            yield in_words(symmetry), self.verdicts[str(symmetry)]

    @property
    def summary(self) -> str:
        """In a line: which mirrors and quarter turns hold."""
        group = set(self.group)
        turns = [f"{AXES[a]}{AXES[b]}" for a, b in PLANES if quarter_turn(a, b) in group]
        listed = f"mirrors {_listed(self.mirrors)}; quarter turns {_listed(turns)}"
        return f"{listed} ({len(group)} of 48 orientations)"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return FINDINGS.dump_python(self, mode="json")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _plainness(symmetry: Symmetry) -> tuple[int, int, Sequence[int], Sequence[bool]]:
    """Sorts mirrors of one axis first, then quarter turns, then the rest."""
    moved = sum(axis != place for place, axis in enumerate(symmetry.permutation))
    flips = sum(symmetry.flips)
    return moved, flips, symmetry.permutation, [not flip for flip in symmetry.flips]


FINDINGS: TypeAdapter[SymmetryFindings] = TypeAdapter(SymmetryFindings)
"""How JSON values become findings again."""


def as_findings(values: object) -> SymmetryFindings | None:
    """Findings from JSON values; None where they are none of this version."""
    with suppress(ValidationError):
        found = FINDINGS.validate_python(values)
        if found.schema == SCHEMA and found.verdicts.keys() == _BY_NAME.keys() - {str(IDENTITY)}:
            return found
    return None


def write_findings(path: Path, findings: SymmetryFindings) -> None:
    """Keep the findings in a file."""
    write_json(path, findings.to_dict())


def stored_findings(path: Path) -> SymmetryFindings | None:
    """The findings in a file; None where there are none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        return as_findings(read_json(path))
    return None
