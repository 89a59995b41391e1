"""The contract of a step of post-processing: named arrays in, one named array out.

A step is one file: the class is its block in the task file, its fields are the keys, its methods the
behaviour. It says

- `roles`: what it reads, and of which kinds that may be;
- `form`: what it writes: dtype and kind;
- `run`: how, by passes over blocks (see `site`); a step that looks at a block and its surroundings
  alone is a `LocalStep` and says only `margin` and `apply`.

The result may depend on nothing but the arrays and the keys: not on blocks, their order, or who
works on them. Ids are uint64, 0 for the background, and numbered from 1 in the order in which a walk
through the volume, x fastest and z slowest, meets the first voxel of each object.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.lengths import in_micrometers
from vcmodels.postprocess.site import Site, Source
from vcmodels.section import Section
from vcmodels.targets.binary import BinaryTarget
from vcmodels.volumes.reader import Pad

MASK = "binary"
IDS = "instances"
PROBABILITIES = frozenset({"binary", "boundary", "centres"})
"""Kinds of one channel of values from 0 to 1."""
VALUES = PROBABILITIES | {"distance", "regression"}
"""Kinds of one channel of numbers."""

OutputName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", min_length=1, max_length=128)
]


@dataclass(frozen=True)
class Role:
    """One array that a step reads."""

    kinds: frozenset[str]
    """Which kinds it may be of."""
    is_optional: bool = False


@dataclass(frozen=True)
class Form:
    """What a step writes."""

    kind: str
    """As of a target; `instances` for ids."""
    dtype: np.dtype
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """How values are stored, as a target says it; empty for ids."""
    channels: int | None = None
    """None: axes (Z, Y, X)."""

    @property
    def is_categorical(self) -> bool:
        """Whether values are ids, classes, or 0 and 255 of a mask, of which no mean is taken."""
        return self.dtype.kind != "f" and self.kind in (IDS, MASK, "multiclass")


IDS_FORM = Form(IDS, np.dtype(np.uint64))
MASK_FORM = Form(MASK, np.dtype(np.uint8), BinaryTarget().encoding(np.dtype(np.uint8)))
"""A mask is stored as probabilities of 0 and 1 are: as 0 and 255."""
TRUE = 255
"""What a mask is stored as where it is true."""


class Step(Section):
    """Keys that all steps share."""

    model_config = ConfigDict(serialize_by_alias=True)  # `source` is "from" in JSON

    output: OutputName
    """Name of what is written: a group of the result, beside the predictions."""
    source: Annotated[OutputName | dict[str, OutputName], Field(alias="from")]
    """What is read: a target or the output of a step before; several by role, as in
    {"boundary": "membrane", "seeds": "centres"}."""

    tune_for: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Which figure decides on keys that are "tuned": by default `voi` of ids, and `dice` of masks."""
    tune_by: OutputName | None = None
    """Against which label it is measured: by default the one that is named as the output or, of
    masks, what is read first."""

    roles: ClassVar[Mapping[str, Role]]
    """What is read, by role, the main one first."""
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """Keys that may be "tuned", with the values that are tried."""

    @field_validator("source")
    @classmethod
    def _require_roles(cls, given: str | dict[str, str]) -> str | dict[str, str]:
        names = given if isinstance(given, dict) else {next(iter(cls.roles)): given}
        known = ", ".join(cls.roles)
        for name in names:
            if name not in cls.roles:
                raise ValueError(f'there is no role "{name}"; choose from {known}')
        for name, role in cls.roles.items():
            if not role.is_optional and name not in names:
                raise ValueError(f'"{name}" is missing: give it as {{"{name}": "..."}}')
        return given

    def idle_keys(self) -> Mapping[str, str]:
        if "tuned" in [getattr(self, key) for key in self.grid]:
            return {}
        return dict.fromkeys(("tune_for", "tune_by"), 'no key is "tuned"')

    @property
    def sources(self) -> dict[str, str]:
        """The names of what is read, by role."""
        if isinstance(self.source, dict):
            return self.source
        return {next(iter(self.roles)): self.source}

    @abstractmethod
    def output_kind(self, kinds: Mapping[str, str]) -> str:
        """The kind of what is written, by the kinds of what is read, by role."""

    @abstractmethod
    def form(self, sources: Mapping[str, Source]) -> Form:
        """What is written, by what is read."""

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse, before any work, keys that do not fit what is read.

        Args:
            sources: by role; their kinds are those of `roles`.
            spacing: length of a voxel along (z, y, x).
            unit: of the spacing; None where the store says none.

        Raises:
            RefusedError: the key, without its place in the task, what was found and a remedy.
        """
        del sources, spacing, unit

    @abstractmethod
    def run(self, site: Site) -> None:
        """Write the output.

        Raises:
            StoppedError: the crew was asked to stop; the next call continues.
        """


def kinds_of_outputs(steps: Sequence[Step], kinds: Mapping[str, str]) -> dict[str, str]:
    """The kinds of what steps write, by name.

    Args:
        steps: in order; one that reads what is not known is left out.
        kinds: of what is there before.
    """
    found: dict[str, str] = {}
    for step in steps:
        known = {**kinds, **found}
        if all(name in known for name in step.sources.values()):
            roles = {role: known[name] for role, name in step.sources.items()}
            found[step.output] = step.output_kind(roles)
    return found


class LocalStep(Step):
    """A step of which a voxel depends on the voxels around it alone.

    The spacing that its methods get is in micrometers where the store says a unit of length.
    """

    pad: ClassVar[Pad] = "edge"
    """What stands beyond the border of the volume."""

    @abstractmethod
    def margin(self, spacing: Spacing) -> Shape:
        """How far around a voxel values matter, in voxels along (z, y, x)."""

    @abstractmethod
    def apply(self, values: Mapping[str, np.ndarray], spacing: Spacing) -> np.ndarray:
        """The output of a block with its margin; what is computed in the margin is cut off.

        Args:
            values: by role, (P, Z, Y, X) as from `Source.read`, the margin included.
            spacing: length of a voxel along (z, y, x).

        Returns:
            (Z, Y, X) or (S, Z, Y, X), in the dtype of `form`, the margin included.
        """

    def run(self, site: Site) -> None:
        """Write the output in one pass."""
        spacing = in_micrometers(site.spacing, site.unit)
        work = _LocalWork(self, site.sources, site.box, spacing, self.margin(spacing))
        site.write(self.output, work)


@dataclass(frozen=True)
class _LocalWork:
    step: LocalStep
    sources: Mapping[str, Source]
    within: Box
    spacing: Spacing
    margin: Shape

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        around = box.grow(self.margin)
        values = {
            role: one.read(around, self.within, self.step.pad) for role, one in self.sources.items()
        }
        made = self.step.apply(values, self.spacing)
        return made[(..., *box.slices(around))], {}
